"""Judge-free evaluation: does a cell prefer the better response, and how far has it moved?

The paper has no such evaluation. Each cell, Base included, is asked three questions:
- Likelihood accuracy: how often is log p(chosen) > log p(rejected)?
- Implicit reward (from Eq. 1), beta (log p - log p_base): what is its margin between chosen and
  rejected, and how often is the margin positive? For Base it is zero by construction, so Base has
  no reward accuracy.
- KL divergence from base along the cell's own responses, in nats per token: how far has it moved?
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hialign.engine import environment
from hialign.engine.adapters import load_cell
from hialign.engine.chat_template import chat_ids
from hialign.engine.decoder import pair_log_probs
from hialign.engine.logprobs import response_logits
from hialign.engine.models import identity
from hialign.engine.progress import Progress
from hialign.engine.reference import Reference
from hialign.engine.tokens import Tokens, tokenize_pair
from hialign.preferences.formats import Pair
from hialign.preferences.pairs import contrasts_of, load_pairs
from hialign.records import dependencies, files, stages, status
from hialign.statistics.intervals import difference_interval, mean_interval
from hialign.statistics.margins import accuracy_interval, hit, with_interval
from hialign.study.errors import HialignError
from hialign.study.study import Cell


def evaluate(cell: Cell) -> dict[str, Any]:
    """Measure the cell on held-out and contrast pairs and leave `evaluation.json` in its folder.

    It needs the cell's adapter and responses. Returns the record. Its `objectives` are `all`, the
    study's held-out pairs, and `grammar`, `coherence` and `factuality`, the built-in contrasts of
    held-out prompts. Its `divergence` has KL from base and the length of responses. Every figure has
    a 95% interval.
    """
    settings = cell.study.evaluation
    depends = dependencies.depends(cell, "evaluate")
    status.required(cell, "respond")
    responses = files.read_jsonl(cell.folder / "responses.jsonl")
    groups = _groups(cell)
    model, tokenizer = load_cell(cell)
    started = time.perf_counter()
    pad = tokenizer.pad_token_id or 0
    unique = {p["id"]: p for pairs in groups.values() for p in pairs}
    limits = (cell.study.training.max_length, cell.study.training.truncation)
    tokens = {key: tokenize_pair(tokenizer, p, *limits) for key, p in unique.items()}
    # As in training, a prompt that fills `max_length` leaves no response to score
    tokens = {k: pair for k, pair in tokens.items() if all(len(t.ids) > t.start for t in pair)}
    groups = {name: [p for p in pairs if p["id"] in tokens] for name, pairs in groups.items()}
    if not groups["all"]:
        raise HialignError(
            f"training.max_length {limits[0]}: the prompts of all held-out pairs of "
            f"{cell.study.name} are longer, so there is nothing to evaluate; raise it"
        )
    reference = Reference(model, identity(cell.model), list(tokens.values()))
    with _adapters_off(model):
        base = reference.fill(lambda pairs: pair_log_probs(model, pairs, pad, "reference"))
    own = base
    if cell.block != "base":
        own = pair_log_probs(model, list(tokens.values()), pad, "evaluate")
    scored = [
        {
            "id": key,
            "objective": unique[key]["objective"],
            "groups": [
                name for name, pairs in groups.items() if any(p["id"] == key for p in pairs)
            ],
            "prompt": str(unique[key]["prompt"]),
            **dict(zip(("chosen", "rejected"), mine, strict=True)),
            **dict(zip(("chosen_base", "rejected_base"), theirs, strict=True)),
        }
        for key, mine, theirs in zip(tokens, own, base, strict=True)
    ]
    by_id = {row["id"]: row for row in scored}
    beta = cell.study.training.beta
    content = {
        "stage": "evaluate",
        **depends,
        "beta": beta,
        "pairs_too_long": len(unique) - len(tokens),
        "objectives": {
            name: _summary([by_id[p["id"]] for p in pairs], beta, cell, settings.resamples)
            for name, pairs in groups.items()
        },
        "divergence": _divergence(cell, model, tokenizer, responses),
        "pairs": [{k: v for k, v in row.items() if k != "prompt"} for row in scored],
    }
    content |= {
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": environment.peak_memory_bytes(),
        **environment.environment(),
    }
    return files.write_record(stages.stage_manifest(cell, "evaluate"), content)


def _groups(cell: Cell) -> dict[str, list[Pair]]:
    """The pairs of each objective. `all` are the study's own held-out ones."""
    settings = cell.study.evaluation
    own = [dict(p) for p in load_pairs(cell.study.preferences).evaluation]
    groups = {"all": own[: settings.pairs]}
    if settings.contrast_prompts:
        groups |= contrasts_of(settings.contrast_prompts)
    return groups


