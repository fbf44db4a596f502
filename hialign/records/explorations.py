"""Explorations: records of questions that were asked of all strategies of a model.

One file per question holds the answers and the log-probability of each token of each answer under
each strategy. `Explorations` finds those that still hold for the model as it is now.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hialign.records import frames
from hialign.records.files import read_json, sha256_of
from hialign.records.stages import run_first, stage_manifest
from hialign.records.status import required
from hialign.study import paths
from hialign.study.digest import json_sha256
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings
from hialign.study.study import Cell, Study


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(_Frozen):
    """What one strategy answered."""

    text: str
    finish_reason: str  # `stop`, or `length` where the limit on new tokens cut it
    ids: list[int] = []  # with the token that ends it. Empty for a stored response.
    pieces: list[str] = []  # the text of each token, "" if a later token completes the character


class Candidate(_Frozen):
    """A token that at least one of two strategies finds likely at one position."""

    text: str
    probabilities: tuple[float, float]


class Parting(_Frozen):
    """The position where the answers of two strategies diverge."""

    blocks: tuple[str, str]
    alike: int  # tokens before it, which are the same in both
    candidates: list[Candidate]  # the most likely of both there, the larger probability first


class Exploration(_Frozen):
    """One question, the answers by block, and their log-probabilities."""

    question: str
    decoding: dict[str, Any]
    weights: dict[str, str]
    runs: dict[str, str]  # block -> what tells this training run from any other
    adapters: dict[str, str] = {}  # block -> sha256 of its file
    answers: dict[str, Answer]
    # whose probabilities -> whose answer -> nats of each token. Empty for stored responses.
    log_probs: dict[str, dict[str, list[float]]] = {}
    partings: list[Parting] = []
    made: dict[str, Any] = {}  # device, precision, seconds, versions
    note: str = Field("", exclude=True)  # for the reader: where it came from


class Explorations:
    """The explorations of one model of a study: asked questions, and stored responses."""

    def __init__(self, cell: Cell) -> None:
        """`cell` is any cell of the model.

        Raises HialignError if no strategy of the model was trained, or if an adapter was changed or
        was trained with other settings than the study has now.
        """
        self.study, self.settings = cell.study, cell.model
        cells = {b: Cell(self.study, self.settings, b) for b in ("base", *self.study.blocks)}
        files = {b: stage_manifest(c, "train") for b, c in cells.items()}
        manifests = {b: read_json(file) for b, file in files.items() if file.is_file()}
        if not manifests.keys() - {"base"}:
            raise _untrained(self.study, self.settings)
        self.cells = {b: c for b, c in cells.items() if b == "base" or b in manifests}
        self.missing = [b for b in cells if b not in self.cells]
        for block in manifests:  # without its adapter, stored answers can still be read
            if block == "base" or self.adapter(block).is_file():
                required(self.cells[block], "train")
        first = next(iter(manifests.values()))
        self.parameters = int(first["parameters"])
        keys = ("weights_sha256", "revision")
        self.weights = {key: str(first[key]) for key in keys if key in first}
        # A run leaves its manifest and adapter together, so its manifest tells it from any other
        self.runs = {block: json_sha256(manifest, 16) for block, manifest in manifests.items()}
        self.decoding = self.study.responses.model_dump(exclude={"prompts", "batch_size"})
        self.decoding["chat_template"] = self.settings.chat_template

    @property
    def blocks(self) -> list[str]:
        return list(self.cells)

    def adapter(self, block: str) -> Path:
        """The file of a block's adapter. It is missing if only records were published."""
        return self.cells[block].folder / "adapter" / "adapter_model.safetensors"

    def file_of(self, question: str) -> Path:
        """The file of a question, asked with these weights, adapters and decoding settings."""
        key = json_sha256([question, self.decoding, self.weights, self.runs], 16)
        return paths.explorations(self.study.name) / f"{paths.slug(self.settings.name)}-{key}.json"

    def known(self, question: str) -> Exploration | None:
        """The exploration of a question.

        None if it was not asked with these weights, adapters and decoding settings.
        """
        file = self.file_of(checked(question))
        return self._read(file) if file.is_file() else None

    def _read(self, file: Path) -> Exploration | None:
        try:
            exploration = Exploration.model_validate(read_json(file))
        except ValidationError as error:
            raise HialignError(
                f"{file} is not an exploration that this version can read "
                f"({error.error_count()} problems): delete it to ask again"
            ) from None
        asked_of = (exploration.decoding, exploration.weights, exploration.runs)
        if asked_of != (self.decoding, self.weights, self.runs):
            return None
        for block, sha256 in exploration.adapters.items():
            present = block in self.cells and self.adapter(block).is_file()
            if present and sha256_of(self.adapter(block)) != sha256:
                return None
        made = f"{exploration.made.get('device')}, {exploration.made.get('precision')}"
        note = f"This question was asked before ({made}). No model was run."
        return exploration.model_copy(update={"note": note})

    def kept(self) -> dict[str, Exploration]:
        """All explorations of this model as it is now, by question."""
        explorations = filter(None, map(self._read, self.files()))
        return {e.question: e for e in sorted(explorations, key=lambda e: e.question)}

    def files(self) -> list[Path]:
        """The files of the explorations of this model as it is now."""
        files = paths.explorations(self.study.name).glob(f"{paths.slug(self.settings.name)}-*.json")
        return [file for file in sorted(files) if self._read(file)]

    def stored(self) -> dict[str, Exploration]:
        """The study's own responses (`responses.jsonl`) by prompt, without log-probabilities."""
        answers: dict[str, dict[str, Answer]] = {}
        for block, cell in self.cells.items():
            for row in frames.responses_of(cell):
                answer = Answer(text=row["response"], finish_reason=row["finish_reason"])
                answers.setdefault(row["prompt"], {})[block] = answer
        return {
            prompt: Exploration(
                question=prompt,
                decoding=self.decoding,
                weights=self.weights,
                runs=self.runs,
                answers=by_block,
            )
            for prompt, by_block in answers.items()
        }


def checked(question: str) -> str:
    """`question` without the space around it. Raises HialignError if nothing is left."""
    if not question.strip():
        raise HialignError("the question is empty: give some text")
    return question.strip()


def _untrained(study: Study, model: ModelSettings) -> HialignError:
    problem = f"no strategy of {model.name} in study {study.name} has been trained"
    error = run_first(problem, Cell(study, model, "all"), "train")
    if (paths.published() / paths.slug(study.name) / "study.yml").is_file():
        hint = f"or look at its published records with HIALIGN_OUTPUTS={paths.published()}"
        return HialignError(f"{error}, {hint}")
    return error
