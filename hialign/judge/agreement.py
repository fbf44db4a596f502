"""How far a judge agrees with people, measured on LLMBar (https://github.com/princeton-nlp/LLMBar).

LLMBar holds instructions with two outputs each, and which one careful annotators prefer. A judge of
ours scores one response at a time, so both outputs are scored apart, and the judge is right where
the preferred one scores higher. Guessing is right in half of the cases.

    python -m hialign.judge.agreement FOLDER [--judge-model embedded:smollm2-135m-instruct] …

measures a local judge and adds the figures to `hialign/data/judge-agreement.json`, from where every
page that shows the judge's scores takes them.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hialign import paths, records
from hialign.errors import HialignError
from hialign.judge import judge
from hialign.judge.rubric import load_rubric
from hialign.statistics import wilson
from hialign.study import JudgeSettings

SUBSETS = (
    "natural",
    "adversarial-neighbor",
    "adversarial-gptinst",
    "adversarial-gptout",
    "adversarial-manual",
)
OTHERS = "mean of the others"  # all dimensions but Overall
Scorer = Callable[[list[dict[str, Any]]], list[float | None]]


def llmbar_agreement(
    score: Scorer, folder: Path, subsets: Sequence[str] = SUBSETS
) -> list[dict[str, Any]]:
    """A row for each subset of LLMBar in `folder`: subset, n, accuracy, low, high, ties, missing.

    `score` turns items ({"prompt_id", "prompt", "response"}) into a number each, None where it has
    none. `accuracy` is the share of the n pairs in which the preferred output scored higher, a tie
    counting one half; `low` and `high` are its 95% interval (Wilson). Pairs that lack a score are
    not among the n: `missing` says how many.
    """
    rows = []
    for subset in subsets:
        pairs = load_llmbar(folder, subset)
        scores = score([item for pair in pairs for item in pair])
        rows.append({"subset": subset} | agreement(scores[0::2], scores[1::2]))
    return rows


def agreement(preferred: Sequence[float | None], other: Sequence[float | None]) -> dict[str, Any]:
    """How often `preferred` is above `other`: n, accuracy, low, high, ties, missing."""
    pairs = [
        (a, b) for a, b in zip(preferred, other, strict=True) if a is not None and b is not None
    ]
    n, ties = len(pairs), sum(a == b for a, b in pairs)
    missing = len(preferred) - n
    if n == 0:
        nothing = dict.fromkeys(("accuracy", "low", "high"))
        return {"n": 0} | nothing | {"ties": 0, "missing": missing}
    right = sum(a > b for a, b in pairs) + ties / 2
    low, high = wilson(right, n)
    figures = {"accuracy": right / n, "low": float(low), "high": float(high)}
    return (
        {"n": n} | {k: round(v, 4) for k, v in figures.items()} | {"ties": ties, "missing": missing}
    )


def load_llmbar(folder: Path, subset: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pairs of `<folder>/<subset>.json` as items to judge, the preferred output first."""
    path = Path(folder) / f"{subset}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HialignError(f"cannot read the LLMBar subset {path}: {error}") from None
    pairs = []
    for number, row in enumerate(content):
        best = row["label"]
        first, second = (
            {
                "prompt_id": f"{subset}-{number}-{output}",
                "prompt": row["input"],
                "response": row[f"output_{output}"],
            }
            for output in (best, 3 - best)
        )
        pairs.append((first, second))
    return pairs


def measure(
    settings: JudgeSettings,
    folder: Path,
    subsets: Sequence[str] = SUBSETS,
    *,
    keep: Path | None = None,
    progress: bool = True,
    **loaded: Any,
) -> dict[str, Any]:
    """The measured agreement of the judge in `settings`, as a record for `judge-agreement.json`.

    Its rows have `score` too: "Overall", and, where the rubric has more, the mean of the others.
    Judgments stay in the folder `keep`, from where a measurement that was stopped goes on. `loaded`
    may hold the `model` and `tokenizer` of a local judge.
    """
    start = time.monotonic()
    rubric = load_rubric(settings.rubric)
    if "Overall" not in rubric.dimensions:
        raise HialignError("the rubric has no dimension Overall: its agreement cannot be measured")
    others = [name for name in rubric.dimensions if name != "Overall"]
    rows: list[dict[str, Any]] = []
    usage: dict[str, int] = {}
    first: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for subset in subsets:
            items = [item for pair in load_llmbar(folder, subset) for item in pair]
            place = Path(keep or temporary) / f"llmbar-{subset}-{settings.name}.jsonl"
            summary = judge(items, settings, place, progress=progress, **loaded)
            found = records.read_jsonl(place)
            first = first or next((r for r in found if r["scores"]), {})
            for name, count in summary["usage"].items():
                usage[name] = usage.get(name, 0) + count
            for kind, names in (("Overall", ["Overall"]), (OTHERS, others)):
                if names:
                    scores = [_mean(record["scores"], names) for record in found]
                    row = {"subset": subset, "score": kind}
                    rows.append(row | agreement(scores[0::2], scores[1::2]))
    identity: dict[str, Any] = {k: first[k] for k in ("weights_sha256", "revision") if k in first}
    return {
        "judge": settings.name,
        "backend": settings.backend,
        "model": settings.model,
        **identity,
        "rubric_sha256": rubric.sha256,
        "data": "LLMBar",
        "rows": rows,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - start),
        "usage": usage,
    }


def _mean(scores: dict[str, float], names: list[str]) -> float | None:
    """To 9 places, so that equal scores tie whatever the order of adding them."""
    return round(sum(scores[name] for name in names) / len(names), 9) if scores else None


def published(path: Path | None = None) -> list[dict[str, Any]]:
    """The measurements that the package ships."""
    path = path or paths.data() / "judge-agreement.json"
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def agreement_of(
    judge_id: str, rubric_sha256: str, path: Path | None = None
) -> dict[str, Any] | None:
    """The shipped measurement of a judge with this rubric; None if it was not measured.

    `judge_id` is what tells the judge from others: the sha256 of its weights, its revision, or the
    snapshot name of a model behind an API (`weights_sha256`, `revision`, `model` of a judgment).
    The judge's name in a study does as well, but anyone may give that name to another model.
    """
    record: dict[str, Any]
    for record in reversed(published(path)):
        names = [record.get(k) for k in ("weights_sha256", "revision", "model", "judge")]
        if judge_id in names and record["rubric_sha256"] == rubric_sha256:
            return record
    return None


def publish(record: dict[str, Any], path: Path | None = None) -> Path:
    """Add `record` to the shipped measurements, in place of an older one of the same judge."""
    path = path or paths.data() / "judge-agreement.json"
    same = ("judge", "model", "weights_sha256", "revision", "rubric_sha256")
    kept = [r for r in published(path) if any(r.get(k) != record.get(k) for k in same)]
    records.write_json(path, [*kept, record])
    return path


def _main() -> None:
    import typer

    def command(
        folder: Path,
        judge_model: str = "embedded:smollm2-135m-instruct",
        subsets: str = ",".join(SUBSETS),
        keep: Path | None = None,
    ) -> None:
        """Measure a local judge on the LLMBar files in FOLDER and add the figures to the package."""
        settings = JudgeSettings.model_validate({"backend": "local", "model": judge_model})
        record = measure(settings, folder, subsets.split(","), keep=keep)
        record["command"] = (
            f"python -m hialign.judge.agreement LLMBAR --judge-model {judge_model} --subsets {subsets}"
        )
        typer.echo(publish(record))

    typer.run(command)


if __name__ == "__main__":
    _main()
