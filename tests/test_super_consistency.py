"""Super consistency: its definition on the numbers, agreement and growth against brute force, and how often they are right."""

import numpy as np
import pytest
from benchmarks.coverage import CURVES, growing, growth_rows
from scipy.stats import ttest_ind

from comparisons.statistics.super_consistency import (
    APART,
    FLAT,
    GROWN,
    Agreement,
    _log_growth,
    agreement,
    growth_ratio,
    largest_growth,
    verdict,
)

SIZES = np.array([16, 64, 256])


def late(at_most=1.2, interval=(-0.05, 0.05)):
    return Agreement(sizes=[8, 16], values=[1.0, 1.0], at_most=at_most, interval=interval)


# the definition


@pytest.mark.parametrize(
    ("agrees", "grown", "said"),
    [
        (late(), None, "super consistent"),
        (late(), (0.5, GROWN), "super consistent"),
        (late(APART + 0.1), None, "undecided"),
        (late(interval=(-0.1, FLAT + 0.01)), None, "undecided"),
        (late(interval=(0.01, FLAT + 0.01)), None, "grows"),
        (late(interval=(-FLAT - 0.01, -0.01)), (0.5, 1.0), "falls"),
        (late(), (GROWN - 0.1, GROWN + 0.1), "undecided"),
        (late(), (GROWN + 0.1, 9.0), "accumulates"),
        (late(), (np.inf, np.inf), "accumulates"),
        (late(), (np.nan, np.nan), "too few seeds"),
        (late(interval=(0.2, 0.3)), (np.nan, np.nan), "grows"),
        (Agreement(sizes=[8, 16], values=[np.nan, 1.0], diverged=True), (GROWN + 0.1, 9.0), "diverged"),
    ],
)
def test_both_halves_of_the_definition(agrees, grown, said):
    assert verdict(agrees, grown) == said


@pytest.mark.parametrize("value", [0.0, 4.0, -1e-30])
def test_what_is_exactly_the_same_at_all_sizes_is_super_consistent(value):
    found = agreement(SIZES, np.full((3, 2), value))
    assert (found.ratio, found.exponent, found.interval) == (1, 0, (0, 0))
    assert verdict(found) == "super consistent"
    assert verdict(agreement(SIZES, np.full((3, 1), value))) == "super consistent"


@pytest.mark.parametrize("values", [[[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], [[-1.0, -2.0], [1.0, 2.0], [1.0, 2.0]]])
def test_zero_and_something_have_no_ratio(values):
    assert verdict(agreement(SIZES, np.array(values))) == "undecided"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("unit", [1e-300, -1e300])
def test_agreement_has_no_units(unit):
    values = np.random.default_rng(0).uniform(1, 1.02, (3, 4))
    assert agreement(SIZES, unit * values).at_most == pytest.approx(agreement(SIZES, values).at_most)


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_size_agrees_with_nothing(seeds):
    assert verdict(agreement(SIZES[:1], np.full((1, seeds), 4.0))) == "undecided"


def test_one_network_of_each_size_shows_no_agreement():
    assert verdict(agreement(SIZES, np.array([[4.04], [4.38], [4.34]]))) == "undecided"


# agreement


def test_of_two_sizes_the_largest_ratio_has_the_interval_of_a_t_test():
    logs = np.random.default_rng(0).normal(size=(2, 6))
    found, test = agreement(SIZES[:2], np.exp(logs)), ttest_ind(*logs)
    reach = np.diff(test.confidence_interval(0.95))[0] / 2
    np.testing.assert_allclose(found.at_most / found.ratio, np.exp(reach))


def test_unequal_sizes_are_rarely_called_the_same():
    """Late values 1, 1 and APART: the ratio is that high; four networks each, 300 times."""
    rng = np.random.default_rng(0)
    logs = np.log([1, 1, APART])[:, None] + 0.05 * rng.normal(size=(300, 3, 4))
    assert np.mean([agreement(SIZES, one).at_most <= APART for one in np.exp(logs)]) <= 0.05
    same = 0.05 * rng.normal(size=(300, 3, 4))
    assert np.mean([verdict(agreement(SIZES, one)) == "super consistent" for one in np.exp(same)]) > 0.9


@pytest.mark.parametrize("seeds", [2, 4, 16])
def test_a_scatter_that_falls_with_the_width_is_no_exponent(seeds):
    """Six sizes with nothing but a scatter ∝ N^-1/2 or N^-1: one scatter for all says of a seventh that they grow or fall."""
    rng, sizes = np.random.default_rng(0), 2 ** np.arange(4, 10)
    for power in (-0.5, -1.0):
        logs = 0.3 * (sizes / 16)[:, None] ** power * rng.normal(size=(600, 6, seeds))
        said = [verdict(agreement(sizes, one)) for one in np.exp(logs)]
        assert np.mean([one in ("grows", "falls") for one in said]) <= 0.065


# growth


def test_growth_from_nothing_is_infinite():
    errors = np.ones((3, 5, 4))
    errors[..., 0] = 0
    assert growth_ratio(errors)[1:].tolist() == [np.inf] * 3
    assert largest_growth(errors) == (np.inf, (np.inf, np.inf))
    assert largest_growth(np.zeros((3, 5, 4))) == (1, (1, 1))


def test_growth_has_no_units_and_no_part_of_a_width_that_never_deviates():
    errors = np.random.default_rng(0).normal(size=(3, 8, 4))
    silent = np.concatenate([errors, np.zeros((1, 8, 4))])
    for other in (1e-200 * errors, 1e200 * errors, silent):
        np.testing.assert_allclose(growth_ratio(other), growth_ratio(errors))
        np.testing.assert_allclose(np.hstack(largest_growth(other)), np.hstack(largest_growth(errors)))


def test_growth_without_scatter_is_exact():
    errors = np.ones((3, 5, 1)) * np.array([1, 0.5, 3, 0])
    assert largest_growth(errors) == (pytest.approx(3), pytest.approx((3, 3)))


def test_standard_errors_of_the_growth_are_the_jackknife_s():
    """Of many seeds; and its derivative with the weight of each seed is that of central differences."""
    squares = growing(np.random.default_rng(0), "Gaussian", 0.5, CURVES["to 4"], 1, 400)[0] ** 2
    log_g, (error,) = _log_growth(squares, np.ones((1, 400)))
    np.testing.assert_allclose(np.exp(log_g[0]), growth_ratio(np.sqrt(squares))[1:])
    without = np.array([np.log(growth_ratio(np.sqrt(np.delete(squares, seed, axis=1)))[1:]) for seed in range(400)])
    jackknife = np.sqrt(399 / 400 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(error, jackknife, rtol=0.02)


def test_with_few_seeds_there_is_no_interval():
    errors = growing(np.random.default_rng(0), "Gaussian", 0.0, CURVES["flat"], 1, 4)[0]
    assert np.isnan(largest_growth(errors)[1]).all()


def test_intervals_of_the_largest_growth_cover():
    """A small run of tests/benchmarks/coverage.py: 8 kinds of seeds, 42 data sets each."""
    rows = np.array([shares for _, _, _, *shares in growth_rows(42, counts=(8,))])
    covered, covered_there, accumulates, consistent, undecided, few = rows.mean(axis=0)
    assert covered > 0.93
    assert 0.88 < covered_there < 0.99
    assert max(accumulates, consistent) < 0.05
    assert few == 0
    assert undecided < 0.9
