"""Where the lowest final loss lies on a grid of learning rates, to what accuracy, and how that moves with the size.

The optimum is the minimum of a polynomial, in log loss against log η0, fitted to the learning rates of the grid around the
lowest loss (``minimum``); loss means its mean over seeds.  See ``bracket`` for what cannot be resolved so.  How it moves is
by what the curves of all sizes are shifted against each other (``comparisons.statistics.translation``), or where that does not
explain them, what the optima say.  With one seed nothing tells chance from law: an optimum is as the grid brackets it.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from numpy.polynomial import Polynomial
from scipy.special import ndtri, stdtrit

from comparisons.statistics.super_consistency import FLAT
from comparisons.statistics.translation import Translation, translation
from limits.losses import LOSSES

TOLERATED = FLAT  # an optimum that moves no faster than that transfers
NEAR = 0.5  # the fit sees losses up to e^0.5 times the lowest, and two learning rates on either side
DEGREE = 4  # of the polynomial: lower where fewer than two points would be left to say how well it fits
FEWEST_POINTS = 4
CONFIDENCE = 0.95  # of the intervals
EQUIVALENCE = 0.90  # two tests, one on each side, at 5 % each (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657)
FAR_OFF = 5  # so many times the seeds' error is the polynomial's own
RESAMPLES = 1000
OFF_GRID = "an optimum may be off the grid"  # why nothing says where one is, the first that holds; short, for titles
FEW_RATES, FEW_SEEDS = "too few learning rates", "too few seeds"  # around it; to say where it is


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one size, its 95 % interval, and the mean final loss next to it on the grid.

    width       or whatever else the sizes of a sweep are (``size_names``); None: the limit, whose interval is what the grid
                leaves open
    depth       layers or blocks; None where the results do not say
    interval    from 0, or to infinity (null), where the lowest loss is that of the grid's first, or last
    """

    parametrization: str
    width: float | None
    depth: int | None
    best_learning_rate: float
    interval: tuple[float, float]
    final_loss: float


@dataclass(frozen=True)
class Shift:
    """best learning rate ∝ size^exponent, with its 95 % interval; not a number where nothing says where an optimum is, and the
    verdict says why: the lowest loss is at an end of the grid, or learning rates around it, or seeds, are too few.

    size     "width", or "depth" where there are several; with several of both, each at a fixed other one (``size_names``)
    verdict  what ``verdict`` says: "transfers" where the 90 % interval is within what is tolerated
    """

    parametrization: str
    size: str
    exponent: float
    interval: tuple[float, float]
    verdict: str


@dataclass(frozen=True)
class Minimum:
    """A minimum in log η0.

    scatter    its standard error by the seeds, linear in what each contributes
    error      and with how much more the points scatter about the polynomial than the seeds explain: it is not the truth
    doubt      by how much a polynomial of another degree has it elsewhere.  Curves of one shape share it, so that between
               sizes only its differences count
    """

    place: float
    scatter: float
    error: float
    doubt: float


@dataclass(frozen=True)
class Cell:
    """What one size was found to lose; below ``floor`` there is only rounding."""

    rates: Float[np.ndarray, " L"]
    losses: Float[np.ndarray, "S L"]
    initial: Float[np.ndarray, " S"]
    floor: float

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> "Cell":
        losses, initial = dataset["final_loss"].transpose("seed", "learning_rate").values, dataset["initial_loss"].values
        known = dataset.attrs.get("precision")
        floor = rounding(initial.mean(), known, dataset.attrs.get("loss", "mse")) if known else 0.0
        return cls(dataset.learning_rate.values, losses, initial, floor)

    @cached_property
    def mean(self) -> Float[np.ndarray, " L"]:
        return self.losses.mean(axis=0)

    def at(self, rates: Float[np.ndarray, " L"]) -> "Cell":
        """At these of its learning rates."""
        return replace(self, rates=rates, losses=self.losses[:, np.isin(self.rates, rates)])

    @property
    def usable(self) -> Bool[np.ndarray, " L"]:
        return np.isfinite(self.mean) & (self.mean < self.initial.mean()) & (self.mean > self.floor)


