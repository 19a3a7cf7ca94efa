"""Learning-rate transfer: the optimum and its interval, the numbers against gradient descent, the whole command."""

import json
from dataclasses import asdict, replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from benchmarks.verdicts import transfer as judged
from scipy.special import logsumexp

import comparisons
import finite.training.train
from comparisons import cells, files
from comparisons import optima as transfer_plots
from comparisons.pairs import Limit
from comparisons.statistics.minimum import (
    FEW_RATES,
    FEW_SEEDS,
    OFF_GRID,
    Shift,
    _quantiles,
    analyse,
    bracket,
    minimum,
    neighbourhood,
    rounding,
    verdict,
)
from comparisons.statistics.translation import translation
from comparisons.transfer.networks import Cell
from comparisons.transfer.study import Options, main, prepare
from finite.networks.build import build
from limits.losses import LOSSES
from limits.two_layer import linear as linear2

SMALL = ["--widths", "8", "16", "--seeds", "3", "--steps", "4", "--samples", "8", "--inputs", "3",
         "--learning-rates", "0.3", "1", "2", "1000", "--richness", "1"]  # fmt: skip
RATES = np.geomspace(0.1, 10, 15)


def prepared(folder, **options):
    sizes = {"widths": (8, 16), "seeds": 3, "steps": 4, "samples": 8, "inputs": 3, "learning_rates": (0.3, 1.0, 2.0)}
    return prepare(Options(**{**sizes, **options, "out": folder}))


def final_losses(there, param, width) -> xr.DataArray:
    """(seed, learning_rate) of one size, trained."""
    store, rates = cells.Store(there.options.out, "test"), list(there.work.rates)
    one_size = [cell for cell in there.cells if (cell.param, cell.width) == (param, width)]
    cells.Run(store.folder, there.work, store, cells.Engine(), "test").ensure(one_size)
    losses = [[store.read(Cell(param, width, 1, rate, seed))["loss"][-1] for rate in rates] for seed in there.seeds]
    return xr.DataArray(losses, {"seed": list(there.seeds), "learning_rate": rates}, ("seed", "learning_rate"))


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


def test_the_minimum_of_a_polynomial_is_exact():
    """Of degree four, its minimum at 0.3: whatever factor a seed has at all learning rates, and without any error."""
    x = np.linspace(-1, 1.5, 9)
    loss = np.exp((x - 0.3) ** 2 - 0.5 * (x - 0.3) ** 3 + 0.4 * (x - 0.3) ** 4)
    found = minimum(x, np.array([[1.0], [3.0], [0.2]]) * loss)
    np.testing.assert_allclose([found.place, found.scatter, found.error], [0.3, 0, 0], atol=1e-7)


def test_the_minimum_of_a_parabola_is_exact_though_higher_powers_are_rounding():
    x = np.log(2) * np.arange(-2.0, 3)
    found = minimum(x, np.exp(0.3 * (x - 0.18) ** 2) * np.array([[1.0], [3.0], [0.2]]))
    np.testing.assert_allclose([found.place, found.doubt], [0.18, 0], atol=1e-7)


@pytest.mark.parametrize("points", [4, 5, 9])
def test_the_error_of_a_minimum_is_the_jackknife_s(points):
    """Of many seeds, whose mean is the polynomial itself: there is nothing that they do not explain."""
    x, rng = np.linspace(-1, 1.5, points), np.random.default_rng(2)
    losses = np.exp(0.1 * rng.standard_normal((300, points)) + 0.3 * rng.standard_normal((300, 1)))
    losses *= np.exp((x - 0.3) ** 2) / losses.mean(axis=0)
    without = np.array([minimum(x, np.delete(losses, seed, axis=0)).place for seed in range(300)])
    jackknife = np.sqrt(299 / 300 * np.sum((without - without.mean()) ** 2))
    np.testing.assert_allclose(minimum(x, losses).scatter, jackknife, rtol=0.03)


def test_a_polynomial_is_not_the_truth():
    """A kink at 0.2, exactly known at nine points: the error says how far off the polynomial is."""
    x = np.linspace(-1, 1, 9)
    found = minimum(x, np.exp(np.abs(x - 0.2)) * np.ones((5, 1)))
    assert found.scatter < 1e-12
    assert 0.01 < abs(found.place - 0.2) < 2 * found.error < 0.2


