"""The kernel limit: against the two-layer linear one, dense autodiff of a model linear in its weights, and trained networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained import train

from comparisons.statistics.power_law import fit
from finite.networks.build import build
from limits import Problem, minibatches
from limits.exponents.parametrization import gauge, interpolated, scaling
from limits.kernel import ntk
from limits.machine import computing
from limits.two_layer import linear as linear2

EVERYTHING = {"momentum": 0.4, "batches": minibatches(np.random.default_rng(2), 6, 2, 12)}
LOOKING_AHEAD = EVERYTHING | {"nesterov": True, "warmup_steps": 5}
CLASSES = {"loss": "cross_entropy", "targets": np.eye(3)[[0, 1, 2, 0, 1, 0]]}


def a_problem(P=6, D=4, C=2, *, targets=None, **options):
    rng = np.random.default_rng(0)
    usual = {"parametrization": "ntp", "model": "mlp", "activation": "relu", "depth": 2, "learning_rate": 0.4,
             "num_steps": 12, "measure_every": 3, "richness": 0.8, "top_k": 3}  # fmt: skip
    inputs, drawn = rng.normal(size=(P, D)), rng.normal(size=(P, C))
    return Problem(inputs, drawn if targets is None else targets, **usual | options)


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"P": 3}], ids=["plain", "momentum, minibatches", "few samples"])
def test_one_linear_hidden_layer_is_linear2(options):
    """Every observable, from an f(0) that is linear in the inputs; and the law of the loss."""
    problem = a_problem(model="linear2", **options)
    outputs = problem.inputs @ np.random.default_rng(1).normal(size=(4, 2))
    kernel = ntk.solve(problem, initial_outputs=outputs)
    exact = linear2.solve(problem, initial_outputs=outputs)
    assert set(kernel) == set(exact)
    for name in exact:
        np.testing.assert_allclose(kernel[name], exact[name], rtol=1e-9, atol=1e-9, err_msg=name)
    for ours, theirs in zip(ntk.loss_law(problem), linear2.loss_law(problem), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def linear_model(problem, outputs):
    """Every observable of f(θ) = f(0) + Θ^{1/2} θ, trained step by step from θ = 0, its Hessian formed by autodiff."""
    _, theta = ntk.kernels(problem)
    (P, C), features, y = problem.targets.shape, jnp.asarray(np.linalg.cholesky(theta)), jnp.asarray(problem.targets)
    f = lambda w: outputs + features @ w  # noqa: E731
    one = {
        "mse": lambda f, y: 0.5 * jnp.sum((f - y) ** 2, axis=1),
        "cross_entropy": lambda f, y: -jnp.sum(y * jax.nn.log_softmax(f), axis=1),
    }[problem.loss]
    loss = jax.jit(lambda w, rows: jnp.mean(one(f(w)[rows], y[rows])))
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    w, buffer, everything, measured = jnp.zeros((P, C)), 0.0, np.arange(P), []
    for t in range(problem.num_steps + 1):
        H, g = hessian(w, everything).reshape(P * C, P * C), gradient(w, everything).ravel()
        J = jax.jacobian(f)(w).reshape(P * C, P * C)
        measured.append({
            "loss": loss(w, everything),
            "hessian_eigenvalues": jnp.linalg.eigvalsh(H)[::-1][: problem.top_k],
            "ntk_eigenvalues": jnp.linalg.eigvalsh(J @ J.T / P)[::-1][: problem.top_k],
            "hessian_trace": jnp.trace(H),
            "directional_sharpness": g @ H @ g / (g @ g),
        })  # fmt: skip
        if t < problem.num_steps:
            slope = gradient(w, everything if problem.batches is None else problem.batches[t])
            buffer = problem.momentum * buffer + slope
            rate = problem.learning_rate * min(1, (t + 1) / max(problem.warmup_steps, 1))
            w = w - rate * (slope + problem.momentum * buffer if problem.nesterov else buffer)
    return {name: np.stack([m[name] for m in measured])[problem.steps] for name in measured[0]}


@pytest.mark.parametrize(
    "options", [{}, EVERYTHING, LOOKING_AHEAD], ids=["plain", "momentum, minibatches", "Nesterov, warm-up"]
)
@pytest.mark.parametrize("loss", [{}, CLASSES], ids=["mse", "cross-entropy"])
@pytest.mark.parametrize("model", ["mlp", "resmlp"])
def test_the_limit_is_a_model_linear_in_its_weights(model, loss, options):
    problem = a_problem(model=model, learning_rate=1.0 if loss else 0.1, **loss, **options)
    outputs = np.random.default_rng(1).normal(size=problem.targets.shape)
    limit = ntk.solve(problem, initial_outputs=outputs)
    with computing("float64"):
        expected = linear_model(problem, outputs)
    expected["gauss_newton_eigenvalues"] = expected["hessian_eigenvalues"]
    for name in expected:
        np.testing.assert_allclose(limit[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert set(limit) - set(expected) == {"sharpness", "hessian_min", "residual_eigenvalues"}
    assert not limit["hessian_min"].any()
    assert not limit["residual_eigenvalues"].any()


def test_small_errors_keep_their_digits():
    """f − y decays by 1 − η0 λ a step, down to where f itself has no digits left."""
    problem = a_problem(P=1, C=1, num_steps=400, measure_every=100)
    _, theta = ntk.kernels(problem)
    limit, rate = ntk.solve(problem), 1 - 0.4 * theta[0, 0]
    np.testing.assert_allclose(limit["loss"], problem.targets[0, 0] ** 2 / 2 * rate ** (2 * problem.steps), rtol=1e-9)
    np.testing.assert_allclose(limit["directional_sharpness"], theta[0, 0], rtol=1e-12)


def test_cross_entropy_at_equal_logits_has_the_kernels_eigenvalues_many_times():
    """∂²ℓ/∂f² is 1/C times the projection on Σ f = 0, so each eigenvalue of Θ/PC stands C − 1 times, also for Lanczos."""
    rng = np.random.default_rng(5)
    for P in (20, 60):
        targets = np.eye(10)[rng.integers(0, 10, P)]
        problem = Problem(rng.normal(size=(P, 8)), targets, "ntp", model="resmlp", loss="cross_entropy", num_steps=0, top_k=12)
        _, theta = ntk.kernels(problem)
        assert (P * 10 > ntk.DENSE_ROWS) == (P == 60)
        of_theta, limit = np.linalg.eigvalsh(theta)[::-1], ntk.solve(problem)
        np.testing.assert_allclose(limit["hessian_eigenvalues"][0], np.repeat(of_theta / (10 * P), 9)[:12], rtol=1e-10)
        np.testing.assert_allclose(limit["ntk_eigenvalues"][0], np.repeat(of_theta / P, 10)[:12], rtol=1e-10)


PROJECTION = np.tile((np.eye(10) - 0.1) / np.sqrt(10), (60, 1, 1))  # the root of cross-entropy's curvature at f = 0


def test_repeated_eigenvalues_of_large_matrices_are_counted():
    """Nine copies of each: a Krylov space holds as many of them as rounding brings into it, in some matrices too few."""
    for seed in range(10):
        turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(60, 60)))[0]
        theta = (turn / np.arange(1, 61)) @ turn.T
        np.testing.assert_allclose(ntk._lanczos(theta, PROJECTION, 600, 8), np.full(8, 0.1), rtol=1e-12)


@pytest.mark.parametrize("equal", [1, 15, 60], ids=["all different", "identical samples", "all identical"])
def test_large_matrices_of_few_different_eigenvalues(equal):
    """Whose Krylov spaces are exhausted after as many products."""
    blocks = np.kron(np.eye(60 // equal), np.ones((equal, equal)))
    for theta, k in ((blocks, 3), (blocks, 12), (0 * blocks, 3)):
        dense, found = (of(theta, PROJECTION, 600, k) for of in (ntk._dense, ntk._lanczos))
        np.testing.assert_allclose(found, dense, atol=1e-11)


def test_what_cross_entropy_has_learned_is_flat():
    limit = ntk.solve(a_problem(**CLASSES, num_steps=0), initial_outputs=1e4 * CLASSES["targets"])
    assert limit["loss"] == 0
    assert not limit["gauss_newton_eigenvalues"].any()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, CLASSES], ids=["mse", "cross-entropy"])
def test_law_of_the_loss_is_that_of_sampled_outputs(options):
    problem = a_problem(**EVERYTHING, **options)
    nngp, _ = ntk.kernels(problem)
    root = np.linalg.cholesky(nngp) / problem.richness
    rng = np.random.default_rng(3)
    losses = [ntk.solve(problem, initial_outputs=root @ rng.normal(size=problem.targets.shape))["loss"] for _ in range(300)]
    mean, std = ntk.loss_law(problem)
    np.testing.assert_allclose(np.mean(losses, axis=0), mean, atol=5 * std.max() / np.sqrt(300))
    np.testing.assert_allclose(np.std(losses, axis=0), std, rtol=0.25)


def distances(problem, widths, num_seeds):
    """From every trained network to the limit that has its f(0): {name: [[at the last step, by seed], by width]}."""
    found = {"loss": [], "sharpness": []}
    for width in widths:
        network, keys = build(problem, width), jax.random.split(jax.random.key(width), num_seeds)
        trained = train(problem, network, keys, observables=("loss", "hessian_eigenvalues"), rtol=1e-4)
        outputs = [np.float64(network.apply(network.init(key), jnp.float32(problem.inputs))) for key in keys]
        limits = [ntk.solve(problem, initial_outputs=of_network) for of_network in outputs]
        for name, of_all in found.items():
            of_all.append([one[name][-1] - limit[name][-1] for one, limit in zip(trained, limits, strict=True)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        pytest.param({"activation": "tanh"}, marks=pytest.mark.long),
        pytest.param({"model": "resmlp", "activation": "relu", "parametrization": "base=ntp, block.multiplier.L=-1/2"},
                     marks=pytest.mark.long),
        pytest.param(CLASSES | {"C": 3, "learning_rate": 0.5}, marks=pytest.mark.long),  # of this kernel: autodiff, above
        pytest.param({"model": "conv", "pooling": "average", "D": 64}, marks=pytest.mark.long),
    ],
    ids=["relu", "tanh", "residual relu", "cross-entropy", "convolutions"],
)
def test_networks_approach_the_limit_that_has_their_outputs(options):
    """Loss and sharpness of trained networks of two hidden layers or more, and of a ConvNet: the distance falls as N^{-1/2}."""
    problem = a_problem(**{"C": 1, "richness": 1.0, "momentum": 0.3, "num_steps": 6, "measure_every": 6, "top_k": 1} | options)
    widths = (16, 32, 64, 128, 256) if problem.model == "conv" else (16, 64, 256)
    for name, errors in distances(problem, widths, 48).items():
        law = fit(widths, np.array(errors))
        assert law.interval[0] <= -0.5 <= law.interval[1], (name, law)
        assert law.interval[1] < -0.25


def test_between_ntp_and_mup_the_outputs_vanish():
    problem = a_problem(parametrization=interpolated(0.25), model="linear2")
    np.testing.assert_allclose(ntk.solve(problem)["loss"], linear2.solve(problem)["loss"])
    with pytest.raises(ValueError, match=r"f\(0\) = 0; it can be given in NTP only"):
        ntk.solve(problem, initial_outputs=problem.targets)
    with pytest.raises(ValueError, match="its loss has no spread"):
        ntk.loss_law(problem)


@pytest.mark.parametrize("architecture", ["plain", "residual"])
def test_a_gauge_is_no_difference(architecture):
    given = scaling("ntp", architecture=architecture)
    options = {"model": {"plain": "mlp", "residual": "resmlp"}[architecture]}
    for quantity in ("multiplier", "learning_rate"):
        moved = ntk.kernels(a_problem(parametrization=gauge(given, quantity), **options))
        np.testing.assert_allclose(moved, ntk.kernels(a_problem(**options)), rtol=1e-14)


@pytest.mark.parametrize("parametrization", ["ntp", "mup"])
def test_random_features_are_linear_regression(parametrization):
    """Only the readout trained: Θ is K, in μP too, where f(0) = 0; and the trace is tr K for any activation."""
    problem = a_problem(activation="tanh", depth=1, parametrization=parametrization, trained="readout")
    nngp, theta = ntk.kernels(problem)
    np.testing.assert_array_equal(theta, nngp)
    limit = ntk.solve(problem)
    np.testing.assert_allclose(limit["hessian_trace"], 2 * np.trace(nngp) / 6)
    P, error = 6, -problem.targets
    for t, loss in zip(problem.steps, limit["loss"], strict=True):
        now = np.linalg.matrix_power(np.eye(P) - 0.4 * nngp / P, t) @ error
        np.testing.assert_allclose(loss, np.sum(now**2) / (2 * P))


def test_divergence_is_data():
    trajectory = ntk.solve(a_problem(learning_rate=1e30))
    assert trajectory.diverged.tolist() == [False, False, True, True, True]
    assert np.isnan(trajectory["sharpness"][2:]).all()


def test_a_random_trace_is_left_out():
    """φ'' ≠ 0 leaves tr R of order one and random, so only piecewise linear networks have a limit of it."""
    assert "hessian_trace" not in ntk.solve(a_problem(num_steps=0, activation="tanh"))
    with computing("float64"):
        assert "hessian_trace" in ntk.solve(a_problem(num_steps=0))


def test_same_problem_same_law():
    np.testing.assert_array_equal(ntk.loss_law(a_problem(**CLASSES)), ntk.loss_law(a_problem(**CLASSES)))


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"parametrization": "mup"}, {}, "mup has no kernel limit: features move"),
        ({"parametrization": "depth_mup", "model": "resmlp"}, {}, "depth_mup has no kernel limit: features move"),
        ({"parametrization": "sp"}, {}, "no limit is known for it"),
        ({"optimizer": "adam"}, {}, "no limit is known with adam"),
        ({"D": 64, "model": "conv"}, {}, "max pooling has no analytic kernel: average pooling has one"),
        ({"D": 64, "model": "vit"}, {}, "no kernel limit is known for vit"),
        ({"weight_decay": 0.1}, {}, "weight decay shrinks the kernel"),
        ({}, {"initial_outputs": np.zeros((2, 2))}, r"initial outputs of shape \(2, 2\): wanted \(6, 2\)"),
    ],
)
def test_refusals(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        ntk.solve(a_problem(**options), **arguments)
