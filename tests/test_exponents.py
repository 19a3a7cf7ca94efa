"""Scaling exponents: the derivation against the literature, the stored table, changed rules, and trained networks."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction as F
from math import inf

import numpy as np
import pytest
from scaled_network import Network, slopes

from limits.exponents import derivation as exponents
from limits.exponents import regimes, requirements
from limits.exponents import tables as exponent_tables
from limits.exponents.algebra import (
    COMMON,
    OPTIMIZERS,
    WIDTH,
    Alignment,
    Exponents,
    Optimizer,
    Power,
    Scaling,
    architecture,
    shifted,
)
from limits.exponents.derivation import derive
from limits.exponents.parametrization import (
    gauge,
    interpolated,
    output_exponent,
    read_scaling,
    scaling,
    stored_as,
)
from limits.exponents.regimes import LOSSES
from limits.exponents.requirements import PARAMETRIZATIONS, Requirements, blocks_learn

HALF = F(1, 2)


def canonical(*arguments, letter="N", **options):
    """role → (multiplier, learning rate): the powers of the canonical member, whose weights are N(0,1)."""
    solution = derive(*arguments, **options).canonical
    assert all(e.init_std == Power() for e in solution.values())
    return {r: (getattr(e.multiplier, letter), getattr(e.learning_rate, letter)) for r, e in solution.items()}


def native(*arguments, **options):
    """role → (multiplier, init_std, learning rate) in N, as the requirements themselves fix them."""
    family = derive(*arguments, **options).family
    return {r: tuple(map(F, map(str, (e.multiplier.N, e.init_std.N, e.learning_rate.N)))) for r, e in family.items()}


# The literature


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_mup_of_yang_and_hu_and_of_tensor_programs_5(depth):
    sgd, adam = (canonical("mup", o, depth=depth) for o in ("sgd", "adam"))
    assert sgd["input"] == (0, 1)
    assert sgd["readout"] == (-1, 1)
    assert adam["input"] == (0, 0)
    assert adam["readout"] == (-1, 0)
    assert ("hidden" in sgd) == (depth > 1)
    if depth > 1:
        assert sgd["hidden"] == (-HALF, 1)
        assert adam["hidden"] == (-HALF, -HALF)
    # Yang & Hu 2021, Table 1: (a, b, c) = (−1/2, 1/2, 0), (0, 1/2, 0), (1/2, 1/2, 0), their letters minus ours
    shift = gauge(scaling("mup", depth=depth), "learning_rate")
    found = {r: (-e.multiplier.N, -e.init_std.N, -e.learning_rate.N) for r, e in shift.roles.items()}
    assert found["input"] == (-HALF, HALF, 0)
    assert found.get("hidden", (0, HALF, 0)) == (0, HALF, 0)
    assert found["readout"] == (HALF, HALF, 0)
    # Yang et al. 2022, Table 3: no hidden multiplier, Adam at 1, 1/N, 1/N
    table_3 = gauge(scaling("mup", "adam", depth=depth), "multiplier")
    assert [table_3.roles[r].learning_rate.N for r in ("input", "readout")] == [0, -1]
    assert depth == 1 or table_3["hidden"].learning_rate.N == -1


@pytest.mark.parametrize("depth", [1, 3])
def test_ntp_and_sp(depth):
    for role, expected in {"input": (0, 0, 0), "hidden": (-HALF, 0, 0), "readout": (-HALF, 0, 0)}.items():
        assert native("ntp", depth=depth).get(role, expected) == expected
    for role, expected in {"input": (0, 0, -1), "hidden": (0, -HALF, -1), "readout": (0, -HALF, -1)}.items():
        assert native("sp", depth=depth).get(role, expected) == expected
    assert native("ntp", "adam", depth=depth)["readout"][2] == (-1 if depth > 1 else -HALF)
    assert native("sp", "adam", depth=depth)["readout"][2] == (F(-3, 2) if depth > 1 else -1)


def test_requirements_of_ones_own():
    """A rate of its own for every layer, such that each alone moves f by Θ(1); the smallest is SP's and NTP's."""

    def each_moves_f(s):
        pairs = s.first.items()
        return [requirements.Condition(f"{n}: Δf", "N", sizes.on_f.N) for n, sizes in pairs]

    for gauge_of, expected in {
        requirements.unit_init: (-HALF, -1, -HALF),
        requirements.unit_multiplier: (-HALF, F(-3, 2), -1),
    }.items():
        asked = (gauge_of, requirements.preactivations, requirements.output_at_init, each_moves_f)
        found = native(Requirements("layerwise", asked), "adam")
        assert tuple(found[r][2] for r in ("input", "hidden", "readout")) == expected


def test_mean_field_is_mup_shifted_by_one_half():
    mup = gauge(scaling("mup", depth=1), "learning_rate")
    mean_field = derive("mean_field", depth=1).family
    for role in ("input", "readout"):
        theta = Power(N=-HALF)
        assert shifted(mup[role], theta, architecture("plain", 1)[role], OPTIMIZERS["sgd"]) == mean_field[role]
    assert native("mean_field", depth=1)["readout"] == (-1, 0, 1)
    assert native("mean_field", depth=1)["input"] == (0, 0, 1)


def test_depth():
    for k in (1, 2, 3):
        assert canonical("depth_mup", "sgd", "residual", block_size=k, letter="L")["block"] == (-HALF, 0)
        assert canonical("depth_mup", "adam", "residual", block_size=k, letter="L")["block"] == (-HALF, -HALF)
        assert canonical("alpha1", "sgd", "residual", block_size=k, letter="L")["block"] == (-1, 1)
        assert canonical("alpha1", "adam", "residual", block_size=k, letter="L")["block"] == (-1, 0)
    for name in ("depth_mup", "alpha1"):
        found = canonical(name, "adam", "residual", block_size=2, letter="L")
        assert found["input"] == found["readout"] == (0, 0)
        assert found["block_inner"] == (0, found["block"][1])
        assert found["bias"] == found["block"]
        assert canonical(name, "adam", "residual")["block"] == (-HALF, -HALF)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", "2*alpha - 1"), ("adam", "alpha - 1")])
@pytest.mark.parametrize("k", [1, 2])
def test_the_family_of_branch_multipliers(optimizer, rate, k):
    solution = derive("depth_family", optimizer, "residual", block_size=k)
    assert str(solution.canonical["block"].multiplier.L) == "-alpha"
    assert str(solution.canonical["block"].learning_rate.L) == rate
    bounds = {str(b.expression) for b in solution.bounds if b.expression.free_symbols}
    assert bounds == {"1/2 - alpha", "alpha - 1"}


def test_two_matrices_per_block_learn_nonlinearly_at_alpha_1_only():
    family = derive("depth_family", "adam", "residual", block_size=2)
    inner = {b.name: b.expression for b in family.bounds}["block_inner: change inside the block"]
    assert str(inner) == "alpha - 1"  # 0, an inside that moves, at α = 1 alone
    both = Requirements("both", (*PARAMETRIZATIONS["depth_mup"].conditions, blocks_learn), depth_aware=True)
    with pytest.raises(ValueError, match=r"contradictory .* L branches at step 0.* against .*change inside the block"):
        derive(both, "adam", "residual", block_size=2)
    halves = {r: regimes.classify(regimes.case(scaling(r, "adam", "residual"), block_size=2)) for r in PAIR}
    assert [halves[r].layers["block_inner 1"] for r in PAIR] == ["lazy", "moves"]


PAIR = ("depth_mup", "alpha1")


# Rules


@pytest.mark.parametrize(("optimizer", "gain"), [("sgd", 2), ("adam", 1), ("momentum", 2), ("sign", 1)])
def test_the_solver_finds_the_gauge_freedom(optimizer, gain):
    for e in derive("mup", optimizer).family.values():
        (theta,) = e.multiplier.N.free_symbols
        assert [p.N.coeff(theta) for p in (e.multiplier, e.init_std, e.learning_rate)] == [1, -1, -gain]


def test_another_alignment_gives_another_learning_rate():
    independent = Alignment(update=HALF)
    assert canonical("mup", "adam", alignment=independent)["hidden"] == (-HALF, 0)
    assert canonical("mup", "sgd", alignment=independent)["hidden"] == (-HALF, F(3, 2))
    assert canonical("mup", "adam", alignment=independent)["readout"] == (-1, HALF)
    # readout weights that the features do not align with: Everett et al.'s condition for SP-like readouts
    assert canonical("mup", "adam", alignment=Alignment(readout=HALF))["readout"] == (-HALF, -HALF)
    incoherent = Alignment(blocks_update=HALF)
    assert canonical("depth_mup", "adam", "residual", alignment=incoherent, letter="L")["block"] == (-HALF, 0)


def test_a_new_optimiser_is_one_rule():
    muon = Optimizer("muon", "orthogonalised", lambda gradient, role: (role.fan_in * role.fan_out) ** -HALF)
    found = {r: e.learning_rate.N for r, e in derive("mup", muon).canonical.items()}
    # spectral condition (Yang, Simon & Bernstein 2023): |multiplier ΔW| = √(fan-out/fan-in)
    assert [found[r] for r in ("input", "hidden", "readout")] == [HALF, HALF, HALF]
    verdict = regimes.classify(regimes.Case(derive("mup", muon).canonical, muon))
    assert verdict.regime == "feature learning"


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    {
        "adam": (0, -1, -1, 0, 0),
        "lamb": (0, -HALF, 0, 0, 0),  # of hidden weights N^(-1/2), readout ones 1/N
        "muon_unit": (HALF, 0, -HALF, HALF, 0),
        "muon_keller": (0, 0, -HALF, 0, 0),
        "muon_spectral": (0, 0, 0, 0, 0),  # Yang, Simon & Bernstein 2023: the spectral condition
        "muon_match_rms": (0, -HALF, -1, 0, 0),  # Liu et al. 2025: entries as large as Adam's in square matrices
    }.items(),
)
def test_learning_rates_without_multipliers(optimizer, rates):
    """μP; biases under Muon have Adam's."""
    found = gauge(scaling("mup", optimizer), "multiplier")
    assert tuple(found[r].learning_rate.N for r in ("input", "hidden", "readout", "embedding", "bias")) == rates
    verdict = regimes.classify(regimes.case(found))
    assert (verdict.regime, verdict.border.N) == ("feature learning", 0)
    assert regime(faster(found, Power(N=F(1, 100)))) == "unstable"


