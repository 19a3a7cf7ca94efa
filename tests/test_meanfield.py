"""The mean-field limit: against linear2, trained networks of every width, the kernel limit, and the bulk in closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained import train

from comparisons.statistics.power_law import fit
from finite.networks.mlp import mlp
from limits import Problem, minibatches, theories
from limits.coordinates import coordinates
from limits.kernel import ntk
from limits.machine import computing
from limits.two_layer import linear as linear2
from limits.two_layer import meanfield
from limits.two_layer.neuron_blocks import measure_network
from limits.two_layer.particles import Neurons, cloud, functions, outputs, path, population

RICH = {"momentum": 0.4, "weight_decay": 0.1, "batches": minibatches(np.random.default_rng(2), 8, 3, 8)}

SCHEDULED = {"nesterov": True, "warmup_steps": 2, "schedule": "cosine"}


def a_problem(activation="tanh", C=1, loss="mse", P=8, D=4, **options):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(P, D)), rng.normal(size=(P, C))
    if loss == "cross_entropy":
        targets = np.eye(C)[rng.integers(C, size=P)]
    usual = {"learning_rate": 0.4, "num_steps": 8, "measure_every": 4, "richness": 1.2, "top_k": 2}
    return Problem(inputs, targets, model="mlp2", activation=activation, loss=loss, **usual | options)


@pytest.mark.parametrize("options", [{}, {"C": 2} | RICH, {"P": 3}], ids=["plain", "everything", "few samples"])
def test_linear_activation_is_linear2(options):
    """Exactly, from a cloud of whatever size, since its second moments are exact."""
    problem = a_problem("linear", **options)
    found, exact = meanfield.solve(problem, particles=64, repeats=2), linear2.solve(problem)
    assert set(found) == set(exact)
    for name in exact:
        np.testing.assert_allclose(found[name], exact[name], atol=1e-11, err_msg=name)
        np.testing.assert_allclose(found.error(name), 0, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        RICH | SCHEDULED,
        {"activation": "relu", "C": 3, "loss": "cross_entropy"} | RICH,
    ],
    ids=["plain", "nesterov, decay, minibatches, schedule", "cross-entropy"],
)
def test_the_particle_system_is_the_network(options):
    """The neurons of one network as particles, against ``finite.train``: every observable at every measured step."""
    problem = a_problem(**options)
    width, network, keys = 24, mlp(problem, 24, 1, problem.activation), jax.random.split(jax.random.key(3), 1)
    trained = train(problem, network, keys, precision="float64", rtol=1e-11)[0]
    params = network.init(keys[0])
    basis = np.asarray(coordinates(problem).basis)
    E, V = np.float64(params["input"]), np.float64(params["readout"])
    start, mass = Neurons(E.T @ basis, V), np.full(width, 1 / width)
    states = path(functions(problem), population(problem, mass), problem, start)
    for t in range(len(problem.steps)):
        z = jax.tree.map(lambda a: np.asarray(a[t]), states)  # noqa: B023
        for name, values in measure_network(problem, basis @ z.input.T, z.readout).items():
            if name == "hessian_trace" and problem.activation != "relu":
                continue  # estimated there, at random
            np.testing.assert_allclose(values, trained[name][t], rtol=1e-7, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_without_the_hessian_the_rest_is_the_same(activation):
    problem = a_problem(activation, C=2, loss="cross_entropy")
    whole, rest = (meanfield.solve(problem, particles=64, repeats=2, hessian=hessian) for hessian in (True, False))
    assert set(rest) == {"loss", "ntk_eigenvalues", "gauss_newton_eigenvalues", "directional_sharpness"}
    for name in rest:
        np.testing.assert_array_equal(rest[name], whole[name])
        np.testing.assert_array_equal(rest.error(name), whole.error(name))
    assert rest.left_open["hessian_eigenvalues"] == "it was not asked for"
    assert 10 * meanfield.work(problem, hessian=False)[0] < meanfield.work(problem)[0]


def test_hours_are_refused_before_they_begin():
    """A cloud of 4096 particles has an equation of 2000 columns to solve for each of ten eigenvalues, at every step."""
    problem = a_problem("tanh", C=10, P=200, D=20, num_steps=100, measure_every=1, top_k=10, loss="cross_entropy")
    with pytest.raises(ValueError, match=r"on 200 samples would take about .* days .* waited for: on 8 it takes .* minutes"):
        theories.insist_on_room(problem)
    theories.insist_on_room(replace(problem, num_steps=1, top_k=1), hessian=False)


def test_networks_of_other_activations_leave_out_what_has_no_limit():
    smooth, kinked = (meanfield.solve(a_problem(name), particles=256, repeats=2) for name in ("erf", "relu"))
    assert set(kinked) - set(smooth) == {"hessian_min", "residual_eigenvalues", "hessian_trace"}
    assert set(linear2.solve(a_problem("linear"))) == set(kinked)


@pytest.mark.parametrize(("activation", "C"), [("tanh", 1), ("relu", 2), ("gelu", 2)])
def test_poor_networks_are_in_the_kernel_limit(activation, C):
    """γ0 → 0: the kernel's own eigenvalues for ever, and its loss; within the error that the clouds tell."""
    options = {"C": C, "momentum": 0.4, "top_k": 3}
    found = meanfield.solve(a_problem(activation, richness=1e-4, **options), particles=1024, repeats=16)
    zero = np.zeros((8, C))
    kernel = ntk.solve(a_problem(activation, richness=1e-4, parametrization="ntp", **options), initial_outputs=zero)
    for name in ("loss", "hessian_eigenvalues", "gauss_newton_eigenvalues", "ntk_eigenvalues", "directional_sharpness"):
        slack = 4 * found.error(name) + 1e-4
        assert np.all(np.abs(found[name] - kernel[name]) <= slack), (name, found[name], kernel[name], slack)
        assert np.all(found.error(name) <= 0.01 * np.abs(kernel[name]).max()), name


