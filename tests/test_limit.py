"""The front door: which theory is asked, and what it says in the end."""

import re

import numpy as np
import pytest

import limits
from limits import Problem, machine, theories
from limits.deep import conv, dmft
from limits.deep import linear as deep_linear
from limits.kernel import ntk
from limits.theories import outputs_are_random, predict, solve, theory
from limits.two_layer import linear as linear2
from limits.two_layer import meanfield

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))
CLASSES = np.eye(2)[RNG.integers(2, size=6)]


def a_problem(param="mup", model="linear2", targets=Y, **options):
    return Problem(X, targets, param, model=model, **{"num_steps": 4, "measure_every": 2, "learning_rate": 0.2} | options)


@pytest.mark.parametrize(
    ("param", "model", "options", "module"),
    [
        ("mup", "linear2", {}, linear2),
        ("ntp", "linear2", {}, linear2),
        ("mup", "mlp2", {"activation": "linear"}, linear2),
        ("mup", "linear4", {}, deep_linear),
        ("mean_field", "mlp3", {"activation": "linear"}, deep_linear),
        ("mup", "mlp2", {}, meanfield),
        ("mup", "linear2", {"loss": "cross_entropy", "targets": CLASSES}, meanfield),
        ("mup", "mlp3", {"activation": "relu"}, dmft),
        ("mup", "conv", {"image_shape": (3, 1, 1)}, conv),
        ("mean_field", "conv", {"pooling": "average", "image_shape": (3, 1, 1)}, conv),
        ("mup", "conv", {"image_shape": (3, 1, 1), "trained": "readout", "pooling": "average"}, ntk),
        ("depth_mup", "resmlp", {}, dmft),
        ("alpha1", "resmlp", {"activation": "linear"}, dmft),
        ("ntp", "linear3", {}, ntk),
        ("ntp", "mlp2", {}, ntk),
        ("ntp", "resmlp", {}, ntk),
        ("ntp", "linear2", {"loss": "cross_entropy", "targets": CLASSES}, ntk),
        ("ntp", "conv", {"pooling": "average", "image_shape": (3, 1, 1)}, ntk),
        ("mup", "mlp3", {"trained": "readout"}, ntk),
        ("mup", "linear2", {"schedule": "cosine"}, linear2),
        ("mup", "linear3", {"momentum": 0.5, "nesterov": True}, deep_linear),
        ("mup", "mlp2", {"warmup_steps": 2}, meanfield),
        ("readout.multiplier=-3/4, input.learning_rate=1/2, hidden.multiplier=-1/2, hidden.learning_rate=1/2, "
         "readout.learning_rate=1/2", "mlp3", {}, ntk),
    ],
)  # fmt: skip
def test_which_theory(param, model, options, module):
    assert theory(a_problem(param, model, **options)) is module


@pytest.mark.parametrize(
    ("param", "options", "message"),
    [
        ("sp", {}, "sp: not SGD at η0 γ² with factors 1/√fan-in and one γ; no limit is known for it"),
        ("mup", {"optimizer": "adam"}, "^no limit is known with adam: only of networks trained by sgd$"),
        ("ntp", {"optimizer": "adamw", "model": "mlp3"}, "^no limit is known with adamw: only"),
        ("readout.multiplier=-5/4, input.learning_rate=3/2, readout.learning_rate=3/2", {}, "a limit exists for 0"),
        ("depth_mup", {"model": "vit", "image_shape": (1, 3, 1)}, "no limit is known for vit in depth_mup"),
        ("depth_mup", {"model": "resconvnet", "block_size": 2, "image_shape": (3, 1, 1)}, "no limit of blocks of 2 conv"),
        ("ntp", {"model": "conv", "image_shape": (3, 1, 1)}, "max pooling has no analytic kernel"),
        ("ntp", {"model": "mlp3", "weight_decay": 0.1}, "weight decay shrinks the kernel"),
        ("depth_mup", {"model": "resmlp", "block_size": 2}, "no limit of blocks of 2 matrices is known"),
    ],
)
def test_no_theory_is_one_line(param, options, message):
    with pytest.raises(ValueError, match=message):
        solve(a_problem(param, **options))


@pytest.mark.parametrize("model", ["linear2", "linear3", "mlp2"])
def test_the_loss_in_ntp_is_the_mean_over_initial_outputs(model):
    problem = a_problem("ntp", model, richness=2.0)
    found, of = solve(problem), theory(problem)
    np.testing.assert_array_equal(found["loss"], of.loss_law(problem)[0])
    np.testing.assert_array_equal(found["sharpness"], of.solve(problem)["sharpness"])
    assert outputs_are_random(problem)
    given = X @ RNG.normal(size=(3, 2))
    ours, theirs = (one(problem, initial_outputs=given)["loss"] for one in (solve, of.solve))
    np.testing.assert_array_equal(ours, theirs)


def test_outputs_vanish_in_mup():
    assert not outputs_are_random(a_problem())
    with pytest.raises(ValueError, match=r"in the limit of mup f\(0\) = 0"):
        solve(a_problem(model="linear3"), initial_outputs=Y)


@pytest.mark.slow
@pytest.mark.parametrize("param", ["mup", "ntp"])
def test_a_limit_is_known_where_it_can_be_solved(param):
    """``theory`` asks the theory itself, so no combination is promised that ``solve`` refuses."""
    for model in ("linear2", "linear3", "mlp2", "mlp3"):
        for options in ({"weight_decay": 0.1}, {"trained": "readout"}, {"momentum": 0.5, "nesterov": True, "num_steps": 2}):
            problem = a_problem(param, model, **options)
            try:
                theory(problem)
            except ValueError as refusal:
                with pytest.raises(ValueError, match=str(refusal)):
                    solve(problem)
            else:  # the others take longer: their own tests solve them
                assert not model.startswith("linear") or np.isfinite(solve(problem)["loss"]).all()


