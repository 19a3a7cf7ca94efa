"""Coordinate checks: the fit, agreement of measured and derived exponents, and that disagreement is seen."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from comparisons import pairs
from comparisons.cells import Store
from comparisons.coord_check import study as coord_check
from comparisons.coord_check.study import AT_STEP_0, Options, Sweep, check, checked, prepare, sizes, table
from comparisons.statistics.power_law import exponent_of
from finite.networks.build import build
from finite.training.train import train
from limits import Problem
from limits.optimizers import OPTIMIZERS

SP_AT_HALF = "base=sp, input.learning_rate=-1/2, hidden.learning_rate=1/2, readout.learning_rate=1/2"  # of N(0, 1) weights
SMALL = {"widths": (64, 128, 256), "optimizer": ("sgd",), "depths": (1,), "seeds": 4}


def test_a_power_law_is_found_exactly():
    widths = (10, 20, 40)
    exponent, interval = exponent_of(widths, [3.0 * w**-1.5 * np.ones(5) for w in widths])
    assert exponent == pytest.approx(-1.5, abs=1e-12)
    np.testing.assert_allclose(interval, -1.5, atol=1e-12)


def test_intervals_cover():
    """Log-normal sizes, a different number of seeds and another scatter at each width: 95 % of the intervals hold −1/2."""
    rng, widths, seeds, scatter = np.random.default_rng(0), (64, 128, 256, 512), (24, 12, 6, 4), (0.2, 0.4, 0.3, 0.5)
    held = 0
    for _ in range(2000):
        sizes = [w**-0.5 * np.exp(s * rng.normal(size=n)) for w, n, s in zip(widths, seeds, scatter, strict=True)]
        low, high = exponent_of(widths, sizes)[1]
        held += low <= -0.5 <= high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_no_exponent_where_a_size_is_none(bad):
    sizes = [np.ones(3), np.ones(3), np.array([1.0, bad, 1.0])]
    exponent, interval = exponent_of((1, 2, 3), sizes)
    assert np.isnan([exponent, *interval]).all()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    options = Options(**SMALL, out=tmp_path_factory.mktemp("small") / "run")
    return options, check(options)


def test_measured_exponents_are_the_derived_ones(small):
    options, checks = small
    assert {c.parametrization for c in checks} == {"sp", "ntp", "mup"}
    assert {c.quantity for c in checks} == set(coord_check.LABELS)
    assert [c for c in checks if abs(c.exponent - c.derived) > 0.2] == []
    written = json.loads((options.out / "coord_check.json").read_text())
    assert len(written) == len(checks)
    assert written[0]["exponent"] == checks[0].exponent
    for ending in ("png", "pdf"):
        assert (options.out / f"coord_check-sgd.{ending}").stat().st_size > 10_000


IN_CI = ("lamb", "muon_keller", "soap")  # sgd above


@pytest.mark.parametrize("optimizer", [
    pytest.param(name, marks=pytest.mark.slow if name in IN_CI else pytest.mark.long) for name in OPTIMIZERS if name != "sgd"
])  # fmt: skip
def test_learning_rates_of_every_optimizer_are_the_derived_ones(optimizer, tmp_path):
    """After one step, of every layer, within 0.1; later SOAP's networks scatter (finite/training/matrices.py)."""
    options = Options(param=("mup",), optimizer=(optimizer,), widths=(64, 128, 256), seeds=2, steps=1, out=tmp_path / "run")
    found = {c.layer: c.exponent - c.derived for c in check(options) if c.quantity == "own_change"}
    assert set(found) == {"input", "hidden 2", "readout"}
    assert max(map(abs, found.values())) <= 0.1, found


def test_wrong_exponents_are_seen(small):
    """Networks in NTP, held against what is derived for μP."""
    options, _ = small
    job = prepare(replace(options, param=("mup",)))
    sweep = Sweep("sgd", "N", options.widths, (1,))
    store, ntp = Store(options.out, "test"), prepare(options).params.index("ntp")
    in_ntp = [{entry: of_each[[ntp]] for entry, of_each in sizes(store, cell).items()} for cell in sweep.cells]
    found = {(c.quantity, c.layer): c for c in checked(job, sweep, in_ntp)}
    for quantity, layer in (("delta_h", "input"), ("f", "readout"), ("sharpness", "input"), ("weight_update", "readout")):
        assert found[quantity, layer].verdict in ("differs", "undecided")
    assert found["f", "readout"].verdict == "differs"
    assert found["h", "input"].verdict == "agrees"
    shown = table(list(found.values()))
    assert re.search(r"✗ f +readout +N\^[-+]0\.\d+ .* derived N\^-0\.50 +differs", shown)
    assert "✗ h " not in shown


