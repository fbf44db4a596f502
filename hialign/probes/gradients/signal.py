"""The signal: what the gradients of preference pairs have in common, which labels decide.

At the reference model the gradient of Eq. 1 is -beta/2 times that of log p(chosen) - log p(rejected).
Exchanging the two responses turns its sign and leaves its norm as it is. The norm of one pair's
gradient can therefore say nothing about preferences. The norm of the *expected* gradient can: it is
zero in a layer if labels are chance, and it is the slope at which a small step of given length in that
layer's weights lowers the loss on new pairs. `hialign.statistics.gram` estimates it without bias, and
flips labels by flipping signs.

Two things keep the plain signal from answering *where*. Gradients of any loss are larger in some layers
than in others. And gradients of neighbouring layers are alike, so that a preference that one third
makes shows in all. Layers are therefore compared by their signal over its own standard deviation under
flipped labels (`over_chance`), and thirds by `hialign.statistics.evidence`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hialign.probes.gradients.meter import Grams
from hialign.statistics.comparisons import holm
from hialign.statistics.evidence import Accounts
from hialign.statistics.gram import (
    by_unit,
    cosines,
    deviation,
    flipped,
    influences,
    jackknife,
    signal,
    without_each,
)
from hialign.statistics.intervals import ALPHA
from hialign.statistics.margins import or_none, short
from hialign.study.blocks import split_layers
from hialign.study.errors import HialignError

Row = dict[str, Any]
KEPT = 200  # flips whose signals are kept in the record, by layer
DRAWN = 200  # made-up labellings of each account, to see how often it would be found
RANDOM = 20  # random sets of as many layers as a third has


@dataclass(frozen=True)
class Signal:
    """The Gram matrices of one source of pairs.

    Attributes:
        source: the name of the source.
        modules: by layer and module, that of the prompts' mean gradients (prompts x prompts).
        layers: the same, summed over the modules that the study tunes (depth x prompts x prompts).
        prompts: the prompts' ids.
        sizes: by layer, the number of parameters of each module.
        tuned: the modules that the study tunes.
    """

    source: str
    modules: list[dict[str, np.ndarray]]
    layers: np.ndarray
    prompts: list[str]
    sizes: list[dict[str, int]]
    tuned: list[str]

    @property
    def blocks(self) -> dict[str, list[int]]:
        return {block: list(layers) for block, layers in split_layers(len(self.layers)).items()}

    def parameters(self, layers: Sequence[int]) -> int:
        """The number of parameters in the tuned modules of some layers."""
        return sum(self.sizes[layer][m] for layer in layers for m in self.tuned)


def signal_of(
    source: str,
    grams: Grams,
    prompts: Sequence[str],
    sizes: list[dict[str, int]],
    tuned: Sequence[str],
) -> Signal:
    """The signal of a source of pairs. Several pairs of one prompt are averaged.

    Args:
        source: the name of the source.
        grams: by layer and module, the inner products of the pairs' gradients (pairs x pairs).
        prompts: the prompt of each pair.
        sizes: by layer, the number of parameters of each module.
        tuned: the modules that the study tunes.

    Raises:
        HialignError: if there is one prompt alone.
    """
    names = list(dict.fromkeys(prompts))
    if len(names) < 2:
        raise HialignError(
            f"the pairs of {source} are all of one prompt, and a signal is what several prompts have in "
            "common: raise probes.pairs"
        )
    units = np.array([names.index(prompt) for prompt in prompts])
    modules = [{name: by_unit(gram, units) for name, gram in of.items()} for of in grams]
    layers = np.stack([np.sum([of_layer[m] for m in tuned], axis=0) for of_layer in modules])
    return Signal(source, modules, layers, names, sizes, list(tuned))


def summary(one: Signal, flips: int, seed: int) -> dict[str, Any]:
    """What the record says of a source, as rows and, of `raw`, by source.

    - `layers`, `modules`, `thirds`: `signal` and `energy`, the mean squared norm (squared nats per squared
      unit of weight). `flipped_mean`, `flipped_std` and `flipped_quantile95` are of the signal under
      flipped labels, `over_chance` is the signal over its exact standard deviation under these, and `p`
      is one-sided. Layers and thirds are of the tuned modules alone.
    - `thirds` also: `rms`, the root of the signal per parameter; `share` of the signal of all layers, with
      its interval; `p_whole`, of the signal of all layers; `probability`, that of `evidence`.
    - `evidence`: the `log` (nats) and `probability` of each account, and the third that it `points` to.
    - `resolution`: how often labels that an account made would point to each third.
    - `raw`: `prompts`, `influences` (prompts x layers) and `flips` (layers x flips).

    Args:
        one: the signal, of two prompts or more.
        flips: labellings by chance, which are the null of all tests.
        seed: what draws them.
    """
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random((flips, len(one.prompts))) < 0.5, -1.0, 1.0)
    null = flipped(one.layers, signs)
    layers = _tested(one.layers, null, [{"layer": i} for i in range(len(one.layers))])
    for row in layers:
        row["parameters"] = one.parameters([row["layer"]])
    thirds = thirds_of(one, signs)
    evidence, resolution = _evidence(one, rng)
    for row in thirds:
        row["probability"] = evidence["probability"][row["block"]]
    enough = len(one.prompts) > 2
    raw = {
        "prompts": one.prompts,
        "influences": [short(row) for row in influences(one.layers).tolist()] if enough else None,
        "flips": [short(row) for row in null[:KEPT].T.tolist()],
    }
    about = {"source": one.source, "n": len(one.prompts)}
    return {
        "layers": [about | row for row in layers],
        "modules": [about | row for row in _modules(one, signs)],
        "thirds": [about | row for row in thirds],
        "evidence": [about | evidence],
        "resolution": [about | row for row in resolution],
        "raw": {one.source: raw},
    }


def layer_scores(one: Signal) -> list[float]:
    """Each layer's signal over its standard deviation under flipped labels, in the tuned modules."""
    return [_over(s, d) for s, d in zip(signal(one.layers), deviation(one.layers), strict=True)]


