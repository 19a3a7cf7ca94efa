"""The kernels of infinite networks: closed forms, wide networks' own kernels, and numerical integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from finite.networks.build import build
from finite.training.train import train
from limits import Problem
from limits.exponents.parametrization import Factors, factors, scaling
from limits.kernel import analytic as kernels
from limits.kernel import neural_tangents_compat, ntk, tanh
from limits.kernel.analytic import Activation, AveragePool, Block, Conv, Dense, Flatten, Image, layers
from limits.machine import computing
from limits.models import Model

ENDS = "base=ntp, input.learning_rate.L=-1/2, readout.multiplier.L=-1/4, "
POWERS_OF_DEPTH = {
    "mlp": ENDS + "hidden.multiplier.L=1/8, hidden.learning_rate.L=-1",
    "resmlp": ENDS + "block.multiplier.L=-1/2, block.learning_rate.L=1, block_inner.learning_rate.L=2",
}


def a_problem(P=4, D=3, **options):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(P, D)), rng.normal(size=(P, 1))
    return Problem(inputs, targets, **{"parametrization": "ntp", "model": "resmlp", "depth": 2, "num_steps": 0} | options)


def of_roles(**numbers):
    """role=(multiplier, learning rate)"""
    return {role: Factors(m, 1.0, r, 1.0, 1.0, 1.0, 2) for role, (m, r) in numbers.items()}


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_linear_residual_kernels_in_closed_form(depth, block_size):
    """Every matrix W has the kernel r · K · (all multipliers squared, on all paths through W), K = XXᵀ/D."""
    problem = a_problem(depth=depth, block_size=block_size, activation="linear", parametrization=POWERS_OF_DEPTH["resmlp"])
    gram = problem.inputs @ problem.inputs.T / 3
    branch, readout = depth**-1.0, depth**-0.5  # multipliers squared
    stream = (1 + branch) ** depth
    inner = (block_size - 1) * depth**2.0 + depth  # the learning rates of a block's matrices
    expected = readout * (depth**-0.5 * stream + depth * branch * inner * stream / (1 + branch) + stream)
    nngp, theta = ntk.kernels(problem)
    np.testing.assert_allclose(nngp, readout * stream * gram, rtol=1e-13)
    np.testing.assert_allclose(theta, expected * gram, rtol=1e-13)


@pytest.mark.parametrize("depth", [2, 4])
def test_linear_plain_kernels_in_closed_form(depth):
    problem = a_problem(model="mlp", depth=depth, activation="linear", parametrization=POWERS_OF_DEPTH["mlp"])
    gram, hidden = problem.inputs @ problem.inputs.T / 3, depth**0.25
    both = depth**-0.5 * hidden ** (depth - 1)
    nngp, theta = ntk.kernels(problem)
    np.testing.assert_allclose(nngp, both * gram, rtol=1e-13)
    np.testing.assert_allclose(theta, both * (depth**-0.5 + (depth - 1) / depth + 1) * gram, rtol=1e-13)


@pytest.mark.parametrize(
    ("model", "activation"),
    [*(pytest.param(*case, marks=pytest.mark.slow) for case in (("mlp", "erf"), ("mlp", "gelu"), ("resmlp", "relu"))),
     pytest.param("resmlp", "tanh", marks=pytest.mark.long)],
)
def test_kernels_are_those_of_wide_networks(model, activation):
    """The eigenvalues of Θ from networks' own, with each role's learning rate; K from many draws of f(0)."""
    problem = a_problem(model=model, activation=activation, block_size=2, parametrization=POWERS_OF_DEPTH[model])
    nngp, theta = ntk.kernels(problem)
    network, expected = build(problem, 128), np.linalg.eigvalsh(theta / 4)[::-1][:3]
    trained = train(problem, network, jax.random.split(jax.random.key(0), 32), observables=("ntk_eigenvalues",))
    measured = np.array([one["ntk_eigenvalues"][0] for one in trained])
    error = measured.std(axis=0) / np.sqrt(32)
    assert (np.abs(measured.mean(axis=0) - expected) < 4 * error + 0.01 * expected).all()
    assert (error < 0.05 * expected).all()
    network, keys, x = build(problem, 48), jax.random.split(jax.random.key(1), 4000), jnp.float32(problem.inputs)
    drawn = jax.lax.map(lambda key: network.apply(network.init(key), x)[:, 0], keys)
    np.testing.assert_allclose(np.cov(drawn.T), nngp, rtol=0.1, atol=0.04 * nngp.max())


def integral(f, covariance, variance_1, variance_2):
    """E f(u) f(v), by the trapezoid rule over two independent normal variables."""
    z, step = np.linspace(-12, 12, 801, retstep=True)
    weights = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * step
    slope = covariance / np.sqrt(variance_1)
    v = slope * z[:, None] + np.sqrt(max(variance_2 - slope**2, 0)) * z
    return (weights * f(np.sqrt(variance_1) * z)) @ f(v) @ weights


@pytest.mark.parametrize("variances", [(0.01, 0.02), (1.0, 1.0), (1.0, 4.0), (0.3, 30.0), (30.0, 30.0)])
@pytest.mark.parametrize("correlation", [-1.0, -0.5, 0.0, 0.9, 1.0])
def test_tanh_against_integrals(correlation, variances):
    covariance = correlation * np.sqrt(np.prod(variances))
    with computing("float64"):
        kernel = tanh.kernel(covariance, *map(jnp.float64, variances))
        derivative = tanh.derivative_kernel(covariance, *map(jnp.float64, variances))
    np.testing.assert_allclose(kernel, integral(np.tanh, covariance, *variances), rtol=0, atol=1e-9)
    expected = integral(lambda x: 1 / np.cosh(x) ** 2, covariance, *variances)
    np.testing.assert_allclose(derivative, expected, rtol=2e-9, atol=0)


def test_tanh_is_a_sum_of_erfs():
    x, (s, w) = np.linspace(-40, 40, 20001)[:, None], tanh.as_erfs()
    np.testing.assert_allclose(scipy.special.erf(s * x) @ w, np.tanh(x[:, 0]), rtol=0, atol=6e-11)
    derivative = 2 / np.sqrt(np.pi) * np.exp(-((s * x) ** 2)) @ (s * w)
    np.testing.assert_allclose(derivative, 1 / np.cosh(x[:, 0]) ** 2, rtol=0, atol=2e-10)


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "erf", "gelu"])
def test_kernels_are_positive_semidefinite_and_finite(activation):
    """Of samples that are nearly or exactly the same, opposite, or zero."""
    x = np.random.default_rng(0).normal(size=(10, 5))
    inputs = np.concatenate([x, x, x + 1e-9, -x, 0 * x[:1], 30 * x])
    found = ntk.kernels(Problem(inputs, inputs[:, :1], "ntp", model="resmlp", depth=8, activation=activation))
    for kernel in found:
        np.testing.assert_array_equal(kernel, kernel.T)
        values = np.linalg.eigvalsh(kernel)
        assert values[0] >= -1e-9 * values[-1]


def test_blocks_of_samples_make_the_same_kernels(monkeypatch):
    problem = a_problem(P=7, activation="gelu")
    whole = ntk.kernels(problem)
    for numbers in (1, 9):
        monkeypatch.setattr(kernels, "BLOCK_NUMBERS", numbers)
        np.testing.assert_allclose(ntk.kernels(problem), whole, rtol=1e-12)


def test_too_many_samples_are_refused_before_anything_is_computed():
    with pytest.raises(MemoryError, match=r"this limit needs about 59604\.\d GiB, more than the .* GiB there are"):
        kernels.kernels(layers(Model("plain", 2, "tanh")), np.zeros((10**6, 1)), factors(scaling("ntp"), 1, 2))


# convolutions -------------------------------------------------------------------------------------------------------

ROLES = {"input": (0.8, 0.5), "hidden": (1.1, 1.0), "block_inner": (1.1, 0.7), "block": (0.6, 2.0), "readout": (1.3, 1.0)}


def convolve(x, W, multiplier, stride=1):
    """Channels last; 1/√fan-in in front, zeros around; of an odd number of them one more behind.  (XLA's own is slow here.)"""
    size, taps = -(-x.shape[1] // stride), range(len(W))
    around = max((size - 1) * stride + len(W) - x.shape[1], 0)
    sides = around // 2, around - around // 2
    x, reach = jnp.pad(x, ((0, 0), sides, sides, (0, 0))), (size - 1) * stride + 1
    shifted = [x[:, i : i + reach : stride, j : j + reach : stride] @ W[i, j] for i in taps for j in taps]
    return multiplier / np.sqrt(np.prod(W.shape[:3])) * sum(shifted)


def pool(x):
    P, rows, columns, N = x.shape
    return x.reshape(P, rows // 2, 2, columns // 2, 2, N).mean((2, 4))


def read_out(x, W):
    x = x.reshape(len(x), -1)
    return ROLES["readout"][0] * (x @ W[:, 0]) / np.sqrt(x.shape[1])


def staged(params, x):
    """Three stages of one residual block of two convolutions."""
    h = convolve(x, params["input"], ROLES["input"][0], 2)
    for U, W in zip(params["block_inner"], params["block"], strict=True):
        y = convolve(jax.nn.relu(h), U, np.sqrt(2) * ROLES["block_inner"][0])
        h = pool(h + convolve(jax.nn.relu(y), W, np.sqrt(2) * ROLES["block"][0]))
    return read_out(jax.nn.relu(h), params["readout"])


@pytest.mark.long
def test_convolutional_kernels_are_those_of_wide_networks():
    """On average over many networks of 64 channels, whose own kernels differ by a third; each role at its own rate."""
    x, N = np.random.default_rng(0).normal(size=(3, 16, 16, 2)), 64
    x[1] = 0.8 * x[0] + 0.6 * x[1]
    network = layers(Model("residual", 3, "relu", 2, "convnet", "average"), (16, 16, 2))
    nngp, theta = kernels.kernels(network, x.reshape(3, -1), of_roles(**ROLES))
    x, square = jnp.float32(x), (3, 3, 3, N, N)
    sizes = {"input": (3, 3, 2, N), "block_inner": square, "block": square, "readout": (N, 1)}

    def draw(key):
        keys = dict(zip(sizes, jax.random.split(key, len(sizes)), strict=True))
        return {role: jax.random.normal(keys[role], size) for role, size in sizes.items()}

    def empirical(key):
        slopes = jax.jacrev(staged)(draw(key), x)
        return sum(ROLES[role][1] * jnp.einsum("pi,qi->pq", *[slope.reshape(3, -1)] * 2) for role, slope in slopes.items())

    measured = np.array(jax.lax.map(empirical, jax.random.split(jax.random.key(0), 160)))
    error = measured.std(axis=0) / np.sqrt(160)
    assert (np.abs(measured.mean(axis=0) - theta) < 4 * error + 0.02 * theta).all()
    assert (error < 0.05 * theta).all()
    drawn = np.array(jax.lax.map(lambda key: staged(draw(key), x), jax.random.split(jax.random.key(1), 2000)))
    np.testing.assert_allclose(np.cov(drawn.T), nngp, rtol=0.1, atol=0.05 * nngp.max())


@pytest.mark.parametrize(("pooled", "size", "stride"), [(True, 5, 3), (False, 3, 2)])
def test_convolutions_are_those_of_neural_tangents(pooled, size, stride):
    """With pooling behind it all pairs of pixels have to be right, without it only equal ones."""
    stax, x = neural_tangents_compat.load().stax, np.random.default_rng(0).normal(size=(3, 7 * 8 * 2))
    ours = [Conv("input", size, stride), Activation("erf"), Conv("hidden", size=2), *[AveragePool()] * pooled]
    found = kernels.kernels((Image((7, 8, 2)), *ours, Flatten(), Dense("readout")), x, of_roles(**dict.fromkeys(ROLES, (1, 1))))
    theirs = [stax.Conv(1, (size, size), (stride, stride), "SAME"), stax.Erf(), stax.Conv(1, (2, 2), padding="SAME")]
    theirs += [stax.AvgPool((2, 2), (2, 2))] * pooled
    _, _, kernel_of = stax.serial(*theirs, stax.Flatten(), stax.Dense(1))
    with computing("float64"):
        expected = kernel_of(jnp.asarray(x.reshape(3, 7, 8, 2)), None, ("nngp", "ntk"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_convolutions_of_one_pixel_are_dense():
    """Pooling has nothing to pool, the border is zero: of a kernel only its middle matters, a ninth of its weights."""
    x, numbers, middle = np.random.default_rng(0).normal(size=(4, 3)), of_roles(**ROLES), 1 / 3
    phi, gain = Activation("relu"), np.sqrt(2) * middle
    branch = (phi, Dense("block_inner", gain), phi, Dense("block", gain))
    dense = (Dense("input", middle), Block(branch, 5), phi, Dense("readout"))
    found = kernels.kernels(layers(Model("residual", 5, "relu", 2, "convnet", "average"), (1, 1, 3)), x, numbers)
    for one, other in zip(found, kernels.kernels(dense, x, numbers), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)  # as exact as ReLU's Θ is where two samples are equal


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"model": "conv"}, {"model": "convnet", "depth": 5},
     pytest.param({"model": "resconvnet", "depth": 4, "block_size": 2}, marks=pytest.mark.long)],
    ids=lambda options: options["model"],
)
def test_convolutional_kernels_are_those_of_the_finite_networks(options):
    """Small images, stages without pooling, stages of different length, rectangles."""
    problem = a_problem(P=3, D=12 * 10 * 2, image_shape=(12, 10, 2), pooling="average", **options)
    nngp, theta = ntk.kernels(problem)
    network = build(problem, 48)
    trained = train(problem, network, jax.random.split(jax.random.key(0), 96), observables=("hessian_trace",))
    measured = np.array([one["hessian_trace"][0] for one in trained])
    assert abs(measured.mean() - np.trace(theta) / 3) < 4 * measured.std() / np.sqrt(96) + 0.02 * np.trace(theta) / 3
    network, keys, x = build(problem, 24), jax.random.split(jax.random.key(1), 3000), jnp.float32(problem.inputs)
    drawn = jax.lax.map(lambda key: network.apply(network.init(key), x)[:, 0], keys)
    np.testing.assert_allclose(np.cov(drawn.T), nngp, rtol=0.1, atol=0.04 * nngp.max())


def test_what_has_no_analytic_kernel_is_refused():
    x, numbers = np.zeros((2, 64)), of_roles(**ROLES)
    with pytest.raises(ValueError, match="max pooling has no analytic kernel: average pooling has one"):
        layers(Model("plain", 2, "relu", 1, "conv"), (8, 8, 1))
    with pytest.raises(ValueError, match="no kernel limit is known for vit"):
        layers(Model("residual", 2, "gelu", 2, "vit"), (8, 8, 1))
    with pytest.raises(ValueError, match="unknown activation 'sine'"):
        kernels.kernels((Dense("input"), Activation("sine"), Dense("readout")), x, numbers)
