"""Spectrum (Hartford et al., 2024): layers by the signal-to-noise ratio of their weights.

It needs no data and no gradient. The singular values of a weight matrix above an edge are signal,
and those below it are noise. Their ratio is divided by the largest singular value. This is a
comparison, and none of the papers' claims rests on it.

The edge and the division are the paper's (section 3.3) and its released code's. The edge is not quite
the one that pure noise has (Marchenko-Pastur). It takes the spread of the singular values for that of
the matrix's entries, so that pure noise has a signal too, and a longer matrix has more of it. The
division ranks a matrix of small weights high, and one with a few strong directions low. Only ranks
among matrices of one shape have a meaning, and no others are used here.
"""

import contextlib
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import rankdata

from hialign.engine.models import identity, load_model
from hialign.engine.modules import decoder_layers, target_modules
from hialign.records.files import read_record, write_record
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.settings import ModelSettings

NORMAL_IQR = 1.349  # interquartile range of a standard normal
RULE = 2  # to be raised with each change of the score: the cache is keyed by it


def signal_to_noise(singular: np.ndarray, shape: tuple[int, int]) -> float:
    """The sum of singular values above the noise's edge over those below it, over the largest value.

    The edge is sigma (1 + sqrt(beta)), with sigma from the values' interquartile range and beta the
    shorter side of the matrix over the longer. The result is infinite if no value is below the edge,
    and 0 if none is above, as in a matrix of zeros.

    Args:
        singular: the singular values of the matrix.
        shape: the rows and columns of the matrix.
    """
    quarter, three = np.percentile(singular, [25, 75])
    edge = (three - quarter) / NORMAL_IQR * (1 + np.sqrt(min(shape) / max(shape)))
    signal, noise = singular[singular > edge].sum(), singular[singular <= edge].sum()
    if not noise:
        return float("inf") if signal else 0.0
    return float(signal / noise / singular.max()) if signal else 0.0


def matrices(settings: ModelSettings, projections: Sequence[str]) -> dict[str, float]:
    """The signal-to-noise ratio of each layer's `projections`, by the module's full name."""
    model, _ = load_model(settings, "cpu")
    _, depth = decoder_layers(model)
    ratios = {}
    for name in target_modules(model, range(depth), projections):
        weight = model.get_submodule(name).weight.detach().float()
        values = torch.linalg.svdvals(weight).numpy()
        ratios[name] = signal_to_noise(values, (weight.shape[0], weight.shape[1]))
    return ratios


def layer_scores(settings: ModelSettings, projections: Sequence[str]) -> list[float]:
    """Each layer's rank (0 to 1, with 1 for the most signal), averaged over the types of modules.

    The scores are kept in the cache, by the weights' identity, the projections and the rule.
    """
    parts = repr((RULE, sorted(identity(settings).items()), list(projections)))
    key = hashlib.sha256(parts.encode()).hexdigest()[:24]
    path = paths.cache() / "spectrum" / f"{key}.json"
    with contextlib.suppress(HialignError, OSError):  # a file that was changed is computed again
        return list(read_record(path)["layer_scores"])
    by_type: dict[str, list[float]] = {}
    for module, ratio in matrices(settings, projections).items():
        by_type.setdefault(module.rsplit(".", 1)[-1], []).append(ratio)
    ranks = [rankdata(ratios) / len(ratios) for ratios in by_type.values()]
    scores = [float(x) for x in np.mean(ranks, axis=0)]
    write_record(path, {"layer_scores": scores})
    return scores
