"""The audit of a user's own network: what is right passes, what is wrong is found, and the weight is named."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks.audit import RIGHT

import comparisons.audit
from comparisons.audit.command import answer
from comparisons.audit.options import PROGRAM, Options
from comparisons.audit.verdict import Suspect, power
from finite.networks.own import Model
from limits.command.arguments import read
from limits.exponents.parametrization import scaling

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
BATCH = RNG.normal(size=(16, 6)).astype(np.float32), RNG.normal(size=(16, 2)).astype(np.float32)
SMALL = {"widths": (16, 32, 64), "seeds": 2}


def build(width, key, readout=1.0):
    """A multilayer perceptron in μP: N(0, 1) readout with multiplier 1/N, biases, a normalisation's gain."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "first": normal(6, width) / np.float32(6**0.5), "second": normal(width, width) / np.float32(width**0.5),
        "bias": np.zeros(width, np.float32), "gain": np.ones(width, np.float32), "last": normal(width, 2),
    }  # fmt: skip

    def apply(p, x):
        h = jnp.tanh(x @ p["first"]) @ p["second"] + p["bias"]
        h = h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6) * p["gain"]
        return jnp.tanh(h) @ p["last"] / width**readout

    return params, apply


def rates(base, **of_weights):
    """An optimiser of the width: the base, its updates times N^power by weight."""

    def at(width):
        scale = lambda updates, _: {n: u * float(width) ** of_weights.get(n, 0) for n, u in updates.items()}  # noqa: E731
        return optax.chain(base, optax.stateless(scale))

    return at


ADAM = rates(optax.adam(0.02), second=-1)
SGD = rates(optax.sgd(0.02), first=1, bias=1, gain=1, last=1)
MODEL = Model(build, "mse", BATCH)


def found(model=MODEL, optimizer=ADAM, **options):
    return comparisons.audit(model, optimizer=optimizer, **SMALL | options)


