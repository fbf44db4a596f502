"""The judgments of one file, of which none is lost and none is paid for twice.

Three files hold them. `judgments-<judge>.jsonl` has all judgments in the order of the responses, and is
written when all are there. Until then each judgment is appended to `….partial.jsonl` when it comes in.
Judgments of other responses or settings move to `….earlier.jsonl`, and are used again if these come
back.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from hialign.engine import embedded, models
from hialign.records.files import write_jsonl
from hialign.records.processes import locked
from hialign.study.rubric import sha256_of
from hialign.study.settings import JudgeSettings, ModelSettings

Record = dict[str, Any]


def key_of(
    settings: JudgeSettings,
    rubric_sha256: str,
    item: Mapping[str, Any],
    identity: Mapping[str, str] | None = None,
) -> str:
    """A hash (16 hexadecimal digits) of model, rubric, sampling, prompt and response of a judgment.

    `identity` tells a local judge's weights from any others.
    """
    asked: list[Any] = [
        settings.backend,
        settings.model,
        rubric_sha256,
        sorted((identity or {}).items()),
    ]
    if settings.backend != "local":
        asked += [settings.temperature, settings.max_tokens, settings.seed]
        asked += [settings.dimension_order, settings.extra_body]
    return sha256_of(asked, item["prompt"], item["response"])[:16]


def identity_of(settings: JudgeSettings, model: Any = None) -> dict[str, str]:
    """The sha256 of a local judge's weights, or its revision.

    Empty for an API, and for a `model` that exists only in memory.
    """
    if settings.backend != "local":
        return {}
    if model is None:
        return models.identity(source_of(settings))
    place = str(getattr(model, "name_or_path", "") or "")
    if place and Path(place).is_dir():
        return {"weights_sha256": embedded.weights_sha256(place)}
    commit = getattr(model.config, "_commit_hash", None)
    return {"revision": str(commit)} if commit else {}


def source_of(settings: JudgeSettings) -> ModelSettings:
    """A local judge's model, as `load_model` takes it."""
    return ModelSettings(source=settings.model, revision=settings.revision)


class Ledger:
    """The three files of judgments. Reading needs no lock.

    `start`, `add` and `finish` need `with ledger:`, which one process at a time can hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_suffix(".partial.jsonl")
        self.earlier = path.with_suffix(".earlier.jsonl")
        self._open = ExitStack()

    def all(self) -> list[Record]:
        """Every record. The newest of a key and prompt comes last."""
        return [r for path in (self.earlier, self.path, self.partial) for r in lines(path)]

    def judged(self) -> set[str]:
        """The keys of valid judgments."""
        return {str(record.get("key")) for record in self.all() if record.get("scores")}

    def __enter__(self) -> Self:
        place = self.path.with_name(f".{self.path.name}.lock")
        doing = f"judging (a stop loses no judgment) into {self.path}"
        self._open.enter_context(locked(place, doing))
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def start(self, keys: Mapping[Any, str], also: Iterable[Path] = ()) -> dict[Any, Record]:
        """The records of the items that `keys` names by prompt_id. The others can then be added.

        A failed judgment, without scores, is among them if there is no valid one of the same key.
        Valid ones are also taken from the files `also`, because equal responses get equal scores.
        """
        wanted = set(keys.values())
        earlier, whole, partial = (lines(p) for p in (self.earlier, self.path, self.partial))
        others = [r for r in whole + partial if r.get("key") not in wanted]
        present = {record.get("key") for record in earlier}
        self._append(self.earlier, [r for r in others if r.get("key") not in present])
        if any(record.get("key") not in wanted for record in whole):
            # The complete file must not hold judgments of other responses
            self._append(self.partial, [r for r in whole if r.get("key") in wanted])
            self.path.unlink()
        own: dict[Any, Record] = {}
        valid: dict[str, Record] = {}  # by key
        for record in earlier + whole + partial:
            name = record.get("prompt_id")
            fits = name in keys and record.get("key") == keys[name]
            if fits and (record.get("scores") or not own.get(name, {}).get("scores")):
                own[name] = record
            if record.get("scores"):
                valid[str(record.get("key"))] = record
        elsewhere = {k for i, k in keys.items() if not own.get(i, {}).get("scores")} - set(valid)
        for path in also if elsewhere else ():
            for record in Ledger(path).all():
                if record.get("key") in elsewhere and record.get("scores"):
                    valid[record["key"]] = record
        for name, key in keys.items():
            if key in valid and not own.get(name, {}).get("scores"):
                # An equal response costs nothing more
                shared = {"prompt_id": name, "usage": {}, "cost": 0.0, "shared": True}
                own[name] = valid[key] | shared
        return own

    def add(self, record: Record) -> None:
        """Put `record` on disk. A killed process loses nothing that was added."""
        if not hasattr(self, "_stream"):
            self._stream = self._open.enter_context(self.partial.open("a", encoding="utf-8"))
            self._stream.write("\n" if _torn(self.partial) else "")
        self._stream.write(json.dumps(_checked(record), ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()

    def finish(self, rows: Iterable[Record]) -> None:
        """Write the complete file, in the order of `rows`, and delete the partial one."""
        write_jsonl(self.path, map(_checked, rows))
        self.partial.unlink(missing_ok=True)

    def _append(self, path: Path, rows: list[Record]) -> None:
        if rows:
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n" if _torn(path) else "")
                for row in rows:
                    stream.write(json.dumps(_checked(row), ensure_ascii=False) + "\n")


def _checked(record: Record) -> Record:
    """`record` with a checksum of the rest of it, which reveals a changed line."""
    plain = {name: value for name, value in record.items() if name != "check"}
    return plain | {"check": sha256_of(json.dumps(plain, sort_keys=True))[:16]}


def lines(path: Path) -> list[Record]:
    """The valid records in `path`.

    Lines that a killed process left incomplete, and lines that were changed after they were written,
    are left out. Their judgments are asked for again.
    """
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and ("check" not in record or _checked(record) == record):
            records.append(record)
    return records


def _torn(path: Path) -> bool:
    """Whether the last line of `path` was cut off."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) != b"\n"
