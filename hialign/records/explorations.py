"""The questions that all strategies of a model were asked, and their answers, as files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hialign.records import frames
from hialign.records.files import read_json, sha256_of
from hialign.records.status import required, stage_manifest
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings
from hialign.study.study import Cell, Study


class Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(Kept):
    """What one strategy answered."""

    text: str
    finish_reason: str  # `stop`, or `length` where the limit on new tokens cut it
    ids: list[int] = []  # with the token that ends it; none for a stored response
    pieces: list[str] = []  # the text of each; "" where only a later token completes a character


class Candidate(Kept):
    """A token that either of two strategies holds likely at one place."""

    text: str
    probabilities: tuple[float, float]


class Parting(Kept):
    """Where the answers of two strategies part."""

    blocks: tuple[str, str]
    alike: int  # tokens before it, the same in both
    candidates: list[Candidate]  # the likeliest of both there, the larger probability first


class Exploration(Kept):
    """One question, the answers by block, and their log-probabilities."""

    question: str
    decoding: dict[str, Any]
    weights: dict[str, str]
    runs: dict[str, str]  # block -> what tells this training run from any other
    adapters: dict[str, str] = {}  # block -> sha256 of its file
    answers: dict[str, Answer]
    # whose probabilities -> whose answer -> nats a token; empty for stored responses
    log_probs: dict[str, dict[str, list[float]]] = {}
    partings: list[Parting] = []
    made: dict[str, Any] = {}  # device, precision, seconds, versions
    note: str = Field("", exclude=True)  # where it came from, for whoever looks at it now


class Explorations:
    """What is kept of one model of a study: the questions that were asked, and stored responses."""

    def __init__(self, cell: Cell) -> None:
        """`cell` is any of the model's. Raises HialignError if no strategy of it was trained, and for
        an adapter that was trained with other settings than the study has, or was changed since."""
        self.study, self.settings = cell.study, cell.model
        cells = {b: Cell(self.study, self.settings, b) for b in ("base", *self.study.blocks)}
        files = {b: stage_manifest(c, "train") for b, c in cells.items()}
        manifests = {b: read_json(file) for b, file in files.items() if file.is_file()}
        if not manifests.keys() - {"base"}:
            raise HialignError(_untrained(self.study, self.settings))
        self.cells = {b: c for b, c in cells.items() if b == "base" or b in manifests}
        self.missing = [b for b in cells if b not in self.cells]
        for block in manifests:  # without its adapter, what was stored can still be looked at
            if block == "base" or self.adapter(block).is_file():
                required(self.cells[block], "train")
        first = next(iter(manifests.values()))
        self.parameters = int(first["parameters"])
        keys = ("weights_sha256", "revision")
        self.weights = {key: str(first[key]) for key in keys if key in first}
        self.runs = {block: _fingerprint(manifest) for block, manifest in manifests.items()}
        self.decoding = self.study.responses.model_dump(exclude={"prompts", "batch_size"})
        self.decoding["chat_template"] = self.settings.chat_template

    @property
    def blocks(self) -> list[str]:
        return list(self.cells)

    def adapter(self, block: str) -> Path:
        """The file of a block's adapter; it is not there where only records were published."""
        return self.cells[block].folder / "adapter" / "adapter_model.safetensors"

    def file_of(self, question: str) -> Path:
        """The file of a question, asked with these weights, adapters and decoding settings."""
        asked = [question, self.decoding, self.weights, self.runs]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        return paths.explorations(self.study.name) / f"{paths.slug(self.settings.name)}-{key}.json"

    def known(self, question: str) -> Exploration | None:
        """What is kept of a question; None if it was not asked with these weights, adapters and
        decoding settings."""
        file = self.file_of(checked(question))
        return self._read(file) if file.is_file() else None

    def _read(self, file: Path) -> Exploration | None:
        try:
            kept = Exploration.model_validate(read_json(file))
        except ValidationError as error:
            raise HialignError(
                f"{file} is no exploration that this version can read "
                f"({error.error_count()} problems): delete it to ask again"
            ) from None
        same = (kept.decoding, kept.weights, kept.runs) == (self.decoding, self.weights, self.runs)
        here = [b for b in kept.adapters if b in self.cells and self.adapter(b).is_file()]
        if not same or any(sha256_of(self.adapter(b)) != kept.adapters[b] for b in here):
            return None
        made = f"{kept.made.get('device')}, {kept.made.get('precision')}"
        return kept.model_copy(
            update={"note": f"Asked before ({made}) and kept; no model was run."}
        )

    def kept(self) -> dict[str, Exploration]:
        """All that is kept of this model as it is now, by question."""
        found = [kept for kept in map(self._read, self.files()) if kept]
        return {e.question: e for e in sorted(found, key=lambda e: e.question)}

    def files(self) -> list[Path]:
        """The files of what is kept of this model as it is now."""
        files = paths.explorations(self.study.name).glob(f"{paths.slug(self.settings.name)}-*.json")
        return [file for file in sorted(files) if self._read(file)]

    def stored(self) -> dict[str, Exploration]:
        """The study's own responses (`responses.jsonl`) by prompt; they have no log-probabilities."""
        found: dict[str, dict[str, Answer]] = {}
        for block, cell in self.cells.items():
            for row in frames.responses_of(cell):
                answer = Answer(text=row["response"], finish_reason=row["finish_reason"])
                found.setdefault(row["prompt"], {})[block] = answer
        same: dict[str, Any] = {"decoding": self.decoding, "weights": self.weights}
        same["runs"] = self.runs
        return {q: Exploration(question=q, answers=a, **same) for q, a in found.items()}


def checked(question: str) -> str:
    if not question.strip():
        raise HialignError("the question is empty: give some text")
    return question.strip()


def _fingerprint(manifest: dict[str, Any]) -> str:
    """What tells one training run from any other; a run leaves its manifest and adapter together."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def _untrained(study: Study, model: ModelSettings) -> str:
    text = (
        f"no strategy of {model.name} in study {study.name} has been trained: run "
        f"`hialign run train -p study {study.name} -p model {model.name} -p block all` first"
    )
    published = paths.published() / paths.slug(study.name) / "study.yml"
    if published.is_file():
        text += f"; or look at what is published of it, with HIALIGN_OUTPUTS={paths.published()}"
    return text
