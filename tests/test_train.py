"""Training against loops written out in NumPy, and its observables against dense Hessians."""

import contextlib
import logging
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from trained import train
from written_out import descend, numbers
from written_out import in_numpy as stored_weights
from written_out import loss as stored_loss
from written_out import outputs as stored_outputs

from finite import Numerics
from finite.curvature import observers as observing
from finite.curvature import operators as curvature
from finite.curvature.observers import program_of
from finite.data.synthetic import digits
from finite.networks.build import build
from finite.networks.conv import conv
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from finite.training import train as training
from finite.training.side_by_side import Plan, footprint
from limits import solve
from limits.exponents.parametrization import gauge, output_multiplier, scaling
from limits.machine import computing
from limits.problem import Problem, minibatches
from limits.trajectory import measured_by_default

WIDTH = 6
PRECISE = {"rtol": 1e-9, "probes": 400}
CHEAP = ["loss", "ntk_eigenvalues", "hessian_trace", "directional_sharpness"]  # no Lanczos run to compile
LINEAR, TANH = (1, "linear"), (2, "tanh")


def a_problem(num_samples=6, num_inputs=3, num_outputs=2, **changes):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(num_samples, num_inputs)), rng.normal(size=(num_samples, num_outputs))
    if changes.get("loss") == "cross_entropy":
        targets = np.eye(num_outputs)[targets.argmax(axis=1)]
    return Problem(inputs, targets, **({"num_steps": 6, "learning_rate": 0.3, "richness": 0.7, "top_k": 2} | changes))


def everything(**changes):
    """Momentum, weight decay and minibatches at once."""
    batches = minibatches(np.random.default_rng(1), 6, 2, changes.get("num_steps", 6))
    return a_problem(**{"momentum": 0.6, "weight_decay": 0.2, "batches": batches} | changes)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def in_numpy(params):
    """[E, W¹, …, V] in float64"""
    return [np.float64(w) for w in (params["input"], *params["hidden"], params["readout"])]


def written_out(problem, weights, activation):
    """Weights before steps 0, 1, …: forward, backward and update by hand."""
    phi, slope = {"linear": (lambda h: h, np.ones_like), "tanh": (np.tanh, lambda h: 1 - np.tanh(h) ** 2)}[activation]
    width = len(weights[-1])
    gamma = output_multiplier(problem.scaling(), problem.richness, width)
    momenta = [np.zeros_like(w) for w in weights]
    for t in range(problem.num_steps + 1):
        yield weights
        if t == problem.num_steps:
            return
        rows = np.arange(problem.num_samples) if problem.batches is None else problem.batches[t]
        signals, before = [problem.inputs[rows] / np.sqrt(problem.num_inputs)], []
        for w in weights[:-1]:
            before.append(signals[-1] @ w)
            signals.append(phi(before[-1]) / np.sqrt(width))
        f = signals[-1] @ weights[-1] / gamma
        if problem.loss == "cross_entropy":
            f = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
        back = (f - problem.targets[rows]) / len(rows) / gamma
        gradients = [signals[-1].T @ back]
        for l in range(len(before) - 1, -1, -1):
            back = back @ weights[l + 1].T / np.sqrt(width) * slope(before[l])
            gradients.insert(0, signals[l].T @ back)
        steps = [gamma**2 * g + problem.weight_decay * w for g, w in zip(gradients, weights, strict=True)]
        momenta = [problem.momentum * m + g for m, g in zip(momenta, steps, strict=True)]
        weights = [w - problem.learning_rate * m for w, m in zip(weights, momenta, strict=True)]


def outputs(problem, weights, activation):
    phi, width = {"linear": lambda h: h, "tanh": jnp.tanh}[activation], len(weights[-1])
    h = problem.inputs @ weights[0] / np.sqrt(problem.num_inputs)
    for w in weights[1:]:
        h = phi(h) @ w / np.sqrt(width)
    return h / output_multiplier(problem.scaling(), problem.richness, width)


def densely(problem, weights, own_outputs, rates):
    """Every observable from dense second derivatives of an own forward pass: √r H √r, r the rate of each weight over η0."""
    flat, unravel = ravel_pytree(weights)
    root = jnp.sqrt(ravel_pytree(jax.tree.map(lambda w, r: jnp.full(w.shape, r), weights, rates))[0])

    def f(flat):
        return own_outputs(unravel(flat)).ravel()

    def of_outputs(f):
        if problem.loss == "cross_entropy":
            p = jax.nn.softmax(f.reshape(problem.targets.shape)).ravel()
            return -jnp.sum(problem.targets.ravel() * jnp.log(p)) / problem.num_samples
        return jnp.sum((f - problem.targets.ravel()) ** 2) / (2 * problem.num_samples)

    def loss(flat):
        return of_outputs(f(flat))

    jacobian, hessian, g = jax.jacfwd(f)(flat) * root, jax.hessian(loss)(flat), jax.grad(loss)(flat) * root
    hessian = root[:, None] * hessian * root
    gauss_newton = jacobian.T @ jax.hessian(of_outputs)(f(flat)) @ jacobian
    h, gn, r = (np.linalg.eigvalsh(m)[::-1] for m in (hessian, gauss_newton, hessian - gauss_newton))
    ntk = np.linalg.eigvalsh(jacobian @ jacobian.T / problem.num_samples)[::-1]
    k = problem.top_k
    return {
        "hessian": hessian,
        "loss": loss(flat),
        "hessian_eigenvalues": h[:k],
        "hessian_min": h[-1],
        "gauss_newton_eigenvalues": gn[:k],
        "residual_eigenvalues": r[[0, -1]],
        "ntk_eigenvalues": ntk[:k],
        "hessian_trace": h.sum(),
        "directional_sharpness": (g @ hessian @ g) / (g @ g),
    }


