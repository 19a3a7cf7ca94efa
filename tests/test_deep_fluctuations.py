"""The 1/√N and 1/N laws of deep linear networks: against two-layer theory, closed forms, trained networks."""

from dataclasses import replace
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from trained import train

from finite.networks.build import build
from limits import Problem, minibatches, predict
from limits.coordinates import coordinates
from limits.deep import curvature, dmft, lanczos, network
from limits.deep import linear as deep_linear
from limits.deep import linear_law as deep_fluctuations
from limits.machine import computing, in_float64
from limits.two_layer import linear as linear2
from limits.two_layer import linear_law as fluctuations

NAMES = ("loss", "ntk_eigenvalues")
RESIDUAL = {"model": "resmlp", "activation": "linear", "parametrization": "depth_mup", "depth": 2}


def a_problem(P=8, D=3, C=1, **options):
    rng = np.random.default_rng(3)
    options = {"num_steps": 6, "measure_every": 3, "learning_rate": 0.1, "top_k": 2} | options
    return Problem(rng.normal(size=(P, D)), rng.normal(size=(P, C)), **options)


def whitened(**options):
    """Of one sample per direction and K = 1: the error signal keeps its direction in the limit, and at no finite width."""
    rng = np.random.default_rng(1)
    X = 2 * np.linalg.qr(rng.normal(size=(4, 4)))[0]
    return Problem(X, X @ rng.normal(size=(4, 1)), measure_every=10, num_steps=40, top_k=1, **options)


ONE_LAYER = {
    "plain": lambda: a_problem(learning_rate=0.4),
    "momentum, decay, minibatches, two outputs": lambda: a_problem(
        C=2, learning_rate=0.4, momentum=0.3, weight_decay=0.05, batches=minibatches(np.random.default_rng(0), 8, 4, 6)
    ),
    "fields that are dependent in the limit only": lambda: whitened(learning_rate=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", [
    pytest.param(problem, marks=[] if name == "plain" else pytest.mark.long, id=name)
    for name, problem in ONE_LAYER.items()])  # fmt: skip
def test_one_hidden_layer_is_linear2(problem):
    """Whose law is exact; the standard errors are right, too: they are neither too small nor of no use."""
    problem = problem()
    ours, exact = deep_linear.predict(problem, depth=1, draws=2048), fluctuations.predict(problem)
    for name in (*NAMES, "gauss_newton_eigenvalues", "hessian_eigenvalues", "hessian_trace", "directional_sharpness"):
        for kind in ("std", "bias", "shift"):
            values, error, known = getattr(ours[name], kind), getattr(ours[name], f"{kind}_error"), getattr(exact[name], kind)
            assert np.isfinite(known[np.isfinite(values)]).all()
            distance = np.abs(values - known)
            assert np.all(np.isnan(distance) | (distance <= 4 * error + 1e-4 * np.abs(known))), (name, kind, values, known)
        assert np.all(np.isnan(ours[name].std) | (ours[name].std_error < 0.06 * ours[name].std)), name
    assert np.isfinite(ours["sharpness"].std).all()


def test_one_hidden_layer_at_a_width_is_linear2():
    """The same Gaussians, at a width of a hundred: every observable, the Hessian's too, after some steps of momentum."""
    C, width = 2, 100
    problem = a_problem(C=C, momentum=0.3, weight_decay=0.05, learning_rate=0.4)
    with computing("float64"):
        kind, data = dmft._read(replace(problem, model="linear2"), 0, 0)
        data = data._replace(space=deep_fluctuations.Space(jnp.ones(()), jnp.asarray(1e-10), jnp.asarray(False)))
        signals = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, C)))
        sizes = deep_fluctuations._sizes(3, C, 0, 7, *deep_fluctuations._room(kind, data, 0, 2))
        noise = jax.random.normal(jax.random.key(0), (1, 1, *[sizes.n + sizes.m] * 2), dtype=float)
        runs, epsilon = jnp.asarray(np.diff(problem.steps, prepend=-1)), jnp.asarray(width**-0.5)
        ours, fits = deep_fluctuations._networks(kind, sizes, data, runs, signals, epsilon, noise)
        (rows,) = deep_fluctuations._gaussians(sizes, epsilon, noise[0])
        basis, rows, ours = jax.tree.map(np.asarray, (coordinates(problem).basis, rows, ours))
    start = np.concatenate([basis @ rows[:3], rows[sizes.n : sizes.n + C]])
    exact = linear2.solve(problem, width=width, gram=start @ start.T)
    assert fits.all()
    np.testing.assert_allclose(ours.hessian.values[0, :, :2], exact["hessian_eigenvalues"], rtol=1e-8)
    np.testing.assert_allclose(ours.hessian.directional[0], exact["directional_sharpness"], rtol=1e-8)
    values = np.linalg.eigvalsh(ours.smooth.theta[0])[:, ::-1]
    np.testing.assert_allclose(values[:, :2], exact["ntk_eigenvalues"], rtol=1e-8)