def test_the_table_is_below_what_is_derived(small, capsys):
    options, checks = small
    assert check(options) == checks
    out = capsys.readouterr().out
    assert out.index("mup, sgd: feature learning") < re.search(r"mup, sgd, L = 1: \d+ of 16 exponents agree", out).start()


@pytest.mark.slow
def test_controlled_divergence(tmp_path):
    """SP with cross-entropy, at N^{-1/2}: the last features move by Θ(1) at every width, and f grows."""
    options = Options(**SMALL | {"depths": (2,), "seeds": 64}, loss="cross_entropy", param=("sp",), out=tmp_path / "run")
    found = {(c.quantity, c.layer): c for c in check(options)}
    assert found["delta_h", "hidden 2"].exponent == pytest.approx(0, abs=0.15)
    assert found["delta_f", "readout"].exponent == pytest.approx(0.5, abs=0.15)
    assert found["delta_f", "readout"].derived == 0.5


def test_what_trains_with_cross_entropy_does_not_with_squares():
    """SP at N^{-1/2}, widths 64 and 1024."""
    rng = np.random.default_rng(0)
    inputs, classes = rng.normal(size=(16, 4)), np.eye(2)[np.arange(16) % 2]
    final = {}
    for loss, param in (("cross_entropy", "sp"), ("mse", SP_AT_HALF)):
        problem = Problem(inputs, classes, param, model="mlp3", activation="relu", loss=loss, learning_rate=10.0, num_steps=40,
                          measure_every=40)  # fmt: skip
        found = [train(problem, build(problem, width), pairs.keys(0, width, 2), observables=["loss"]) for width in (64, 1024)]
        final[loss] = [np.max([one["loss"][-1] / one["loss"][0] for one in of_width]) for of_width in found]
    assert max(final["cross_entropy"]) < 0.5
    assert final["mse"][0] < 1  # at N = 64 it does
    assert not final["mse"][1] < 10  # or not finite


def test_divergence_is_data(tmp_path):
    options = Options(**SMALL | {"widths": (8, 16, 32)}, param=("mup",), learning_rate=1e30, out=tmp_path / "run")
    verdicts = {(c.quantity, c.layer): c.verdict for c in check(options)}
    assert verdicts["delta_f", "readout"] == "not compared: the loss diverged at N = 8, at a learning rate past what trains"
    assert verdicts["h", "input"] == "agrees"  # of step 0


@pytest.mark.parametrize(("given", "at"), [
    ({"param": ("mup",), "learning_rate": 100.0}, r"\d+"),
    ({"param": ("sp",), "learning_rate": 1000.0, "loss": "cross_entropy"}, "64")])  # fmt: skip
def test_divergence_within_the_bounds_of_an_activation_is_no_disagreement(given, at, tmp_path):
    """Of tanh nothing overflows.  Where f is to grow, and with it the loss, the smallest network tells."""
    options = Options(**SMALL, **given, activation="tanh", out=tmp_path / "run")
    checks = check(options)
    assert all(c.compared == (c.quantity in AT_STEP_0) for c in checks)
    assert all(np.isfinite(c.exponent) for c in checks)
    (reason,) = {c.verdict for c in checks if not c.compared}
    assert re.fullmatch(rf"not compared: the loss rose [\d ]+-fold at N = {at}, at a learning rate past what trains", reason)


def test_a_parametrization_of_ones_own(tmp_path, capsys):
    """μP with a learning rate N^{1/2} too large: the derivation says what blows up, and the networks do it."""
    mine = tmp_path / "mine.toml"
    rate = 'learning_rate = "3/2"\n'
    mine.write_text(f'name = "too fast"\nbase = "mup"\n[input]\n{rate}[readout]\n{rate}')
    options = Options(**SMALL, param=(str(mine), "base=ntp, readout.multiplier=-1"), steps=1, along=True, out=tmp_path / "run")
    checks = check(options)
    shown = capsys.readouterr().out
    assert "too fast, sgd: unstable; " in shown
    aligned = [f"1: {c.exponent:+.3f} [{c.interval[0]:+.3f}, {c.interval[1]:+.3f}]"
               for c in checks if c.quantity == "alignment"]  # fmt: skip
    assert re.findall(r"1: [-+].*\]", shown[shown.index("alignment of each layer") :]) == aligned  # after one step
    checks = [c for c in checks if c.quantity == "delta_h" and c.layer == "input"]
    assert [c.derived for c in checks] == [0.5, -1.0]
    assert [c.exponent for c in checks] == pytest.approx([c.derived for c in checks], abs=0.1)