def analyse(dataset: xr.Dataset) -> tuple[list[Optimum], list[Shift]]:
    """The optimum of every parametrization and size, and how it moves with the width and with the depth.

    ``dataset`` has final_loss (param, width, seed, learning_rate), with a dimension ``depth`` where there are several; and
    ``swept``, alike, where not every size has all seeds and learning rates.  Below the rounding of its ``precision``, if it
    says one, losses are equal.
    Intervals: of a minimum and of a translation, Student's t.  An optimum that is only bracketed is drawn from its bracket,
    evenly in log η0, for each of many resamples of its seeds.  Networks of different sizes are independent.

    Raises ValueError, in one line, for a loss below zero.
    """
    optima, shifts = [], []
    losses = dataset["final_loss"].values
    if (lowest := np.min(losses, where=np.isfinite(losses), initial=0.0)) < 0:
        raise ValueError(f"loss {lowest:g}: it is below zero, and its logarithm is looked at")
    for param in dataset.param.values:
        sweep = dataset.sel(param=param)
        sizes = sizes_of(sweep)
        cells = [Cell.from_dataset(at_size(sweep, *size)) for size in sizes]
        minima = [_optimum(str(param), cell, size) for cell, size in zip(cells, sizes, strict=True)]
        optima += [optimum for optimum, _, _ in minima]
        if has_limit(sweep):
            optima += [_optimum_of_limit(str(param), sweep, depth) for depth in dict.fromkeys(depth for _, depth in sizes)]
        best, draws = [o.best_learning_rate for o, _, _ in minima], np.array([draws for _, draws, _ in minima])
        doubts = np.array([doubt for _, _, doubt in minima])
        together = _together(cells)
        why = [_why_unknown(cell) for cell, drawn in zip(cells, draws, strict=True) if np.isinf(drawn).any()]
        first = next((reason for reason in (OFF_GRID, FEW_RATES) if reason in why), FEW_SEEDS)
        shifts += _shifts(str(param), size_names(dataset), sizes, np.log(best), draws, doubts, together, first)
    return optima, shifts


def size_names(dataset: xr.Dataset) -> tuple[str, str]:
    """What the dimensions ``width`` and ``depth`` are called: a sweep may be over another size in place of the width."""
    return dataset.attrs.get("size", "width"), "depth"


def sizes_of(dataset: xr.Dataset) -> list[tuple[float, int | None]]:
    """Every (width, depth); the depth is None where the results do not say."""
    depths = np.atleast_1d(dataset.depth.values).tolist() if "depth" in dataset.coords else [None]
    return [(width, depth) for depth, width in product(depths, np.atleast_1d(dataset.width.values).tolist())]


def at_size(dataset: xr.Dataset, width: float, depth: int | None) -> xr.Dataset:
    """The results of one size; where a sweep has not run everything, at the learning rates at which all of its seeds ran."""
    sweep = dataset.sel(width=width)
    sweep = sweep.sel(depth=depth) if "depth" in sweep.dims else sweep
    if "swept" not in sweep:
        return sweep
    sweep = sweep.isel(seed=sweep["swept"].any("learning_rate"))
    return sweep.isel(learning_rate=sweep["swept"].all("seed"))


def has_limit(sweep: xr.Dataset) -> bool:
    """Beside a parametrization that has a limit, one that has none is filled with what is not a number."""
    return "final_loss_limit" in sweep and bool(sweep["final_loss_limit"].notnull().any())


def nearest(rates: Float[np.ndarray, " L"], best: float) -> int:
    """The index of the learning rate next to ``best``, in logarithms."""
    return int(np.abs(np.log(rates / best)).argmin())


def bracket(
    rates: Float[np.ndarray, " L"], loss: Float[np.ndarray, " L"], initial: float, floor: float = 0.0
) -> tuple[float, float, float]:
    """(best learning rate, low, high): a parabola's vertex, or where it resolves nothing, the ends of what is possible.

    Losses below ``floor`` are rounding and count as equal; losses above ``initial``, or not finite, as diverged.

    low = high      the vertex through the lowest point and its stable neighbours
    low < high      the neighbours of the lowest points, where one of these neighbours diverged or where several points
                    lie on the floor; infinite (0, ∞) beyond the ends of the grid
    """
    x = np.log(rates)
    stable = np.isfinite(loss) & (loss < initial)
    if not stable.any():
        return float(rates[0]), 0.0, float(rates[0])
    y = np.log(np.where(stable, np.clip(loss, max(floor, np.finfo(float).tiny), initial), initial))
    lowest = np.flatnonzero(y == y.min())
    around = slice(lowest[0] - 1, lowest[-1] + 2)  # the lowest points and their neighbours
    low, high = _ends(rates, lowest[0], lowest[-1] + 1)
    if low == 0 or high == np.inf or len(lowest) > 1:
        return float(np.exp(x[lowest].mean())), low, high
    vertex = float(np.exp(_vertex(x[around], y[around])))
    return (vertex, vertex, vertex) if stable[around].all() else (vertex, low, high)


