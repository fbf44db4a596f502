"""How good is the judge? `hialign judge STUDY --validate` measures it and writes one report.

By default (`Sizes`) the judge is asked these calls, of one response each:

| part | calls |
| --- | ---: |
| LLMBar, 419 pairs: does it agree with people? | 838 |
| 100 held-out preference pairs: the same | 200 |
| 50 of these responses again, with another seed: does it say the same twice? | 50 |
| the 50 to each further judge: do judges agree? | 50 |
| 20 responses that people did not prefer, with each of 15 attacks and 6 controls | 420 |

The correlation with length takes no calls. Judgments stay in `outputs/<study>/judge-validation/`, so a
validation that was stopped, or made larger, pays only for what is missing.
"""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hialign.judging.cells import Scores, one_at_a_time, same_responses
from hialign.judging.cost import spent as spent_on
from hialign.judging.items import judge
from hialign.judging.validation import injection, people
from hialign.judging.validation.length import by_length
from hialign.judging.validation.reliability import reliability
from hialign.preferences.formats import Pair
from hialign.preferences.llmbar import SUBSETS, Item, Judged, load_llmbar
from hialign.records.agreement import report_path
from hialign.records.files import read_json, read_jsonl, write_json
from hialign.records.stages import judge_of
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.rubric import load_rubric
from hialign.study.settings import JudgeSettings
from hialign.study.study import Study

WHERE_LLMBAR = (
    "LLMBar is at https://github.com/princeton-nlp/LLMBar: clone it and give its folder "
    "Dataset/LLMBar with --llmbar, or leave this part out with --llmbar none"
)
SAME = 20  # responses on which a local judge is asked twice


@dataclass(frozen=True)
class Sizes:
    """How much is asked. None takes everything."""

    llmbar: int | None = None  # pairs of each subset
    preferences: int | None = 100  # pairs
    again: int = 50  # responses judged again, and by other judges
    attacked: int = 20  # responses that each attack is put into
    resamples: int = 2_000  # bootstrap

    def at_most(self, limit: int | None) -> "Sizes":
        """These sizes, with none above `limit`, for a first look."""
        if limit is None:
            return self
        lower = {
            name: limit if size is None else min(size, limit)
            for name, size in vars(self).items()
            if name != "resamples"
        }
        return replace(self, **lower)


