"""Preference pairs: hh-rlhf, any file or hub set in TRL's formats, and the built-in set; splits.

A pair is `{"id", "objective", "prompt", "chosen", "rejected"}` with messages
(`[{"role", "content"}]`) in the last three: TRL's conversational preference format. Pairs that
cannot be used (no common prompt, an empty or an identical response) are counted and reported.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hialign import paths
from hialign.contrasts import OBJECTIVES, contrast_pairs
from hialign.errors import HialignError
from hialign.study import PreferenceSettings

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]
Pair = dict[str, Any]

HH_RLHF = "Anthropic/hh-rlhf"
HH_TRANCHES = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
TOLERATED = 0.1  # of a source's pairs that may be unusable before it is refused as a whole


class UnusablePair(ValueError):
    """A pair that is well-formed JSON but no preference; the message is a category to count."""


@dataclass
class Pairs:
    """Preference pairs, split so that training and evaluation share no prompt."""

    train: "Dataset"
    evaluation: "Dataset"
    report: dict[str, Any] = field(default_factory=dict)  # sizes, what was refused and where
    fingerprint: str = ""  # sha256 of all pairs in order

    def prompts(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The distinct held-out prompts, in order: `{"prompt_id", "prompt": messages}`."""
        seen = {prompt_id(p): p for p in self.evaluation["prompt"]}
        rows = [{"prompt_id": key, "prompt": prompt} for key, prompt in seen.items()]
        if limit is not None and limit < len(rows):
            rows = rows[:limit]
        return rows


def load_pairs(source: "str | PreferenceSettings" = HH_RLHF, **settings: Any) -> Pairs:
    """Preference pairs from `source`, split by seed without sharing a prompt.

    `source` is `builtin`, `Anthropic/hh-rlhf` (or a folder of its layout,
    `<tranche>/<split>.jsonl[.gz]`), a JSON-lines file, or a hub set in TRL's preference format.
    Keyword arguments are those of `PreferenceSettings` (train, evaluation, seed, subsets, …).
    Raises HialignError with file and line for what cannot be read, and if fewer pairs are usable
    than asked for.
    """
    if isinstance(source, PreferenceSettings):
        chosen = source.model_copy(update=settings)
    else:
        chosen = PreferenceSettings(source=source, **settings)
    report: dict[str, Any] = {"source": chosen.source}
    if chosen.source == "builtin":
        train, held_out = _builtin(chosen.seed, report)
    else:
        splits = _read_splits(chosen)
        usable = {name: _usable(name, rows, report) for name, rows in splits.items()}
        train, held_out = _split(usable, chosen)
    train = _take(train, chosen.train, "train", chosen)
    held_out = _take(held_out, chosen.evaluation, "evaluation", chosen)
    shared = {prompt_id(p["prompt"]) for p in train} & {prompt_id(p["prompt"]) for p in held_out}
    assert not shared, "training and evaluation share a prompt"
    report |= {"train": len(train), "evaluation": len(held_out)}
    digest = hashlib.sha256(json.dumps([train, held_out], sort_keys=True).encode()).hexdigest()
    from datasets import Dataset

    return Pairs(Dataset.from_list(train), Dataset.from_list(held_out), report, digest)


def prompt_id(prompt: Sequence[Message]) -> str:
    """A stable short name for a prompt: 12 hexadecimal digits of its sha256."""
    return hashlib.sha256(json.dumps(list(prompt), sort_keys=True).encode()).hexdigest()[:12]


def parse_transcript(text: str) -> list[Message]:
    """An hh-rlhf transcript as messages; turns of one speaker in a row become one.

    Raises UnusablePair if it does not begin with the human and end with the assistant.
    """
    messages: list[Message] = []
    for role, content in _turns(text):
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    if messages[0]["role"] != "user" or messages[-1]["role"] != "assistant":
        raise UnusablePair("not a transcript")
    return messages


def _turns(text: str) -> list[tuple[str, str]]:
    """The turns of a transcript as they stand: (role, content)."""
    head, *parts = TURN.split(text)
    if head.strip() or not parts:
        raise UnusablePair("not a transcript")
    return [(ROLES[s], c.strip()) for s, c in zip(parts[::2], parts[1::2], strict=True)]


