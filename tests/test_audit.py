"""The audit of a user's own network: what is right passes, what is wrong is found, and the weight is named."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
from benchmarks.audit import RIGHT, draw, norm

import comparisons.audit
from comparisons.audit.command import answer, refuse_unwritable
from comparisons.audit.measure import Measured, _answers, answers_of
from comparisons.audit.options import PROGRAM, Options
from comparisons.audit.verdict import Findings, Suspect, power
from finite.networks import from_file
from finite.networks.own import Model
from finite.networks.roles import roles
from limits.command.arguments import read
from limits.exponents.algebra import Power
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
    assert str(audit).endswith("\npasses")
    assert str(replace(audit, remarks=("w: einsum",))).endswith("w: einsum\npasses, as far as it is checked")
    audit.save(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 10_000
    audit.assert_ok()
    numbers = {(r.weight, r.quantity): r.exponent for r in audit.rows}
    told = [" ".join(line.split()).replace("-0.000", "+0.000") for line in audit.every().splitlines()]
    assert len(told) == sum(bool(row.verdict) for row in audit.rows)
    rate = "-1.000 [-1.000, -1.000] wanted N^-1" if optimizer is ADAM else "+0.000 [+0.000, +0.000] wanted N^0"
    assert f"second product, learning rate N^{rate} agrees" in told
    assert numbers["second", "initial size"] == pytest.approx(-0.5, abs=0.1)
    assert numbers["last", "initial size"] == pytest.approx(-1, abs=0.15)
    assert numbers["second", "learning rate"] == pytest.approx(-1 if optimizer is ADAM else 0, abs=1e-3)


@pytest.mark.slow
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


def test_a_weight_that_acts_twice_is_named_once():
    def twice(width, key):
        params, _ = build(width, key)
        return params, lambda p, x: jnp.tanh(jnp.tanh(x @ p["first"]) @ p["second"]) @ p["second"] @ p["last"] / width

    (suspect,) = found(Model(twice, "mse", BATCH), rates(optax.adam(0.02))).suspects
    assert suspect.weights == ("second",)


@pytest.mark.slow
def test_a_recurrent_network():
    """A scan over time: with one rate for all its recurrent matrix is named, parametrized it passes."""
    batch = BATCH[0].reshape(4, 4, 6), BATCH[1][:4]

    def recurrent(width, key):
        params, _ = build(width, key)

        def apply(p, x):
            step = lambda h, x: (jnp.tanh(x @ p["first"] + h @ p["second"]), None)  # noqa: E731
            return jax.lax.scan(step, jnp.zeros((4, width)), x)[0] @ p["last"] / width

        return {name: params[name] for name in ("first", "second", "last")}, apply

    model = Model(recurrent, "mse", batch)
    assert [str(one) for one in found(model, optax.adam(0.02)).suspects] == [
        "second: hidden learning rate: N^0 found, N^-1 wanted"]  # fmt: skip
    mine = comparisons.parametrize(model, optimizer=optax.adam(0.02), base=16)
    assert found(mine.model, mine.optimizer).ok


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


def test_a_size_that_is_bending_is_undecided():
    """√(a + b/N), as of few units that many samples share, is not N^-1/4; a number would be wrong."""
    widths, scatter = (64, 128, 256, 512), np.array([0.99, 1.0, 1.01])
    of = {"bends": [(0.2 + 32 / n) ** 0.5 * scatter for n in widths], "falls": [n**-0.25 * scatter for n in widths]}
    found = object.__new__(Findings)
    found.rows = []
    found.measured = Measured(widths, [], [{("h", name): of[name][place] for name in of} for place in range(4)])
    for name in of:
        found.size(name, "product", "h", name, 0.0)
    found.row("bends", "product", "learning rate", found.fitted("h", "bends"), 0.0)
    assert [row.verdict for row in found.rows] == ["undecided", "differs", "differs"]


def test_a_change_that_more_samples_and_outputs_than_units_share_is_undecided():
    """√(1 + crowd/N) falls as N^-0.4 here; what falls faster, or grows, is wrong all the same."""
    widths, scatter = (64, 128, 256), np.array([0.99, 1.0, 1.01])
    of = {"crowded": [(1 + 500 / n) ** 0.5 * scatter for n in widths], "falls": [50 / n * scatter for n in widths],
          "grows": [n**0.5 * scatter for n in widths]}  # fmt: skip
    found = object.__new__(Findings)
    found.rows = []
    found.measured = Measured(widths, [], [{("delta_h", name): of[name][i] for name in of} for i in range(3)], crowd=500)
    for name in of:
        found.size(name, "product", "Δh", name, 0.0)
    assert [row.verdict for row in found.rows] == ["undecided", "differs", "differs"]


@pytest.mark.slow
def test_many_outputs_are_no_fault():
    """Of 1000 the changes fall among a few units, though each weight is right."""

    def wide(width, key):
        params, _ = build(width, key)
        last = np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(size=(width, 1000)).astype(np.float32)
        apply = lambda p, x: jnp.tanh(jnp.tanh(x @ p["first"]) @ p["second"]) @ p["last"] / width  # noqa: E731
        return {"first": params["first"], "second": params["second"], "last": last}, apply

    labels = np.random.default_rng(0).integers(1000, size=16)
    adam = lambda width: optax.chain(  # noqa: E731
        optax.adam(0.02), optax.stateless(lambda updates, _: updates | {"second": updates["second"] * 16 / width}))  # fmt: skip
    audit = found(Model(wide, "cross_entropy", (BATCH[0], labels)), adam, seeds=3)
    assert {(row.weight, row.quantity): row.exponent for row in audit.rows}["outputs", "delta_f"] < -0.4
    assert audit.ok, audit


def test_an_optimizer_that_divides_by_its_gradient():
    """Of no gradient it makes no number, which is no decay."""
    unit = optax.stateless(lambda updates, _: [-u / jnp.sqrt(jnp.sum(u**2)) for u in updates])
    (answer,) = _answers(unit, True, [BATCH[0]], unit.init(None), [BATCH[0]], [BATCH[0]])
    assert answer["decay"] == 0
    assert answer["growth"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("averaged", "plain", "decay"), [
    (optax.contrib.schedule_free_adamw(0.02), optax.adam(0.02, b1=0.0), 0.0),
    (optax.contrib.schedule_free_adamw(0.02, weight_decay=0.1), optax.adam(0.02, b1=0.0), 0.002),
    (optax.contrib.schedule_free_sgd(0.02), optax.sgd(0.02), 0.0),
])  # fmt: skip
def test_an_optimizer_that_keeps_weights_of_its_own(averaged, plain, decay):
    """What brings the weights back to those is no decay: it answers as the optimiser within."""
    answers = answers_of(MODEL, averaged, 16), answers_of(MODEL, plain, 16)
    for path, of_plain in answers[1].items():
        for name in ("update", "update_of_large", "growth", "muted"):
            assert answers[0][path][name] == pytest.approx(of_plain[name], rel=0.02, abs=0.01), (path, name)
        if path != "bias":  # which starts as zeros
            assert answers[0][path]["decay"] == pytest.approx(decay, abs=1e-5)


def test_momentum_that_a_warm_up_has_gathered_is_linear():
    warm = optax.sgd(optax.linear_schedule(0.0, 0.02, 2), 0.9)
    for of_weight in answers_of(MODEL, warm, 16).values():
        assert of_weight["growth"] == pytest.approx(1, abs=1e-3)
        assert of_weight["noise"] == 0


@pytest.mark.slow
def test_noise_is_no_decay():
    """Of SGD with noise the learning rates are SGD's; that there is noise is said."""
    audit = found(optimizer=optax.noisy_sgd(0.02, eta=0.01, key=jax.random.key(1)))
    assert [one.split(":")[0].split(",")[0] for one in audit.remarks] == ["noise"]
    assert {str(one) for one in audit.suspects} == {f"{name} learning rate: N^0 found, N^1 wanted" for name in (
        "first: input", "bias: bias", "gain: norm_gain", "last: readout")}  # fmt: skip