@pytest.mark.parametrize("activation", [pytest.param("tanh", marks=pytest.mark.slow), "relu"])
def test_the_errors_are_those_of_the_clouds(activation):
    """Two sets of clouds differ by their errors, and by less with more particles; same seed, same result."""
    problem = a_problem(activation, P=12)
    one, other = (meanfield.solve(problem, particles=512, repeats=12, seed=seed) for seed in (0, 1))
    large = meanfield.solve(problem, particles=4096, repeats=4)
    again = meanfield.solve(problem, particles=512, repeats=12, seed=1)
    for name in ("loss", "ntk_eigenvalues", "directional_sharpness"):
        np.testing.assert_array_equal(again[name], other[name])
        spread = np.hypot(one.error(name), other.error(name))
        assert np.all(np.abs(one[name] - other[name]) <= 5 * spread + 1e-13), name
        assert np.all(np.abs(one[name] - large[name]) <= 5 * np.hypot(one.error(name), large.error(name)) + 1e-13), name
        assert np.sum(large.error(name) ** 2 * 4) < 0.3 * np.sum(one.error(name) ** 2 * 12), name


def test_a_cloud_has_no_outputs_and_white_weights():
    problem = a_problem("gelu", C=3)
    z = cloud(problem, 64, np.random.default_rng(0))
    with computing("float64"):
        f = outputs(functions(problem), population(problem, np.full(64, 1 / 64)), jax.tree.map(jnp.asarray, z))
    np.testing.assert_allclose(f, 0, atol=1e-15)
    for weights in z:
        np.testing.assert_allclose(weights.T @ weights / 64, np.eye(weights.shape[1]), atol=1e-14)


def test_several_classes_start_at_log_C():
    trajectory = meanfield.solve(a_problem("relu", 3, "cross_entropy"), particles=256, repeats=2)
    np.testing.assert_allclose(trajectory["loss"][0], np.log(3))
    assert trajectory["loss"][-1] < 0.99 * np.log(3)
    assert np.all(trajectory["gauss_newton_eigenvalues"] < 0.5 * trajectory["ntk_eigenvalues"])


def test_the_bulk_is_the_law_of_one_neuron():
    """One sample x = 1 at step 0: R_i = γ0 r [[v φ'', φ'], [φ', 0]] with r = −y, of which a million are drawn."""
    y, richness = 1.5, 1.2
    problem = Problem([[1.0]], [[y]], model="mlp2", activation="tanh", richness=richness, num_steps=0, top_k=1)
    (found,) = meanfield.hessian_spectra(problem, particles=2**14)
    h, v = np.random.default_rng(1).normal(size=(2, 10**6))
    slope = 1 - np.tanh(h) ** 2
    a, b = richness * y * v * 2 * np.tanh(h) * slope, richness * y * slope
    upper, lower = a / 2 + np.sqrt(a**2 / 4 + b**2), a / 2 - np.sqrt(a**2 / 4 + b**2)
    values, weights = found.bulk
    assert np.isclose(weights.sum(), 2)
    for level in (-2.0, -1.0, -0.1, 0.1, 0.5, 1.0, 2.0):
        share = np.mean(upper > level) + np.mean(lower > level)
        np.testing.assert_allclose(weights[values > level].sum(), share, atol=3e-3)


