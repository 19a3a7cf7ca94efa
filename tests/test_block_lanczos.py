"""Block Lanczos against LAPACK, and on matrices with eigenvalues put there as often as wanted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits.machine import computing
from limits.two_layer import block_lanczos

SIZE = 600  # more than the basis holds


def largest(matrix, k, below=0.0):
    """Told a lower end of the spectrum that is so much too low."""
    lowest = np.linalg.eigvalsh(matrix)[0] - below if np.isfinite(matrix).all() else 0.0
    with computing("float64"):
        find = jax.jit(lambda matrix, lowest: block_lanczos.largest(lambda v: matrix @ v, len(matrix), k, lowest))
        return np.asarray(find(jnp.asarray(matrix), jnp.asarray(lowest)))


def with_eigenvalues(values, seed=0):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (turn * values) @ turn.T


@pytest.mark.parametrize(
    "values",
    [
        np.repeat(1 / np.arange(1, SIZE // 10 + 1), 10),
        np.repeat([3.0, 2.0, 1.0, -4.0], [4, 5, 100, SIZE - 109]),
        np.repeat(np.linspace(1, 2, SIZE // 3) ** 0.5, 3),
        np.linspace(-3, 1, SIZE),
        np.ones(SIZE),
        np.zeros(SIZE),
        1e-30 * np.linspace(0, 1, SIZE) ** 2,
    ],
    ids=["each ten times", "few", "close triplets", "indefinite", "one", "zero", "tiny"],
)
def test_eigenvalues_are_found_as_often_as_they_occur(values):
    expected = np.sort(values)[::-1][:10]
    np.testing.assert_allclose(largest(with_eigenvalues(values), 10), expected, rtol=0, atol=1e-12 * np.abs(values).max())


@pytest.mark.parametrize(("k", "below"), [(1, 0.0), (7, 0.0), (7, 100.0)])
def test_a_random_matrix(k, below):
    A = np.random.default_rng(1).normal(size=(SIZE, SIZE))
    np.testing.assert_allclose(largest(A + A.T, k, below), np.linalg.eigvalsh(A + A.T)[::-1][:k], rtol=1e-11)


@pytest.mark.parametrize("far", [1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 100.0, 1e4, 1e6])
@pytest.mark.parametrize("copies", [1, 3])
def test_eigenvalues_far_off_the_rest_leave_the_others_as_they_are(far, copies):
    """As the mean of inputs makes one: no polynomial may lift them so far that the others drown."""
    values = np.r_[np.linspace(-1, 1, SIZE - copies), np.full(copies, far)]
    found, expected = largest(with_eigenvalues(values), 10), np.sort(values)[::-1][:10]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 + 1e-14 * far)


@pytest.mark.parametrize(("far", "values"), [
    (np.linspace(2, 8, 8), np.linspace(-1, 1, 4000)),  # not found by a few blocks, and lifted least
    ([100.0], 1 - np.linspace(0, 1, 8000) ** 1.5)])  # found, and in the way of the degree that the others take
def test_large_operators_with_far_eigenvalues(far, values):
    values = np.r_[values, far]
    with computing("float64"):
        there = jnp.asarray(values)
        found = jax.jit(lambda: block_lanczos.largest(lambda v: there * v, len(values), 10, jnp.min(there)))()
    np.testing.assert_allclose(found, np.sort(values)[::-1][:10], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("highest", "known"), [(np.inf, False), (1.0, True), (1.1, False)])
def test_values_that_crowd_at_a_known_end_are_known(highest, known):
    """So close to each other that no vector of the first is found, but there is nothing above."""
    with computing("float64"):
        values = jnp.asarray(1 - np.linspace(0, 1, 4000) ** 4)
        (found,) = jax.jit(lambda: block_lanczos.largest(lambda v: values * v, 4000, 1, jnp.zeros(()), highest))()
    assert found == pytest.approx(1, rel=1e-6) if known else np.isnan(found)


def test_small_matrices_are_decomposed_and_their_values_end_in_zeros():
    np.testing.assert_allclose(largest(np.diag([1.0, 3.0, 2.0]), 5), [3, 2, 1, 0, 0])


def test_what_is_not_finite_ends():
    assert np.isnan(largest(np.full((SIZE, SIZE), np.nan), 3)).all()
