"""Spectra from order parameters: the secular equation, iterated eigenvalues, and what must hold for every problem.

(Against dense Hessians of trained networks: tests/test_linear2.py.)
"""

from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limits import Problem
from limits.machine import computing
from limits.two_layer import linear as linear2
from limits.two_layer import linear_curvature as curvature


def random_state(seed=0, P=12, D=6, C=2, step=3):
    rng = np.random.default_rng(seed)
    problem = Problem(inputs=rng.normal(size=(P, D)), targets=rng.normal(size=(P, C)), num_steps=step, top_k=4)
    return jax.tree.map(lambda a: a[-1], linear2.evolve(problem))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_eigenvalues_solve_the_secular_equation(seed, C):
    """λ_k above ρ is an eigenvalue exactly when the k-th largest eigenvalue of M(λ_k) is 1."""
    state = random_state(seed, C=C)
    values = np.asarray(curvature.hessian_spectrum(state, inf).values)
    with computing("float64"):
        edge = float(curvature.residual_edge(jax.tree.map(jnp.asarray, state)))
    outliers = values[values > edge * 1.001]
    assert len(outliers)
    with computing("float64"):
        for k, value in enumerate(outliers):
            M = curvature.secular_matrix(jnp.asarray(value), jax.tree.map(jnp.asarray, state))
            assert np.linalg.eigvalsh(M)[::-1][k] == pytest.approx(1, abs=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([5, 9, 30, inf]))
def test_whole_spectrum_obeys_its_sum_rules(seed, C, width):
    """Trace, Weyl's inequalities against R, symmetric bulk and the parameter count."""
    state = random_state(seed, C=C)
    if width != inf:
        rng = np.random.default_rng(seed)
        Z = rng.normal(size=(6 + C, width))
        state = state._replace(gram=Z @ Z.T / width)
    values, counts = (np.asarray(a) for a in curvature.hessian_spectrum(state, width))
    with computing("float64"):
        device = jax.tree.map(jnp.asarray, state)
        edge, trace = float(curvature.residual_edge(device)), float(curvature.trace(device))
    assert (np.diff(values) <= 0).all()
    assert values[-1] >= -edge * (1 + 1e-9)
    if width == inf:
        assert values[-1] == pytest.approx(-edge)
        finite = counts == 1
        assert values[finite].sum() == pytest.approx(trace)
    else:
        assert (values * counts).sum() == pytest.approx(trace)
        assert counts.sum() == width * (6 + C)


@pytest.mark.slow
@pytest.mark.parametrize(("C", "mean"), [(1, 0.0), (3, 0.0), (1, 0.5), (3, 1.0)])
def test_iterated_spectrum_equals_the_dense_one(C, mean, monkeypatch):
    """The route of large problems, forced upon a small one, multiplets of the initial state and far outliers included."""
    rng = np.random.default_rng(4)
    for steps in (0, 5):
        problem = Problem(inputs=mean + rng.normal(size=(100, 80)), targets=rng.normal(size=(100, C)), num_steps=steps,
                          measure_every=max(1, steps), top_k=5)  # fmt: skip
        dense = linear2.solve(problem)
        with monkeypatch.context() as patch:
            patch.setattr(curvature, "DENSE_LIMIT", 10)
            jax.clear_caches()
            iterated = linear2.solve(problem)
        jax.clear_caches()
        for name in ("hessian_eigenvalues", "hessian_min"):
            np.testing.assert_allclose(iterated[name], dense[name], rtol=1e-8)


@pytest.mark.parametrize(("outliers", "bulk", "merged"), [
    ([5.0, 4, 3], [3.5, 1], [5, 4, 3.5]),
    ([5.0, 4, np.nan], [4.5, 3.5], [5, 4.5, 4]),
    ([5.0, np.nan, 3], [4.5, 3.5], [5, np.nan, np.nan]),
    ([np.nan] * 3, [4.5, 3.5], [np.nan] * 3)])  # fmt: skip
def test_what_is_not_known_takes_no_rank_from_what_is(outliers, bulk, merged):
    found = curvature._with_bulk(jnp.asarray(outliers), jnp.asarray(bulk), 3)
    np.testing.assert_array_equal(found, merged)


def test_directional_sharpness_of_a_tiny_gradient():
    """The ratio survives where |g|² underflows."""
    with computing("float64"):
        state = jax.tree.map(jnp.asarray, random_state())._replace(residual_scale=jnp.zeros(()))
        tiny = state._replace(gradient=state.gradient * 1e-200)
        expected = float(curvature.directional_sharpness(state))
        assert float(curvature.directional_sharpness(tiny)) == pytest.approx(expected)


@pytest.mark.parametrize("matrix", [np.sqrt(np.arange(8.0)).reshape(4, 2), np.eye(3, 5), np.zeros((3, 1))])
def test_turns_are_orthogonal_and_triangular(matrix):
    with computing("float64"):
        turn, back = curvature._turn(jnp.asarray(matrix))
        Q = np.asarray(turn(jnp.eye(len(matrix))))
        np.testing.assert_allclose(Q.T, back(jnp.eye(len(matrix))), atol=1e-15)
        np.testing.assert_allclose(Q.T @ Q, np.eye(len(matrix)), atol=1e-14)
        np.testing.assert_allclose(np.tril(Q.T @ matrix, -1), 0, atol=1e-14)
