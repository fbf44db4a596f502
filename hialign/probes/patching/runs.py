"""Patched forward passes: a model goes on from a state that is partly another model's.

`donor` and `receiver` are two models of one architecture. Both run once on the same tokens, and every
hidden state is kept. A patch puts something of the donor's into the state that enters a layer, and
the receiver runs from there. The layers below are never run again, and neither are positions that the
patch cannot reach. A patch that changes nothing is not run at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hialign.engine.decoder import Decoder, Layout
from hialign.engine.modules import ATTENTION
from hialign.probes.patching.rows import Continued, Recorder, Row
from hialign.study.errors import HialignError

# What is put into the receiver at layer l (`window`: at layers a to b - 1):
KINDS: Mapping[str, str] = {
    "residual": "the donor's residual stream after the layer, whole",
    "contribution": "what the donor's layer adds to the stream, in place of the receiver's",
    "attention": "the output of the donor's attention; the layer's own MLP then runs on it",
    "mlp": "the output of the donor's MLP",
    "prompt": "the donor's residual stream after the layer, at the positions of the prompt",
    "last_prompt": "the same at the prompt's last token alone",
    "window": "what the donor's layers of the window add to the stream, summed",
}
# `tuned_into_base` asks which layers suffice, and `base_into_tuned` which are needed.
DIRECTIONS: Mapping[str, tuple[str, str]] = {  # (donor, receiver)
    "tuned_into_base": ("tuned", "base"),
    "base_into_tuned": ("base", "tuned"),
}
SUBLAYER_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest value
LogProbs = list[list[float]]  # [chosen, rejected] of each pair, nats


@dataclass
class States:
    """The states of an unpatched run.

    Attributes:
        hidden: by layer, what enters it (1 x T x width). The last entry leaves the last layer.
        attention: by layer, the output of its attention (1 x T x width).
        mlp: by layer, the output of its MLP (1 x T x width).
        kept: by layer, its keys and values.
    """

    hidden: list[torch.Tensor]
    attention: list[torch.Tensor]
    mlp: list[torch.Tensor]
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Side:
    """One of the two models.

    Attributes:
        decoder: the decoder that runs it.
        active: the context in which the decoder is this model, with an adapter on or off.
        layer_tokens: what was run so far, in tokens times layers.
    """

    decoder: Decoder
    active: Callable[[], AbstractContextManager[Any]] = nullcontext
    layer_tokens: int = field(default=0, init=False)

    @property
    def depth(self) -> int:
        return self.decoder.depth

    def run(
        self, layout: Layout, start: int, stop: int, state: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What leaves layer `stop - 1` if `state` enters layer `start`.

        Without a state, layer 0 gets the embeddings.
        """
        self.layer_tokens += (stop - start) * layout.ids.shape[1]
        with self.active():
            return self.decoder.run(layout, [stop], start, state)[stop]

    def top(self, layout: Layout, start: int, state: torch.Tensor) -> torch.Tensor:
        """What leaves the last layer if `state` enters layer `start`."""
        return state if start == self.depth else self.run(layout, start, self.depth, state)

    def stream(self, layout: Layout) -> list[torch.Tensor]:
        """What enters each layer in the unpatched run, and what leaves the last."""
        self.layer_tokens += self.depth * layout.ids.shape[1]
        with self.active():
            tapped = self.decoder.run(layout, range(self.depth + 1))
        return [tapped[layer] for layer in range(self.depth + 1)]

    def log_probs(self, top: torch.Tensor, layout: Layout) -> LogProbs:
        with self.active():
            values = self.decoder.log_probs(top, layout)
        if not bool(values.isfinite().all()):
            raise HialignError(
                "a patched run gave log-probabilities that are not finite: set the model's "
                "precision to float32"
            )
        return [[c, r] for c, r in values.view(-1, 2).tolist()]

    def states(self, layout: Layout) -> States:
        """The unpatched run."""
        recorder = Recorder(layout)
        outputs: dict[str, list[torch.Tensor]] = {"attention": [], "mlp": []}
        with ExitStack() as stack:

            def hook(module: torch.nn.Module, keep: Callable[[Any], None]) -> None:
                handle = module.register_forward_hook(lambda _, __, output: keep(first(output)))
                stack.callback(handle.remove)

            for layer in self.decoder.layers:
                for name, module in sublayers(layer).items():
                    hook(module, outputs[name].append)
            hidden = self.stream(recorder)
        return States(hidden, outputs["attention"], outputs["mlp"], recorder.kept)