def _summary(
    rows: Sequence[dict[str, Any]], beta: float, cell: Cell, resamples: int
) -> dict[str, Any]:
    """Accuracies and margin over the scored pairs `rows`, with intervals. Ties count one half."""
    prompts = [r["prompt"] for r in rows]
    preferred = [hit(r["chosen"] - r["rejected"]) for r in rows]
    margins = [
        beta * (r["chosen"] - r["chosen_base"] - r["rejected"] + r["rejected_base"]) for r in rows
    ]
    margin = difference_interval(margins, prompts)
    summary: dict[str, Any] = {
        "n": len(rows),
        "prompts": len(set(prompts)),
        **with_interval(
            "likelihood_accuracy", preferred, accuracy_interval(preferred, prompts, resamples)
        ),
        **with_interval("reward_margin", margins, margin),
    }
    if cell.block == "base":
        none = dict.fromkeys(("reward_accuracy", "reward_accuracy_low", "reward_accuracy_high"))
        return summary | none
    rewarded = [hit(m) for m in margins]
    return summary | with_interval(
        "reward_accuracy", rewarded, accuracy_interval(rewarded, prompts, resamples)
    )


def _divergence(
    cell: Cell, model: torch.nn.Module, tokenizer: Any, responses: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """KL(cell || base) in nats per token, and the length of responses.

    At each position of the cell's own response, the divergence of the two next-token distributions
    is summed over the whole vocabulary. It is averaged over each response, and then over responses.
    Empty responses have no position and are left out.
    """
    settings = cell.study.evaluation
    lengths = [float(r["tokens"]) for r in responses]
    resamples = settings.resamples
    length = {
        "n": len(responses),
        **with_interval("response_tokens", lengths, mean_interval(lengths, resamples)),
    }
    if cell.block == "base":
        return length | {"kl": 0.0, "kl_low": 0.0, "kl_high": 0.0, "kl_n": len(responses)}
    prompts = load_pairs(cell.study.preferences).prompts(cell.study.responses.prompts)
    messages = {p["prompt_id"]: p["prompt"] for p in prompts}
    sequences = []
    for row in responses:
        if row["prompt_id"] not in messages:
            problem = (
                f"the responses of {cell.model.name} {cell.block} are to other prompts than study "
                f"{cell.study.name} has now"
            )
            raise stages.run_first(problem, cell, "respond")
        ids = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        prompt = chat_ids(
            tokenizer,
            messages[row["prompt_id"]],
            f"prompt {row['prompt_id']}",
            add_generation_prompt=True,
        )[-cell.study.responses.max_prompt_tokens :]
        if ids:
            sequences.append(Tokens((*prompt, *ids), len(prompt)))
    sequences.sort(key=lambda t: len(t.ids))
    pad = tokenizer.pad_token_id or 0
    values: list[float] = []
    with torch.inference_mode(), Progress(total=len(sequences), desc="divergence") as bar:
        for start in range(0, len(sequences), settings.batch_size):
            batch = sequences[start : start + settings.batch_size]
            tuned = response_logits(model, batch, pad)
            with _adapters_off(model):
                base = response_logits(model, batch, pad)
            for (p_logits, _), (q_logits, _) in zip(tuned, base, strict=True):
                log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
                values.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
            bar.update(len(batch))
    if not values:
        return length | {"kl": None, "kl_low": None, "kl_high": None, "kl_n": 0}
    kl = with_interval("kl", values, mean_interval(values, resamples))
    return length | kl | {"kl_n": len(values)}


def _adapters_off(model: Any) -> AbstractContextManager[Any]:
    """The base model inside a tuned one. Base itself stays as it is."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