def assert_observed(got, expected, exact_trace):
    """Values are the dense ones, and the errors given with them hold."""
    for name in got.observables:
        wanted = np.stack([np.asarray(at[name]) for at in expected])
        assert got[name].dtype == np.float64
        if name == "hessian_trace" and not exact_trace:
            assert (np.abs(got[name] - wanted) < 4 * got.error(name)).all()
            assert (got.error(name) < 0.2 * np.abs(wanted)).all()
        else:
            np.testing.assert_allclose(got[name], wanted, rtol=1e-7, atol=1e-9, err_msg=name)
            assert (np.abs(got[name] - wanted) <= got.error(name) + 1e-11).all(), name


@pytest.mark.parametrize("parametrization", ["mup", "ntp"])
@pytest.mark.parametrize("architecture", [LINEAR, TANH], ids=str)
def test_loss_is_that_of_the_loop_written_out(architecture, parametrization):
    problem = everything(parametrization=parametrization)
    network, activation = mlp(problem, WIDTH, *architecture), architecture[1]
    got = train(problem, network, keys(2), precision="float64", observables=["loss"])
    for key, trajectory in zip(keys(2), got, strict=True):
        path = written_out(problem, in_numpy(network.init(key)), activation)
        with computing("float64"):
            errors = [np.asarray(outputs(problem, weights, activation)) - problem.targets for weights in path]
        expected = [np.sum(error**2) / (2 * problem.num_samples) for error in errors]
        np.testing.assert_allclose(trajectory["loss"], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("architecture", "loss"),
    [(LINEAR, "mse"), *(pytest.param(TANH, loss, marks=pytest.mark.slow) for loss in ("mse", "cross_entropy"))],
    ids=str,
)
def test_observables_are_those_of_dense_matrices(architecture, loss):
    problem = everything(num_steps=4, measure_every=2, loss=loss)
    network = mlp(problem, WIDTH, *architecture)
    (got,) = train(problem, network, keys(1), precision="float64", **PRECISE)
    assert set(got.observables) == set(measured_by_default())
    with computing("float64"):
        path = list(written_out(problem, in_numpy(network.init(keys(1)[0])), architecture[1]))
        rates = [output_multiplier(problem.scaling(), problem.richness, WIDTH) ** 2] * len(path[0])
        own = partial(outputs, problem, activation=architecture[1])
        expected = [densely(problem, path[step], own, rates) for step in (0, 2, 4)]
    assert_observed(got, expected, network.layerwise_linear)


@pytest.mark.parametrize("loss", [pytest.param("mse", marks=pytest.mark.slow), "cross_entropy"])
def test_spectral_density_is_that_of_dense_hessians(loss):
    """With as many nodes as parameters they are the eigenvalues; with fewer, means of λ and λ² have the probes' spread."""
    problem, probes = everything(num_steps=4, measure_every=2, loss=loss), 50
    network, options = mlp(problem, WIDTH, 1, "tanh"), {"observables": ["loss", "density_nodes", "density_weights"]}
    options |= {"precision": "float64", "density_probes": probes}
    (got,), (all_nodes,) = (train(problem, network, keys(1), **options, density_steps=steps) for steps in (7, 100))
    with computing("float64"):
        path = list(written_out(problem, in_numpy(network.init(keys(1)[0])), "tanh"))
        rates = [output_multiplier(problem.scaling(), problem.richness, WIDTH) ** 2] * len(path[0])
        own = partial(outputs, problem, activation="tanh")
        hessians = [np.asarray(densely(problem, path[step], own, rates)["hessian"]) for step in problem.steps]
    n = len(hessians[0])
    assert got["density_nodes"].shape == got["density_weights"].shape == (3, probes * 7)
    assert set(got.products) == {"density_nodes", "density_weights"}
    assert (got.products["density_nodes"] == probes * 7).all()
    assert (all_nodes.products["density_nodes"] == probes * n).all()
    for index, hessian in enumerate(hessians):
        eigenvalues = np.linalg.eigvalsh(hessian)
        every = all_nodes["density_nodes"][index].reshape(probes, n)
        np.testing.assert_allclose(every, np.tile(eigenvalues, (probes, 1)), atol=1e-8 * np.abs(eigenvalues).max())
        for one in (got, all_nodes):
            nodes, weights = one["density_nodes"][index], one["density_weights"][index]
            np.testing.assert_allclose(weights.reshape(probes, -1).sum(axis=1), 1 / probes, rtol=1e-12)
            for k in (1, 2):
                power = np.linalg.matrix_power(hessian, k)
                error = np.sqrt(2 * np.sum((power - np.diag(np.diag(power))) ** 2) / probes) / n  # of zᵀAz/n, z signs
                assert abs(weights @ nodes**k - np.mean(eigenvalues**k)) < 4 * error
                assert 4 * error < np.sqrt(np.mean(eigenvalues ** (2 * k)))


