"""Learning-rate transfer: the optimum and its interval, the numbers against gradient descent, the whole command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import finite.train
from comparisons import cases, records, transfer
from comparisons.transfer import Options, analyse, bracket, cell, limit, main, prepare, verdict
from finite.networks.build import build
from limits import linear2

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--widths", "8", "16", "--seeds", "3", "--steps", "4", "--samples", "8", "--inputs", "3",
         "--learning-rates", "0.3", "1", "2", "1000", "--richness", "1"]  # fmt: skip
RATES = np.geomspace(0.1, 10, 15)


def swept(**options):
    sizes = {"widths": (8, 16), "seeds": 3, "steps": 4, "samples": 8, "inputs": 3, "learning_rates": (0.3, 1.0, 2.0)}
    return prepare(Options(**{**sizes, **options}))


# the optimum


@pytest.mark.parametrize("optimum", [0.3, 1.0, 1.234, 5.0])
def test_the_vertex_of_a_parabola_is_exact(optimum):
    loss = 1e-3 * np.exp(0.7 * np.log(RATES / optimum) ** 2)
    np.testing.assert_allclose(bracket(RATES, loss, 1e9), optimum, rtol=1e-12)


def test_a_diverged_neighbour_leaves_a_bracket():
    best, low, high = bracket(np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.1, np.nan, np.inf]), 1.0)
    assert (low, high) == (1.0, 4.0)
    assert low < best < high
    assert bracket(np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.1, 1.1]), 1.0)[1:] == (1.0, 4.0)


@pytest.mark.parametrize(
    ("loss", "ends"),
    [
        ([0.1, 0.2, 0.3], (0.0, 2.0)),
        ([0.3, 0.2, 0.1], (2.0, np.inf)),
        ([0.1, np.inf, np.inf], (0.0, 2.0)),
        ([np.inf, np.inf, np.nan], (0.0, 1.0)),
    ],
)
def test_an_optimum_at_the_end_of_the_grid_is_open(loss, ends):
    assert bracket(np.array([1.0, 2.0, 4.0]), np.array(loss), 1.0)[1:] == ends


def test_losses_that_are_rounding_are_not_told_apart():
    loss = np.array([0.1, 1e-13, 1e-15, 0.2])
    best, low, high = bracket(np.array([1.0, 2.0, 4.0, 8.0]), loss, 1.0, floor=1e-12)
    assert (low, high) == (1.0, 8.0)
    assert best == pytest.approx(np.sqrt(8))


def synthetic(exponent, noise=0.3, widths=(32, 64, 128, 256), seeds=8):
    """Parabolas whose optimum is 0.5 N^exponent, with one factor of noise per seed and learning rate."""
    rng = np.random.default_rng(0)
    optimum = 0.5 * np.array(widths) ** exponent
    log_loss = np.log(RATES[None, None] / optimum[:, None, None]) ** 2
    log_loss = log_loss + noise * rng.standard_normal((len(widths), seeds, len(RATES))) - 5
    return xr.Dataset(
        {"final_loss": (("param", "width", "seed", "learning_rate"), np.exp(log_loss)[None]),
         "initial_loss": (("param", "width", "seed"), np.full((1, len(widths), seeds), 1e3))},
        {"param": ["mup"], "width": list(widths), "learning_rate": RATES}, {"precision": "float64"},
    )  # fmt: skip


@pytest.mark.parametrize(("exponent", "wanted"), [(0.0, "transfers"), (0.4, "does not transfer")])
def test_a_synthetic_shift_is_found_with_its_interval(exponent, wanted):
    _, (shift,) = analyse(synthetic(exponent, noise=0.05))
    assert shift.interval[0] <= exponent <= shift.interval[1]
    assert np.diff(shift.interval) < 0.1
    assert shift.verdict == wanted


def test_intervals_cover():
    """Of 60 optima, each of 8 seeds, the 95 % intervals hold the true one 57 ± 1.7 times; and are not wide for it."""
    optima, _ = analyse(synthetic(0.0, noise=0.05, widths=tuple(range(20, 80))))
    assert sum(o.interval[0] <= 0.5 <= o.interval[1] for o in optima) >= 52
    assert all(o.interval[1] / o.interval[0] < 1.4 for o in optima)


def test_more_noise_is_a_wider_interval_and_at_last_undecided():
    quiet, loud = (analyse(synthetic(0.0, noise))[1][0] for noise in (0.05, 1.0))
    assert np.diff(loud.interval) > 2 * np.diff(quiet.interval)
    assert (quiet.verdict, loud.verdict) == ("transfers", "undecided")


def test_an_optimum_off_the_grid_is_no_exponent():
    optima, (shift,) = analyse(synthetic(-0.8))
    assert optima[-1].interval[0] == 0
    assert np.isnan(shift.exponent)
    assert shift.verdict == "undecided: an optimum is off the grid"


def test_verdicts():
    intervals = [(-0.05, 0.1), (0.11, 0.3), (-0.3, -0.11), (0.0, 0.2), (-1.0, 1.0)]
    found = [verdict(interval) for interval in intervals]
    assert found == ["transfers", "does not transfer", "does not transfer", "undecided", "undecided"]


# the numbers


@pytest.mark.parametrize("param", ["mup", "ntp"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "batch_size": 4}], ids=["plain", "momentum, batches"])
def test_a_cell_is_gradient_descent(param, options):
    """Against an explicit loop at float64, for every learning rate and seed."""
    sweep = swept(precision="float64", richness=2.0, **options)
    problem = sweep.problems[param]
    network, gamma = build(problem, 8), 2 * {"mup": np.sqrt(8), "ntp": 1}[param]
    there = cell(sweep, param, 8)["final_loss"].squeeze(("param", "width"))
    with jax.enable_x64(True):
        inputs, targets = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)

        def loss(weights, x, y):
            return 0.5 * ((network.apply(weights, x) - y) ** 2).sum() / len(x)

        slope = jax.jit(jax.grad(loss))
        for seed, key in enumerate(cases.keys(0, 8, 3)):
            for rate in there.learning_rate.values:
                weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), network.init(key))
                buffer = jax.tree.map(jnp.zeros_like, weights)
                for t in range(4):
                    batch = slice(None) if problem.batches is None else problem.batches[t]
                    gradient = slope(weights, inputs[batch], targets[batch])
                    buffer = jax.tree.map(lambda m, g: problem.momentum * m + gamma**2 * g, buffer, gradient)
                    weights = jax.tree.map(lambda w, m: w - rate * m, weights, buffer)  # noqa: B023
                ours = float(there.sel(seed=seed, learning_rate=rate))
                assert ours == pytest.approx(float(loss(weights, inputs, targets)), rel=1e-9)


def test_all_learning_rates_are_one_program():
    sweep = swept(widths=(11, 13), learning_rates=tuple(np.geomspace(0.1, 1, 7)))
    before = finite.train._advance._cache_size()
    cell(sweep, "mup", 11)
    assert finite.train._advance._cache_size() == before + 1


def test_wide_mup_networks_follow_the_limit():
    sweep = swept(widths=(8, 512), seeds=8, richness=1.0, learning_rates=(0.1, 0.3, 0.6))
    expected = limit(sweep, "mup")["final_loss_limit"].values
    narrow, wide = (abs(cell(sweep, "mup", width)["final_loss"].mean("seed").values / expected - 1).max()
                    for width in (8, 512))  # fmt: skip
    assert wide < 0.05 < narrow


def test_wide_ntp_networks_scatter_about_the_limit():
    """Whose loss is random in f(0): the seeds' mean lies within 4 standard errors, and f(0) = 0 does not."""
    sweep = swept(widths=(8, 512), seeds=32, richness=0.5, learning_rates=(0.01, 0.03, 0.1))
    losses = cell(sweep, "ntp", 512)["final_loss"].squeeze()
    error = (losses.std("seed", ddof=1) / np.sqrt(32)).values
    distance = np.abs(losses.mean("seed").values - limit(sweep, "ntp")["final_loss_limit"].values)
    assert (distance < 4 * error).all()
    without = linear2.solve(replace(sweep.problems["ntp"], learning_rate=0.01))["loss"][-1]
    assert float(losses[:, 0].mean()) - without > 4 * error[0]


