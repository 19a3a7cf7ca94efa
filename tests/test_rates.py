"""Rates and growth from trajectories whose laws are known because they were made up."""

import numpy as np
import pytest
import xarray as xr
from benchmarks.coverage import NETWORK_WIDTHS, SETTING, network_row, network_tasks
from benchmarks.coverage import networks as exact
from scipy.linalg import block_diag
from scipy.stats import wishart

from comparisons import files, labelled
from comparisons.convergence import rates
from comparisons.convergence.rates import allowance, measure_rates, noise_floor
from comparisons.convergence.study import prepare, without_a_limit
from comparisons.statistics.deviations import components, deviations, without_limit
from comparisons.statistics.super_consistency import NO_STEPS, measure_growth
from limits import Trajectory, linear2
from limits.coordinates import coordinates
from limits.law import Law, Prediction
from limits.trajectory import IN_BULK

WIDTHS, SEEDS, STEPS = (50, 100, 200, 400, 800), 40, np.array([0, 4, 8])
STD, BIAS = 3.0, 5.0
NAMES = ("loss", "hessian_eigenvalues", "residual_eigenvalues")


def made_up(growth=1.0, epsilon=1e-16, widths=WIDTHS):
    """o_N = 10 + STD g N^{-1/2} + BIAS/N with g ~ N(0, 1), the fluctuation times ``growth`` per measured step."""
    rng = np.random.default_rng(0)

    def trajectories(width, part):
        result = []
        for g in rngs[width]:
            first = STD * g * width**-0.5 * growth ** np.arange(3)
            scalar = {"deviation": first + BIAS / width, "first_order": first}.get(part, 10 + first + BIAS / width)
            pair = np.stack([scalar, 0.5 * scalar], axis=1)
            result.append(Trajectory(STEPS, dict(zip(NAMES, (scalar, pair, pair), strict=True))))
        return result

    rngs = {width: rng.normal(size=SEEDS) for width in widths}
    dataset = labelled.from_trajectories({w: trajectories(w, "value") for w in widths})
    for part in ("deviation", "first_order"):
        more = labelled.from_trajectories({w: trajectories(w, part) for w in widths})
        dataset = dataset.merge(more.rename({name: f"{name}_{part}" for name in NAMES}))
    return dataset.assign_attrs(epsilon=epsilon)


def prediction():
    one = {"loss": np.ones(3), "hessian_eigenvalues": np.ones((3, 2)) * [1, 0.5], "residual_eigenvalues": np.ones((3, 2))}
    zero = {name: 0 * values for name, values in one.items()}
    laws = {n: Law(STD * one[n], -BIAS * one[n], zero[n], zero[n], zero[n], zero[n]) for n in NAMES}
    return Prediction(laws)


def test_components_are_all_numbers_in_registry_order():
    assert [(name, rank) for name, rank, _ in components(made_up())] == [
        ("loss", None), ("sharpness", None), ("hessian_eigenvalues", 1), ("hessian_eigenvalues", 2),
        ("residual_eigenvalues", "upper"), ("residual_eigenvalues", "lower")]  # fmt: skip


@pytest.mark.parametrize("std", [0.0, 1e-300, 1e100, np.nan])
@pytest.mark.parametrize("bias", [0.0, 1e200, np.inf, np.nan])
def test_a_theory_that_diverges_allows_for_what_is_usual(std, bias):
    known = std > 0 and bias <= 1e200 and not (std == 1e-300 and bias == 1e200)
    assert allowance(Law(std, bias, *[0.0] * 4), 64) == (pytest.approx(3 * (bias / std) * (bias / std) / 64) if known else True)


def test_both_laws_are_recovered():
    for rate in measure_rates(made_up(), "theory", prediction(), None):
        scale = 0.5 if rate.rank in (2, "lower") else 1.0
        assert rate.status == "fitted"
        if rate.kind == "fluctuation":
            assert rate.interval[0] <= -0.5 <= rate.interval[1]
            assert rate.prefactor == pytest.approx(STD * scale, rel=0.15)
            assert rate.predicted_exponent == -0.5
        else:  # the control variate leaves the bias alone: exact
            assert rate.exponent == pytest.approx(-1, abs=1e-3)
            assert rate.prefactor == pytest.approx(BIAS * scale, rel=1e-3)
            assert rate.fitted_prefactor == pytest.approx(BIAS * scale, rel=1e-2)
            assert (rate.predicted_exponent, rate.predicted_prefactor > 0) == (-1.0, True)


