"""Does an objective's signal sit in its own third, more than the other objectives' signals do?

All objectives have gradients in all thirds, and the network decides most of how these are spread. So
the objectives are compared with each other, on contrasts that share the prompt and the good response.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hialign.statistics.comparisons import holm
from hialign.statistics.gram import LEAST, flipped, jackknife, signal, without_each
from hialign.statistics.intervals import ALPHA
from hialign.statistics.margins import or_none
from hialign.study.blocks import split_layers

ALL = "all"


def interaction(
    layers: np.ndarray,
    places: Mapping[str, Sequence[int]],
    own: Mapping[str, str],
    flips: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One row per objective, and one for the mean over objectives (`all`).

    The signal of an objective is shared out over the thirds. Each layer's signal is taken over the
    mean squared norm of all contrasts' gradients in it, so that layers count alike. Fields of a row:

    - `local`, `mid`, `global`: the shares, which may be negative.
    - `difference`: the share of its own third, minus the mean share that the other objectives have
      there. Its interval and its one-sided `p` (that it is above zero) are the jackknife's over
      prompts. They say nothing about other objectives. `p_holm` is over the objectives.
    - `reason`: why there is nothing to compare, or None. All signals have to be above chance, because
      the shares of none mean nothing.

    Args:
        layers: by layer, the inner products of the gradients of all contrasts (depth x pairs x pairs).
        places: by objective, the places of its pairs among them. Pairs at one position are of one
            prompt in all objectives.
        own: by objective, its third.
        flips: flips of labels, by which a signal is told from chance.
        seed: what draws them.
    """
    names = list(places)
    chosen = np.array([places[name] for name in names])  # objectives x prompts
    blocks = {block: list(inside) for block, inside in split_layers(len(layers)).items()}
    energies = np.diagonal(layers, axis1=-2, axis2=-1).mean(-1)
    inverse = np.divide(1, energies, out=np.zeros_like(energies), where=energies > 0)
    scaled = layers * inverse[:, None, None]
    thirds = np.stack([scaled[inside].sum(0) for inside in blocks.values()])
    at = [list(blocks).index(own[name]) for name in names]
    grams = np.stack([thirds[:, p][:, :, p] for p in chosen])  # objectives x thirds x n x n
    reason = _nothing(names, grams, flips, np.random.default_rng(seed))
    shares = np.full((len(names), len(blocks)), np.nan)
    difference = low = high = p = np.full(len(names) + 1, np.nan)
    if reason is None:
        shares = _shares(signal(grams))
        difference = _leads(shares, at)
        low, high, p = jackknife(difference, _leads(_shares(without_each(grams)), at))
    adjusted = [*holm(p[:-1]), p[-1]]
    rows = []
    for i, name in enumerate([*names, ALL]):
        row: dict[str, Any] = {"objective": name, "block": own.get(name), "n": chosen.shape[1]}
        of_thirds = shares[i] if name != ALL else np.full(len(blocks), np.nan)
        row |= {block: or_none(share) for block, share in zip(blocks, of_thirds, strict=True)}
        row |= {
            "difference": or_none(difference[i]),
            "difference_low": or_none(low[i]),
            "difference_high": or_none(high[i]),
            "p": or_none(p[i]),
            "p_holm": or_none(adjusted[i]),
            "reason": reason,
        }
        rows.append(row)
    return rows


def _nothing(
    names: Sequence[str], grams: np.ndarray, flips: int, rng: np.random.Generator
) -> str | None:
    """Why there is nothing to compare, if there is not."""
    prompts = grams.shape[-1]
    if prompts < LEAST:
        return (
            f"{prompts} prompts have all objectives, and fewer than {LEAST} are too few to compare"
        )
    whole = grams.sum(1)
    signs = np.where(rng.random((flips, prompts)) < 0.5, -1.0, 1.0)
    p = (1 + (flipped(whole, signs) >= signal(whole)).sum(0)) / (1 + flips)
    if silent := [name for name, chance in zip(names, p, strict=True) if chance >= ALPHA]:
        return f"no signal above chance in the gradients of {', '.join(silent)}"
    return None


def _shares(signals: np.ndarray) -> np.ndarray:
    """The shares of the thirds (last axis), or NaN where they have no signal together."""
    whole = signals.sum(-1, keepdims=True)
    shares = np.full_like(signals, np.nan)
    return np.asarray(np.divide(signals, whole, out=shares, where=whole > 0))


def _leads(shares: np.ndarray, at: Sequence[int]) -> np.ndarray:
    """Each objective's share of its own third minus the others' mean share there, and the mean.

    Args:
        shares: … x objectives x thirds.
        at: by objective, the number of its own third.

    Returns:
        … x (objectives + 1).
    """
    count = shares.shape[-2]
    there = shares[..., :, at]  # … x objectives x the own thirds of objectives
    mine = np.diagonal(there, axis1=-2, axis2=-1)
    leads = mine - (there.sum(-2) - mine) / (count - 1)
    return np.concatenate([leads, leads.mean(-1, keepdims=True)], axis=-1)
