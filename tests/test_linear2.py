"""The Gram recursion of the two-layer linear network against trained networks, closed forms and an ODE of its own."""

from math import inf

import jax
import numpy as np
import pytest
import scipy.integrate
from dense_network import train_dense
from hypothesis import given, settings
from hypothesis import strategies as st
from trained import train

from comparisons.pairs import initial_gram
from finite.networks.mlp import mlp
from limits import Problem, minibatches
from limits.exponents.parametrization import interpolated
from limits.two_layer import linear as linear2
from limits.two_layer.linear_curvature import hessian_spectrum


def random_problem(seed=0, P=7, D=5, C=1, batch=None, **options):
    rng = np.random.default_rng(seed)
    options = {"num_steps": 6, "measure_every": 2, "learning_rate": 0.3, "richness": 1.3, "top_k": 4} | options
    batches = None if batch is None else minibatches(rng, P, batch, options["num_steps"])
    return Problem(inputs=rng.normal(size=(P, D)), targets=rng.normal(size=(P, C)), batches=batches, **options)


def whitened(y, P=3, D=5, **options):
    """XXᵀ = D·1 and |targets| = y: the sum-of-squares loss ½Σ|f − y|² is P times ours, so its curvature is P times ours."""
    rng = np.random.default_rng(1)
    X = np.sqrt(D) * np.linalg.qr(rng.normal(size=(D, P)))[0].T
    Y = rng.normal(size=(P, 1))
    return Problem(inputs=X, targets=y * Y / np.linalg.norm(Y), **options)


EXACT_CASES = {
    "mup": {"width": 20},
    "mup, 3 outputs, momentum, decay, minibatches": {
        "C": 3, "width": 20, "momentum": 0.5, "weight_decay": 0.1, "batch": 3},
    "mup, narrow": {"width": 4, "momentum": 0.3, "batch": 3},
    "mup, narrower than its outputs": {"C": 3, "width": 2, "P": 4, "D": 6},
    "mup, as wide as D + C": {"C": 3, "width": 9, "P": 4, "D": 6},
    "mup, one spare unit, more ranks than that": {"C": 3, "width": 10, "D": 6, "top_k": 12},
    "mup, fewer samples than outputs": {"C": 3, "width": 20, "P": 2, "D": 4},
    "ntp": {"parametrization": "ntp", "width": 30, "P": 4, "D": 6},
    "ntp, 3 outputs, momentum, decay, minibatches": {
        "parametrization": "ntp", "C": 3, "width": 30, "momentum": 0.3, "weight_decay": 0.1, "batch": 3},
    "ntp, narrow": {"parametrization": "ntp", "C": 3, "width": 5, "momentum": 0.3, "batch": 3},
    "in between": {"parametrization": interpolated(0.25), "width": 11},
}  # fmt: skip


SLOW = ("mup, narrower than its outputs", "mup, as wide as D + C", "mup, fewer samples than outputs")


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if name in SLOW else [], id=name)
                                  for name, case in EXACT_CASES.items()])  # fmt: skip
def test_every_width_equals_the_trained_network(case):
    options = dict(case)
    width = options.pop("width")
    problem = random_problem(**options)
    Z = np.random.default_rng(9).normal(size=(problem.num_inputs + problem.num_outputs, width))
    with jax.enable_x64(True):
        network = train_dense(problem, Z)
    exact = linear2.solve(problem, width=width, gram=Z @ Z.T / width)
    for name in exact.observables:
        np.testing.assert_allclose(exact[name], network[name], atol=1e-10, err_msg=name)

    states = linear2.evolve(problem, width=width, gram=Z @ Z.T / width)
    spectrum = hessian_spectrum(jax.tree.map(lambda a: a[-1], states), width)
    whole = np.repeat(spectrum.values, np.asarray(spectrum.multiplicities, int))
    np.testing.assert_allclose(whole, network["spectrum"][-1], atol=1e-10)


@pytest.mark.parametrize("name", ["mup", "ntp"])
@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"warmup_steps": 3, "schedule": "cosine"}])
def test_both_rooms_say_the_same(name, options):
    """``finite.train`` from a key, and the recursion from that network's Gram matrix."""
    problem = random_problem(parametrization=name, momentum=0.4, weight_decay=0.1, batch=3, top_k=2, **options)
    network, keys = mlp(problem, 12), jax.random.split(jax.random.key(3), 1)
    trained = train(problem, network, keys, precision="float64", rtol=1e-11)[0]
    exact = linear2.solve(problem, width=12, gram=initial_gram(network, keys[0]))
    for observable in exact:
        np.testing.assert_allclose(trained[observable], exact[observable], rtol=1e-8, atol=1e-9, err_msg=observable)