def test_losses_over_decades_that_do_not_move_transfer():
    """Steeper than any polynomial, at all widths alike: its doubt is common to them, and the best rate is one of low loss."""
    widths, rates = [32, 64, 128], np.array([0.35, 0.5, 0.75, 1.1, 1.6, 2.4])
    curve = np.where(rates > 0.75, 45, 10) * np.abs(np.log(rates / 0.75))
    noise = 0.03 * np.random.default_rng(0).standard_normal((1, 3, 4, 6))
    optima, (shift,) = analyse(xr.Dataset(
        {"final_loss": (("param", "width", "seed", "learning_rate"), np.exp(curve + noise)),
         "initial_loss": (("param", "width", "seed"), np.full((1, 3, 4), 1e8))},
        {"param": ["mup"], "width": widths, "learning_rate": rates}, {"precision": "float64"}))  # fmt: skip
    assert shift.verdict == "transfers"
    assert all(o.final_loss < 1.2 and o.interval[0] < 0.75 < o.interval[1] for o in optima)


def test_there_is_no_minimum_of_a_slope_of_noise_or_of_three_points():
    x, rng = np.linspace(-1, 1, 9), np.random.default_rng(0)
    noise = np.exp(0.1 * rng.standard_normal((200, 8, 9)))
    assert minimum(x, np.exp(x) * np.ones((5, 1))) is None
    assert np.mean([minimum(x, losses) is None for losses in noise]) > 0.9
    assert minimum(x[:3], np.exp(x[:3] ** 2) * np.ones((5, 1))) is None


def test_the_neighbourhood_of_the_lowest_loss():
    """Up to e^½ times the lowest, two on either side, and nothing beyond what diverged."""
    loss = np.array([9, 1.4, 1.2, 1.0, 1.5, 1.6, 1.7, 1.2])
    assert neighbourhood(loss, np.isfinite(loss)) == slice(1, 6)
    assert neighbourhood(loss[2:6], np.ones(4, bool)) == slice(0, 4)
    assert neighbourhood(np.array([9, 5, 1, 5, 9.0]), np.array([True, True, True, False, True])) == slice(0, 3)


# how curves are shifted

X, WHERE = np.linspace(-2, 2, 9), np.array([-0.2, 0.05, 0.15])


def shifted(noise=0.0, seeds=5, also=0.0):
    """(3, S, 9) losses: curves of degree 3, which bend and lean, each its own way, about minima at ``WHERE``."""
    u = X - WHERE[:, None]
    mean = np.array([[0.3], [0.0], [1.0]]) + np.array([[0.5], [0.4], [0.6]]) * u**2 + np.array([[0.02], [-0.03], [0.0]]) * u**3
    rng = np.random.default_rng(0)
    own, common = (noise * rng.standard_normal((3, seeds, points)) for points in (9, 1))
    return np.exp((mean + also)[:, None] + own + 3 * common)


def test_shifts_of_polynomials_are_exact():
    found = translation(X, shifted(1e-7))
    np.testing.assert_allclose(np.diff(found.shifts), np.diff(WHERE), atol=1e-5)
    np.testing.assert_allclose(np.diff(found.doubts), 0, atol=1e-3)


def test_what_a_power_more_would_change_is_a_doubt():
    """One size's curve has a power that the fit has not: with it the shift is the true one, and the interval reaches there."""
    contrast, fourth = np.array([-0.5, -0.5, 1.0]), np.array([[0.0], [0.0], [0.006]]) * (X - WHERE[:, None]) ** 4
    found = translation(X, shifted(0.04, seeds=8, also=fourth))
    off, doubt = found.shifts @ contrast - contrast @ WHERE, found.doubts[1] @ contrast
    assert abs(off - doubt) < 0.1 * abs(off)
    alone = replace(found, doubts=found.doubts * [[0], [1], [0]])
    certain, without = replace(alone, of_doubts=0 * found.of_doubts), replace(alone, doubts=0 * found.doubts)
    (low, high), (low_certain, high_certain) = without.slope(contrast)[1], certain.slope(contrast)[1]
    assert min(low_certain - low, high_certain - high, key=abs) == 0
    assert low_certain - low + high_certain - high == pytest.approx(-doubt)
    part = np.sum(alone.slope(contrast)[1]) - low - high
    chance = 8 * np.einsum("z,zws->ws", contrast, found.of_doubts[1]).var(axis=1, ddof=1).sum()
    assert part == pytest.approx(-doubt * max(1 - chance / doubt**2, 0))


