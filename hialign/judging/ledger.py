"""The judgments of one file: nothing is lost, nothing is paid for twice.

Three files hold them. `judgments-<judge>.jsonl` is the whole, in the order of the responses, written
when all are there. Until then each judgment goes to the end of `….partial.jsonl` as it comes in.
What no longer fits (other responses or settings) moves to `….earlier.jsonl`, where it is found again
if they come back.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from hialign.engine import embedded, models
from hialign.records.files import write_jsonl
from hialign.study.errors import HialignError
from hialign.study.rubric import sha256_of
from hialign.study.settings import JudgeSettings, ModelSettings

Record = dict[str, Any]


def key_of(
    settings: JudgeSettings,
    rubric_sha256: str,
    item: Mapping[str, Any],
    identity: Mapping[str, str] | None = None,
) -> str:
    """What a judgment depends on, in 16 hex digits: model, rubric, sampling, prompt and response.

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
    """The weights of a local judge: its sha256 or revision; {} for an API, or where only memory has
    the `model`."""
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
    """Read it as it is; `with ledger:` before `start`, `add` and `finish`, one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_suffix(".partial.jsonl")
        self.earlier = path.with_suffix(".earlier.jsonl")
        self._open = ExitStack()

    def all(self) -> list[Record]:
        """Every record, the newest of a key and prompt last."""
        return [r for path in (self.earlier, self.path, self.partial) for r in lines(path)]

    def judged(self) -> set[str]:
        """The keys of valid judgments."""
        return {str(record.get("key")) for record in self.all() if record.get("scores")}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        exclusive(
            self._open, self.path.parent / f".{self.path.name}.lock", f"judging into {self.path}"
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def start(self, keys: Mapping[Any, str], also: Iterable[Path] = ()) -> dict[Any, Record]:
        """What is known of the items that `keys` names by prompt_id; ready to `add` the others.

        A failed judgment is among them, without scores, if there is no valid one of the same key.
        Valid ones are also taken from the files `also`: equal responses get equal scores.
        """
        wanted = set(keys.values())
        earlier, whole, partial = (lines(p) for p in (self.earlier, self.path, self.partial))
        others = [r for r in whole + partial if r.get("key") not in wanted]
        present = {record.get("key") for record in earlier}
        self._append(self.earlier, [r for r in others if r.get("key") not in present])
        if any(record.get("key") not in wanted for record in whole):
            # It must not stand for what it does not judge.
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
            found = (r for r in Ledger(path).all() if r.get("key") in elsewhere and r.get("scores"))
            valid |= {r["key"]: r for r in found}
        for name, key in keys.items():
            if key in valid and not own.get(name, {}).get("scores"):
                own[name] = _shared(valid[key], name)
        return own

    def add(self, record: Record) -> None:
        """Put `record` on disk (a killed process loses nothing that was added)."""
        if not hasattr(self, "_stream"):
            self._stream = self._open.enter_context(self.partial.open("a", encoding="utf-8"))
            self._stream.write("\n" if _torn(self.partial) else "")
        self._stream.write(json.dumps(_checked(record), ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()

    def finish(self, rows: Iterable[Record]) -> None:
        """Write the whole file, in the order of `rows`, and drop the partial one."""
        write_jsonl(self.path, map(_checked, rows))
        self.partial.unlink(missing_ok=True)

    def _append(self, path: Path, rows: list[Record]) -> None:
        if rows:
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n" if _torn(path) else "")
                for row in rows:
                    stream.write(json.dumps(_checked(row), ensure_ascii=False) + "\n")


def _shared(record: Record, prompt_id: Any) -> Record:
    """`record` for another item with the same prompt and response: it was paid for once."""
    return record | {"prompt_id": prompt_id, "usage": {}, "cost": 0.0, "shared": True}


def exclusive(stack: ExitStack, path: Path, doing: str) -> None:
    """Hold the lock `path` until `stack` ends; HialignError if another process has it.

    The system lets it go when a process ends, however it does.
    """
    lock = FileLock(path, timeout=0)
    try:
        stack.enter_context(lock)
    except Timeout:
        raise HialignError(
            f"another process is {doing}: wait for its end, or stop it; what it judged is kept"
        ) from None


def _checked(record: Record) -> Record:
    """`record` with a checksum of the rest of it, by which a changed line is found out."""
    plain = {name: value for name, value in record.items() if name != "check"}
    return plain | {"check": sha256_of(json.dumps(plain, sort_keys=True))[:16]}


def lines(path: Path) -> list[Record]:
    """The records in `path`, without lines that a killed process left half written, and without
    those that were changed since they were written: both are asked for again."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and ("check" not in record or _checked(record) == record):
            found.append(record)
    return found


def _torn(path: Path) -> bool:
    """Whether the last line of `path` was cut off."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) != b"\n"
