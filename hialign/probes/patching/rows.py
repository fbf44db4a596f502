"""Packed rows for patching: which positions belong to which pair, and runs of some of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hialign.engine.decoder import Layout
from hialign.engine.packing import pack, plan
from hialign.engine.tokens import TokenPair, common_start


@dataclass(frozen=True)
class Row:
    """P pairs in one packed row of T positions.

    Attributes:
        pairs: P, the numbers of the pairs.
        layout: the row.
        own: P, the positions of each pair.
        prompt: the positions of all prompts.
        last: those of the prompts' last tokens.
        response: those of all responses.
    """

    pairs: list[int]
    layout: Layout
    own: list[torch.Tensor]
    prompt: torch.Tensor
    last: torch.Tensor
    response: torch.Tensor


def rows(pairs: Sequence[TokenPair], device: torch.device, limit: int) -> Iterator[Row]:
    """The pairs in packed rows of at most `limit` tokens.

    No position of a row is in one pair's prompt and in another's response, as it would be with two
    turns of one conversation.
    """
    for group in plan(pairs, limit):
        separate: list[list[int]] = []
        for i in group:
            fits = (r for r in separate if not any(_collide(pairs[i], pairs[j]) for j in r))
            if (row := next(fits, None)) is None:
                separate.append(row := [])
            row.append(i)
        for numbers in separate:
            yield _row([pairs[i] for i in numbers], numbers, device)


def _collide(one: TokenPair, other: TokenPair) -> bool:
    """Whether one prompt ends inside the beginning that two sequences share, and the other elsewhere."""
    return any(
        a.start != b.start and common_start(a.ids[:-1], b.ids[:-1]) >= min(a.start, b.start)
        for a in one
        for b in other
    )


def _row(tokens: list[TokenPair], numbers: list[int], device: torch.device) -> Row:
    packed = pack(tokens)
    starts = [max(t.start, 1) for pair in tokens for t in pair]
    prompt = {p for own, s in zip(packed.places, starts, strict=True) for p in own[:s]}
    last = {own[s - 1] for own, s in zip(packed.places, starts, strict=True)}

    def tensor(positions: Any) -> torch.Tensor:
        return torch.tensor(sorted(positions), dtype=torch.long, device=device)

    both = zip(packed.places[::2], packed.places[1::2], strict=True)
    return Row(
        numbers,
        Layout(packed, device),
        [torch.tensor([*c, *(p for p in r if p not in set(c))], device=device) for c, r in both],
        tensor(prompt),
        tensor(last),
        tensor(set(range(len(packed))) - prompt),
    )


class Recorder(Layout):
    """A layout that keeps each layer's keys and values (1 x heads x T x width)."""

    def __init__(self, layout: Layout) -> None:
        self.__dict__ |= vars(layout)
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, window: Any, **options: Any
    ) -> torch.Tensor:
        self.kept[module.layer_idx] = key, value
        return super().attend(module, query, key, value, window, **options)


class Continued(Layout):
    """A layout of which only the positions `rest` are run.

    The keys and values of all other positions are those that an earlier run kept.
    """

    def __init__(
        self,
        layout: Layout,
        kept: Mapping[int, tuple[torch.Tensor, torch.Tensor]],
        rest: torch.Tensor,
    ) -> None:
        self.__dict__ |= vars(layout)
        self.kept, self.rest = kept, rest
        self.ids, self.positions = layout.ids[:, rest], layout.positions[:, rest]

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, window: Any, **options: Any
    ) -> torch.Tensor:
        kept_keys, kept_values = self.kept[module.layer_idx]
        whole = query.new_zeros(*query.shape[:2], kept_keys.shape[2], query.shape[3])
        whole[:, :, self.rest] = query
        keys, values = kept_keys.clone(), kept_values.clone()
        keys[:, :, self.rest], values[:, :, self.rest] = key, value
        return super().attend(module, whole, keys, values, window, **options)[:, self.rest]