def test_a_curve_that_leans_otherwise_is_a_doubt():
    """As |u|^2½, less than u³ far out: its shift is pulled along, and the interval reaches to the truth all the same."""
    contrast, u = np.array([-1.0, 0.0, 1.0]), X - WHERE[:, None]
    found = translation(X, shifted(0.05, seeds=8, also=0.08 * np.array([[-1.0], [0.0], [1.0]]) * u * np.abs(u) ** 1.5))
    assert found.slope(contrast)[1][0] < contrast @ WHERE < found.slope(contrast)[1][1]
    assert replace(found, doubts=0 * found.doubts).slope(contrast)[1][1] < contrast @ WHERE


def test_the_error_of_a_shift_is_the_jackknife_s():
    """Of many seeds, each in turn replaced by the mean of its size's others; but for the weights, which are theirs too."""
    losses, contrast = shifted(0.02, 100), np.array([-1.0, 0.0, 1.0])
    whole, found, expected = translation(X, losses), [], []
    for size, seed in product(range(3), range(0, 100, 10)):
        without = losses.copy()
        without[size, seed] = np.delete(losses[size], seed, axis=0).mean(axis=0)
        found.append(contrast @ (translation(X, without).shifts - whole.shifts))
        expected.append(-contrast @ whole.of_seeds[:, size, seed] * 100 / 99)
    assert np.polyfit(expected, found, 1)[0] == pytest.approx(1, abs=0.03)
    assert np.corrcoef(expected, found)[0, 1] > 0.995


def test_curves_that_differ_otherwise_have_no_common_shift():
    bump = np.exp(-8 * (X - 0.8) ** 2) * np.array([[0.0], [0.0], [0.1]])
    assert translation(X, shifted(0.01, also=bump)) is None
    assert translation(X, shifted(0.01)) is not None
    assert translation(X[:2], shifted(0.01)[..., :2]) is None


def test_intervals_of_a_shift_cover():
    rng, contrast = np.random.default_rng(3), np.array([-1.0, 0.0, 1.0])
    sets = [shifted(0.0, 4) * np.exp(0.03 * rng.standard_normal((3, 4, 9))) for _ in range(100)]
    found = [one.slope(contrast)[1] for one in (translation(X, losses) for losses in sets) if one]
    assert len(found) > 90
    assert np.mean([low <= contrast @ WHERE <= high for low, high in found]) > 0.88
    assert np.median(np.diff(found)) < 0.2


def test_verdicts_on_sweeps_are_right():
    """A small run of tests/benchmarks/verdicts.py: four widths, 8 seeds, 3 % noise."""
    found = judged(15, grids=["of the command"], curves=["steep on the right"])
    for _, _, way, transfers, does_not, *_, exponent, optimum in found:
        assert transfers >= 0.8 if way == "stays" else transfers == 0
        assert does_not == 1 if way == "moves" else does_not < 0.4
        assert min(exponent, optimum) > 0.85


def test_curves_that_lean_and_flat_ones_on_few_rates_are_judged_all_the_same():
    """A small run of the benchmark, where verdicts were false or too rare: of 20 sweeps of each."""
    found = list(judged(20, grids=["factors of two"], curves=["flat parabola", "leans over"]))
    assert all(transfers <= 0.05 for _, _, way, transfers, *_ in found if way != "stays")
    assert min(transfers for _, _, way, transfers, *_ in found if way == "stays") > 0.65
    assert all(does_not == (way == "moves") for _, curve, way, _, does_not, *_ in found if curve == "leans over")
    assert np.mean([exponent for _, curve, *_, exponent, _ in found if curve == "leans over"]) > 0.85


def test_losses_that_are_rounding_are_not_told_apart():
    loss = np.array([0.1, 1e-13, 1e-15, 0.2])
    best, low, high = bracket(np.array([1.0, 2.0, 4.0, 8.0]), loss, 1.0, floor=1e-12)
    assert (low, high) == (1.0, 8.0)
    assert best == pytest.approx(np.sqrt(8))


