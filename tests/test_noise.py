"""Powers of the batch size and the horizon: the sizes they follow from against samples, and what they promise against noisy
descent on a quadratic, both written out in NumPy.
"""

import json
from dataclasses import replace
from fractions import Fraction
from math import sqrt

import numpy as np
import pytest

from limits.command.arguments import read
from limits.exponents import noise, tables
from limits.exponents.algebra import OPTIMIZERS
from limits.exponents.options import PROGRAM, Options

RNG = np.random.default_rng(0)
BATCHES = np.array([4, 8, 16, 32])


def a_sign(gradients):
    return np.sign(gradients)


def unit(gradients):
    """UVᵀ of each."""
    U, _, Vt = np.linalg.svd(gradients, full_matrices=False)
    return U @ Vt


def over_rms(gradients):
    """Adam's, at averages over many batches."""
    return gradients / np.sqrt(np.mean(gradients**2, axis=0))


def of_entries(batch, mean, draws=40_000):
    return mean + RNG.normal(size=(draws, 8)) / sqrt(batch)


def slope(values):
    return np.polyfit(np.log(BATCHES), np.log(np.abs(values)), 1)[0]


def powers(name, regime):
    """Of B in (drift, noise), as they are derived."""
    return [float(noise.powers(size)[0]) for size in noise.update(OPTIMIZERS[name], regime)]


@pytest.mark.parametrize(("name", "regime", "rule", "mean"), [
    ("sgd", "noise", lambda gradients: gradients, 0.02),
    ("sign", "noise", a_sign, 0.02),
    ("adam", "noise", over_rms, 0.02),
    ("adam", "signal", over_rms, 5.0),
])  # fmt: skip
def test_sizes_of_an_updates_parts_entry_by_entry(name, regime, rule, mean):
    updates = [rule(of_entries(batch, mean)) for batch in BATCHES]
    found = slope([u.mean() for u in updates]), slope([u.std(axis=0).mean() for u in updates])
    np.testing.assert_allclose(found, powers(name, regime), atol=0.12)


def of_few(batch, size=200, common=0.02):
    """(drift, noise) of UVᵀ of a mean of samples x δᵀ with E x δᵀ = common · e dᵀ, of which few are nearly orthogonal.

    Drift along e dᵀ: half of what its sign changes, so that noise is averaged over both.
    """
    along, spread = [], []
    for _ in range(50):
        x, delta = RNG.normal(size=(2, size, batch))
        Q, R = np.linalg.qr(x)
        updates = []
        for sign in (1, -1):
            Q_delta, R_delta = np.linalg.qr(delta + sign * common * np.outer(np.eye(size)[0], x[0]))
            U, _, Vt = np.linalg.svd(R @ R_delta.T)
            updates.append((Q @ U) @ (Vt @ Q_delta.T))
        along.append((updates[0][0, 0] - updates[1][0, 0]) / 2)
        spread.append(updates[0].std())
    return np.mean(along), np.mean(spread)


def of_many(batch, mean, size=6):
    """The same of samples that fill all directions: noise whose entries are independent, and a mean, a multiple of 1."""
    noisy = RNG.normal(size=(2000, size, size)) / sqrt(batch)
    ahead, behind = (unit(noisy + sign * mean * np.eye(size)) for sign in (1, -1))
    return np.trace(ahead - behind, axis1=1, axis2=2).mean() / 2, ahead.std(axis=0).mean()


@pytest.mark.parametrize(("regime", "sizes"), [
    ("few", of_few),
    ("noise", lambda batch: of_many(batch, 0.02)),
    ("signal", lambda batch: of_many(batch, 5.0)),
])  # fmt: skip
def test_sizes_of_an_updates_parts_of_matrices(regime, sizes):
    np.testing.assert_allclose([*map(slope, zip(*map(sizes, BATCHES), strict=True))], powers("muon_unit", regime), atol=0.12)


# What is promised -----------------------------------------------------------------------------------------------------

SAMPLES, COPIES, CURVATURE, NOISE = 4096, 4000, 0.6, 12.0


