"""The signal from inner products, against plain numpy on the gradients themselves and scipy."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import multivariate_normal, t

from hialign.statistics import evidence, gram
from hialign.statistics.evidence import Accounts

RNG = np.random.default_rng(0)


def vectors(n: int = 8, size: int = 30, mean: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(mean * rng.standard_normal(size) + rng.standard_normal((n, size)))


def pairwise(rows: np.ndarray) -> float:
    """The mean inner product of two different rows, one by one."""
    n = len(rows)
    return float(np.mean([rows[i] @ rows[j] for i in range(n) for j in range(n) if i != j]))


def test_the_signal_is_the_mean_inner_product_of_two() -> None:
    sets = [vectors(seed=seed) for seed in range(3)]
    found = gram.signal(np.stack([rows @ rows.T for rows in sets]))
    np.testing.assert_allclose(found, [pairwise(rows) for rows in sets])


def test_it_has_no_bias_where_the_norm_of_the_mean_has() -> None:
    mean = np.full(30, 0.2)
    truth, plain, ours = float(mean @ mean), [], []
    rng = np.random.default_rng(1)
    for _ in range(4_000):
        rows = mean + rng.standard_normal((6, 30))
        plain.append(rows.mean(0) @ rows.mean(0))
        ours.append(gram.signal(rows @ rows.T))
    error = np.std(ours) / len(ours) ** 0.5
    assert abs(np.mean(ours) - truth) < 4 * error
    assert np.mean(plain) - truth == pytest.approx(30 / 6, rel=0.1)  # trace(Cov) / n


def test_flipping_labels_is_flipping_gradients() -> None:
    rows, signs = vectors(), np.array(list(product([1.0, -1.0], repeat=8)))
    grams = np.stack([rows @ rows.T, 2 * rows @ rows.T])
    found = gram.flipped(grams, signs)
    assert found.shape == (256, 2)
    np.testing.assert_allclose(found[:, 0], [pairwise(s[:, None] * rows) for s in signs])
    # over all flips there are: no bias, and the standard deviation that needs none of them
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(0), gram.deviation(grams))


def test_what_each_unit_adds() -> None:
    rows = vectors()
    grams = (rows @ rows.T)[None]
    without = [pairwise(np.delete(rows, i, axis=0)) for i in range(8)]
    np.testing.assert_allclose(gram.without_each(grams)[:, 0], without)
    np.testing.assert_allclose(gram.influences(grams).mean(0), gram.signal(grams))


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = RNG.normal(1, 2, 12)
    without = np.array([np.delete(values, i).mean() for i in range(12)])
    low, high, p = gram.jackknife(values.mean(), without)
    error = values.std(ddof=1) / 12**0.5
    np.testing.assert_allclose((low, high), t.interval(0.95, 11, values.mean(), error))
    assert p == pytest.approx(t.sf(values.mean() / error, 11))
    assert np.isnan(gram.jackknife(values[:4].mean(), without[:4])).all()  # four are too few


def test_pairs_of_one_prompt_are_averaged() -> None:
    rows, units = vectors(5), np.array([0, 1, 0, 2, 1])
    means = np.array([rows[units == unit].mean(0) for unit in range(3)])
    np.testing.assert_allclose(gram.by_unit(rows @ rows.T, units), means @ means.T)


def test_cosines() -> None:
    rows = vectors(5)
    rows[2] = 0
    found = gram.cosines(rows @ rows.T)
    np.testing.assert_allclose(found[0, 1], np.corrcoef(rows[0], rows[1])[0, 1], atol=0.3)
    lengths = np.linalg.norm(rows, axis=1)
    assert found[0, 1] == pytest.approx(rows[0] @ rows[1] / (lengths[0] * lengths[1]))
    assert (found[2] == 0).all()


# --- accounts ------------------------------------------------------------------------------------


def kernels(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Three parts with gradients of their own, of which a fifth is common to all."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 15))
    made = {}
    for name in ("local", "mid", "global"):
        rows = np.hstack([0.5 * common, rng.standard_normal((n, 15))])
        made[name] = gram.cosines(rows @ rows.T)
    return made


def test_evidence_is_a_gaussian_density() -> None:
    parts, labels = kernels(6), np.array([[1.0, -1, 1, 1, -1, 1]])
    accounts = Accounts(parts)
    found = accounts.log_evidence(labels)[0]
    constant = 3 * np.log(2 * np.pi)
    parts["all"] = np.mean(list(parts.values()), axis=0)
    for name, kernel in parts.items():
        densities = [
            multivariate_normal(cov=share * kernel + (1 - share) * np.eye(6)).pdf(labels[0])
            for share in evidence.SHARES
        ]
        expected = np.log(np.mean(densities)) + constant
        assert found[accounts.names.index(name)] == pytest.approx(expected)
    none = multivariate_normal(cov=np.eye(6)).logpdf(labels[0]) + constant
    assert found[-1] == pytest.approx(none)
    (probabilities,) = accounts.probabilities(labels)
    np.testing.assert_allclose(probabilities, np.exp(found) / np.exp(found).sum())


def test_the_account_that_made_the_labels_is_found() -> None:
    accounts, rng = Accounts(kernels(150)), np.random.default_rng(0)
    for name in ("local", "mid", "global"):
        parts = accounts.found(accounts.drawn(name, 50, rng))
        assert parts.count(name) > 35
        assert len([part for part in parts if part not in ("", name)]) <= 2
    for name in ("all", "none"):
        assert accounts.found(accounts.drawn(name, 100, rng)).count("") >= 95


def test_drawn_labels_agree_as_their_kernel_says() -> None:
    """The arcsine law of two Gaussian variables' signs."""
    accounts = Accounts(kernels(4))
    labels = accounts.drawn("mid", 40_000, np.random.default_rng(0))
    expected = 2 / np.pi * np.arcsin(np.clip(accounts.kernels["mid"], -1, 1))
    np.testing.assert_allclose(labels.T @ labels / 40_000, expected, atol=0.025)


def test_a_part_is_found_only_where_it_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts, labels = Accounts(kernels(4)), np.ones((4, 4))
    rows = [[0.96, 0.01, 0.01, 0.01, 0.01], [0.94, 0.03, 0.01, 0.01, 0.01]]
    rows += [[0.01, 0.01, 0.01, 0.96, 0.01], [0.01, 0.01, 0.01, 0.01, 0.96]]
    monkeypatch.setattr(accounts, "log_evidence", lambda labels: np.log(rows))
    assert accounts.found(labels) == ["local", "", "", ""]
    # the logs of two independent sets of pairs are added up
    logs = np.array([[-3.0, -1.0], [-2.0, -4.0]])
    np.testing.assert_allclose(evidence.shares(logs.sum(0)), [0.5, 0.5])
