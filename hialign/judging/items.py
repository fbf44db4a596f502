"""Judging a list of responses into one file, by whichever judge the settings name.

A judge scores each response on the sixteen dimensions of Table 6 (section 4.1, Appendix D).
`hialign.judging.cells` calls this for the responses of a cell, and `validation` for its own.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hialign.engine import models
from hialign.engine.progress import Progress
from hialign.judging.api import OpenAIJudge
from hialign.judging.cost import cost_of
from hialign.judging.ledger import Ledger, Record, identity_of, key_of, source_of
from hialign.judging.local import LocalJudge
from hialign.study.errors import HialignError
from hialign.study.rubric import Rubric, load_rubric
from hialign.study.settings import JudgeSettings


class Counts(TypedDict):
    """What a run of `judge` did. n = done + failed + reused."""

    n: int
    done: int
    failed: int
    reused: int
    seconds: float  # of this run
    usage: dict[str, int]  # tokens of this run
    cost: float | None  # USD of this run. None without prices.
    total_usage: dict[str, int]  # tokens of all judgments in the file
    total_cost: float | None  # USD of all judgments in the file


def judge(
    items: Iterable[Mapping[str, Any]],
    settings: JudgeSettings,
    path: Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    retry_failed: bool = True,
    spent: float = 0.0,
    also: Iterable[Path] = (),
    progress: bool = True,
) -> Counts:
    """Judge `items` ({"prompt_id", "prompt", "response"}) and write one line each, in order, to `path`.

    Each judgment is on disk before the next is counted (see `ledger`), so a run that was killed
    continues where it was. A judgment in `path`, or in the files `also`, is used again if judge,
    rubric, settings, prompt and response are the same. A response without a valid answer has empty
    scores and an "error". It is asked for again the next time, unless `retry_failed` is False.

    `spent` (USD) counts towards `max_cost`. A local judge is loaded from the settings unless `model`
    and `tokenizer` are given.
    """
    start = time.monotonic()
    rows = _checked(items)
    rubric = load_rubric(settings.rubric)
    common = {"judge": settings.name, "rubric_sha256": rubric.sha256}
    identity = identity_of(settings, model)
    if settings.backend == "local":
        common |= {"model": settings.model} | identity
    keys = {row["prompt_id"]: key_of(settings, rubric.sha256, row, identity) for row in rows}
    fresh: dict[Any, Record] = {}
    with Ledger(path) as ledger:
        earlier = ledger.start(keys, also)
        failed_before = {name for name, record in earlier.items() if not record.get("scores")}
        settled = earlier.keys() - failed_before if retry_failed else earlier.keys()
        todo = [row for row in rows if row["prompt_id"] not in settled]
        if todo:
            backend = _backend(settings, rubric, model, tokenizer, spent)
            with Progress(
                total=len(todo),
                desc=f"judge {settings.name}",
                unit="response",
                mininterval=5,  # seconds: logs of batch jobs keep every line
                disable=not progress,
            ) as bar:
                so_far = {"cost": spent, "failed": 0}

                def keep(item: Mapping[str, Any], result: dict[str, Any]) -> None:
                    name = item["prompt_id"]
                    before = earlier.get(name, {}) if name in failed_before else {}
                    record = {"prompt_id": name, **result, **common, "key": keys[name]}
                    record = paid(record, settings, before)
                    ledger.add(record)
                    fresh[name] = record
                    so_far["failed"] += not record["scores"]
                    so_far["cost"] += record.get("cost", 0.0) - before.get("cost", 0.0)
                    bar.set_postfix_str(_postfix(so_far, settings), refresh=False)
                    bar.update()

                backend.judge(todo, keep)
        records = earlier | fresh
        ledger.finish(records[row["prompt_id"]] for row in rows)
    failed = sum(not record["scores"] for record in records.values())
    done = sum(bool(record["scores"]) for record in fresh.values())
    # A record of a response that had failed before includes the cost of that
    replaced = [earlier[name] for name in fresh if name in failed_before]
    return {
        "n": len(rows),
        "done": done,
        "failed": failed,
        "reused": len(rows) - done - failed,
        "seconds": round(time.monotonic() - start, 3),
        "usage": _usage(fresh.values(), replaced),
        "cost": _cost(fresh.values(), replaced, settings),
        "total_usage": _usage(records.values()),
        "total_cost": _cost(records.values(), (), settings),
    }


def paid(
    record: Record, settings: JudgeSettings, before: Mapping[str, Any], batch: bool = False
) -> Record:
    """`record` with its cost, plus the usage and cost of a failed one `before` it."""
    cost = cost_of(record["usage"], settings.prices, batch)
    usage = _usage([record, before])
    if cost is not None or before.get("cost") is not None:
        record = record | {"cost": round((cost or 0.0) + (before.get("cost") or 0.0), 8)}
    return record | {"usage": usage}


def _usage(
    rows: Iterable[Mapping[str, Any]], less: Iterable[Mapping[str, Any]] = ()
) -> dict[str, int]:
    """Tokens of the records `rows`, without those of the records `less`."""
    total = Counter[str]()
    for record in rows:
        total.update(record.get("usage", {}))
    for record in less:
        total.subtract(record.get("usage", {}))
    return dict(total)


def _cost(rows: Iterable[Record], less: Iterable[Record], settings: JudgeSettings) -> float | None:
    """USD for `rows` without `less`. None if neither the records nor the settings have prices."""
    costs = [record.get("cost") for record in rows]
    if settings.prices is None and not any(costs):
        return None
    return round(sum(c or 0.0 for c in costs) - sum(r.get("cost") or 0.0 for r in less), 6)


def _postfix(so_far: Mapping[str, float], settings: JudgeSettings) -> str:
    """What a progress bar shows besides its rate and the time left."""
    parts = [f"{so_far['failed']:.0f} failed"] if so_far["failed"] else []
    if settings.prices:
        of = f" of {settings.max_cost:g}" if settings.max_cost else ""
        parts.append(f"{so_far['cost']:.2f}{of} USD")
    return ", ".join(parts)


def _backend(
    settings: JudgeSettings, rubric: Rubric, model: Any, tokenizer: Any, spent: float
) -> OpenAIJudge | LocalJudge:
    if settings.backend == "openai":
        return OpenAIJudge(settings, rubric, spent)
    if model is None:
        model, tokenizer = models.load_model(source_of(settings))
    elif tokenizer is None:
        raise HialignError("judge() was given a model without its tokenizer: give both or neither")
    return LocalJudge(model, tokenizer, rubric, settings.name)


def _checked(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The items. Raises HialignError if one lacks a text or shares its prompt_id with another."""
    rows = list(items)
    names = set()
    for number, row in enumerate(rows, 1):
        for name in ("prompt_id", "prompt", "response"):
            if name not in row:
                raise HialignError(f"item {number} to judge has no {name!r}")
            if not isinstance(row[name], str) and (name, type(row[name])) != ("prompt_id", int):
                raise HialignError(
                    f"{name} of item {number} to judge is not text: {row[name]!r:.40}"
                )
        if row["prompt_id"] in names:
            raise HialignError(f"two items to judge have the prompt_id {row['prompt_id']!r}")
        names.add(row["prompt_id"])
    return rows