def test_a_shift_changes_the_predicted_exponent():
    laws = prediction().laws
    shifted = {name: law._replace(shift=np.ones_like(law.std)) for name, law in laws.items()}
    found = measure_rates(made_up(), "theory", Prediction(shifted), None)
    assert {r.predicted_exponent for r in found} == {-0.5}


@pytest.mark.parametrize(("distance", "known"), [(1.1, True), (0.9, False), (0.0, True)])
def test_no_bias_is_predicted_of_eigenvalues_that_it_would_carry_past_the_next(distance, known):
    """Those that are one in the limit have a law of their own."""
    limit = 10 + np.array([distance * BIAS / WIDTHS[0], 0.0]) * np.ones((3, 1))
    dataset = made_up()
    limits = xr.DataArray(limit, dims=("step", "rank"), coords={"step": dataset.step, "rank": [1, 2]})
    found = measure_rates(dataset.assign(hessian_eigenvalues_limit=limits), "theory", prediction(), None)
    for rate in found:
        biased = rate.kind == "bias" and (rate.observable == "sharpness" or rate.rank == 1)
        assert (rate.predicted_prefactor is None) == (biased and not known)


def test_intervals_of_fluctuations_allow_for_the_bias_that_theory_knows():
    """As large as the fluctuation at the narrowest width: it steepens the line, so the interval reaches further up."""
    large = {name: law._replace(bias=np.sqrt(WIDTHS[0]) * law.std) for name, law in prediction().laws.items()}
    usual, wide = (measure_rates(made_up(), "theory", known, None) for known in (prediction(), Prediction(large)))
    for small, more in zip(usual, wide, strict=True):
        assert (more.interval[1] > small.interval[1] + 0.05) == (more.kind == "fluctuation")


def test_largest_width_is_too_flat():
    """Against the largest of independent networks the error is A√(1/N + 1/M): the fit does not see −1/2."""
    theory = [r for r in measure_rates(made_up(), "theory", None, None) if r.kind == "fluctuation"]
    largest = [r for r in measure_rates(made_up(), "largest-width", None, None) if r.kind == "fluctuation"]
    assert all(wide.exponent > exact.exponent + 0.05 for wide, exact in zip(largest, theory, strict=True))
    assert {r.predicted_prefactor for r in largest} == {None}
    N, M = np.array(WIDTHS[:-1], float), WIDTHS[-1]
    expected = np.polyfit(np.log(N), np.log(np.sqrt(1 / N + 1 / M)), 1)[0]
    assert largest[0].exponent == pytest.approx(expected, abs=0.12)


def test_past_the_edge_nothing_is_fitted():
    found = measure_rates(made_up(), "theory", None, 4)
    assert {r.status for r in found if r.step == 8} == {"past the edge of stability"}
    assert {r.status for r in found if r.step <= 4} == {"fitted"}


def test_rounding_sets_the_floor():
    """In a precision that cannot resolve the gaps there is no exponent."""
    assert {r.status for r in measure_rates(made_up(epsilon=1e-2), "theory", None, None)} == {"below noise floor"}
    dataset = made_up()
    dataset["loss_error"] = 0 * dataset["loss"] + 100.0
    assert noise_floor(dataset, "loss", {}).values.min() >= 100
    assert {r.status for r in measure_rates(dataset, "theory", None, None) if r.observable == "loss"} == {"below noise floor"}


def test_what_has_not_converged_is_not_taken_for_exact():
    """An eigenvalue whose error is unknown (infinite) at three of five widths leaves too few to fit."""
    dataset = made_up()
    dataset["loss_error"] = 0 * dataset["loss"] + np.where(dataset.width < 300, np.inf, 0.0)[:, None, None]
    assert {r.status for r in measure_rates(dataset, "theory", None, None) if r.observable == "loss"} == {"below noise floor"}


@pytest.mark.parametrize(("growth", "verdict"), [(1.0, "super consistent"), (3.0, "accumulates")])
def test_growth_is_what_was_put_in(growth, verdict):
    for grown in measure_growth(made_up(growth), "theory", prediction(), None):
        assert grown.verdict == verdict
        assert grown.predicted_ratio == [1.0, 1.0, 1.0]
        if growth > 1:  # the bias does not grow: a little less than 3² = 9
            assert 6 < grown.largest <= 9
            assert grown.interval[0] < grown.largest * 1.0001


