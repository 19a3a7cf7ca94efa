"""One new thing of each kind, added through its row alone (tests/rows), outside the packages: all else follows from that."""

import re
import sys
from dataclasses import replace
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained import train

from comparisons import labelled, pairs
from comparisons.convergence import options as convergence
from comparisons.convergence.study import prepare
from comparisons.coord_check import options as coord_check
from comparisons.coord_check import study as sizes
from comparisons.landscape import options as landscape
from comparisons.landscape.late import followed
from comparisons.transfer import options as transfer
from finite.curvature.observers import OBSERVERS
from finite.data.named import DATA, Named
from finite.networks import by_role
from finite.networks.build import BUILDERS, build
from finite.networks.mlp import mlp
from finite.training.descent import UPDATES
from limits import Problem, predict, solve
from limits.activations import ACTIVATIONS, Activation
from limits.command.arguments import read
from limits.kernel import ntk
from limits.models import MODELS, Layers
from limits.optimizers import OPTIMIZERS
from limits.theories import THEORIES, theory
from limits.trajectory import OBSERVABLES, RANK, Observable, measured_by_default
from limits.two_layer import meanfield

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))
KEYS = jax.random.split(jax.random.key(0), 1)


@pytest.fixture
def add():
    """Adds a row to a table for the length of a test."""
    added = []

    def to(table, row, **where):
        table.add(row, **where)
        added.append((table, row.name))

    yield to
    for table, name in added:
        del table[name]


@pytest.fixture
def rows():
    """Imports rows/NAME.py, which adds its rows to their tables, for the length of a test."""
    tables = [ACTIVATIONS, MODELS, BUILDERS, OPTIMIZERS, UPDATES, OBSERVABLES, OBSERVERS, THEORIES, DATA]
    before = [dict(table) for table in tables]

    def imported(name):
        sys.modules.pop(f"rows.{name}", None)
        return import_module(f"rows.{name}")

    yield imported
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def a_problem(**options):
    return Problem(X, Y, **{"num_steps": 2, "learning_rate": 0.1} | options)


def reads(module, *words):
    return read(module.Options, module.PROGRAM, words)


def refused(problem):
    """The one line with which no theory computes it."""
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  (the line is what the callers look at)
        solve(problem)
    line = str(refusal.value)
    assert "\n" not in line
    with pytest.raises(ValueError, match=re.escape(line)):
        predict(problem)
    return line


def test_a_name_is_given_once_and_unknown_ones_are_told_what_there_is(add):
    add(ACTIVATIONS, Activation("bent", jnp.sin))
    with pytest.raises(ValueError, match="the activation 'bent' is there already"):
        ACTIVATIONS.add(Activation("bent", jnp.cos))
    with pytest.raises(ValueError, match="unknown activation 'bend'; known: linear, relu, tanh, erf, gelu, bent"):
        ACTIVATIONS.find("bend")
    with pytest.raises(KeyError, match=r"^unknown activation 'bend'; known: linear, relu, tanh, erf, gelu, bent$"):
        ACTIVATIONS["bend"]


# A kinked activation --------------------------------------------------------------------------------------------------

SLOPES = 0.1, 1.0


def test_the_commands_know_a_new_activation(rows, capsys):
    with pytest.raises(SystemExit):
        reads(transfer, "--activation", "leaky")
    assert "'gelu')" in capsys.readouterr().err
    rows("activation")
    for module in (convergence, transfer, landscape, coord_check):
        assert reads(module, "--activation", "leaky").activation == "leaky"
    with pytest.raises(SystemExit):
        reads(transfer, "--help")
    assert "gelu,leaky}" in capsys.readouterr().out