def test_the_rounding_of_cross_entropy():
    """Of well-trained classifiers, at several outputs of the size that this takes: below the floor, not far below."""
    rng, worst, y = np.random.default_rng(0), 0.0, np.eye(10)[np.arange(64) % 10]
    for margin in (12, 15, 18):
        f = np.float32(rng.normal(size=(64, 10)) + margin * y)
        exact = np.mean(logsumexp(np.float64(f), axis=1) - np.sum(y * f, axis=1))
        worst = max(worst, abs(float(LOSSES["cross_entropy"].mean(jnp.asarray(f), jnp.float32(y))) - exact))
    floor = rounding(np.log(10), "float32", "cross_entropy")
    assert floor / 100 < worst < floor


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
    _, (shift,) = analyse(synthetic(exponent, noise=0.03))
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


def test_widths_and_depths_have_an_exponent_each():
    """Optima at 0.5 N^0.3 L^(-0.5)."""
    widths, depths = np.array([32, 64, 128]), np.array([1, 2, 4])
    optimum = 0.5 * widths[:, None] ** 0.3 * depths ** -0.5
    noise = 0.02 * np.random.default_rng(0).standard_normal((3, 3, 8, len(RATES)))
    log_loss = np.log(RATES / optimum[..., None, None]) ** 2 + noise - 5
    dataset = xr.Dataset(
        {"final_loss": (("param", "width", "depth", "seed", "learning_rate"), np.exp(log_loss)[None]),
         "initial_loss": (("param", "width", "depth", "seed"), np.full((1, 3, 3, 8), 1e3))},
        {"param": ["mup"], "width": widths, "depth": depths, "learning_rate": RATES}, {"precision": "float64"},
    )  # fmt: skip
    _, shifts = analyse(dataset)
    assert [shift.size for shift in shifts] == ["width", "depth"]
    np.testing.assert_allclose([shift.exponent for shift in shifts], [0.3, -0.5], atol=0.02)
    assert [shift.verdict for shift in shifts] == ["does not transfer", "does not transfer"]


@pytest.mark.parametrize(("off", "known"), [(1, True), (100, False)])
def test_one_draw_of_a_thousand_off_the_grid_undoes_no_interval(off, known):
    """Of three seeds Student's t has such a tail; of an optimum that may be off the grid, more of them are."""
    draws = np.random.default_rng(0).normal(size=(3, 1000))
    slopes, tail = np.array([-0.5, 0.0, 0.5]), 0.025
    whole = np.quantile(slopes @ draws, [tail, 1 - tail])
    draws[0, :off] = -np.inf
    found = _quantiles(slopes, draws, tail)
    assert np.isfinite(found).all() == known
    assert not known or np.allclose(found, whole, rtol=0.05)


def test_an_optimum_off_the_grid_is_no_exponent():
    optima, (shift,) = analyse(synthetic(-0.8))
    assert optima[-1].interval[0] == 0
    assert np.isnan(shift.exponent)
    assert shift.verdict == f"undecided: {OFF_GRID}"


def shallow():
    """Three seeds, a valley in the middle: Student's t reaches beyond any grid."""
    sweep = synthetic(0.0, noise=1.0, seeds=3)
    return sweep.assign(final_loss=sweep["final_loss"] ** 0.2)


def with_one_width_off():
    return synthetic(0.0).where(lambda sweep: sweep.width != 128, synthetic(-0.8))


def at_the_floor_to_the_end():
    """Where losses are as low as one another, though the last is not the lowest of them."""
    sweep = synthetic(0.0)
    below = 1e-32 * (1 + np.log(sweep.learning_rate / 2) ** 2)
    return sweep.assign(final_loss=sweep["final_loss"].where(sweep.learning_rate < 0.5, below))


@pytest.mark.parametrize(("sweep", "why"), [
    (shallow, FEW_SEEDS), (lambda: synthetic(0.8), OFF_GRID), (with_one_width_off, OFF_GRID),
    (at_the_floor_to_the_end, OFF_GRID), (lambda: synthetic(0.0).isel(learning_rate=[2, 5, 8]), FEW_RATES),
], ids=["few seeds", "last rate", "one width", "floor", "few rates"])  # fmt: skip
def test_why_nothing_says_where_an_optimum_is(sweep, why):
    _, (shift,) = analyse(sweep())
    assert shift.verdict == f"undecided: {why}"


