"""Preference pairs without padding, and with no beginning computed twice.

The sequences of some pairs are laid out as a prefix tree: what they begin with alike (a template's
system prompt, a pair's prompt, the words that chosen and rejected share) is one node, computed once
for all that go on from it. The nodes stand in one row with no padding; attention lets a token see
its own node up to itself and the nodes above, which is exactly its sequence so far. Since causal
attention gives a beginning no knowledge of what follows, log-probabilities and gradients are those
of each sequence by itself. A sequence's last token is only a target, never an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from hialign.engine.tokens import TokenPair, common_start


@dataclass(frozen=True)
class Node:
    """Tokens [begin, end) of a row; `path` numbers the nodes from the root to this one."""

    begin: int
    end: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """Some pairs in one row of T tokens, and what is scored in it.

    `ids`, `positions`: T. `scored`, `targets`: U; the hidden state at `scored[i]` predicts
    `targets[i]`. `prediction`, `sequence`: S, one for each token of each response: it is that
    prediction, and belongs to that sequence (2 p is the chosen one of the p-th pair, 2 p + 1 the
    rejected one). What responses begin with alike is predicted once and counts for each.
    `places`: where in the row each sequence's tokens stand (its last one is no input).
    """

    pairs: int
    nodes: tuple[Node, ...]
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    scored: tuple[int, ...]
    targets: tuple[int, ...]
    prediction: tuple[int, ...]
    sequence: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)


def pack(pairs: Sequence[TokenPair]) -> Pack:
    """Lay `pairs` out in one row."""
    sequences = [tokens for pair in pairs for tokens in pair]
    inputs = [tokens.ids[:-1] for tokens in sequences]
    nodes: list[Node] = []
    ids: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = [[] for _ in inputs]  # of each sequence's tokens in the row

    def grow(members: list[int], depth: int, path: tuple[int, ...]) -> None:
        """A node for what `members` (in order, alike up to `depth`) share from there; then its
        children."""
        first, last = inputs[members[0]], inputs[members[-1]]
        end = depth + common_start(first[depth:], last[depth:])
        if end > depth:
            path = (*path, len(nodes))
            nodes.append(Node(len(ids), len(ids) + end - depth, path))
            for member in members:
                places[member] += range(len(ids), len(ids) + end - depth)
            ids.extend(first[depth:end])
            positions.extend(range(depth, end))
        on = [member for member in members if len(inputs[member]) > end]
        for _, child in groupby(on, key=lambda member: inputs[member][end]):
            grow(list(child), end, path)

    grow(sorted(range(len(inputs)), key=lambda i: inputs[i]), 0, ())
    predictions: dict[tuple[int, int], int] = {}  # (place, target) -> its number
    prediction: list[int] = []
    sequence: list[int] = []
    for number, tokens in enumerate(sequences):
        for at in range(max(tokens.start, 1), len(tokens.ids)):
            key = (places[number][at - 1], tokens.ids[at])
            prediction.append(predictions.setdefault(key, len(predictions)))
            sequence.append(number)
    scored, targets = zip(*predictions, strict=True) if predictions else ((), ())
    return Pack(
        *(len(pairs), tuple(nodes), tuple(ids), tuple(positions)),
        *(scored, targets, tuple(prediction), tuple(sequence)),
        tuple(tuple(own) for own in places),
    )


def plan(pairs: Sequence[TokenPair], limit: int) -> list[list[int]]:
    """Group pairs into rows of about equal length, none above `limit` tokens but where a single pair
    is. Pairs that begin alike come together. The same pairs give the same rows."""
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0].ids, pairs[i][1].ids))
    costs = []  # the tokens that each adds to a row, after its neighbour or as the first
    for before, i in zip([None, *order], order, strict=False):
        chosen, rejected = (tokens.ids[:-1] for tokens in pairs[i])
        alone = len(chosen) + len(rejected) - common_start(chosen, rejected)
        known = 0 if before is None else common_start(pairs[before][0].ids[:-1], chosen)
        costs.append((alone, alone - known))
    rows = max(1, -(-sum(added for _, added in costs) // limit))
    aim = sum(added for _, added in costs) / rows
    groups: list[list[int]] = []
    filled = 0
    for i, (alone, added) in zip(order, costs, strict=True):
        if groups and filled + added <= limit and filled + added / 2 <= aim:
            groups[-1].append(i)
            filled += added
        else:
            groups.append([i])
            filled = alone
    return groups
