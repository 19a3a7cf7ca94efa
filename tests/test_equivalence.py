"""Parametrizations that differ by a shift W → W/θ, multiplier → θ · multiplier train the same function, to rounding.

Held for what ``finite.train`` does with them; ``tests/test_exponents.py`` holds it for the derived exponents.
"""

from dataclasses import replace
from fractions import Fraction as F

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained import train

from finite.networks import by_role
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from limits.exponents.algebra import OPTIMIZERS, Power, architecture, shifted
from limits.exponents.parametrization import QUANTITIES, gauge, interpolated, read_scaling, scaling
from limits.machine import computing
from limits.problem import Problem, minibatches

WIDTH, DEPTH = 7, 3
KEY = jax.random.key(5)
CASES = [("plain", "mup"), ("plain", "sp"), ("residual", "depth_mup"), ("residual", "alpha1")]
ODD = {"input": Power(F(2, 7), F(-1, 3)), "hidden": Power(F(-5, 11)), "block_inner": Power(F(3, 5), F(1, 7)),
       "block": Power(F(1, 9), F(4, 3)), "readout": Power(F(-3, 4), F(2, 9))}  # fmt: skip
OBSERVED = {  # Lanczos runs are dear to compile
    "sgd": ("loss", "hessian_eigenvalues", "ntk_eigenvalues"),
    "adam": ("loss", "hessian_trace", "ntk_eigenvalues", "directional_sharpness"),
}


def trained(given, **changes):
    """The trajectory from the one N(0, 1) draw, stretched to the scaling's standard deviations in float64.

    Momentum for SGD, an ε of a gradient's size for Adam; decay and batches for both.
    """
    rng, adam = np.random.default_rng(0), given.optimizer == "adam"
    rest = {"num_steps": 4, "measure_every": 2, "richness": 0.7, "top_k": 2, "weight_decay": 0.2, "betas": (0.8, 0.9)}
    rest |= {"momentum": 0.0 if adam else 0.6, "epsilon": 0.3, "batches": minibatches(rng, 5, 3, 4), "learning_rate": 0.1}
    data = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    problem = Problem(*data, parametrization=given, optimizer=given.optimizer, **rest | changes)
    plain = given.architecture == "plain"
    network = mlp(problem, WIDTH, DEPTH, "tanh") if plain else resmlp(problem, WIDTH, DEPTH, "tanh", block_size=2)
    std = {role: given[role].init_std(WIDTH, DEPTH) for role in network.factors}
    drawn = network.architecture.init(KEY)
    options = {"precision": "float64", "observables": OBSERVED[given.optimizer], "rtol": 1e-9, "probes": 2}
    with computing("float64"):
        initial = by_role(std, jax.tree.map(lambda w: jnp.float64(w)[None], drawn))
    (trajectory,) = train(problem, network, KEY[None], initial=initial, **options)
    assert abs(trajectory["loss"][-1] / trajectory["loss"][0] - 1) > 0.02  # it did learn, and did not diverge
    return trajectory


def by_odd_powers(given, rule):
    """Shifted role by role, each by another odd power, with the learning rates of that rule."""
    roles = architecture(given.architecture, DEPTH, block_size=2)
    moved = {r: shifted(given[r], theta, roles[r], OPTIMIZERS[rule]) for r, theta in ODD.items() if r in roles}
    return replace(given, roles=moved)


def same(got, expected, rtol=1e-9):
    assert len(got.steps) == len(expected.steps) > 2
    assert got.observables.keys() == expected.observables.keys()
    for name in expected.observables:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_shift_of_the_scale_changes_nothing(kind, name, optimizer):
    given = scaling(name, optimizer, kind)
    expected = trained(given)
    for quantity in QUANTITIES:
        same(trained(gauge(given, quantity)), expected)
    same(trained(by_odd_powers(given, optimizer)), expected)


def test_a_shift_by_the_depth_where_branches_outgrow_the_stream():
    given = scaling("sp", "adam", "residual")
    same(trained(by_odd_powers(given, "adam")), trained(given))


@pytest.mark.parametrize(("optimizer", "wrong"), [("adam", "sgd"), ("sgd", "adam")])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_other_optimisers_rule_shows(kind, name, optimizer, wrong):
    """θ^{-2} instead of θ^{-1} in Adam's learning rates, and the other way round: the start is the same, the path is not."""
    given = scaling(name, optimizer, kind)
    expected, got = trained(given), trained(by_odd_powers(given, wrong))
    assert got["loss"][0] == pytest.approx(expected["loss"][0], rel=1e-9)
    assert abs(got["loss"][-1] / expected["loss"][-1] - 1) > 0.02


def test_shifts_reach_the_weights_drawn_from_a_key():
    """Weights are drawn in float32 and stretched there: equal as far as float32 goes."""
    problems = [Problem(np.eye(3), np.eye(3)[:, :1], parametrization=p, num_steps=3, measure_every=3)
                for p in (scaling("mup"), gauge(scaling("mup"), "learning_rate"))]  # fmt: skip
    one, other = (train(p, mlp(p, WIDTH, 2), KEY[None], observables=["loss"])[0]["loss"] for p in problems)
    np.testing.assert_allclose(other, one, rtol=1e-5)


# μP, in the three forms in which it is written

ONE_RATE = "input.multiplier=1/2, input.init_std=-1/2, hidden.init_std=-1/2, readout.multiplier=-1/2, readout.init_std=-1/2"
NTP_OVER_ROOT_N = "base=ntp, readout.multiplier=-1, input.learning_rate=1, hidden.learning_rate=1, readout.learning_rate=1"


@pytest.mark.parametrize(
    "form",
    [ONE_RATE, NTP_OVER_ROOT_N, interpolated(F(1, 2)), by_odd_powers(scaling("mean_field"), "sgd")],
    ids=["one learning rate (Yang & Hu)", "ntp, output over N^1/2, rate times N", "interpolated", "shifted by odd powers"],
)
def test_mean_field_is_mup(form):
    """Of SGD, at every step: readout over N at rate N, one rate for all, or the kernel's network with γ = γ0 N^{1/2}."""
    form = read_scaling(form, "sgd", "plain") if isinstance(form, str) else form
    expected = trained(scaling("mup"), measure_every=1)
    same(trained(scaling("mean_field"), measure_every=1), expected)
    same(trained(form, measure_every=1), expected)


def test_mean_field_is_mup_under_adam():
    """Weights (N(0, 1/N) inside, N(0, 1/N²) at the end) and rates (1, 1/N, 1/N) with no multiplier at all."""
    without = "optimizer=adam, hidden.init_std=-1/2, readout.init_std=-1, hidden.learning_rate=-1, readout.learning_rate=-1"
    expected = trained(scaling("mup", "adam"), measure_every=1)
    same(trained(scaling("mean_field", "adam"), measure_every=1), expected)
    same(trained(read_scaling("input.multiplier=0, " + without, "adam", "plain"), measure_every=1), expected)
