"""Deep linear networks at N = ∞ against two-layer ones, the limit's equations written out, closed forms, trained networks."""

from itertools import islice

import jax
import numpy as np
import pytest
import scipy.integrate
from benchmarks.deep_linear import fixed_point

from comparisons.statistics.power_law import fit
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, minibatches
from limits.deep import linear as deep_linear
from limits.deep import linear_sweep
from limits.machine import computing
from limits.two_layer import linear as linear2


def a_problem(P=7, D=3, C=2, *, seed=0, batch=None, **options):
    rng = np.random.default_rng(seed)
    options = {"learning_rate": 0.3, "num_steps": 8, "richness": 1.2, "top_k": 3} | options
    batches = None if batch is None else minibatches(rng, P, batch, options["num_steps"])
    return Problem(rng.normal(size=(P, D)), rng.normal(size=(P, C)), batches=batches, **options)


def whitened(y, P=3, D=5, **options):
    """XXᵀ = D·1, so K^x = 1, and |targets| = y: the sum-of-squares loss ½Σ|f − y|² at η is ours at η0 = Pη."""
    rng = np.random.default_rng(1)
    X, Y = np.sqrt(D) * np.linalg.qr(rng.normal(size=(D, P)))[0].T, rng.normal(size=(P, 1))
    return Problem(X, y * Y / np.linalg.norm(Y), **options)


EVERYTHING = {"momentum": 0.5, "weight_decay": 0.1, "batch": 3}
FEW_SAMPLES = {"P": 4, "D": 6, "C": 1}
CASES = {
    "two outputs": {},
    "one output, fewer samples than inputs": FEW_SAMPLES,
    "momentum": {"momentum": 0.6},
    "weight decay": {"weight_decay": 0.2},
    "weights forgotten in one step": {"learning_rate": 0.5, "weight_decay": 2.0},
    "minibatches": {"batch": 3},
    "Nesterov, weight decay": {"momentum": 0.6, "nesterov": True, "weight_decay": 0.2},
    "warm-up and cosine": EVERYTHING | {"warmup_steps": 3, "schedule": "cosine"},
    "everything": EVERYTHING,
}
FURTHER = {
    "large richness, long": FEW_SAMPLES | {"richness": 20.0, "learning_rate": 0.01, "num_steps": 120},
    "the start only": {"batch": 1, "measure_every": 20},
    "some steps measured": EVERYTHING | {"num_steps": 11, "measure_every": 4},
}


@pytest.mark.parametrize("options", [*CASES.values(), *FURTHER.values()], ids=[*CASES, *FURTHER])
def test_one_hidden_layer_is_linear2(options):
    problem = a_problem(**options)
    exact, ours = linear2.solve(problem), deep_linear.solve(problem, hessian=False)
    assert set(ours) == {"loss", "ntk_eigenvalues", "gauss_newton_eigenvalues"}
    for name in ours:
        np.testing.assert_allclose(ours[name], exact[name], rtol=1e-11, atol=1e-13 * exact[name].max(), err_msg=name)


def responses(problem):
    """(d, ρ) as products of the 2 × 2 matrices of each step on (weight, buffer)."""
    beta, decay, T = problem.momentum, problem.weight_decay, problem.num_steps + 1
    updates, pushes = [], []
    for eta in problem.step_sizes[:-1]:
        ahead, rest = ((1 + beta), beta**2) if problem.nesterov else (1, beta)
        updates.append(np.array([[1 - eta * decay * ahead, -eta * rest], [decay, beta]]))
        pushes.append(problem.richness * np.array([eta * ahead, -1.0]))

    def then(start, s, t):
        for update in updates[s:t]:
            start = update @ start
        return start[0]

    left = [then(np.array([1.0, 0.0]), 0, t) for t in range(T)]
    return left, [[then(pushes[s], s + 1, t) for s in range(t)] for t in range(T)]