# the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "small"
    main([*SMALL, "--out", str(folder)])
    return folder


def numbers(folder) -> xr.Dataset:
    return records.read(folder / "transfer.nc").drop_vars("seconds")


def test_files(finished):
    for name in ("config.json", "transfer.nc", "transfer.json", "transfer.png", "transfer.pdf"):
        assert (finished / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.partial"))


def test_the_dataset_is_labelled(finished):
    dataset = numbers(finished)
    assert dict(dataset["final_loss"].sizes) == {"param": 2, "width": 2, "seed": 3, "learning_rate": 4}
    assert dataset["final_loss_limit"].dims == ("param", "learning_rate")
    assert dataset.attrs["numpy"] == np.__version__
    assert json.loads(dataset.attrs["configuration"])["widths"] == [8, 16]


def test_a_divergence_is_data(finished):
    """η0 = 1000 diverges in μP; it is in the file, and the optimum does not see it."""
    diverged = numbers(finished)["final_loss"].sel(param="mup", learning_rate=1000)
    initial = numbers(finished)["initial_loss"].sel(param="mup")
    assert not (diverged < initial).any()
    found = records.read_json(finished / "transfer.json")
    assert all(0.1 < o["best_learning_rate"] < 1000 for o in found["optima"])


def test_transfer_json(finished):
    found = records.read_json(finished / "transfer.json")
    assert [(o["parametrization"], o["width"]) for o in found["optima"]] == [
        (param, width) for param in ("mup", "ntp") for width in (8, 16, None)]  # fmt: skip
    assert set(found["optima"][0]) == {"parametrization", "width", "best_learning_rate", "interval", "final_loss"}
    assert [s["parametrization"] for s in found["shifts"]] == ["mup", "ntp"]
    assert {"exponent", "interval", "verdict"} <= set(found["shifts"][0])


def test_the_same_command_trains_nothing_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "train", lambda *_, **__: pytest.fail("trained again"))
    before = numbers(finished)
    main([*SMALL, "--out", str(finished)])
    xr.testing.assert_identical(numbers(finished), before)
    table = capsys.readouterr().out
    assert table.splitlines()[0].startswith("linear2, sgd, gaussian, P = 8, D = 3")
    assert f"results in {finished}" in table