def test_what_no_theory_has():
    with pytest.raises(KeyError, match="no gradient_noise here: no theory has it; there are"):
        solve(a_problem())["gradient_noise"]


@pytest.mark.slow  # fourteen seconds: three theories
def test_predictions():
    assert "sharpness" in predict(a_problem())
    assert "loss" in predict(a_problem("ntp"))
    assert predict(a_problem("ntp", "mlp3")) is None


@pytest.mark.parametrize(
    ("param", "model", "options", "name", "why"),
    [
        pytest.param("mup", "mlp3", {"num_steps": 0}, "hessian_min", "outliers are known: its bulk has no edge",
                     marks=pytest.mark.long),
        ("mup", "mlp2", {"num_steps": 0}, "hessian_min", "the bulk of the Hessian has no edge"),
        ("mup", "mlp2", {"num_steps": 0}, "hessian_trace", "it grows with the width"),
        ("ntp", "mlp2", {}, "hessian_trace", "residual part stays random"),
    ],
)  # fmt: skip
def test_what_a_theory_leaves_open_it_says(param, model, options, name, why):
    found = solve(a_problem(param, model, **options))
    assert name not in found
    for read in (found.__getitem__, found.error):
        with pytest.raises(KeyError) as refusal:
            read(name)
        assert str(refusal.value).startswith(f"no {name} here: ")
        assert why in str(refusal.value)
        assert str(refusal.value).endswith(f"; there are {', '.join(found)}")


def test_it_is_the_packages_own_door():
    assert limits.solve is solve


# What takes too long --------------------------------------------------------------------------------------------------


def photographs(samples, **options):
    """As large as the networks' own, SimpleConvNet's 32×32 in colour."""
    images = np.zeros((samples, 3072))
    usual = {"model": "conv", "loss": "cross_entropy", "num_steps": 64, "measure_every": 8, "learning_rate": 0.5}
    return Problem(images, np.eye(10)[np.arange(samples) % 10], **usual | options)


def test_a_limit_of_hours_is_refused_in_one_line_that_says_what_is_waited_for():
    line = r"^the limit of conv in mup on 64 samples would take about [\d.]+ (hours|days) and [\d. ]+ GiB, and at most 60 min"
    with pytest.raises(ValueError, match=line) as refusal:
        solve(photographs(64))
    (samples, minutes) = re.search(r"are waited for: on (\d+) it takes ([\d.]+) minutes$", str(refusal.value)).groups()
    assert float(minutes) <= theories.LONGEST
    theories.insist_on_room(photographs(int(samples)))
    with pytest.raises(ValueError, match=f"on {2 * int(samples)} samples would take"):
        theories.insist_on_room(photographs(2 * int(samples)))
    with pytest.raises(ValueError, match=r"^100 limits of conv in mup on 4 samples would take"):
        theories.insist_on_room(photographs(4), times=100)


@pytest.fixture
def of_sixteen_gibibytes(monkeypatch):
    for module in (machine, theories):
        monkeypatch.setattr(module, "physical_memory", lambda: 2**34)


@pytest.mark.usefixtures("of_sixteen_gibibytes")
def test_what_is_too_long_for_one_sample_names_the_theory_that_waits():
    with pytest.raises(ValueError, match=r"are waited for: limits\.deep\.conv\.solve waits longer$"):
        theories.insist_on_room(photographs(2, num_steps=4000, measure_every=2000, top_k=1))


@pytest.mark.usefixtures("of_sixteen_gibibytes")
def test_a_theory_that_does_not_fit_either_is_not_promised():
    line = r"^the limit of convnet in mup on 1 sample would .*: limits\.deep\.conv\.solve refuses it too, "
    with pytest.raises(ValueError, match=line):
        theories.insist_on_room(photographs(1, model="convnet", depth=3, num_steps=4, measure_every=4))


def test_fewer_samples_are_not_promised_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(theories, "physical_memory", lambda: 8 * theories.work(photographs(2))[1])
    with pytest.raises(ValueError, match="on 2 it takes"):
        theories.insist_on_room(photographs(64))


@pytest.mark.parametrize(("there", "refusal", "line"), [
    (1e4, ValueError, r"^the laws of linear4 in mup would take about [\d.]+ hours and [\d.]+ GiB, and at most 60 min"),
    (0.2, MemoryError, r"^the laws of linear4 would take about [\d.]+ hours and about [\d.]+ GiB, more than the 0.2 GiB"),
])  # fmt: skip
def test_laws_of_hours_are_refused_in_one_line(there, refusal, line, monkeypatch):
    monkeypatch.setattr(machine, "physical_memory", lambda: there * 2**30)
    large = Problem(RNG.normal(size=(80, 64)), RNG.normal(size=(80, 1)), model="linear4", learning_rate=0.1, num_steps=60)
    with pytest.raises(refusal, match=line):
        predict(large)


def test_laws_of_minutes_are_waited_for():
    theories.insist_on_room_for_laws(a_problem(model="linear3"))
    theories.insist_on_room_for_laws(a_problem(model="mlp3"))


def test_exact_limits_take_no_time():
    theories.insist_on_room(a_problem(num_steps=10**6, measure_every=10**6), times=10**6)