@pytest.mark.slow
def test_spectral_densities_of_many_seeds_and_of_diverged_ones():
    problem = a_problem(measure_every=6, learning_rate=0.3)
    network = mlp(problem, WIDTH)
    good = network.init(keys(1)[0])
    initial = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * jnp.nan]), good)
    options = {"observables": ["loss", "density_weights", "density_nodes"], "density_probes": 3, "density_steps": 5}
    (alone,) = train(problem, network, keys(1), **options)
    for vectorized in (False, True):
        beside, broken = train(problem, network, keys(2), initial=initial, vectorized=vectorized, **options)
        for name in options["observables"]:
            np.testing.assert_allclose(beside[name], alone[name], rtol=1e-3, atol=1e-5)
            assert not np.isfinite(broken[name]).any()
    with pytest.raises(ValueError, match="1 probes: a standard error needs two"):
        train(problem, network, keys(1), **options | {"density_probes": 1})


PLAIN, RESIDUAL = ("sp", "ntp", "mup"), ("sp", "depth_mup", "alpha1")


def built(problem, kind, depth=2, activation="tanh"):
    return mlp(problem, WIDTH, depth, activation) if kind == "plain" else resmlp(problem, WIDTH, depth, activation, 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("kind", "name"), [*(("plain", n) for n in PLAIN), *(("residual", n) for n in RESIDUAL)])
def test_every_role_trains_at_its_own_rate(kind, name, optimizer):
    """Heavy ball, or Adam with an ε of a gradient's size, both with decay and batches, on weights as stored."""
    momentum = 0.6 if optimizer == "sgd" else 0.0
    changes = {"parametrization": name, "optimizer": optimizer, "momentum": momentum, "betas": (0.8, 0.9), "epsilon": 0.3}
    problem = everything(**changes, learning_rate=0.1)
    network, of = built(problem, kind), numbers(name, optimizer, WIDTH, 2, problem.richness)
    (got,) = train(problem, network, keys(1), precision="float64", observables=["loss"])
    with computing("float64"):
        path = list(descend(problem, stored_weights(network.init(keys(1)[0])), of, "tanh"))
        expected = np.array([stored_loss(at, of.multiplier, problem.inputs, problem.targets, "tanh") for at in path])
    assert np.abs(np.diff(expected)).max() > 0.02 * expected[0]
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-9)


def at_one_rate(of, problem):
    """μP with one learning rate for all, γ0² η0 (Yang & Hu's form): N^{1/2} more in front of weights N^{-1/2} as large."""
    multiplier = {"input": WIDTH**0.5, "hidden": 1.0, "readout": WIDTH**-0.5 / problem.richness}
    return of._replace(multiplier=multiplier, rate=dict.fromkeys(multiplier, problem.richness**2))


@pytest.mark.parametrize("name", ["sp", "mup, one rate"])
@pytest.mark.parametrize("architecture", [LINEAR, pytest.param(TANH, marks=pytest.mark.slow)], ids=str)
def test_rescaled_curvature_has_the_rate_of_every_role(architecture, name):
    shifted = name != "sp"
    problem = everything(num_steps=4, measure_every=2)
    problem = replace(problem, parametrization=gauge(scaling("mup"), "learning_rate") if shifted else "sp")
    network, of = mlp(problem, WIDTH, *architecture), numbers("sp", "sgd", WIDTH, 1, problem.richness)
    of = at_one_rate(of, problem) if shifted else of
    (got,) = train(problem, network, keys(1), precision="float64", **PRECISE)
    assert set(got.observables) == set(measured_by_default())
    assert_observed(got, dense_path(problem, network, of, architecture[1], of.rate), network.layerwise_linear)


@pytest.mark.parametrize(("kind", "optimizer"), [("plain", "adam"), pytest.param("residual", "sgd", marks=pytest.mark.slow)])
def test_rescaled_curvature_of_adam_and_of_blocks(kind, optimizer):
    """Adam's step is rate/(size of a gradient) times the gradient: this stands where SGD's rate stands."""
    momentum = 0.0 if optimizer == "adam" else 0.6
    problem = everything(num_steps=4, measure_every=2, parametrization="sp", optimizer=optimizer, momentum=momentum)
    network, of = built(problem, kind, 2, "relu"), numbers("sp", optimizer, WIDTH, 2, problem.richness)
    rates = {role: of.rate[role] / (of.gradient[role] if optimizer == "adam" else 1.0) for role in of.rate}
    (got,) = train(problem, network, keys(1), precision="float64", observables=CHEAP)
    assert_observed(got, dense_path(problem, network, of, "relu", rates), exact_trace=True)


def dense_path(problem, network, of, activation, rates):
    """All observables before each measured step."""
    with computing("float64"):
        path = list(descend(problem, stored_weights(network.init(keys(1)[0])), of, activation))
        rates = {role: jax.tree.map(lambda _: rates[role], path[0][role]) for role in path[0]}  # noqa: B023
        own = partial(stored_outputs, multiplier=of.multiplier, inputs=problem.inputs, activation=activation)
        return [densely(problem, path[step], own, rates) for step in problem.steps]


