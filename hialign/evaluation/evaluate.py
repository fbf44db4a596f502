"""Judge-free evaluation: does a cell prefer the better response, and how far has it moved?

The paper has no such evaluation. Each cell, Base included, is asked three questions:
- Likelihood accuracy: how often is log p(chosen) > log p(rejected)?
- Implicit reward (from Eq. 1), beta (log p - log p_base): what is its margin between chosen and
  rejected, and how often is the margin positive? For Base it is zero by construction, so Base has
  no reward accuracy.
- KL divergence from base along the cell's own responses, in nats per token: how far has it moved?
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hialign.engine import environment
from hialign.engine.adapters import load_cells
from hialign.engine.chat_template import chat_ids
from hialign.engine.logprobs import response_logits
from hialign.engine.models import identity
from hialign.engine.progress import Progress
from hialign.engine.reference import Reference
from hialign.engine.strategy import Strategy
from hialign.engine.together import LogProbs, active, strategy_log_probs
from hialign.engine.tokens import TokenPair, Tokens, tokenize_pair, usable
from hialign.evaluation.outcomes import outcomes
from hialign.preferences.formats import Pair, conversation_id
from hialign.preferences.pairs import contrasts_of, load_pairs
from hialign.preferences.test_sets import load_test_set
from hialign.records import dependencies, files, stages, status
from hialign.statistics.intervals import difference_interval, mean_interval
from hialign.statistics.margins import accuracy_interval, hit, with_interval
from hialign.study.errors import HialignError
from hialign.study.study import Cell


def evaluate(cell: Cell) -> dict[str, Any]:
    """Measure the cell on held-out and contrast pairs and leave `evaluation.json` in its folder.

    It needs the cell's adapter and responses. Returns the record. Its `objectives` are `all`, the
    study's held-out pairs, `grammar`, `coherence` and `factuality`, the built-in contrasts of
    held-out prompts, and the test sets of `evaluation.sets`. Its `divergence` has KL from base, and
    the length, refusals and repetition of responses. Every figure has a 95% interval.
    """
    return evaluate_together([cell])[0]


def evaluate_together(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Evaluate several cells of one study, model and seed with one loaded model.

    The layers below the first adapted one run once for all of them. The numbers are those of
    `evaluate`, cell by cell. Returns the records, in the order of the cells.
    """
    first = cells[0]
    depends = {cell.block: dependencies.depends(cell, "evaluate") for cell in cells}
    responses = {cell.block: _responses(cell) for cell in cells}
    groups = _groups(first)
    model, tokenizer, strategies = load_cells(cells)
    started = time.perf_counter()
    unique = {pair["id"]: pair for pairs in groups.values() for pair in pairs}
    tokens = _tokenized(first, tokenizer, unique)
    groups = {name: [p for p in pairs if p["id"] in tokens] for name, pairs in groups.items()}
    if not groups["all"]:
        raise HialignError(
            f"training.max_length {first.study.training.max_length}: the prompts of all held-out "
            f"pairs of {first.study.name} are longer, so there is nothing to evaluate; raise it"
        )
    pairs = list(tokens.values())
    pad = tokenizer.pad_token_id or 0
    reference = Reference(model, identity(first.model), pairs)
    base = [both for both in reference.values if both] if reference.complete else None
    log_probs = strategy_log_probs(model, strategies, pairs, pad, base, "evaluate")
    reference.fill(lambda _: log_probs["base"])
    shared = (time.perf_counter() - started) / len(cells)
    records = []
    for cell in cells:
        started = time.perf_counter()
        rows = _rows(unique, groups, list(tokens), log_probs[cell.block], log_probs["base"])
        content = {
            "stage": "evaluate",
            **depends[cell.block],
            "beta": cell.study.training.beta,
            "pairs_too_long": len(unique) - len(tokens),
            "objectives": _summaries(cell, groups, rows),
            "divergence": _divergence(cell, model, strategies, tokenizer, responses[cell.block]),
            "pairs": rows,
            "evaluated_with": [other.block for other in cells if other is not cell],
        }
        content |= {
            "seconds": shared + time.perf_counter() - started,
            "peak_memory_bytes": environment.peak_memory_bytes(),
            **environment.environment(),
        }
        records.append(files.write_record(stages.stage_manifest(cell, "evaluate"), content))
    return records