def test_a_kink_has_no_law_and_an_edge_over_patterns(rows):
    """At step 0, where f = 0: the largest singular value of Σ_p φ'_p x_p r_pᵀ over the cells that directions fall into."""
    rows("activation")
    problem = a_problem(model="mlp2", activation="leaky", num_steps=0, top_k=1)
    assert predict(problem) is None
    found = meanfield.solve(problem, particles=64, repeats=2)
    slopes = np.where(RNG.normal(size=(20_000, 3)) @ X.T > 0, *SLOPES[::-1])
    U = np.einsum("sp,pa,pc->sac", slopes, X / np.sqrt(3), -Y / 5)
    edge = np.linalg.svd(U, compute_uv=False)[:, 0].max()
    np.testing.assert_allclose(found["residual_eigenvalues"], [[edge, -edge]], rtol=1e-9)
    assert "hessian_trace" in found
    assert build(problem, 4).layerwise_linear


def test_a_kink_away_from_0_has_no_law_either(add):
    add(ACTIVATIONS, Activation("hard tanh", lambda h: jnp.clip(h, -1, 1)))
    assert predict(a_problem(model="mlp2", activation="hard tanh")) is None


@pytest.mark.parametrize("analytic", [True, False])
def test_the_kernels_of_a_new_activation_are_those_of_its_row(rows, analytic):
    """E φ(u) φ(v) by a sum over a grid; where the row has none, one line."""
    rows("activation")
    if not analytic:
        ACTIVATIONS["leaky"] = replace(ACTIVATIONS["leaky"], kernel=None)
    problem = a_problem(parametrization="ntp", model="mlp2", activation="leaky")
    if not analytic:
        assert refused(problem) == "no kernel limit for activation 'leaky'; known: linear, relu, tanh, erf, gelu"
        return
    assert "hessian_trace" in solve(problem)
    nngp, _ = ntk.kernels(problem)
    grid, step = np.linspace(-8, 8, 801, retstep=True)
    weight = np.exp(-(grid**2) / 2) * step / np.sqrt(2 * np.pi)
    root = np.linalg.cholesky((X @ X.T / 3)[:2, :2])
    u = root[0, 0] * grid[:, None] + 0 * grid
    v = root[1, 0] * grid[:, None] + root[1, 1] * grid
    phi = lambda h: np.where(h > 0, h, SLOPES[0] * h)  # noqa: E731
    np.testing.assert_allclose(nngp[0, 1], weight @ (phi(u) * phi(v)) @ weight, rtol=1e-4)


def test_deep_theories_refuse_or_compute_a_new_activation(rows):
    rows("activation")
    for param, model in (("mup", "mlp3"), ("depth_mup", "resmlp"), ("ntp", "mlp3")):
        theory(a_problem(parametrization=param, model=model, activation="leaky"))
    assert "blocks of 2" in refused(a_problem(parametrization="depth_mup", model="resmlp", activation="leaky", block_size=2))


def test_a_convolutional_model_has_the_activation_of_its_row(add):
    """Variance of f(0) over 2000 networks beside the limit's; ReLU's is twice as large."""
    add(MODELS, Layers("smooth", "plain", "conv", "images", depth=2, activation="erf", pools=True))
    images = RNG.normal(size=(2, 64))
    problem = Problem(images, np.ones((2, 1)), "ntp", model="smooth", pooling="average", image_shape=(8, 8, 1), num_steps=0)
    network, keys = build(problem, 64), jax.random.split(jax.random.key(0), 2000)
    seen = jnp.asarray(images, jnp.float32)
    outputs = jax.jit(jax.vmap(lambda key: network.apply(network.init(key), seen)))(keys)[:, :, 0]
    np.testing.assert_allclose(np.mean(outputs**2, 0), np.diag(ntk.kernels(problem)[0]), rtol=0.15)


# A residual model -----------------------------------------------------------------------------------------------------