@pytest.mark.parametrize("depth", [1, 2])
def test_the_stored_table_of_the_other_rules(depth):
    others = tuple(name for name in OPTIMIZERS if stored_as(name) == name and name not in COMMON)
    for solution in exponents.table(others, ("sp", "mup", "alpha1"), depth=depth):
        stored = scaling(solution.parametrization, solution.optimizer.name, solution.architecture, depth=depth)
        assert {r: stored[r] for r in solution.canonical} == solution.canonical


def test_epsilon_of_what_takes_a_matrix_as_a_whole():
    """As the norm of its gradient: in μP without multipliers, entries 1/N of N² (N of the ends'); of a bias as an entry."""
    epsilon = regimes.predicted(regimes.case(gauge(scaling("mup", "soap"), "multiplier")))["epsilon"]
    assert [epsilon[name].N for name in ("input", "hidden 2", "readout", "bias")] == [-HALF, 0, HALF, -1]


@pytest.mark.parametrize(("e", "hidden"), [(HALF, 0), (F(3, 4), HALF), (1, 1)])
def test_weight_decay_balances_steps(e, hidden):
    """Of AdamW without multipliers constant, √N and N; of Muon with √(out/in), whose updates' entries are 1/N, N less."""
    adam, muon = (regimes.case(gauge(scaling("mup", name), "multiplier")) for name in ("adam", "muon_spectral"))
    of_adam, of_muon = regimes.weight_decay(adam, F(e)), regimes.weight_decay(muon, F(e))
    assert [of_adam[name].N for name in ("input", "hidden 2", "readout", "bias")] == [0, hidden, hidden, 0]
    assert [of_muon[name].N for name in ("input", "hidden 2")] == [0, hidden - 1]
    at_one = regimes.weight_decay(adam, F(1))
    assert at_one == {name: size for name, size in regimes.predicted(adam)["weight_decay"].items() if name in at_one}
    with pytest.raises(ValueError, match="lamb moves weights in units of themselves: no weight decay"):
        regimes.weight_decay(regimes.case(scaling("mup", "lamb")), F(1))


