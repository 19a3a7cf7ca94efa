"""Patterns of activation and the edge of ReLU's bulk: counted, drawn, climbed, and in networks."""

from math import comb

import jax
import numpy as np
import pytest
from scipy.optimize import linprog

from limits import Problem
from limits.coordinates import coordinates
from limits.machine import computing
from limits.two_layer import meanfield
from limits.two_layer.neuron_blocks import measure_network
from limits.two_layer.particles import Neurons, cloud, error_signal, functions, path, population
from limits.two_layer.patterns import Edge, bound_of_the_cube, candidates, edge, is_cell

AXES = np.array([[1, 0, 0], [2, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0], [0, 0, 0], [0, 0, 1], [0, 3, 4.0]])


def data(P, D, C=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(P, D)), rng.normal(size=(P, C))


def cells(inputs, num_outputs=1):
    """Both of every pair."""
    half = [s for s in candidates(inputs, num_outputs) if is_cell(inputs, s)]
    return {tuple(s) for s in half} | {tuple(~s & inputs.any(1)) for s in half}


def drawn(inputs, directions=200_000):
    e = np.random.default_rng(1).normal(size=(directions, inputs.shape[1]))
    _, first = np.unique((s := e @ inputs.T > 0) @ 2 ** np.arange(len(inputs)), return_index=True)
    return s[first]


def largest(inputs, error, patterns, slopes=(0.0, 1.0)):
    """σ_1 of Σ_p φ'_p x_p r_pᵀ, the largest of these patterns'."""
    products = np.einsum("sp,pa,pc->sac", np.where(patterns, slopes[1], slopes[0]), inputs, error, optimize=True)
    return np.linalg.svd(products, compute_uv=False)[:, 0].max()


def tallest_cell(inputs, error):
    """Of all 2^P patterns the one with the largest σ_1 that a linear program finds to be a cell."""
    P, r = inputs.shape
    patterns = (np.arange(2**P)[:, None] >> np.arange(P)) & 1
    products = (patterns @ np.einsum("pa,pc->pac", inputs, error).reshape(P, -1)).reshape(2**P, r, -1)
    if error.shape[1] == 1:
        heights = np.linalg.norm(products[..., 0], axis=1)
    else:
        (a, b), (_, d) = np.moveaxis(products.swapaxes(1, 2) @ products, 0, -1)  # two outputs
        heights = np.sqrt((a + d) / 2 + np.hypot((a - d) / 2, b))
    for best in np.argsort(-heights):
        rows = np.where(patterns[best] == 1, 1.0, -1.0)[:, None] * inputs
        limits = [(-1, 1)] * r + [(None, 1)]
        found = linprog(-np.eye(r + 1)[-1], np.hstack([-rows, np.ones((P, 1))]), np.zeros(P), bounds=limits)
        if -found.fun > 1e-9:
            return heights[best]


@pytest.mark.parametrize(("P", "D"), [(7, 2), (7, 3), (9, 4), (5, 5), (1, 1), (6, 1)])
def test_cells_are_as_many_as_cover_counts(P, D):
    X, _ = data(P, D)
    assert len(cells(X)) == 2 * sum(comb((P if D > 1 else 1) - 1, i) for i in range(D))


@pytest.mark.parametrize("inputs", [data(7, 2)[0], data(8, 3)[0], AXES, np.vstack([AXES, data(3, 3)[0]])])
def test_cells_are_those_that_directions_fall_into(inputs):
    assert cells(inputs) == {tuple(s) for s in drawn(inputs)}


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-1.0, 0.5)], ids=["relu", "leaky", "folded"])
@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize(("P", "D"), [(4, 4), (12, 2), (8, 3)])
def test_the_edge_is_the_largest_over_all_directions(P, D, C, slopes):
    X, error = data(P, D, C)
    wanted = largest(X, error, drawn(X), slopes)
    np.testing.assert_allclose(edge(X, error, candidates(X, C), slopes=slopes), wanted, rtol=1e-9)
    np.testing.assert_allclose(edge(X, error, candidates(X, C), 0.9 * wanted, slopes), wanted, rtol=1e-9)


def test_the_edge_of_data_in_special_position():
    error = data(len(AXES), 1, 2)[1]
    np.testing.assert_allclose(edge(AXES, error, candidates(AXES, 2)), largest(AXES, error, drawn(AXES)), rtol=1e-9)


def test_no_pattern_exceeds_the_bound_of_the_cube():
    for C in (1, 3):
        X, error = data(12, 3, C)
        cube = (np.arange(2**12)[:, None] >> np.arange(12)) & 1
        for slopes in ((0.0, 1.0), (0.2, 1.0), (-1.0, 0.5)):
            tallest = largest(X, error, cube, slopes)
            assert tallest <= bound_of_the_cube(X, error, slopes) < 1.5 * tallest