def test_after_a_blow_up_nothing_is_compared(tmp_path, monkeypatch):
    """The README's example: of what is measured at step 0 the exponents agree, of the rest there is a line that says why."""
    figures, unstable = [], "base=mup, readout.multiplier=-1/2"
    monkeypatch.setattr(coord_check.plots, "save", lambda figure, path: figures.append(figure))
    checks = check(Options(**SMALL, param=("mup", "ntp", unstable), learning_rate=2.0, out=tmp_path / "run"))
    left_out = [c for c in checks if not c.compared]
    assert {c.parametrization for c in left_out} == {unstable}
    assert {c.verdict for c in left_out} == {"not compared: Δh of input grows as N^1/2 after step 1"}
    assert np.isnan([c.derived for c in left_out]).all()
    mine = [c for c in checks if c.parametrization == unstable and c.compared]
    assert {c.quantity for c in mine} == {"h", "f", "gradient", "sharpness"}
    assert [c for c in mine if abs(c.exponent - c.derived) > 0.2] == []
    assert len(left_out) + len(mine) == 16
    shown = table(checks)
    assert shown.count("Δh of input grows as N^1/2 after step 1") == 1
    assert "10 not compared: " in shown
    assert "10 not compared: " in table([replace(c) for c in mine + left_out], every=True)
    for axis in figures[0].axes:
        low, high = axis.get_ylim()
        assert high / low < 1e4, axis.get_title()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--param", "muP"], "unknown parametrization 'muP'; known: alpha1, depth_mup"),
        (["--param", "depth_mup"], "depth_mup is about residual blocks"),
        (["--param", "base=mup, hidden.rate=1"], "unknown quantity of hidden 'rate'"),
        (["--param", "optimizer=adam, base=mup"], "these exponents are for optimizer adam, not for sgd"),
        (["--param", "hidden.multiplier=-1/2"], "needs exponents for input, readout"),
        (["--param", "mup", "mup"], "parametrizations mup mup: wanted at least 1, positive, none twice"),
        (["--widths", "64", "128"], "widths 64 128: wanted at least 3"),
        (["--depths", "0"], "depths 0: wanted at least 1, positive"),
        (["--model", "resmlp", "--depths", "4", "8"], "depths 4 8: wanted at least 3"),
        (["--steps", "0"], "0 steps: at least 1"),
        (["--seeds", "1"], "1 seeds: at least 2"),
        (["--model", "resmlp", "--block-size", "0"], "block size 0 must be at least 1"),
        (["--optimizer", "muon"], "muon"),
        (["--learning-rate", "-1"], "learning rate -1 must be positive"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--inputs", "5"], "inputs 5: the data probe has its own"),
        (["--model", "vit", "--block-size", "2"], "block-size 2: vit has its own"),
        (["--model", "conv", "--activation", "relu"], "activation relu: conv has its own"),
    ],
)
def test_one_line_for_a_mistake(arguments, message, tmp_path, capsys):
    folder = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        coord_check.main([*arguments, "--out", str(folder)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_help_names_every_option():
    command = [sys.executable, "-m", "comparisons.coord_check", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert all(option in shown for option in ("--model", "--param", "--optimizer", "--widths", "--depths", "--block-size"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "resmlp"])
def test_every_exponent_agrees_within_a_tenth(model, tmp_path):
    """1 and 4 hidden layers in SP, NTP and μP, widths 64 … 512; residual networks of 4 … 16 blocks; SGD and Adam."""
    sizes = {"mlp": {"depths": (1, 4), "widths": (64, 128, 512)}, "resmlp": {"depths": (4, 8, 16), "widths": (64, 128, 256)}}
    checks = check(Options(model=model, **sizes[model], out=tmp_path / "run"))
    assert len(checks) == (336 if model == "mlp" else 208)
    assert [c for c in checks if c.verdict != "agrees"] == []
