"""Convolutional networks and transformers: passes written out pixel by pixel, dense curvature, training, exponents."""

from dataclasses import replace
from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.signal import correlate2d
from scipy.special import ndtr
from trained import train
from written_out import in_numpy, numbers

from comparisons.coord_check import study as coord_check
from comparisons.coord_check.study import Options, check
from finite import sizes
from finite.curvature import operators as curvature
from finite.networks import by_role
from finite.networks.build import build
from finite.networks.conv import activated, conv, convolution, pooled
from finite.networks.convnet import convnet, resconvnet
from finite.networks.gpt import gpt
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from finite.networks.vit import vit
from limits import Problem
from limits import theories as limit
from limits.exponents.algebra import Scaling
from limits.exponents.parametrization import scaling
from limits.kernel import ntk
from limits.losses import LOSSES
from limits.machine import computing

RICHNESS, VOCABULARY = 0.7, 5
OWN = Scaling("mine", "sgd", "residual", {role: scaling("mup", "sgd", "residual")[role]
                                          for role in ("input", "block_inner", "block", "readout")})  # fmt: skip


def images(side, channels=1, num_samples=3, num_outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_samples, side * side * channels)), rng.normal(size=(num_samples, num_outputs))


def texts(num_samples=3, length=4, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(VOCABULARY, size=(num_samples, length)).astype(float)
    return tokens, rng.normal(size=(num_samples, VOCABULARY))


def drawn(network, seed=1):
    """Weights in float64, gains that are not 1."""
    params = in_numpy(network.init(jax.random.key(seed)))
    if "norm_gain" in params:
        rng = np.random.default_rng(seed)
        params["norm_gain"] = {name: rng.normal(size=gain.shape) for name, gain in params["norm_gain"].items()}
    return params


# The passes written out: layer → what comes out of it, a row per sample and place --------------------------------------


def relu(h):
    return np.maximum(h, 0)


def convolve(x, kernel, stride=1):
    """x (P, H, W, m), kernel (9 m, n).  With an even number of rows the windows of a stride begin at the first row."""
    kernel = kernel.reshape(3, 3, x.shape[-1], -1) / 3
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for p in range(len(x)):
        for n in range(kernel.shape[-1]):
            out[p, :, :, n] = sum(correlate2d(x[p, :, :, m], kernel[:, :, m, n], "same") for m in range(x.shape[-1]))
    return out if stride == 1 else out[:, 1::stride, 1::stride]


def pool(x, by):
    P, H, W, _ = x.shape
    out = np.zeros((P, H // 2, W // 2, x.shape[-1]))
    for i in range(H // 2):
        for j in range(W // 2):
            out[:, i, j] = by(x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(1, 2))
    return out


def read(x, readout):
    P, H, W, _ = x.shape
    return x.reshape(P, -1) @ readout / np.sqrt(H * W)


def conv_written_out(params, times, x, by=np.max):
    first = times["input"] * convolve(x / np.sqrt(x.shape[-1]), params["input"], 2)
    second = times["hidden"] * convolve(pool(relu(first), by), params["hidden"], 4)
    last = pool(relu(second), by) if second.shape[1] > 1 else relu(second)
    return {"input": first, "hidden 2": second, "readout": times["readout"] * read(last, params["readout"])}


def convnet_written_out(params, times, x, by=np.max):
    """8×8 pixels at the first stage, or 4×4; ``poolings`` of them between the stages."""
    found = {"input": times["input"] * convolve(x / np.sqrt(x.shape[-1]), params["input"], 2)}
    stream, residual = found["input"], "block" in params
    weights = params["block"] if residual else params.get("hidden", ())
    stages = np.array_split(np.arange(len(weights)), 3)
    for stage, members in enumerate(stages):
        for l in members:
            y = stream
            for i, U in enumerate(params["block_inner"][l] if "block_inner" in params else ()):
                y = found[f"block_inner {i + 1}"] = times["block_inner"] * convolve(np.sqrt(2) * relu(y), U)
            name, role = ("block", "block") if residual else (f"hidden {l + 2}", "hidden")
            found[name] = times[role] * convolve(np.sqrt(2) * relu(y), weights[l])
            stream = stream + found[name] if residual else found[name]
        if stream.shape[1] > 2 or (stage == 2 and stream.shape[1] > 1):
            stream = pool(stream, by)
    if residual:
        found["stream"] = stream
    return found | {"readout": times["readout"] * read(relu(stream), params["readout"])}


def gelu(h):
    return h * ndtr(h)


def normal(h):
    return (h - h.mean()) / np.sqrt(h.var() + 1e-6)


def attend(q, k, v, heads, causal):
    """(T, N) → (T, N), head by head and token by token."""
    out, d = np.zeros_like(v), q.shape[1] // heads
    for head in range(heads):
        units = slice(head * d, (head + 1) * d)
        for t in range(len(q)):
            seen = range(t + 1 if causal else len(q))
            weights = np.exp([q[t, units] @ k[s, units] / d for s in seen])
            out[t, units] = sum(w * v[s, units] for w, s in zip(weights / weights.sum(), seen, strict=True))
    return out


def transformer_written_out(params, times, stream, heads, causal):
    """(found, out) of one sample: ``stream`` (T, N)."""
    inner, outer, gain = params["block_inner"], params["block"], params["norm_gain"]
    for l in range(len(outer["mlp"])):
        x = np.array([normal(h) for h in stream]) * gain["attention"][l]
        q, k, v = (times["block_inner"] * x @ inner[name][l] for name in ("query", "key", "value"))
        attended = times["block"] * attend(q, k, v, heads, causal) @ outer["attention"][l]
        stream = stream + attended
        hidden = times["block_inner"] * (np.array([normal(h) for h in stream]) * gain["mlp"][l]) @ inner["mlp"][l]
        computed = times["block"] * gelu(hidden) @ outer["mlp"][l] / 2
        stream = stream + computed
    found = {"block_inner value": v, "block_inner mlp": hidden, "block attention": attended, "block mlp": computed}
    return found | {"stream": stream}, np.array([normal(h) for h in stream])


def of_samples(params, times, streams, heads, causal, features):
    """All samples' rows below each other, and f of ``features`` of what the blocks give."""
    each = [transformer_written_out(params, times, stream, heads, causal) for stream in streams]
    found = {name: np.concatenate([of_sample[name] for of_sample, _ in each]) for name in each[0][0]}
    found["norm_gain"] = params["norm_gain"]["mlp"][-1][None]
    return found | {"readout": times["readout"] * np.array([features(out) for _, out in each]) @ params["readout"]}


def vit_written_out(params, times, x, heads=2):
    P, H, W, channels = x.shape
    cuts = [(4 * i, 4 * j) for i in range(H // 4) for j in range(W // 4)]
    patches = np.array([[x[p, i : i + 4, j : j + 4].ravel() for i, j in cuts] for p in range(P)]) / np.sqrt(16 * channels)
    first = times["input"] * patches @ params["input"]
    found = {"input": first.reshape(P * len(cuts), -1), "embedding": params["embedding"]}
    streams = first + params["embedding"]
    return found | of_samples(params, times, streams, heads, False, lambda out: out.mean(axis=0))


def gpt_written_out(params, times, tokens, heads=2):
    token, place = params["embedding"]["token"], params["embedding"]["place"]
    streams = np.array([[token[int(t)] + place[i] for i, t in enumerate(text)] for text in tokens])
    found = {"embedding token": np.concatenate([token[text.astype(int)] for text in tokens]), "embedding place": place}
    return found | of_samples(params, times, streams, heads, True, lambda out: out[-1])


# (build, pass written out, L, image side, channels); of gpt a side of None
CASES = {
    "conv 8": (lambda p: conv(p, 3), conv_written_out, 2, 8, 1),
    "conv 32": (lambda p: conv(p, 3), conv_written_out, 2, 32, 3),
    "conv 64": (lambda p: conv(p, 2), conv_written_out, 2, 64, 1),
    "conv average": (lambda p: conv(p, 3, "average"), partial(conv_written_out, by=np.mean), 2, 16, 2),
    "convnet 1": (lambda p: convnet(p, 3, 1), convnet_written_out, 1, 8, 1),
    "convnet 3": (lambda p: convnet(p, 3, 3), convnet_written_out, 3, 8, 1),
    "convnet 5": (lambda p: convnet(p, 3, 5), convnet_written_out, 5, 16, 2),
    "resconvnet 1": (lambda p: resconvnet(p, 3, 4), convnet_written_out, 4, 16, 1),
    "resconvnet 2": (lambda p: resconvnet(p, 3, 2, 2), convnet_written_out, 2, 8, 3),
    "resconvnet 3": (lambda p: resconvnet(p, 3, 3, 3, "average"), partial(convnet_written_out, by=np.mean), 3, 32, 1),
    "vit": (lambda p: vit(p, 4, 2, heads=2), vit_written_out, 2, 8, 3),
    "gpt": (lambda p: gpt(p, 4, 2, heads=2), gpt_written_out, 2, None, None),
}


def fast_first(cases, *fast):
    """All cases, of which those that are not named are slow."""
    return [pytest.param(*np.atleast_1d(case).tolist(), marks=() if case in fast else pytest.mark.slow) for case in cases]


def made(case, parametrization=None, **changes):
    """(problem, network, pass written out, L)"""
    make, written_out, depth, side, channels = CASES[case]
    data, shape = (texts(), None) if side is None else (images(side, channels), (side, side, channels))
    usual = "mup" if case.startswith("conv") else "depth_mup"
    problem = Problem(*data, parametrization or usual, richness=RICHNESS, image_shape=shape, **changes)
    return problem, make(problem), written_out, depth


def shaped(problem, case):
    side, channels = CASES[case][3:]
    return problem.inputs if side is None else problem.inputs.reshape(-1, side, side, channels)


def traced(function, *arguments):
    """The function, compiled, in float64; its results in NumPy."""
    with computing("float64"):
        return jax.device_get(jax.jit(function)(*jax.tree.map(jnp.asarray, arguments)))


@pytest.mark.parametrize("case", fast_first(CASES, "conv 8", "conv average", "convnet 3", "resconvnet 1", "vit", "gpt"))
def test_every_layer_is_the_one_written_out(case):
    """f of the stored weights, and signals and matrices of the acting ones; of many blocks, the last."""
    problem, network, written_out, depth = made(case)
    of, params = numbers(problem.parametrization, "sgd", network.width, depth, RICHNESS), drawn(network)
    times = {role: of.multiplier.get(role, 1.0) for role in params}

    def measured(params, inputs):
        acting = by_role(times, params)
        found = network.architecture.signals(acting, inputs), network.architecture.matrices(acting)
        return network.apply(params, inputs), *found

    outputs, signals, matrices = traced(measured, params, problem.inputs)
    expected = written_out(params, times, shaped(problem, case))
    np.testing.assert_allclose(outputs, expected["readout"], rtol=1e-10, atol=1e-12)
    assert np.abs(outputs).max() > 1e-3
    assert signals.keys() == expected.keys()
    assert matrices.keys() == signals.keys() - {"stream"}
    for name, (arriving, output) in signals.items():
        np.testing.assert_allclose(output, expected[name].reshape(output.shape), rtol=1e-10, atol=1e-12, err_msg=name)
        if name == "stream":
            assert arriving is None
        else:
            np.testing.assert_allclose(arriving @ matrices[name], output, rtol=1e-11, atol=1e-12, err_msg=name)


# Curvature -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pooling", ["max", "average"])
def test_pooling_before_relu_has_the_same_derivatives(pooling):
    """Bit for bit those of ReLU first, as the definition has it; among whole numbers most windows hold equal pixels."""
    rng = np.random.default_rng(0)
    x, along = np.float32(rng.integers(-2, 3, size=(4, 7, 6, 5))), np.float32(rng.integers(-3, 4, size=(4, 7, 6, 5)))

    def derivatives(layer):
        slope = jax.grad(lambda x: jnp.sum(layer(x) ** 3))
        return jax.jit(lambda x, v: (layer(x), *jax.jvp(slope, (x,), (v,))))(x, along)

    ours, theirs = derivatives(lambda x: activated(x, pooling, "relu")), derivatives(lambda x: pooled(jax.nn.relu(x), pooling))
    for got, expected in zip(ours, theirs, strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("stride", "rows", "columns"), [(1, 5, 4), (2, 8, 7), (3, 6, 9), (4, 8, 4), (4, 6, 8), (5, 10, 5)])
def test_neighbourhoods_are_those_of_xlas_convolution(stride, rows, columns):
    """Windows that are cut out by reshape, and those that overlap or stand over the border."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, rows, columns, 3)), rng.normal(size=(27, 2))
    window = {"window_strides": (stride, stride), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def expected(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel.reshape(3, 3, 3, 2), **window) / 3

    def with_derivatives(layer):
        slopes = jax.grad(lambda *both: jnp.sum(layer(*both) ** 2), (0, 1))
        return traced(lambda *both: (layer(*both), *slopes(*both)), x, kernel)

    ours, theirs = with_derivatives(lambda x, kernel: convolution(x, kernel, stride)), with_derivatives(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), ours, theirs)


SMALL = {
    "conv": (lambda p: conv(p, 2), images(8)),
    "convnet": (lambda p: convnet(p, 2, 3), images(8)),
    "resconvnet": (lambda p: resconvnet(p, 2, 3, 2), images(8)),
    "vit": (lambda p: vit(p, 4, 1, heads=2), images(8)),
    "gpt": (lambda p: gpt(p, 4, 1, heads=2), texts()),
    "readout only": (lambda p: conv(p, 2), images(8)),
}


def sample_loss(loss, f, y):
    return jnp.sum((f - y) ** 2) / 2 if loss == "mse" else -jnp.sum(y * jnp.log(jnp.exp(f) / jnp.sum(jnp.exp(f))))


CURVED = [("conv", "mse"), ("readout only", "cross_entropy"), ("convnet", "mse"), ("resconvnet", "cross_entropy"),
          ("vit", "mse"), ("gpt", "cross_entropy")]  # fmt: skip


@pytest.mark.parametrize(("case", "loss"), fast_first(CURVED, *CURVED[:2]))
def test_curvature_is_that_of_dense_derivatives(case, loss):
    """H by ``jax.hessian``, G = Jᵀ ℓ'' J/P with J by reverse mode and ℓ'' by ``jax.hessian`` of one sample's loss."""
    make, (inputs, targets) = SMALL[case]
    if loss == "cross_entropy":
        targets = np.exp(targets) / np.exp(targets).sum(axis=1, keepdims=True)
    problem = Problem(inputs, targets, "mup", loss=loss, trained="readout" if case == "readout only" else "all")
    network, of, P, key = make(problem), LOSSES[loss], len(inputs), jax.random.key(0)
    with computing("float64"):
        flat, unravel = ravel_pytree(drawn(network))

    def dense(flat, x, y):
        f = lambda flat: network.apply(unravel(flat), x)  # noqa: E731
        total = lambda flat: sum(map(partial(sample_loss, loss), f(flat), y)) / P  # noqa: E731
        J, bend = jax.jacrev(f)(flat), jax.vmap(jax.hessian(partial(sample_loss, loss)))(f(flat), y)
        return jax.hessian(total)(flat), J.reshape(targets.size, -1), jnp.einsum("pci,pcd,pdj->ij", J, bend, J) / P

    def products(flat, x, y):
        params, bound = unravel(flat), (network.apply, unravel(flat), x)
        matvecs = curvature.hessian(*bound, y, of), curvature.gauss_newton(*bound, of), curvature.residual(*bound, y, of)
        columns = [jax.vmap(lambda v, m=m: ravel_pytree(m(unravel(v)))[0])(jnp.eye(len(flat))).T for m in matvecs]
        traces = curvature.gauss_newton_trace(network, params, x, of), *curvature.trace(network, params, x, y, key, ell=of)
        return *columns, curvature.dense_ntk(network, params, x), *traces

    H, J, G = traced(dense, flat, inputs, targets)
    got_H, got_G, got_R, ntk, trace_G, trace_H, error = traced(products, flat, inputs, targets)
    close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8 * np.abs(H).max())
    close(got_H, H)
    close(got_G, G)
    close(got_R, H - G)
    close(got_R + got_G, got_H)
    close(ntk, J @ J.T / P)
    close(trace_G, np.trace(G))
    assert network.layerwise_linear == (case not in ("vit", "gpt"))
    assert (error == 0) == network.layerwise_linear
    assert abs(trace_H - np.trace(H)) <= 5 * error + 1e-8 * np.trace(H)


# Training --------------------------------------------------------------------------------------------------------------

TRAINED = [("conv 8", "mup"), ("gpt", "mup"), ("conv 8", "sp"), ("conv average", "ntp"), ("convnet 3", "mup"),
           ("resconvnet 2", "alpha1"), ("resconvnet 1", "depth_mup"), ("vit", "depth_mup")]  # fmt: skip


def rates(network, name, depth):
    """Over η0, of stored weights, under SGD.  An embedding is an input; gains lie within a block."""
    rate = numbers(name, "sgd", network.width, depth, RICHNESS).rate
    rate |= {"embedding": rate["input"], "norm_gain": rate["block"]}
    return {role: rate[role] for role in network.factors}


@pytest.mark.parametrize(("case", "parametrization"), fast_first(TRAINED, TRAINED[0]))
def test_training_is_gradient_descent_at_the_rates_of_the_roles(case, parametrization):
    """Three steps of SGD on the stored weights, whose gradient is JAX's of the pass that is held above."""
    problem, network, _, depth = made(case, parametrization, learning_rate=0.1, num_steps=3)
    rate, key = rates(network, parametrization, depth), jax.random.key(5)

    def step(params, x, y):
        loss, slope = jax.value_and_grad(lambda p: jnp.sum((network.apply(p, x) - y) ** 2) / (2 * len(x)))(params)
        return loss, {role: jax.tree.map(lambda w, g: w - 0.1 * rate[role] * g, params[role], slope[role]) for role in params}  # noqa: B023

    params, expected = in_numpy(network.init(key)), []
    for _ in range(4):
        loss, params = traced(step, params, problem.inputs, problem.targets)
        expected.append(loss)
    (got,) = train(problem, network, key[None], precision="float64", observables=["loss"])
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-10)
    assert abs(expected[-1] / expected[0] - 1) > 1e-3


@pytest.mark.parametrize("make", [lambda p: mlp(p, 6, 2, "tanh"), lambda p: conv(p, 4)], ids=["mlp", "conv"])
def test_readout_only_is_linear_regression_on_the_first_features(make):
    """Gradient descent on the readout in NumPy; the other weights neither move nor decay."""
    x, y = images(8, num_samples=5)
    problem = Problem(x, y, "mup", trained="readout", richness=RICHNESS, learning_rate=0.2, weight_decay=0.3, num_steps=4)
    network, key = make(problem), jax.random.key(2)
    of, params = numbers("mup", "sgd", network.width, 2, RICHNESS), in_numpy(network.init(key))
    acting = {role: jax.tree.map(lambda w: of.multiplier[role] * w, of_role) for role, of_role in params.items()}  # noqa: B023
    features = of.multiplier["readout"] * traced(network.architecture.signals, acting, x)["readout"].arriving
    V, expected = params["readout"], []
    for _ in range(5):
        error = features @ V - y
        expected.append(np.sum(error**2) / (2 * len(x)))
        V = V - 0.2 * (of.rate["readout"] * features.T @ error / len(x) + 0.3 * V)
    (got,) = train(problem, network, key[None], precision="float64", observables=["loss", "ntk_eigenvalues"], rtol=1e-10)
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-10)
    top = of.rate["readout"] * np.linalg.eigvalsh(features @ features.T / len(x))[::-1]
    np.testing.assert_allclose(got["ntk_eigenvalues"], np.tile(np.repeat(top, 2)[:3], (5, 1)), rtol=1e-6)


@pytest.mark.slow
def test_spectra_without_layer_factors_are_those_of_dense_matrices():
    """Lanczos alone; rescaled: for SGD in μP by N γ0²."""
    problem, network, *_ = made("conv 8", num_steps=0, learning_rate=0.1, top_k=2)
    assert network.layer_factors is None
    (got,) = train(problem, network, jax.random.key(3)[None], precision="float64", rtol=1e-8)
    with computing("float64"):
        flat, unravel = ravel_pytree(in_numpy(network.init(jax.random.key(3))))

    def dense(flat, x, y):
        f = lambda flat: network.apply(unravel(flat), x)  # noqa: E731
        return jax.hessian(lambda flat: jnp.sum((f(flat) - y) ** 2) / (2 * len(x)))(flat), jax.jacrev(f)(flat)

    H, J = traced(dense, flat, problem.inputs, problem.targets)
    unit, J = network.width * RICHNESS**2, J.reshape(-1, len(flat))
    spectra = {"hessian_eigenvalues": H, "ntk_eigenvalues": J @ J.T / len(problem.inputs)}
    for name, matrix in spectra.items():
        np.testing.assert_allclose(got[name][0], unit * np.linalg.eigvalsh(matrix)[::-1][:2], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(got["hessian_min"][0], unit * np.linalg.eigvalsh(H)[0], rtol=1e-6)
    np.testing.assert_allclose(got["hessian_trace"][0], unit * np.trace(H), rtol=1e-8)


# Sizes and exponents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("make", [lambda p: mlp(p, 7, 3, "tanh"), lambda p: resmlp(p, 7, 3, "tanh", 2)], ids=["mlp", "resmlp"])
def test_sharpness_by_products_is_that_of_the_layers_factors(make, optimizer):
    x, y = images(8, num_samples=4)
    problem = Problem(x, y, "mup", optimizer, num_steps=1)
    network, key = make(problem), jax.random.split(jax.random.key(4), 1)
    without = replace(network, architecture=replace(network.architecture, layer_factors=None))
    usual, by_products = (sizes.measure([problem], [n], key, "float64")["sharpness"] for n in (network, without))
    assert usual.keys() == by_products.keys()
    for layer in usual:
        np.testing.assert_allclose(by_products[layer], usual[layer], rtol=1e-9, err_msg=layer)


ENOUGH = {  # networks, widths and depths at which noise and the next power are below the tolerance of the command
    "conv": {"widths": (128, 256, 512), "seeds": 16},
    "convnet": {"widths": (64, 128, 256), "seeds": 16},
    "resconvnet": {"widths": (64, 128, 256), "seeds": 16, "depths": (6, 12, 24, 48)},
    "vit": {"widths": (64, 128, 256), "seeds": 16, "depths": (4, 8, 16, 32)},
    "gpt": {"widths": (64, 128, 256), "seeds": 8, "depths": (4, 8, 16, 32)},
}


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("model", ENOUGH)
def test_measured_exponents_are_the_derived_ones(model, optimizer, tmp_path):
    """In width, of plain networks in SP, NTP and μP; of residual ones in Depth-μP and α = 1, and in depth too."""
    checks = check(Options(model=model, optimizer=(optimizer,), **ENOUGH[model], out=tmp_path / "run"))
    assert len(checks) >= 44
    assert [c for c in checks if c.verdict != "agrees"] == []


@pytest.mark.long
def test_attention_starts_uniform_and_learns():
    """Logits q·k/d in μP: N^{-1/2} at step 0, where q and k are independent; steps of sign descent change them by Θ(1).

    The change is the same for all heads and seeds, up to N^{-1/2}, which at these widths is more: the mean is looked at.
    """
    problem, widths = Problem(*images(8, num_samples=4, num_outputs=1), "mup", "adam"), (64, 128, 256, 512)
    x = jnp.float32(problem.inputs)

    def logits(network, params):
        (tokens, _), position = network.architecture.signals(params, x)["input"], params["embedding"]
        stream = (tokens @ params["input"]).reshape(4, -1, network.width) + position
        stream = stream - stream.mean(-1, keepdims=True)
        q, k = (
            (stream / stream.std(-1, keepdims=True) @ params["block_inner"][name][0] / sqrt(network.width)).reshape(4, 4, 8, -1)
            for name in ("query", "key")
        )
        return jnp.einsum("ptha,psha->phts", q, k) / (network.width / 8)

    def sizes_at(width):
        network = vit(problem, width, 1)
        rate, std = network.numbers("learning_rate"), lambda values: jnp.sqrt(jnp.mean(values**2))

        def descend(_, params):
            slope = jax.grad(lambda p: jnp.mean((network.apply(p, x)[:, 0] - jnp.array([4.0, 4.0, 4.0, -4.0])) ** 2))(params)
            return {r: jax.tree.map(lambda w, g: w - rate[r] * jnp.sign(g), params[r], slope[r]) for r in params}  # noqa: B023

        def measure(key):
            params = network.init(key)
            before, after = (logits(network, p) for p in (params, jax.lax.fori_loop(0, 3, descend, params)))
            return before, (after - before).mean(axis=1)

        start, change = jax.jit(lambda keys: jax.lax.map(measure, keys))(jax.random.split(jax.random.key(width), 32))
        return np.log([std(start), std(change.mean(axis=0))])

    start, change = np.polyfit(np.log(widths), [sizes_at(width) for width in widths], 1)[0]
    assert start == pytest.approx(-0.5, abs=0.05)
    assert change == pytest.approx(0.0, abs=0.15)


@pytest.mark.long
@pytest.mark.parametrize("make", [conv, convnet, resconvnet], ids=["conv", "convnet", "resconvnet"])
def test_wide_networks_have_the_analytic_kernels(make):
    """Average pooling, NTP: covariance of f(0) and NTK of ``limits.kernel.ntk``, which knows nothing of these networks."""
    x, y = images(16, num_outputs=1)
    x[1] = 0.8 * x[0] + 0.6 * x[1]
    problem = Problem(x, y, "ntp", model=make.__name__, depth=3, block_size=2, pooling="average")
    nngp, theta = ntk.kernels(problem)
    inputs = jnp.float32(x)

    def kernel(key):
        network = build(problem, 128)
        slope = jax.jacrev(network.apply)(network.init(key), inputs)
        rows = [leaf.reshape(3, -1) for leaf in jax.tree.leaves(slope)]
        return sum(row @ row.T for row in rows)

    def outputs(key):
        network = build(problem, 48)
        return network.apply(network.init(key), inputs)[:, 0]

    measured = jax.jit(lambda keys: jax.lax.map(kernel, keys))(jax.random.split(jax.random.key(0), 24))
    np.testing.assert_allclose(measured.mean(axis=0), theta, rtol=0.05, atol=0.02 * theta.max())
    drawn = jax.jit(lambda keys: jax.lax.map(outputs, keys))(jax.random.split(jax.random.key(1), 2000))
    np.testing.assert_allclose(np.cov(drawn.T), nngp, rtol=0.1, atol=0.05 * nngp.max())


# What is refused -------------------------------------------------------------------------------------------------------


def test_gains_start_at_one_and_all_else_is_standard_normal():
    params = vit(Problem(*images(8), "mup"), 64, 2).init(jax.random.key(0))
    assert all((gain == 1).all() for gain in params.pop("norm_gain").values())
    weights = np.concatenate([np.ravel(w) for w in jax.tree.leaves(params)])
    assert weights.mean() == pytest.approx(0, abs=0.02)
    assert weights.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("case", ["conv 8", "resconvnet 2", "vit", "gpt"])
def test_one_architecture_for_all_parametrizations(case):
    one, other = (made(case, name, learning_rate=rate)[1] for name, rate in (("mup", 0.1), ("ntp", 0.2)))
    assert one.architecture is other.architecture
    shapes = jax.eval_shape(one.init, jax.random.key(0))
    assert set(one.factors) == set(shapes)


SQUARE, ODD = images(8), (np.ones((3, 60)), np.ones((3, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem(*ODD, model="conv"), "60 inputs are no square image of 1 or 3 channels"),
        (lambda: Problem(*SQUARE, model="vit", image_shape=(8, 9, 1)), "8×9×1: wanted rows, columns and channels of 64 inputs"),
        (lambda: Problem(*SQUARE, model="conv", pooling="mean"), "unknown pooling 'mean'; known: max, average"),
        (lambda: Problem(*SQUARE, trained="input"), "trained 'input': wanted all, or readout"),
        (lambda: Problem(*SQUARE, model="gpt"), "is no token: with 2 outputs they are 0 … 1"),
        (lambda: build(Problem(*SQUARE, model="conv"), 0), "width 0 must be at least 1"),
        (lambda: build(Problem(*SQUARE, "depth_mup", model="vit"), 12), "width 12 is no multiple of the 8 heads"),
        (lambda: vit(Problem(*SQUARE, "mup"), 8, 1, patch=3), "images of 8×8 pixels do not fall into patches of 3×3"),
        (lambda: build(Problem(*SQUARE, "depth_mup", model="convnet"), 4), "depth_mup is about residual blocks"),
        (lambda: vit(Problem(*SQUARE, OWN), 8, 1), "mine has no exponents for embedding, norm_gain"),
        (lambda: limit.theory(Problem(*SQUARE, model="vit")), "no limit is known for vit in mup"),
        (lambda: coord_check.prepare(Options(model="conv", depths=(3,))), "conv has 2 hidden layers: no other depths"),
    ],
)
def test_one_line_for_a_mistake(make, message):
    with pytest.raises(ValueError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)