def test_the_balance_of_steps_and_decay():
    """A walk of random signs: √(η/2λ) an entry (Kosson et al. 2024)."""
    rng, w, eta, decay = np.random.default_rng(0), np.zeros(4000), 0.05, 0.4
    for _ in range(600):
        w -= eta * (rng.choice([-1.0, 1.0], size=w.shape) + decay * w)
    assert np.sqrt(np.mean(w**2)) == pytest.approx(np.sqrt(eta / 2 / decay), rel=0.05)


@pytest.mark.parametrize("same", [name for name in OPTIMIZERS if stored_as(name) != name])
def test_optimisers_of_the_same_rule(same):
    stored = stored_as(same)
    for solution in exponents.table((same,), ("sp", "mup", "depth_mup")):
        found = scaling(solution.parametrization, same, solution.architecture)
        assert {r: found[r] for r in solution.canonical} == solution.canonical
        assert found.roles == scaling(solution.parametrization, stored, solution.architecture).roles


def test_contradictions_are_named():
    equations = [("hidden", "init_std", "N", F(0)), ("hidden", "multiplier", "N", F(0))]
    with pytest.raises(ValueError, match=r"against  imposed hidden.init_std .* against  imposed hidden.multiplier"):
        derive("mup", impose=equations)
    with pytest.raises(ValueError, match=r"^contradictory conditions: hidden: output(?!.*(input|readout))"):
        derive("mup", impose=equations)  # and no condition that is not needed for the conflict
    assert derive("mup", impose=equations[:1]).canonical == derive("mup").canonical
    with pytest.raises(ValueError, match="no powers of L"):
        derive("mup", impose=[("hidden", "multiplier", "L", F(1))])
    with pytest.raises(ValueError, match=r"unknown role 'block'; known: input, hidden"):
        derive("mup", impose=[("block", "multiplier", "N", F(1))])
    too_wide = Requirements("wide", (*PARAMETRIZATIONS["mup"].conditions, requirements.output_changes_bounded))
    with pytest.raises(ValueError, match=r"no exponents meet every bound: input: its Δf grows as N\^1$"):
        derive(too_wide, alignment=Alignment(propagated=F(1)))