def first(output: Any) -> Any:
    """The hidden states that a module returns, alone or in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def sublayers(layer: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """`attention` and `mlp` of a layer. Empty if it is not made of one of each."""
    working = {
        name: child
        for name, child in layer.named_children()
        if any(isinstance(m, torch.nn.Linear) for m in child.modules())
    }
    kinds = {"attention" if ATTENTION.search(n) else "mlp": child for n, child in working.items()}
    return kinds if len(kinds) == len(working) == 2 else {}


def why_not_apart(states: States, family: str) -> str:
    """Why attention and MLP cannot be patched separately.

    Empty if their outputs are what a layer adds to the residual stream.
    """
    if not states.attention or len(states.attention) != len(states.mlp):
        return f"a layer of {family} is not made of one attention and one MLP"
    allowed = SUBLAYER_TOLERANCE.get(states.hidden[0].dtype, 2e-2)
    pieces = zip(states.hidden, states.attention, states.mlp, states.hidden[1:], strict=False)
    for number, (entering, attention, mlp, leaving) in enumerate(pieces):
        error = float(
            (entering.float() + attention.float() + mlp.float() - leaving.float()).abs().max()
        )
        if not error <= allowed * float(leaving.float().abs().max()):
            return (
                f"in layer {number} of {family} the outputs of attention and MLP do not add up to "
                "what the layer adds to the residual stream (it normalizes or scales them first)"
            )
    return ""


def added(donor: States, receiver: States, start: int, stop: int) -> torch.Tensor:
    """The state that enters layer `stop` of the receiver with the donor's contributions.

    The layers [start, stop) add to the stream what the donor's add. The result is exactly the
    receiver's own state if both add the same.
    """
    theirs = donor.hidden[stop].float() - donor.hidden[start].float()
    ours = receiver.hidden[stop].float() - receiver.hidden[start].float()
    return shifted(receiver.hidden[stop], theirs - ours)


def shifted(state: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """`state + difference`, added in single precision, in the precision of the state."""
    return (state.float() + difference).to(state.dtype)


@contextmanager
def replaced(module: torch.nn.Module, output: torch.Tensor) -> Iterator[None]:
    """Let `module` return `output` for any input."""

    def hook(_: Any, __: Any, own: Any) -> Any:
        return (output, *own[1:]) if isinstance(own, tuple) else output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def patched(
    donor: States,
    receiver: States,
    side: Side,
    row: Row,
    kinds: Sequence[str],
    window: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Run every patch of a row.

    Args:
        donor: the donor's states.
        receiver: the receiver's states.
        side: the receiver.
        row: the packed row of T tokens.
        kinds: which of `KINDS` to run.
        window: the layers of a window.

    Yields:
        Each patch's kind, and what leaves the receiver's last layer under it (1 x T x width). The
        patches of one kind come in the order of their layers or windows.
    """
    layout, depth = row.layout, side.depth
    unchanged = receiver.hidden[depth]

    def top(above: int, state: torch.Tensor) -> torch.Tensor:
        same = torch.equal(state, receiver.hidden[above])
        return unchanged if same else side.top(layout, above, state)

    def among(
        above: int, rest: torch.Tensor, state: torch.Tensor, kept: Any, whole: torch.Tensor
    ) -> torch.Tensor:
        """`whole`, but with the positions `rest` run from layer `above` on."""
        if not len(rest):
            return whole
        result = whole.clone()
        result[:, rest] = side.top(Continued(layout, kept, rest), above, state[:, rest])
        return result

    for layer in range(depth):
        above, own = layer + 1, receiver.hidden[layer + 1]
        if "residual" in kinds or "prompt" in kinds:
            recorder, whole = Recorder(layout), unchanged
            if changes := not torch.equal(donor.hidden[above], own):
                whole = side.top(recorder, above, donor.hidden[above])
            if "residual" in kinds:
                yield "residual", whole
            if "prompt" in kinds:
                # prompts see no response, and are therefore as under the whole patch
                after = among(above, row.response, own, recorder.kept, whole) if changes else whole
                yield "prompt", after
        if "last_prompt" in kinds:
            state = own.clone()
            state[:, row.last] = donor.hidden[above][:, row.last]
            rest, after = torch.cat([row.last, row.response]).sort().values, unchanged
            if not torch.equal(state, own):
                after = among(above, rest, state, receiver.kept, unchanged)
            yield "last_prompt", after
        if "contribution" in kinds:
            yield "contribution", top(above, added(donor, receiver, layer, above))
        if "attention" in kinds:
            output, after = donor.attention[layer], unchanged
            if not torch.equal(output, receiver.attention[layer]):
                with replaced(sublayers(side.decoder.layers[layer])["attention"], output):
                    after = side.top(layout, layer, receiver.hidden[layer])
            yield "attention", after
        if "mlp" in kinds:
            difference = donor.mlp[layer].float() - receiver.mlp[layer].float()
            yield "mlp", top(above, shifted(own, difference))
    if "window" in kinds:
        for start in range(depth - window + 1):
            yield "window", top(start + window, added(donor, receiver, start, start + window))