def test_a_residual_model(rows):
    rows("model")
    for module in (convergence, transfer, landscape, coord_check):
        assert reads(module, "--model", "gated").model == "gated"
    words = ["--model", "gated", "--param", "depth_mup", "--depth", "3", "--widths", "4", "8", "16", "32"]
    prepared = prepare(reads(convergence, *words))
    assert (prepared.reference, prepared.problem.network.depth) == ("largest-width", 3)
    assert refused(prepared.problem) == "no limit is known for gated in depth_mup"
    assert refused(a_problem(parametrization="ntp", model="gated")) == "no kernel limit is known for gated"
    with pytest.raises(ValueError, match="architecture has no matrices and signals of its layers"):
        sizes.prepare(reads(coord_check, "--model", "gated"))
    problem = a_problem(parametrization="depth_mup", model="gated")
    network = build(problem, 8)
    (got,) = train(problem, network, KEYS, precision="float64", observables=["loss"])
    acting = by_role(network.numbers("multiplier"), jax.tree.map(np.float64, network.init(KEYS[0])))
    E, W, V = (acting[role] for role in ("input", "block", "readout"))
    h = X / np.sqrt(3) @ E
    for block in W:
        h = h + np.tanh(h) * (h @ block)
    np.testing.assert_allclose(got["loss"][0], np.sum((h @ V - Y) ** 2) / 10, rtol=1e-6)
    assert got["loss"][-1] < got["loss"][0]


# A sign optimiser -----------------------------------------------------------------------------------------------------


def test_a_sign_optimiser(rows):
    """Against stored weights that move by η0 r sign ∂L/∂θ + η0 λ θ, gradients written out."""
    rows("optimizer")
    for module in (convergence, transfer, landscape):
        assert reads(module, "--optimizer", "signs").optimizer == "signs"
    assert reads(coord_check, "--optimizer", "signs", "sgd").optimizer == ("signs", "sgd")
    assert reads(landscape, "--optimizer", "signs").followed == ("loss", "hessian_eigenvalues")
    problem = a_problem(optimizer="signs", parametrization="mup", num_steps=3, weight_decay=0.3, richness=0.7)
    assert refused(problem) == "no limit is known with signs: only of networks trained by sgd"
    assert np.isnan(problem.edge_of_stability)
    with pytest.raises(ValueError, match=r"momentum 0\.5 must be 0: signs has none"):
        a_problem(optimizer="signs", momentum=0.5)
    network = mlp(problem, 6)
    (got,) = train(problem, network, KEYS, precision="float64", observables=["loss"])
    m, rate = network.numbers("multiplier"), network.numbers("learning_rate")
    E, V = (np.float64(w) for w in (network.init(KEYS[0])["input"], network.init(KEYS[0])["readout"]))
    x, losses = X / np.sqrt(3), []
    for _ in range(4):
        error = (x @ E @ V * m["input"] * m["readout"] - Y) / 5
        losses.append(np.sum(error**2) * 5 / 2)
        of_E, of_V = x.T @ error @ V.T, (x @ E).T @ error  # up to positive factors
        E = E - 0.1 * (rate["input"] * np.sign(of_E) + 0.3 * E)
        V = V - 0.1 * (rate["readout"] * np.sign(of_V) + 0.3 * V)
    np.testing.assert_allclose(got["loss"], losses, rtol=1e-10)


# A per-layer observable -----------------------------------------------------------------------------------------------


def test_a_per_layer_observable_sees_the_weights_that_act(rows):
    """Not weights/√M, of which the spectral norms are others here."""
    names = ("loss", "layer_norms", "gradient_noise")
    with pytest.raises(ValueError, match="unknown observable 'layer_norms'; known: loss, hessian_eigenvalues"):
        train(a_problem(model="mlp3"), build(a_problem(model="mlp3"), 6), KEYS, observables=names)
    rows("observable")
    observer = OBSERVERS.pop("norms")
    problem = a_problem(model="mlp3", parametrization="sp", optimizer="adam", num_steps=1, learning_rate=0.5, richness=0.3)
    network, keys = build(problem, 6), jax.random.split(jax.random.key(1), 2)
    with pytest.raises(ValueError, match="no network's layer_norms can be measured"):
        train(problem, network, keys, observables=names)
    OBSERVERS.add(observer)
    assert reads(landscape, "--observables", "loss", "layer_norms").observables == ("loss", "layer_norms")
    trained = train(problem, network, keys, precision="float64", observables=names)
    plain = train(problem, network, keys, precision="float64", observables=("loss", "gradient_noise"))
    for key, got, without in zip(keys, trained, plain, strict=True):
        acting = by_role(network.numbers("multiplier"), jax.tree.map(np.float64, network.init(key)))
        layers = acting["input"], *acting["hidden"], acting["readout"]
        wanted = [np.linalg.svd(layer, compute_uv=False)[0] for layer in layers]
        np.testing.assert_allclose(got["layer_norms"][0], wanted, rtol=1e-6)
        assert (np.abs(got["layer_norms"][1] - wanted) > 1e-3).all()  # after a step of Adam
        for name in without:
            np.testing.assert_array_equal(got[name], without[name])
    dataset = labelled.from_trajectories({6: trained})
    assert (dataset["layer_norms"].dims, dataset.layer.values.tolist()) == (("width", "seed", "step", "layer"), [1, 2, 3])
    assert "layer_norms" in followed(dataset)
    with pytest.raises(KeyError, match="no layer_norms here: no theory has it"):
        solve(a_problem())["layer_norms"]