# The stored results


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_stored_table_is_the_derivation(depth, loss):
    for block_size in (1, 3):
        names = {"parametrizations": ("sp", "ntp")} if loss == "cross_entropy" else {}
        for solution in exponents.table(**names, depth=depth, block_size=block_size, loss=loss):
            key = solution.parametrization, solution.optimizer.name, solution.architecture
            stored = scaling(*key, depth=depth, loss=loss)
            assert {r: stored[r] for r in solution.canonical} == solution.canonical
            other = scaling(*key, depth=depth, loss=next(name for name in LOSSES if name != loss))
            assert (other == stored) == (solution.parametrization != "sp")


def test_the_table_takes_little_time():
    start = time.process_time()  # of this process: other ones on the machine do not count
    assert len(exponents.table.__wrapped__()) == 4 * 2 * 2 + 2 * 2
    assert time.process_time() - start < 10


def test_parametrization_imports_no_sympy():
    program = "import sys, limits.exponents.parametrization, limits.exponents.regimes; sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_output_multipliers_are_derived():
    assert output_exponent(scaling("ntp", depth=1)) == 0.0
    assert output_exponent(scaling("mup")) == output_exponent(gauge(scaling("mup"), "learning_rate")) == 0.5
    for name, a in (("ntp", 0), ("mup", HALF)):
        between = interpolated(a)
        assert {role: scaling(name)[role] for role in between.roles} == between.roles
    quarter = "readout.multiplier=-3/4, input.learning_rate=1/2, readout.learning_rate=1/2"
    assert output_exponent(read_scaling(quarter)) == output_exponent(interpolated(0.25)) == 0.25
    with pytest.raises(ValueError, match=r"output exponent 0\.75: a limit exists for 0"):
        output_exponent(read_scaling("readout.multiplier=-5/4, input.learning_rate=3/2, readout.learning_rate=3/2"))
    for name in ("mup", "depth_mup", "alpha1"):  # powers of the depth are free
        assert output_exponent(scaling(name, "sgd", "residual")) == 0.5
    for other in (scaling("sp"), scaling("mup", "adam"), scaling("sp", "sgd", "residual")):
        with pytest.raises(ValueError, match=f"^{other.name}: not SGD at η0 γ²"):
            output_exponent(other)


def test_a_power_is_a_number_at_a_width():
    assert Power(F(-1, 2), F(1))(16, 3) == 0.75
    assert scaling("depth_mup", "adam", "residual")["block"].learning_rate(4, 16) == 1 / 8


# Classification


def faster(given, power):
    roles = {r: replace(e, learning_rate=e.learning_rate * power) for r, e in given.roles.items()}
    return Scaling(given.name, given.optimizer, given.architecture, roles)


def regime(given, **options):
    return regimes.classify(regimes.case(given, **options)).regime


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("depth", [1, 3])
def test_regimes(optimizer, depth):
    for name, expected in {"sp": "kernel", "ntp": "kernel", "mup": "feature learning"}.items():
        given = scaling(name, optimizer, depth=depth)
        verdict = regimes.classify(regimes.case(given, depth=depth))
        assert verdict.regime == expected
        assert verdict.border.N == 0  # the largest stable rates already
        assert set(verdict.layers.values()) == {"frozen" if expected == "kernel" else "moves"}
        assert regime(faster(given, Power(N=F(1, 100))), depth=depth) == "unstable"
        assert regime(faster(given, Power(N=F(-1, 100))), depth=depth) == "trivial"
        slower = faster(given, Power(N=F(-3, 7)))
        left = regimes.classify(regimes.case(slower, depth=depth)).border.N
        assert left == F(3, 7)


