"""What judging costs: one judgment, a study so far, and an estimate of the rest before it is sent."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from hialign.judging.ledger import Ledger, identity_of, key_of
from hialign.preferences.formats import transcript
from hialign.preferences.pairs import load_pairs
from hialign.records.files import read_jsonl
from hialign.records.stages import judge_of, judgments_file
from hialign.study.rubric import load_rubric, messages
from hialign.study.settings import JudgeSettings, Prices
from hialign.study.study import Cell, Study

BYTES_PER_TOKEN = 4.0  # of English in a judge's prompt, checked in tests/judging/test_judge_cost.py
TOKENS_PER_SCORE = 38  # of an answer: a name, a score and a short reason as JSON


def cost_of(usage: Mapping[str, Any], prices: Prices | None, batch: bool = False) -> float | None:
    """USD for `usage`. None without prices.

    `usage` has prompt_tokens, of which cached_tokens were cached, and completion_tokens.
    """
    if prices is None:
        return None
    cached = usage.get("cached_tokens", 0)
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    total = (usage.get("prompt_tokens", 0) - cached) * prices.input + cached * cached_price
    total += usage.get("completion_tokens", 0) * prices.output
    return float(total / 1e6 * (1 - prices.batch_discount if batch else 1))


def spent(study: Study) -> float:
    """USD for all judgments of the study's judge on disk, with those that later ones replaced."""
    total = 0.0
    for cell in study.cells() if study.judge else ():
        costs: dict[Any, float] = {}  # an answer after a failed one includes the cost of that
        for row in Ledger(judgments_file(cell)).all():
            name = (row.get("prompt_id"), row.get("key"))
            costs[name] = max(costs.get(name, 0.0), row.get("cost") or 0.0)
        total += sum(costs.values())
    return total


def estimate(study: Study) -> pd.DataFrame:
    """What is left to judge of `study`: one row per model, and one for all. Nothing is sent.

    Columns: model, responses, judged, calls, prompt_tokens, completion_tokens, cost, cost_batch and
    cost_at_most. Costs are in USD. `cost_at_most` assumes that every call has to be asked `attempts`
    times for an answer of `max_tokens`.

    `attrs["basis"]` says where the numbers of tokens come from. If the study has judgments, it is
    those. Before, prompts are counted at `BYTES_PER_TOKEN`, and missing responses are assumed to be as
    long as existing ones, or as `responses.max_new_tokens` allows.
    """

    settings = judge_of(study)
    rubric = load_rubric(settings.rubric)
    identity = identity_of(settings)
    # Over the whole study, because equal responses to a prompt are judged once
    done = {key for cell in study.cells() for key in Ledger(judgments_file(cell)).judged()}
    written = [(cell, _responses(cell)) for cell in study.cells()]
    lengths = [len(row["response"].encode()) for _, rows in written for row in rows or []]
    unwritten = any(rows is None for _, rows in written)
    longest = study.responses.max_new_tokens * BYTES_PER_TOKEN
    filler = "x" * int(sum(lengths) / len(lengths) if lengths else longest)
    prompts: list[dict[str, Any]] = []
    if unwritten:
        pairs = load_pairs(study.preferences).prompts(study.responses.prompts)
        prompts = [{"prompt": transcript(p["prompt"]), "response": filler} for p in pairs]
    density, answer, basis = _measured(study, settings, rubric)
    basis += f"; responses not written yet: {len(filler)} bytes each" if unwritten else ""
    rows = []
    for model in study.models:
        row: dict[str, Any] = {"model": model.label, "responses": 0, "judged": 0, "calls": 0}
        size = 0
        of_model = [responses for cell, responses in written if cell.model == model]
        for items in (prompts if responses is None else responses for responses in of_model):
            keys = [key_of(settings, rubric.sha256, item, identity) for item in items]
            left = [item for item, key in zip(items, keys, strict=True) if key not in done]
            row["responses"] += len(items)
            row["judged"] += len(items) - len(left)
            row["calls"] += len(left)
            for item in left:
                asked = messages(rubric, item["prompt"], item["response"])
                size += sum(len(m["content"].encode()) for m in asked)
        row |= {"prompt_tokens": round(size * density)}
        row |= {"completion_tokens": round(row["calls"] * answer)}
        most = {
            "prompt_tokens": row["prompt_tokens"] * settings.attempts,
            "completion_tokens": row["calls"] * settings.max_tokens * settings.attempts,
        }
        row |= {"cost": cost_of(row, settings.prices)}
        row |= {"cost_batch": cost_of(row, settings.prices, batch=True)}
        row |= {"cost_at_most": cost_of(most, settings.prices)}
        rows.append(row)
    frame = pd.DataFrame(rows)
    total = frame.drop(columns="model").sum(min_count=1)
    if len(rows) > 1:
        frame.loc[len(frame)] = {"model": "all", **total}
    counts = ["responses", "judged", "calls", "prompt_tokens", "completion_tokens"]
    frame = frame.astype(dict.fromkeys(counts, int))
    frame.attrs |= {"basis": basis, "spent": spent(study)}
    return frame


def _responses(cell: Cell) -> list[dict[str, Any]] | None:
    path = cell.folder / "responses.jsonl"
    return read_jsonl(path) if path.is_file() else None


def _measured(study: Study, settings: JudgeSettings, rubric: Any) -> tuple[float, float, str]:
    """Tokens per byte of prompt, tokens of an answer, and where both come from in words."""
    size = asked = answered = calls = 0
    for cell in study.cells():
        texts = {row["prompt_id"]: row for row in _responses(cell) or []}
        for row in Ledger(judgments_file(cell)).all():
            item = texts.get(row.get("prompt_id"))
            if item and row.get("scores") and row.get("attempts") == 1 and row.get("usage"):
                content = messages(rubric, item["prompt"], item["response"])
                size += sum(len(m["content"].encode()) for m in content)
                asked += row["usage"].get("prompt_tokens", 0)
                answered += row["usage"].get("completion_tokens", 0)
                calls += 1
    if calls >= 10 and asked:
        return asked / size, answered / calls, f"tokens: as measured on {calls} judgments"
    answer = len(rubric.dimensions) * TOKENS_PER_SCORE
    text = f"tokens: {BYTES_PER_TOKEN} bytes each, {answer} an answer (assumed: none is judged yet)"
    return 1 / BYTES_PER_TOKEN, answer, text