def test_an_observable_of_eigenvalues_has_a_number_and_a_tolerance(add):
    add(OBSERVABLES, Observable("layers_edge", r"$\lambda$", "edges", "of a layer's block of H", RANK, by_lanczos=True))
    assert "layers_edge" in measured_by_default()  # by convergence, too
    options = reads(landscape, "--observables", "layers_edge", "--top-k", "2", "--tolerance", "0.1").adapted()
    assert (options.top_k, options.tolerance) == (2, 0.1)
    limit = solve(a_problem(num_steps=0))
    assert limit.left_open["layers_edge"] == "linear2 does not have it"
    assert not limit.left_open.keys() & limit.observables.keys()


# Data -----------------------------------------------------------------------------------------------------------------


def test_a_data_set(rows, capsys):
    rows("data")
    with pytest.raises(SystemExit):
        reads(convergence, "--help")
    assert "points on a spiral" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    problem = prepare(reads(convergence, "--data", "spiral", "--samples", "7", "--widths", "4", "8", "16")).problem
    np.testing.assert_allclose(np.linalg.norm(problem.inputs, axis=1), np.linspace(0, 1, 7))
    assert np.isfinite(solve(problem)["loss"]).all()
    with pytest.raises(ValueError, match="plays, spiral, a file that ends in"):
        reads(convergence, "--data", "spirals").load()


# A theory -------------------------------------------------------------------------------------------------------------


def test_a_toy_theory(rows):
    """Asked before all others where it is meant; what it refuses is refused, and the rest is others'."""
    rows("theory")
    toy = a_problem(momentum=0.5)
    assert theory(toy).__name__ == "rows.theory"
    assert (solve(toy)["loss"] == 7).all()
    assert predict(toy) is None
    assert refused(a_problem(momentum=0.5, richness=2.0)) == "the toy wants richness 1"
    assert pairs.refused(toy) is None
    assert pairs.refused(a_problem(momentum=0.5, richness=2.0)) == "the toy wants richness 1"
    assert "f(0) stays random, as in ntp" in refused(a_problem(momentum=0.5, parametrization="ntp"))
    assert theory(a_problem()).__name__ == "limits.two_layer.linear"
    assert "sharpness" in predict(a_problem())


def test_what_a_row_lacks_is_said_before_anything_is_computed(add):
    add(OPTIMIZERS, replace(OPTIMIZERS["sign"], name="forgotten"))
    line = r"^unknown update \(finite.training.descent.UPDATES\) of optimizer 'forgotten'; known: sgd, adam, "
    for module, prepared in ((convergence, prepare), (coord_check, sizes.prepare)):
        with pytest.raises(ValueError, match=line):
            prepared(reads(module, "--optimizer", "forgotten"))
    add(DATA, Named("flat", lambda wanted: (np.zeros((4, 2)), np.zeros(4), None)))
    with pytest.raises(ValueError, match=r"^data flat: inputs \(4, 2\) and targets \(4,\): wanted \(P, D\) and \(P, C\)$"):
        prepare(reads(convergence, "--data", "flat"))
