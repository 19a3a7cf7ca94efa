"""The Hessian at N = ∞ by Lanczos on fields: two-layer theory, the NTK, autodiff of networks, random matrices, trained ones."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comparisons import pairs
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, minibatches, theories
from limits.deep import curvature, dmft, lanczos, network
from limits.deep import linear as deep_linear
from limits.deep.bulk_edge import bulk_edge
from limits.deep.gaussian_matrix import GaussianMatrix, Space
from limits.losses import LOSSES
from limits.machine import in_float64
from limits.trajectory import IN_BULK
from limits.two_layer import linear as linear2
from limits.two_layer import meanfield

RNG = np.random.default_rng(0)
X, Y, CLASSES = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3)), np.eye(3)[[0, 1, 2, 1]]
EVERYTHING = {"momentum": 0.5, "weight_decay": 0.1, "batches": minibatches(np.random.default_rng(1), 4, 2, 8)}
HESSIAN = "hessian_eigenvalues", "hessian_min", "residual_eigenvalues", "hessian_trace", "directional_sharpness"
RESIDUAL = {"parametrization": "depth_mup", "model": "resmlp", "depth": 2}


def a_problem(targets=Y, **options):
    return Problem(X, targets, **{"learning_rate": 0.3, "num_steps": 8, "measure_every": 8, "top_k": 3} | options)


# Linear networks: exact


@pytest.mark.parametrize(
    ("C", "options"),
    [(1, {}), (3, EVERYTHING), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((3, {}), (1, EVERYTHING)))],
    ids=["one output", "3 outputs, momentum, decay, minibatches", "3 outputs", "momentum, decay, minibatches"],
)
def test_one_hidden_layer_is_linear2(C, options):
    problem = a_problem(Y[:, :C], model="linear2", **options)
    ours, exact = deep_linear.solve(problem), linear2.solve(problem)
    for name in (*HESSIAN, "sharpness"):
        np.testing.assert_allclose(ours[name], exact[name], rtol=1e-8, atol=1e-9, err_msg=name)
        assert (ours.error(name) < 1e-8).all(), name


def test_where_there_is_no_gradient_there_is_no_direction():
    problem = a_problem(0 * Y[:, :1], model="linear2")
    ours, exact = deep_linear.solve(problem), linear2.solve(problem)
    assert np.isnan(ours["directional_sharpness"]).all()
    np.testing.assert_allclose(ours["hessian_eigenvalues"], exact["hessian_eigenvalues"], atol=1e-8)


def test_eigenvalues_that_are_one_count_as_often_as_they_occur():
    """Whitened inputs of one output: but for the target's direction all four are alike."""
    inputs = 2 * np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    problem = replace(a_problem(Y[:, :1], model="linear2", num_steps=0, top_k=4), inputs=inputs)
    ours, exact = deep_linear.solve(problem)["hessian_eigenvalues"], linear2.solve(problem)["hessian_eigenvalues"]
    np.testing.assert_allclose(exact[0, 1:], exact[0, 1], rtol=1e-9)
    np.testing.assert_allclose(ours, exact, rtol=1e-8)


def states(problem, samples=0):
    """(kind, data, the state behind each measured step)"""
    kind, data = dmft._read(problem, samples, 2)
    return kind, data, dmft._run(problem, kind, data, samples, np.random.default_rng(0))


@in_float64
@pytest.mark.parametrize("loss", [pytest.param("mse", marks=pytest.mark.slow), "cross_entropy"])
@pytest.mark.parametrize("model", [{"model": "linear3"}, RESIDUAL | {"activation": "linear"}], ids=["plain", "residual"])
def test_gauss_newton_part_alone_has_the_kernels_eigenvalues(model, loss):
    """Three times each where outputs are alike: at step 0, and of MSE."""
    problem = a_problem(CLASSES, loss=loss, top_k=5, **model)
    exact = dmft.solve(problem, hessian=False)["gauss_newton_eigenvalues"]
    kind, data, run = states(problem)
    for t, state in enumerate(run):
        found = lanczos.spectrum(curvature.Perceptron(kind), data, np.random.default_rng(1), state, 5, 3, lanczos.GAUSS_NEWTON)
        np.testing.assert_allclose(found.values[:5], exact[t], rtol=1e-8, atol=1e-10)


# Products, against automatic differentiation of a small network


N, P, C = 6, 3, 2


