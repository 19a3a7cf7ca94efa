"""Deep perceptrons at N = ∞: exact linear solvers, closed forms at step 0, other limits, and networks, trained and by hand."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import written_out

from comparisons.statistics.power_law import fit
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, minibatches
from limits.deep import dmft, network
from limits.deep import linear as deep_linear
from limits.exponents.parametrization import interpolated
from limits.kernel import ntk
from limits.machine import computing
from limits.two_layer import linear as linear2
from limits.two_layer import meanfield

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 2))
CLASSES = np.eye(2)[[0, 1, 1, 0, 1]]
SAMPLES = 1024
EVERYTHING = {"momentum": 0.5, "weight_decay": 0.1, "batches": minibatches(np.random.default_rng(1), 5, 2, 12)}


def a_problem(param="mup", targets=Y, **options):
    usual = {"model": "mlp3", "activation": "tanh", "learning_rate": 0.3, "num_steps": 12, "measure_every": 4}
    return Problem(X, targets, param, **usual | options)


# Linear activations: exact


@pytest.mark.parametrize(
    ("model", "options"),
    [("linear2", EVERYTHING), ("linear4", EVERYTHING)],
    ids=["linear2", "linear4"],
)
def test_linear_networks_are_exact(model, options):
    problem = a_problem(model=model, **options)
    exact = linear2.solve(problem) if model == "linear2" else deep_linear.solve(problem, hessian=False)
    limit = dmft.solve(problem, hessian=False)
    assert limit.errors == {}
    for name in ("loss", "ntk_eigenvalues", "gauss_newton_eigenvalues"):
        np.testing.assert_allclose(limit[name], exact[name], rtol=1e-9, err_msg=name)


def test_linear_kernels_are_exact():
    problem = a_problem(activation="linear")
    (found, error, verdict), exact = dmft.kernels(problem), deep_linear.kernels(problem)
    np.testing.assert_allclose(found.features, exact.on_samples(exact.features), atol=1e-9)
    for p in range(5):  # the same for all samples
        np.testing.assert_allclose(found.gradients[:, :, :, p, :, p], exact.gradients, atol=1e-9)
    np.testing.assert_allclose(found.outputs, exact.outputs, atol=1e-9)
    np.testing.assert_allclose(found.ntk, exact.ntk, atol=1e-9)
    assert verdict == (True, 0.0, 0)
    assert not any(np.any(kernel) for kernel in error)


@pytest.mark.parametrize("activation", ["linear", pytest.param("tanh", marks=pytest.mark.slow)])
def test_room_for_fields_changes_nothing(activation, monkeypatch):
    """Fields that outgrow their arrays, in exact coordinates and in samples."""
    problem = a_problem(activation=activation)
    with_room = dmft.solve(problem, samples=SAMPLES, hessian=False)
    monkeypatch.setattr(dmft, "ROOM", 1)  # then four steps' worth, too little
    without = dmft.solve(problem, samples=SAMPLES, seed=1, hessian=False)
    assert_same(without, with_room, ("loss", "ntk_eigenvalues"), rounding=1e-10)


# Step 0: closed forms


def arccosines(K):
    """E φ(u) φ(v) and E φ'(u) φ'(v) of ReLU for (u, v) ~ N(0, K) (Cho & Saul 2009)."""
    size = np.sqrt(np.outer(np.diag(K), np.diag(K)))
    angle = np.arccos(np.clip(K / size, -1, 1))
    return size * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def arcsines(K):
    """Of the error function (Williams 1996)."""
    size = np.outer(1 + 2 * np.diag(K), 1 + 2 * np.diag(K))
    return 2 / np.pi * np.arcsin(2 * K / np.sqrt(size)), 4 / np.pi / np.sqrt(size - 4 * K**2)


def quadrature(K):
    """Of tanh, by Gauss-Hermite in two dimensions."""
    z, w = np.polynomial.hermite_e.hermegauss(80)
    z1, z2, w = z[:, None], z[None], np.outer(w, w) / (2 * np.pi)
    found = np.zeros((2, *K.shape))
    for p, q in np.ndindex(K.shape):
        u = np.sqrt(K[p, p]) * z1
        v = K[p, q] / np.sqrt(K[p, p]) * z1 + np.sqrt(max(K[q, q] - K[p, q] ** 2 / K[p, p], 0.0)) * z2
        found[:, p, q] = np.sum(w * np.tanh(u) * np.tanh(v)), np.sum(w / np.cosh(u) ** 2 / np.cosh(v) ** 2)
    return found


@pytest.mark.parametrize(
    ("activation", "moments", "residual"),
    [("relu", arccosines, True), ("erf", arcsines, False), ("tanh", quadrature, False)],
)
def test_kernels_at_step_0_are_in_closed_form(activation, moments, residual):
    """Features and gradients; their errors say how far they are off."""
    network = {"param": "depth_mup", "model": "resmlp"} if residual else {}
    skip, scale = (1, 1 / 2) if residual else (0, 1)
    found, error, _ = dmft.kernels(a_problem(**network, activation=activation, num_steps=0), samples=2 * SAMPLES)
    K, features, slopes = X @ X.T / 4, [], []
    for _ in range(2 + skip):
        phi, slope = moments(K)
        features, slopes, K = [*features, phi], [*slopes, slope], skip * K + scale * phi
    gradients = [slopes[-1]]
    for slope in slopes[-2::-1]:
        gradients = [(skip + scale * slope) * gradients[0], *gradients]
    for c, e in np.ndindex(2, 2):
        ours, spread = found.gradients[:, 0, 0, :, c, :, e], error.gradients[:, 0, 0, :, c, :, e]
        assert (np.abs(ours - (c == e) * np.array(gradients)) < 5 * spread + 3e-3).all()
    assert (np.abs(found.features[:, 0, 0] - features) < 5 * error.features[:, 0, 0] + 5e-4).all()
    assert error.features.max() < 2e-3 * found.features.max()
    assert np.abs(found.outputs).max() < 1e-12


# Other limits


@pytest.mark.slow
@pytest.mark.parametrize(("param", "model"), [("mup", "mlp3"), ("mup", "mlp2")])
def test_little_richness_is_the_kernel_limit(param, model):
    """As γ0 → 0 gradient descent on f with the kernel of step 0; the distance falls as γ0²."""
    distances = []
    for richness in (0.5, 0.05):
        problem = a_problem(param, model=model, richness=richness, momentum=0.4, batches=EVERYTHING["batches"])
        lazy = ntk.solve(replace(problem, parametrization=interpolated(0.25)))
        limit = dmft.solve(problem, samples=2 * SAMPLES, repeats=4, hessian=False)
        distances.append(np.abs(limit["loss"] - lazy["loss"]).max())
    assert distances[0] > 3e-3  # there is something to see
    assert distances[1] < distances[0] / 50 + 4 * limit.error("loss").max()
    assert (np.abs(limit["ntk_eigenvalues"] - lazy["ntk_eigenvalues"]) < 1e-2 * lazy["ntk_eigenvalues"]).all()


def assert_same(one, other, names, within=4.5, rounding=1e-12):
    """Within so many standard errors of the difference."""
    for name in names:
        error = np.hypot(one.error(name), other.error(name))
        assert (np.abs(one[name] - other[name]) < within * error + rounding).all(), name


@pytest.mark.parametrize(
    ("activation", "loss"),
    [pytest.param("tanh", "mse", marks=pytest.mark.slow), ("tanh", "cross_entropy"), ("linear", "cross_entropy")],
)
def test_one_hidden_layer_is_the_mean_field_of_particles(activation, loss):
    targets = CLASSES if loss == "cross_entropy" else Y
    problem = a_problem(targets=targets, model="mlp2", activation=activation, loss=loss, **EVERYTHING)
    limit = dmft.solve(problem, samples=2 * SAMPLES, hessian=False)
    assert_same(limit, meanfield.solve(problem, repeats=8), ("loss", "ntk_eigenvalues", "gauss_newton_eigenvalues"))
    assert limit.error("loss").max() < 2e-3


# Networks


def by_hand(problem, name, width, seed):
    """(loss, features of the last layer) at the measured steps of one network, written out."""
    rng, depth = np.random.default_rng(seed), problem.depth
    of = written_out.numbers(name, "sgd", width, depth, problem.richness)
    params = {"input": rng.normal(size=(4, width)), "readout": rng.normal(size=(width, 2))}
    if name == "mup":
        params["hidden"] = tuple(rng.normal(size=(width, width)) for _ in range(depth - 1))
    else:
        params["block"] = rng.normal(size=(depth, width, width))
    phi, losses, features = written_out.NUMPY_ACTIVATIONS[problem.activation], [], []
    for step, weights in enumerate(written_out.descend(problem, params, of, problem.activation)):
        if step in problem.steps:
            (_, x, f) = written_out.forward(weights, of.multiplier, problem.inputs, phi)[-1]
            losses.append(np.sum((f - problem.targets) ** 2) / (2 * len(f)))
            features.append(x)
    return np.array(losses), np.einsum("tpi,sqi->tspq", features, features) / width


@pytest.mark.slow
@pytest.mark.parametrize(("name", "activation"), [
    ("mup", "tanh"), pytest.param("depth_mup", "relu", marks=pytest.mark.long),
    pytest.param("alpha1", "tanh", marks=pytest.mark.long)])  # fmt: skip
def test_momentum_decay_and_minibatches_at_once_are_those_of_wide_networks(name, activation):
    """Mean loss and two-time feature kernel of networks written out by hand."""
    model = "mlp" if name == "mup" else "resmlp"
    problem = a_problem(name, model=model, activation=activation, richness=0.7, **EVERYTHING)
    with computing("float64"):
        drawn = [by_hand(problem, name, 512, seed) for seed in range(16)]
    limit, error, _ = dmft.kernels(problem, samples=4096)
    trajectory = dmft.solve(problem, samples=4096, hessian=False)
    losses, features = (np.stack(parts) for parts in zip(*drawn, strict=True))
    for networks, ours, ours_error in (
        (losses, trajectory["loss"], trajectory.error("loss")),
        (features, limit.features[-1], error.features[-1]),
    ):
        spread = np.hypot(networks.std(0, ddof=1) / 4, ours_error)
        bias = 4 * np.abs(ours).max() / 512
        assert (np.abs(networks.mean(0) - ours) < 4 * spread + bias).all()
    assert np.ptp(trajectory["loss"]) > 0.05


NETWORKS = {
    "tanh": {"activation": "tanh", "learning_rate": 0.4},
    "relu": {"activation": "relu", "learning_rate": 0.3},
    "residual relu": {"param": "depth_mup", "model": "resmlp", "activation": "relu", "learning_rate": 0.2},
    "residual tanh, alpha 1": {"param": "alpha1", "model": "resmlp", "learning_rate": 0.3},
    "Nesterov, schedule": {"momentum": 0.5, "nesterov": True, "warmup_steps": 3, "schedule": "cosine"},
    "cross-entropy": {"targets": CLASSES, "loss": "cross_entropy", "learning_rate": 0.6},
}
LONG = NETWORKS.keys() - {"relu"}  # of the others the tests above have most


@pytest.mark.slow
@pytest.mark.parametrize("case", [
    pytest.param(case, marks=[pytest.mark.long] if case in LONG else []) for case in NETWORKS])  # fmt: skip
def test_networks_approach_the_limit(case):
    """Loss and leading Gauss-Newton eigenvalue of trained networks: the distance falls as N^{-1/2}."""
    problem = a_problem(**{"num_steps": 6, "measure_every": 6, "top_k": 1, "richness": 0.5} | NETWORKS[case])
    limit, names = dmft.solve(problem, samples=4096, hessian=False), ("loss", "gauss_newton_eigenvalues")
    widths, distances = (64, 128, 256, 512), {name: [] for name in names}
    for width in widths:
        networks = train(problem, build(problem, width), jax.random.split(jax.random.key(width), 64), observables=names)
        for name in names:
            distances[name].append([np.ravel(one[name] - limit[name])[-1] for one in networks])
    for name, errors in distances.items():
        law = fit(widths, np.array(errors), noise_floor=float(np.ravel(limit.error(name))[-1]))
        assert law.interval[0] <= -0.5 <= law.interval[1], (name, law)
        assert law.interval[1] < -0.2  # a wrong limit would leave a distance that does not fall


# Sampling


def test_errors_are_what_other_seeds_show_and_a_seed_is_a_result():
    """Independent estimates differ by what their errors say, not by less; and the same seed gives the same numbers."""
    one, other = (dmft.solve(a_problem(), samples=SAMPLES, repeats=12, seed=seed, hessian=False) for seed in (0, 1))
    scores = (one["loss"] - other["loss"])[1:] / np.hypot(one.error("loss"), other.error("loss"))[1:]
    assert 0.05 < np.abs(scores).max() < 4
    again = dmft.solve(a_problem(), samples=SAMPLES, repeats=12, seed=0, hessian=False)
    np.testing.assert_array_equal(again["loss"], one["loss"])
    assert one.error("loss")[0] < 1e-15  # f(0) = 0


def test_more_samples_more_accuracy():
    few, many = (dmft.solve(a_problem(), samples=samples, hessian=False).error("loss")[-1] for samples in (64, SAMPLES))
    assert many < few / 2


def test_what_is_left_out_does_not_show(monkeypatch):
    usual = dmft.solve(a_problem(), samples=SAMPLES, hessian=False)
    monkeypatch.setattr(dmft, "TOLERANCE", 1e-6)
    assert_same(usual, dmft.solve(a_problem(), samples=SAMPLES, seed=1, hessian=False), ("loss", "ntk_eigenvalues"))


def test_verdict_on_the_number_of_samples():
    found, _, verdict = dmft.kernels(a_problem(), samples=SAMPLES, repeats=4, tolerance=0.1)
    assert verdict.converged
    assert 1e-3 < verdict.error < 0.1
    assert verdict.samples == SAMPLES
    strict = dmft.kernels(a_problem(), samples=SAMPLES, repeats=4, tolerance=1e-3).verdict
    assert strict == (False, verdict.error, SAMPLES)
    np.testing.assert_allclose(found.features, np.einsum("ltspq->lstqp", found.features), rtol=1e-12)


@pytest.mark.slow
def test_divergence_is_data():
    for activation in ("relu", "linear"):
        problem = a_problem(activation=activation, learning_rate=1e30)
        trajectory = dmft.solve(problem, samples=SAMPLES, repeats=2, hessian=False)
        assert trajectory.diverged.tolist() == [False, True, True, True]
        assert np.isnan(trajectory["ntk_eigenvalues"][1:]).all()
        assert np.isfinite(trajectory["ntk_eigenvalues"][0]).all()
    assert not dmft.kernels(problem).verdict.converged


@pytest.mark.parametrize(("samples", "repeats", "message"), [
    (64.0, 2, "samples 64.0: wanted a whole number"), (64, "2", "repeats '2': wanted a whole number")])  # fmt: skip
def test_numbers_of_samples_are_whole(samples, repeats, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        dmft.check_sampling(samples, repeats)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"param": "ntp"}, {}, "ntp has another limit: this one is of μP's powers of the width"),
        ({"param": "sp"}, {}, "sp: not SGD"),
        ({"optimizer": "adam"}, {}, "no limit is known with adam: only of networks trained by sgd"),
        ({"param": "depth_mup", "model": "resmlp", "block_size": 2}, {}, "no limit of blocks of 2 matrices"),
        ({}, {"samples": 1000}, "1000 samples: wanted a power of two"),
        ({}, {"samples": 4}, "4 samples: of the fields of"),
        ({}, {"repeats": 1}, "1 repeats: wanted at least 2"),
    ],
)
def test_refusals(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        dmft.solve(a_problem(**options), **arguments)


def test_too_many_samples_are_refused_before_they_are_drawn():
    with pytest.raises(MemoryError, match=r"minutes and needs about .* GiB, more than the .* GiB there are: fewer samples or"):
        dmft.solve(a_problem(), samples=2**36)
    with pytest.raises(MemoryError, match="fewer samples or steps"):
        dmft.kernels(a_problem(num_steps=10**5, measure_every=1))


def test_half_the_samples_in_arrays_of_the_same_length():
    kind, sizes = network.Kind("tanh", "mse", False, False), (2, 3, 1, 1, 8, 8)
    few = network.first_draws(kind, np.random.default_rng(0), sizes, 16)
    double = network.first_draws(kind, np.random.default_rng(0), sizes, 32, copies=2)
    more = network.more_draws(kind, np.random.default_rng(0), (1, 8, 8), 32, 2)
    for one, two in zip(few, double, strict=True):
        np.testing.assert_array_equal(np.concatenate([one, one], -1), two)
    for of in more:
        np.testing.assert_array_equal(of[..., :16], of[..., 16:])
        assert len(np.unique(of[0, :, :16])) == 8 * 16
