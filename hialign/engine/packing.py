"""Preference pairs in one row, without padding and with no beginning computed twice.

The sequences of some pairs form a prefix tree. What they begin with alike (a template's system
prompt, a pair's prompt, the words that chosen and rejected share) is one node, which is computed
once for all that goes on from it. The nodes stand side by side in one row of T tokens. A token sees
its own node up to itself, and the nodes above it, and therefore exactly its sequence so far.

Take one pair with the prompt `p q`, the chosen response `a b c d` and the rejected `a x y z`. A
sequence's last token is only a target, never an input:

    the tree                 the row     p  q  a  b  c  x  y
    node 0: p q a            node        0  0  0  1  1  2  2
     ├─ node 1: b c          position    0  1  2  3  4  3  4
     └─ node 2: x y          predicts       a  b  c  d  y  z      (the state at `a` also predicts x)

    the mask: who (line) sees whom (column)

       p q a b c x y
    p  ■ · · · · · ·
    q  ■ ■ · · · · ·
    a  ■ ■ ■ · · · ·
    b  ■ ■ ■ ■ · · ·
    c  ■ ■ ■ ■ ■ · ·
    x  ■ ■ ■ · · ■ ·
    y  ■ ■ ■ · · ■ ■

Causal attention gives a beginning no knowledge of what follows. Log-probabilities and gradients are
therefore those of each sequence by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from hialign.engine.tokens import TokenPair, common_start


@dataclass(frozen=True)
class Node:
    """The tokens [begin, end) of a row. `path` numbers the nodes from the root to this one."""

    begin: int
    end: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """P pairs in one row of T tokens, with U predictions that are scored.

    Sequence 2 p is the chosen one of the p-th pair, and 2 p + 1 the rejected one. S counts the
    response tokens of all sequences. What responses begin with alike is predicted once and counts
    for each of them, so that U is at most S.

    Attributes:
        pairs: P.
        nodes: the nodes of the tree, in the order of the row.
        ids: T, the tokens.
        positions: T, the place of each token in its sequence.
        scored: U, the places in the row whose hidden states predict.
        targets: U, the tokens that they predict.
        prediction: S, by response token, which of the U predictions it is.
        sequence: S, by response token, the sequence that it belongs to.
        places: 2 P, by sequence, where in the row its tokens stand, without the last.
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
    places: list[list[int]] = [[] for _ in inputs]

    def grow(members: list[int], depth: int, path: tuple[int, ...]) -> None:
        """Add the node that some sequences share from position `depth` on, then its children.

        `members` are sorted, and alike up to `depth`.
        """
        first, last = inputs[members[0]], inputs[members[-1]]
        end = depth + common_start(first[depth:], last[depth:])
        if end > depth:
            path = (*path, len(nodes))
            nodes.append(Node(len(ids), len(ids) + end - depth, path))
            for member in members:
                places[member] += range(len(ids), len(ids) + end - depth)
            ids.extend(first[depth:end])
            positions.extend(range(depth, end))
        longer = [member for member in members if len(inputs[member]) > end]
        for _, child in groupby(longer, key=lambda member: inputs[member][end]):
            grow(list(child), end, path)

    grow(sorted(range(len(inputs)), key=lambda i: inputs[i]), 0, ())
    numbers: dict[tuple[int, int], int] = {}  # (place, target) -> the number of the prediction
    prediction: list[int] = []
    sequence: list[int] = []
    for number, tokens in enumerate(sequences):
        for at in range(max(tokens.start, 1), len(tokens.ids)):
            key = (places[number][at - 1], tokens.ids[at])
            prediction.append(numbers.setdefault(key, len(numbers)))
            sequence.append(number)
    return Pack(
        pairs=len(pairs),
        nodes=tuple(nodes),
        ids=tuple(ids),
        positions=tuple(positions),
        scored=tuple(place for place, _ in numbers),
        targets=tuple(target for _, target in numbers),
        prediction=tuple(prediction),
        sequence=tuple(sequence),
        places=tuple(tuple(own) for own in places),
    )


def plan(pairs: Sequence[TokenPair], limit: int) -> list[list[int]]:
    """Group pairs into rows of about equal length.

    Pairs that begin alike come together. The same pairs always give the same rows.

    Args:
        pairs: N pairs.
        limit: the tokens that a row may have. Only a single pair may be longer than that.

    Returns:
        By row, the numbers of its pairs.
    """
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0].ids, pairs[i][1].ids))
    costs = []  # the tokens of each pair by itself, and those that it adds after its neighbour
    for before, i in zip([None, *order], order, strict=False):
        chosen, rejected = (tokens.ids[:-1] for tokens in pairs[i])
        alone = len(chosen) + len(rejected) - common_start(chosen, rejected)
        shared = 0 if before is None else common_start(pairs[before][0].ids[:-1], chosen)
        costs.append((alone, alone - shared))
    total = sum(added for _, added in costs)
    aim = total / max(1, -(-total // limit))
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