def test_regimes_of_residual_networks():
    for name in PAIR:
        verdict = regimes.classify(regimes.case(scaling(name, "adam", "residual"), block_size=2))
        assert verdict.regime == "feature learning"
        assert verdict.border == Power()
    verdict = regimes.classify(regimes.case(scaling("mup", "sgd", "residual")))
    assert verdict.regime == "unstable"
    assert "exponentially in L at initialisation (at fixed L: feature learning)" in verdict.reason
    assert verdict.border == Power(F(0), -inf)
    assert regimes.predicted(regimes.case(scaling("mup", "sgd", "residual")))["h"]["stream"] == Power(F(0), inf)
    # L coherent updates
    steep = "base=depth_mup, block.learning_rate.L=0"
    verdict = regimes.classify(regimes.case(read_scaling(steep, "adam", "residual")))
    assert verdict.reason == "Δh of stream grows as L^1/2 after step 1"
    assert verdict.border.L == -HALF
    # α > 1 with the rate that keeps Δf = Θ(1): the inside of a block of two matrices blows up
    beyond = "base=alpha1, block.multiplier.L=-3/2, block.learning_rate.L=1/2, block_inner.learning_rate.L=1/2"
    verdict = regimes.classify(regimes.case(read_scaling(beyond, "adam", "residual"), block_size=2))
    assert verdict.reason == "Δh of block_inner 1 grows as L^1/2 after step 1"


def test_what_blows_up_first():
    constant_rate = faster(scaling("sp"), WIDTH)
    verdict = regimes.classify(regimes.case(constant_rate))
    assert verdict.reason == "Δh of hidden 2 grows as N^1/2 after step 1"
    assert verdict.border.N == -1
    verdict = regimes.classify(regimes.case(faster(scaling("ntp"), Power(N=F(1, 4)))))
    assert verdict.reason == "Δf grows as N^1/4 after step 1"
    verdict = regimes.classify(regimes.case(read_scaling("base=ntp, hidden.multiplier=-1/4")))
    assert verdict.reason == "h of hidden 2 grows as N^1/4 at initialisation"
    assert -inf == verdict.border.N


@pytest.mark.parametrize("text", ["base=mup, readout.multiplier=-1/2", "base=mup, readout.init_std=1/4", "ntp", "base=sp"])
def test_the_step_of_a_blow_up(text):
    """The first one after which something has a positive power, by the sizes that are predicted for so many steps."""
    case, steps = regimes.case(read_scaling(text), loss="mse"), range(4)
    watched = [[p.N for q in ("h", "f", "delta_h", "delta_f") for p in regimes.predicted(case, k)[q].values()] for k in steps]
    first = next((k for k in steps if max(watched[k]) > 0), None)
    found = regimes.blow_up(case, "N")
    assert (None if found is None else found[0]) == first
    assert found is None or found[1] == regimes.classify(case).reason


def test_a_blow_up_in_depth_is_none_in_width():
    case = regimes.case(read_scaling("base=depth_mup, block.learning_rate.L=0", "adam", "residual"))
    assert regimes.blow_up(case, "L") == (1, "Δh of stream grows as L^1/2 after step 1")
    assert regimes.blow_up(case, "N") is None


def test_controlled_divergence():
    """Haas et al. 2025: under cross-entropy SP is stable up to η ∝ N^{-1/2} (SGD), N^{-1} (Adam)."""
    for optimizer, power in {"sgd": -HALF, "adam": F(-1)}.items():
        at_border = scaling("sp", optimizer, loss="cross_entropy")
        assert gauge(at_border, "multiplier")["hidden"].learning_rate == Power(N=power)
        assert at_border.roles == faster(scaling("sp", optimizer), Power(N=HALF)).roles
        assert read_scaling("base=sp", optimizer, loss="cross_entropy").roles == at_border.roles
        verdict = regimes.classify(regimes.case(at_border, loss="cross_entropy"))
        assert verdict.regime == "controlled divergence"
        assert verdict.layers["hidden 3"] == "moves"
        assert regime(at_border, loss="mse") == "unstable"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("sizes", [*({"depth": d} for d in (1, 2, 3, 5)), *({"block_size": k} for k in (1, 2, 3))], ids=str)
def test_the_rate_with_cross_entropy_is_the_largest_that_trains(optimizer, sizes):
    """By three steps in numbers of ``regimes``, which the derivation's two in symbols know nothing of."""
    kind = "plain" if "depth" in sizes else "residual"
    given = scaling("sp", optimizer, kind, depth=sizes.get("depth", 3), loss="cross_entropy")
    border = regimes.classify(regimes.case(given, loss="cross_entropy", **sizes)).border.N
    assert border == 0
    if kind == "plain":
        assert regime(given, loss="cross_entropy", **sizes) == "controlled divergence"
        assert regime(faster(given, Power(N=F(1, 100))), loss="cross_entropy", **sizes) == "unstable"
    last = "stream" if kind == "residual" else f"hidden {sizes['depth']}" if sizes["depth"] > 1 else "input"
    assert regimes.predicted(regimes.case(given, loss="cross_entropy", **sizes))["delta_h"][last].N == 0