def test_a_sweep_in_which_all_diverged_has_no_optimum_and_shows_its_edge():
    swept = synthetic(0.0)
    sharpness = np.broadcast_to([0.5, 1e6, 1e12], (1, 4, 8, 3))
    swept = swept.assign(
        final_loss=swept["final_loss"] * np.nan,
        sharpness=(("param", "width", "seed", "step"), sharpness, {"symbol": "S"}),
        edge_of_stability=(("param", "width"), np.full((1, 4), 0.02), {"symbol": "edge"}),
    ).assign_coords(step=[0, 1, 2])  # fmt: skip
    optima, shifts = analyse(swept)
    figure = transfer_plots.picture(swept, optima, shifts, "a title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["diverged"]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert transfer_plots.OPTIMUM.get_label() not in named
    assert "edge" in named
    low, high = figure.axes[1].get_ylim()
    assert low < 0.02 < 0.5 < high < 1e4
    assert "diverged" in transfer_plots.table(optima, shifts, "a title")


def test_what_is_said_of_width_and_depth_alike_is_said_once():
    shifts = [Shift("mup", size, np.nan, (np.nan, np.nan), "undecided") for size in ("width", "depth")]
    assert transfer_plots.statements("mup", shifts) == ["undecided"]


def test_verdicts():
    intervals = [(-0.05, 0.1), (0.11, 0.3), (-0.3, -0.11), (0.0, 0.2), (-1.0, 1.0)]
    found = [verdict(interval, interval) for interval in intervals]
    assert found == ["transfers", "does not transfer", "does not transfer", "undecided", "undecided"]
    assert verdict((-0.05, 0.11), (-0.04, 0.1)) == "transfers"
    assert verdict((0.09, 0.3), (0.11, 0.28)) == "undecided"


# the numbers


@pytest.mark.parametrize("param", ["mup", "ntp"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "batch_size": 4}], ids=["plain", "momentum, batches"])
def test_a_cell_is_gradient_descent(param, options, tmp_path):
    """Against an explicit loop at float64, for every learning rate and seed."""
    whole = prepared(tmp_path, precision="float64", richness=2.0, **options)
    problem = whole.work.problem(param, 1)
    network, gamma = build(problem, 8), 2 * {"mup": np.sqrt(8), "ntp": 1}[param]
    there = final_losses(whole, param, 8)
    with jax.enable_x64(True):
        inputs, targets = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)

        def loss(weights, x, y):
            return 0.5 * ((network.apply(weights, x) - y) ** 2).sum() / len(x)

        slope = jax.jit(jax.grad(loss))
        for seed, key in enumerate(whole.work.keys(8, 1, range(3))):
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


def test_all_learning_rates_and_seeds_are_one_program(tmp_path):
    before = finite.training.train._advance._cache_size()
    final_losses(prepared(tmp_path, widths=(11, 13), learning_rates=tuple(np.geomspace(0.1, 1, 7))), "mup", 11)
    assert finite.training.train._advance._cache_size() == before + 1


def test_wide_mup_networks_follow_the_limit(tmp_path):
    there = prepared(tmp_path, widths=(8, 512), seeds=8, richness=1.0, learning_rates=(0.1, 0.3, 0.6))
    expected = there.work.limit(Limit("mup", 1))["final_loss_limit"]
    narrow, wide = (abs(final_losses(there, "mup", width).mean("seed").values / expected - 1).max() for width in (8, 512))
    assert wide < 0.05 < narrow


def test_wide_ntp_networks_scatter_about_the_limit(tmp_path):
    """Whose loss is random in f(0): the seeds' mean lies within 4 standard errors, and f(0) = 0 does not."""
    there = prepared(tmp_path, widths=(8, 512), seeds=32, richness=0.5, learning_rates=(0.01, 0.03, 0.1))
    losses = final_losses(there, "ntp", 512)
    error = (losses.std("seed", ddof=1) / np.sqrt(32)).values
    distance = np.abs(losses.mean("seed").values - there.work.limit(Limit("ntp", 1))["final_loss_limit"])
    assert (distance < 4 * error).all()
    without = linear2.solve(there.work.problem("ntp", 1, 0.01))["loss"][-1]
    assert float(losses[:, 0].mean()) - without > 4 * error[0]


# the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "small"
    main([*SMALL, "--out", str(folder)])
    return folder