def _ends(rates, start, stop) -> tuple[float, float]:
    """The neighbours of rates[start:stop], 0 and ∞ beyond the ends of the grid."""
    low, high = np.concatenate([[0.0], rates, [np.inf]])[[start, stop + 1]]
    return float(low), float(high)


def _vertex(x, y):
    """Where the parabola through three points, the middle one the lowest, has its minimum."""
    left, right = (y[0] - y[1]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])  # both positive
    return 0.5 * (x[1] + (x[0] * right + x[2] * left) / (left + right)) if left + right else x[1]


def rounding(initial_loss: float, precision: str, loss: str = "mse") -> float:
    """The loss below which there is only rounding.

    Of MSE it is that of the outputs, squared.  Cross-entropy is a difference of two numbers of the outputs' size, which where
    it is that small, e^(−size), is below 20.
    """
    epsilon = float(np.finfo(precision).eps)
    return (10 * epsilon) ** 2 * initial_loss if LOSSES[loss].quadratic else 20 * epsilon


def _optimum(param, cell, size) -> tuple[Optimum, np.ndarray, float]:
    """The optimum of one size, log best rates it may as well be (RESAMPLES,), infinite off the grid, and its doubt."""
    rng = np.random.default_rng([int(part) for part in size if part is not None])
    best, low, high = bracket(cell.rates, cell.mean, cell.initial.mean(), cell.floor)
    if len(cell.losses) == 1:
        (interval, draws), doubt = _of_one_seed(cell, low, high, rng), 0.0
    elif low == high:
        best, interval, draws, doubt = _fitted(cell, best, rng)
    else:
        (interval, draws), doubt = _bracketed(cell, (best, low, high), rng), 0.0
    return Optimum(param, *size, best, interval, float(cell.mean[nearest(cell.rates, best)])), draws, doubt


def _of_one_seed(cell, low, high, rng):
    """The interval, and draws: what ``bracket`` left open, or of a vertex between the neighbours of the lowest loss."""
    if low == high:
        lowest = int(np.argmin(np.where(cell.usable, cell.mean, np.inf)))
        low, high = _ends(cell.rates, lowest, lowest + 1)
    with np.errstate(divide="ignore"):
        return (low, high), _draws(*np.log([[low], [high]]), rng.random(RESAMPLES))


def _fitted(cell, best, rng):
    """Of a vertex: the minimum of the fit, or where there is none, what lies around losses as good as the lowest."""
    rates, losses = cell.rates, cell.losses
    x, around = np.log(rates), neighbourhood(cell.mean, cell.usable)
    fit = minimum(x[around], losses[:, around])
    if fit is None:
        low, high = _ends(rates, around.start, around.stop)
        with np.errstate(divide="ignore"):
            draws = _draws(*np.log([[low], [high]]), rng.random(RESAMPLES))
        return best, (low, high), draws, 0.0
    if fit.error > FAR_OFF * fit.scatter:  # too steep for the polynomial: the three lowest points know better
        fit = replace(fit, place=float(np.log(best)), doubt=float(np.log(best)) - fit.place)
    reach = stdtrit(len(losses) - 1, 0.975) * fit.error
    draws = fit.place + fit.scatter * rng.standard_t(len(losses) - 1, RESAMPLES)
    low, high = (float(end) for end in np.exp([fit.place - reach, fit.place + reach]))
    if low < rates[0]:
        low, draws = 0.0, np.where(draws < x[0], -np.inf, draws)
    if high > rates[-1]:
        high, draws = np.inf, np.where(draws > x[-1], np.inf, draws)
    return float(np.exp(fit.place)), (low, high), draws, fit.doubt


def neighbourhood(loss: Float[np.ndarray, " L"], usable: Bool[np.ndarray, " L"]) -> slice:
    """Around the lowest of the usable losses: those that are less than e^``NEAR`` times it, and two on either side."""
    lowest = int(np.argmin(np.where(usable, loss, np.inf)))
    near = usable & (loss < np.exp(NEAR) * loss[lowest])
    near[max(lowest - 2, 0) : lowest + 3] |= usable[max(lowest - 2, 0) : lowest + 3]
    apart = np.flatnonzero(~near)
    return slice(int(np.max(apart, where=apart < lowest, initial=-1)) + 1,
                 int(np.min(apart, where=apart > lowest, initial=len(loss))))  # fmt: skip