def test_growth_starts_where_there_is_a_limit():
    """Of the first eigenvalue from step 4 on; of the second, which has none anywhere, and of the others as ever."""
    dataset = made_up(3.0)
    errors = xr.DataArray([[np.inf, np.inf], [0.0, np.inf], [0.0, np.inf]], dims=("step", "rank"),
                          coords={"step": dataset.step, "rank": [1, 2]})  # fmt: skip
    dataset = dataset.assign(hessian_eigenvalues_error_limit=errors)
    assert without_limit(dataset, "sharpness", {"rank": 1}).tolist() == [True, False, False]
    assert not without_limit(dataset, "loss", {}).any()
    found = {(grown.observable, grown.rank): grown for grown in measure_growth(dataset, "theory", None, None)}
    for what, grown in found.items():
        later = what in [("sharpness", None), ("hessian_eigenvalues", 1)]
        assert grown.steps == ([4, 8] if later else [0, 4, 8])
    assert found["sharpness", None].largest == pytest.approx(3, rel=0.1)


def test_what_has_no_limit_says_why():
    """At some steps, as the stored error says, or at none, as the limit does; a line for each quantity that is shown."""
    dataset = made_up()
    assert without_a_limit(dataset, {}) == []
    never = {"hessian_eigenvalues": "it is in the bulk", "residual_eigenvalues": "not shown"}
    assert without_a_limit(dataset, never) == ["sharpness has no limit: it is in the bulk"]
    errors = xr.DataArray([np.inf, 0.0, np.inf], dims="step", coords={"step": dataset.step})
    assert without_a_limit(dataset.assign(loss_error_limit=errors), {}) == [f"loss has no limit at step 0, 8: {IN_BULK}"]


def test_one_step_shows_no_growth():
    for grown in measure_growth(made_up().isel(step=[0]), "theory", None, None):
        assert grown.verdict == NO_STEPS
        assert np.isnan(grown.largest)


def test_growth_stops_at_the_edge():
    assert measure_growth(made_up(3.0), "theory", None, 4)[0].steps == [0, 4]


@pytest.mark.parametrize(
    ("first", "unstable_after", "said"),
    [(0, None, "diverged"), (1, None, "diverged"), (3, 0, "past the edge of stability"), (3, -1, "past the edge of stability")],
)
def test_without_a_step_after_the_start_there_is_no_growth_to_judge(first, unstable_after, said):
    """``first``: the step before which networks diverge."""
    dataset = made_up()
    dataset = dataset.where(dataset.step < STEPS[first] if first < 3 else True)
    grown = measure_growth(dataset.assign_attrs(epsilon=1e-16), "theory", prediction(), unstable_after)
    assert {growth.verdict for growth in grown} == {said}


def test_the_bias_of_a_mean_needs_its_control_variate():
    """Without it forty seeds see mostly the fluctuation's own error."""
    dataset = made_up().drop_vars([f"{name}_first_order" for name in NAMES])
    raw = deviations(dataset, "loss", {}, "theory", "bias").mean("seed").isel(step=0)
    clean = deviations(made_up(), "loss", {}, "theory", "bias").mean("seed").isel(step=0)
    np.testing.assert_allclose(clean * clean.width, BIAS)
    assert abs(raw * raw.width - BIAS).max() > 1


def test_what_was_recorded_is_read_back(tmp_path):
    """Fitted ones and refused ones, through JSON."""
    found = measure_rates(made_up(), "theory", None, 4)
    files.write_json([rate.record() for rate in found], tmp_path / "rates.json")
    again = [rates.Rate.from_record(one) for one in files.read_json(tmp_path / "rates.json")]
    np.testing.assert_equal([rate.record() for rate in again], [rate.record() for rate in found])
    assert any(np.isnan(rate.exponent) for rate in again)


@pytest.mark.slow
def test_exponents_of_the_main_job_s_own_networks_are_covered():
    """A small run of tests/benchmarks/coverage.py: its networks are ``linear2.solve``'s; of 8 sets a step, few miss −1/2."""
    problem, width = prepare(SETTING).problem, NETWORK_WIDTHS[0]
    basis = block_diag(coordinates(problem).basis, np.eye(problem.num_outputs))
    gram = basis @ wishart.rvs(width, np.eye(len(basis)), random_state=np.random.default_rng(width)) @ basis.T / width
    network, found = linear2.solve(problem, width=width, gram=gram), exact(problem, width, 1)
    for name, values in found.items():
        np.testing.assert_allclose(values[0], network[name].reshape(len(problem.steps), -1)[:, 0], rtol=1e-9)
    rows = np.array([network_row(task) for task in network_tasks(8, 0) if task[0] == "loss"])
    assert rows[:, 1].mean() > 0.9
    assert rows[:, 4].max() < 0.6