def a_network(kind, rng):
    """(data, weights, real matrices (H, N, N)), and the same as fields that met all of N directions, in ``State``."""
    inputs, targets = rng.normal(size=(P, 3)), np.eye(C)[[0, 1, 1]]
    rates, H = np.array([0.7, 1.3, 0.9]), 2
    data = network.Data(inputs, targets, np.ones((1, P)) / P, np.ones(1), 0.0, 0.0, 0.8, np.ones(3), rates,
                        Space(1.0 / N, 1e-10, False))  # fmt: skip
    W, basis = rng.normal(size=(H, N, N)) / np.sqrt(N), np.sqrt(N) * np.eye(N)
    n, m = N + 2 * P, N + 4 * P
    below, sent = (np.zeros((H, n, N)) for _ in range(2))
    below[:, :N], sent[:, :N] = basis, np.swapaxes(W @ basis, 1, 2)
    nothing, none = np.zeros((H, m, N)), np.zeros((H, m, n))
    matrices = GaussianMatrix(below, nothing, sent, nothing, none, none, np.full(H, N), np.zeros(H, int))
    weights = network.Weights(rng.normal(size=(3, N)), np.array(0.9), np.zeros((H, m, n)), rng.normal(size=(C, N)))
    data, weights, matrices = jax.tree.map(jnp.asarray, (data, weights, matrices))
    matrices, h, coordinates = network.forward(kind, data, weights, matrices)
    now = network.seen(kind, data, network.Fields(*(None,) * 8), weights, h, coordinates)
    matrices, now = network.backward(kind, data, now, matrices, jnp.ones((len(kind.rows(data)), C)))
    matrices, now = curvature.Perceptron(kind).linearised(data, now, matrices)
    return data, W, network.State(jnp.zeros((), int), weights, weights, matrices, now)


def loss_of(kind, data, W, weights):
    """L of (first, A, last), written out."""
    first, A, last = weights
    h = data.inputs @ first
    for W_l, A_l in zip(W, A, strict=True):
        h = kind.residual * h + kind.activated(h)[0] @ (0.9 * W_l + A_l).T
    return LOSSES[kind.loss].mean(kind.activated(h)[0] @ last.T / N / data.richness, data.targets)


@in_float64
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(("activation", "residual"), [("tanh", False), ("gelu", True), ("linear", True), ("relu", False)])
def test_products_are_those_of_autodiff_where_matrices_are_real(activation, residual, loss):
    kind, rng = network.Kind(activation, loss, residual, False), np.random.default_rng(2)
    data, W, state = a_network(kind, rng)
    now, (H, m, n) = state.fields, state.fields.weights.trained.shape
    met = np.arange(m)[:, None] < np.asarray(state.matrices.num_above)[:, None, None]
    v = network.Weights(rng.normal(size=(2, 3, N)), np.zeros(2), rng.normal(size=(2, H, m, n)) * (met & (np.arange(n) < N)),
                        rng.normal(size=(2, C, N)))  # fmt: skip
    products = {}
    for parts in (lanczos.HESSIAN, lanczos.GAUSS_NEWTON, lanczos.RESIDUAL):
        matrices, products[parts] = curvature.product(kind, data, now, state.matrices, jax.tree.map(jnp.asarray, v), parts)

    def real(tangent, i):
        A = jnp.einsum("lmn,lms,lnt->lst", tangent.trained[i], matrices.above, matrices.below) / N
        return [tangent.first[i], A, tangent.last[i]]

    gradient, root = jax.grad(partial(loss_of, kind, data, W)), jnp.sqrt(data.rates)
    at, sizes = [now.weights.first, jnp.zeros((H, N, N)), now.weights.last], data.richness**2 * np.array([N, 1, N])
    for i in range(2):
        along = [r * of for r, of in zip(root, real(v, i), strict=True)]
        _, change = jax.jvp(gradient, (at,), (along,))
        expected = [size * r * of for size, r, of in zip(sizes, root, change, strict=True)]
        for ours, theirs in zip(real(products[lanczos.HESSIAN], i), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-10)
        of_parts = [real(products[parts], i) for parts in (lanczos.GAUSS_NEWTON, lanczos.RESIDUAL)]
        for whole, *both in zip(real(products[lanczos.HESSIAN], i), *of_parts, strict=True):
            np.testing.assert_allclose(sum(both), whole, atol=1e-12)


