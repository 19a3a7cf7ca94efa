"""Laws from particles' masses: against finite differences, the exact ones of linear networks, and many small networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import Problem, minibatches
from limits import theories as limit
from limits.activations import Activation
from limits.machine import in_float64
from limits.two_layer import linear_law as fluctuations
from limits.two_layer import meanfield, particles
from limits.two_layer.neuron_blocks import hessian, measure
from limits.two_layer.secular import eigenvalue

RICH = {"momentum": 0.3, "nesterov": True, "weight_decay": 0.05, "batches": minibatches(np.random.default_rng(0), 8, 4, 4)}


def a_problem(activation="tanh", C=1, loss="mse", **options):
    rng = np.random.default_rng(3)
    inputs, targets = rng.normal(size=(8, 3)), 0.3 * rng.normal(size=(8, C))
    if loss == "cross_entropy":
        targets = np.eye(C)[rng.integers(C, size=8)]
    usual = {"num_steps": 4, "measure_every": 2, "learning_rate": 0.4, "top_k": 2}
    return Problem(inputs, targets, model="mlp2", activation=activation, loss=loss, **usual | options)


def largest(matrix, k):
    return np.linalg.eigvalsh(matrix)[::-1][:k]


@in_float64
def observe(problem, start, mass):
    """The observables of the limit from particles of these masses, each by its own definition."""
    of, population = particles.functions(problem), particles.population(problem, mass)
    states, found = particles.path(of, population, problem, start), []
    for t in range(len(problem.steps)):
        measured = measure(of, population, jax.tree.map(lambda a: a[t], states))  # noqa: B023
        exact = hessian(measured)
        found.append(
            {
                "loss": measured.loss,
                "hessian_eigenvalues": np.array([eigenvalue(exact, k + 1) for k in range(problem.top_k)]),
                "gauss_newton_eigenvalues": largest(measured.gauss_newton, problem.top_k),
                "ntk_eigenvalues": largest(measured.ntk, problem.top_k),
                "directional_sharpness": measured.directional_sharpness,
            }
        )
    return {name: np.stack([of[name] for of in found]) for name in found[0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [RICH, {"activation": "gelu", "C": 3, "loss": "cross_entropy", "richness": 0.5}],
    ids=["everything", "cross-entropy"],
)
def test_laws_are_finite_differences_in_the_masses(options):
    """Of the trained cloud's observables: Var ∂o/∂w_i, and D²o along the same random directions."""
    problem, M, count, h = a_problem(**options), 32, 8, 2e-4
    law = meanfield.predict(problem, particles=M, repeats=2, directions=count, seed=7)
    variance, second = {name: 0.0 for name in law}, {name: 0.0 for name in law}
    for rng in np.random.default_rng(7).spawn(2):
        start, mass = particles.cloud(problem, M, rng), np.full(M, 1 / M)
        signs = rng.choice([-1.0, 1.0], size=(count, M))
        middle = observe(problem, start, mass)
        slopes = []
        for one in np.eye(M):
            up, down = (observe(problem, start, mass + sign * h * one) for sign in (1, -1))
            slopes.append({name: (up[name] - down[name]) / (2 * h) for name in middle})
        for along in (signs - signs.mean(1, keepdims=True)) / np.sqrt(M):
            up, down = (observe(problem, start, mass + sign * h * along) for sign in (1, -1))
            for name in middle:
                second[name] += (up[name] - 2 * middle[name] + down[name]) / h**2 / (2 * count)
        for name in middle:
            variance[name] += np.var([slope[name] for slope in slopes], axis=0) / 2
    compared = 0
    for name in middle:
        known = np.isfinite(law[name].std)
        known[0] &= problem.num_outputs == 1 or name not in ("ntk_eigenvalues", "gauss_newton_eigenvalues")  # there they split
        np.testing.assert_allclose(law[name].std[known], np.sqrt(variance[name])[known], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(law[name].bias[known], second[name][known] / 2, rtol=1e-3, atol=1e-4, err_msg=name)
        compared += name == "hessian_eigenvalues" and known.sum()
    assert compared >= 3


TWO_OUTPUTS = pytest.param({"C": 2, "momentum": 0.3}, marks=pytest.mark.long)  # several have the tests around it


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, TWO_OUTPUTS], ids=["plain", "two outputs"])
def test_linear_networks_have_the_exact_laws(options):
    """Every observable of a two-layer linear network, whose law is exact and otherwise derived, within the standard errors."""
    problem = a_problem("linear", **options)
    problem = replace(problem, targets=problem.targets * np.array([4.0, 0.5])[: problem.num_outputs], learning_rate=0.8)
    law, exact = meanfield.predict(problem, particles=1024, repeats=8, directions=48), fluctuations.predict(problem)
    assert set(law) == set(exact)
    for name in exact:
        known = np.isfinite(law[name].std) & np.isfinite(exact[name].std)
        for of in ("std", "bias", "shift"):
            ours, theirs = getattr(law[name], of), getattr(exact[name], of)
            error = np.hypot(getattr(law[name], f"{of}_error"), getattr(exact[name], f"{of}_error"))
            assert np.all((np.abs(ours - theirs) <= 5 * error + 1e-3 * np.abs(theirs) + 1e-9)[known]), (name, of, ours, theirs)
        assert np.all((law[name].std_error <= 0.1 * law[name].std + 1e-9)[known]), name
        if problem.num_outputs == 2 and name in ("ntk_eigenvalues", "gauss_newton_eigenvalues"):
            assert law[name].shift[0, 0] > 0 > law[name].shift[0, 1], "at step 0 each is there twice"
    assert np.isfinite(law["sharpness"].std[-1])