def run_row(
    sides: Mapping[str, Side], row: Row, kinds: Sequence[str], window: int
) -> dict[str, Any]:
    """All patches of a row's pairs in both directions, as `Runs` joins them (JSON)."""
    before = sum(side.layer_tokens for side in sides.values())
    with torch.inference_mode():
        states = {name: side.states(row.layout) for name, side in sides.items()}
        tops = {name: state.hidden[-1] for name, state in states.items()}
        own = {name: sides[name].log_probs(top, row.layout) for name, top in tops.items()}
        by_direction: dict[str, dict[str, list[LogProbs]]] = {}
        for direction, (donor, receiver) in DIRECTIONS.items():
            by_kind: dict[str, list[LogProbs]] = {kind: [] for kind in kinds}
            side = sides[receiver]
            for kind, top in patched(states[donor], states[receiver], side, row, kinds, window):
                same = top is tops[receiver]
                by_kind[kind].append(own[receiver] if same else side.log_probs(top, row.layout))
            by_direction[direction] = by_kind
    return {
        "pairs": row.pairs,
        "unpatched": own,
        "patched": by_direction,
        "layer_tokens": sum(side.layer_tokens for side in sides.values()) - before,
    }


@dataclass
class Runs:
    """The runs of all rows, in the order of pairs.

    Attributes:
        unpatched: by side, the log-probabilities of the pairs.
        patched: by direction, kind and place (a layer, a window or a third), the same under the patch.
        layer_tokens: what was run, in tokens times layers.
    """

    unpatched: dict[str, LogProbs]
    patched: dict[str, dict[str, list[LogProbs]]]
    layer_tokens: int

    @classmethod
    def joined(cls, rows: Sequence[Mapping[str, Any]]) -> "Runs":
        order = np.argsort([p for row in rows for p in row["pairs"]])

        def join(*keys: Any) -> list[Any]:
            flat: list[Any] = []
            for values in rows:
                for key in keys:
                    values = values[key]
                flat += values
            return [flat[i] for i in order]

        patched = {
            direction: {
                kind: [join("patched", direction, kind, i) for i in range(len(by_place))]
                for kind, by_place in by_kind.items()
            }
            for direction, by_kind in (rows[0]["patched"] if rows else {}).items()
        }
        return cls(
            {side: join("unpatched", side) for side in ("base", "tuned")},
            patched,
            sum(row["layer_tokens"] for row in rows),
        )