def test_an_unknown_loss():
    for ask in (lambda: scaling("sp", loss="huber"), lambda: derive("sp", loss="huber")):
        with pytest.raises(ValueError, match=r"unknown loss 'huber'; known: (mse, cross_entropy|cross_entropy, mse)"):
            ask()


def test_regimes_per_layer():
    verdict = regimes.classify(regimes.case(read_scaling("base=mup, hidden.learning_rate=1/2")))
    assert {n: verdict.layers[n] for n in ("input", "hidden 2")} == {"input": "moves", "hidden 2": "lazy"}
    quarter = read_scaling("readout.multiplier=-3/4, input.learning_rate=1/2, readout.learning_rate=1/2")
    verdict = regimes.classify(regimes.case(quarter, depth=1))
    assert verdict.reason == "Δf = Θ(1) while the last features move as N^{-1/4}"


def test_a_tiny_readout_grows_in_one_step():
    """μP with readout weights that start at N^{-1/2}: the first gradient is small, the second is not."""
    case = regimes.case(read_scaling("base=mup, readout.init_std=-1/2"))
    after = [step.delta_h["hidden 3"].N for step in regimes.sizes(case)]
    assert after[1:] == [-HALF, 0, 0]
    assert regimes.classify(case).regime == "feature learning"


def test_epsilon_and_weight_decay():
    """Everett et al. 2024, Dey et al. 2025: without multipliers ε ∝ 1/N, and AdamW's λ ∝ N in hidden layers."""
    adam = regimes.predicted(regimes.case(gauge(scaling("mup", "adam"), "multiplier")))
    assert adam["epsilon"]["hidden 2"] == Power(N=F(-1))
    assert adam["weight_decay"]["hidden 2"] == Power(N=F(1))
    assert adam["weight_decay_coupled"]["hidden 2"] == Power(N=F(-1, 2))
    sgd = regimes.predicted(regimes.case(scaling("mup")))  # limits.problem: the raw coefficient is λ/γ²
    assert sgd["weight_decay"] == sgd["weight_decay_coupled"]
    assert set(sgd["weight_decay"].values()) == {Power(N=F(-1))}


# Input