def test_where_cells_are_too_many_the_edge_is_between_what_is_known_and_a_bound():
    X, error = data(200, 20)
    assert candidates(X, 1) is None
    assert candidates(data(20, 10)[0], 10) is None
    assert edge(X, error, None, 3.0) == Edge(3.0, bound_of_the_cube(X, error))


@pytest.mark.parametrize(("P", "D", "C"), [(20, 10, 1), (14, 7, 2)])
def test_the_limit_at_step_0_has_every_pattern(P, D, C):
    """A cloud misses the rarest: of 20 samples in 10 dimensions 524288."""
    X, Y = data(P, D, C)
    problem = Problem(X, Y, model="mlp2", activation="relu", num_steps=0, top_k=3)
    found = meanfield.solve(problem, particles=512, repeats=2)
    wanted = tallest_cell(X / np.sqrt(D), Y / P)
    np.testing.assert_allclose(found["hessian_min"], -wanted, rtol=1e-9)
    np.testing.assert_allclose(found["residual_eigenvalues"], [[wanted, -wanted]], rtol=1e-9)
    assert found.error("hessian_min") < 1e-9
    assert (found["hessian_eigenvalues"] >= wanted * (1 - 1e-9)).all()
    of_cloud = meanfield.hessian_spectra(problem, particles=512)[0].bulk.values[0]
    assert of_cloud < (0.98 if P == 20 else 1.0) * wanted


def network(problem, width):
    """Its observables at the first and the last measured step."""
    rng, basis = np.random.default_rng(width), np.asarray(coordinates(problem).basis)
    start = Neurons(rng.normal(size=(width, problem.num_inputs)) @ basis, rng.normal(size=(width, problem.num_outputs)))
    states = path(functions(problem), population(problem, np.full(width, 1 / width)), problem, start)
    at = [jax.tree.map(lambda a: np.asarray(a[t]), states) for t in (0, -1)]  # noqa: B023
    return [measure_network(problem, basis @ z.input.T, z.readout) for z in at]


def test_networks_approach_the_edge_from_inside():
    X, Y = data(10, 4)
    problem = Problem(X, Y, model="mlp2", activation="relu", num_steps=8, measure_every=8, learning_rate=0.4, top_k=1)
    limit = meanfield.solve(problem, particles=1024, repeats=4)
    narrow, wide = network(problem, 32), network(problem, 2**13)
    assert limit.error("hessian_min")[0] == 0
    for t in (0, -1):
        value, error = limit["hessian_min"][t], limit.error("hessian_min")[t]
        assert 1.01 * (value - error) < wide[t]["hessian_min"] < 0.97 * value
        assert wide[t]["hessian_min"] < 0.97 * narrow[t]["hessian_min"]
    assert 0 < error < 0.1 * abs(value)


def reached(problem, scouts=2**18):
    """The upper edge at the last step, of particles without mass in a cloud, their readouts of all sizes."""
    rng = np.random.default_rng(0)
    seen, e = cloud(problem, 1024, rng), rng.normal(size=(scouts, problem.num_inputs))
    v = rng.normal(size=(scouts, 1)) * np.exp(2 * rng.normal(size=(scouts, 1)))
    start = Neurons(np.concatenate([seen.input, e]), np.concatenate([seen.readout, v]))
    of, fixed = functions(problem), population(problem, np.repeat([1 / 1024, 0], [1024, scouts]))
    last = jax.tree.map(lambda a: a[-1], path(of, fixed, problem, start))
    with computing("float64"):
        error, x = np.asarray(error_signal(of, fixed, last)), np.asarray(fixed.inputs)
    _, first = np.unique((s := np.asarray(last.input) @ x.T > 0) @ 2 ** np.arange(len(x)), return_index=True)
    return largest(x, error, s[first])


def test_later_edges_are_between_what_particles_reach_and_what_none_exceeds():
    """A better search finds more than the clouds have, by more than their scatter, and no more than their error."""
    X, Y = data(10, 4)
    problem = Problem(X, Y, model="mlp2", activation="relu", num_steps=8, measure_every=8, learning_rate=0.4, top_k=1)
    found = meanfield.solve(problem, particles=1024, repeats=4)
    upper, error = found["residual_eigenvalues"][1, 0], found.error("residual_eigenvalues")[1, 0]
    assert 1.03 * upper < reached(problem) < upper + error < 1.1 * upper
    np.testing.assert_array_equal(found["residual_eigenvalues"][:, 1], found["hessian_min"])
    assert (found["hessian_eigenvalues"] >= found["residual_eigenvalues"][:, :1]).all()