def _responses(cell: Cell) -> list[dict[str, Any]]:
    status.required(cell, "respond")
    return files.read_jsonl(cell.folder / "responses.jsonl")


def _tokenized(cell: Cell, tokenizer: Any, pairs: Mapping[str, Pair]) -> dict[str, TokenPair]:
    """The pairs' tokens by id, cut as in training. A pair of which no response is left to score is
    left out."""
    limits = (cell.study.training.max_length, cell.study.training.truncation)
    tokens = {key: tokenize_pair(tokenizer, pair, *limits) for key, pair in pairs.items()}
    return {key: pair for key, pair in tokens.items() if usable(pair, *limits)}


def _rows(
    pairs: Mapping[str, Pair],
    groups: Mapping[str, Sequence[Pair]],
    ids: Sequence[str],
    own: LogProbs,
    base: LogProbs,
) -> list[dict[str, Any]]:
    """One row per scored pair: its groups, and the log-probabilities under the cell and Base."""
    members = {name: {pair["id"] for pair in of_group} for name, of_group in groups.items()}
    return [
        {
            "id": key,
            "objective": pairs[key]["objective"],
            "groups": [name for name, inside in members.items() if key in inside],
            "conversation": _unit(pairs[key]),
            **dict(zip(("chosen", "rejected"), mine, strict=True)),
            **dict(zip(("chosen_base", "rejected_base"), theirs, strict=True)),
        }
        for key, mine, theirs in zip(ids, own, base, strict=True)
    ]


def _unit(pair: Pair) -> str:
    """The unit of intervals: a conversation, or, of BLiMP, whose pairs share a prompt, a phenomenon."""
    return str(pair.get("phenomenon") or conversation_id(pair["prompt"]))


def _summaries(
    cell: Cell, groups: Mapping[str, Sequence[Pair]], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    by_id = {row["id"]: row for row in rows}
    return {
        name: _summary(
            [by_id[pair["id"]] for pair in pairs],
            [str(pair.get("phenomenon") or pair["prompt"]) for pair in pairs],
            cell,
        )
        for name, pairs in groups.items()
    }


def _groups(cell: Cell) -> dict[str, list[Pair]]:
    """The pairs of each objective. `all` are the study's own held-out ones."""
    settings = cell.study.evaluation
    own = [dict(p) for p in load_pairs(cell.study.preferences).evaluation]
    groups = {"all": own[: settings.pairs]}
    if settings.contrast_prompts:
        groups |= contrasts_of(settings.contrast_prompts)
    for name in settings.sets:
        groups[name] = load_test_set(name, settings.set_pairs)
    return groups


def _summary(rows: Sequence[dict[str, Any]], prompts: Sequence[str], cell: Cell) -> dict[str, Any]:
    """Accuracies and margin over the scored pairs `rows`, with intervals. Ties count one half."""
    beta, resamples = cell.study.training.beta, cell.study.evaluation.resamples
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
    cell: Cell,
    model: Any,
    strategies: Mapping[str, Strategy],
    tokenizer: Any,
    responses: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """KL(cell || base) in nats per token, and what the responses show without a judge (`outcomes`).

    At each position of the cell's own response, the divergence of the two next-token distributions
    is summed over the whole vocabulary. It is averaged over each response, and then over responses.
    Empty responses have no position and are left out.
    """
    settings = cell.study.evaluation
    resamples = settings.resamples
    own = outcomes(responses, resamples)
    if cell.block == "base":
        return own | {"kl": 0.0, "kl_low": 0.0, "kl_high": 0.0, "kl_n": len(responses)}
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
            with active(model, strategies, cell.block):
                tuned = response_logits(model, batch, pad)
            with active(model, strategies, "base"):
                base = response_logits(model, batch, pad)
            for (p_logits, _), (q_logits, _) in zip(tuned, base, strict=True):
                log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
                values.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
            bar.update(len(batch))
    if not values:
        return own | {"kl": None, "kl_low": None, "kl_high": None, "kl_n": 0}
    kl = with_interval("kl", values, mean_interval(values, resamples))
    return own | kl | {"kl_n": len(values)}
