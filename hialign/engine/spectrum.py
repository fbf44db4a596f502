"""Spectrum (Hartford et al., 2024): layers by the signal-to-noise ratio of their weights.

No data and no gradient: singular values of a weight matrix above an edge are signal, those below it
noise; their ratio is divided by the largest. A comparison, not one of the papers' claims.

Edge and division are the paper's (section 3.3) and its released code's. The edge is not quite the
one that pure noise has (Marchenko-Pastur): it takes the spread of singular values for that of the
matrix's entries, so that pure noise has a signal too, and more in a longer matrix. And dividing by
the largest value ranks a matrix of small weights high, and one with a few strong directions low.
Only ranks among matrices of one shape have a meaning, and no others are used here.
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
RULE = 2  # counts the ways in which this file has scored: scores are kept by it


def signal_to_noise(singular: np.ndarray, shape: tuple[int, int]) -> float:
    """The sum of singular values above the noise's edge over the sum of those below it, over the
    largest of them.

    The edge is sigma (1 + sqrt(beta)) with sigma from the values' interquartile range and beta the
    shorter side of the matrix over the longer. Infinite where nothing is below; 0 where nothing is
    above, in a matrix of zeros too.
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
    found = {}
    for name in target_modules(model, range(depth), projections):
        weight = model.get_submodule(name).weight.detach().float()
        values = torch.linalg.svdvals(weight).numpy()
        found[name] = signal_to_noise(values, (weight.shape[0], weight.shape[1]))
    return found


def layer_scores(settings: ModelSettings, projections: Sequence[str]) -> list[float]:
    """Each layer's rank (0 to 1, higher is more signal) within a module type, averaged over types.

    Kept in the cache, by the weights' identity, the projections and the rule.
    """
    known_as = repr((RULE, sorted(identity(settings).items()), list(projections)))
    key = hashlib.sha256(known_as.encode()).hexdigest()[:24]
    path = paths.cache() / "spectrum" / f"{key}.json"
    with contextlib.suppress(HialignError, OSError):  # it was changed since, or is not there
        return list(read_record(path)["layer_scores"])
    by_type: dict[str, list[float]] = {}
    for module, ratio in matrices(settings, projections).items():
        by_type.setdefault(module.rsplit(".", 1)[-1], []).append(ratio)
    ranks = [rankdata(ratios) / len(ratios) for ratios in by_type.values()]
    scores = [float(x) for x in np.mean(ranks, axis=0)]
    write_record(path, {"layer_scores": scores})
    return scores