def test_same_network_at_step_zero_whatever_the_optimiser():
    """Curvature is that of all samples and of the loss alone: no batch and no weight decay in it."""
    problems = everything(num_steps=1), a_problem(num_steps=0)
    results = [train(p, mlp(p, WIDTH), keys(1), precision="float64", **PRECISE)[0] for p in problems]
    for name in measured_by_default():
        np.testing.assert_allclose(results[0][name][0], results[1][name][0], rtol=1e-12)


def test_measured_steps():
    often = a_problem(num_steps=7)
    seldom = replace(often, measure_every=3)
    (all_steps,), (some,) = (train(p, mlp(p, WIDTH), keys(1), observables=["loss"]) for p in (often, seldom))
    np.testing.assert_array_equal(some.steps, [0, 3, 6])
    np.testing.assert_array_equal(some["loss"], all_steps["loss"][[0, 3, 6]])


def test_zero_steps():
    problem = a_problem(num_steps=0)
    (got,) = train(problem, mlp(problem, WIDTH, *TANH), keys(1), precision="float64", **PRECISE)
    assert got["loss"].shape == (1,)
    assert got["residual_eigenvalues"].shape == (1, 2)


@pytest.mark.parametrize("vectorized", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_chunks_change_nothing(vectorized):
    problem = everything(measure_every=3)
    network, seeds, options = mlp(problem, WIDTH, *TANH), keys(3), {"observables": CHEAP, "precision": "float64"}
    one_by_one = [train(problem, network, seeds[i : i + 1], **options)[0] for i in range(3)]
    fractions, memory = [], _memory_for(2, problem, network, vectorized)
    options |= {"vectorized": vectorized, "memory": memory, "progress": fractions.append}
    in_chunks = train(problem, network, seeds, **options)
    np.testing.assert_allclose(fractions, np.arange(1, 7) / 6)  # two chunks of three measured steps
    for a, b in zip(one_by_one, in_chunks, strict=True):
        for name in CHEAP:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("vectorized", [False, True])
def test_learning_rates_side_by_side_are_problems_of_their_own(vectorized):
    """With a schedule, momentum and Adam; the same key at two rates."""
    problem = a_problem(optimizer="adam", warmup_steps=2, schedule="cosine", measure_every=3)
    network, seeds, rates = mlp(problem, WIDTH, *TANH), keys(2)[np.array([0, 1, 1])], (0.02, 0.05, 1e-3)
    options = {"observables": ["loss", "directional_sharpness"], "precision": "float64"}
    together = train(problem, network, seeds, learning_rates=rates, vectorized=vectorized, **options)
    for i, (rate, got) in enumerate(zip(rates, together, strict=True)):
        (alone,) = train(replace(problem, learning_rate=rate), network, seeds[i : i + 1], **options)
        for name in options["observables"]:
            np.testing.assert_allclose(got[name], alone[name], rtol=1e-9, err_msg=f"{name} {rate}")
    assert not np.isclose(together[1]["loss"][-1], together[2]["loss"][-1])


@pytest.mark.parametrize(
    ("plan", "said", "rows"),
    [
        (Plan(3, 1, False, 1), "one network after the other (cpu)", [[0, 1, 2]]),
        (Plan(1, 1, True, 1), "one network after the other (cpu)", [[0]]),
        (Plan(5, 1, True, 1), "5 networks in a batch (cpu)", [[0, 1, 2, 3, 4]]),
        (Plan(5, 2, True, 1), "3 networks in a batch, 2 batches one after the other (cpu)", [[0, 1, 2], [3, 4, 4]]),
        (Plan(3, 1, True, 2), "3 networks in a batch, spread over 2 devices (cpu)", [[0, 1, 2, 2]]),
    ],
)
def test_what_was_chosen_is_said(plan, said, rows):
    assert str(plan) == said
    assert [chunk.tolist() for chunk in plan.rows()] == rows


def test_training_logs_what_it_chose(caplog):
    problem = a_problem(num_steps=0)
    with caplog.at_level(logging.INFO, "finite"):
        train(problem, mlp(problem, WIDTH, *TANH), keys(2), observables=["loss"])
    assert [record.getMessage() for record in caplog.records] == ["one network after the other (cpu)"]


@pytest.mark.slow
def test_batched_lanczos_is_lanczos():
    problem = everything(measure_every=3)
    network = mlp(problem, WIDTH, *TANH)
    options = {"precision": "float64", **PRECISE}
    batched = train(problem, network, keys(2), vectorized=True, **options)
    for i, got in enumerate(batched):
        (alone,) = train(problem, network, keys(2)[i : i + 1], **options)
        for name in measured_by_default():
            np.testing.assert_allclose(got[name], alone[name], rtol=1e-7, atol=1e-10, err_msg=name)


ON_TWO_DEVICES = """
import sys; sys.path.insert(0, {tests!r})
import jax, numpy as np, trained
from test_train import a_problem, keys
from finite.training import train as training
from finite.networks.mlp import mlp
assert len(jax.devices()) == 2
problem = a_problem()
network = mlp(problem, 8, 2, "tanh")
options = dict(observables=["loss", "hessian_trace", "directional_sharpness"], precision="float64")  # no decompositions:
# batched, on two devices of two cores, they may wait for each other
placed = []
over_devices = training._over_devices
training._over_devices = lambda tree: placed.append(over_devices(tree)) or placed[-1]
beside = trained.train(problem, network, keys(3), vectorized=True, **options)
leaf = jax.tree.leaves(placed[0])[0]
assert leaf.shape[0] == 4 and leaf.sharding.shard_shape(leaf.shape)[0] == 2  # half of the seeds on each
for one, other in zip(beside, trained.train(problem, network, keys(3), **options), strict=True):
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-7, atol=1e-10, err_msg=name)
assert len(beside) == 3
"""


@pytest.mark.slow
def test_seeds_spread_over_the_devices():
    """Two devices, three seeds: the same numbers as one after the other on one."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = ON_TWO_DEVICES.format(tests=str(Path(__file__).parent))
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)


def _memory_for(count, problem, network, vectorized):
    with computing("float64"):
        program = program_of(problem, network.architecture, CHEAP, Numerics(vectorized=vectorized))
        resident, workspace = footprint(problem, network, program, problem.num_samples)
    return count * resident + (count if vectorized else 1) * workspace


@pytest.mark.slow
def test_a_warm_start_takes_half_the_products():
    """Of the largest Hessian eigenvalue of images in ten classes, measured every fifth step."""
    inputs, targets = digits(128, 10)[:2]
    problem = Problem(inputs, targets, learning_rate=0.3, num_steps=60, measure_every=5, top_k=1)
    options = {"observables": ["loss", "hessian_eigenvalues"], "rtol": 1e-3}
    cold, warm = (train(problem, mlp(problem, 32, *TANH), keys(3), warm_start=w, **options) for w in (False, True))
    for one, other in zip(warm, cold, strict=True):
        np.testing.assert_allclose(one["sharpness"], other["sharpness"], rtol=1e-3)
    of_warm, of_cold = (np.array([one.products["hessian_eigenvalues"] for one in seeds]) for seeds in (warm, cold))
    np.testing.assert_array_equal(of_warm[:, 0], of_cold[:, 0])
    assert 2 * of_warm[:, 1:].sum() <= of_cold[:, 1:].sum()


def test_seeds_differ_and_repeat():
    problem = a_problem(measure_every=6)
    network = mlp(problem, WIDTH, *TANH)
    first, second = train(problem, network, keys(2), **PRECISE)
    again, _ = train(problem, network, keys(2), **PRECISE)
    assert not np.isclose(first["loss"][0], second["loss"][0])
    for name in measured_by_default():
        np.testing.assert_array_equal(first[name], again[name])


def test_explicit_initial_weights():
    problem = a_problem(measure_every=2)
    network = mlp(problem, WIDTH, *TANH)
    initial = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(network.init, keys(2)))
    given = train(problem, network, keys(2), initial=initial, **PRECISE)
    for got, expected in zip(given, train(problem, network, keys(2), **PRECISE), strict=True):
        for name in measured_by_default():
            np.testing.assert_array_equal(got[name], expected[name])


def test_no_recompilation(caplog):
    """Other numbers, other seeds and other batches of the same size compile nothing."""
    problem = everything()
    train(problem, mlp(problem, WIDTH, *TANH), keys(2), **PRECISE)
    batches = minibatches(np.random.default_rng(5), 6, 2, 6)
    changes = {"parametrization": "ntp", "richness": 2.0, "learning_rate": 0.11, "momentum": 0.3, "weight_decay": 0.7}
    other = replace(problem, **changes, batches=batches, measure_every=2)
    seeds = keys(2, seed=9)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        train(other, mlp(other, WIDTH, *TANH), seeds, **PRECISE)
    compiled = [r.getMessage() for r in caplog.records if "compil" in r.getMessage().lower()]
    assert not compiled
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        train(other, mlp(other, WIDTH + 1), seeds, observables=["loss"])
    assert any("_advance" in r.getMessage() for r in caplog.records)  # so the count above would have seen one


class Held:
    """Arrays that the caller may hand on but cannot look into."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __array__(self, *given, **named):
        raise AssertionError("the caller looked into what stays on the device")


@pytest.mark.parametrize("vectorized", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_data_stay_on_the_device(monkeypatch, vectorized):
    """After the start nothing is put there but scalars, on purpose; nothing is fetched but what was measured, when it was.

    JAX's guard refuses other ways in; ways out it does not see on a CPU, whose memory is ours: weights and states are hidden.
    """
    fetched, guard = [], contextlib.ExitStack()

    def watched(function, hidden, after=lambda: None):
        def call(*given):
            found = function(*(one.arrays if isinstance(one, Held) else one for one in given))
            after()
            return tuple(Held(one) if hide else one for one, hide in zip(found, hidden, strict=True))

        return call

    def put(tree):
        assert sum(np.size(leaf) for leaf in jax.tree.leaves(tree)) <= 2
        return put_there(tree)

    def begun():
        guard.enter_context(jax.transfer_guard("disallow"))
        monkeypatch.setattr(jax, "device_put", put)

    def get(tree):
        fetched.append(sum(leaf.size for leaf in jax.tree.leaves(tree)))
        return got_from_there(tree)

    put_there, got_from_there = jax.device_put, jax.device_get
    monkeypatch.setattr(training, "_begin", watched(training._begin, (True, True), begun))
    monkeypatch.setattr(training, "_advance", watched(training._advance, (True, True)))
    monkeypatch.setattr(training, "_measure", watched(training._measure, (False, True)))
    problem = everything(measure_every=2, loss="cross_entropy", optimizer="adam", momentum=0.0)
    network = mlp(problem, WIDTH, *TANH)
    given = {"initial": jax.vmap(network.init)(keys(3)), "observables": ["loss", "hessian_eigenvalues"]}
    with guard:
        monkeypatch.setattr(jax, "device_get", get)
        train(problem, network, keys(3), vectorized=vectorized, **given)
    assert fetched == [3 * (1 + problem.top_k + problem.top_k + 1)] * len(problem.steps)  # values, errors, products


def test_divergence_is_data():
    problem = a_problem(learning_rate=1e4, num_steps=40, measure_every=10)
    diverged, also = train(problem, mlp(problem, WIDTH, *TANH), keys(2), **PRECISE)
    for trajectory in (diverged, also):
        assert trajectory.diverged[-1]
        assert not trajectory.diverged[0]
        for name in measured_by_default():
            assert np.isfinite(trajectory[name][0]).all()
            assert not np.isfinite(trajectory[name][-1]).any()
            assert not np.isnan(trajectory.error(name)).any()


def test_a_divergence_leaves_the_other_seeds_alone():
    problem = a_problem(measure_every=3)
    network = mlp(problem, WIDTH)
    good = network.init(keys(1)[0])
    initial = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * jnp.nan]), good)
    (alone,) = train(problem, network, keys(1), observables=CHEAP)
    for vectorized in (False, True):
        beside, broken = train(
            problem, network, keys(2), initial=initial, vectorized=vectorized, observables=CHEAP
        )
        assert broken.diverged.all()
        for name in CHEAP:
            np.testing.assert_allclose(beside[name], alone[name], rtol=1e-4)


