"""The perceptron against a plain NumPy forward pass, and its scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from finite.networks.mlp import ACTIVATIONS, mlp
from limits.precision import computing
from limits.problem import Problem

NUMPY_ACTIVATIONS = {
    "linear": lambda h: h,
    "relu": lambda h: np.maximum(h, 0),
    "tanh": np.tanh,
    "erf": scipy.special.erf,
    "gelu": lambda h: h * scipy.special.ndtr(h),
}


def a_problem(num_samples=5, num_inputs=3, num_outputs=2, **changes):
    rng = np.random.default_rng(0)
    return Problem(rng.normal(size=(num_samples, num_inputs)), rng.normal(size=(num_samples, num_outputs)), **changes)


def in_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


@pytest.mark.parametrize("parametrization", ["mup", "ntp"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_apply_is_the_forward_pass_written_out(depth, activation, parametrization):
    problem, width = a_problem(richness=0.7, parametrization=parametrization), 6
    network = mlp(problem, width, depth, activation)
    gamma = 0.7 * {"mup": np.sqrt(width), "ntp": 1.0}[parametrization]
    params, phi = network.init(jax.random.key(1)), NUMPY_ACTIVATIONS[activation]
    h = problem.inputs @ np.float64(params["input"]) / np.sqrt(3)
    for weights in params["hidden"]:
        h = phi(h) @ np.float64(weights) / np.sqrt(width)
    expected = phi(h) @ np.float64(params["readout"]) / (gamma * np.sqrt(width))
    with computing("float64"):
        outputs = network.apply(in_float64(params), jnp.asarray(problem.inputs))
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-13)


def test_roles_and_shapes():
    params = mlp(a_problem(), 4, depth=3).init(jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes == {"input": (3, 4), "hidden": ((4, 4), (4, 4)), "readout": (4, 2)}
    assert mlp(a_problem(), 4).init(jax.random.key(0))["hidden"] == ()


def test_weights_are_standard_normal_and_independent():
    params = mlp(a_problem(num_inputs=400), 400, depth=2).init(jax.random.key(0))
    drawn = np.stack([params["input"].ravel(), params["hidden"][0].ravel()])
    tolerance = 5 / np.sqrt(drawn.shape[1])
    np.testing.assert_allclose(np.cov(drawn), np.eye(2), atol=tolerance * np.sqrt(2))
    np.testing.assert_allclose(drawn.mean(axis=1), 0, atol=tolerance)
    np.testing.assert_allclose(np.mean(drawn**4, axis=1), 3, atol=tolerance * np.sqrt(96))


@pytest.mark.parametrize(("parametrization", "exponent"), [("ntp", 0.0), ("mup", -0.5)])
def test_initial_output_shrinks_with_its_exponent(parametrization, exponent):
    """Over seeds, std f(0) = |x| N^{-a}/(γ0 √D) for the two-layer linear network."""
    problem = a_problem(num_samples=1, num_outputs=1, richness=2.0, parametrization=parametrization)
    keys = jax.random.split(jax.random.key(0), 1000)
    for width in (16, 64):
        network = mlp(problem, width)
        outputs = jax.vmap(lambda key, n=network: n.apply(n.init(key), jnp.float32(problem.inputs)))(keys)
        expected = np.linalg.norm(problem.inputs) * width**exponent / (2 * np.sqrt(3))
        assert np.std(outputs) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_one_key_is_one_network_at_every_precision(name):
    network = mlp(a_problem(), 8, depth=2)
    outside = network.init(jax.random.key(3))
    with computing(name):
        inside = network.init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, outside, inside)


def test_precision_is_a_scope():
    before = jnp.ones(1).dtype
    for name in ("float64", "float32"):
        with computing(name):
            assert jnp.ones(1).dtype == name
    assert jnp.ones(1).dtype == before
    with pytest.raises(ValueError, match="unknown precision 'half'"), computing("half"):
        pass


def test_same_arguments_same_network():
    """Compiled functions are keyed on it: a change of learning rate or parametrization must not build another one."""
    one, other = mlp(a_problem(learning_rate=0.1), 8), mlp(a_problem(parametrization="ntp", richness=2.0), 8)
    assert one.architecture is other.architecture
    assert one.architecture is not mlp(a_problem(), 9).architecture


@pytest.mark.parametrize(("activation", "expected"), [("linear", True), ("relu", True), ("tanh", False)])
def test_layerwise_linear(activation, expected):
    assert mlp(a_problem(), 4, activation=activation).layerwise_linear is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "at least 1"), ((4, 0), "at least 1"), ((4, 1, "sine"), "unknown activation 'sine'; known: linear")],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp(a_problem(), *arguments)