def test_the_bulk_of_a_smooth_activation_has_no_edge():
    """The larger the cloud, the larger the eigenvalue of its most extreme neuron; not so for the linear network."""
    problem, small, large = a_problem(num_steps=0), 2**8, 2**14
    edges = [meanfield.hessian_spectra(problem, particles=n)[0].bulk.values[[0, -1]] for n in (small, large)]
    assert edges[1][0] > 1.3 * edges[0][0] > 0
    assert edges[1][1] < 1.3 * edges[0][1] < 0
    problem = a_problem("linear", num_steps=0)
    compact = [meanfield.hessian_spectra(problem, particles=n)[0].bulk.values[0] for n in (small, large)]
    np.testing.assert_allclose(*compact, rtol=1e-10)


def test_an_eigenvalue_in_the_bulk_has_no_limit():
    """Large targets: one neuron's block has the largest eigenvalue.  Small ones: the top eigenvalue is an outlier."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 10, 3))
    for scale, lost in ((30.0, True), (0.01, False)):
        problem = Problem(X, scale * Y[:, :1], model="mlp2", num_steps=0, top_k=1)
        trajectory = meanfield.solve(problem, particles=1024, repeats=2)
        assert np.isfinite(trajectory["sharpness"]).all()
        assert np.isinf(trajectory.error("sharpness")).all() == lost
        assert len(meanfield.hessian_spectra(problem, particles=1024)[0].outliers) == (0 if lost else 1)


def test_divergence_is_data():
    problem = a_problem(learning_rate=1e60, num_steps=12, weight_decay=1.0)
    trajectory = meanfield.solve(problem, particles=64, repeats=2)
    assert trajectory.diverged.tolist() == [False, True, True, True]
    assert np.isnan(trajectory["sharpness"][1:]).all()
    assert len(meanfield.hessian_spectra(problem, particles=64)[-1].bulk.values) == 0


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"parametrization": "ntp"}, {}, "ntp has another limit: this one is of μP"),
        ({"parametrization": "sp"}, {}, "no limit is known for it"),
        ({"optimizer": "adam"}, {}, "no limit is known with adam"),
        ({"model": "mlp3"}, {}, "mlp3 of depth 2: the mean-field limit is one of one hidden layer"),
        ({"model": "resmlp", "parametrization": "depth_mup"}, {}, "resmlp of depth 2: the mean-field limit"),
        ({"trained": "readout"}, {}, "only the readout is trained"),
        ({}, {"particles": 1000}, "1000 particles: wanted a power of two, at least 16"),
        ({}, {"particles": 8}, "8 particles: wanted a power of two, at least 16"),
        ({}, {"repeats": 1}, "1 repeats: a standard error needs two"),
    ],
)
def test_refusals(options, arguments, message):
    rng = np.random.default_rng(0)
    problem = Problem(*rng.normal(size=(2, 5, 4)), **{"model": "mlp2"} | options)
    with pytest.raises(ValueError, match=message):
        meanfield.solve(problem, **arguments)


def test_too_many_particles_are_refused_before_they_are_made():
    with pytest.raises(MemoryError, match=r"particles need about .* GiB, more than the .* GiB there are: take fewer"):
        meanfield.solve(a_problem(), particles=2**50)


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "richness", "size"), [
    pytest.param("tanh", 0.6, 0.5, marks=pytest.mark.long), ("relu", 1.2, 1.0)])  # fmt: skip
def test_networks_approach_the_limit(activation, richness, size):
    """Loss and sharpness of trained networks: the distance falls as N^{-1/2}.  (Larger targets: tanh's bulk takes over.)"""
    problem = a_problem(activation, P=16, richness=richness, momentum=0.3, num_steps=8, measure_every=8, top_k=1)
    problem = replace(problem, targets=size * problem.targets)
    limit = meanfield.solve(problem, particles=2**13, repeats=8)
    widths, distances = (64, 128, 256, 512, 1024, 2048), {"loss": [], "sharpness": []}
    for width in widths:
        network, keys = mlp(problem, width, 1, activation), jax.random.split(jax.random.key(width), 48)
        trained = train(problem, network, keys, observables=("loss", "hessian_eigenvalues"), rtol=1e-4)
        for name, errors in distances.items():
            errors.append([trajectory[name][-1] - limit[name][-1] for trajectory in trained])
    for name, errors in distances.items():
        law = fit(widths, np.array(errors), noise_floor=float(limit.error(name)[-1]))
        assert law.interval[0] <= -0.5 <= law.interval[1], (name, law)
        assert law.interval[1] < -0.25