@in_float64
def kernels_at_the_start(problem, width, count):
    """(NTK, Gauss-Newton matrix) of so many networks, each (count, PC, PC)."""
    of, population = particles.functions(problem), particles.population(problem, np.full(width, 1 / width))
    rng, r = np.random.default_rng(5), population.inputs.shape[1]

    def of_network(z):
        theta = particles.ntk(of, population, z)
        return theta, particles.gauss_newton(of, population, z, theta)

    drawn = particles.Neurons(rng.normal(size=(count, width, r)), rng.normal(size=(count, width, problem.num_outputs)))
    return jax.lax.map(of_network, jax.tree.map(jax.numpy.asarray, drawn))


@pytest.mark.slow
def test_eigenvalues_that_are_one_at_step_0_split_as_those_of_networks():
    """They are one in the limit, exactly; of networks the mean, and the root mean square, of each in order."""
    problem = a_problem("gelu", C=3, loss="cross_entropy", num_steps=0, measure_every=1, top_k=3)
    law, centre = meanfield.predict(problem, particles=256, repeats=2, directions=8), meanfield.solve(problem)
    width, count = 1024, 200
    for name, copies, matrices in zip(("ntk_eigenvalues", "gauss_newton_eigenvalues"), (3, 2),
                                      kernels_at_the_start(problem, width, count), strict=True):  # fmt: skip
        assert np.ptp(centre[name][0, :copies]) < 1e-12
        assert centre.error(name)[0, 0] < 1e-3
        error = np.linalg.eigvalsh(np.asarray(matrices))[:, ::-1][:, :copies] - centre[name][0, :copies]
        std, shift, bias = (getattr(law[name], of)[0, :copies] for of in ("std", "shift", "bias"))
        assert shift[0] > 0 > shift[-1]
        slack = 4 * error.std(0) / np.sqrt(count) + 0.05 * std / np.sqrt(width)
        assert np.all(np.abs(error.mean(0) - shift / np.sqrt(width) - bias / width) < slack)
        assert np.sqrt(width * (error**2).mean(0)) == pytest.approx(std, rel=0.2)