def minimum(x: Float[np.ndarray, " L"], losses: Float[np.ndarray, "S L"]) -> Minimum | None:
    """Where log of the mean loss, as a polynomial in x, has its minimum.

    Seeds are paired: a seed has one network at all learning rates, and what is common to them moves no minimum.  None where
    there is no minimum, or its curvature is not significant (5 %).
    """
    seeds, points = losses.shape
    if points < FEWEST_POINTS:
        return None
    mean, degree, centred = losses.mean(axis=0), min(DEGREE, points - 2), x - x.mean()
    fit, hat = _polynomial(centred, degree)
    place = _lowest(fit @ np.log(mean), centred)
    other = _lowest(_polynomial(centred, degree - 1 if points > DEGREE + 1 else degree + 1)[0] @ np.log(mean), centred)
    if place is None or other is None:
        return None
    share = losses / mean - 1
    covariance = share.T @ share / (seeds * (seeds - 1))
    unexplained = np.sum((hat @ np.log(mean)) ** 2) - np.trace(hat @ covariance)
    misfit = np.eye(points) * max(unexplained, 0.0) / (points - degree - 1)
    of_slope, of_curvature = (np.array([Polynomial(row).deriv(order)(place) for row in np.eye(degree + 1)]) @ fit
                              for order in (1, 2))  # fmt: skip
    curvature = of_curvature @ np.log(mean)
    if curvature <= stdtrit(seeds - 1, 0.975) * _error(of_curvature, covariance):
        return None
    errors = (_error(of_slope, c) / curvature for c in (covariance, covariance + misfit))
    return Minimum(float(x.mean() + place), *errors, place - other)


def _error(weights, covariance) -> float:
    return float(np.sqrt(max(weights @ covariance @ weights, 0.0)))  # rounding may take it below zero


def _polynomial(x, degree):
    """The matrices that take values at x (L,) to coefficients, and to what the polynomial leaves of them."""
    powers = np.vander(x, degree + 1, increasing=True)
    fit = np.linalg.pinv(powers)
    return fit, np.eye(len(x)) - powers @ fit


def _lowest(coefficients, x) -> float | None:
    """The place of a polynomial's lowest minimum between the first and the last of x.

    Where leading coefficients are rounding, roots are rough: Newton's steps make them exact.
    """
    curve = Polynomial(coefficients)
    slope, bend = curve.deriv(1), curve.deriv(2)
    places = np.array([root.real for root in slope.roots() if abs(root.imag) < 1e-9])
    with np.errstate(all="ignore"):  # where nothing bends there is no minimum
        for _ in range(2):
            places = places - slope(places) / bend(places)
        inside = (x[0] < places) & (places < x[-1]) & (bend(places) > 0)
    return min(map(float, places[inside]), key=curve, default=None)


def _bracketed(cell, optimum, rng):
    """Of what ``bracket`` left open: the interval, and draws, of resampled seeds."""
    (best, low, high), seeds = optimum, len(cell.losses)
    brackets = [bracket(cell.rates, cell.losses[s].mean(axis=0), cell.initial[s].mean(), cell.floor)[1:]
                for s in rng.integers(seeds, size=(RESAMPLES, seeds))]  # fmt: skip
    with np.errstate(divide="ignore"):
        low_of, high_of = np.log(brackets).T
        stretch = np.sqrt(seeds / (seeds - 1)) * stdtrit(seeds - 1, 0.975) / ndtri(0.975)
        vertices = np.log(best) + stretch * (low_of - np.log(best))
        draws = np.where(low_of == high_of, vertices, _draws(low_of, high_of, rng.random(RESAMPLES)))
    spread = np.exp(np.quantile(draws, (0.025, 0.975), method="nearest"))
    return (float(min(low, spread[0])), float(max(high, spread[1]))), draws


def _optimum_of_limit(param, sweep, depth) -> Optimum:
    sweep = at_size(sweep, int(sweep.width.max()), depth)
    rates, loss = sweep.learning_rate.values, sweep["final_loss_limit"].values
    best, low, high = bracket(rates, loss, float(sweep["initial_loss"].mean()))
    return Optimum(param, None, depth, best, (low, high), float(loss[nearest(rates, best)]))