def validate(
    settings: JudgeSettings,
    folder: Path,
    *,
    llmbar: Path | None = None,
    preferences: Sequence[Pair] = (),
    source: str = "preference pairs",
    others: Sequence[JudgeSettings] = (),
    side_by_side: Mapping[str, Sequence[tuple[Scores, Scores]]] | None = None,
    sizes: Sizes | None = None,
    command: str | None = None,
    spent: float = 0.0,
    progress: bool = True,
    **loaded: Any,
) -> dict[str, Any]:
    """Measure the judge in `settings`, and write `<folder>/judge-validation-<judge>.json`.

    `llmbar` is the folder of its files, and `preferences` are held-out pairs of `source`. A part that
    is not given is not measured. Some responses are judged a second time, and by the `others`.
    `side_by_side` has scores that this judge and another one (by name) gave to the same responses
    before. The report names `command` as the way to repeat it. `spent` (USD) counts towards a judge's
    `max_cost`. `loaded` may hold the `model` and `tokenizer` of a local judge.

    The report has the judge's identity, as its judgments have it. Its parts are `rows` (LLMBar) and
    `preferences` (see `people.rows`), `retest` and `judges` (`reliability`), `length` (`by_length`),
    `injection` (`effects`), and `costs` (calls, tokens, seconds).
    """
    sizes = sizes or Sizes()
    rubric = load_rubric(settings.rubric)
    if "Overall" not in rubric.dimensions:
        raise HialignError("the rubric has no dimension Overall: the judge cannot be validated")
    benchmark: dict[str, list[Judged]] = {}
    if llmbar:
        benchmark = {s: load_llmbar(llmbar, s, sizes.llmbar) for s in SUBSETS}
    held_out = people.from_preferences(preferences[: sizes.preferences])
    labelled = [pair for pairs in benchmark.values() for pair in pairs] + held_out
    if not labelled:
        raise HialignError("there is nothing to validate the judge on: give LLMBar, or pairs")
    attacks = injection.load_attacks()
    # Scores of responses that people did not prefer have room to rise. Adversarial ones are high already.
    weak = [pair[1] for pair in benchmark.get("natural", []) + held_out]
    weak = _some(weak, sizes.attacked)
    plain = [item for pair in labelled for item in pair]
    again = _some(plain, sizes.again)
    ask = _Asker(folder / "judge-validation", progress, spent)
    judgments = ask("first", settings, plain + injection.attacked(weak, attacks, rubric), **loaded)
    kinds = people.kinds_of(list(judgments.values()))

    one = next(iter(judgments.values()))
    report: dict[str, Any] = {"judge": settings.name, "backend": settings.backend}
    report |= {"model": settings.model, "rubric_sha256": rubric.sha256}
    report |= {k: one[k] for k in ("weights_sha256", "revision") if k in one}
    if benchmark:
        report["data"] = "LLMBar"
        report["rows"] = [
            row for s, pairs in benchmark.items() for row in people.rows(pairs, kinds, subset=s)
        ]
    if held_out:
        report["preferences"] = {"source": source, "rows": people.rows(held_out, kinds)}
    report["retest"] = _retest(ask, settings, again, judgments, sizes.resamples, loaded)
    both = {name: list(pairs) for name, pairs in (side_by_side or {}).items()}
    for other in others:
        theirs = ask("first", other, again)
        ids = [item["prompt_id"] for item in again]
        both.setdefault(other.name, []).extend(
            (judgments[i]["scores"], theirs[i]["scores"]) for i in ids
        )
    names = list(rubric.dimensions)
    report["judges"] = [
        {"judge": name, "rows": reliability(pairs, names, sizes.resamples)}
        for name, pairs in both.items()
    ]
    sets = {"LLMBar": labelled[: len(labelled) - len(held_out)], "preferences": held_out}
    report["length"] = [
        {"data": name} | by_length(pairs, kinds["Overall"], sizes.resamples)
        for name, pairs in sets.items()
        if pairs
    ]
    before = {k: {r["prompt_id"]: v.get(r["prompt_id"]) for r in weak} for k, v in kinds.items()}
    moved = injection.effects(attacks, rubric, before, kinds)
    report["injection"] = {"items": len(weak), "rows": moved}
    report |= {"costs": ask.costs(), "date": datetime.now(UTC).date().isoformat()}
    report |= {"command": command} if command else {}
    if not report["judges"]:
        del report["judges"]
    write_json(paths.judge_validation(folder, settings.name), report)
    return report


def validate_study(
    study: Study, llmbar: str = "", pairs: str = "", limit: int | None = None
) -> Path:
    """Validate the study's judge. Returns the path of the report.

    `llmbar` is the folder of its files, and `pairs` a source of preference pairs, like
    `preferences.source` in a study. Either may be `none`. By default LLMBar is
    `$HIALIGN_SHARED_DATA/llmbar`, and the pairs are the study's held-out ones, if they come from
    people. `limit` bounds each part, for a first look.
    """
    settings = judge_of(study)
    judges = [settings, *study.validation.judges]
    if len({judge.name for judge in judges}) < len(judges):
        raise HialignError("two judges have the same name: give one of them another `name`")
    data = paths.shared_data()
    if not llmbar and data is None:
        raise HialignError(f"no folder of LLMBar is given. {WHERE_LLMBAR}")
    place = None if llmbar == "none" else Path(llmbar or f"{data}/llmbar").expanduser()
    if place and not place.is_dir():
        raise HialignError(f"there is no folder {place}. {WHERE_LLMBAR}")
    sizes = Sizes().at_most(limit)
    held_out: list[Pair] = []
    source = "none"
    if pairs != "none":
        held_out, source = people.held_out(study, pairs, sizes.preferences)
    said = [f"hialign judge {study.name} --validate --llmbar {'LLMBAR' if place else 'none'}"]
    said += [f"--pairs {Path(pairs).name}"] if pairs else []
    said += [f"--limit {limit}"] if limit else []
    with one_at_a_time(study):
        validate(
            settings,
            paths.study_dir(study.name),
            llmbar=place,
            preferences=held_out,
            source=source,
            others=study.validation.judges,
            side_by_side=same_responses(study),
            sizes=sizes,
            command=" ".join(said),
            spent=spent_on(study),
        )
    return report_path(study)