@pytest.mark.parametrize("optimizer", [ADAM, pytest.param(SGD, marks=pytest.mark.slow)], ids=["adam", "sgd"])
def test_what_is_in_mup_passes(optimizer, tmp_path):
    audit = found(optimizer=optimizer)
    assert audit.ok, audit
    audit.save(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 10_000
    audit.assert_ok()
    numbers = {(r.weight, r.quantity): r.exponent for r in audit.rows}
    assert numbers["second", "initial size"] == pytest.approx(-0.5, abs=0.1)
    assert numbers["last", "initial size"] == pytest.approx(-1, abs=0.15)
    assert numbers["second", "learning rate"] == pytest.approx(-1 if optimizer is ADAM else 0, abs=1e-3)


def test_attention_begins_slowly_under_sgd():
    """Scores over d begin without alignment: queries and keys move less than they will, which is no fault."""
    model, optimizer = RIGHT["transformer, SGD"]
    assert comparisons.audit(model, optimizer=optimizer, widths=(32, 64, 128), seeds=3).ok


def test_a_readout_multiplier_is_named():
    audit = found(Model(lambda width, key: build(width, key, readout=0.5), "mse", BATCH))
    assert [str(one) for one in audit.suspects] == ["last: readout multiplier: N^-1/2 found, N^-1 wanted"]
    with pytest.raises(AssertionError, match="readout multiplier"):
        audit.assert_ok()
    assert "fails" in str(audit)


def test_learning_rates_and_an_optimizer_that_reaches_nothing():
    audit = found(optimizer=optax.multi_transform(
        {"train": optax.sgd(0.02), "freeze": optax.set_to_zero()},
        {"first": "train", "second": "train", "bias": "train", "gain": "freeze", "last": "train"}))  # fmt: skip
    assert {str(one) for one in audit.suspects} == {
        "first: input learning rate: N^0 found, N^1 wanted", "bias: bias learning rate: N^0 found, N^1 wanted",
        "last: readout learning rate: N^0 found, N^1 wanted",
        "gain: optimizer: never moved, though it has a gradient"}  # fmt: skip


@pytest.mark.slow
def test_epsilon_and_decay():
    """Gradients fall as N^-1 and an ε that is one of them at N = 16 does not; a decay that drowns the gradient too."""
    audit = found(optimizer=rates(optax.adam(0.02, eps=0.02), second=-1), seeds=4)
    assert {one.number for one in audit.suspects} == {"epsilon"}
    assert {"first", "second"} <= {name for one in audit.suspects for name in one.weights}
    coupled = optax.chain(optax.add_decayed_weights(10.0), optax.adam(0.02))
    assert any(one.number == "weight decay" for one in found(optimizer=coupled).suspects)


@pytest.mark.slow
def test_a_schedule_that_begins_at_zero_is_waited_for():
    warm = optax.linear_schedule(0.0, 0.02, 2)
    assert found(optimizer=rates(optax.adam(warm), second=-1)).ok


def test_words():
    assert [power(x) for x in (-0.52, 0.02, 1.0, -0.37, 0.87)] == ["N^-1/2", "N^0", "N^1", "N^-0.37", "N^+0.87"]
    assert str(Suspect(("a", "b"), "learning rate", 0.0, -1.0)) == "a, b: learning rate: N^0 found, N^-1 wanted"


MISTAKES = {
    "an interval wants at least three": {"widths": (16, 32)},
    "an interval wants at least two": {"seeds": 1},
    "wanted an optax transformation": {"optimizer": 3},
    "unknown parametrization 'mupp'": {"param": "mupp"},
    "it says nothing about a plain network": {"param": "depth_mup"},
    "the loss at width 16 is nan at step 0": {"model": Model(build, lambda f, y: jnp.sum(f) / 0 * 0, BATCH)},
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_end_in_one_line(line):
    with pytest.raises(ValueError) as mistake:  # noqa: PT011  (below)
        found(**MISTAKES[line])
    assert line in str(mistake.value)
    assert "\n" not in str(mistake.value)


MODULES = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
finally:
    print(*sys.modules)
"""
NEVER = {"sympy", "diffrax", "xarray", "matplotlib", "h5py", "pandas"}
FILE = """
import numpy as np
def build(width, key):
    params = {"w": np.ones((3, width), np.float32), "v": np.ones((width, 1), np.float32)}
    return params, lambda p, x: x @ p["w"] @ p["v"] / width**2
"""


def test_the_command(tmp_path):
    """From a file of the user's: status 1, the suspects, and nothing imported that an audit does not need."""
    (tmp_path / "mine.py").write_text(FILE)
    np.savez(tmp_path / "batch.npz", inputs=np.ones((4, 3), np.float32), targets=np.ones((4, 1), np.float32))
    words = ["comparisons.audit", "mine.py:build", "--loss", "mse", "--batch", "batch.npz", "--widths", "4", "8", "16",
             "--seeds", "2", "--steps", "1", "--optimizer", "optax.sgd(0.1 / width)"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", MODULES, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 1, done.stderr
    report, modules = done.stdout.rstrip().rsplit("\n", 1)
    assert "suspect: w: input learning rate: N^-1 found, N^1 wanted" in report
    assert not NEVER & {name.partition(".")[0] for name in modules.split()}


@pytest.mark.parametrize(("words", "line"), [
    (("nowhere.py:build",), "nowhere.py: no such file"),
    (("mine.py:built",), "mine.py has no built"),
    (("mine.py:build",), "mine.py:build has no loss: give --loss, or a Model"),
    (("mine.py:build", "--loss", "mse", "--batch", "mine.csv"), "mine.csv: wanted FILE.npz or FILE.py:NAME"),
    (("mine.py:MODEL",), '--optimizer is missing: "optax.adamw(1e-3)", say'),
    (("mine.py:MODEL", "--optimizer", "optax.adamm"), "--optimizer 'optax.adamm': module 'optax' has no attribute 'adamm'"),
])  # fmt: skip
def test_mistakes_of_the_command(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE + "from test_audit import MODEL")
    with pytest.raises(SystemExit) as end:
        answer(read(Options, PROGRAM, words))
    assert (end.value.code, capsys.readouterr().err) == (2, f"{PROGRAM}: {line}\n")


def test_parametrized_by_derivation(monkeypatch):
    """A tied embedding and attention in SP: each power is that of the derived table; the audit of the result passes."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    from audit import transformer

    model = transformer(tied=True, readout=0.0, scale=-0.5, std={"embed": (0.3, 0)})
    mine = comparisons.parametrize(model, "mup", optimizer=optax.adam(0.02), base=16)
    hidden = ("query", "key", "value", "out", "up", "down")
    assert {name: (c.initial, c.update) for name, c in mine.changes.items()} == {
        name: (0, -1 if name in hidden else 0) for name in ("embed", "gain", "gain2", *hidden)}  # fmt: skip
    assert {name: by for by, name in mine.multipliers.values()} == {"scores of query · key": -0.5, "embed, as readout": -1}
    before, after = (m.at(16, jax.random.key(1)) for m in (model, mine.model))
    np.testing.assert_allclose(after[1](after[0], model.batch[0]), before[1](before[0], model.batch[0]), rtol=1e-5)
    audit = found(mine.model, mine.optimizer)
    assert audit.ok, audit


@pytest.mark.slow
@pytest.mark.parametrize(("param", "optimizer"), [("mup", "sgd"), ("ntp", "sgd"), ("ntp", "adam"), ("sp", "adam")])
def test_parametrizations_of_a_perceptron(param, optimizer):
    """Initial values and rates of acting weights, of a network that has multipliers of its own, are those of the table."""
    base = {"sgd": optax.sgd(0.02), "adam": optax.adam(0.02)}[optimizer]
    mine = comparisons.parametrize(MODEL, param, optimizer=base, base=16)
    table, linear = scaling(param, optimizer), 2 if optimizer == "sgd" else 1
    drawn, own = {"first": 0, "second": -0.5, "last": 0}, {"last": -1.0}
    for name, role in {"first": "input", "second": "hidden", "last": "readout"}.items():
        e, change, m = table[role], mine.changes[name], own.get(name, 0)
        assert drawn[name] + change.initial + m == e.multiplier.N + e.init_std.N
        assert change.update + linear * m == e.learning_rate.N + linear * e.multiplier.N


def test_what_cannot_be_parametrized():
    def update(updates, state, params=None):
        size = sum(jnp.sum(u**2) for u in updates.values())
        return {name: -0.1 * u / jnp.sqrt(size) for name, u in updates.items()}, state

    whole = optax.GradientTransformation(optax.sgd(1.0).init, update)
    with pytest.raises(ValueError, match="neither linear in the gradient nor"):
        comparisons.parametrize(MODEL, optimizer=whole, base=8)