def descended(name, batch, samples, scaling, base_batch=8, base_samples=SAMPLES):
    """(mean, standard deviation) over copies of w after ½ k w², gradients k w + noise/√B per batch, at scaled numbers."""

    def scaled(quantity, base):
        power = getattr(scaling, quantity)
        return base * (batch / base_batch) ** float(power["B"]) * (samples / base_samples) ** float(power["D"])

    rng = np.random.default_rng(1)
    rate = scaled("learning_rate", {"sgd": 4e-3, "sign": 1.2e-2, "adam": 1.2e-2}[name])
    decay = scaled("weight_decay", 0.25)
    forgetting = scaled("one_minus_beta", 0.02) if scaling.one_minus_beta else 1.0
    w, m, v = np.full(COPIES, 1.0), 0.0, NOISE**2 / batch
    for _ in range(samples // batch):
        gradient = CURVATURE * w + NOISE / sqrt(batch) * rng.normal(size=COPIES)
        m, v = (average + forgetting * (new - average) for average, new in ((m, gradient), (v, gradient**2)))
        update = {"sgd": gradient, "sign": np.sign(gradient), "adam": m / np.sqrt(v)}[name]
        w = w - rate * (update + decay * w)
    return np.array([w.mean(), w.std()])


@pytest.mark.parametrize("name", ["sgd", "sign", "adam"])
def test_a_larger_batch_moves_as_a_smaller_one(name):
    """Mean and spread at the same number of samples, at four and at sixteen times the batch; not so with the other's power."""
    scaling = noise.derive_noise(name)
    wanted = descended(name, 8, SAMPLES, scaling)
    for batch in (32, 128):
        np.testing.assert_allclose(descended(name, batch, SAMPLES, scaling), wanted, rtol=0.1)
    other = Fraction(3, 2) - scaling.learning_rate["B"]  # 1/2 for 1, 1 for 1/2
    wrong = descended(name, 128, SAMPLES, replace(scaling, learning_rate={"B": other, "D": Fraction(0)}))
    assert np.abs(wrong / wanted - 1).max() > 0.3


@pytest.mark.parametrize("name", ["sgd", "sign", "adam"])
def test_over_a_longer_horizon_noise_moves_weights_as_far(name, monkeypatch):
    """Without a gradient but noise: mean (by decay alone) and spread at four times the samples."""
    monkeypatch.setitem(globals(), "CURVATURE", 0.0)
    scaling = noise.derive_noise(name)
    wanted, longer = descended(name, 8, SAMPLES, scaling), descended(name, 8, 4 * SAMPLES, scaling)
    np.testing.assert_allclose(longer, wanted, rtol=0.1)


def test_drift_is_kept_as_batches_grow_and_grows_with_the_horizon():
    for name, optimizer in OPTIMIZERS.items():
        for regime in noise.regimes(optimizer):
            assert noise.derive_noise(name, regime).drift == {"B": 0, "D": Fraction(1, 2)}


# The command ----------------------------------------------------------------------------------------------------------


def said(capsys, *words):
    tables.answer(read(Options, PROGRAM, words))
    return capsys.readouterr().out


def test_the_command_prints_it(capsys):
    lines = said(capsys, "--noise", "--optimizer", "sgd", "adam", "muon", "--scale", "keller").splitlines()
    assert lines[1].split() == ["sgd", "noise", "B", "D^(-1/2)", "D^(-1/2)", "-", "-", "D^(1/2)"]
    assert lines[2].split()[:5] == ["adam", "noise", "B^(1/2)", "D^(-1/2)", "B^(1/2)"]
    assert [line.split()[1] for line in lines[4:7]] == ["few", "noise", "signal"]
    rows = {words[0]: words for words in map(str.split, said(capsys, "--noise", "--optimizer", "all").splitlines()) if words}
    assert set(OPTIMIZERS) <= rows.keys()
    assert "-" in rows["lion"]  # it has no ε
    records = json.loads(said(capsys, "--noise", "--format", "json"))
    assert [(r["optimizer"], r["learning_rate"]["B"]) for r in records] == [("sgd", "1"), ("adam", "1/2"), ("adam", "1")]


@pytest.mark.parametrize("words", [
    ["--param", "mup"], ["--explain"], ["--depth", "4"], ["--format", "latex"], ["--optimizer", "adm"],
])  # fmt: skip
def test_what_has_no_meaning_there_is_refused_in_a_line(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        said(capsys, "--noise", *words)
    complaint = capsys.readouterr().err
    assert (exit_.value.code, complaint.count("\n")) == (2, 1)
    assert "--noise, the same in all" in complaint or "unknown optimizer 'adm'; known: sgd" in complaint


def test_an_unknown_regime_is_named():
    with pytest.raises(ValueError, match="sgd has no regime 'signal': wanted noise"):
        noise.derive_noise("sgd", "signal")