def _retest(
    ask: "_Asker",
    settings: JudgeSettings,
    items: Sequence[Item],
    first: Mapping[str, Mapping[str, Any]],
    resamples: int,
    loaded: Mapping[str, Any],
) -> dict[str, Any]:
    """The same items judged a second time, with another seed.

    A local judge draws nothing, so its scores repeat by construction and `rows` is left empty. Whether
    they are equal to the last digit is checked all the same.
    """
    dimensions = list(load_rubric(settings.rubric).dimensions)
    local = settings.backend == "local"
    items = items[:SAME] if local else items
    other = settings.model_copy(update={"seed": settings.seed + 1})
    second = ask("again-2", other, items, **loaded)
    ids = [item["prompt_id"] for item in items]
    scores = [(first[i]["scores"], second[i]["scores"]) for i in ids]
    table = reliability(scores, dimensions, 0 if local else resamples)
    equal = table[-1]["equal"]
    report = {"items": len(items), "repeats": 2, "deterministic": local, "equal": equal}
    return report | {"rows": [] if local else table}


class _Asker:
    """Judges items into files in `place`, and adds up the calls, tokens, money and seconds."""

    def __init__(self, place: Path, progress: bool, spent: float) -> None:
        self.place, self.progress, self.spent = place, progress, spent
        self.answers: list[dict[str, Any]] = []

    def __call__(
        self, part: str, settings: JudgeSettings, items: Sequence[Item], **loaded: Any
    ) -> dict[str, dict[str, Any]]:
        """The judgment of each item, by prompt_id."""
        path = self.place / f"{part}-{settings.name}.jsonl"
        start = time.monotonic()
        try:
            spent = self.spent + self._cost()
            judge(items, settings, path, spent=spent, progress=self.progress, **loaded)
        finally:
            self._spend(path.stem, time.monotonic() - start)
        records = read_jsonl(path)
        self.answers += records
        return {record["prompt_id"]: record for record in records}

    def _spend(self, part: str, seconds: float) -> None:
        """Add to the seconds of the parts over all runs, without runs that were killed."""
        total = self._seconds()
        total[part] = round(total.get(part, 0) + seconds, 1)
        write_json(self.place / "seconds.json", total)

    def _seconds(self) -> dict[str, float]:
        path = self.place / "seconds.json"
        return read_json(path) if path.is_file() else {}

    def _cost(self) -> float:
        return sum(answer.get("cost") or 0.0 for answer in self.answers)

    def costs(self) -> dict[str, Any]:
        """Responses, calls, tokens, USD (if there are prices) and seconds of the judgments."""
        usage = Counter[str]()
        for answer in self.answers:
            usage.update(answer.get("usage", {}))
        calls = sum(answer.get("attempts", 1) for answer in self.answers)
        costs = {"responses": len(self.answers), "calls": calls, "usage": dict(usage)}
        costs |= {"usd": round(self._cost(), 4)} if self._cost() else {}
        return costs | {"seconds": round(sum(self._seconds().values()))}


def _some(items: Sequence[Item], n: int) -> list[Item]:
    """`n` of the items, or all if there are fewer. The choice is the same each time."""
    return random.Random(42).sample(items, min(n, len(items)))
