"""Low rank: how much of a layer's patch a few directions carry.

The difference of the two models' residual streams after a layer is taken apart (SVD, not centred) on
one half of the pairs; in the other half its projection on the top r directions is patched. Controls:
a random subspace of as many dimensions; at each position a random vector as long as the projection;
the projection of another pair's difference.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hialign.engine.tokens import TokenPair
from hialign.probes.pairs import ProbePair
from hialign.probes.patching.recovery import kin, margins, recovery
from hialign.probes.patching.rows import Row, rows
from hialign.probes.patching.runs import DIRECTIONS, LogProbs, Side, shifted
from hialign.statistics.margins import rounded

VARIANTS = ("svd", "random_subspace", "random_vector", "shuffled_pairs")


def halves(prompts: Sequence[Hashable], seed: int) -> tuple[list[int], list[int]]:
    """Numbers of pairs to learn from and to patch; a prompt's pairs are all on one side."""
    names = sorted({str(p) for p in prompts})
    order = np.random.default_rng(seed).permutation(len(names))
    learning = {names[i] for i in order[: len(names) // 2]}
    sides: tuple[list[int], list[int]] = ([], [])
    for number, prompt in enumerate(prompts):
        sides[str(prompt) not in learning].append(number)
    return sides


@torch.inference_mode()  # type: ignore[untyped-decorator]
def rank_runs(
    sides: Mapping[str, Side],
    pairs: Sequence[TokenPair],
    prompts: Sequence[Hashable],
    layer: int,
    ranks: Sequence[int],
    seed: int,
    limit: int,
) -> dict[str, Any]:
    """Patches of the projections of layer `layer`'s difference (JSON).

    `explained[rank]`: the share of the learning half's squared difference in the subspace. `log_probs[direction][variant][rank]`: those of the tested pairs, in
    their order; the last rank is the width, at which `svd` is the full patch.
    """
    before = sum(side.layer_tokens for side in sides.values())
    above = layer + 1
    device = sides["base"].decoder.device
    learning, tested = halves(prompts, seed)

    def states(row: Row) -> dict[str, torch.Tensor]:
        return {name: side.entering(row.layout, above) for name, side in sides.items()}

    def apart(known: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """T x width, float32."""
        return (known["tuned"].float() - known["base"].float())[0]

    gram: torch.Tensor | float = 0.0
    for row in rows([pairs[i] for i in learning], device, limit):
        used = apart(states(row))[torch.cat([row.prompt, row.response])].double()
        gram = gram + used.T @ used
    assert isinstance(gram, torch.Tensor)
    squares, vectors = torch.linalg.eigh(gram)  # of D'D: the right singular vectors of D
    squares, width = squares.flip(0).clamp(min=0), len(squares)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    bases = {
        "svd": vectors.flip(1).float(),
        "random_subspace": torch.linalg.qr(noise).Q.float().to(device),
    }
    planned = list(rows([pairs[i] for i in tested], device, limit))
    known = [states(row) for row in planned]
    own: dict[int, torch.Tensor] = {}  # each pair's differences, at its own positions
    for row, both in zip(planned, known, strict=True):
        own |= {p: apart(both)[at] for p, at in zip(row.pairs, row.own, strict=True)}
    taken = [*ranks, width]
    found: dict[str, dict[str, list[LogProbs]]] = {
        direction: {v: [[[]] * len(tested) for _ in taken] for v in VARIANTS}
        for direction in DIRECTIONS
    }
    for row, both in zip(planned, known, strict=True):
        differences = {"own": apart(both), "another": _of_another(row, own, apart(both))}
        for number, rank in enumerate(taken):
            patches = _patches(differences, bases, rank, generator)
            for direction, (donor, receiver) in DIRECTIONS.items():
                side, sign = sides[receiver], 1 if donor == "tuned" else -1
                for variant, patch in patches.items():
                    state = shifted(both[receiver], sign * patch[None])
                    top = side.top(row.layout, above, state)
                    for p, values in zip(row.pairs, side.log_probs(top, row.layout), strict=True):
                        found[direction][variant][number][p] = values
    total = float(squares.sum())
    explained = [float(squares[:r].sum()) / total if total else None for r in taken]
    return {
        "ranks": taken,
        "explained": explained,
        "log_probs": found,
        "layer_tokens": sum(side.layer_tokens for side in sides.values()) - before,
    }


def _patches(
    differences: Mapping[str, torch.Tensor],
    bases: Mapping[str, torch.Tensor],
    rank: int,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """What each variant adds to the stream (T x width)."""

    def projected(of: str, basis: str) -> torch.Tensor:
        within = bases[basis][:, :rank]
        return differences[of] @ within @ within.T

    svd = projected("own", "svd")
    noise = torch.randn(svd.shape, generator=generator).to(svd.device)
    noise = noise / noise.norm(dim=-1, keepdim=True) * svd.norm(dim=-1, keepdim=True)
    return {
        "svd": svd,
        "random_subspace": projected("own", "random_subspace"),
        "random_vector": noise,
        "shuffled_pairs": projected("another", "svd"),
    }


def _of_another(
    row: Row, own: Mapping[int, torch.Tensor], differences: torch.Tensor
) -> torch.Tensor:
    """Each position's difference from the next pair, at the same share of its length."""
    result = torch.zeros_like(differences)
    order = sorted(own)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    # a position of several pairs is the first one's
    for p, at in reversed(list(zip(row.pairs, row.own, strict=True))):
        theirs = own[following[p]]
        places = torch.arange(len(at), device=at.device) * len(theirs) // len(at)
        result[at] = theirs[places]
    return result


def by_rank(
    runs: Mapping[str, Any],
    pairs: Sequence[ProbePair],
    own: Mapping[str, list[float]],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What `rank_runs` found: `explained`, and `recovery` and `margins` by direction, variant, rank.

    `own[side]`: the tested pairs' m (summed), unpatched.
    """
    ranks, recovered, kept = runs["ranks"], {}, {}
    for direction, (donor, receiver) in DIRECTIONS.items():
        found = {
            variant: [margins(values, pairs)["summed"] for values in every]
            for variant, every in runs["log_probs"][direction].items()
        }
        kept[direction] = {v: [rounded(m) for m in every] for v, every in found.items()}
        recovered[direction] = {
            variant: [
                {"rank": rank} | recovery(m, own[receiver], own[donor], kin(pairs), resamples, seed)
                for rank, m in zip(ranks, every, strict=True)
            ]
            for variant, every in found.items()
        }
    shares = zip(ranks, runs["explained"], strict=True)
    return {
        "explained": [{"rank": rank, "share": share} for rank, share in shares],
        "recovery": recovered,
        "margins": kept,
    }