def written_out(problem, depth):
    """The equations of the docstring between all samples and times, fields as rows over (u, r): {name: [by layer]}, NumPy.

    Times and samples (outputs) share an axis, times first.
    """
    X, y, g0 = problem.inputs, problem.targets, problem.richness
    (P, C), T = y.shape, problem.num_steps + 1
    decay, rate = responses(problem)
    share = np.full((T, P), 1 / P)
    for t, batch in enumerate([] if problem.batches is None else problem.batches):
        share[t] = np.bincount(batch, minlength=P) / len(batch)

    layers, hidden = range(depth + 2), range(1, depth + 1)
    H, G = ([np.zeros((T * n, T * n)) for _ in layers] for n in (P, C))
    H[0], G[depth + 1] = np.tile(X @ X.T / problem.num_inputs, (T, T)), np.tile(np.eye(C), (T, T))
    A, B = [np.zeros((T * P, T * C)) for _ in layers], [np.zeros((T * C, T * P)) for _ in layers]
    hu, hr = [np.zeros((T * P, T * P)) for _ in layers], A
    gu, gr = [np.zeros((T * C, T * P)) for _ in layers], [np.zeros((T * C, T * C)) for _ in layers]
    f, error = np.zeros((T, P, C)), np.zeros((T, P, C))

    def coupling(t, response, kernel, error):
        """Σ_{s<t} of [d(t) response(t,s) + ρ(t,s) kernel(t,s) error(s)]: rows (n, T·m) of kernel rows (n, T·k)."""
        n = len(kernel)
        kernel = kernel.reshape(n, T, -1)
        pushed = [kernel[:, s] @ error[s] * rate[t][s] if s < t else np.zeros((n, error.shape[2])) for s in range(T)]
        return decay[t] * response + np.concatenate(pushed, 1)

    for t in range(T):
        p, c = slice(t * P, t * P + P), slice(t * C, t * C + C)
        for l in hidden:
            E = coupling(t, A[l - 1][p], H[l - 1][p], error)
            hu[l][p], hr[l][p] = E @ gu[l], E @ gr[l]
            hu[l][p, p] += decay[t] * np.eye(P)
            H[l] = hu[l] @ H[l - 1] @ hu[l].T + hr[l] @ G[l + 1] @ hr[l].T
        f[t] = coupling(t, A[depth][p], H[depth][p], error).reshape(P, T, C).sum(1) / g0
        error[t] = (y - f[t]) * share[t][:, None]
        for l in reversed(hidden):
            D = coupling(t, B[l][c], G[l + 1][c], error.swapaxes(1, 2))
            gu[l][c], gr[l][c] = D @ hu[l], D @ hr[l]
            gr[l][c, c] += decay[t] * np.eye(C)
            G[l] = gr[l] @ G[l + 1] @ gr[l].T + gu[l] @ H[l - 1] @ gu[l].T
            B[l - 1] = gu[l]
    split = lambda matrix, m, n: matrix.reshape(T, m, T, n).swapaxes(1, 2)  # noqa: E731
    return {
        "H": [split(H[l], P, P) for l in range(depth + 1)],
        "G": [split(G[l], C, C) for l in range(1, depth + 2)],
        "A": [split(A[l], P, C) for l in hidden],
        "B": [split(B[l - 1], C, P) for l in hidden],
        "f": f,
    }


def assert_equal_kernels(found, expected, rtol=1e-10):
    x = found.inputs
    ours = {
        "H": found.on_samples(found.features),
        "G": found.gradients,
        "A": x @ found.feature_responses,
        "B": found.gradient_responses,
        "f": found.outputs,
    }
    theirs = expected | {"H": expected["H"][1:], "G": expected["G"][:-1], "B": np.array(expected["B"]) @ x}
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=rtol, atol=rtol * np.abs(theirs[name]).max(), err_msg=name)