def test_a_parametrization_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nbase = "mup"\noptimizer = "adam"\n[hidden]\nlearning_rate = {N = "-1/2"}\n'
        "[readout]\nmultiplier = -1\ninit_std = 0.0\n"
    )
    given = read_scaling(str(path))
    assert (given.name, given.optimizer) == ("mine", "adam")
    assert given.roles == scaling("mup", "adam").roles
    assert read_scaling("base=mup, hidden.learning_rate.L=1/3")["hidden"].learning_rate == Power(F(1), F(1, 3))
    assert read_scaling("ntp", "adam") == scaling("ntp", "adam")
    with pytest.raises(ValueError, match=r"^mup, plain: no role 'block'; known: input, hidden, readout"):
        scaling("mup")["block"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("muP", "unknown parametrization 'muP'; known: alpha1, depth_mup, mean_field, mup, ntp, sp"),
        ("depth_mup", "depth_mup is about residual blocks: it says nothing about a plain network"),
        ("base=mup, hiden.learning_rate=1", "unknown role 'hiden'; known: bias, block"),
        ("base=mup, hidden.rate=1", "unknown quantity of hidden 'rate'; known: init_std, learning_rate, multiplier"),
        ("base=mup, hidden.learning_rate=sqrt(2)", "hidden.learning_rate = 'sqrt(2)' is not a rational number"),
        ("base=mup, hidden.learning_rate.N=1/0", "hidden.learning_rate.N = '1/0' is not a rational number"),
        ("base=mup, hidden.learning_rate.M=1", "unknown letter of hidden.learning_rate 'M'; known: L, N"),
        ("base=mup, hidden.learning_rate=1, hidden.learning_rate.L=1", "learning_rate already has a power"),
        ("base=mup, hidden.learning_rate", "'hidden.learning_rate': wanted role.quantity=power"),
        ("base=mup, hidden=1", "hidden = '1': wanted multiplier, init_std, learning_rate of the role"),
        ("optimizer=rprop, base=mup", "unknown optimizer 'rprop'; known: adafactor, adam, adamw, lamb, lion, momentum, muon_"),
        ("architecture=cnn, base=mup", "unknown architecture 'cnn'; known: plain, residual"),
        ("base=mup, hidden.learning_rate=9999", "hidden.learning_rate = 9999: wanted a power from -16 to 16"),
        ("base=mup, hidden.learning_rate=-99/2", "hidden.learning_rate = -99/2: wanted a power from -16 to 16"),
        ("base=mup, hidden.learning_rate=1e999999999", "hidden.learning_rate = '1e999999999' is not a rational number"),
        ("base=mup, hidden.learning_rate=inf", "hidden.learning_rate = 'inf' is not a rational number"),
        ("nowhere.toml", "nowhere.toml: No such file or directory"),
        ("optimizer=adam, base=mup", "these exponents are for optimizer adam, not for sgd"),
    ],
)
def test_wrong_input_gets_one_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_scaling(text, "sgd" if "adam" in text else None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'name = ["a"]', "name = ['a']: wanted a text"),
        (b'base = ["mup"]', "base = ['mup']: wanted a text"),
        (b"optimizer = {a = 1}", "optimizer = {'a': 1}: wanted a text"),
        (b'name = ""', "name = '': wanted a text"),
        (b"hidden = [1]", "hidden = [1]: wanted multiplier, init_std, learning_rate of the role"),
        (b"[[hidden]]\nmultiplier = 1", "hidden = [{'multiplier': 1}]: wanted multiplier"),
        (b"[hidden]\nmultiplier = [1]", "hidden.multiplier = [1] is not a rational number"),
        (b"[hidden]\nmultiplier = {N = [1]}", "hidden.multiplier.N = [1] is not a rational number"),
        (b"[hidden]\nmultiplier = 1e9", "hidden.multiplier = 1000000000.0: wanted a power from -16 to 16"),
        (b"[hidden]\nmultiplier = nan", "hidden.multiplier = nan is not a rational number"),
        (b"[hidden]\nmultiplier = true", "hidden.multiplier = True is not a rational number"),
        (b"[hidden]\nmultiplier = 1979-05-27", "is not a rational number"),
        ("name = 'ä'".encode("latin-1"), "mine.toml: not a text in UTF-8: byte 0xe4"),
        ("name = 'a'".encode("utf-16"), "mine.toml: not a text in UTF-8: byte 0xff"),
        (b"= 1", "mine.toml: Invalid"),
        (b"name = ['a']", "mine.toml: name = ['a']: wanted a text"),
        (b"a = " + b"9" * 5000, "mine.toml: Exceeds the limit"),
        (b"a = " + b"[" * 5000, "mine.toml: "),
    ],
)
def test_wrong_files_get_one_line(content, message, tmp_path):
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_scaling(str(tmp_path / "mine.toml"))
    assert "\n" not in str(caught.value)


def test_files_that_begin_with_a_mark_or_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "MINE.TOML").write_bytes(b'\xef\xbb\xbfname = "mine"\nbase = "mup"')
    assert read_scaling("~/MINE.TOML").roles == scaling("mup").roles


def test_a_power_beyond_all_floats_is_infinite():
    """Of a size that a network does not have: 16 is allowed of each of its factors."""
    assert Power(N=F(400))(2**20) == float("inf")
    assert Power(N=F(-400))(2**20) == 0


def test_what_a_case_refuses(tmp_path):
    with pytest.raises(ValueError, match="a plain network needs exponents for input, readout"):
        regimes.case(read_scaling("hidden.multiplier=-1/2"))
    with pytest.raises(ValueError, match="unknown loss 'huber'; known: mse, cross_entropy"):
        regimes.case(scaling("mup"), loss="huber")
    broken = tmp_path / "broken.toml"
    broken.write_text("= 1")
    with pytest.raises(ValueError, match=r"broken.toml: Invalid"):
        read_scaling(str(broken))


def run(capsys, *arguments):
    exponent_tables.main(arguments)
    return capsys.readouterr().out