def test_float32_is_close_to_float64():
    problem = a_problem(measure_every=3)
    network = mlp(problem, WIDTH, *TANH)
    single, _ = train(problem, network, keys(2), precision="float32", **PRECISE)
    (double,) = train(problem, network, keys(2)[:1], precision="float64", **PRECISE)
    for name in measured_by_default():
        assert (np.abs(single[name] - double[name]) <= 1e-5 * np.abs(double[name]).max()).all(), name


@pytest.mark.parametrize(("num_samples", "width"), [(6, 9), (40, 4)], ids=["outputs", "parameters"])
def test_large_kernels_go_through_lanczos(monkeypatch, num_samples, width):
    """In the smaller of the two spaces: PC = 12 < 45 parameters, PC = 80 > 20 parameters."""
    problem = a_problem(num_samples=num_samples, measure_every=6)
    kernel = ["ntk_eigenvalues", "gauss_newton_eigenvalues"]
    (dense,) = train(problem, mlp(problem, width), keys(1), observables=kernel, precision="float64", rtol=1e-8)
    monkeypatch.setattr(observing, "DENSE_NTK_ROWS", 0)
    jax.clear_caches()
    (got,) = train(problem, mlp(problem, width), keys(1), observables=kernel, precision="float64", rtol=1e-8)
    for name in kernel:
        np.testing.assert_allclose(got[name], dense[name], rtol=1e-7)
        assert name in got.errors
        assert name not in dense.errors


