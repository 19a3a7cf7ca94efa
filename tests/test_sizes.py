"""Measured sizes against the same networks trained and taken apart in NumPy, from the same draws."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from written_out import NUMPY_ACTIVATIONS, descend, forward, in_numpy, loss, numbers, outputs

from finite import sizes
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from limits.machine import computing
from limits.problem import Problem

WIDTH, DEPTH = 9, 3
NAMES = {"plain": ("mup", "sp"), "residual": ("depth_mup", "alpha1")}


def a_problem(name="mup", optimizer="sgd", num_outputs=2, **changes):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4, 3)), rng.normal(size=(4, num_outputs))
    rest = {"num_steps": 3, "learning_rate": 0.1, "richness": 0.7, "epsilon": 0.3, "betas": (0.8, 0.9)}
    return Problem(*data, parametrization=name, optimizer=optimizer, **rest | changes)


def built(problem, kind):
    return mlp(problem, WIDTH, DEPTH, "tanh") if kind == "plain" else resmlp(problem, WIDTH, DEPTH, "tanh", block_size=3)


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


def layers(params):
    """layer → its matrix; of many blocks, the last."""
    found = {"input": params["input"]}
    found |= {f"hidden {l + 2}": W for l, W in enumerate(params.get("hidden", ()))}
    if "block" in params:
        found |= {f"block_inner {i + 1}": U for i, U in enumerate(params["block_inner"][-1])}
        found["block"] = params["block"][-1]
    return {name: np.asarray(W) for name, W in (found | {"readout": params["readout"]}).items()}


def role(layer):
    return layer.partition(" ")[0]


def written_out(problem, network, of, key):
    """quantity → layer → size; spectra by LAPACK, ``sharpness`` from dense Jacobians of the stored weights."""
    phi, X, Y = NUMPY_ACTIVATIONS["tanh"], problem.inputs, problem.targets
    start, *_, end = descend(problem, in_numpy(network.init(key)), of, "tanh")
    before, after = ({name: s for name, *s in forward(at, of.multiplier, X, phi)} for at in (start, end))
    moved = {name: W - layers(start)[name] for name, W in layers(end).items()}
    gradients = jax.grad(loss)(start, of.multiplier, X, Y, "tanh")
    jacobian = jax.jacrev(outputs)(start, of.multiplier, X, "tanh")
    per_output = [[layers(jax.tree.map(lambda J: J[p, c], jacobian)) for c in range(Y.shape[1])] for p in range(len(X))]  # noqa: B023

    def sharpness(layer, gradient):
        J = np.stack([of_c[layer].ravel() for of_p in per_output for of_c in of_p])
        whole = gradient if role(layer) == "hidden" else np.asarray(gradients[role(layer)])  # of all blocks together
        metric = 1 / (np.abs(gradient.ravel()) + rms(whole)) if problem.optimizer == "adam" else 1.0
        return np.linalg.eigvalsh((J * metric) @ J.T / len(X))[-1]

    readouts = np.float64(jax.random.normal(jax.random.fold_in(key, sizes.READOUTS), (WIDTH, sizes.READOUTS), np.float32))
    changes = {name: rms(after[name][1] - before[name][1]) for name in before}
    own = {name: rms(of.multiplier[role(name)] * (after[name][0] @ moved[name])) for name in moved}
    per_entry = {name: of.multiplier[role(name)] * rms(W) * rms(after[name][0]) for name, W in moved.items()}
    return {
        "h": {name: rms(output) for name, (_, output) in before.items() if name != "readout"},
        "f": {"readout": rms(of.multiplier["readout"] * (before["readout"][0] @ readouts))},
        "delta_h": {name: change for name, change in changes.items() if name != "readout"},
        "delta_f": {"readout": changes["readout"]},
        "own_change": own,
        "alignment": {name: own[name] / per_entry[name] for name in own},
        "gradient": {name: rms(g) for name, g in layers(gradients).items()},
        "weight_update": {name: rms(W) for name, W in moved.items()},
        "weight_update_spectral": {name: np.linalg.svd(W, compute_uv=False)[0] for name, W in moved.items()},
        "sharpness": {name: sharpness(name, g) for name, g in layers(gradients).items()},
        "loss": {when: 0.5 * np.mean(np.sum((at["readout"][1] - Y) ** 2, axis=1)) for when, at in
                 (("start", before), ("end", after))},
    }


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("plain", "sgd"),
        ("residual", "adam"),
        pytest.param("plain", "adam", marks=pytest.mark.slow),
        pytest.param("residual", "sgd", marks=pytest.mark.slow),
    ],
)
def test_sizes_are_those_of_the_networks_written_out(kind, optimizer, monkeypatch):
    """Two parametrizations and two seeds at once; power iterations run until they have converged."""
    monkeypatch.setattr(sizes, "POWER_ITERATIONS", 2000)
    problems = [a_problem(name, optimizer) for name in NAMES[kind]]
    networks, seeds = [built(problem, kind) for problem in problems], jax.random.split(jax.random.key(3), 2)
    got = sizes.measure(problems, networks, seeds, precision="float64")
    for i, (name, problem, network) in enumerate(zip(NAMES[kind], problems, networks, strict=True)):
        of = numbers(name, optimizer, WIDTH, DEPTH, problem.richness)
        for seed, key in enumerate(seeds):
            with computing("float64"):
                expected = written_out(problem, network, of, key)
            assert got.keys() == expected.keys()
            for quantity in expected:
                assert got[quantity].keys() == expected[quantity].keys(), quantity
                for layer, size in expected[quantity].items():
                    value, where = got[quantity][layer][i, seed], f"{name} {quantity} {layer}"
                    np.testing.assert_allclose(value, size, rtol=1e-9, err_msg=where)
    jax.clear_caches()  # of so many iterations


def test_alignment_along_training_is_that_of_shorter_ones():
    problem, key = a_problem(optimizer="adam"), jax.random.key(4)
    network, of = built(problem, "plain"), numbers("mup", "adam", WIDTH, DEPTH, problem.richness)
    along = sizes.alignment([problem], [network], key[None], precision="float64")
    for steps in (1, 3):
        with computing("float64"):
            expected = written_out(replace(problem, num_steps=steps), network, of, key)["alignment"]
        assert {layer: e[0, 0, steps - 1] for layer, e in along.items()} == pytest.approx(expected, rel=1e-9)


def test_spectra_are_from_below():
    """A few power iterations: never above the largest, and where a gap lies behind it, close to it."""
    jax.clear_caches()
    problem, key = a_problem(optimizer="adam", num_outputs=1), jax.random.key(4)
    network = built(problem, "plain")
    got = sizes.measure([problem], [network], key[None], precision="float64")
    with computing("float64"):
        expected = written_out(problem, network, numbers("mup", "adam", WIDTH, DEPTH, problem.richness), key)
    for quantity in ("weight_update_spectral", "sharpness"):
        for layer, size in expected[quantity].items():
            assert 0.99 * size < got[quantity][layer][0, 0] < size * (1 + 1e-9), (quantity, layer)


def test_a_diverged_network_has_no_finite_change():
    problem = a_problem(learning_rate=1e30, num_steps=8)
    got = sizes.measure([problem], [built(problem, "plain")], jax.random.split(jax.random.key(0), 1))
    assert np.isfinite(got["h"]["input"]).all()
    assert not np.isfinite(got["delta_f"]["readout"]).any()


def test_refuses_networks_of_different_architectures():
    problem = a_problem()
    others = [mlp(problem, WIDTH + 1, DEPTH, "tanh"), mlp(problem, WIDTH, DEPTH, "relu"), mlp(problem, WIDTH, 1, "tanh"),
              built(replace(problem, parametrization="depth_mup"), "residual")]  # fmt: skip
    for other in others:
        with pytest.raises(ValueError, match="networks of different architectures: measure them one by one"):
            sizes.measure([problem] * 2, [built(problem, "plain"), other], jax.random.split(jax.random.key(0), 1))