CLASSES = {"activation": "erf", "C": 2, "loss": "cross_entropy", "richness": 0.25, "learning_rate": 1.0}


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, CLASSES], ids=["tanh", "cross-entropy"])
def test_laws_describe_sampled_networks(options):
    """Root mean square and mean over 1000 networks of width 200 within the sampling error."""
    problem = a_problem(**options)
    law, centre = meanfield.predict(problem, repeats=8), meanfield.solve(problem, particles=2**13, repeats=8)
    width, count = 200, 1000
    deviations = {name: [] for name in centre}
    for rng in np.random.default_rng(11).spawn(count):
        start = particles.Neurons(rng.normal(size=(width, 3)), rng.normal(size=(width, problem.num_outputs)))
        network = observe(problem, start, np.full(width, 1 / width))
        for name, values in network.items():
            deviations[name].append(values - centre[name])
    for name in network:
        error, of = np.asarray(deviations[name]), law[name]
        known, spread = np.isfinite(of.std), error.std(0) / np.sqrt(count)
        assert known.any(), name
        squares = width * (error**2).mean(0)
        slack = 5 * width * (error**2).std(0) / np.sqrt(count) + 10 * of.std * of.std_error + 0.05 * squares
        assert np.all((np.abs(squares - of.std**2) <= slack)[known]), (name, squares, of.std**2, slack)
        slack = 5 * (spread + of.bias_error / width + centre.error(name)) + 0.1 * np.abs(of.bias) / width
        assert np.all((np.abs(error.mean(0) - of.bias / width) <= slack)[known]), (name, error.mean(0), of.bias / width, slack)


FEW = {"particles": 256, "repeats": 2, "directions": 8}


def test_of_the_loss_at_step_0():
    """f(0) ~ N(0, Φ)/√N: the loss departs by −f·y/P + |f|²/2P."""
    problem = a_problem()
    y, P = problem.targets[:, 0], problem.num_samples
    drawn = np.tanh(np.random.default_rng(0).normal(size=(200_000, 3)) @ problem.inputs.T / np.sqrt(3))
    kernel, law = drawn.T @ drawn / len(drawn), meanfield.predict(problem, **FEW)["loss"]
    for found, error, wanted in ((law.std, law.std_error, np.sqrt(y @ kernel @ y) / P),
                                 (law.bias, law.bias_error, np.trace(kernel) / 2 / P)):  # fmt: skip
        assert 0 < error[0] < 0.3 * wanted
        assert abs(found[0] - wanted) < 4 * error[0]


def test_what_has_no_law():
    """Eigenvalues in the bulk, everything after a divergence, and networks with a kink, wherever it is."""
    few, problem = FEW, a_problem()
    law = meanfield.predict(replace(problem, targets=100 * problem.targets), **few)
    assert np.isnan(law["sharpness"].std[0])
    assert np.isfinite(law["ntk_eigenvalues"].std[0, 0])
    wild = meanfield.predict(replace(problem, learning_rate=1e100), **few)
    assert not np.isfinite(wild["loss"].std[-1])
    assert np.isnan(wild["sharpness"].std[-1])
    assert meanfield.predict(a_problem("relu"), **few) is None


@pytest.mark.parametrize(("kinked", "phi"), [
    (True, lambda h: jnp.clip(h, -1, 1)), (True, jax.nn.relu6), (True, jax.nn.hard_swish), (True, jax.nn.selu),
    (True, lambda h: jnp.maximum(h - 1.2345, 0.99 * (h - 1.2345))),
    (False, jax.nn.elu), (False, jax.nn.silu), (False, jnp.sin), (False, jnp.exp), (False, lambda h: jnp.tanh(100 * h)),
    (False, lambda h: jax.nn.relu(h) ** 2)])  # fmt: skip
def test_kinks_are_found_wherever_they_are(kinked, phi):
    assert Activation("a new one", phi).kinked == kinked


def test_the_front_door_knows_them():
    assert limit.theory(a_problem()).predict is meanfield.predict


def test_refusals():
    with pytest.raises(ValueError, match="ntp has another limit"):
        meanfield.predict(a_problem(parametrization="ntp"))
    with pytest.raises(ValueError, match="1 repeats: a standard error needs two"):
        meanfield.predict(a_problem(), repeats=1)
    with pytest.raises(MemoryError, match="particles need about"):
        meanfield.predict(a_problem(), particles=2**50)
