"""The kernel limit: against the two-layer linear one, wide networks' own kernels, sampled f(0), and trained networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comparisons.power_law import fit
from finite import curvature
from finite.networks.mlp import mlp
from finite.train import train
from limits import Problem, linear2, minibatches, ntk
from limits.parametrization import interpolated
from limits.precision import computing

EVERYTHING = {"momentum": 0.4, "batches": minibatches(np.random.default_rng(2), 6, 2, 12)}


def a_problem(P=6, D=4, C=2, **options):
    rng = np.random.default_rng(0)
    usual = {"parametrization": "ntp", "learning_rate": 0.4, "num_steps": 12, "measure_every": 3, "richness": 0.8, "top_k": 3}
    return Problem(rng.normal(size=(P, D)), rng.normal(size=(P, C)), **usual | options)


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"P": 3}], ids=["plain", "momentum, minibatches", "few samples"])
def test_one_linear_hidden_layer_is_linear2(options):
    """Every observable, from an f(0) that is linear in the inputs; and the law of the loss."""
    problem = a_problem(**options)
    outputs = problem.inputs @ np.random.default_rng(1).normal(size=(4, 2))
    kernel = ntk.solve(problem, depth=1, activation="linear", initial_outputs=outputs)
    exact = linear2.solve(problem, initial_outputs=outputs)
    assert set(kernel) == set(exact)
    for name in exact:
        np.testing.assert_allclose(kernel[name], exact[name], rtol=1e-9, atol=1e-9, err_msg=name)
    for ours, theirs in zip(ntk.loss_law(problem, depth=1, activation="linear"), linear2.loss_law(problem), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "tanh", "erf", "gelu"])
def test_kernels_are_those_of_wide_networks(activation):
    """K from many narrow-output draws of f(0), Θ from one wide network's own Jacobian."""
    problem = a_problem(P=4, D=3, C=1, richness=1.0)
    nngp, theta = ntk.kernels(problem, depth=2, activation=activation)
    network = mlp(problem, 2048, 2, activation)
    x = jnp.float32(problem.inputs)
    empirical = [4 * curvature.dense_ntk(network, network.init(key), x) for key in jax.random.split(jax.random.key(0), 4)]
    np.testing.assert_allclose(np.mean(empirical, axis=0), theta, rtol=0.05, atol=0.02 * theta.max())
    narrow = mlp(problem, 256, 2, activation)
    drawn = jax.lax.map(lambda key: narrow.apply(narrow.init(key), x)[:, 0], jax.random.split(jax.random.key(1), 4000))
    np.testing.assert_allclose(np.cov(drawn.T), nngp, rtol=0.1, atol=0.04 * nngp.max())


def test_law_of_the_loss_is_that_of_sampled_outputs():
    problem = a_problem(C=2, **EVERYTHING)
    nngp, _ = ntk.kernels(problem, depth=2, activation="relu")
    root = np.linalg.cholesky(nngp) / problem.richness
    rng = np.random.default_rng(3)
    losses = [ntk.solve(problem, depth=2, activation="relu", initial_outputs=root @ rng.normal(size=(6, 2)))["loss"]
              for _ in range(1000)]  # fmt: skip
    mean, std = ntk.loss_law(problem, depth=2, activation="relu")
    np.testing.assert_allclose(np.mean(losses, axis=0), mean, atol=5 * std.max() / np.sqrt(1000))
    np.testing.assert_allclose(np.std(losses, axis=0), std, rtol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_networks_approach_the_limit_that_has_their_outputs(activation):
    """Loss and sharpness of trained networks of two hidden layers: the distance falls as N^{-1/2}."""
    problem = a_problem(C=1, richness=1.0, momentum=0.3, num_steps=6, measure_every=6, top_k=1)
    widths, distances = (64, 128, 256, 512, 1024), {"loss": [], "sharpness": []}
    for width in widths:
        network, keys = mlp(problem, width, 2, activation), jax.random.split(jax.random.key(width), 48)
        trained = train(problem, network, keys, observables=("loss", "hessian_eigenvalues"), rtol=1e-4)
        for name, errors in distances.items():
            errors.append([])
            for key, trajectory in zip(keys, trained, strict=True):
                outputs = np.float64(network.apply(network.init(key), jnp.float32(problem.inputs)))
                limit = ntk.solve(problem, depth=2, activation=activation, initial_outputs=outputs)
                errors[-1].append(trajectory[name][-1] - limit[name][-1])
    for name, errors in distances.items():
        law = fit(widths, np.array(errors))
        assert law.interval[0] <= -0.5 <= law.interval[1], (name, law)
        assert law.interval[1] < -0.25


def test_between_ntp_and_mup_the_outputs_vanish():
    problem = a_problem(parametrization=interpolated(0.25))
    np.testing.assert_allclose(ntk.solve(problem, depth=1, activation="linear")["loss"], linear2.solve(problem)["loss"])
    with pytest.raises(ValueError, match=r"f\(0\) = 0; it can be given in NTP only"):
        ntk.solve(problem, depth=1, activation="linear", initial_outputs=problem.targets)
    with pytest.raises(ValueError, match="its loss has no spread"):
        ntk.loss_law(problem, depth=1, activation="linear")


def test_divergence_is_data():
    trajectory = ntk.solve(a_problem(learning_rate=1e30), depth=2, activation="relu")
    assert trajectory.diverged.tolist() == [False, False, True, True, True]
    assert np.isnan(trajectory["sharpness"][2:]).all()


def test_a_random_trace_is_left_out():
    """φ'' ≠ 0 leaves tr R of order one and random, so only piecewise linear networks have a limit of it."""
    problem = a_problem(num_steps=0)
    assert "hessian_trace" not in ntk.solve(problem, depth=1, activation="tanh")
    with computing("float64"):
        assert "hessian_trace" in ntk.solve(problem, depth=1, activation="relu")


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"parametrization": "mup"}, {}, "mup has no kernel limit: features move"),
        ({"parametrization": "sp"}, {}, "no limit is known for it"),
        ({"weight_decay": 0.1}, {}, "weight decay shrinks the kernel"),
        ({}, {"activation": "sine"}, "no kernel limit for activation 'sine'; known: linear"),
        ({}, {"depth": 0}, "depth 0 must be at least 1"),
        ({}, {"initial_outputs": np.zeros((2, 2))}, r"initial outputs of shape \(2, 2\): wanted \(6, 2\)"),
    ],
)
def test_refusals(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        ntk.solve(a_problem(**options), **{"depth": 1, "activation": "relu"} | arguments)
