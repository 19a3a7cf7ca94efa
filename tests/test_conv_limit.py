"""SimpleConvNet at N = ∞: real matrices in its place, dense networks, the kernel limit, and trained networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comparisons.power_law import fit
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, minibatches
from limits.deep import conv, dmft, network
from limits.deep.gaussian_matrix import unmet
from limits.exponents.parametrization import interpolated
from limits.kernel import ntk
from limits.losses import LOSSES
from limits.machine import in_float64

RNG = np.random.default_rng(0)
TWO_PLACES = (20, 10, 1)  # 5 × 2 pixels before the second convolution, 2 × 1 behind it: patches of 3 × 2
X, Y = RNG.normal(size=(3, 200)), RNG.normal(size=(3, 2))
CLASSES = np.eye(2)[[0, 1, 1]]
OPTIMISER = {"momentum": 0.5, "weight_decay": 0.1, "batches": minibatches(np.random.default_rng(1), 3, 2, 4)}


def a_problem(inputs=X, targets=Y, param="mup", **options):
    usual = {"model": "conv", "image_shape": TWO_PLACES, "learning_rate": 0.3, "num_steps": 4, "measure_every": 2}
    return Problem(inputs, targets, param, **usual | options)


# A matrix that has met everything is a real one


def in_place_of_infinite(problem, params, N):
    """(kind, data, state before step 0) whose neurons are those of a network of width N, and whose matrix is its kernel."""
    kind, data = conv._read(problem, 4, 2)
    data = data._replace(space=data.space._replace(weight=1.0 / N))
    (Y, K, Z), (P, C) = kind.counts, problem.targets.shape
    # of the 3 × 3 pixels those at the right are beyond the border, or those at the left, wherever the kernel is
    hidden = params["hidden"].reshape(3, 3, N, N)[:, conv._taps(2, 4)].reshape(K * N, N)
    rooms = np.random.default_rng(1).normal(size=(P * Y, K * N))
    matrix = unmet(jnp.concatenate([hidden, rooms[:, :N]]), jnp.concatenate([hidden.T, rooms]))
    below, above = (np.sqrt(N) * jnp.eye(n + P * Y, n) for n in (K * N, N))
    matrix = matrix._replace(below=below, above=above, num_below=jnp.asarray(K * N), num_above=jnp.asarray(N))
    last = params["readout"].T.reshape(C, Z * N)
    state = conv.begin(kind, data, params["input"], matrix.sent, matrix.returned, last)
    return kind, data, jax.tree.map(jnp.copy, state._replace(matrix=matrix))


def dense_ntk(net, params, inputs):
    """Of a network, by automatic differentiation."""
    jacobian, rates = jax.jit(jax.jacobian(net.apply))(params, inputs), net.numbers("learning_rate")
    return sum(rates[role] * jnp.tensordot(J, J, [tuple(range(2, J.ndim))] * 2) for role, J in jacobian.items())


@pytest.mark.parametrize(
    "options",
    [OPTIMISER, {"pooling": "average", "loss": "cross_entropy", "targets": CLASSES}],
    ids=["max", "average"],
)
@in_float64
def test_a_network_in_place_of_the_infinite_one_trains_as_it_does(options):
    N, problem = 6, a_problem(richness=0.7, **options)
    net = build(problem, N)
    params = jax.tree.map(lambda of: of.astype(float), net.init(jax.random.key(0)))
    kind, data, state = in_place_of_infinite(problem, params, N)
    state = conv.advance(kind, data, state, 1)
    # the limit starts at f = 0: so does the network
    params["readout"] = state.now.weights.last.reshape(2, -1).T
    inputs, targets = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
    rates, velocity = net.numbers("learning_rate"), jax.tree.map(jnp.zeros_like, params)
    gradients = jax.jit(jax.grad(lambda params, x, y: LOSSES[problem.loss].mean(net.apply(params, x), y)))
    for t in range(problem.num_steps):
        rows = np.arange(3) if problem.batches is None else problem.batches[t]
        theta = conv.ntk(kind, data, state.matrix, state.now, *conv.more_draws(kind, RNG, 0, 6 * kind.counts[0], N))
        np.testing.assert_allclose(state.now.outputs, net.apply(params, inputs), atol=1e-10)
        np.testing.assert_allclose(theta, dense_ntk(net, params, inputs), atol=1e-10)
        gradient = gradients(params, inputs[rows], targets[rows])
        for role in params:
            step = rates[role] * gradient[role] + problem.weight_decay * params[role]
            velocity[role] = problem.momentum * velocity[role] + step
            params[role] = params[role] - problem.learning_rate * velocity[role]
        state = conv.advance(kind, data, state, t + 2)
    assert np.abs(state.now.outputs).max() > 0.05


# Other limits


@in_float64
def test_one_pixel_is_a_perceptron():
    """Of images of one pixel only the middle of a kernel is left, over 3: mlp3, step by step with the same Gaussians."""
    problem = a_problem(9 * X[:, :2], np.abs(Y[:, :1]) + 1, image_shape=(1, 1, 2), learning_rate=1.0)
    kind, data = conv._read(problem, 512, 2)
    first, *in_store, last = conv.first_draws(kind, np.random.default_rng(0), (2, 3, 1, 32, 32), 512)
    ours = conv.begin(kind, data, first, *in_store, last)
    perceptron = network.Kind("relu", "mse", False, False)
    data_of_it = data._replace(scales=data.scales / np.array([1, 3, 1]), rates=data.rates / np.array([1, 9, 1]))
    theirs = network.begin(perceptron, data_of_it, first, *(of[None] for of in in_store), last)
    ours, theirs = conv.advance(kind, data, ours, 5), network.advance(perceptron, data_of_it, theirs, 5)
    assert int(ours.step) == int(theirs.step) == 5
    np.testing.assert_allclose(ours.now.outputs, theirs.now.outputs, rtol=1e-9)
    assert np.abs(ours.now.outputs).min() > 0.01
    theta = conv.ntk(kind, data, ours.matrix, ours.now, *conv.more_draws(kind, RNG, 0, 3, 512))
    np.testing.assert_allclose(theta, dmft._ntk(perceptron, data_of_it, theirs.now), rtol=1e-8)


def test_little_richness_is_the_kernel_limit():
    """Of average pooling, which has an analytic kernel."""
    problem = a_problem(richness=0.01, pooling="average")
    lazy = ntk.solve(replace(problem, parametrization=interpolated(0.25)))
    limit = conv.solve(problem, samples=1024)
    for name in ("loss", "ntk_eigenvalues"):
        assert (np.abs(limit[name] - lazy[name]) < 3 * limit.error(name) + 1e-4).all(), name
        assert limit.error(name).max() < 0.03 * lazy[name].max()
    assert np.ptp(lazy["loss"]) > 10 * limit.error("loss").max()


# Networks


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.5, "batches": OPTIMISER["batches"]}, {"pooling": "average", "targets": CLASSES, "loss": "cross_entropy"}],
    ids=["max", "average"],
)
def test_networks_approach_the_limit(options):
    """Loss and largest NTK eigenvalue: the distance falls as N^{-1/2}."""
    problem = a_problem(**{"num_steps": 4, "measure_every": 4, "top_k": 1, "learning_rate": 0.6} | options)
    limit, names = conv.solve(problem), ("loss", "ntk_eigenvalues")
    widths, distances = (32, 64, 128, 256, 512), {name: [] for name in names}
    for width in widths:
        networks = train(problem, build(problem, width), jax.random.split(jax.random.key(width), 24), observables=names)
        for name in names:
            distances[name].append([np.ravel(one[name] - limit[name])[-1] for one in networks])
    for name, errors in distances.items():
        error = float(np.ravel(limit.error(name))[-1])
        law = fit(widths, np.array(errors), noise_floor=error)
        assert law.interval[0] <= -0.5 <= law.interval[1], (name, law)
        assert law.interval[1] < -0.2  # a wrong limit would leave a distance that does not fall
        assert abs(np.mean(errors[-1])) < 3 * np.hypot(np.std(errors[-1]) / np.sqrt(24), error)
