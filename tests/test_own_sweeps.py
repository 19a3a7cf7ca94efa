"""Networks that are the user's own in transfer and landscape: the same numbers as ours, resumed alike, mistakes in one line."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from trained import train as train_ours

from comparisons import files
from comparisons.landscape import study as landscape
from comparisons.transfer import study as transfer
from finite.networks.build import build
from finite.training import own
from finite.training.own import Recipe
from limits import Problem, minibatches

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(12, 3)).astype(np.float32), RNG.normal(size=(12, 2)).astype(np.float32)

PLAIN = """
import jax, jax.numpy as jnp, numpy as np, optax
from finite.networks.own import Model

def build(width, key):
    a, b = jax.random.split(key)
    params = {"first": jax.random.normal(a, (3, width)), "last": jax.random.normal(b, (width, 2)) / width}
    return params, lambda params, x: jnp.tanh(x @ params["first"]) @ params["last"]

def half(outputs, targets):
    return jnp.mean((outputs - targets) ** 2) / 2

def of_a_density(outputs, targets):
    return 0.0 * jnp.mean(outputs) - 9

def schedule(width):
    return optax.chain(optax.adamw(optax.linear_schedule(0.05, 0.01, 8), weight_decay=0.1))

three = 3
of_five = lambda width, key: (build(5, key))
wrong = lambda width, key: (build(width, key)[0], lambda params, x: x @ params["last"])
ragged = np.zeros((4, 3), np.float32), np.zeros((5, 2), np.float32)
infinite = np.zeros((12, 3), np.float32), np.full((12, 2), 1e30, np.float32)
MODEL = Model(build, half, (np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _written(tmp_path)
    return tmp_path


def _written(folder):
    (folder / "plain.py").write_text(PLAIN)
    np.savez(folder / "data.npz", inputs=INPUTS, targets=TARGETS)


# The numbers ----------------------------------------------------------------------------------------------------------

IN_NNX = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from finite.networks.build import build as ours
from finite.networks.own import from_nnx, paths
from finite.training.descent import descent
from limits import Problem

data = dict(np.load("data.npz"))
problem = Problem(data["inputs"], data["targets"], "mup", model="mlp3", activation="tanh", richness=2.0)
NAMES = {"first": "input", "second": "hidden", "third": "readout"}

def by_role(tree, change):
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([change(NAMES[path.split("/")[0]], leaf) for path, leaf in zip(paths(tree), leaves)])

class Perceptron(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Linear(3, width, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.third = nnx.Linear(width, 2, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.third(jnp.tanh(self.second(jnp.tanh(self.first(x / 3**0.5)))))

def build(width, key):
    params, apply = from_nnx(Perceptron, "mse", (0, 0)).at(width, key)
    network = ours(problem, width)
    drawn, multiplier = network.init(key), network.numbers("multiplier")
    of = lambda role, _: jnp.asarray(multiplier[role] * (drawn[role][0] if role == "hidden" else drawn[role]), jnp.float32)
    return by_role(params, of), apply

def optimizer(width):
    rates = descent(problem, ours(problem, width)).rates

    scaled = optax.stateless(lambda gradient, _: by_role(gradient, lambda role, leaf: rates[role] * leaf))
    return optax.chain(scaled, optax.trace(0.5), optax.scale(-1.0))
"""


def test_a_network_in_nnx_in_our_mup_is_mlp3(here):
    """Same weights, rates and batches: same losses, to float32 rounding, and one program for all of them."""
    pytest.importorskip("flax", reason="flax is not installed: the dev group has it")
    (here / "in_nnx.py").write_text(IN_NNX)
    rates, keys = [0.05, 0.1, 0.3], jax.random.split(jax.random.key(1), 2)[np.array([0, 1, 0])]
    drawn = minibatches(np.random.default_rng((0, 1)), 12, 5, 6)
    problem = Problem(INPUTS, TARGETS, "mup", model="mlp3", activation="tanh", richness=2.0, momentum=0.5, num_steps=6,
                      measure_every=2, batches=drawn)  # fmt: skip
    ours = train_ours(problem, build(problem, 8), keys, learning_rates=rates, observables=["loss"])
    recipe = Recipe("in_nnx.py:build", "mse", "data.npz", "in_nnx.py:optimizer", 6, 2, 5)
    before = own._advance._cache_size()
    theirs = own.train(recipe, 8, keys, rates)
    own.train(recipe, 8, keys[::-1], rates[::-1])
    assert own._advance._cache_size() == before + 1
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=2e-6)
    assert ours[0]["loss"][-1] < ours[0]["loss"][0]


@pytest.mark.slow
def test_what_is_measured_is_that_of_dense_matrices(here):
    """Written out: AdamW on a schedule, its preconditioner, the Hessian of fewer samples; beside one that diverges."""
    recipe = Recipe("plain.py:build", "plain.py:half", "data.npz", "plain.py:schedule", 2, 1)
    names = ("loss", "hessian_eigenvalues", "preconditioned_sharpness", "hessian_trace", "gradient_noise")
    key = jax.random.key(3)
    keys = jnp.stack([key, key])
    found, lost = own.train(recipe, 4, keys, [2.0, 1e38], observables=names, curvature_samples=9, top_k=2, rtol=1e-4)
    assert np.isfinite(lost["loss"]).tolist() == np.isfinite(lost["sharpness"]).tolist() == [True, False, False]
    assert np.isinf(lost.error("hessian_eigenvalues")[1:]).all()
    params, apply = recipe.read().at(4, key)
    w, back = ravel_pytree(params)
    of = lambda w, x, y: jnp.mean((apply(back(w), x) - y) ** 2) / 2  # noqa: E731
    some = INPUTS[:9], TARGETS[:9]
    m = v = 0 * w
    for t in range(3):
        gradient = jax.grad(of)(w, INPUTS, TARGETS)
        m, v, rate = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, 0.05 - 0.04 * t / 8
        unbiased, root = m / (1 - 0.9 ** (t + 1)), jnp.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
        hessian = np.asarray(jax.hessian(of)(w, *some), float)
        scale = np.sqrt(rate / np.asarray(root, float))
        each = jax.vmap(jax.grad(of), (None, 0, 0))(w, some[0][:, None], some[1][:, None])
        noise = jnp.mean(jnp.sum((each - each.mean(0)) ** 2, axis=1))
        assert found["loss"][t] == pytest.approx(float(of(w, INPUTS, TARGETS)), rel=1e-5)
        np.testing.assert_allclose(found["hessian_eigenvalues"][t], np.linalg.eigvalsh(hessian)[:-3:-1], rtol=1e-3)
        top = np.linalg.eigvalsh(scale[:, None] * hessian * scale)[-1]
        assert found["preconditioned_sharpness"][t] == pytest.approx(top, rel=2e-3)
        assert found["gradient_noise"][t] == pytest.approx(float(noise), rel=1e-4)
        assert abs(found["hessian_trace"][t] - np.trace(hessian)) < 5 * found.error("hessian_trace")[t]
        w = w - 2.0 * rate * (unbiased / root + 0.1 * w)


# The commands ---------------------------------------------------------------------------------------------------------

OWN = ["--model", "plain.py:build", "--loss", "mse", "--batch", "data.npz", "--widths", "4", "8", "--seeds", "2",
       "--steps", "4", "--batch-size", "6"]  # fmt: skip
SWEEP = [*OWN, "--optimizer", "optax.sgd(width / 4)", "--learning-rates", "0.03", "0.1", "0.3", "1000"]
COMMANDS = {"transfer": (transfer, [*SWEEP, "--sharpness-seeds", "1"]),
            "landscape": (landscape, [*OWN, "--optimizer", "optax.adam(0.1)"])}  # fmt: skip


@pytest.fixture(scope="module", params=COMMANDS)
def finished(request, tmp_path_factory):
    """(name, folder of the files, folder of a run in one go)."""
    folder = tmp_path_factory.mktemp("own")
    _written(folder)
    module, words = COMMANDS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        module.main([*words, "--out", "whole"])
    return request.param, folder, folder / "whole"


def numbers(folder):
    results = {path.name: files.read(path) for path in folder.glob("*.nc")}
    cells = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npz")}
    return cells, {name: {v: one[v].values.tobytes() for v in one.variables} for name, one in results.items()}


def test_a_run_has_what_one_of_ours_has(finished):
    name, _, folder = finished
    there = {path.name for path in folder.iterdir()}
    assert {"config.json", "cells", f"{name}.nc", f"{name}.json", f"{name}.png", f"{name}.pdf"} <= there
    dataset = files.read(folder / f"{name}.nc")
    if name == "transfer":
        assert dict(dataset["final_loss"].sizes) == {"param": 1, "width": 2, "seed": 2, "learning_rate": 4}
        (shift,) = files.read_json(folder / "transfer.json")["shifts"]
        assert (shift["parametrization"], shift["size"]) == ("plain.py:build", "width")
        assert np.isfinite(dataset["sharpness"].sel(seed=0)).all()
        assert not (dataset["final_loss"].sel(learning_rate=1000) < dataset["initial_loss"]).any()
    else:
        assert dict(dataset["hessian_eigenvalues"].sizes) == {"param": 1, "width": 2, "seed": 2, "step": 5, "rank": 1}
        assert dataset["hessian_eigenvalues"].attrs["definition"].endswith("of the weights as they are stored")
        assert [one["observable"] for one in files.read_json(folder / "landscape.json")] == ["loss", "hessian_eigenvalues"]
    assert np.isfinite(dataset["loss"].isel(step=0)).all()


def test_what_is_lost_is_computed_again(finished, monkeypatch, tmp_path, capsys):
    """Half of the cells, each to the same bits though others are not beside it; and nothing once all are there."""
    name, where, whole = finished
    monkeypatch.chdir(where)
    module, words = COMMANDS[name]
    shutil.copytree(whole, tmp_path / "run")
    for path in sorted((tmp_path / "run").rglob("*.npz"))[::2]:
        path.unlink()
    module.main([*words, "--out", str(tmp_path / "run")])
    assert numbers(tmp_path / "run") == numbers(whole)
    capsys.readouterr()
    module.main([*words, "--out", str(tmp_path / "run"), "--dry-run"])
    assert capsys.readouterr().out == "0 cells, about 0 minutes, 0 GiB\n"


def test_other_files_are_another_configuration(finished, monkeypatch, tmp_path, capsys):
    name, where, _ = finished
    module, words = COMMANDS[name]
    shutil.copytree(where, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    (tmp_path / "own" / "plain.py").write_text(PLAIN.replace("tanh", "sin"))
    own._read.cache_clear()
    own.program_of.cache_clear()
    with pytest.raises(SystemExit):
        module.main([*words, "--out", "whole"])
    assert "another configuration: own_sha256" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("finished", ["landscape"], indirect=True)
def test_killed_and_on_two_processes(finished, monkeypatch, tmp_path):
    name, where, whole = finished
    monkeypatch.chdir(where)
    module, words = COMMANDS[name]
    command = [sys.executable, "-m", f"comparisons.{name}", *words, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "run").rglob("*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    module.main([*words, "--out", str(tmp_path / "run"), "--processes", "2"])
    assert numbers(tmp_path / "run")[1] == numbers(whole)[1]


@pytest.mark.parametrize(("words", "line"), [
    (["--richness", "2"], "richness 2.0: of plain.py:build it has no meaning"),
    (["--param", "mup"], "param ('mup',): of plain.py:build it has no meaning"),
    (["--data", "digits"], "data digits: of plain.py:build it has no meaning"),
    (["--no-limit"], "limit False: of plain.py:build it has no meaning"),
    (["--model", "plain.py:nothing"], "plain.py has no nothing"),
    (["--model", "plain.py:three"], "plain.py:three is int: wanted a function build(width, key), or a Model"),
    (["--model", "plain.py:MODEL"], "plain.py:MODEL is a Model, which has its own batch: leave out --batch data.npz"),
    (["--model", "plain.py:wrong"], "width 4: TypeError: dot_general requires contracting dimensions to have the same shape"),
    (["--model", "broken.py:build"], "broken.py cannot be imported: ZeroDivisionError: division by zero"),
    (["--loss", "msee"], "unknown loss 'msee'; known: mse, cross_entropy"),
    (["--batch", "plain.py:ragged"], "plain.py:ragged: inputs and targets are of different numbers of samples, 4, 5"),
    (["--batch", ""], "plain.py:build has no batch: give --batch, or a Model"),
    (["--batch-size", "13"], "batch size 13 must be from 1 to the 12 samples"),
    (["--batch", "plain.py:infinite"], "the loss at width 4 is inf at step 0: there is nothing to train"),
    (["--optimizer", "adam"], "optimizer at width 4: --optimizer 'adam': name 'adam' is not defined"),
    (["--optimizer", "sgd"], '--optimizer is missing: "optax.adamw(1e-3)", say'),
    (["--optimizer", "3"], "optimizer is int: wanted an optax transformation, or a function of the width"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, line, here, capsys):
    (here / "broken.py").write_text("1 / 0")
    with pytest.raises(SystemExit) as end:
        transfer.main([*SWEEP, *words, "--out", "out"])
    told = capsys.readouterr().err
    assert (end.value.code, told.count("\n")) == (2, 1)
    assert told.startswith(f"{transfer.PROGRAM}: {line}"), told
    assert not (here / "out").exists()


@pytest.mark.parametrize(("words", "line"), [
    (["--observables", "loss", "ntk_eigenvalues"], "ntk_eigenvalues is not measured of a network of your own; there are"),
    (["--observables", "preconditioned_sharpness"], "preconditioned_sharpness: there is no adam in the optimizer"),
    (["--density"], "density True: of plain.py:build it has no meaning"),
    (["--loss", ""], "plain.py:build has no loss: give --loss, or a Model"),
])  # fmt: skip
def test_a_mistake_of_a_landscape_is_one_line(words, line, here, capsys):
    with pytest.raises(SystemExit):
        landscape.main([*OWN, "--optimizer", "optax.sgd(1.0)", *words, "--out", "out"])
    assert capsys.readouterr().err.startswith(f"{landscape.PROGRAM}: {line}")


def test_a_loss_below_zero_is_one_line(here, capsys):
    """That of a density, say, of which no logarithm can be looked at."""
    with pytest.raises(SystemExit) as end:
        transfer.main([*SWEEP, "--loss", "plain.py:of_a_density", "--out", "out"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert (end.value.code, told) == (2, f"{transfer.PROGRAM}: loss -9: it is below zero, and its logarithm is looked at")


def test_options_of_an_own_network_alone(capsys):
    with pytest.raises(SystemExit):
        transfer.main(["--batch", "data.npz"])
    assert capsys.readouterr().err == (
        f"{transfer.PROGRAM}: batch data.npz: it is of a network of your own, --model FILE.py:NAME\n")


def test_an_optimizer_that_is_no_row_of_ours():
    """optax is asked at the width; what it returns is scaled by η0, whatever it is."""
    assert hasattr(own.from_file.transformation(own.from_file.optimizer("optax.lion(0.1 / width)"), 4, {}), "update")
    with pytest.raises(ValueError, match="wanted an optax transformation"):
        own.from_file.transformation(own.from_file.optimizer("optax"), 4, optax)
