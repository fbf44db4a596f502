"""Low rank: how much of a layer's patch a few directions carry.

The difference of the two models' residual streams after a layer is decomposed (SVD, not centred) on
one half of the pairs. In the other half, its projection on the top r directions is patched. There are
three controls: a random subspace of as many dimensions, at each position a random vector as long as
the projection, and the projection of another pair's difference.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hialign.engine.tokens import TokenPair
from hialign.probes.pairs import ProbePair
from hialign.probes.patching.recovery import margins, prompts_of, recovery
from hialign.probes.patching.rows import Row, rows
from hialign.probes.patching.runs import DIRECTIONS, LogProbs, Side, shifted
from hialign.statistics.margins import rounded

VARIANTS = ("svd", "random_subspace", "random_vector", "shuffled_pairs")


def halves(prompts: Sequence[Hashable], seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the pairs to learn from and to patch. A prompt's pairs are all on one side."""
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
    """Patch the projections of one layer's difference on its top directions.

    Args:
        sides: `base` and `tuned`.
        pairs: N pairs.
        prompts: N, their prompts, by which the halves are drawn.
        layer: the layer, counted from 0.
        ranks: the numbers of directions. The width is added, at which `svd` is the full patch.
        seed: what draws the halves and the controls.
        limit: the tokens of one forward pass.

    Returns:
        `ranks`; `explained[rank]`, the share of the learning half's squared difference that lies in
        the subspace; `log_probs[direction][variant][rank]` of the tested pairs, in their order; and
        the `layer_tokens` that were run.
    """
    before = sum(side.layer_tokens for side in sides.values())
    above = layer + 1
    device = sides["base"].decoder.device
    learning, tested = halves(prompts, seed)

    def states(row: Row) -> dict[str, torch.Tensor]:
        return {name: side.run(row.layout, 0, above) for name, side in sides.items()}

    def apart(hidden: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The difference of the two models' states (T x width, float32)."""
        return (hidden["tuned"].float() - hidden["base"].float())[0]

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
    hidden = [states(row) for row in planned]
    own: dict[int, torch.Tensor] = {}  # each pair's differences, at its own positions
    for row, both in zip(planned, hidden, strict=True):
        own |= {p: apart(both)[at] for p, at in zip(row.pairs, row.own, strict=True)}
    all_ranks = [*ranks, width]
    log_probs: dict[str, dict[str, list[LogProbs]]] = {
        direction: {v: [[[]] * len(tested) for _ in all_ranks] for v in VARIANTS}
        for direction in DIRECTIONS
    }
    for row, both in zip(planned, hidden, strict=True):
        differences = {"own": apart(both), "another": _of_another(row, own, apart(both))}
        for number, rank in enumerate(all_ranks):
            patches = _patches(differences, bases, rank, generator)
            for direction, (donor, receiver) in DIRECTIONS.items():
                side, sign = sides[receiver], 1 if donor == "tuned" else -1
                for variant, patch in patches.items():
                    state = shifted(both[receiver], sign * patch[None])
                    top = side.top(row.layout, above, state)
                    for p, values in zip(row.pairs, side.log_probs(top, row.layout), strict=True):
                        log_probs[direction][variant][number][p] = values
    total = float(squares.sum())
    explained = [float(squares[:r].sum()) / total if total else None for r in all_ranks]
    return {
        "ranks": all_ranks,
        "explained": explained,
        "log_probs": log_probs,
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
    """For each position the difference of the next pair, at the same share of its length."""
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
    """Sum up `rank_runs`: `explained`, and `recovery` and `margins` by direction, variant and rank.

    `own[side]` is the tested pairs' m (summed, nats) without a patch.
    """
    ranks, recovered, rounded_margins = runs["ranks"], {}, {}
    for direction, (donor, receiver) in DIRECTIONS.items():
        by_variant = {
            variant: [margins(values, pairs)["summed"] for values in every]
            for variant, every in runs["log_probs"][direction].items()
        }
        rounded_margins[direction] = {
            v: [rounded(m) for m in every] for v, every in by_variant.items()
        }
        recovered[direction] = {
            variant: [
                {"rank": rank}
                | recovery(m, own[receiver], own[donor], prompts_of(pairs), resamples, seed)
                for rank, m in zip(ranks, every, strict=True)
            ]
            for variant, every in by_variant.items()
        }
    shares = zip(ranks, runs["explained"], strict=True)
    return {
        "explained": [{"rank": rank, "share": share} for rank, share in shares],
        "recovery": recovered,
        "margins": rounded_margins,
    }