@pytest.mark.parametrize("y", [0.5, 2.0])
def test_initial_sharpness_closed_form(y):
    """Sum of squares, XXᵀ = D·1, γ0 = 1: sharpness 1 + √(1+y²) where the NTK eigenvalue is 2."""
    for problem in (whitened(y, num_steps=0), whitened(y, P=1, D=1, num_steps=0)):
        start = linear2.solve(problem)
        P = problem.num_samples
        np.testing.assert_allclose(P * start["sharpness"], 1 + np.sqrt(1 + y**2), rtol=1e-13)
        np.testing.assert_allclose(P * start["ntk_eigenvalues"][:, 0], 2, rtol=1e-13)


@pytest.mark.parametrize("richness", [0.5, 1.0, 2.0])
def test_flow_follows_the_scalar_equation(richness):
    """Sum of squares, XXᵀ = D·1: dΔ/dt = −2√(1+κ(y−Δ)²) Δ, κ = γ0², ending at sharpness 2√(1+κy²); t = τ/P in our loss."""
    y, P = 1.5, 3
    problem = whitened(y, P=P, richness=richness, learning_rate=0.5, num_steps=240, measure_every=20)
    flow = linear2.flow(problem)
    times = problem.learning_rate * problem.steps / P
    delta = scipy.integrate.solve_ivp(
        lambda _, d: -2 * np.sqrt(1 + richness**2 * (y - d) ** 2) * d, (0, times[-1]), [y],
        t_eval=times, rtol=1e-11, atol=1e-13,
    ).y[0]  # fmt: skip
    np.testing.assert_allclose(P * flow["loss"], delta**2 / 2, atol=1e-9)
    np.testing.assert_allclose(P * flow["sharpness"][-1], 2 * np.sqrt(1 + richness**2 * y**2), rtol=1e-6)


def test_catapult_map():
    """One sample, y = 0, κ = γ0² = 1/n: f ← f(1 − ηλ + η²f²/n), λ ← λ + (ηf²/n)(ηλ − 4)  (Lewkowycz et al. 2020)."""
    n, eta, gram = 50, 1.4, np.array([[1.1, 0.35], [0.35, 0.9]])
    problem = Problem(inputs=np.ones((1, 1)), targets=np.zeros((1, 1)), richness=n**-0.5, learning_rate=eta, num_steps=30)
    f, lam, expected = gram[0, 1] * np.sqrt(n), gram[0, 0] + gram[1, 1], []
    for _ in range(31):
        expected.append((f**2 / 2, lam))
        f, lam = f * (1 - eta * lam + eta**2 * f**2 / n), lam + eta * f**2 / n * (eta * lam - 4)
    exact = linear2.solve(problem, width=n, gram=gram)
    assert exact["loss"].argmax() > 0, "this learning rate should make the loss jump first"
    np.testing.assert_allclose(exact["loss"], [e[0] for e in expected], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(exact["ntk_eigenvalues"][:, 0], [e[1] for e in expected], rtol=1e-11)


@pytest.mark.parametrize("C", [1, 2])
@pytest.mark.parametrize("name", ["mup", "ntp"])
def test_networks_approach_the_limit(name, C):
    """At width 10⁴ᵏ the distance is about 10^{-2k}: the limit is the limit, with the network's own f(0) in NTP."""
    problem = random_problem(C=C, parametrization=name, top_k=1)
    D = problem.num_inputs
    for width in (10**8, 10**12):
        gram = linear2.sample_gram(jax.random.key(0), problem, width=width)
        f0 = problem.inputs @ gram[:D, D:] * np.sqrt(width / D) / problem.richness
        limit = linear2.solve(problem, initial_outputs=f0 if name == "ntp" else None)
        network = linear2.solve(problem, width=width, gram=gram)
        for observable in limit:
            distance = np.abs(network[observable] - limit[observable]).max()
            assert distance < 60 / np.sqrt(width), (observable, width)


def test_between_the_two_the_limit_is_the_kernel_one():
    lazy = linear2.solve(random_problem(parametrization=interpolated(0.25)))
    kernel = linear2.solve(random_problem(parametrization="ntp"))
    for name in lazy:
        np.testing.assert_allclose(lazy[name], kernel[name], atol=1e-14)


def test_kernel_limit_is_linear_regression():
    """W_{t+1} = W_t − η0 (2/D)(K W_t − B), written out."""
    problem = random_problem(parametrization="ntp", num_steps=8, measure_every=1)
    X, Y = problem.inputs, problem.targets
    W, losses = np.zeros((5, 1)), []
    for _ in range(9):
        losses.append(0.5 * np.mean((X @ W - Y) ** 2))
        W = W - problem.learning_rate * 2 / 5 * X.T @ (X @ W - Y) / len(X)
    np.testing.assert_allclose(linear2.solve(problem)["loss"], losses, rtol=1e-12)


def test_flow_is_the_limit_of_small_steps():
    """Halving η0 at fixed τ halves the distance between descent and flow."""
    def distance(steps):
        problem = random_problem(learning_rate=2.0 / steps, num_steps=steps, measure_every=steps, weight_decay=0.1)
        return np.abs(linear2.solve(problem)["loss"][-1] - linear2.flow(problem)["loss"][-1])

    assert distance(200) / distance(400) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.4, "weight_decay": 0.1, "batch": 3}])