def test_a_damaged_cell_is_computed_again(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy" / "cells" / "ntp-8.nc").write_bytes(b"")
    main([*SMALL, "--out", str(tmp_path / "copy")])
    xr.testing.assert_equal(numbers(tmp_path / "copy"), numbers(finished))
    assert "ntp-8.nc: does not have the digest" in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same_numbers(finished, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "comparisons.transfer", *SMALL, "--out", str(folder)], cwd=ROOT,
                               stderr=subprocess.PIPE, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
    deadline = time.monotonic() + 300
    while not (folder / "cells" / "mup-8.nc").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "transfer.json").exists()
    main([*SMALL, "--out", str(folder)])
    xr.testing.assert_equal(numbers(folder), numbers(finished))


def test_a_parametrization_without_a_limit(tmp_path):
    main([*SMALL, "--model", "mlp", "--param", "sp", "--out", str(tmp_path / "mlp")])
    assert "final_loss_limit" not in numbers(tmp_path / "mlp")
    assert len(records.read_json(tmp_path / "mlp" / "transfer.json")["optima"]) == 2


def test_parametrizations_of_ones_own(finished, tmp_path, capsys):
    """A file that says what μP is gives μP's numbers, limit included; SP, beside it, has no limit."""
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "mine"\n[input]\nlearning_rate = 1\n[readout]\nmultiplier = -1\nlearning_rate = 1\n')
    main([*SMALL, "--param", str(mine), "sp", "--out", str(tmp_path / "own")])
    assert "mine, sgd: feature learning" in capsys.readouterr().out
    own, known = numbers(tmp_path / "own"), numbers(finished).sel(param="mup")
    for name in ("final_loss", "initial_loss", "final_loss_limit"):
        np.testing.assert_allclose(own[name].sel(param=str(mine)), known[name], rtol=1e-5)
    assert np.isnan(own["final_loss_limit"].sel(param="sp")).all()
    assert [o["width"] for o in records.read_json(tmp_path / "own" / "transfer.json")["optima"]] == [8, 16, None, 8, 16]


def test_adam_has_no_limit(tmp_path):
    main([*SMALL, "--optimizer", "adam", "--learning-rates", "0.01", "0.03", "0.1", "--out", str(tmp_path / "adam")])
    dataset = numbers(tmp_path / "adam")
    assert "final_loss_limit" not in dataset
    assert (dataset["final_loss"] < dataset["initial_loss"]).all()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--widths", "8"], "widths 8: wanted at least 2, positive, none twice"),
        (["--widths", "8", "8"], "widths 8 8: wanted"),
        (["--widths", "0", "8"], "widths 0 8: wanted"),
        (["--param", "mup", "mup"], "parametrizations mup mup: wanted"),
        (["--param", "depth_mup"], "depth_mup is about residual blocks"),
        (["--param", "base=mup, hiden.multiplier=1"], "unknown role 'hiden'"),
        (["--optimizer", "adam", "--momentum", "0.5"], "momentum 0.5 must be 0: Adam has betas"),
        (["--learning-rates", "1", "2"], "learning rates 1 2: wanted at least 3"),
        (["--learning-rates", "1", "2", "-1"], "learning rates 1 2 -1: wanted"),
        (["--learning-rates", "1", "2", "inf"], "learning rates 1 2 inf: wanted"),
        (["--learning-rates", "1", "2", "nan"], "learning rates 1 2 nan: wanted"),
        (["--seeds", "1"], "1 seeds: at least 2"),
        (["--seed", "-1"], "seed -1 must be at least 0"),
        (["--steps", "0"], "0 steps: at least 1"),
        (["--richness", "0"], "richness 0 must be positive"),
        (["--momentum", "1"], "momentum 1 must be"),
        (["--batch-size", "9"], "batch size 9 must be from 1 to the 8 samples"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--data", "cifar"], "unknown data 'cifar'"),
        (["--model", "mlp", "--depth", "0"], "depth 0 must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*SMALL, "--out", str(tmp_path / "run"), *arguments])
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert line in complaint
    assert complaint.count("\n") == 1
    assert complaint.startswith("python -m comparisons.transfer: ")
    assert not (tmp_path / "run").exists()


def test_another_configuration_is_refused(finished, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*SMALL, "--steps", "5", "--out", str(finished)])
    assert stop.value.code == 2
    assert "steps 4 there, 5 here" in capsys.readouterr().err
