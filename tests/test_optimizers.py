"""The optimisers of ``limits.problem`` against loops written out and optax's own, and the curvature that belongs to them."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from trained import train
from written_out import descend, descend_with_squares, in_numpy, loss, numbers, outputs

from finite.data.synthetic import digits
from finite.networks.mlp import mlp
from finite.training.descent import Descent
from limits import theories as limit
from limits.machine import computing
from limits.problem import Problem, minibatches
from limits.trajectory import NODE, OBSERVABLES, storable

WIDTH, DEPTH, STEPS = 6, 2, 12
ADAM = {"optimizer": "adam", "betas": (0.8, 0.9), "epsilon": 0.3}
VARIANTS = {
    "heavy ball": {"momentum": 0.6},
    "nesterov": {"momentum": 0.6, "nesterov": True},
    "nesterov, cosine": {"momentum": 0.6, "nesterov": True, "schedule": "cosine"},
    "warm-up": {"warmup_steps": 5},
    "adam": ADAM,
    "adamw": ADAM | {"optimizer": "adamw"},
    "adamw, warm-up, cosine": ADAM | {"optimizer": "adamw", "warmup_steps": 4, "schedule": "cosine"},
    "adam, cosine": ADAM | {"schedule": "cosine"},
}


def a_problem(**changes):
    rng = np.random.default_rng(0)
    rest = {"num_steps": STEPS, "learning_rate": 0.1, "richness": 0.7, "weight_decay": 0.2, "parametrization": "sp"}
    rest |= {"batches": minibatches(rng, 6, 4, STEPS)}
    return Problem(rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), **rest | changes)


def trained(problem, key=0, **options):
    network = mlp(problem, WIDTH, DEPTH, "tanh")
    (trajectory,) = train(problem, network, jax.random.key(key)[None], precision="float64", **options)
    return network, trajectory


def start_of(network):
    return in_numpy(network.init(jax.random.key(0)))


def losses(problem, path):
    multiplier = numbers("sp", problem.rule, WIDTH, DEPTH, problem.richness).multiplier
    return np.array([loss(weights, multiplier, problem.inputs, problem.targets, "tanh") for weights in path])


@pytest.fixture(scope="module")
def found():
    """By variant: the loss along training."""
    return {variant: trained(a_problem(**changes), observables=["loss"])[1]["loss"] for variant, changes in VARIANTS.items()}


def test_variants_differ(found):
    last = np.sort([path[-1] for path in found.values()])
    assert (np.diff(last) > 1e-4 * last[1:]).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_is_the_loop_written_out(variant, found):
    problem = a_problem(**VARIANTS[variant])
    of = numbers("sp", problem.rule, WIDTH, DEPTH, problem.richness)
    with computing("float64"):
        expected = losses(problem, descend(problem, start_of(mlp(problem, WIDTH, DEPTH, "tanh")), of, "tanh"))
    np.testing.assert_allclose(found[variant], expected, rtol=1e-9)


def in_optax(problem, of, role):
    """Optax's own recipe for one role's stored weights."""
    eta, warmup = problem.learning_rate, problem.warmup_steps
    after = problem.num_steps - warmup
    schedule = optax.cosine_decay_schedule(eta, after) if problem.schedule == "cosine" else optax.constant_schedule(eta)
    rising = optax.linear_schedule(eta / max(warmup, 1), eta, max(warmup - 1, 1))
    schedule = optax.join_schedules([rising, schedule], [warmup]) if warmup else schedule

    def rate(step):
        return schedule(step) * of.rate[role]

    decay, (b1, b2), epsilon = problem.weight_decay, problem.betas, problem.epsilon * of.gradient[role]
    if problem.optimizer == "sgd":
        momentum = problem.momentum or None
        return optax.chain(optax.add_decayed_weights(decay / of.rate[role]), optax.sgd(rate, momentum, problem.nesterov))
    if problem.optimizer == "adamw":
        return optax.adamw(rate, b1, b2, epsilon, weight_decay=decay / of.rate[role])
    return optax.chain(optax.add_decayed_weights(decay * of.gradient[role]), optax.adam(rate, b1, b2, epsilon))


@pytest.mark.parametrize("variant", VARIANTS)
def test_optax_agrees(variant, found):
    """Role by role at its own rate, on weights as stored; to float32, in which optax computes its schedules."""
    problem = a_problem(**VARIANTS[variant])
    of = numbers("sp", problem.rule, WIDTH, DEPTH, problem.richness)
    with computing("float64"):
        params = jax.tree.map(jnp.asarray, start_of(mlp(problem, WIDTH, DEPTH, "tanh")))
        slope = jax.jit(jax.grad(lambda params, *batch: loss(params, of.multiplier, *batch, "tanh")))
        optimizers = {role: in_optax(problem, of, role) for role in params}
        states, path = {role: optimizers[role].init(params[role]) for role in params}, [params]
        for rows in problem.batches:
            gradient = slope(params, problem.inputs[rows], problem.targets[rows])
            for role, optimizer in optimizers.items():
                update, states[role] = optimizer.update(gradient[role], states[role], params[role])
                params = params | {role: optax.apply_updates(params[role], update)}
            path.append(params)
        expected = losses(problem, path)
    np.testing.assert_allclose(found[variant], expected, rtol=1e-7)


def test_learning_rates():
    warm = a_problem(warmup_steps=4, num_steps=6, batches=None)
    np.testing.assert_allclose(warm.step_sizes, 0.1 * np.array([0.25, 0.5, 0.75, 1, 1, 1, 1]))
    falling = replace(warm, schedule="cosine", warmup_steps=2)
    cosines = np.array([1, 1, 1, 0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5, 0]) * np.array([0.5, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(falling.step_sizes, 0.1 * cosines, atol=1e-15)
    assert replace(falling, num_steps=0).step_sizes == pytest.approx([0.05])
    assert replace(warm, num_steps=2).step_sizes == pytest.approx([0.025, 0.05, 0.075])


EDGES = {
    "sgd": {},
    "heavy ball": {"momentum": 0.7},
    "nesterov": {"momentum": 0.7, "nesterov": True},
    "adam": {"optimizer": "adam", "weight_decay": 0.0},
    "adamw": {"optimizer": "adamw", "betas": (0.8, 0.999)},
    "rmsprop": {"optimizer": "adamw", "betas": (0.0, 0.999)},
}


@pytest.mark.parametrize("name", EDGES)
def test_edge_of_stability(name):
    """Of h w²/2: Adam, whose gradients stay far below its ε = 1, divides by 1."""
    rest = {"learning_rate": 0.3, "warmup_steps": 10, "epsilon": 1.0, "num_steps": 2000, "batches": None}
    problem = a_problem(**rest | EDGES[name])
    unit = {"w": jnp.ones(())}
    with computing("float64"):
        real = partial(jnp.asarray, dtype=float)
        update = Descent(
            problem.optimizer, problem.nesterov, real(problem.step_sizes), real(problem.momentum),
            tuple(map(real, problem.betas)), real(problem.epsilon), {"w": real(problem.weight_decay)}, unit, unit, unit, unit,
        ).transformation()  # fmt: skip
        start = {"w": real(1e-100)}

        def after(sharpness):
            def step(_, now):
                params, state = now
                updates, state = update.update({"w": sharpness * params["w"]}, state, params)
                return optax.apply_updates(params, updates), state

            return float(abs(jax.lax.fori_loop(0, 2000, step, (start, update.init(start)))[0]["w"] / start["w"]))

        below, above = (after(factor * problem.preconditioned_edge_of_stability) for factor in (0.97, 1.03))
    assert below < 0.1
    assert above > 10


def test_edges_in_numbers():
    adam = a_problem(optimizer="adam", weight_decay=0.0, learning_rate=1.0)
    for beta, edge in ((0.9, 38), (0.8, 18), (0.5, 6), (0.0, 2)):
        assert replace(adam, betas=(beta, 0.99)).preconditioned_edge_of_stability == pytest.approx(edge)
    assert np.isnan(adam.edge_of_stability)
    assert np.isnan(replace(adam, weight_decay=0.1).preconditioned_edge_of_stability)
    sgd = a_problem(momentum=0.5, weight_decay=0.0, learning_rate=1.0)
    assert sgd.edge_of_stability == sgd.preconditioned_edge_of_stability == pytest.approx(3)
    assert replace(sgd, nesterov=True, weight_decay=0.2).edge_of_stability == pytest.approx(1.5 - 0.2)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "heavy ball")]  # adam has momentum too


@pytest.mark.parametrize("variant", [*SLOW, "adam", "adamw"])
def test_curvature_is_that_of_the_dense_matrices(variant):
    """As the conventions of ``limits.problem`` say it, in SP, where every role has its own rate r and its own gradient's
    size s; of all samples, v̂ of the batches trained on.  ReLU: tr R is 0, so no trace is estimated.
    """
    problem = a_problem(**{"sgd": {}, **VARIANTS}[variant], measure_every=4)
    network, of = mlp(problem, WIDTH, DEPTH, "relu"), numbers("sp", problem.rule, WIDTH, DEPTH, problem.richness)
    names = [name for name in storable() if OBSERVABLES[name].axis is not NODE]
    (got,) = train(problem, network, jax.random.key(0)[None], precision="float64", rtol=1e-9, observables=names)
    with computing("float64"):
        states = list(descend_with_squares(problem, start_of(network), of, "relu"))[::4]
        expected = [dense_curvature(problem, of, *state) for state in states]
    for name in names:
        np.testing.assert_allclose(got[name], [one[name] for one in expected], rtol=1e-7, atol=1e-10, err_msg=name)
    if problem.rule == "adam":
        assert got.error("preconditioned_sharpness")[0] == np.inf
    else:
        np.testing.assert_allclose(got["preconditioned_sharpness"], got["sharpness"], rtol=1e-7)


def dense_curvature(problem, of, weights, squares):
    """Every observable, from the Hessian and the Jacobian of the network written out, of weights as stored."""
    (flat, unravel), k, adam = ravel_pytree(weights), problem.top_k, problem.rule == "adam"

    def f(w):
        return outputs(unravel(w), of.multiplier, problem.inputs, "relu")

    def losses(w):
        return jnp.sum((f(w) - problem.targets) ** 2, axis=1) / 2

    def of_role(number):
        return ravel_pytree({role: jax.tree.map(lambda w: np.full_like(w, number(role)), weights[role]) for role in weights})[0]  # noqa: B023

    M = of_role(lambda role: of.rate[role] / (of.gradient[role] if adam else 1.0))
    P = ravel_pytree(squares)[0] ** 0.5 / of_role(of.gradient.get) + problem.epsilon if adam else np.ones_like(flat)
    H = np.sqrt(M)[:, None] * jax.hessian(lambda w: jnp.mean(losses(w)))(flat) * np.sqrt(M)
    J = jax.jacobian(f)(flat).reshape(problem.targets.size, -1) * np.sqrt(M)
    G, rows = J.T @ J / problem.num_samples, jax.jacobian(losses)(flat) * np.sqrt(M)
    g, preconditioned = rows.mean(0), H / np.sqrt(P[:, None] * P)
    spectrum, residual = np.linalg.eigvalsh(H)[::-1], np.linalg.eigvalsh(H - G)[::-1]
    return {
        "loss": jnp.mean(losses(flat)),
        "hessian_eigenvalues": spectrum[:k],
        "hessian_min": spectrum[-1],
        "gauss_newton_eigenvalues": np.linalg.eigvalsh(G)[::-1][:k],
        "residual_eigenvalues": residual[[0, -1]],
        "ntk_eigenvalues": np.linalg.eigvalsh(J @ J.T / problem.num_samples)[::-1][:k],
        "hessian_trace": np.trace(H),
        "directional_sharpness": g @ H @ g / (g @ g),
        "preconditioned_sharpness": np.linalg.eigvalsh(preconditioned)[-1] if np.isfinite(preconditioned).all() else np.nan,
        "gradient_noise": np.sum((rows - g) ** 2) / problem.num_samples,
    }


@pytest.mark.slow
def test_adam_settles_at_the_edge_of_stability():
    """η0 λ_1(P^{-1}H) of full-batch Adam rises to 38, 18 and 6 for β1 = 0.9, 0.8 and 0.5, and stays (Cohen et al. 2022)."""
    inputs, targets = digits(64, 10)[:2]
    for beta, edge in ((0.9, 38), (0.8, 18), (0.5, 6)):
        problem = Problem(inputs, targets, optimizer="adam", betas=(beta, 0.99), learning_rate=0.003, num_steps=4000,
                          measure_every=200, top_k=1)  # fmt: skip
        network = mlp(problem, 16, DEPTH, "tanh")
        (got,) = train(problem, network, jax.random.key(0)[None], precision="float64",
                       observables=["loss", "preconditioned_sharpness"])  # fmt: skip
        sharpness = problem.learning_rate * got["preconditioned_sharpness"]
        assert sharpness[1] < edge / 10
        np.testing.assert_allclose(sharpness[-8:], edge, rtol=0.15)
        assert got["loss"][-1] < 1e-3 * got["loss"][0]


@pytest.mark.slow
def test_curvature_on_the_first_samples():
    """All but the loss is that of a problem with these samples only."""
    problem = a_problem(num_steps=0, batches=None)
    few = replace(problem, inputs=problem.inputs[:4], targets=problem.targets[:4])
    names = ("loss", "hessian_eigenvalues", "ntk_eigenvalues", "directional_sharpness", "gradient_noise")
    options = {"observables": names, "rtol": 1e-9}
    (_, whole), (_, part) = trained(problem, **options, curvature_samples=4), trained(few, **options)
    for name in names:
        same = np.allclose(whole[name], part[name], rtol=1e-7, atol=1e-10, equal_nan=True)
        assert same == (name != "loss"), name
    _, everything = trained(problem, observables=["loss", "gradient_noise"])
    assert whole["loss"] == pytest.approx(everything["loss"])
    assert not np.isclose(whole["gradient_noise"], everything["gradient_noise"])
    for wrong in (0, 7):
        with pytest.raises(ValueError, match=f"curvature_samples {wrong} must be from 1 to the 6 samples"):
            trained(problem, curvature_samples=wrong)


@pytest.mark.slow
def test_products_are_counted():
    problem = a_problem(num_steps=2, batches=None)
    by_products = {"hessian_eigenvalues", "hessian_min", "hessian_trace", "directional_sharpness"}
    _, got = trained(problem, observables=["loss", "ntk_eigenvalues", "gradient_noise", *by_products], probes=5)
    assert set(got.products) == by_products
    for counts in got.products.values():
        assert counts.shape == (3,)
        assert np.issubdtype(counts.dtype, np.integer)
    np.testing.assert_array_equal(got.products["hessian_min"], got.products["hessian_eigenvalues"])
    np.testing.assert_array_equal(got.products["hessian_trace"], 5)
    np.testing.assert_array_equal(got.products["directional_sharpness"], 1)
    assert ((got.products["hessian_min"] > 4) & (got.products["hessian_min"] <= 66)).all()  # as many as parameters


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_limits_refuse_what_acts_on_entries(optimizer):
    with pytest.raises(ValueError, match=f"no limit is known with {optimizer}"):
        limit.theory(a_problem(parametrization="mup", weight_decay=0.0, batches=None, model="mlp", optimizer=optimizer))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nesterov": True}, "nesterov looks ahead along the momentum: sgd has none here"),
        ({"nesterov": True, "optimizer": "adam"}, "momentum: adam has none"),
        ({"optimizer": "adamw", "momentum": 0.5}, "momentum 0.5 must be 0: adamw has betas and epsilon"),
        ({"schedule": "linear"}, "unknown schedule 'linear'; known: constant, cosine"),
        ({"warmup_steps": -1}, "number of warm-up steps -1 must be at least 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        a_problem(**options)