@in_float64
def test_neurons_that_carry_a_tangent():
    """Against all weights of every neuron, written out."""
    rng, S = np.random.default_rng(0), 64
    draw = lambda *shape: rng.normal(size=shape)  # noqa: E731
    first, trained, last, above = draw(3, 5, S), draw(3, 2, 4, 6), draw(3, 2, S), draw(2, 4, S)
    first[1], last[1], trained[2] = 0, 0, 0
    last[2] = first[2] = 0
    last[2, :, 7] = 1
    tangents = network.Weights(first, np.zeros(()), trained, last)
    matrices = GaussianMatrix(*[None] * 8)._replace(above=above)
    neurons = [np.sum(first**2, 1), np.sum(last**2, 1)]
    neurons += [np.sum(np.einsum("kmn,ms->kns", trained[:, h], above[h]) ** 2, 1) for h in range(2)]
    parts = np.concatenate(neurons, 1)
    found = lanczos._carriers(matrices, tangents)
    np.testing.assert_allclose(found, parts.sum(1) ** 2 / (parts**2).sum(1))
    assert found[2] == pytest.approx(1)


@pytest.mark.parametrize(("scale", "known"), [(1.0, False), (0.3, True)])
def test_a_sharpness_that_a_few_neurons_carry_has_no_limit(scale, known):
    """Of large residuals the bulk, which has no edge with tanh, reaches beyond the outliers; of small ones it does not."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(8, 4)), rng.normal(size=(8, 1))
    problem = Problem(inputs, scale * targets, model="resmlp", depth=2, parametrization="depth_mup", learning_rate=0.3,
                      num_steps=8, measure_every=8, top_k=1)  # fmt: skip
    limit = dmft.solve(problem, samples=1024, repeats=4)
    assert np.isfinite(limit.error("hessian_eigenvalues")).all() == known
    why = theories._left_open(theories._row(problem), limit)
    assert why.get("hessian_eigenvalues") == (None if known else f"{IN_BULK} at step 0, 8")
    assert list(pairs.left_open(limit)) == ([] if known else ["hessian_eigenvalues"])
    assert limit["hessian_eigenvalues"].shape == (2, 1)


def test_products_that_overflow_where_outputs_do_not_are_no_numbers():
    rng = np.random.default_rng(0)
    problem = Problem(rng.normal(size=(8, 4)), rng.normal(size=(8, 1)), model="mlp3", activation="relu", learning_rate=30.0,
                      num_steps=14, measure_every=1, top_k=1)  # fmt: skip
    limit = dmft.solve(problem, samples=64, repeats=2)
    assert np.isfinite(limit["hessian_eigenvalues"][:3]).all()
    assert np.isnan(limit["hessian_eigenvalues"][-1]).all()


def test_errors_of_outlying_ritz_values_are_bounds_and_far_below_their_residuals():
    size, steps = 80, 9
    A = np.diag(np.concatenate([[4.0, -3.0], np.linspace(-1, 1, size - 2)]))
    Q = np.linalg.qr(np.stack([np.linalg.matrix_power(A, j) @ np.ones(size) for j in range(steps)], 1))[0]
    values, vectors = np.linalg.eigh(Q.T @ A @ Q)
    residuals = np.linalg.norm(A @ Q @ vectors - Q @ vectors * values, axis=0)
    bounds = lanczos._bounds(values, residuals)
    assert (np.abs(values[[0, -1]] - [-3.0, 4.0]) <= bounds[[0, -1]] + 1e-12).all()
    assert (bounds[[0, -1]] < 0.1 * residuals[[0, -1]]).all()
    nearest = np.abs(values[:, None] - np.diag(A)).min(1)
    assert (nearest <= residuals + 1e-12).all()
    assert (bounds <= residuals).all()
    np.testing.assert_allclose(lanczos._bounds(np.ones(2), np.array([1e-3, 0.0])), [1e-3, 0.0])  # one eigenvalue, twice


# The bulk of linear networks


@pytest.mark.parametrize("steps", [4, 6])
def test_a_network_that_diverges_has_a_bulk_while_it_is_finite(steps):
    """Its layers are so unequal that on which side of the edge one is, is a matter of rounding."""
    inputs, classes = np.random.default_rng(5).normal(size=(3, 3)), np.eye(2)[[0, 1, 1]]
    problem = Problem(inputs, classes, "depth_mup", model="resmlp", depth=3, activation="linear",
                      loss="cross_entropy", learning_rate=0.5, momentum=0.8, richness=4.0, num_steps=steps, measure_every=steps,
                      top_k=2)  # fmt: skip
    limit = dmft.solve(problem)
    assert limit["loss"][-1] > 1e3
    assert np.isfinite(limit["sharpness"]).all()


@pytest.mark.parametrize(("f2", "g1", "rtol"), [(0.7, 0.9, 1e-8), (1e-9, 1e-7, 1e-6), (1e9, 1e7, 2e-4), (1e9, 1e-9, 2e-4)])
def test_edge_of_two_layers_of_neurons_in_closed_form(f2, g1, rtol):
    """One random matrix, whose singular values reach 2; also of the unequal layers of a network that diverges."""
    f1, g2 = 1.3, 0.4
    found = bulk_edge(np.array([f1, f2]).reshape(2, 1, 1), np.array([g1, g2]).reshape(2, 1, 1), 0.0, 1.0)
    exact = np.linalg.norm([[np.sqrt(f1 * g1), 0], [2 * np.sqrt(f1 * g2), np.sqrt(f2 * g2)]], 2)
    assert found == pytest.approx(exact, rel=rtol)


@pytest.mark.parametrize(("layers", "C", "passed", "variance"), [(3, 1, 0.0, 1.0), (3, 2, 1.0, 0.5)])
def test_edge_is_the_norm_of_products_of_large_random_matrices(layers, C, passed, variance):
    rng, size = np.random.default_rng(3), 240
    roots = rng.normal(size=(2, layers, C, C))
    found = bulk_edge(*(root @ np.swapaxes(root, 1, 2) for root in roots), passed, variance)
    E = passed * np.eye(size) + np.sqrt(variance / size) * rng.normal(size=(layers - 1, size, size))
    B = np.zeros((layers, C * size, layers, C * size))
    for i in range(layers):
        product = np.eye(size)
        for m in range(i, layers):
            product = E[m - 1] @ product if m > i else product
            B[m, :, i] = np.kron(roots[1, m].T @ roots[0, i], product)
    assert np.linalg.norm(B.reshape(layers * C * size, -1), 2) == pytest.approx(found, rel=2 * size ** (-2 / 3))


# Sampled networks


@pytest.mark.parametrize(("activation", "scale"), [
    ("tanh", 0.3), ("relu", 0.3), pytest.param("gelu", 0.1, marks=pytest.mark.slow)])  # fmt: skip
def test_one_hidden_layer_is_the_secular_equation_of_particles(activation, scale):
    """Targets small enough for the top eigenvalues to lie above the bulk of a cloud, which has no edge with tanh or gelu."""
    problem = a_problem(scale * Y[:, :2], model="mlp2", activation=activation, num_steps=4, measure_every=4, top_k=2)
    ours, exact = dmft.solve(problem, samples=2048, repeats=4), meanfield.solve(problem)
    for name in ("hessian_eigenvalues", "directional_sharpness"):
        error = np.hypot(ours.error(name), exact.error(name))
        assert np.isfinite(error).all()
        assert (np.abs(ours[name] - exact[name]) < 3 * error).all(), (name, ours[name], exact[name], error)
    assert (ours.error("sharpness") < 0.05 * ours["sharpness"]).all()


# Networks


@pytest.mark.slow
@pytest.mark.parametrize("model", [
    pytest.param({"model": "linear3"}, id="plain"),
    pytest.param(RESIDUAL | {"activation": "linear"}, id="residual", marks=pytest.mark.long)])  # fmt: skip
def test_trained_networks_are_about_the_limit(model):
    """Mean over seeds, of eigenvalues at both ends; a bulk falls short of its edge by about N^(-2/3)."""
    problem, width, seeds = a_problem(Y[:, :1], learning_rate=0.2, **model), 256, 12
    limit, keys = dmft.solve(problem), jax.random.split(jax.random.key(0), seeds)
    networks = train(problem, build(problem, width), keys, observables=HESSIAN)
    for name in HESSIAN:
        of = np.stack([network[name] for network in networks])
        within = 3 * of.std(0, ddof=1) / np.sqrt(seeds) + 2 * np.abs(limit[name]) * width ** (-2 / 3)
        assert (np.abs(of.mean(0) - limit[name]) < within).all(), (name, of.mean(0), limit[name], within)
