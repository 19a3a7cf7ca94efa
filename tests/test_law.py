"""A law from independent draws, against Python's own statistics; how split eigenvalues move, against differences."""

from math import sqrt
from statistics import fmean, stdev

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits.law import branches, groups, law_of_draws
from limits.machine import computing


def test_of_draws():
    rng = np.random.default_rng(0)
    squares, second = rng.uniform(1.0, 2.0, size=(5, 3)), rng.normal(size=(7, 3))
    law = law_of_draws(squares, second, np.array([True, True, False]))
    for t in range(2):
        std = sqrt(fmean(squares[:, t]))
        assert law.std[t] == pytest.approx(std)
        assert law.std_error[t] == pytest.approx(stdev(squares[:, t]) / sqrt(5) / (2 * std))  # of √ by its derivative
        assert law.bias[t] == pytest.approx(fmean(second[:, t]) / 2)
        assert law.bias_error[t] == pytest.approx(stdev(second[:, t]) / sqrt(7) / 2)
        assert law.shift[t] == law.shift_error[t] == 0
    assert np.isnan([values[2] for values in law]).all()


def test_what_does_not_fluctuate_has_no_error():
    law = law_of_draws(np.zeros((4, 2)), np.ones((4, 2)))
    np.testing.assert_array_equal(law.std_error, 0.0)
    np.testing.assert_array_equal(law.bias, 0.5)


def test_shifts_that_are_noise_are_none():
    """Two standard errors are, a hundred are not."""
    first = np.stack([np.array([1.0, -1.0, 2.0, -0.5]), 5 + np.array([0.1, -0.1, 0.1, -0.1])], 1)
    law = law_of_draws(first**2, first, shifts=first)
    np.testing.assert_allclose(law.shift, [0, 5])
    np.testing.assert_allclose(law.shift_error, [stdev(first[:, 0]) / 2, stdev(first[:, 1]) / 2])


@pytest.mark.parametrize("inverse", [False, True], ids=["A − λ", "A/λ − 1"])
def test_branches_are_smooth(inverse):
    """λ' and λ'' of a triple and of a single eigenvalue of A(h), which leave a triple in opposite order at h and −h."""
    rng, values, h = np.random.default_rng(0), np.array([5.0, 3.0, 3.0, 3.0, 1.0, 0.5]), 1e-4
    first, second = (of + of.T for of in rng.normal(size=(2, 6, 6)))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    at = {e: turn @ np.diag(values) @ turn.T + e * first + e * e * second / 2 for e in (-h, 0.0, h)}
    below, limit, above = (np.linalg.eigvalsh(at[e])[::-1] for e in (-h, 0.0, h))
    below[1:4] = below[1:4][::-1]

    def singular(_, lam):
        return (at[0.0] / lam - np.eye(6), -at[0.0] / lam**2) if inverse else (at[0.0] - lam * np.eye(6), -np.eye(6))

    found = list(groups(limit[None, :3], np.array([[False, False, False]]), singular))
    assert [(group.step, group.first, group.shown, group.vectors.shape[1]) for group in found] == [(0, 0, 1, 1), (0, 1, 2, 3)]
    for group in found:

        def moved(e, rate, v, lam=group.value):
            A = at[0.0] + e * first + e * e * second / 2
            return A @ v / (lam + e * rate) - v if inverse else A @ v - (lam + e * rate) * v

        with computing("float64"):
            one, two = jax.device_get(branches(moved, jnp.asarray(group.vectors), jnp.asarray(group.inverse)))
        ranks = slice(group.first, group.first + len(one))
        np.testing.assert_allclose(one, (above - below)[ranks] / (2 * h), rtol=1e-5)
        np.testing.assert_allclose(two, (above + below - 2 * limit)[ranks] / h**2, rtol=1e-4, atol=1e-5)