def _draws(low, high, parts):
    """Logarithms: of a bracket the part asked for, or its infinite end."""
    with np.errstate(invalid="ignore"):
        inside = low + parts * (high - low)
    return np.where(np.isinf(low), low, np.where(np.isinf(high), high, inside))


def _together(cells: list[Cell]) -> Translation | None:
    """Of all sizes, around their optima, between learning rates that all can use; None where these do not enclose them, and
    with one seed."""
    common = cells[0].rates[[all(rate in cell.rates for cell in cells) for rate in cells[0].rates]]
    cells = [cell.at(common) for cell in cells]
    if not common.size or {len(cell.losses) for cell in cells} != {max(2, len(cells[0].losses))}:
        return None
    usable = np.all([cell.usable for cell in cells], axis=0)
    lowest = [int(np.argmin(np.where(cell.usable, cell.mean, np.inf))) for cell in cells]
    around = [neighbourhood(cell.mean, cell.usable) for cell in cells]
    useless = np.flatnonzero(~usable)
    start = max(min(window.start for window in around), int(np.max(useless, where=useless < min(lowest), initial=-1)) + 1)
    stop = min(max(window.stop for window in around), int(np.min(useless, where=useless > max(lowest), initial=len(usable))))
    if not (start < min(lowest) and max(lowest) < stop - 1 and usable[start:stop].all()):
        return None
    return translation(np.log(cells[0].rates[start:stop]), np.array([cell.losses[:, start:stop] for cell in cells]))


def _why_unknown(cell: Cell) -> str:
    """Of an optimum that may be anywhere.  Losses below the floor are as low as one another."""
    losses = np.where(np.isfinite(cell.mean) & (cell.mean < cell.initial.mean()), np.maximum(cell.mean, cell.floor), np.inf)
    if losses.min() in losses[[0, -1]]:
        return OFF_GRID
    around = neighbourhood(cell.mean, cell.usable) if cell.usable.any() else slice(0, 0)
    return FEW_RATES if around.stop - around.start < FEWEST_POINTS else FEW_SEEDS


def _shifts(param, names, sizes, best, draws, doubts, together, why) -> list[Shift]:
    """One per size of which there are several values: least squares of log best in log N and log L together; ``why`` there is
    none where draws are off the grid.
    """
    several = {name: values for name, values in zip(names, zip(*sizes, strict=True), strict=True) if len(set(values)) > 1}
    design = np.column_stack([np.ones(len(sizes)), *(np.log(values) for values in several.values())])
    return [_shift(param, name, slopes, best, draws, slopes @ doubts, together, why)
            for name, slopes in zip(several, np.linalg.pinv(design)[1:], strict=True)]  # fmt: skip


def _shift(param, size, slopes, best, draws, doubt, together, why):
    def interval(confidence):
        if together:
            return together.slope(slopes, confidence)[1]
        ends = _quantiles(slopes, draws, (1 - confidence) / 2) + np.array([-1, 1]) * abs(doubt)
        return tuple(map(float, ends))

    if not np.isfinite(_quantiles(slopes, draws, (1 - CONFIDENCE) / 2)).all():
        return Shift(param, size, np.nan, (np.nan, np.nan), f"undecided: {why}")
    exponent = together.slope(slopes)[0] if together else float(slopes @ best)
    return Shift(param, size, exponent, interval(CONFIDENCE), verdict(interval(CONFIDENCE), interval(EQUIVALENCE)))


def _quantiles(slopes, draws, tail):
    """(low, high) of what the slopes make of draws (sizes, resamples); one that is off the grid may be anything."""
    on_grid = np.isfinite(draws).all(axis=0)
    moved = slopes @ np.where(on_grid, draws, 0.0)
    low, high = (np.where(on_grid, moved, far) for far in (-np.inf, np.inf))
    return np.array([np.quantile(low, tail, method="lower"), np.quantile(high, 1 - tail, method="higher")])


def verdict(interval: tuple[float, float], narrower: tuple[float, float]) -> str:
    """Whether an optimum ∝ N^exponent, with this 95 % interval and this 90 % one, stays where it is.

    "transfers" is to be false in at most 5 %: the exponent is tested against the tolerated one on either side.
    """
    if max(-narrower[0], narrower[1]) <= TOLERATED:
        return "transfers"
    low, high = interval
    return "does not transfer" if low > TOLERATED or high < -TOLERATED else "undecided"