@pytest.mark.slow
def test_a_readouts_eigenvalues_occur_once_for_every_output():
    """H = 1 ⊗ K, K the Hessian of one output of the same features: top_k = 7 is three, three and one of 3 outputs."""
    one, three = (a_problem(num_outputs=c, trained="readout", num_steps=0, top_k=k) for c, k in ((1, 3), (3, 7)))
    weights, other = (mlp(problem, 24, *TANH).init(keys(1)[0]) for problem in (one, three))
    alone = jax.tree.map(lambda leaf: leaf[None], weights)
    wider = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape)[None], weights, other)
    options = {"observables": ["hessian_eigenvalues", "ntk_eigenvalues"], "precision": "float64"}
    (single,), (found,) = (
        train(problem, mlp(problem, 24, *TANH), keys(1), initial=initial, **options)
        for problem, initial in ((one, alone), (three, wider))
    )
    for name in options["observables"]:
        np.testing.assert_allclose(found[name][0], np.repeat(single[name][0], 3)[:7], rtol=1e-3)
        assert (found.error(name) <= 1e-3 * found[name]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "top_k"), [(3, 3), (10, 20)])
def test_repeated_eigenvalues_of_a_readout_are_those_of_the_dense_kernel(outputs, top_k):
    """Width 200, random data, several networks side by side: H = r JJᵀ/P, J the derivative by the readout, r its rate."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(12, 5)), rng.normal(size=(12, outputs))
    problem = Problem(inputs=X, targets=Y, model="mlp2", trained="readout", num_steps=0, top_k=top_k)
    network, names = build(problem, 200), ["hessian_eigenvalues", "ntk_eigenvalues"]
    found = train(problem, network, keys(3), observables=names, precision="float64", vectorized=True)
    for key, one in zip(keys(3), found, strict=True):
        with jax.enable_x64(True):
            params = jax.tree.map(lambda w: jnp.asarray(w, float), network.init(key))
            jacobian = jax.jacobian(lambda v: network.apply(params | {"readout": v}, jnp.asarray(X)))(params["readout"])  # noqa: B023
            J = np.asarray(jacobian).reshape(12 * outputs, -1)
        dense = network.numbers("learning_rate")["readout"] * np.linalg.eigvalsh(J @ J.T / 12)[::-1][:top_k]
        for name in names:
            np.testing.assert_allclose(one[name][0], dense, rtol=1e-3)
            assert (np.abs(one[name][0] - dense) <= one.error(name)[0] + 1e-12).all()
            assert (one.error(name)[0] <= 1.01e-3 * dense).all()
    limit = solve(problem)["hessian_eigenvalues"][0]
    mean = np.mean([one["hessian_eigenvalues"][0] for one in found], axis=0)
    np.testing.assert_allclose(mean[:outputs], limit[:outputs], rtol=0.3)  # 3 networks, 5/sqrt(200) of a deviation


@pytest.mark.slow
def test_identical_samples_repeat_no_eigenvalue():
    """Twelve samples, four of them different: of the Hessian of a readout four eigenvalues per output, and zeros."""
    rng = np.random.default_rng(1)
    X, Y = (np.tile(rng.normal(size=(4, n)), (3, 1)) for n in (5, 2))
    problem = Problem(inputs=X, targets=Y, model="mlp2", trained="readout", num_steps=0, top_k=10)
    few = replace(problem, inputs=X[:4], targets=Y[:4])
    options = {"observables": ["hessian_eigenvalues", "ntk_eigenvalues"], "precision": "float64"}
    (all_of_them,), (different,) = (train(p, mlp(p, 50), keys(1), **options) for p in (problem, few))
    for name in options["observables"]:
        np.testing.assert_allclose(all_of_them[name][0], different[name][0], rtol=2e-3, atol=1e-9)
    np.testing.assert_allclose(all_of_them["hessian_eigenvalues"][0], all_of_them["ntk_eigenvalues"][0], rtol=1e-3, atol=1e-9)


def test_spectra_end_in_exact_zeros():
    problem = a_problem(num_samples=2, num_outputs=1, top_k=4)
    (got,) = train(problem, mlp(problem, WIDTH), keys(1), observables=["ntk_eigenvalues", "gauss_newton_eigenvalues"])
    for name in ("ntk_eigenvalues", "gauss_newton_eigenvalues"):
        assert (got[name][:, :2] > 0).all()
        assert (got[name][:, 2:] == 0).all()


def test_as_many_eigenvalues_as_parameters():
    problem = a_problem(num_inputs=1, num_outputs=1, top_k=2, num_steps=0)
    (got,) = train(problem, mlp(problem, 1), keys(1), precision="float64")
    np.testing.assert_allclose(got["hessian_min"], got["hessian_eigenvalues"][:, -1])
    np.testing.assert_allclose(got["hessian_eigenvalues"].sum(), got["hessian_trace"], rtol=1e-10)
    too_many = replace(problem, top_k=3)
    with pytest.raises(ValueError, match="top_k 3 is more than the network's 2 parameters"):
        train(too_many, mlp(too_many, 1), keys(1))


@pytest.mark.slow
def test_more_eigenvalues_than_a_basis_usually_has():
    problem = a_problem(top_k=110, num_steps=0, measure_every=1)
    network = mlp(problem, 64)
    (got,) = train(problem, network, keys(1), precision="float64", observables=["hessian_eigenvalues"])
    assert np.isfinite(got["hessian_eigenvalues"]).all()
    assert np.isfinite(got.error("hessian_eigenvalues")).all()


@pytest.mark.parametrize("samples", [1, 512, 1024, 1300])
def test_the_loss_of_many_samples_is_taken_in_parts(samples):
    problem = a_problem(num_samples=samples)
    network = mlp(problem, WIDTH)
    with computing("float64"):
        data = network.init(keys(1)[0]), jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
        found, wanted = (jax.jit(partial(mean, network.apply))(*data) for mean in (curvature.loss_of_many, curvature.loss))
    np.testing.assert_allclose(found, wanted, rtol=1e-13)


def test_what_minibatches_need_does_not_grow_with_the_data():
    def needed(samples):
        problem = a_problem(num_samples=samples, num_steps=3, batches=np.zeros((3, 8), int))
        network = mlp(problem, 1024)
        program = program_of(problem, network.architecture, ("loss",), Numerics(vectorized=False))
        return footprint(problem, network, program, 8)[1]

    assert needed(50_000) == needed(5_000)


def test_refusals():
    problem = a_problem()
    network = mlp(problem, WIDTH)
    with pytest.raises(ValueError, match="unknown observable 'sharpnes'; known: loss"):
        train(problem, network, keys(1), observables=["sharpnes"])
    with pytest.raises(ValueError, match="build it for this problem"):
        train(replace(problem, richness=2.0), network, keys(1))
    with pytest.raises(ValueError, match="build it for this problem"):
        train(a_problem(num_inputs=4), network, keys(1))
    with pytest.raises(ValueError, match="3 keys but initial weights for 1"):
        train(problem, network, keys(3), initial=jax.tree.map(lambda leaf: leaf[None], network.init(keys(1)[0])))
    with pytest.raises(ValueError, match="2 keys but 1 learning rates: one for each"):
        train(problem, network, keys(2), learning_rates=[0.1])
    with pytest.raises(ValueError, match="one key per network"):
        train(problem, network, jax.random.key(0))
    with pytest.raises(ValueError, match="one key per network"):
        training._check_networks([jax.random.key(0)], None, None)
    with pytest.raises(MemoryError, match="one network needs about"):
        train(problem, network, keys(1), memory=100)


# Augmentation -----------------------------------------------------------------------------------------------------------


def images_problem(**changes):
    """Four images of 6×5 pixels in two channels."""
    rng = np.random.default_rng(2)
    inputs, targets = rng.uniform(-1, 1, size=(4, 6 * 5 * 2)), rng.normal(size=(4, 2))
    usual = {"model": "mlp2", "image_shape": (6, 5, 2), "augment": True, "num_steps": 5, "learning_rate": 0.3, "richness": 0.7}
    return Problem(inputs, targets, **usual | changes)


def as_seen(problem, key, step, rows):
    """The rows' images cut out of a frame as dark as the darkest of their channel, in NumPy, from the key's own draws."""
    (H, W, channels), images = problem.image, problem.inputs.reshape(-1, *problem.image)
    key = jax.random.fold_in(jax.random.fold_in(key, int.from_bytes(b"crop")), step)
    place_key, flip_key = jax.random.split(key)
    corners = np.asarray(jax.random.randint(place_key, (len(rows), 2), 0, 9, jnp.int32))
    mirrored = np.asarray(jax.random.bernoulli(flip_key, jnp.float32(0.5), (len(rows),)))
    seen = []
    for p, (i, j), mirror in zip(rows, corners, mirrored, strict=True):
        framed = np.broadcast_to(images.min(axis=(0, 1, 2)), (H + 8, W + 8, channels)).copy()
        framed[4 : 4 + H, 4 : 4 + W] = images[p]
        crop = framed[i : i + H, j : j + W]
        seen.append((crop[:, ::-1] if mirror else crop).ravel())
    return np.stack(seen)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("batch", [None, 3])
def test_augmented_training_is_the_loop_written_out(batch, vectorized):
    """Each step sees its own crops; the loss is that of the samples as they are."""
    batches = None if batch is None else minibatches(np.random.default_rng(1), 4, batch, 5)
    problem = images_problem(batches=batches)
    network = mlp(problem, WIDTH, 1, "tanh")
    options = {"observables": ["loss"], "vectorized": vectorized}
    double = train(problem, network, keys(2), precision="float64", **options)
    single = train(problem, network, keys(2), precision="float32", **options)
    plain = train(replace(problem, augment=False), network, keys(2), precision="float64", **options)
    for key, got, rounded, without in zip(keys(2), double, single, plain, strict=True):
        weights, expected = in_numpy(network.init(key)), []
        for t in range(problem.num_steps + 1):
            expected.append(plain_loss(problem, weights))
            if t < problem.num_steps:
                rows = np.arange(4) if batch is None else batches[t]
                batch_seen = as_seen(problem, key, t, rows), problem.targets[rows]
                *_, weights = written_out(Problem(*batch_seen, learning_rate=0.3, richness=0.7, num_steps=1), weights, "tanh")
        np.testing.assert_allclose(got["loss"], expected, rtol=1e-10)
        np.testing.assert_allclose(rounded["loss"], expected, rtol=1e-4)
        assert got["loss"][0] == pytest.approx(without["loss"][0])
        assert np.abs(got["loss"] / without["loss"] - 1)[1:].min() > 1e-3


def plain_loss(problem, weights):
    with computing("float64"):
        error = np.asarray(outputs(problem, weights, "tanh")) - problem.targets
    return np.sum(error**2) / (2 * problem.num_samples)


def test_augmentation_is_the_keys_and_compiles_nothing_anew(caplog):
    problem = images_problem()
    network = mlp(problem, WIDTH, 1, "tanh")
    initial = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), network.init(keys(1)[0]))
    options = {"initial": initial, "observables": ["loss"]}
    one, other = train(problem, network, keys(2), **options)
    again, _ = train(problem, network, keys(2), **options)
    np.testing.assert_array_equal(one["loss"], again["loss"])
    assert one["loss"][0] == other["loss"][0]
    assert (one["loss"][1:] != other["loss"][1:]).all()
    seeds = keys(2, seed=9)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        third, _ = train(replace(problem, inputs=problem.inputs / 2), network, seeds, **options)
    assert not [r for r in caplog.records if "compil" in r.getMessage().lower()]
    assert (third["loss"][1:] != one["loss"][1:]).all()


def test_a_convnet_is_augmented():
    data = np.random.default_rng(0).uniform(-1, 1, size=(3, 64))
    problem = Problem(data, np.ones(3), model="conv", augment=True, num_steps=3)
    network = conv(problem, 8)
    raw = jax.vmap(jax.random.key_data)(keys(1))
    (got,), (old,) = (train(problem, network, k, observables=["loss"]) for k in (keys(1), raw))
    (plain,) = train(replace(problem, augment=False), network, keys(1), observables=["loss"])
    np.testing.assert_array_equal(got["loss"], old["loss"])  # keys of either kind
    assert got["loss"][0] == plain["loss"][0]
    assert (got["loss"][1:] != plain["loss"][1:]).all()
