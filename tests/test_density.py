"""Stochastic Lanczos quadrature against dense eigenvalues and matfree, in float64."""

import jax
import jax.numpy as jnp
import matfree.decomp
import matfree.funm
import numpy as np
import pytest

from finite.curvature.density import Density, spectral_density
from finite.curvature.operators import signs_like
from limits.machine import computing

RNG = np.random.default_rng(0)
BULK_AND_OUTLIERS = np.r_[np.linspace(-1, 1, 56), 3.0, 4.0, 4.5, 9.0]
EXPONENTIAL = RNG.exponential(size=60)


@pytest.fixture(autouse=True)
def _float64():
    with computing("float64"):
        yield


def dense(spectrum, seed=1):
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    return jnp.asarray((rotation * spectrum) @ rotation.T)


@jax.jit(static_argnames=("probes", "steps"))
def of_matrix(matrix, key, probes=8, steps=12):
    return spectral_density(lambda v: matrix @ v, matrix[0], key, probes=probes, steps=steps)


def probes_of(key, probes, size):
    """The same signs: a row per probe."""
    return np.stack([signs_like(k, jnp.zeros(size)) for k in jax.random.split(key, probes)])


def spread(function_of_matrix, probes):
    """The exact standard error of the mean of zᵀBz/n over random signs: Var zᵀBz = 2 Σ_{i≠j} B_ij²."""
    off = function_of_matrix - np.diag(np.diag(function_of_matrix))
    return np.sqrt(2 * np.sum(off**2) / probes) / len(off)


@pytest.mark.parametrize("spectrum", [BULK_AND_OUTLIERS, EXPONENTIAL], ids=["outliers", "exponential"])
def test_every_probe_has_the_moments_of_its_own_vector(spectrum):
    """zᵀAᵏz/n for all k ≤ 2m − 1, and not for 2m."""
    matrix, key, m = dense(spectrum), jax.random.key(0), 5
    got = of_matrix(matrix, key, steps=m)
    z = probes_of(key, 8, 60)
    for k in range(2 * m + 1):
        expected = np.einsum("pi,ij,pj->p", z, np.linalg.matrix_power(matrix, k), z) / 60
        moments = np.sum(got.weights * got.nodes**k, axis=1)
        assert np.allclose(moments, expected, rtol=1e-9) == (k < 2 * m)


def test_matfree_agrees():
    matrix, key, m = dense(EXPONENTIAL), jax.random.key(3), 7
    got = of_matrix(matrix, key, steps=m)
    form = matfree.funm.monte_carlo_funm_sym(matfree.funm.dense_funm_sym_eigh(jnp.exp), matfree.decomp.tridiag_sym(m))
    expected = [form(lambda v: matrix @ v, jnp.asarray(z)) / 60 for z in probes_of(key, 8, 60)]
    np.testing.assert_allclose(np.sum(got.weights * np.exp(got.nodes), axis=1), expected, rtol=1e-10)


def test_means_and_their_standard_errors():
    matrix, probes = dense(EXPONENTIAL), 400
    value, error = of_matrix(matrix, jax.random.key(1), probes=probes).mean(jnp.exp)
    values, vectors = np.linalg.eigh(matrix)
    expected, true_error = np.mean(np.exp(values)), spread((vectors * np.exp(values)) @ vectors.T, probes)
    assert abs(value - expected) < 4 * true_error
    assert error == pytest.approx(true_error, rel=0.15)


@pytest.mark.parametrize("spectrum", [BULK_AND_OUTLIERS, EXPONENTIAL], ids=["outliers", "exponential"])
def test_smoothed_and_cumulative_are_those_of_dense_eigenvalues(spectrum):
    got = of_matrix(dense(spectrum), jax.random.key(2), probes=60, steps=40)
    at, width = jnp.linspace(-4, 12, 81), 0.4
    smooth, error = got.smoothed(at, width)
    expected = np.exp(-((at[:, None] - spectrum) ** 2) / (2 * width**2)).mean(axis=1) / np.sqrt(2 * np.pi * width**2)
    assert (np.abs(smooth - expected) <= 4 * error + 1e-6).all()
    assert (error < 0.05).all()
    assert np.sum(smooth) * 0.2 == pytest.approx(1, abs=1e-6)  # the spacing of the grid
    between = jnp.asarray([2.0, 3.5, 4.25, 6.0, 20.0]) if spectrum is BULK_AND_OUTLIERS else at
    part, error = got.cumulative(between)
    expected = np.mean(spectrum <= between[:, None], axis=1)
    slack = 1e-9 if spectrum is BULK_AND_OUTLIERS else 1 / 40  # in gaps nothing is left to quadrature, elsewhere one node
    assert (np.abs(part - expected) <= 4 * error + slack).all()
    assert part[-1] == pytest.approx(1)


def test_repeated_eigenvalues_have_their_part():
    """Spaces are exhausted after two products; on a diagonal matrix signs then give the exact parts."""
    diagonal = jnp.asarray(np.repeat([0.0, 5.0], [40, 10]))
    got = spectral_density(lambda v: diagonal * v, diagonal, jax.random.key(0), probes=3, steps=12)
    part, error = got.cumulative(jnp.asarray([-1.0, 2.5, 6.0]))
    np.testing.assert_allclose(part, [0, 0.8, 1], atol=1e-12)
    np.testing.assert_allclose(error, 0, atol=1e-12)


def test_trees_go_in_and_no_more_nodes_than_dimensions():
    matrix = dense(np.arange(1.0, 7.0))

    def matvec(tree):
        flat = matrix @ jnp.concatenate([tree["a"].ravel(), tree["b"]])
        return {"a": flat[:4].reshape(2, 2), "b": flat[4:]}

    got = spectral_density(matvec, {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}, jax.random.key(0), probes=2)
    assert got.nodes.shape == got.weights.shape == (2, 6)
    np.testing.assert_allclose(got.nodes, [np.arange(1.0, 7.0)] * 2, rtol=1e-9)


def test_what_is_not_finite_is_data():
    got = of_matrix(dense(EXPONENTIAL).at[3, 3].set(jnp.nan), jax.random.key(0))
    assert isinstance(got, Density)
    assert not np.isfinite(got.mean(lambda nodes: nodes)[0])


def test_refuses_one_probe_and_no_steps():
    with pytest.raises(ValueError, match="1 probes: a standard error needs two"):
        spectral_density(lambda v: v, jnp.ones(3), jax.random.key(0), probes=1)
    with pytest.raises(ValueError, match="0 steps: a quadrature has at least one node"):
        spectral_density(lambda v: v, jnp.ones(3), jax.random.key(0), steps=0)