def to_pair(row: dict[str, Any]) -> tuple[list[Message], list[Message], list[Message]]:
    """`prompt, chosen, rejected` as messages from a row in any of TRL's preference formats.

    With or without a prompt of its own, strings or messages, and hh-rlhf's transcripts. Raises
    UnusablePair for what is no preference and TypeError or KeyError for a row of another format.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and TURN.match(chosen) and "prompt" not in row:
        turns = _turns(chosen), _turns(rejected)
        chosen, rejected = parse_transcript(chosen), parse_transcript(rejected)
        # Before turns are merged: a side with one assistant turn more answers another prompt
        if turns[0][:-1] != turns[1][:-1]:
            raise UnusablePair("no common prompt")
    prompt = row.get("prompt")
    if prompt is None and isinstance(chosen, str):
        prompt, chosen, rejected = _common_beginning(chosen, rejected)
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    sides = []
    for side in (chosen, rejected):
        if isinstance(side, str):
            side = [{"role": "assistant", "content": side}]
        side = [{"role": str(m["role"]), "content": str(m["content"])} for m in side]
        if prompt is None or (side[: len(prompt)] == list(prompt) and len(side) > len(prompt)):
            head, last = side[:-1], side[-1:]
        else:
            head, last = list(prompt), side
        sides.append((head, last))
    (prompt, chosen), (other_prompt, rejected) = sides
    if prompt != other_prompt or not prompt:
        raise UnusablePair("no common prompt")
    if any(re.search("[\ud800-\udfff]", m["content"]) for m in prompt + chosen + rejected):
        raise UnusablePair("half a Unicode character")
    if any(not m["content"].strip() for m in chosen + rejected):
        raise UnusablePair("an empty response")
    if chosen == rejected:
        raise UnusablePair("identical responses")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise UnusablePair("the last turn is not the assistant's")
    return (
        [{"role": str(m["role"]), "content": str(m["content"])} for m in prompt],
        chosen,
        rejected,
    )


def _common_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two plain texts share, up to a whole word, and what follows it in each."""
    both = enumerate(zip(chosen, rejected, strict=False))
    same = next((i for i, (a, b) in both if a != b), min(len(chosen), len(rejected)))
    shared = re.sub(r"\S+$", "", chosen[:same])
    if not shared.strip():
        raise UnusablePair("no common prompt")
    return shared.strip(), chosen[len(shared) :].strip(), rejected[len(shared) :].strip()


# --- reading -----------------------------------------------------------------------------------

Located = tuple[str, dict[str, Any]]  # where a row stands, and the row


def _read_splits(settings: PreferenceSettings) -> dict[str, Iterator[Located]]:
    """The rows of each split that the source has: `train`, `test`, or just one of them."""
    place = Path(settings.source).expanduser()
    if not place.is_absolute():
        place = paths.root() / place
    if place.is_file():
        return {"train": _read_lines(place)}
    if place.is_dir():
        splits: dict[str, list[Path]] = {}
        for tranche in settings.subsets or _tranches(place):
            for split in ("train", "test"):
                names = (f"{split}.jsonl", f"{split}.jsonl.gz")  # the first that is there
                files = [f for f in (place / tranche / name for name in names) if f.is_file()]
                if files:
                    splits.setdefault(split, []).append(files[0])
        if not splits:
            raise HialignError(
                f"preferences.source {settings.source}: no train.jsonl or test.jsonl (or .gz) in "
                f"{', '.join(settings.subsets or ['its folders'])}"
            )
        return {
            s: (row for f in sorted(files) for row in _read_lines(f)) for s, files in splits.items()
        }
    if settings.source.startswith((".", "/", "~")) or place.suffix in (".jsonl", ".json", ".gz"):
        raise HialignError(
            f"preferences.source {settings.source}: there is no such file or folder; "
            "relative paths start at the repository"
        )
    return _read_hub(settings)


def _tranches(folder: Path) -> list[str]:
    """Tranches of a folder of hh-rlhf's layout; `.` if the files lie in the folder itself."""
    known = [t for t in HH_TRANCHES if (folder / t).is_dir()]
    return known or [".", *sorted(p.name for p in folder.iterdir() if p.is_dir())]


