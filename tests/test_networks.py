"""The perceptrons, plain and residual, against a plain NumPy forward pass, and their scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from written_out import NUMPY_ACTIVATIONS, forward, in_numpy

from finite import networks
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from limits.activations import ACTIVATIONS
from limits.exponents.parametrization import scaling
from limits.machine import computing
from limits.problem import Problem

ROLES = ("input", "hidden", "block_inner", "block", "readout")


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


@pytest.mark.parametrize(("parametrization", "alpha"), [("depth_mup", 0.5), ("alpha1", 1.0), ("mup", 0.0)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_apply_is_the_residual_forward_pass_written_out(block_size, activation, parametrization, alpha):
    problem, width, depth = a_problem(richness=0.7, parametrization=parametrization), 6, 3
    network, phi = resmlp(problem, width, depth, activation, block_size), NUMPY_ACTIVATIONS[activation]
    params = in_numpy(network.init(jax.random.key(1)))
    h = problem.inputs @ params["input"] / np.sqrt(3)
    for block in range(depth):
        y = h
        for inner in range(block_size - 1):
            y = phi(y) @ params["block_inner"][block, inner] / np.sqrt(width)
        h = h + phi(y) @ params["block"][block] / (np.sqrt(width) * depth**alpha)
    expected = phi(h) @ params["readout"] / (0.7 * width)
    with computing("float64"):
        outputs = network.apply(in_float64(params), jnp.asarray(problem.inputs))
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("build", "activation"),
    [
        (lambda problem: mlp(problem, 6, 1, "tanh"), "tanh"),
        (lambda problem: mlp(problem, 6, 4, "relu"), "relu"),
        (lambda problem: resmlp(problem, 6, 3, "relu", block_size=1), "relu"),
        (lambda problem: resmlp(problem, 6, 2, "tanh", block_size=3), "tanh"),
    ],
    ids=["mlp 1", "mlp 4", "resmlp 1", "resmlp 3"],
)
def test_signals_and_matrices_are_those_of_the_pass_written_out(build, activation):
    """Of acting weights: without any multiplier but 1/√D.  Of many blocks, the last."""
    problem = a_problem()
    network = build(problem)
    params, phi = in_numpy(network.init(jax.random.key(2))), NUMPY_ACTIVATIONS[activation]
    expected = {name: signal for name, *signal in forward(params, dict.fromkeys(ROLES, 1.0), problem.inputs, phi)}
    with computing("float64"):
        got = network.architecture.signals(in_float64(params), jnp.asarray(problem.inputs))
        matrices = network.architecture.matrices(in_float64(params))
    assert list(got) == list(expected)
    assert list(matrices) == [name for name in expected if name != "stream"]
    for name, (arriving, output) in expected.items():
        np.testing.assert_allclose(got[name].output, output, rtol=1e-12, atol=1e-12, err_msg=name)
        if name == "stream":
            assert got[name].arriving is None
            continue
        np.testing.assert_allclose(got[name].arriving, arriving, rtol=1e-12, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(arriving @ np.asarray(matrices[name]), output, rtol=1e-12, atol=1e-12, err_msg=name)


def test_roles_and_shapes():
    params = mlp(a_problem(), 4, depth=3).init(jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes == {"input": (3, 4), "hidden": ((4, 4), (4, 4)), "readout": (4, 2)}
    assert mlp(a_problem(), 4).init(jax.random.key(0))["hidden"] == ()


def test_residual_roles_and_shapes():
    problem, shapes = a_problem(parametrization="depth_mup"), {}
    for block_size in (1, 2, 3):
        network = resmlp(problem, 4, depth=5, block_size=block_size)
        shapes[block_size] = {role: leaf.shape for role, leaf in network.init(jax.random.key(0)).items()}
        assert set(network.factors) == set(shapes[block_size])
    ends = {"input": (3, 4), "readout": (4, 2)}
    assert shapes[1] == {**ends, "block": (5, 4, 4)}
    assert shapes[2] == {**ends, "block": (5, 4, 4), "block_inner": (5, 1, 4, 4)}
    assert shapes[3] == {**ends, "block": (5, 4, 4), "block_inner": (5, 2, 4, 4)}


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


def test_draws_are_those_of_jax_matrix_by_matrix():
    """Bit for bit, smaller and larger than a row, traced and not; the stored weights times their standard deviation."""
    one, other = jax.random.split(jax.random.key(5))
    for shape in ((1,), (7, 3), (networks.ROW,), (2, networks.ROW // 2 + 3, 2)):
        expected = jax.random.normal(one, shape, jnp.float32)
        np.testing.assert_array_equal(networks.normal(one, shape), expected)
        np.testing.assert_array_equal(jax.vmap(lambda k: networks.normal(k, shape))(jnp.stack([other, one]))[1], expected)  # noqa: B023
    network = mlp(a_problem(num_inputs=40), 1000, depth=2)
    drawn, std = network.init(one), network.numbers("init_std")
    leaves = {"input": drawn["input"], "hidden": drawn["hidden"][0], "readout": drawn["readout"]}
    for key, (role, leaf) in zip(jax.random.split(one, 3), leaves.items(), strict=True):
        np.testing.assert_array_equal(leaf, std[role] * jax.random.normal(key, leaf.shape, jnp.float32))


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "width 0 must be at least 1"),
        ((4, 0), "depth 0 must be at least 1"),
        ((4, 2, "relu", 0), "block size 0 must be at least 1"),
        ((4, 2, "sine"), "unknown activation 'sine'; known: linear"),
    ],
)
def test_refuses_residual(arguments, message):
    with pytest.raises(ValueError, match=message):
        resmlp(a_problem(parametrization="depth_mup"), *arguments)


def test_refuses_exponents_of_the_other_architecture():
    with pytest.raises(ValueError, match="the exponents of mup are for a plain network, not a residual one"):
        resmlp(a_problem(parametrization=scaling("mup")), 4, 2)
    with pytest.raises(ValueError, match="the exponents of mup are for a residual network, not a plain one"):
        mlp(a_problem(parametrization=scaling("mup", architecture="residual")), 4, 2)
    with pytest.raises(ValueError, match="depth_mup is about residual blocks"):
        mlp(a_problem(parametrization="depth_mup"), 4, 2)