def numbers(folder) -> xr.Dataset:
    return files.read(folder / "transfer.nc")


def test_files(finished):
    for name in ("config.json", "transfer.nc", "transfer.json", "transfer.png", "transfer.pdf"):
        assert (finished / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.partial"))


def test_the_dataset_is_labelled(finished):
    dataset = numbers(finished)
    assert dict(dataset["final_loss"].sizes) == {"param": 2, "width": 2, "seed": 3, "learning_rate": 4}
    assert dataset["final_loss_limit"].dims == ("param", "learning_rate")
    assert dataset["sharpness"].dims == ("param", "width", "seed", "step")
    assert np.isfinite(dataset["sharpness"].sel(seed=[0, 1])).all()
    assert np.isnan(dataset["sharpness"].sel(seed=2)).all()
    assert dataset["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert (dataset["loss"].sel(step=4) == dataset["final_loss"]).where(np.isfinite(dataset["final_loss"])).all()
    assert dataset.attrs["numpy"] == np.__version__
    assert json.loads(dataset.attrs["configuration"])["widths"] == [8, 16]


def test_a_divergence_is_data(finished):
    """η0 = 1000 diverges in μP; it is in the file, and the optimum does not see it."""
    diverged = numbers(finished)["final_loss"].sel(param="mup", learning_rate=1000)
    initial = numbers(finished)["initial_loss"].sel(param="mup")
    assert not (diverged < initial).any()
    found = files.read_json(finished / "transfer.json")
    assert all(0.1 < o["best_learning_rate"] < 1000 for o in found["optima"])


def test_transfer_json(finished):
    found = files.read_json(finished / "transfer.json")
    assert [(o["parametrization"], o["width"]) for o in found["optima"]] == [
        (param, width) for param in ("mup", "ntp") for width in (8, 16, None)]  # fmt: skip
    assert set(found["optima"][0]) == {
        "parametrization", "width", "depth", "best_learning_rate", "interval", "final_loss"}  # fmt: skip
    assert [s["parametrization"] for s in found["shifts"]] == ["mup", "ntp"]
    assert {"size", "exponent", "interval", "verdict"} <= set(found["shifts"][0])


def test_the_same_losses_in_a_table_give_the_same(finished, tmp_path):
    """To rounding, of networks and of a smooth sweep; a limit, and a depth, no table has."""
    for swept in (numbers(finished)[["final_loss", "initial_loss"]].drop_vars("depth"), synthetic(0.2)):
        table = swept.to_dataframe().reset_index().rename(columns={"final_loss": "Final loss"})
        (tmp_path / "sweep.csv").write_text(table.to_csv(index=False))
        found, (optima, shifts) = comparisons.optimum(tmp_path / "sweep.csv"), analyse(swept)
        for theirs, ours in zip([*found.optima, *found.shifts], [*optima, *shifts], strict=True):
            of = [{k: v for k, v in asdict(one).items() if isinstance(v, float | tuple)} for one in (theirs, ours)]
            assert {**asdict(theirs), **of[1]} == asdict(ours)  # all that is said in words and integers
            for name, values in of[1].items():
                np.testing.assert_allclose(of[0][name], values, rtol=1e-10)
    reported = {(o["parametrization"], o["width"]): o["best_learning_rate"]
                for o in files.read_json(finished / "transfer.json")["optima"]}  # fmt: skip
    trained = analyse(numbers(finished)[["final_loss", "initial_loss"]])[0]
    assert {(o.parametrization, o.width): o.best_learning_rate for o in trained}.items() <= reported.items()


def test_the_table_says_what_was_trained_and_where_it_is(finished, capsys):
    main([*SMALL, "--out", str(finished)])
    table = capsys.readouterr().out
    assert table.splitlines()[0].startswith("linear2, sgd, gaussian, MSE, P = 8, D = 3")
    assert f"results in {finished}" in table


def test_sharpness_is_that_of_the_network_at_the_optimum(finished):
    """Measured at the learning rate next to the optimum, against the limit, which has its own exact one."""
    dataset, found = numbers(finished), files.read_json(finished / "transfer.json")
    best = {(o["parametrization"], o["width"]): o["best_learning_rate"] for o in found["optima"]}
    for param, width in (("mup", 8), ("mup", 16), ("ntp", 8), ("ntp", 16)):
        one = dataset.sel(param=param, width=width)
        rates = dataset.learning_rate.values
        assert float(one["best_on_grid"]) == rates[np.abs(np.log(rates / best[param, width])).argmin()]
        assert float(one["edge_of_stability"]) == pytest.approx(2 / float(one["best_on_grid"]))
    assert np.isfinite(dataset["sharpness_limit"]).all()
    first = dataset.sel(param="mup", width=16, step=0)
    assert 0.5 < float(first["sharpness"].mean("seed") / first["sharpness_limit"]) < 2


def test_a_parametrization_without_a_limit(tmp_path):
    main([*SMALL, "--model", "mlp", "--param", "sp", "--sharpness-seeds", "0", "--out", str(tmp_path / "mlp")])
    assert "sharpness" not in numbers(tmp_path / "mlp")
    assert "final_loss_limit" not in numbers(tmp_path / "mlp")
    assert len(files.read_json(tmp_path / "mlp" / "transfer.json")["optima"]) == 2


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
    assert [o["width"] for o in files.read_json(tmp_path / "own" / "transfer.json")["optima"]] == [8, 16, None, 8, 16]


ADAM = [*SMALL, "--optimizer", "adam", "--learning-rates", "0.01", "0.03", "0.1"]


def test_adam_has_no_limit(tmp_path):
    main([*ADAM, "--sharpness-seeds", "0", "--out", str(tmp_path / "adam")])
    dataset = numbers(tmp_path / "adam")
    assert "final_loss_limit" not in dataset
    assert (dataset["final_loss"] < dataset["initial_loss"]).all()


@pytest.mark.slow
def test_of_adam_the_preconditioned_sharpness_is_followed(tmp_path):
    main([*ADAM, "--param", "mup", "--out", str(tmp_path)])
    dataset = numbers(tmp_path)
    np.testing.assert_allclose(dataset["edge_of_stability"], 38 / dataset["best_on_grid"])
    assert np.isfinite(dataset["sharpness"].sel(seed=[0, 1]).isel(step=slice(1, None))).all()
    assert dataset["sharpness"].attrs["long_name"].startswith("preconditioned sharpness")


@pytest.mark.slow
def test_depths(tmp_path):
    """One width and several depths: the optimum's way with L, its limit at each depth, a colour per depth."""
    options = ["--model", "mlp", "--activation", "linear", "--widths", "8", "--depths", "1", "2", "--param", "mup"]
    main([*SMALL, *options, "--sharpness-seeds", "1", "--out", str(tmp_path)])
    dataset, found = numbers(tmp_path), files.read_json(tmp_path / "transfer.json")
    assert dict(dataset["final_loss"].sizes) == {"param": 1, "width": 1, "depth": 2, "seed": 3, "learning_rate": 4}
    assert dataset["final_loss_limit"].dims == ("param", "depth", "learning_rate")
    assert [(o["width"], o["depth"]) for o in found["optima"]] == [(8, 1), (8, 2), (None, 1), (None, 2)]
    assert [shift["size"] for shift in found["shifts"]] == ["depth"]
    sharp = dataset["sharpness"].sel(param="mup", width=8, seed=0, step=0)
    assert len(np.unique(sharp)) == 2
    losses = transfer_plots.picture(dataset, *analyse(dataset), "a title").axes[0].lines
    dashed = [line.get_color() for line in losses if line.get_linestyle() == "--"]
    colors = {depth: color for (_, depth), color in transfer_plots._colored(dataset)}
    np.testing.assert_array_equal(dashed, [colors[1], colors[2]])  # each limit in the colour of its networks


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--model", "conv", "--data", "digits", "--outputs", "3", "--loss", "cross_entropy", "--widths", "2", "4"],
        ["--model", "vit", "--data", "digits", "--widths", "8", "16", "--depth", "1", "--optimizer", "adamw",
         "--weight-decay", "0.1"],
        ["--model", "resmlp", "--block-size", "2", "--activation", "relu", "--param", "depth_mup", "--momentum", "0.5",
         "--nesterov", "--warmup-steps", "2", "--schedule", "cosine"],
        ["--model", "mlp", "--trained", "readout", "--param", "ntp"],
    ],
    ids=["conv", "vit", "resmlp", "random features"],
)  # fmt: skip
def test_models_and_optimizers(options, tmp_path):
    digits = ["--inputs", "64"] if "digits" in options else []
    main([*SMALL, "--seeds", "2", "--param", "mup", "--learning-rates", "0.01", "0.03", "0.1", "--no-limit", *digits,
          *options, "--sharpness-seeds", "1", "--out", str(tmp_path)])  # fmt: skip
    dataset = numbers(tmp_path)
    assert "final_loss_limit" not in dataset
    assert (dataset["final_loss"] < dataset["initial_loss"]).any()
    assert np.isfinite(dataset["sharpness"].sel(seed=0).isel(step=slice(1, None))).all()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--widths", "8"], "widths 8: wanted at least 2, positive, none twice"),
        (["--widths", "8", "8"], "widths 8 8: wanted"),
        (["--widths", "0", "8"], "widths 0 8: wanted"),
        (["--param", "mup", "mup"], "parametrizations mup mup: wanted"),
        (["--param", "depth_mup"], "depth_mup is about residual blocks"),
        (["--param", "base=mup, hiden.multiplier=1"], "unknown role 'hiden'"),
        (["--optimizer", "adam", "--momentum", "0.5"], "momentum 0.5 must be 0: adam has betas and epsilon"),
        (["--learning-rates", "1", "2"], "learning rates 1 2: wanted at least 3"),
        (["--learning-rates", "1", "2", "-1"], "learning rates 1 2 -1: wanted"),
        (["--learning-rates", "1", "2", "inf"], "learning-rates inf: wanted a finite number"),
        (["--learning-rates", "1", "2", "nan"], "learning-rates nan: wanted a finite number"),
        (["--seeds", "1"], "1 seeds: at least 2"),
        (["--seed", "-1"], "seed -1 must be at least 0"),
        (["--seed", "4294967296"], "seed 4294967296 must be at least 0 and below 2^32"),
        (["--model", "mlp3", "--depth", "5"], "depths 5: mlp3 has its own"),
        (["--curvature-samples", "0"], "curvature-samples 0 must be at least 1"),
        (["--steps", "0"], "0 steps: at least 1"),
        (["--richness", "0"], "richness 0 must be positive"),
        (["--momentum", "1"], "momentum 1 must be"),
        (["--batch-size", "9"], "batch size 9 must be from 1 to the 8 samples"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--data", "cifar"], "unknown data 'cifar'"),
        (["--model", "mlp", "--depth", "0"], "depths 0: wanted at least 1, positive"),
        (["--depths", "1", "2"], "depths 1 2: linear2 has its own; models of any depth: mlp, resmlp"),
        (["--model", "mlp", "--depths", "2", "2"], "depths 2 2: wanted"),
        (["--measure-every", "3"], "measure-every 3: wanted a divisor of the 4 steps"),
        (["--sharpness-seeds", "4"], "sharpness-seeds 4 must be from 0 to the 3 seeds"),
        (["--sharpness-seeds", "0", "--curvature-samples", "4"], "curvature-samples 4: with sharpness-seeds 0"),
        (["--model", "conv", "--inputs", "5"], "5 inputs are no square image"),
        (["--model", "vit", "--data", "digits", "--inputs", "64", "--widths", "3", "6"], "heads"),
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


def test_limits_that_take_hours_are_left_out_in_a_line_each(tmp_path):
    """As many as learning rates; one alone is not too long.  Nobody is told of limits that nobody wants."""
    few = {"model": "conv", "data": "patches10", "samples": 4, "steps": 32, "param": ("mup",), "sharpness_seeds": 0,
           "inputs": None}  # fmt: skip
    rates = tuple(0.02 * np.arange(1, 200))
    many = prepared(tmp_path, **few, learning_rates=rates)
    assert many.limits == []
    (line,) = many.without_limit
    assert line.startswith("no limit is drawn in mup: 199 limits of conv in mup on 4 samples would take about ")
    assert prepared(tmp_path, **few, learning_rates=rates, limit=False).without_limit == []
    alone = prepared(tmp_path, **few, learning_rates=rates[:3])
    assert (alone.limits, alone.without_limit) == ([Limit("mup", 2)], [])
    (swept,) = alone.work.networks(alone.limits)
    assert (swept.networks, swept.hessian, list(swept.problem.steps)) == (3, False, [0, 32])