# --- rows ----------------------------------------------------------------------------------------


def _tested(grams: np.ndarray, null: np.ndarray, names: Sequence[Row]) -> list[Row]:
    """One row per Gram matrix: its signal, that under flipped labels, and Holm's p over all of them.

    Args:
        grams: K x n x n.
        null: R x K, the signal under flipped labels.
        names: K, the row's first fields.
    """
    values, deviations = signal(grams), deviation(grams)
    energies = np.diagonal(grams, axis1=-2, axis2=-1).mean(-1)
    above = _p(values, null, deviations)
    rows = []
    for i, p in enumerate(holm(above)):
        rows.append(
            dict(names[i])
            | {
                "signal": _digits(values[i]),
                "energy": _digits(energies[i]),
                "over_chance": _digits(_over(values[i], deviations[i])),
                "flipped_mean": _digits(null[:, i].mean()),
                "flipped_std": _digits(null[:, i].std(ddof=1)),
                "flipped_quantile95": _digits(np.quantile(null[:, i], 0.95)),
                "p": _digits(above[i]),
                "p_holm": _digits(p),
            }
        )
    return rows


def _p(values: np.ndarray, null: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """How often labels by chance have as large a signal. Rounding tells no labelling from itself."""
    as_large = null >= values - 1e-9 * deviations
    return np.asarray((1 + as_large.sum(0)) / (1 + len(null)))


def _digits(value: float) -> float:
    """Six significant digits."""
    return short([value])[0]


def _over(value: float, spread: float) -> float:
    return float(value / spread) if spread > 0 else 0.0


def _modules(one: Signal, signs: np.ndarray) -> list[Row]:
    """One row per module of each layer. Holm's p is over all modules."""
    names = [
        {"layer": layer, "module": name, "parameters": one.sizes[layer][name]}
        for layer, of_layer in enumerate(one.modules)
        for name in of_layer
    ]
    grams = np.stack([gram for of_layer in one.modules for gram in of_layer.values()])
    return _tested(grams, flipped(grams, signs), names)


def thirds_of(one: Signal, signs: np.ndarray) -> list[Row]:
    """One row per third, with its share of the signal of all layers.

    The interval of the share is the jackknife's, over prompts. There is no share where the signal of
    all layers together is not above chance. `signs` are labellings by chance (R x prompts).
    """
    grams = np.stack([one.layers[layers].sum(0) for layers in one.blocks.values()])
    whole = grams.sum(0)[None]
    null = flipped(whole, signs)
    (p,) = _p(signal(whole), null, deviation(whole))
    rows = _tested(grams, flipped(grams, signs), [{"block": block} for block in one.blocks])
    values = signal(grams)
    for row in rows:
        parameters = one.parameters(one.blocks[row["block"]])
        row["parameters"] = parameters
        row["rms"] = float(np.sqrt(max(row["signal"], 0) / parameters))
        row |= {"share": None, "share_low": None, "share_high": None, "p_whole": float(p)}
    if p < ALPHA and len(one.prompts) > 2:
        without = without_each(grams)
        shares = values / values.sum()
        low, high, _ = jackknife(shares, without / without.sum(1, keepdims=True))
        for i, row in enumerate(rows):
            row["share"] = float(shares[i])
            row["share_low"], row["share_high"] = or_none(low[i]), or_none(high[i])
    return rows


def accounts_of(one: Signal) -> Accounts:
    """The accounts of where a preference sits: in each third, in all layers alike, in none.

    A third's kernel is the mean of its layers' cosines, so that each layer counts alike, whatever the
    norm of its gradients.
    """
    cosine = cosines(one.layers)
    return Accounts({block: _kernel(cosine, layers) for block, layers in one.blocks.items()})


def _evidence(one: Signal, rng: np.random.Generator) -> tuple[Row, list[Row]]:
    """Which third the labels point to, and how often each account would be found on these pairs.

    `log_random` is the evidence of random sets of as many layers as a third has.
    """
    accounts = accounts_of(one)
    labels = np.ones((1, len(one.prompts)))
    logs, probabilities = accounts.log_evidence(labels)[0], accounts.probabilities(labels)[0]
    cosine, size = cosines(one.layers), len(one.blocks["mid"])
    drawn = [rng.choice(len(cosine), size, replace=False).tolist() for _ in range(RANDOM)]
    random = Accounts({str(i): _kernel(cosine, layers) for i, layers in enumerate(drawn)})
    evidence = {
        "log": dict(zip(accounts.names, short(logs), strict=True)),
        "probability": dict(zip(accounts.names, short(probabilities), strict=True)),
        "points": accounts.found(labels)[0],
        "log_random": short(random.log_evidence(labels)[0, :RANDOM].tolist()),
    }
    resolution = []
    for name in accounts.names:
        parts = accounts.found(accounts.drawn(name, DRAWN, rng))
        shares = {part: parts.count(part) / DRAWN for part in one.blocks}
        resolution.append({"made_in": name, "draws": DRAWN} | shares)
    return evidence, resolution


def _kernel(cosine: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """The kernel of some layers, with ones on its diagonal, from the cosines in all layers."""
    return cosines(cosine[list(layers)].sum(0))
