"""Asks all strategies of a model one question, and scores every answer under every strategy.

The result is kept in the study's folder, under a key of everything that it depends on, and is never
computed twice. Without a GPU or adapters it can still be looked at.
"""

import time
from itertools import combinations
from typing import Any

import torch
from IPython.display import Markdown

from hialign.engine import environment
from hialign.engine.models import identity
from hialign.engine.tokens import common_start
from hialign.evaluation.strategies import Strategies, pieces_of
from hialign.records.explorations import (
    Answer,
    Candidate,
    Exploration,
    Explorations,
    Parting,
    checked,
)
from hialign.records.files import sha256_of, write_json
from hialign.records.stages import is_published
from hialign.study.blocks import strategy_of
from hialign.study.errors import HialignError
from hialign.study.study import Cell

# Parameters up to which a model is loaded where there is no GPU: 5 GB in float32, some seconds an
# answer. Larger ones would fill a laptop's memory.
LARGEST_ON_CPU = 1_300_000_000
CANDIDATES = 5  # of each strategy, at the token where two answers part
DIGITS = 6  # of what is kept


class Explorer(Explorations):
    """The trained strategies of one model of a study. Nothing is loaded before it is needed."""

    strategies: Strategies | None = None

    def __init__(self, cell: Cell) -> None:
        """As of `Explorations`. Where only some adapters were published, these are explored."""
        super().__init__(cell)
        here = [b for b in self.blocks if b != "base" and self.adapter(b).is_file()]
        if here and is_published(self.study):
            self.cells = {b: c for b, c in self.cells.items() if b == "base" or b in here}

    def why_not(self) -> str:
        """Why no model is run here. Empty if one can be."""
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
        """The base model and all adapters, loaded once. HialignError if they do not belong together."""
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
        """The answers of all strategies to `question`, from an earlier time or asked now.

        If no model can be run, the study's stored responses to the question are shown. If there are
        none, the answers to another question are. The exploration's `note` says which it is.
        """
        question = checked(question)
        if earlier := self.known(question):
            return earlier
        if why := self.why_not():
            return self._instead(question, why)
        exploration = self._ask(question)
        write_json(self.file_of(question), exploration.model_dump(mode="json"))
        return exploration

    def _ask(self, question: str) -> Exploration:
        strategies = self.load()
        started, blocks = time.perf_counter(), self.blocks
        prompt = strategies.prompt(question, self.study.responses.max_prompt_tokens)
        answered = strategies.answer(blocks, prompt, self.study.responses)
        ids = {block: tokens for block, (tokens, _) in answered.items()}
        apart = {(a, b): common_start(ids[a], ids[b]) for a, b in combinations(blocks, 2)}
        log_probs: dict[str, dict[str, list[float]]] = {}
        # by block and place: the probabilities of the vocabulary where two answers part
        probabilities: dict[tuple[str, int], torch.Tensor] = {}
        for block in blocks:
            scored = strategies.score(block, prompt, list(ids.values()))
            log_probs[block] = {
                of: [round(x, DIGITS) for x in values[range(len(values)), ids[of]].tolist()]
                for of, values in zip(blocks, scored, strict=True)
            }
            own = scored[blocks.index(block)]
            places = {at for pair, at in apart.items() if block in pair and at < len(own)}
            probabilities |= {(block, at): own[at].exp().cpu() for at in places}
        partings = []
        for (a, b), at in apart.items():
            if (a, at) in probabilities and (b, at) in probabilities:
                both = probabilities[a, at], probabilities[b, at]
                candidates = self._candidates(ids[a][:at], *both)
                partings.append(Parting(blocks=(a, b), alike=at, candidates=candidates))
        seconds = time.perf_counter() - started
        shown = ("device", "hialign_version", "hialign_commit", "packages")
        made: dict[str, Any] = {k: v for k, v in environment.environment().items() if k in shown}
        made |= {"precision": str(strategies.model.dtype).removeprefix("torch.")}
        return Exploration(
            question=question,
            decoding=self.decoding,
            weights=self.weights,
            runs=self.runs,
            adapters={b: sha256_of(self.adapter(b)) for b in blocks if b != "base"},
            answers={b: _answer(strategies, tokens, end) for b, (tokens, end) in answered.items()},
            log_probs=log_probs,
            partings=partings,
            made=made | {"seconds": round(seconds, 3)},
            note=f"Asked now: {len(blocks)} answers, scored by {len(blocks)} strategies, "
            f"in {seconds:.1f} s.",
        )

    def _candidates(self, before: list[int], a: torch.Tensor, b: torch.Tensor) -> list[Candidate]:
        """The likeliest tokens after `before` under either of two distributions."""
        tokens = {t for p in (a, b) for t in p.topk(min(CANDIDATES, len(p))).indices.tolist()}
        tokenizer, rows = self.load().tokenizer, []
        for token in sorted(tokens, key=lambda t: (-max(float(a[t]), float(b[t])), t)):
            text = pieces_of(tokenizer, [*before, token])[-1]
            values = (round(float(a[token]), DIGITS), round(float(b[token]), DIGITS))
            rows.append(Candidate(text=text, probabilities=values))
        return rows

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


def _answer(strategies: Strategies, tokens: list[int], reason: str) -> Answer:
    """An answer of `tokens`, the last of which ends it if the `reason` is `stop`."""
    text = tokens[:-1] if reason == "stop" else tokens
    return Answer(
        text=strategies.tokenizer.decode(text, skip_special_tokens=True).strip(),
        finish_reason=reason,
        ids=tokens,
        pieces=pieces_of(strategies.tokenizer, tokens),
    )


def _short(weights: dict[str, str]) -> str:
    return ", ".join(value[:12] for value in weights.values())


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def ready(explorer: Explorer, question: str) -> Markdown:
    """Load the model if `question` is new and a model can be run here.

    Returns what a reader of the notebook is told: the time that loading took and the memory that it
    needs, or why no model is loaded.
    """
    label, blocks = explorer.settings.label, explorer.blocks
    lines = [
        f"**{label}** of study **{explorer.study.name}**, "
        f"{len(blocks)} strategies: {', '.join(map(strategy_of, blocks))}."
    ]
    if explorer.missing:
        lines.append(f"Not trained: {', '.join(map(strategy_of, explorer.missing))}.")
    if explorer.known(question):
        lines.append("The question was asked before: its answers are kept, and no model is loaded.")
    elif why := explorer.why_not():
        lines.append(f"No model is loaded: {why}. What is kept and stored can be looked at.")
    else:
        loaded = explorer.load()
        lines.append(
            f"Base model and {len(blocks) - 1} adapters are loaded ({loaded.seconds:.1f} s, "
            f"{gib(loaded.bytes)} of weights on {_device(loaded.model)}); from one strategy to "
            f"another takes {1000 * loaded.switch_seconds:.0f} ms."
        )
    return Markdown("\n\n".join(lines))


def _device(model: Any) -> str:
    if model.device.type != "cuda":
        return "the processor"
    total = torch.cuda.get_device_properties(model.device).total_memory
    taken = torch.cuda.memory_allocated(model.device)
    name = torch.cuda.get_device_name(model.device)
    return f"{name}, {gib(taken)} of its {gib(total)} in use"
