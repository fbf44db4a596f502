"""Swaps: some layers of a model run with the other model's weights.

    put in layer 2       b b T b b b     base with one tuned layer
    leave out layer 2    T T b T T T     the tuned model with one layer of base

Both say what the tuned weights of a layer do to the preference, once alone and once beside all the
others. A patched activation cannot say it: what a tuned layer adds in the tuned model also depends on
the tuned layers below it.

The layers below a swap are never run again. A swap of layer l runs the layers from l on, so that all
of N layers in one direction cost about N / 2 forward passes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hialign.engine.decoder import Layout
from hialign.probes.patching.rows import Row
from hialign.probes.patching.runs import DIRECTIONS, LogProbs, Side
from hialign.study.blocks import split_layers

# The ways of swapping, and the direction of patching that each is.
WAYS: Mapping[str, str] = {"put_in": "tuned_into_base", "leave_out": "base_into_tuned"}


def places_of(depth: int) -> dict[str, list[range]]:
    """What is swapped: each layer by itself, and each third as a whole."""
    layers = [range(layer, layer + 1) for layer in range(depth)]
    return {"layers": layers, "thirds": list(split_layers(depth).values())}


def swapped(
    sides: Mapping[str, Side],
    direction: str,
    layout: Layout,
    stream: Sequence[torch.Tensor],
    places: Sequence[range],
) -> Iterator[torch.Tensor]:
    """What leaves the receiver's last layer if layers at some places are the donor's.

    Args:
        sides: `base` and `tuned`.
        direction: one of `DIRECTIONS`.
        layout: a packed row of T tokens.
        stream: what enters each of the receiver's layers, and what leaves the last (1 x T x width).
        places: the layers of each swap, which are neighbours.

    Yields:
        1 x T x width for each place. It is `stream[-1]` itself where the swap changes nothing.
    """
    donor, receiver = (sides[name] for name in DIRECTIONS[direction])
    for place in places:
        leaving = donor.run(layout, place.start, place.stop, stream[place.start])
        if torch.equal(leaving, stream[place.stop]):
            yield stream[-1]
        else:
            yield receiver.top(layout, place.stop, leaving)


def swap_row(
    sides: Mapping[str, Side], row: Row, kinds: Sequence[str] = ("layers", "thirds")
) -> dict[str, Any]:
    """The swaps of a row's pairs in both directions, as `Runs` joins them (JSON).

    `kinds` are some of `places_of`.
    """
    before = sum(side.layer_tokens for side in sides.values())
    with torch.inference_mode():
        streams = {name: side.stream(row.layout) for name, side in sides.items()}
        own = {name: sides[name].log_probs(s[-1], row.layout) for name, s in streams.items()}
        by_direction: dict[str, dict[str, list[LogProbs]]] = {}
        for direction, (_, receiver) in DIRECTIONS.items():
            side, stream = sides[receiver], streams[receiver]
            by_direction[direction] = {
                kind: [
                    own[receiver] if top is stream[-1] else side.log_probs(top, row.layout)
                    for top in swapped(
                        sides, direction, row.layout, stream, places_of(side.depth)[kind]
                    )
                ]
                for kind in kinds
            }
    return {
        "pairs": row.pairs,
        "unpatched": own,
        "patched": by_direction,
        "layer_tokens": sum(side.layer_tokens for side in sides.values()) - before,
    }