def test_words():
    assert [power(x) for x in (-0.52, 0.02, 1.0, -0.37, 0.87)] == ["N^-1/2", "N^0", "N^1", "N^-0.37", "N^+0.87"]
    assert str(Suspect(("a", "b"), "learning rate", 0.0, -1.0)) == "a, b: learning rate: N^0 found, N^-1 wanted"


def mine(learning_rate):
    return optax.sgd(learning_rate)


def wrapped(wrap, loss="mse"):
    """The perceptron with (params, apply) made into others."""
    return Model(lambda width, key: wrap(*build(width, key)), loss, BATCH)


def stored_as(dtype):
    return wrapped(lambda params, apply: (jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params), apply))


def returning(wrap, loss="mse"):
    return wrapped(lambda params, apply: (params, lambda p, x: wrap(apply(p, x))), loss)


MISTAKES = {
    "optimizer is the function optax.adamw itself: wanted what it returns, optax.adamw(1e-3), say": {"optimizer": optax.adamw},
    "optimizer is the function optax.sgd itself": {"optimizer": lambda width: partial(optax.sgd, momentum=0.9)},
    "optimizer is the function mine itself": {"optimizer": mine},
    "bias is stored as float16, of which rounding leaves too little": {"model": stored_as(jnp.float16)},
    "bias is stored as bfloat16": {"model": stored_as(jnp.bfloat16)},
    "mse: apply returns tuple of 2: wanted one array": {"model": returning(lambda f: (f, f))},
    "mse: apply returns dict of logits: wanted one array": {"model": returning(lambda f: {"logits": f})},
    "the loss returns an array of shape (16,): wanted one number, a mean over the batch": {
        "model": returning(lambda f: f, lambda f, y: jnp.mean((f - y) ** 2, axis=-1))
    },
    "the loss returns tuple of 2: wanted one number": {
        "model": returning(lambda f: f, lambda f, y: (jnp.mean((f - y) ** 2), f))
    },
    "no fan of a weight grows as the width N, second's as N^2.00: does build(width, key) read": {
        "model": Model(lambda width, key: build(width**2 // 64, key), "mse", BATCH)
    },
    "an interval wants at least three": {"widths": (16, 32)},
    "widths [0, 16, 32]: an interval wants at least three, positive, none twice": {"widths": (0, 16, 32)},
    "an interval wants at least two": {"seeds": 1},
    "the loss at width 16 is nan at step 0: nothing can be measured (labels lie from -1 to 2)": {
        "model": Model(build, "cross_entropy", (BATCH[0], np.arange(16) % 4 - 1))},
    "wanted an optax transformation": {"optimizer": 3},
    "unknown parametrization 'mupp'": {"param": "mupp"},
    "it says nothing about a plain network": {"param": "depth_mup"},
    "at width 16 nothing is finite after 3 steps": {
        "model": Model(lambda width, key: (np.ones((6, width)), lambda w, x: x @ w), lambda f, y: jnp.sum(f**2), BATCH),
        "optimizer": optax.sgd(1e30),
    },
    "width 16: TypeError: dot_general requires": {"model": Model(build, "mse", (BATCH[0][:, :5], BATCH[1]))},
    "width 16, optimizer: TypeError: ": {"optimizer": optax.polyak_sgd()},
    "optimizer at width 16: TypeError: ": {"optimizer": lambda width: optax.adam(1.0 / width) + 1},
    "build(16, key): ZeroDivisionError: ": {"model": Model(lambda width, key: 1 / 0, "mse", BATCH)},
    "the loss at width 16 is nan at step 0": {"model": Model(build, lambda f, y: jnp.sum(f) / 0 * 0, BATCH)},
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_end_in_one_line(line):
    with pytest.raises(ValueError) as mistake:  # noqa: PT011  (below)
        found(**MISTAKES[line])
    assert line in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_key_that_changes_nothing_is_said():
    """Seeds are then no repeats: what is chance is not known, and the last line says so."""
    audit = found(Model(lambda width, key: build(width, jax.random.key(0)), "mse", BATCH))
    assert [one.split(":")[0] for one in audit.remarks] == ["chance"]
    assert str(audit).endswith("passes, as far as it is checked")


@pytest.mark.parametrize(("out", "line"), [
    ("audit.pgn", "--out audit.pgn: wanted a picture, .png or .pdf"),
    ("mine.py/audit.png", "--out mine.py/audit.png: cannot be written: "),
    ("folder.png", "--out folder.png: cannot be written: Is a directory"),
])  # fmt: skip
def test_a_picture_that_cannot_be_written_is_found_before_all_else(out, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit):
        answer(Options("nowhere.py:build", out=Path(out)))
    assert capsys.readouterr().err.startswith(f"{PROGRAM}: {line}")


def test_a_picture_has_its_folder_made(tmp_path):
    refuse_unwritable(tmp_path / "new" / "audit.png")
    assert list((tmp_path / "new").iterdir()) == []


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
             "--seeds", "2", "--steps", "1", "--every", "--optimizer", "optax.sgd(0.1 / width)"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", MODULES, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 1, done.stderr
    report, modules = done.stdout.rstrip().rsplit("\n", 1)
    assert "suspect: w: input learning rate: N^-1 found, N^1 wanted" in report
    assert re.search(r"^w product, learning rate +N\^-1.000 \[-1.000, -1.000\]  wanted N\^1 +differs$", report, re.MULTILINE)
    assert not NEVER & {name.partition(".")[0] for name in modules.split()}


@pytest.mark.parametrize(("words", "line"), [
    (("nowhere.py:build",), "nowhere.py: no such file"),
    (("mine.py:built",), "mine.py has no built"),
    (("mine.py:build",), "mine.py:build has no loss: give --loss, or a Model"),
    (("mine.py:build", "--loss", "mse", "--batch", "mine.csv"), "mine.csv: wanted FILE.npz or FILE.py:NAME"),
    (("mine.py:MODEL",), '--optimizer is missing: "optax.adamw(1e-3)", say'),
    (("mine.py:MODEL", "--optimizer", "optax.adamw"),
     "optimizer is the function optax.adamw itself: wanted what it returns, optax.adamw(1e-3), say"),
    (("mine.py:MODEL", "--optimizer", "optax.adamm"),
     "optimizer at width 64: --optimizer 'optax.adamm': module 'optax' has no attribute 'adamm'"),
    (("mine.py:MODEL", "--optimizer", "optax.adam("), "--optimizer 'optax.adam(': '(' was never closed"),
    (("mine.py:build", "--loss", "mse", "--batch", "empty.npz"), "empty.npz is no file of arrays"),
    (("mine.py:build", "--loss", "mse", "--batch", "one.npz"), "one.npz is no file of arrays"),
    (("mine.py:build", "--loss", "mse", "--batch", "words.npz"), "batch holds an array of <U1: wanted arrays of numbers"),
    (("mine.py:build", "--loss", "mse", "--batch", "mine.py:fails"), "mine.py:fails(): KeyError: 'x'"),
])  # fmt: skip
def test_mistakes_of_the_command(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE + "from test_audit import MODEL\ndef fails(): return {}['x']")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "words.npz", inputs=np.array(["a"]), targets=np.ones(1))
    with pytest.raises(SystemExit) as end:
        answer(read(Options, PROGRAM, words))
    assert (end.value.code, capsys.readouterr().err) == (2, f"{PROGRAM}: {line}\n")


def test_a_file_may_have_neighbours_and_dataclasses_with_annotations_of_the_future(tmp_path):
    """And an optimiser's words are read at no width that nobody asked for."""
    (tmp_path / "neighbour.py").write_text("SIZE = 3")
    (tmp_path / "mine.py").write_text("""from __future__ import annotations
from dataclasses import dataclass
from neighbour import SIZE
@dataclass
class Config:
    size: int = SIZE
""")
    assert from_file.attribute(f"{tmp_path}/mine.py:Config")().size == 3
    assert from_file.optimizer("optax.adam(0.01 / math.log2(width))")(16).init


def gains(power):
    """A readout of one output, written as a product entry by entry that is summed."""
    def of_width(width, key):
        part = width ** (power / 4)
        first, last = jax.random.normal(key, (6, width)), jax.random.normal(jax.random.fold_in(key, 1), (width,))
        return {"first": first / 6**0.5, "last": last}, (
            lambda p, x: part * jnp.sum(part * jnp.tanh(x @ p["first"]) * p["last"] * part, -1, keepdims=True) * part)

    return Model(of_width, "mse", (BATCH[0], BATCH[1][:, :1]))


def test_a_readout_may_be_a_sum_of_products():
    audit = found(gains(-0.5), optax.adam(0.02))
    assert [str(suspect) for suspect in audit.suspects] == ["last: readout multiplier: N^-1/2 found, N^-1 wanted"]
    assert found(gains(-1.0), optax.adam(0.02)).ok
    changes = comparisons.parametrize(gains(-0.5), "mup", optimizer=optax.adam(0.02)).changes
    assert {name: (c.initial.N, c.rate.N) for name, c in changes.items()} == {"first": (0, 0), "last": (-0.5, -0.5)}


def changed(function):
    """The network of this file, of params that are looked at before."""
    def of_width(width, key):
        params, apply = build(width, key)
        return params, lambda p, x: apply(function(p), x)

    return Model(of_width, "mse", BATCH)


def test_weights_without_a_gradient_are_named():
    stop = jax.lax.stop_gradient
    audit = found(changed(lambda p: p | {"second": stop(p["second"])}))
    assert audit.remarks == ("second: the loss has no gradient there: its learning rate is not checked",)
    assert str(audit).endswith("passes, as far as it is checked")
    with pytest.raises(ValueError, match=r"^no weight has a gradient: the loss does not depend on them$"):
        found(changed(stop))


def test_what_goes_up_its_gradient_is_named():
    """optax.masked hands on the raw gradient of what it leaves out; a chain of scale_by's may forget the sign."""
    params, _ = build(8, jax.random.key(0))
    nothing = jax.tree.map(lambda _: False, params)
    others = {name: name != "second" for name in params}
    told = "second: optimizer: goes up the gradient: no optimizer acts on it, or the sign is missing"
    rest = optax.masked(optax.adam(0.02), others)
    suspects = found(optimizer=optax.chain(optax.masked(optax.contrib.muon(0.02), nothing), rest)).suspects
    assert told in map(str, suspects)
    suspects = found(optimizer=optax.chain(optax.scale_by_adam(), optax.scale(0.01))).suspects
    assert {suspect.weights[0] for suspect in suspects if suspect.number == "optimizer"} == set(params)


def test_a_constant_epsilon_is_one():
    suspects = found(optimizer=rates(optax.adam(0.02, eps=1e-3), second=-1)).suspects
    powers = {suspect.weights: suspect.exponent for suspect in suspects if suspect.number == "epsilon"}
    assert powers
    assert all(abs(power) < 0.02 for power in powers.values())


def test_little_decay_that_falls_with_a_rate_is_seen():
    """At the largest width it is less than a hundredth of an update."""
    optimizer = rates(optax.adamw(0.02, weight_decay=0.1), second=-1)
    suspects = [str(suspect) for suspect in found(optimizer=optimizer).suspects]
    assert suspects == ["second: weight decay times learning rate: N^-1 found, N^0 wanted"]


def test_batches_of_other_libraries_and_outputs_that_are_no_numbers():
    def of_width(width, key):
        params, apply = build(width, key)
        return params, lambda p, x: (apply(p, x), x > 0)

    frames = tuple(pandas.DataFrame(array) for array in BATCH)
    model = Model(of_width, lambda outputs, targets: jnp.mean((outputs[0] - targets) ** 2) / 2, frames)
    assert found(model).ok


@pytest.mark.slow
def test_parametrized_by_derivation(monkeypatch):
    """A tied embedding and attention in SP: each power is that of the derived table; the audit of the result passes."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    from audit import transformer

    make = lambda readout, scale: transformer(readout, scale, {"embed": (0.3, 0)}, tied=True)  # noqa: E731
    model = make(0.0, -0.5)
    model = replace(model, batch=tuple(tokens[:2] for tokens in model.batch))  # fewer places than units
    mine = comparisons.parametrize(model, "mup", optimizer=optax.adam(0.02), base=16)
    hidden = ("query", "key", "value", "out", "up", "down")
    assert {name: (c.initial.N, c.rate.N) for name, c in mine.changes.items()} == {
        name: (0, -1 if name in hidden else 0) for name in ("embed", "gain", "gain2", *hidden)}  # fmt: skip
    assert {name: by.N for by, name in mine.multipliers.values()} == {"scores of query · key": -0.5, "embed, as readout": -1}
    assert "query  hidden, adam: initial values × N^0, learning rate × N^-1" in str(mine).splitlines()
    for width, alike in ((16, model), (32, make(-0.2, -0.625))):  # 32^-0.2 = 1/2, (32/2)^-0.625 = (32/2)^-1/2 2^-1/2
        wanted, got = (m.at(width, jax.random.key(1)) for m in (alike, mine.model))
        np.testing.assert_allclose(got[1](got[0], model.batch[0]), wanted[1](wanted[0], model.batch[0]), rtol=1e-4, atol=1e-5)
    audit = found(mine.model, mine.optimizer)
    assert audit.ok, audit


def test_queries_that_are_divided_keep_their_multiplier():
    """As flax has it, q/√d · k: parametrized, the scores have one more factor, and the queries none of the two."""

    def attention(width, key):
        params, _ = build(width, key)
        params = {"embed": params["first"], "query": params["second"], "key": 2 * params["second"], "last": params["last"]}

        def apply(p, x):
            h = jnp.tanh(x @ p["embed"])
            q, k = ((h @ p[name]).reshape(len(x), 2, width // 2) for name in ("query", "key"))
            scores = jnp.einsum("qhd,khd->hqk", q / (width // 2) ** 0.5, k)
            return (jax.nn.softmax(scores) @ h).mean(0) @ p["last"] / width

        return params, apply

    mine = comparisons.parametrize(Model(attention, "mse", BATCH), optimizer=optax.adam(0.02), base=16)
    found = {role.use.path: role.multiplier for role in roles(mine.model, (16, 64))}
    assert found == pytest.approx({"embed": 0, "query": 0, "key": 0, "query · key": -1, "last": -1})


PLAIN = [(param, optimizer) for param in ("sp", "ntp", "mup") for optimizer in ("sgd", "adam")]


@pytest.mark.slow
@pytest.mark.parametrize(("param", "optimizer"), PLAIN)
def test_parametrizations_of_a_perceptron(param, optimizer):
    """Initial values and rates of acting weights, of a network that has multipliers of its own, are those of the table."""
    base = {"sgd": optax.sgd(0.02), "adam": optax.adam(0.02)}[optimizer]
    mine = comparisons.parametrize(MODEL, param, optimizer=base, base=16)
    table, linear = scaling(param, optimizer), 2 if optimizer == "sgd" else 1
    drawn, own = {"first": 0, "second": -0.5, "last": 0}, {"last": -1.0}
    for name, role in {"first": "input", "second": "hidden", "last": "readout"}.items():
        e, change, m = table[role], mine.changes[name], own.get(name, 0)
        assert drawn[name] + change.initial.N + m == e.multiplier.N + e.init_std.N
        assert change.rate.N + linear * m == e.learning_rate.N + linear * e.multiplier.N


@pytest.mark.long
@pytest.mark.parametrize(("param", "optimizer"), PLAIN)
def test_what_is_parametrized_passes_the_audit_of_its_own_parametrization(param, optimizer):
    """And beside μP only what is in μP."""
    mine = comparisons.parametrize(MODEL, param, optimizer=BY_RULE[optimizer][0], base=16)
    for other in {param, "mup"}:
        audit = found(mine.model, mine.optimizer, param=other)
        assert audit.ok == (other == param), audit


def test_a_weight_that_is_never_read_stays():
    model = Model(lambda width, key: ({"w": np.ones((6, width)), "unread": np.ones(3)}, lambda p, x: x @ p["w"]),
                  lambda f, y: jnp.mean(f**2), BATCH)  # fmt: skip
    mine = comparisons.parametrize(model, optimizer=optax.sgd(0.02), base=8)
    assert {path: (change.initial.N, change.rate.N) for path, change in mine.changes.items()} == {"w": (0, 1), "unread": (0, 0)}


def residual(depth):
    """A scan over residual blocks of two matrices, with gains and biases, between a hidden layer and a last gain; in SP."""

    def build(width, key):
        shapes = {"gain": (width,), "inner": (width, width), "offset": (width,), "outer": (width, width), "bias": (width,)}
        std = {"gain": ("one", 0), "offset": (0, 0), "bias": (0, 0)}
        blocks = [draw(one, width, shapes, std) for one in jax.random.split(key, depth)]
        rest = draw(key, width, {"first": (6, width), "hidden": (width, width), "norm": (width,), "last": (width, 2)},
                    {"first": (0.4, 0), "norm": ("one", 0)})  # fmt: skip

        def block(h, p):
            return h + jnp.tanh(norm(h) * p["gain"] @ p["inner"] + p["offset"]) @ p["outer"] + p["bias"], None

        def apply(p, x, of=lambda p, h: norm(h) * p["norm"] @ p["last"]):
            return of(p, jax.lax.scan(block, jnp.tanh(x @ p["first"]) @ p["hidden"], p["blocks"])[0])

        return rest | {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}, apply

    return Model(build, "mse", (BATCH[0][:4], BATCH[1][:4]))  # fewer samples than units: ΔW x is aligned


IN_THE_TABLE = {"first": "input", "last": "readout", "blocks/gain": "norm_gain", "blocks/inner": "block_inner",
                "blocks/offset": "norm_gain", "blocks/outer": "block", "blocks/bias": "bias"}  # fmt: skip
MATRIX, MATRICES = optax.contrib.MuonDimensionNumbers(0, 1), optax.contrib.MuonDimensionNumbers(1, 2)
MUON = optax.contrib.muon(0.02, muon_weight_dimension_numbers=lambda params: {
    **dict.fromkeys(params, MATRIX), "norm": None,
    "blocks": {name: MATRICES if name in ("inner", "outer") else None for name in params["blocks"]}})  # fmt: skip
BY_RULE = {  # rule → (its optimiser, how a weight's learning rate goes with its multiplier's power)
    "sgd": (optax.sgd(0.02), 2), "adam": (optax.adam(0.02), 1), "lamb": (optax.lamb(0.02), 0),
    "muon_keller": (MUON, 1),
}  # fmt: skip


@pytest.mark.parametrize(("param", "rule"), [
    ("depth_mup", "adam"), ("alpha1", "muon_keller"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("depth_mup", "sgd"), ("alpha1", "sgd"), ("alpha1", "adam"), ("depth_mup", "lamb"))),
])  # fmt: skip
def test_parametrizations_of_residual_branches(param, rule):
    """Initial values and rates of acting weights are those of the table; what is no branch is as in μP."""
    optimizer, linear = BY_RULE[rule]
    named = {"rule": rule} if rule.startswith("muon") else {}
    mine = comparisons.parametrize(residual(3), param, optimizer=optimizer, base=16, **named)
    table, plain = scaling(param, rule, "residual").roles, scaling("mup", rule).roles
    wanted = {path: table[role] for path, role in IN_THE_TABLE.items()}
    wanted |= {"hidden": plain["hidden"], "norm": plain["norm_gain"]}
    drawn = {"hidden": -0.5, "blocks/inner": -0.5, "blocks/outer": -0.5, "last": -0.5}
    assert set(mine.changes) == set(wanted)
    for path, e in wanted.items():
        change, relative = mine.changes[path], rule == "lamb" and path not in ("blocks/offset", "blocks/bias")
        if rule == "lamb" and not relative:  # what starts as zeros has no units to move in: as under Adam
            e, power = scaling(param, "adam", "residual")[IN_THE_TABLE[path]], 1
        else:
            power = linear
        assert change.rate == e.learning_rate * e.multiplier**power, path
        assert (change.size is not None) == relative
        if path not in ("blocks/offset", "blocks/bias"):
            assert change.initial == e.multiplier * e.init_std / Power(N=Fraction(drawn.get(path, 0))), path


@pytest.mark.slow
@pytest.mark.parametrize(("param", "rule"), [("depth_mup", "adam"), ("alpha1", "muon_keller")])
def test_what_is_parametrized_is_so_at_every_width_and_depth(param, rule):
    """32 branches move the stream as far as 4 do, which are right, though unchanged they do not; and its audit passes."""
    optimizer, named = BY_RULE[rule][0], {"rule": rule} if rule.startswith("muon") else {}
    mine = comparisons.parametrize(residual(32), param, optimizer=optimizer, base=16, depth=4, **named)
    few, many = (how_far(residual(depth), optimizer) for depth in (4, 32))
    assert abs(np.log(how_far(mine.model, mine.optimizer(16)) / few) / np.log(8)) < 0.2
    assert np.log(many / few) / np.log(8) > 0.5
    audit = found(mine.model, mine.optimizer)
    assert audit.ok, audit


def how_far(model, optimizer, width=16):
    """The change of the residual stream after two steps of the optimiser, its root mean square over networks."""
    networks = [model.at(width, jax.random.key(seed)) for seed in range(4)]
    apply = networks[0][1]
    stream = jax.jit(lambda params: apply(params, model.batch[0], lambda params, h: h))
    gradient = jax.jit(jax.grad(lambda params: model.of_outputs(apply(params, model.batch[0]), model.batch[1])))
    update, squares = jax.jit(optimizer.update), []
    for start, _ in networks:
        params, state = start, optimizer.init(start)
        for _ in range(2):
            updates, state = update(gradient(params), state, params)
            params = optax.apply_updates(params, updates)
        squares.append(jnp.mean((stream(params) - stream(start)) ** 2))
    return float(np.sqrt(np.mean(squares)))


def test_what_cannot_be_parametrized():
    def update(updates, state, params=None):
        size = sum(jnp.sum(u**2) for u in updates.values())
        return {name: -0.1 * u / jnp.sqrt(size) for name, u in updates.items()}, state

    whole = optax.GradientTransformation(optax.sgd(1.0).init, update)
    with pytest.raises(ValueError, match="neither linear in the gradient nor"):
        comparisons.parametrize(MODEL, optimizer=whole, base=8)
    with pytest.raises(ValueError, match="depth_mup is about residual branches, h \\+ f\\(h\\): apply has none"):
        comparisons.parametrize(MODEL, "depth_mup", optimizer=optax.adam(0.1), base=8)
    with pytest.raises(ValueError, match="unknown optimizer 'muon'"):
        comparisons.parametrize(MODEL, optimizer=whole, base=8, rule="muon")
    for sizes in ({"base": 0}, {"base": 8, "depth": 0}):
        with pytest.raises(ValueError, match=r"base [08], depth [01]: wanted at least 1"):
            comparisons.parametrize(MODEL, optimizer=optax.sgd(0.1), **sizes)


def test_an_optimizer_of_the_width_is_that_of_the_base():
    mine = comparisons.parametrize(MODEL, optimizer=lambda width, params: optax.sgd(len(params) / width), base=8)
    params = mine.model.at(16, jax.random.key(0))[0]
    tx = mine.optimizer(16)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["second"], -5 / 8 * params["second"], rtol=1e-6)  # hidden: the base's own rate