def _read_lines(path: Path) -> Iterator[Located]:
    """Rows of a JSON-lines file, gzipped or not; HialignError names the broken line."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise HialignError(f"{path}, line {number}: not JSON ({error})") from None
                if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
                    raise HialignError(
                        f"{path}, line {number}: a preference pair needs `chosen` and `rejected`"
                    )
                yield f"line {number} of {path.name}", row
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise HialignError(f"{path}, after line {number}: cannot be read ({error})") from None


def _read_hub(settings: PreferenceSettings) -> dict[str, Iterator[Located]]:
    from datasets import load_dataset

    subsets = list(settings.subsets or [])
    if settings.source == HH_RLHF and not subsets:
        subsets = list(HH_TRANCHES)
    splits: dict[str, list[Any]] = {}
    try:
        for subset in subsets or (None,):
            # hh-rlhf keeps its tranches in folders; other sets name them as configurations
            where = {"data_dir": subset} if settings.source == HH_RLHF else {"name": subset}
            loaded = load_dataset(settings.source, revision=settings.revision, **where)
            for split in ("train", "test"):
                if split in loaded:
                    splits.setdefault(split, []).append(loaded[split])
    except Exception as error:  # the hub's client raises many kinds, all meaning: not to be had
        raise HialignError(
            f"preferences.source {settings.source} could not be loaded from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "give a set that you can reach, or a local file or folder"
        ) from None
    if not splits:
        raise HialignError(
            f"preferences.source {settings.source} has neither a train nor a test split"
        )
    return {s: _numbered(sets, settings.source) for s, sets in splits.items()}


def _numbered(sets: Iterable[Any], source: str) -> Iterator[Located]:
    for rows in sets:
        for number, row in enumerate(rows):
            yield f"row {number} of {source}", row


def _usable(split: str, rows: Iterable[Located], report: dict[str, Any]) -> list[Pair]:
    """The pairs that can be used; the others are counted by kind, with where they stand."""
    pairs: list[Pair] = []
    refused: list[tuple[str, str]] = []
    for where, row in rows:
        try:
            prompt, chosen, rejected = to_pair(row)
        except UnusablePair as error:
            refused.append((str(error), where))
            continue
        except (KeyError, TypeError, AttributeError) as error:
            raise HialignError(
                f"{where}: neither strings nor messages with role and content ({error})"
            ) from None
        pairs.append(
            {
                "id": f"{prompt_id(prompt)}-{len(pairs)}",
                "objective": str(row.get("objective", "preference")),
                **{"prompt": prompt, "chosen": chosen, "rejected": rejected},
            }
        )
    total = len(pairs) + len(refused)
    if len(refused) > TOLERATED * total or not pairs:
        kind, where = refused[0] if refused else ("no pairs at all", report["source"])
        raise HialignError(
            f"{where}: {kind}; {len(refused)} of {total} pairs of {report['source']} cannot be used"
        )
    report.setdefault("read", {})[split] = total
    report.setdefault("refused", {})[split] = dict(Counter(kind for kind, _ in refused))
    report.setdefault("refused_at", {})[split] = [f"{where}: {kind}" for kind, where in refused]
    return pairs


# --- splitting ---------------------------------------------------------------------------------


def _split(
    usable: dict[str, list[Pair]], settings: PreferenceSettings
) -> tuple[list[Pair], list[Pair]]:
    """Shuffled training and held-out pairs that share no prompt.

    A source with both splits keeps them (training drops prompts that are held out); a source with
    one is divided by prompt.
    """
    import numpy as np

    rng = np.random.default_rng(settings.seed)

    def shuffled(pairs: list[Pair]) -> list[Pair]:
        return [pairs[i] for i in rng.permutation(len(pairs))]

    if len(usable) == 2:
        held_out = shuffled(usable["test"])
        taken = {prompt_id(p["prompt"]) for p in held_out[: settings.evaluation]}
        return [
            p for p in shuffled(usable["train"]) if prompt_id(p["prompt"]) not in taken
        ], held_out
    (pairs,) = usable.values()
    by_prompt: dict[str, list[Pair]] = {}
    for pair in shuffled(pairs):
        by_prompt.setdefault(prompt_id(pair["prompt"]), []).append(pair)
    wanted = settings.evaluation if settings.evaluation is not None else len(pairs) // 10
    train: list[Pair] = []
    held_out = []
    for group in by_prompt.values():
        (held_out if len(held_out) < wanted else train).extend(group)
    return train, held_out


def _take(
    pairs: list[Pair], wanted: int | None, name: str, settings: PreferenceSettings
) -> list[Pair]:
    if wanted is not None and len(pairs) < wanted:
        raise HialignError(
            f"preferences.{name} asks for {wanted} pairs, but {settings.source} has {len(pairs)} "
            f"usable ones for it: set preferences.{name} to at most that, or to null for all"
        )
    return pairs[:wanted]


def _builtin(seed: int, report: dict[str, Any]) -> tuple[list[Pair], list[Pair]]:
    """The built-in set: each good response against its contrasts in one objective.

    Training pairs come in rounds, so that any number of them is spread over prompts first, and over
    the objectives evenly; evaluation has every contrast of the 24 held-out prompts.
    """
    import numpy as np

    rows = [row for _, row in _read_builtin()]
    made, refused = contrast_pairs(rows)
    report["refused"] = dict(Counter(f"{r['objective']}: {r['reason']}" for r in refused))
    by_id = {p["id"]: _as_messages(p) for p in made}
    names = [row["id"] for row in rows if row["split"] == "train"]
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    rounds = range(len(OBJECTIVES))
    train = [f"{name}-{OBJECTIVES[(i + r) % 3]}" for r in rounds for i, name in enumerate(order)]
    held = [f"{row['id']}-{o}" for row in rows if row["split"] == "evaluation" for o in OBJECTIVES]
    return [by_id[k] for k in train if k in by_id], [by_id[k] for k in held if k in by_id]


def _as_messages(pair: dict[str, Any]) -> Pair:
    return {
        "id": pair["id"],
        "objective": pair["objective"],
        "prompt": [{"role": "user", "content": pair["prompt"]}],
        "chosen": [{"role": "assistant", "content": pair["chosen"]}],
        "rejected": [{"role": "assistant", "content": pair["rejected"]}],
    }


def _read_builtin() -> Iterator[Located]:
    path = paths.data() / "builtin.jsonl"
    with path.open() as stream:
        for number, line in enumerate(stream, 1):
            yield f"line {number} of {path.name}", json.loads(line)