def test_loss_law_by_quadrature(options):
    """The loss is of degree 2 in the four entries of W_0: three Gauss-Hermite nodes each give its moments exactly."""
    problem = random_problem(P=6, D=2, C=2, parametrization="ntp", measure_every=3, **options)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    sigma = 1 / (problem.richness * np.sqrt(2))
    grid = np.stack(np.meshgrid(*[nodes] * 4), -1).reshape(-1, 2, 2) * sigma
    chance = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * 4), -1).reshape(-1, 4), axis=1)
    losses = np.stack([linear2.solve(problem, initial_outputs=problem.inputs @ W)["loss"] for W in grid])
    mean, std = linear2.loss_law(problem)
    np.testing.assert_allclose(mean, chance @ losses, rtol=1e-10)
    np.testing.assert_allclose(std, np.sqrt(chance @ losses**2 - (chance @ losses) ** 2), rtol=1e-8)


@pytest.mark.parametrize("width", [3, 6, 40, 10**9])
def test_sampled_gram_has_wishart_moments(width):
    """E S = 1 and N Cov(S_ij, S_kl) = δ_ik δ_jl + δ_il δ_jk, at any width."""
    problem = random_problem(D=4, C=2)
    draws = np.stack([linear2.sample_gram(k, problem, width=width) for k in jax.random.split(jax.random.key(1), 1500)])
    assert np.linalg.matrix_rank(draws[0]) == min(width, 6)
    scaled = (draws - np.eye(6)) * np.sqrt(width)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=5 * np.sqrt(2 / 1500))
    np.testing.assert_allclose(scaled.var(0), 1 + np.eye(6), atol=0.45)


def test_cost_does_not_see_the_width():
    """Same compiled program at every width: nothing is sized by N."""
    problem = random_problem()
    sizes = linear2.descend._cache_size
    linear2.solve(problem, width=10**3, gram=linear2.sample_gram(jax.random.key(0), problem, width=10**3))
    before = sizes()
    linear2.solve(problem, width=10**15, gram=linear2.sample_gram(jax.random.key(0), problem, width=10**15))
    assert sizes() == before


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 2), st.sampled_from([4, 50]))
def test_rotating_the_inputs_changes_nothing(seed, C, width):
    problem = random_problem(seed, C=C)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    gram = linear2.sample_gram(jax.random.key(seed), problem, width=width)
    turned = Problem(inputs=problem.inputs @ turn, targets=problem.targets, learning_rate=0.3, richness=1.3,
                     num_steps=6, measure_every=2, top_k=4)  # fmt: skip
    both = np.block([[turn, np.zeros((5, C))], [np.zeros((C, 5)), np.eye(C)]])
    one = linear2.solve(problem, width=width, gram=gram)
    other = linear2.solve(turned, width=width, gram=both.T @ gram @ both)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-8, atol=1e-9 * np.abs(one[name]).max())


def test_divergence_is_data():
    diverged = linear2.solve(random_problem(learning_rate=50.0, num_steps=40))
    assert diverged.diverged[-1]
    assert not diverged.diverged[0]


def test_wide_inputs_cost_their_rank():
    """D = 400 inputs seen at 6 points: the dynamics lives in 6 dimensions."""
    problem = random_problem(P=6, D=400, learning_rate=1.0)
    assert linear2.evolve(problem).gram.shape == (4, 7, 7)
    assert linear2.scales(problem, inf).num_inputs == 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 10}, "both its width and its initial Gram"),
        ({"gram": np.eye(6)}, "both its width and its initial Gram"),
        ({"width": 0, "gram": np.eye(6)}, "at least 1"),
        ({"width": 10, "gram": np.eye(5)}, "symmetric and of shape"),
        ({"width": 10, "gram": np.triu(np.ones((6, 6)))}, "symmetric and of shape"),
        ({"initial_outputs": np.ones((7, 1))}, "f\\(0\\) = 0"),
        ({"width": 10, "gram": np.eye(6), "initial_outputs": np.ones((7, 1))}, "already fixes"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear2.solve(random_problem(), **arguments)


def test_impossible_initial_outputs():
    problem = random_problem(parametrization="ntp")
    with pytest.raises(ValueError, match="not linear"):
        linear2.solve(problem, initial_outputs=np.ones((7, 1)))
    with pytest.raises(ValueError, match="like the targets"):
        linear2.solve(problem, initial_outputs=np.ones((7, 2)))


def test_flow_and_law_refuse_what_they_do_not_cover():
    with pytest.raises(ValueError, match="neither momentum, minibatches"):
        linear2.flow(random_problem(momentum=0.5))
    with pytest.raises(ValueError, match="does not depend on f"):
        linear2.loss_law(random_problem())