@pytest.mark.slow
@in_float64
def test_two_hidden_layers_at_a_width_are_a_network():
    """With the random matrix written out as far as it is known: dense gradient descent, and the dense Hessian by autodiff."""
    problem = a_problem(model="linear3", learning_rate=0.4, num_steps=2)
    kind, data = dmft._read(problem, 0, 0)
    data = data._replace(space=deep_fluctuations.Space(jnp.ones(()), jnp.asarray(1e-10), jnp.asarray(False)))
    sizes = deep_fluctuations._sizes(3, 1, 1, 3, *deep_fluctuations._room(kind, data, 1, 1))
    noise = jax.random.normal(jax.random.key(0), (2, *[sizes.n + sizes.m] * 2), dtype=float)
    rows = deep_fluctuations._gaussians(sizes, jnp.asarray(0.1), noise)
    below, above = rows[:, : sizes.n], rows[:, sizes.n :]
    state = network.begin(kind, data, below[0, :3], below[1:], above[:-1], above[-1, :1])
    step = jax.jit(partial(deep_fluctuations._step, kind, data, None))
    for _ in range(3):
        state = step(state)
    perceptron, parts = curvature.Perceptron(kind), jnp.asarray(lanczos.HESSIAN)
    products = deep_fluctuations.PRODUCTS
    matrices, now, krylov = lanczos.begin(perceptron, data, state.fields, state.matrices, data.targets[None], products)
    for _ in range(products):
        matrices, krylov = lanczos.extended(perceptron, data, parts, now, matrices, krylov)

    met = jax.tree.map(lambda of: of[0], matrices)
    unseen = met.returned * (jnp.arange(sizes.m) < met.num_above)[:, None]
    W = (met.sent + met.forward.T @ met.above).T @ met.below + met.above.T @ data.space.beyond(unseen, met.below)
    weights = [below[0, :3], W, above[-1, :1]]

    def loss(first, W, last):
        return jnp.mean((data.inputs @ first @ W.T @ last.T / problem.richness - data.targets) ** 2) / 2

    for _ in range(2):
        forces = jax.grad(loss, (0, 1, 2))(*weights)
        weights = [w - problem.learning_rate * problem.richness**2 * force for w, force in zip(weights, forces, strict=True)]
    flat, unflatten = jax.flatten_util.ravel_pytree(weights)
    dense = problem.richness**2 * jax.hessian(lambda flat: loss(*unflatten(flat)))(flat)
    values = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose(state.fields.outputs, data.inputs @ weights[0] @ weights[1].T @ weights[2].T, rtol=1e-8)
    np.testing.assert_allclose(np.linalg.eigvalsh(krylov.matrix)[-1], values[-1], rtol=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_start_in_closed_form(depth):
    """One sample, x = 1.  Θ = Σ_l H^l G^{l+1}, a product of L factors |Wv|²/|v|² of mean 1 and variance 2/N each.

    To first order they are independent, those of W^i forward and backward too, and Σ_k of them vary by k: twice
    Σ_k 2k²/N for k = 1 … L.  No mean moves.  f(0) is of variance 1/(Nγ0²).
    """
    y, richness = 1.7, 0.8
    problem = Problem(np.ones((1, 1)), [[y]], richness=richness, num_steps=0, top_k=1)
    law = deep_linear.predict(problem, depth=depth, draws=4096, hessian=False)
    assert "sharpness" not in law
    exact = {
        "ntk_eigenvalues": (2 * np.sqrt(depth * (depth + 1) * (2 * depth + 1) / 6), 0.0),
        "loss": (y / richness, 0.5 / richness**2),
    }
    for name, (std, bias) in exact.items():
        assert abs(law[name].std.ravel()[0] - std) <= 4 * law[name].std_error.ravel()[0] <= 0.1 * std
        assert abs(law[name].bias.ravel()[0] - bias) <= 4 * law[name].bias_error.ravel()[0] <= 0.4 * std


def test_pair_at_the_start_in_closed_form():
    """The same with two outputs: Θ' = Σ_k k (h_k + Ξ_k) with independent h_k ~ N(0,2) and symmetric Gaussian 2 × 2 matrices.

    These have eigenvalues t ± r, t ~ N(0,1) and r of density r e^{-r²/2}: mean ±√(π/2), and both have variance 2 + 1 + 2.
    """
    problem = Problem(np.ones((1, 1)), [[0.3, -0.7]], num_steps=0, top_k=2)
    law = deep_linear.predict(problem, depth=2, draws=4096, hessian=False)["ntk_eigenvalues"]
    scale = np.sqrt(1 + 4)
    shift = scale * np.sqrt(np.pi / 2) * np.array([1, -1])
    assert np.all(np.abs(law.shift[0] - shift) <= 4 * law.shift_error[0])
    assert np.all(np.abs(law.std[0] - scale * np.sqrt(5)) <= 4 * law.std_error[0])
    assert np.all(law.std_error[0] < 0.03 * law.std[0])


@pytest.mark.slow
def test_without_an_error_signal_the_hessian_moves_as_the_kernel_does():
    """Of targets 0 the residual part vanishes but for f(0), which has no share in o': pairs and all, draw by draw."""
    problem = a_problem(C=2, model="linear3", num_steps=0, measure_every=1)
    problem = replace(problem, targets=np.zeros_like(problem.targets))
    law = deep_linear.predict(problem, draws=32)
    for part in ("std", "shift"):
        ours, exact = (getattr(law[name], part) for name in ("hessian_eigenvalues", "ntk_eigenvalues"))
        np.testing.assert_allclose(ours, exact, rtol=1e-3)
    assert (law["sharpness"].std > 0).all()
    assert np.isnan(law["hessian_min"].std).all()


CASES = {
    "linear3": {"model": "linear3"},
    "linear4": {"model": "linear4", "momentum": 0.3},
    "residual": RESIDUAL | {"momentum": 0.3, "weight_decay": 0.05},
    "one block": RESIDUAL | {"depth": 1, "weight_decay": 0.05},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_without_fluctuations_it_is_the_limit(options):
    """Twelve steps of four directions: every layer's features have met all that they bring."""
    problem = a_problem(D=4, num_steps=12, **options)
    with computing("float64"):
        kind, data = dmft._read(problem, 0, 0)
        data = data._replace(space=deep_fluctuations.Space(jnp.ones(()), jnp.asarray(1e-10), jnp.asarray(False)))
        H, runs = problem.network.depth - (not kind.residual), jnp.asarray(np.diff(problem.steps, prepend=-1))
        sizes = deep_fluctuations._sizes(4, 1, H, 20)
        spaces = 1 if kind.residual else H + 1
        side = (sizes.n + sizes.m) * (H + 1) // spaces
        nothing, zero = jnp.zeros((1, spaces, side, side)), jnp.zeros(())
        found, fits = deep_fluctuations._networks(kind, sizes, data, runs, jnp.zeros((0, 8, 1)), zero, nothing)
        values = np.linalg.eigvalsh(found.smooth.theta[0])[:, ::-1][:, :2]
        outputs = np.asarray(data.inputs @ found.smooth.weights[0])
    assert fits.all()
    limit = dmft.solve(problem, hessian=False)
    np.testing.assert_allclose(values, limit["ntk_eigenvalues"], rtol=1e-8)
    np.testing.assert_allclose(np.sum((outputs - problem.targets) ** 2, (1, 2)) / 16, limit["loss"], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("case", [
    "linear3", *(pytest.param(case, marks=pytest.mark.long) for case in ("linear4", "residual"))])  # fmt: skip
def test_laws_describe_trained_networks(case):
    law = describes_trained_networks(a_problem(**CASES[case]), NAMES, hessian=False)
    assert np.all(np.abs(law["loss"].bias[1:]) > 4 * law["loss"].bias_error[1:])


@pytest.mark.long
@pytest.mark.parametrize("case", ["linear3", "residual"])
def test_laws_of_the_hessian_describe_trained_networks(case):
    law = describes_trained_networks(a_problem(**CASES[case]), ("hessian_eigenvalues",))
    assert np.isfinite(law["sharpness"].std).all()


def describes_trained_networks(problem, names, count=1024, **options):
    """N · variance and N · mean at N = 64 and 128, extrapolated in 1/N, within the errors of seeds and draws.  The law."""
    law, limit = dmft.predict(problem, **options), dmft.solve(problem, **options)
    measured = {}
    for width in (64, 128):
        keys = jax.random.split(jax.random.key(width), count)
        trained = train(problem, build(problem, width), keys, observables=names, precision="float64")
        for name in names:
            deviation = np.stack([one[name] for one in trained]) - limit[name]
            measured[name, width] = {"std": _mean(width * deviation**2), "bias": _mean(width * deviation)}
    for name in names:
        for kind, expected, spread in (
            ("std", law[name].std ** 2, 2 * law[name].std * law[name].std_error),
            ("bias", law[name].bias, law[name].bias_error),
        ):
            (narrow, error), (wide, other) = (measured[name, width][kind] for width in (64, 128))
            found, error = 2 * wide - narrow, np.sqrt(4 * other**2 + error**2 + spread**2)
            known = np.isfinite(expected)
            assert np.all(np.abs(found - expected)[known] <= 4 * error[known]), (name, kind, (found - expected) / error)
            if kind == "std":
                assert np.all(5 * error[known] < expected[known]), name  # it is a measurement
    return law


def _mean(values):
    """(mean over seeds, its standard error)"""
    return values.mean(0), values.std(0) / np.sqrt(len(values))


@pytest.mark.slow
def test_more_room_is_made(monkeypatch):
    """With room for too few steps the laws are found all the same, of other draws."""
    problem = a_problem(model="linear3", num_steps=12)
    usual = deep_linear.predict(problem, draws=512, hessian=False)
    monkeypatch.setattr(deep_fluctuations, "ROOM", 4)
    ours = deep_linear.predict(problem, draws=512, hessian=False)
    for name in NAMES:
        assert np.all(np.abs(ours[name].std - usual[name].std) <= 4 * np.hypot(ours[name].std_error, usual[name].std_error))


def test_what_has_a_law():
    """What of the Hessian is outside its bulk; a divergence is data."""
    law = deep_linear.predict(a_problem(model="linear3", learning_rate=9.0, num_steps=30, measure_every=30), draws=32)
    assert set(law) == {"loss", "ntk_eigenvalues", "gauss_newton_eigenvalues", "hessian_trace", "hessian_eigenvalues",
                        "sharpness", "hessian_min", "directional_sharpness"}  # fmt: skip
    assert law.sensitivity is None
    for name in ("loss", "sharpness", "hessian_trace", "directional_sharpness"):
        np.testing.assert_array_equal(np.isfinite(law[name].std), [True, False])
    assert predict(a_problem(model="mlp3")) is None


def test_too_large_is_refused_before_it_starts():
    with pytest.raises(MemoryError, match=r"these laws need about \d+\.\d GiB, more than the"):
        deep_linear.predict(a_problem(P=900, D=900, C=10, model="linear5", num_steps=30))
