"""A judge scores every response on the sixteen dimensions of Table 6 (section 4.1, Appendix D)."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hialign import models, records
from hialign.errors import HialignError
from hialign.judge.rubric import Rubric, load_rubric, sha256_of
from hialign.progress import Progress
from hialign.study import JudgeSettings, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def judge(
    items: Iterable[Mapping[str, Any]],
    settings: JudgeSettings,
    path: Path,
    *,
    model: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge `items` ({"prompt_id", "prompt", "response"}) and write a line each, in order, to `path`.

    Judgments are kept one by one in `<path>.partial.jsonl` and moved to `path` when all are there,
    so that a run that was stopped or killed goes on where it was. What `path` already holds for the
    same judge, rubric, settings, prompt and response is reused. A response that got no valid answer
    has empty scores and an "error": a missing value, asked for again the next time.

    A local judge is loaded from the settings unless `model` and `tokenizer` are given. Returns n =
    done + failed + reused, and of this run alone the seconds and the usage (tokens).
    """
    start = time.monotonic()
    rows = _checked(items)
    rubric = load_rubric(settings.rubric)
    common = {"judge": settings.name, "rubric_sha256": rubric.sha256}
    if settings.backend == "local":
        common |= {"model": settings.model} | _identity(settings, model)
    keys = {row["prompt_id"]: _key(settings, common, row) for row in rows}
    partial = path.with_suffix(".partial.jsonl")
    before = [r for r in _lines(path) if r.get("scores")]
    known = {
        record.get("prompt_id"): record
        for record in before + _lines(partial)
        if record.get("scores") and keys.get(record.get("prompt_id")) == record.get("key")
    }
    todo = [row for row in rows if row["prompt_id"] not in known]
    fresh: dict[Any, dict[str, Any]] = {}
    if todo:
        backend = _backend(settings, rubric, model, tokenizer)
        if any(r.get("key") != keys.get(r.get("prompt_id")) for r in before):
            # It judges other responses, or by other settings, and must not stand for these.
            records.write_jsonl(partial, known.values())
            path.unlink()
        _keep(backend, todo, keys, common, partial, fresh, progress)
    records.write_jsonl(path, [(known | fresh)[row["prompt_id"]] for row in rows])
    partial.unlink(missing_ok=True)
    done = sum(bool(record["scores"]) for record in fresh.values())
    counts = {"n": len(rows), "done": done, "failed": len(fresh) - done, "reused": len(known)}
    usage: dict[str, int] = {}
    for record in fresh.values():
        for name, count in record["usage"].items():
            usage[name] = usage.get(name, 0) + count
    return counts | {"seconds": round(time.monotonic() - start, 3), "usage": usage}


def _keep(
    backend: Any,
    todo: list[Mapping[str, Any]],
    keys: Mapping[Any, str],
    common: Mapping[str, Any],
    partial: Path,
    fresh: dict[Any, dict[str, Any]],
    progress: bool,
) -> None:
    """Judge `todo`; each judgment goes to `fresh` and, at once, to the end of the file `partial`."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    torn = partial.is_file() and not partial.read_bytes().endswith(b"\n")
    with (
        partial.open("a", encoding="utf-8") as stream,
        Progress(
            total=len(todo),
            desc=f"judge {common['judge']}",
            unit="response",
            mininterval=5,  # seconds: logs of batch jobs keep every line
            disable=not progress,
        ) as bar,
    ):
        stream.write("\n" if torn else "")

        def keep(item: Mapping[str, Any], result: dict[str, Any]) -> None:
            identifier = item["prompt_id"]
            record = {"prompt_id": identifier, **result, **common, "key": keys[identifier]}
            stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            stream.flush()
            fresh[identifier] = record
            bar.update()

        backend.judge(todo, keep)


def _backend(settings: JudgeSettings, rubric: Rubric, model: Any, tokenizer: Any) -> Any:
    if settings.backend == "openai":
        from hialign.judge.api import OpenAIJudge

        return OpenAIJudge(settings, rubric)
    from hialign.judge.local import LocalJudge

    if model is None:
        model, tokenizer = models.load_model(_source(settings))
    elif tokenizer is None:
        raise HialignError("judge() was given a model without its tokenizer: give both or neither")
    return LocalJudge(model, tokenizer, rubric, settings.name)


def _source(settings: JudgeSettings) -> ModelSettings:
    return ModelSettings(source=settings.model, revision=settings.revision)


def _identity(settings: JudgeSettings, model: Any) -> dict[str, str]:
    """What tells a local judge's weights from any others; {} for a model that only memory holds."""
    if model is None:
        return models.identity(_source(settings))
    place = str(getattr(model, "name_or_path", "") or "")
    if place and Path(place).is_dir():
        return {"weights_sha256": models.weights_sha256(place)}
    commit = getattr(model.config, "_commit_hash", None)
    return {"revision": str(commit)} if commit else {}


def _checked(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The items, or HialignError: texts are needed, and identifiers that name one item each."""
    rows = list(items)
    seen = set()
    for number, row in enumerate(rows, 1):
        for name in ("prompt_id", "prompt", "response"):
            if name not in row:
                raise HialignError(f"item {number} to judge has no {name!r}")
            if not isinstance(row[name], str) and (name, type(row[name])) != ("prompt_id", int):
                raise HialignError(
                    f"{name} of item {number} to judge is no text: {row[name]!r:.40}"
                )
        if row["prompt_id"] in seen:
            raise HialignError(f"two items to judge have the prompt_id {row['prompt_id']!r}")
        seen.add(row["prompt_id"])
    return rows


def _key(settings: JudgeSettings, common: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What a judgment depends on, in 16 hex digits."""
    sampling = [settings.temperature, settings.max_tokens, settings.seed]
    asked = [settings.backend, settings.model, *([] if settings.backend == "local" else sampling)]
    return sha256_of(sorted(common.items()), asked, row["prompt"], row["response"])[:16]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records in `path`, without lines that a killed run left half written."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found
