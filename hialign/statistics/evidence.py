"""In which part of a network could some preferences have been made? Bayes' rule over a few accounts.

Suppose that a small random change of the weights of one part made the labels. To first order it moves
a pair's margin by the inner product of the change with the pair's gradient in that part. The labels of
two pairs then agree as far as their gradients there have one direction, so the part's Gram matrix of
gradients of length 1 is the covariance of the labels. That is a Gaussian process whose kernel is the
part's neural tangent kernel (Jacot et al., 2018). The labels 1 and -1 are taken as Gaussian with this
covariance and noise (least-squares classification: Rasmussen and Williams, 2006, section 6.5).

The accounts are compared by their evidence. They are equally probable beforehand, and so is each share
of the labels' variance that is no noise.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import logsumexp

ALL, NONE = "all", "none"  # every part alike, and labels that no gradient tells
SURE = 0.95  # the probability from which an account counts as found
SHARES = np.arange(1, 20) / 20  # of the labels' variance that is no noise


class Accounts:
    """Several accounts of the labels of n units.

    Attributes:
        kernels: by part, and of `all`, the covariance of labels without noise.
        names: of the parts, then `all` and `none`.
    """

    def __init__(self, kernels: Mapping[str, np.ndarray]) -> None:
        """`kernels`: by part, an n x n matrix with ones on its diagonal."""
        self.kernels = dict(kernels) | {ALL: np.mean(list(kernels.values()), axis=0)}
        self.names = [*self.kernels, NONE]
        self._spectra = {name: np.linalg.eigh(kernel) for name, kernel in self.kernels.items()}

    def log_evidence(self, labels: np.ndarray) -> np.ndarray:
        """The log of each account's evidence (nats, up to one constant).

        Args:
            labels: R x n, each 1 or -1.

        Returns:
            R x accounts.
        """
        columns = []
        for values, vectors in self._spectra.values():
            squares = (labels @ vectors) ** 2
            logs = []
            for share in SHARES:
                variances = share * np.maximum(values, 0) + 1 - share
                logs.append(-0.5 * (np.log(variances).sum() + (squares / variances).sum(-1)))
            columns.append(logsumexp(logs, axis=0) - np.log(len(SHARES)))
        columns.append(np.full(len(labels), -0.5 * labels.shape[1]))
        return np.stack(columns, axis=-1)

    def drawn(self, name: str, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Labels (draws x n) as an account makes them, without noise."""
        n = len(self.kernels[ALL])
        noise = rng.standard_normal((draws, n))
        if name == NONE:
            return np.where(noise < 0, -1.0, 1.0)
        values, vectors = self._spectra[name]
        return np.where((noise * np.sqrt(np.maximum(values, 0))) @ vectors.T < 0, -1.0, 1.0)

    def probabilities(self, labels: np.ndarray) -> np.ndarray:
        """The probability of each account (R x accounts) for each row of labels."""
        return shares(self.log_evidence(labels))

    def found(self, labels: np.ndarray) -> list[str]:
        """For each row of labels the part that is found, or an empty name."""
        probabilities = self.probabilities(labels)
        best = probabilities.argmax(axis=1)
        sure = probabilities.max(axis=1) >= SURE
        names = [name if name not in (ALL, NONE) else "" for name in self.names]
        return [names[i] if is_sure else "" for i, is_sure in zip(best, sure, strict=True)]


def shares(logs: Sequence[float] | np.ndarray) -> np.ndarray:
    """Probabilities from logs of evidence (last axis).

    Independent sets of pairs of one model are combined by adding up their logs beforehand.
    """
    return np.asarray(np.exp(logs - logsumexp(logs, axis=-1, keepdims=True)))