def test_command_line(capsys):
    rows = json.loads(run(capsys, "--format", "json"))
    assert {"parametrization": "depth_mup", "optimizer": "adam", "architecture": "residual", "role": "block",
            "multiplier": {"N": "-1/2", "L": "-1/2"}, "init_std": {"N": "0", "L": "0"},
            "learning_rate": {"N": "-1/2", "L": "-1/2"}} in rows  # fmt: skip
    assert {row["optimizer"] for row in rows} == {"sgd", "adam"}
    of_muon = ("--param", "mup", "--gauge", "multiplier", "--architecture", "plain", "--optimizer", "muon")
    assert re.search(r"keller +plain +readout +1 +N\^\(-1\) +N\^\(-1/2\)", run(capsys, *of_muon))
    one = run(capsys, *of_muon, "--scale", "spectral", "--explain")
    assert "update = √(out/in) UVᵀ of the gradient UΣVᵀ, whose rank is of order one" in one
    assert re.search(r"hidden: own Δ +N:  a_hidden \+ c_hidden = 0", one)
    one_rate = ("--param", "mup", "--optimizer", "sgd", "--gauge", "learning_rate")
    only = json.loads(run(capsys, "--format", "json", *one_rate))
    assert {row["learning_rate"]["N"] for row in only} == {"0"}
    options = ("--param", "depth_family", "--optimizer", "sgd")
    assert re.search(r"block +N\^\(-1/2\) L\^\(-alpha\) +1 +N L\^\(2\*alpha - 1\)", run(capsys, *options))
    assert r"$N^{-1/2} \, L^{-\alpha}$ & $1$ &" in run(capsys, *options, "--format", "latex")
    assert "| block | $N^{-1/2} \\, L^{-\\alpha}$ | $1$ |" in run(capsys, *options, "--format", "markdown")
    explained = run(capsys, "--param", "mup", "--optimizer", "adam", "--explain")
    assert "L^(inf): exponentially with the depth" in explained
    assert re.search(r"hidden: own Δ +N:  a_hidden \+ c_hidden \+ 1 = 0", explained)
    assert "1/2 for W_0 x, 1 for ΔW x" in explained
    assert re.search(r"hidden 2 +N\^\(-1\) +1 +N\^\(1/2\) +N\n", explained)
    in_sp = run(capsys, "--param", "sp", "--loss", "cross_entropy", "--gauge", "multiplier")
    assert re.search(r"sp +sgd +plain +hidden +1 +N\^\(-1/2\) +N\^\(-1/2\)\n", in_sp)
    described = run(capsys, "--param", "base=ntp, readout.learning_rate=-1", "--optimizer", "sgd")
    assert "base=ntp, readout.learning_rate=-1, sgd, plain, mse: kernel" in described


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--param", "muP"], "unknown parametrization 'muP'; known: sp, ntp, mup"),
        (["--optimizer", "rprop"], "unknown optimizer 'rprop'"),
        (["--optimizer", "adam", "--scale", "unit"], "--scale is what stands in front of UVᵀ: it wants --optimizer muon"),
        (["--param", "base=mup", "--optimizer", "muon"], "exponents of your own are for one"),
        (["--param", "mup", "--optimizer", "lamb", "--gauge", "learning_rate"], "no gauge changes a learning rate"),
        (["--depth", "0"], "depth 0 must be at least 1"),
        (["--block-size", "0"], "block size 0 must be at least 1"),
        (["--param", "depth_mup", "--architecture", "plain"], "depth_mup is about residual blocks"),
        (["--impose", "hidden.multiplier.N=1"], "--impose needs one --param"),
        (["--param", "mup", "--impose", "hidden=1"], "'hidden=1': wanted role.quantity.N=power"),
        (["--param", "base=mup", "--explain"], "--explain and --impose are about a derivation"),
    ],
)
def test_command_line_errors(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        exponent_tables.main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# Measurement


def check(measured, given, letter, tolerance, **options):
    predicted = regimes.predicted(regimes.case(given, **options))
    for (quantity, layer), slope in measured.items():
        expected = float(getattr(predicted[quantity][layer], letter))
        assert slope == pytest.approx(expected, abs=tolerance), (given.name, given.optimizer, quantity, layer)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["sp", "ntp", "mup"])
def test_measured_exponents_of_width(name, optimizer, depth):
    given = scaling(name, optimizer)
    check(slopes(given, widths=(64, 128, 256, 512), depth=depth, seeds=16), given, "N", 0.2, depth=depth)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", PAIR)
def test_measured_exponents_of_depth(name, optimizer, k):
    given = scaling(name, optimizer, "residual")
    found = slopes(given, depths=(4, 8, 16, 32, 64), width=96, seeds=12, block_size=k)
    check(found, given, "L", 0.2, block_size=k)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("quantity", ["multiplier", "learning_rate"])
def test_gauge_equivalent_scalings_train_the_same_network(optimizer, quantity):
    given = scaling("mup", optimizer)
    outputs = []
    for member in (given, gauge(given, quantity)):
        network = Network(member, width=48, depth=3)
        network.train(optimizer, num_steps=5, eta0=0.1)
        outputs.append(network.forward()[2][-1])
    assert np.abs(outputs[0]).max() > 0.1
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-4)


def test_exponents_of_a_role_default_to_none():
    assert Exponents() == Exponents(Power(), Power(), Power())
