"""One question to every strategy of a model, and what each makes of all the answers.

What was asked is kept in the study's folder, under a key of everything that it depends on, and never
computed twice: where there is no GPU, or no adapter, it can still be looked at.
"""

import hashlib
import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hialign import paths, records
from hialign.blocks import strategy_of
from hialign.errors import HialignError
from hialign.files import read_json, write_json
from hialign.models import identity
from hialign.status import required, stage_manifest
from hialign.strategies import Strategies, pieces_of
from hialign.study import Cell, ModelSettings, Study

if TYPE_CHECKING:
    import torch

# Parameters up to which a model is loaded where there is no GPU: 5 GB in float32, some seconds an
# answer. Larger ones would fill a laptop's memory.
LARGEST_ON_CPU = 1_300_000_000
CANDIDATES = 5  # of each strategy, at the token where two answers part
DIGITS = 6  # of what is kept


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


class Explorer:
    """The trained strategies of one model of a study; nothing is loaded before it is needed."""

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
        self.strategies: Strategies | None = None

    @property
    def blocks(self) -> list[str]:
        return list(self.cells)

    def adapter(self, block: str) -> Path:
        """The file of a block's adapter; it is not there where only records were published."""
        return self.cells[block].folder / "adapter" / "adapter_model.safetensors"

    def why_not(self) -> str:
        """Why no model is run here; empty where one can be."""
        import torch

        if self.strategies:
            return ""
        lacking = [b for b in self.blocks if b != "base" and not self.adapter(b).is_file()]
        if lacking:
            return f"the adapters of {', '.join(map(strategy_of, lacking))} are not here"
        size = f"{self.settings.label} has {self.parameters / 1e9:.1f} billion parameters"
        if torch.cuda.is_available():
            needed, free = int(2.2 * self.parameters), torch.cuda.mem_get_info()[0]
            if needed > free:
                return (
                    f"{size}: about {gib(needed)} in bfloat16, and {gib(free)} of the GPU are free"
                )
        elif self.parameters > LARGEST_ON_CPU:
            return f"{size}, and this machine has no CUDA GPU"
        return ""

    def load(self) -> Strategies:
        """The base model and every adapter, once; HialignError if they do not belong together."""
        if self.strategies:
            return self.strategies
        if why := self.why_not():
            raise HialignError(f"no model is loaded: {why}")
        if (now := identity(self.settings)) != self.weights:
            raise HialignError(
                f"the adapters of {self.settings.name} were trained on other weights "
                f"({_short(self.weights)}) than {self.settings.source} has now ({_short(now)}): "
                "set its `revision`, or train again"
            )
        adapters = {b: self.adapter(b).parent for b in self.blocks if b != "base"}
        self.strategies = Strategies(self.settings, adapters)
        return self.strategies

    def ask(self, question: str) -> Exploration:
        """The answers of all strategies to `question`, as they are kept, or asked now.

        Where no model can be run, a question that is not kept gives the study's stored responses
        to it; if it has none, what is kept of another. `note` says which it is.
        """
        question = _checked(question)
        if known := self.known(question):
            return known
        if why := self.why_not():
            return self._instead(question, why)
        exploration = self._ask(question)
        write_json(self._file(question), exploration.model_dump(mode="json"))
        return exploration

    def _ask(self, question: str) -> Exploration:
        strategies = self.load()
        started, blocks = time.perf_counter(), self.blocks
        prompt = strategies.prompt(question, self.study.responses.max_prompt_tokens)
        answered = strategies.answer(blocks, prompt, self.study.responses)
        ids = {b: tokens for b, (tokens, _) in answered.items()}
        apart = {
            pair: _alike(*(ids[b] for b in pair)) for pair in itertools.combinations(blocks, 2)
        }
        log_probs: dict[str, dict[str, list[float]]] = {}
        there: dict[tuple[str, int], torch.Tensor] = {}  # the vocabulary's, where answers part
        for block in blocks:
            scored = strategies.score(block, prompt, list(ids.values()))
            log_probs[block] = {
                of: [round(x, DIGITS) for x in values[range(len(values)), ids[of]].tolist()]
                for of, values in zip(blocks, scored, strict=True)
            }
            own = scored[blocks.index(block)]
            places = {at for pair, at in apart.items() if block in pair and at < len(own)}
            there |= {(block, at): own[at].exp().cpu() for at in places}
        answers = {}
        for block, (tokens, reason) in answered.items():
            kept = tokens[:-1] if reason == "stop" else tokens
            text = strategies.tokenizer.decode(kept, skip_special_tokens=True).strip()
            pieces = pieces_of(strategies.tokenizer, tokens)
            answers[block] = Answer(text=text, finish_reason=reason, ids=tokens, pieces=pieces)
        partings = []
        for (a, b), at in apart.items():
            if (a, at) in there and (b, at) in there:
                candidates = self._candidates(ids[a][:at], there[a, at], there[b, at])
                partings.append(Parting(blocks=(a, b), alike=at, candidates=candidates))
        seconds = time.perf_counter() - started
        told = ("device", "hialign_version", "hialign_commit", "packages")
        made: dict[str, Any] = {k: v for k, v in records.environment().items() if k in told}
        made |= {"precision": str(strategies.model.dtype).removeprefix("torch.")}
        return Exploration(
            question=question,
            decoding=self.decoding,
            weights=self.weights,
            runs=self.runs,
            adapters={b: _sha256(self.adapter(b)) for b in blocks if b != "base"},
            answers=answers,
            log_probs=log_probs,
            partings=partings,
            made=made | {"seconds": round(seconds, 3)},
            note=f"Asked now: {len(blocks)} answers, scored by {len(blocks)} strategies, "
            f"in {seconds:.1f} s.",
        )

    def _candidates(
        self, before: list[int], a: "torch.Tensor", b: "torch.Tensor"
    ) -> list[Candidate]:
        """The likeliest tokens after `before` by either of two distributions."""
        found = {t for p in (a, b) for t in p.topk(min(CANDIDATES, len(p))).indices.tolist()}
        tokenizer, rows = self.load().tokenizer, []
        for token in sorted(found, key=lambda t: (-max(float(a[t]), float(b[t])), t)):
            text = pieces_of(tokenizer, [*before, token])[-1]
            values = (round(float(a[token]), DIGITS), round(float(b[token]), DIGITS))
            rows.append(Candidate(text=text, probabilities=values))
        return rows

    # --- what is kept ---------------------------------------------------------------------------

    def _file(self, question: str) -> Path:
        asked = [question, self.decoding, self.weights, self.runs]
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        return paths.explorations(self.study.name) / f"{paths.slug(self.settings.name)}-{key}.json"

    def known(self, question: str) -> Exploration | None:
        """What is kept of a question; None if it was not asked with these weights, adapters and
        decoding settings."""
        file = self._file(_checked(question))
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
        if not same or any(_sha256(self.adapter(b)) != kept.adapters[b] for b in here):
            return None
        made = f"{kept.made.get('device')}, {kept.made.get('precision')}"
        return kept.model_copy(
            update={"note": f"Asked before ({made}) and kept; no model was run."}
        )

    def _instead(self, question: str, why: str) -> Exploration:
        kept, stored = self.kept(), self.stored()
        note = f"No model is run here: {why}."
        if question in stored:
            note += " These are the study's stored responses to the question."
            return stored[question].model_copy(update={"note": note})
        if not kept and not stored:
            raise HialignError(f"{note[:-1]}, and nothing is kept of {self.settings.label}")
        what = "what was kept of another one" if kept else "the stored responses to another one"
        note += f" The question was not asked elsewhere either; shown is {what}."
        return next(iter((kept or stored).values())).model_copy(update={"note": note})

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
            for row in records.responses_of(cell):
                answer = Answer(text=row["response"], finish_reason=row["finish_reason"])
                found.setdefault(row["prompt"], {})[block] = answer
        same: dict[str, Any] = {"decoding": self.decoding, "weights": self.weights}
        same["runs"] = self.runs
        return {q: Exploration(question=q, answers=a, **same) for q, a in found.items()}


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _checked(question: str) -> str:
    if not question.strip():
        raise HialignError("the question is empty: give some text")
    return question.strip()


def _alike(a: list[int], b: list[int]) -> int:
    """Tokens that two answers begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _fingerprint(manifest: dict[str, Any]) -> str:
    """What tells one training run from any other; a run leaves its manifest and adapter together."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _short(weights: dict[str, str]) -> str:
    return ", ".join(value[:12] for value in weights.values())


def _untrained(study: Study, model: ModelSettings) -> str:
    text = (
        f"no strategy of {model.name} in study {study.name} has been trained: run "
        f"`hialign run train -p study {study.name} -p model {model.name} -p block all` first"
    )
    published = paths.published() / paths.slug(study.name) / "study.yml"
    if published.is_file():
        text += f"; or look at what is published of it, with HIALIGN_OUTPUTS={paths.published()}"
    return text
