"""Where the lowest final loss lies on a grid of learning rates, to what accuracy, and how that moves with the size.

The optimum is the vertex of the parabola, in log loss against log η0, through the lowest learning rate of the grid and
its neighbours; loss means its mean over seeds.  See ``bracket`` for what cannot be resolved so.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import norm
from scipy.stats import t as student_t

TOLERATED = 0.1  # an optimum that moves no faster than N^0.1, by 7 % per doubling of the width, transfers
RESAMPLES = 400
SIZES = {"width": "N", "depth": "L"}


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one size, its 95 % interval, and the mean final loss next to it on the grid.

    width       None: the limit, whose interval is what the grid leaves open
    depth       layers or blocks; None where the results do not say
    interval    from 0, or to infinity (null), where the lowest loss is that of the grid's first, or last
    """

    parametrization: str
    width: int | None
    depth: int | None
    best_learning_rate: float
    interval: tuple[float, float]
    final_loss: float


@dataclass(frozen=True)
class Shift:
    """best learning rate ∝ size^exponent, with its 95 % interval; not a number where an optimum is off the grid.

    size     "width", or "depth" where there are several; with several of both, each at a fixed other one
    """

    parametrization: str
    size: str
    exponent: float
    interval: tuple[float, float]
    verdict: str


def analyse(dataset: xr.Dataset) -> tuple[list[Optimum], list[Shift]]:
    """The optimum of every parametrization and size, and how it moves with the width and with the depth.

    ``dataset`` has final_loss (param, width, seed, learning_rate), with a dimension ``depth`` where there are several.
    Intervals: bootstrap over the seeds of each size, stretched as Student's t stretches a Gaussian's for so few seeds;
    in each resample an optimum that is only bracketed is drawn from its bracket, evenly in log η0.
    """
    optima, shifts = [], []
    for param in dataset.param.values:
        one = dataset.sel(param=param)
        sizes = sizes_of(one)
        found = [_optimum(str(param), at_size(one, *size), size) for size in sizes]
        optima += [optimum for optimum, _ in found]
        if has_limit(one):
            optima += [_optimum_of_limit(str(param), one, depth) for depth in dict.fromkeys(depth for _, depth in sizes)]
        best, draws = [o.best_learning_rate for o, _ in found], np.array([draws for _, draws in found])
        shifts += _shifts(str(param), sizes, np.log(best), draws)
    return optima, shifts


def sizes_of(dataset: xr.Dataset) -> list[tuple[int, int | None]]:
    """Every (width, depth); the depth is None where the results do not say."""
    depths = np.atleast_1d(dataset.depth.values) if "depth" in dataset.coords else [None]
    return [(int(width), None if depth is None else int(depth)) for depth, width in product(depths, dataset.width.values)]


def at_size(dataset: xr.Dataset, width: int, depth: int | None) -> xr.Dataset:
    """The results of one size."""
    one = dataset.sel(width=width)
    return one.sel(depth=depth) if "depth" in one.dims else one


def has_limit(one: xr.Dataset) -> bool:
    """Beside a parametrization that has a limit, one that has none is filled with what is not a number."""
    return "final_loss_limit" in one and bool(one["final_loss_limit"].notnull().any())


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
    low, high = (float(end) for end in np.concatenate([[0.0], rates, [np.inf]])[[lowest[0], lowest[-1] + 2]])
    if low == 0 or high == np.inf or len(lowest) > 1:
        return float(np.exp(x[lowest].mean())), low, high
    vertex = float(np.exp(_vertex(x[around], y[around])))
    return (vertex, vertex, vertex) if stable[around].all() else (vertex, low, high)


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
    return 20 * epsilon if loss == "cross_entropy" else (10 * epsilon) ** 2 * initial_loss


def _optimum(param, cell, size) -> tuple[Optimum, np.ndarray]:
    """The optimum of one size, and log best learning rates of the resamples (RESAMPLES,), infinite off the grid."""
    rates, losses = cell.learning_rate.values, cell["final_loss"].transpose("seed", "learning_rate").values
    initial = cell["initial_loss"].values
    floor = rounding(initial.mean(), cell.attrs["precision"], cell.attrs.get("loss", "mse"))
    rng = np.random.default_rng([part for part in size if part is not None])
    resamples = rng.integers(len(losses), size=(RESAMPLES, len(losses)))
    brackets = [bracket(rates, losses[s].mean(axis=0), initial[s].mean(), floor)[1:] for s in resamples]
    best, low, high = bracket(rates, losses.mean(axis=0), initial.mean(), floor)
    with np.errstate(divide="ignore"):
        draws = _draws(*np.log(brackets).T, rng.random(RESAMPLES), np.log(best), len(losses))
    spread = np.exp(np.quantile(draws, (0.025, 0.975), method="nearest"))
    at_best = losses.mean(axis=0)[nearest(rates, best)]
    interval = float(min(low, spread[0])), float(max(high, spread[1]))
    return Optimum(param, *size, best, interval, float(at_best)), draws


def _optimum_of_limit(param, one, depth) -> Optimum:
    one = at_size(one, int(one.width.max()), depth)
    rates, loss = one.learning_rate.values, one["final_loss_limit"].values
    best, low, high = bracket(rates, loss, float(one["initial_loss"].mean()))
    return Optimum(param, None, depth, best, (low, high), float(loss[nearest(rates, best)]))


def _draws(low, high, parts, best, seeds):
    """Logarithms: of a bracket the part asked for, or its infinite end; of a vertex its stretched distance from best."""
    stretch = np.sqrt(seeds / (seeds - 1)) * student_t.ppf(0.975, seeds - 1) / norm.ppf(0.975)
    with np.errstate(invalid="ignore"):
        inside = np.where(low == high, best + stretch * (low - best), low + parts * (high - low))
    return np.where(np.isinf(low), low, np.where(np.isinf(high), high, inside))


def _shifts(param, sizes, best, draws) -> list[Shift]:
    """One per size of which there are several values: least squares of log best in log N and log L together."""
    several = {name: values for name, values in zip(SIZES, zip(*sizes, strict=True), strict=True) if len(set(values)) > 1}
    design = np.column_stack([np.ones(len(sizes)), *(np.log(values) for values in several.values())])
    return [_shift(param, name, slopes, best, draws) for name, slopes in zip(several, np.linalg.pinv(design)[1:], strict=True)]


def _shift(param, size, slopes, best, draws):
    if not np.isfinite(draws).all():
        return Shift(param, size, np.nan, (np.nan, np.nan), "undecided: an optimum is off the grid")
    low, high = (float(q) for q in np.quantile(slopes @ draws, (0.025, 0.975)))
    return Shift(param, size, float(slopes @ best), (low, high), verdict((low, high)))


def verdict(interval: tuple[float, float]) -> str:
    """Whether an optimum ∝ N^exponent, with this interval, stays where it is."""
    low, high = interval
    if max(-low, high) <= TOLERATED:
        return "transfers"
    return "does not transfer" if low > TOLERATED or high < -TOLERATED else "undecided"