@pytest.mark.parametrize(("case", "depth"), [*((case, 2) for case in CASES), *(("everything", depth) for depth in (1, 3, 4))])
def test_kernels_solve_the_equations_of_the_limit(case, depth):
    """Features, gradients and responses at all pairs of times, outputs, NTK."""
    problem = a_problem(**CASES[case])
    expected, found = written_out(problem, depth), deep_linear.kernels(problem, depth=depth)
    assert_equal_kernels(found, expected)
    theta = tangent_kernel(expected)
    np.testing.assert_allclose(found.ntk, theta, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(found.error_signals, problem.targets - found.outputs)


def tangent_kernel(written):
    return sum(np.einsum("ttpq,ttce->tpcqe", H, G) for H, G in zip(written["H"], written["G"], strict=True))


@pytest.mark.parametrize("options", [EVERYTHING, {"P": 2, "top_k": 8}], ids=["everything", "more ranks than eigenvalues"])
def test_loss_and_eigenvalues_are_those_of_the_kernels(options):
    problem = a_problem(**options)
    (P, C), k, expected = problem.targets.shape, problem.top_k, written_out(problem, 2)
    values = np.linalg.eigvalsh(tangent_kernel(expected).reshape(-1, P * C, P * C))[:, ::-1] / P
    values, trajectory = np.pad(values, ((0, 0), (0, k)))[:, :k], deep_linear.solve(problem, depth=2, hessian=False)
    np.testing.assert_allclose(trajectory["ntk_eigenvalues"], values, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(trajectory["gauss_newton_eigenvalues"], values, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(trajectory["loss"], np.sum((expected["f"] - problem.targets) ** 2, (1, 2)) / (2 * P), rtol=1e-10)


def test_kernels_are_those_of_the_measured_steps():
    every, some = (deep_linear.kernels(a_problem(**EVERYTHING, measure_every=n), depth=2) for n in (1, 3))
    for name in ("features", "gradients", "feature_responses", "gradient_responses"):
        np.testing.assert_allclose(getattr(some, name), getattr(every, name)[:, ::3, ::3], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(some.outputs, every.outputs[::3], rtol=1e-12)
    np.testing.assert_allclose(some.ntk, every.ntk[::3], rtol=1e-12)


def test_arrays_grow_without_a_trace(monkeypatch):
    problem = a_problem(**EVERYTHING)
    whole = deep_linear.kernels(problem, depth=2)
    monkeypatch.setattr(linear_sweep, "FIRST_STRETCH", 5)
    for ours, theirs in zip(deep_linear.kernels(problem, depth=2), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_at_small_richness_it_is_kernel_gradient_descent(depth):
    """Θ = (L + 1) XXᵀ/D stays; corrections are of order γ0²."""
    problem = a_problem(P=6, richness=1e-4, momentum=0.4, num_steps=30, learning_rate=0.1)
    theta = (depth + 1) * problem.inputs @ problem.inputs.T / 3
    error, buffer, losses = -problem.targets, 0.0, []
    for _ in range(31):
        losses.append(np.sum(error**2) / 12)
        buffer = 0.4 * buffer + theta @ error / 6
        error = error - 0.1 * buffer
    limit = deep_linear.solve(problem, depth=depth, hessian=False)
    np.testing.assert_allclose(limit["loss"], losses, rtol=1e-6)
    top = np.repeat(np.linalg.eigvalsh(theta)[::-1] / 6, 2)[:3]
    np.testing.assert_allclose(limit["ntk_eigenvalues"], np.tile(top, (31, 1)), rtol=1e-6)


@pytest.mark.parametrize("richness", [0.5, 2.0])
def test_whitened_inputs_follow_the_scalar_equation(richness):
    """One hidden layer, small steps: dΔ/dt = −2√(1+γ0²(y−Δ)²)Δ, which ends at H = 1 + (√(1+γ0²y²) − 1) yyᵀ/y².

    The error of a step is taken out to first order, by two sizes of it.
    """
    y, P, end = 1.5, 3, 4.0
    speed = lambda _, delta: -2 * np.sqrt(1 + richness**2 * (y - delta) ** 2) * delta  # noqa: E731
    delta = scipy.integrate.solve_ivp(speed, (0, end), [y], t_eval=np.linspace(0, end, 9), rtol=1e-10, atol=1e-12).y[0]
    problems = (whitened(y, P=P, richness=richness, learning_rate=P * end / steps, num_steps=steps, measure_every=steps // 8)
                for steps in (56, 112))  # fmt: skip
    coarse, fine = (deep_linear.kernels(problem, depth=1) for problem in problems)
    sizes = [np.linalg.norm(found.error_signals[..., 0], axis=1) for found in (coarse, fine)]
    np.testing.assert_allclose(2 * sizes[1] - sizes[0], delta, atol=2e-3)
    features = [found.on_samples(found.features[0, -1, -1]) for found in (coarse, fine)]
    targets = fine.outputs[0] + fine.error_signals[0]
    final = np.eye(P) + (np.sqrt(1 + richness**2 * y**2) - 1) * targets @ targets.T / y**2
    np.testing.assert_allclose(2 * features[1] - features[0], final, atol=2e-3)


@pytest.mark.parametrize("richness", [1.0, 4.0])
def test_large_richness_and_time_lose_the_fixed_point_but_not_the_sweep(richness):
    """Damped iteration of all times at once gets there at γ0 = 1 and overflows at γ0 = 4; the sweep is exact at both."""
    problem = a_problem(P=3, D=3, C=1, richness=richness, learning_rate=0.2, num_steps=16)
    expected = written_out(problem, 2)
    assert_equal_kernels(deep_linear.kernels(problem, depth=2), expected)
    with computing("float64"):
        *_, last = islice(fixed_point(problem, depth=2, damping=0.8), 100)
        outputs = np.asarray(last.f)
    if richness == 1:
        np.testing.assert_allclose(outputs, expected["f"], atol=1e-5)
    else:
        assert np.isnan(outputs).any()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.long)])
def test_networks_approach_the_limit(depth):
    """Loss and top NTK eigenvalue of trained networks: the distance falls as N^{-1/2}."""
    options = EVERYTHING | {"learning_rate": 0.2, "top_k": 1, "measure_every": 8, "model": f"linear{depth + 1}"}
    problem = a_problem(**options)
    limit, widths = deep_linear.solve(problem, hessian=False), (32, 128, 512)
    distances = {"loss": [], "ntk_eigenvalues": []}
    for width in widths:
        keys = jax.random.split(jax.random.key(width), 48)
        trained = train(problem, build(problem, width), keys, observables=tuple(distances))
        for name, errors in distances.items():
            errors.append([np.ravel(one[name][-1] - limit[name][-1])[0] for one in trained])
    for name, errors in distances.items():
        law = fit(widths, np.array(errors))
        assert law.interval[0] <= -0.5 <= law.interval[1], (name, law)
        assert law.interval[1] < -0.25


@pytest.mark.slow
def test_divergence_is_data():
    """Values are finite up to a step and not from there on, the kernels' too."""
    problem = a_problem(learning_rate=8.0, num_steps=9)
    trajectory, found = deep_linear.solve(problem, depth=2, hessian=False), deep_linear.kernels(problem, depth=2)
    finite = int(np.sum(np.isfinite(found.outputs).all((1, 2))))
    assert 4 <= finite < 10
    assert not trajectory.diverged[:4].any()
    with_hessian = deep_linear.solve(a_problem(learning_rate=8.0, num_steps=9, measure_every=9), depth=2)
    assert {"sharpness", "hessian_trace"} <= set(with_hessian)
    for values in (*(of[finite:] for of in trajectory.values()), *(of[1:] for of in with_hessian.values())):
        assert not np.isfinite(values).any()
    assert_equal_kernels(early(found, 3), written_out(a_problem(learning_rate=8.0, num_steps=2), 2))
    for kernel in found[1:5]:
        assert np.isnan(kernel[:, finite:]).all()
        assert np.isnan(kernel[:, :, finite:]).all()


def early(found, T):
    """The kernels of the first T steps."""
    of_pairs = {name: getattr(found, name)[:, :T, :T] for name in found._fields[1:5]}
    return found._replace(**of_pairs, outputs=found.outputs[:T], error_signals=found.error_signals[:T])


def test_a_thousand_steps_of_ten_directions_fit_8_gib():
    problem = a_problem(P=10, D=1000, C=1, num_steps=1000)
    for depth in (1, 2, 3):
        assert 8 * deep_linear._numbers(problem, depth, kernels_too=True) < 8 * 2**30


REFUSED = {
    "activation": ({"model": "mlp3"}, {}, "model 'mlp3' is not a deep linear network: linear3"),
    "residual": ({"model": "resmlp", "activation": "linear"}, {}, "model 'resmlp' is not a deep linear network"),
    "depth": ({}, {"depth": 0}, "depth 0 must be at least 1"),
    "ntp": ({"parametrization": "ntp"}, {"depth": 2}, "ntp has another limit: this one is of μP's powers"),
    "sp": ({"parametrization": "sp"}, {"depth": 2}, "no limit is known for it"),
    "adam": ({"optimizer": "adam"}, {"depth": 2}, "no limit is known with adam: only of networks trained by sgd"),
}


@pytest.mark.parametrize(("options", "arguments", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("function", [deep_linear.solve, deep_linear.kernels])
def test_refusals(function, options, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(a_problem(**options), **arguments)


def test_cross_entropy_is_refused():
    problem = Problem(np.ones((2, 2)), np.eye(2), loss="cross_entropy")
    with pytest.raises(ValueError, match="cross_entropy has no closed limit here: loss mse has, or model mlp2"):
        deep_linear.solve(problem, depth=2)


def test_too_many_steps_are_refused_before_they_start():
    with pytest.raises(MemoryError, match=r"this limit needs about \d+\.\d GiB, more than the"):
        deep_linear.solve(a_problem(num_steps=10**6, measure_every=10**5), depth=2)
    with pytest.raises(MemoryError, match="this limit needs about"):
        deep_linear.kernels(a_problem(P=300, D=300, num_steps=1000), depth=2)
