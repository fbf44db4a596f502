"""What the probes share: pairs that fit, records that are kept, adapters that are tuned and compared."""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hialign import dpo, files, paths, records, status
from hialign.blocks import Choice
from hialign.decoder import Decoder, Layout, unpackable
from hialign.errors import HialignError
from hialign.evaluate import contrasts_of
from hialign.logprobs import TokenPair, tokenize_pair
from hialign.models import identity, weights_sha256
from hialign.packing import pack, plan
from hialign.preferences import load_pairs, prompt_id
from hialign.probes import forget
from hialign.progress import Progress
from hialign.settings import ProbeSettings
from hialign.study import Cell, TrainingSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

ROW = 1024  # tokens of one forward pass of packed pairs


@dataclass(frozen=True)
class ProbePair:
    """A preference pair as a probe reads it."""

    id: str
    objective: str  # `preference` for pairs that were not made to differ in one
    prompt: str  # the prompt's id: pairs of one prompt are kin
    tokens: TokenPair


def probe_settings(cell: Cell) -> ProbeSettings:
    """The study's probe settings; the defaults where it has none and a probe is run by hand."""
    return cell.study.probes or ProbeSettings()


# --- records -------------------------------------------------------------------------------------


class Parts:
    """Results of the parts of a long probe, each kept as soon as it is there, so that a run that was
    killed goes on from the last. `key` is all that they came from.

    They outlive the record until it is read again or its notebook is whole (`forget`): Snakemake
    deletes a record whose notebook fails after it, at a figure.
    """

    def __init__(self, cell: Cell, probe: str, key: str) -> None:
        self.folder = paths.probe_parts(cell.study.name, cell.model.name, probe, key)
        forget(cell, probe, self.folder)  # those of other settings

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives (JSON), from disk if it was computed before."""
        path = self.folder / f"{paths.slug(name)}.json"
        if not (known := _known(path)):
            files.write_record(path, {"part": compute()})
            known = files.read_record(path)
        return known["part"]


def measured(
    cell: Cell,
    probe: str,
    came_from: Mapping[str, Any],
    compute: Callable[[Parts], Mapping[str, Any]],
) -> dict[str, Any]:
    """The record of a probe: as it is on disk if it came from the same, else computed and written.

    `came_from` are hashes of what was measured (weights, pairs, an adapter); with the probe's
    settings they are the record's key. `compute` gives the record's own fields.
    """
    path = paths.probe_record(cell.study.name, cell.model.name, probe)
    depends = status.probe_depends(cell, probe)
    text = json.dumps([depends["fingerprint"], came_from], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    if (known := _known(path)).get("key") == key:
        forget(cell, probe)
        if known.get("notebook", depends["notebook"]) != depends["notebook"]:
            # What a notebook shows is drawn from the record: there is nothing to measure again.
            files.write_record(path, known | {"notebook": depends["notebook"]})
        return known
    about = records.environment()
    # bfloat16 of a GPU and float32 of a CPU do not go into one record
    parts, started = Parts(cell, probe, f"{key}-{about['device_type']}"), time.perf_counter()

    def content() -> dict[str, Any]:
        return {
            "probe": probe,
            "study": cell.study.name,
            "model": cell.model.name,
            "key": key,
            **depends,
            "came_from": dict(came_from),
            **compute(parts),
            "seconds": time.perf_counter() - started,  # of this run: a resumed one has fewer
            "peak_memory_bytes": records.peak_memory_bytes(),
            **about,
        }

    files.write_record(path, parts.part("record", content) | depends)
    return files.read_record(path)


def _known(path: Path) -> dict[str, Any]:
    """What is on disk; empty if there is none, or if it was changed since it was written."""
    try:
        return files.read_record(path) if path.is_file() else {}
    except HialignError:
        return {}


def adapter_of(cell: Cell, block: str) -> tuple[Path, dict[str, str]]:
    """The folder of a block's adapter of the cell's model, and its hash. Raises HialignError if it is
    not there, or was trained with other settings or on other weights than the model has now."""
    tuned_cell = cell.study.cell(cell.model.name, block)
    known, folder = status.required(tuned_cell, "train"), tuned_cell.folder / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():  # published without weights
        raise HialignError(
            f"{cell.model.name} {block} of study {cell.study.name} has no adapter: "
            f"run `{status.command_of(tuned_cell, 'train')}` first"
        )
    if any(known.get(key) != value for key, value in identity(cell.model).items()):
        raise HialignError(
            f"the adapter in {folder} was trained on other weights than {cell.model.source} has now: "
            "train the block again"
        )
    return folder, {"adapter_sha256": weights_sha256(folder)}


# --- pairs ---------------------------------------------------------------------------------------


def held_out(
    cell: Cell, tokenizer: "PreTrainedTokenizerBase", wanted: int | None = None
) -> tuple[list[ProbePair], str]:
    """The first `wanted` held-out pairs of the study that fit `probes.max_length`, and the
    fingerprint of the source. Raises HialignError where there are fewer."""
    settings = probe_settings(cell)
    wanted = settings.pairs if wanted is None else wanted
    pairs = load_pairs(cell.study.preferences)
    found = fitting(pairs.evaluation, tokenizer, settings.max_length, wanted)
    if len(found) < wanted:
        raise HialignError(
            f"probes.pairs asks for {wanted} pairs, but of the {len(pairs.evaluation)} held-out "
            f"pairs of study {cell.study.name} only {len(found)} have at most probes.max_length "
            f"{settings.max_length} tokens: raise preferences.evaluation or probes.max_length, or "
            "lower probes.pairs"
        )
    return found, pairs.fingerprint


def contrast_pairs_of(
    cell: Cell, tokenizer: "PreTrainedTokenizerBase", prompts: int
) -> list[ProbePair]:
    """The built-in contrasts of `prompts` held-out prompts: pairs that differ in one objective."""
    rows = [pair for pairs in contrasts_of(prompts).values() for pair in pairs]
    return fitting(rows, tokenizer, None, None)


def fitting(
    rows: Any, tokenizer: "PreTrainedTokenizerBase", longest: int | None, wanted: int | None
) -> list[ProbePair]:
    """The first `wanted` (None: all) of `rows` that have at most `longest` tokens a side."""
    found: list[ProbePair] = []
    for row in rows:
        if wanted is not None and len(found) == wanted:
            break
        tokens = tokenize_pair(tokenizer, row)
        if longest is None or max(len(t.ids) for t in tokens) <= longest:
            kin = prompt_id(row["prompt"])
            found.append(ProbePair(str(row["id"]), str(row["objective"]), kin, tokens))
    return found


# --- models --------------------------------------------------------------------------------------


def packable(model: "PreTrainedModel", pairs: Sequence[ProbePair]) -> "PreTrainedModel":
    """`model` if the probes can run it, that is, if packed pairs have its log-probabilities."""
    if why := unpackable(model, [pair.tokens for pair in pairs], disable_dropout=True):
        raise HialignError(f"the probes run packed pairs, which this model does not take: {why}")
    return model


def rows_of(
    pairs: Sequence[ProbePair], device: torch.device, limit: int = ROW
) -> Iterator[tuple[list[int], Layout]]:
    """The pairs in packed rows of at most `limit` tokens: their places, and the layout."""
    tokens = [pair.tokens for pair in pairs]
    for chosen in plan(tokens, limit):
        yield chosen, Layout(pack([tokens[i] for i in chosen]), device)


@dataclass(frozen=True)
class Tuned:
    """One base model with an adapter for each block; a context's end takes them off again."""

    model: Any  # a PEFT model, its adapters in evaluation mode
    adapters: Mapping[str, str]  # block -> PEFT's name of its adapter
    layers: Mapping[str, list[int]]
    decoder_of: "PreTrainedModel"
    losses: Mapping[str, list[float]] = field(default_factory=dict)  # of each step, by block

    def log_probs(
        self, pairs: Sequence[ProbePair], what: str = "", limit: int = ROW
    ) -> dict[str, list[tuple[float, float]]]:
        """The log-probabilities (nats) of each pair's chosen and rejected, by block; `base` too.

        What lies below a block's first layer is run once for all of them.
        """
        blocks = list(self.adapters)
        starts = {block: min(self.layers[block]) for block in blocks}
        found: dict[str, list[tuple[float, float]]] = {
            block: [(0.0, 0.0)] * len(pairs) for block in ("base", *blocks)
        }
        with (
            torch.inference_mode(),
            Decoder(self.decoder_of) as decoder,
            Progress(total=len(pairs), desc=what, disable=not what) as bar,
        ):
            for chosen, layout in rows_of(pairs, decoder.device, limit):
                with self.model.disable_adapter():
                    taps = {*starts.values(), decoder.depth} - {0}
                    known = decoder.run(layout, taps)
                    tops = {"base": known[decoder.depth]}
                for block in blocks:
                    self.model.set_adapter(self.adapters[block])
                    entering = known.get(starts[block])
                    tops[block] = decoder.run(layout, [decoder.depth], starts[block], entering)[
                        decoder.depth
                    ]
                for block, top in tops.items():
                    values = decoder.log_probs(top, layout).view(-1, 2).tolist()
                    for i, (c, r) in zip(chosen, values, strict=True):
                        found[block][i] = (c, r)
                bar.update(len(chosen))
        return found

    def margins(
        self, pairs: Sequence[ProbePair], beta: float, what: str = ""
    ) -> dict[str, list[float]]:
        """The implicit reward margin (nats; Eq. 1) of each pair, by block."""
        found = self.log_probs(pairs, what)
        base = found.pop("base")
        return {
            block: [beta * (c - c0 - r + r0) for (c, r), (c0, r0) in zip(values, base, strict=True)]
            for block, values in found.items()
        }


@contextmanager
def tuned(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "Dataset",
    choices: Mapping[str, Choice],
    settings: TrainingSettings,
    weights: dict[str, str],
    callbacks: "Sequence[TrainerCallback]" = (),
) -> Iterator[Tuned]:
    """Train the blocks in one pass (DPO, `hialign.dpo`) and lend the model with their adapters.

    It is packed and followed by no tracker, whatever the study says of its own trainings;
    `callbacks` are transformers' own.
    Afterwards `model` is as it was before: the adapters are taken off.
    """
    settings = settings.model_copy(update={"engine": "packed", "report_to": []})
    with tempfile.TemporaryDirectory(prefix="hialign-probe-") as work:
        trainer = dpo.train_blocks(
            model, tokenizer, pairs, choices, settings, weights, Path(work), callbacks
        )
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    strategies = trainer.strategies
    model.gradient_checkpointing_disable()
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    try:
        yield Tuned(
            adapted.eval(),
            {s.block: s.adapter for s in strategies},
            {s.block: s.layers for s in strategies},
            model,
            {s.block: [row["loss"] for row in dpo.steps_of(trainer, s)] for s in strategies},
        )
    finally:
        adapted.unload()
        del trainer
