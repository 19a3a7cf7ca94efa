"""Super consistency: the definition, its numbers, and how it is measured, for every command that speaks of it.

Noci et al. (2024) call a quantity S_N(t) of networks of size N, followed along training, super consistent if

    it agrees             large networks have nearly the same, |S_N(t) − S_∞(t)| ≪ |S_∞(t)|, and
    does not accumulate   |S_N(t) − S_∞(t)| ≤ g(t) |S_N(0) − S_∞(0)|, where g does not increase in time.

In numbers, which are our choice:

    it agrees             late in training, from ``LATE`` of the steps on, the highest mean over seeds of all sizes is at most
                          ``APART`` times the lowest, and S ∝ size^exponent with an exponent within ±``FLAT``: few sizes alone
                          would hide a law
    does not accumulate   g never exceeds ``GROWN``: a deviation that doubles is still of the size that it started with

each with its 95 % interval (``verdict``).  Agreement is between sizes and needs no limit (``agreement``).  Accumulation needs
one, or what stands for it (``measure_growth``): where there is none, as in ``comparisons.landscape.late``, agreement decides.
"""

from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.special import stdtrit

from comparisons.statistics.deviations import components, deviations, variable, without_limit
from comparisons.statistics.power_law import FEWEST_SEEDS, exponent_of
from limits.law import Prediction

SIZES = {"width": "N", "depth": "L"}  # what networks differ in
LATE = 0.75
APART = 1.5
FLAT = 0.1  # 7 % per doubling of the size
GROWN = 2.0

RESAMPLES = 400
ROUNDING = 1e-12  # of log g: what scatters less over the seeds has no interval to resample
NOWHERE = (float("nan"), float("nan"))
NO_STEPS = "undecided: no step was measured but the first"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Late values of one observable, means over steps and seeds, of networks of different sizes.

    ratio, at_most        the highest over the lowest, and the upper end of its 95 % interval
    exponent, interval    late value ∝ size^exponent, least squares over all networks, with its 95 % interval; of several
                          networks each size has its own scatter, which falls with the width
    diverged              a late value is not finite, and there is nothing to compare
    """

    sizes: list[int]
    values: list[float]
    ratio: float = np.nan
    at_most: float = np.nan
    exponent: float = np.nan
    interval: tuple[float, float] = NOWHERE
    diverged: bool = False


@dataclass(frozen=True)
class Growth:
    """One observable: its deviation from the limit in time, g at each measured step, and whether it is super consistent.

    largest, interval    the largest g after the start, with its 95 % interval; not a number with fewer seeds than
                         ``FEWEST_SEEDS``
    late                 whether the sizes agree late in training
    """

    observable: str
    rank: int | str | None
    steps: list[int]
    ratio: list[float]
    predicted_ratio: list[float] | None
    largest: float
    interval: tuple[float, float]
    late: Agreement
    verdict: str

    def record(self) -> dict:
        return asdict(self)


def verdict(late: Agreement, grown: tuple[float, float] | None = None) -> str:
    """What is to be said of an observable; ``grown``, where there is a limit: the interval of its largest growth.

    "diverged", "accumulates", "grows" or "falls" (with the size: the exponent's interval leaves out 0), "super consistent",
    "too few seeds" (for an interval of the growth), "undecided"
    """
    low, high = late.interval
    if late.diverged:
        return "diverged"
    if grown is not None and grown[0] > GROWN:
        return "accumulates"
    if not (late.at_most <= APART and max(-low, high) <= FLAT):
        return "grows" if low > 0 else "falls" if high < 0 else "undecided"
    if grown is None or grown[1] <= GROWN:
        return "super consistent"
    return "undecided" if np.isfinite(grown[0]) else "too few seeds"


# Agreement -----------------------------------------------------------------------------------------------------------


def late_steps(steps: np.ndarray) -> np.ndarray:
    """Which of them are late."""
    return steps >= LATE * np.max(steps, initial=0)


def agreement(sizes: np.ndarray, values: Float[np.ndarray, "sizes seeds"]) -> Agreement:
    """Of late values.  Of opposite signs, or zero somewhere but not everywhere, they have no ratio and no exponent."""
    mean, modulus = values.mean(axis=1), np.abs(values)
    late = {"sizes": [int(size) for size in sizes], "values": mean.tolist()}
    if not np.isfinite(values).all() or values.size == 0:
        return Agreement(**late, diverged=True)
    if len(sizes) < 2:
        return Agreement(**late, ratio=1.0, at_most=np.inf)
    if np.ptp(values) == 0:
        return Agreement(**late, ratio=1.0, at_most=1.0, exponent=0.0, interval=(0.0, 0.0))
    if np.sign(mean).min() * np.sign(mean).max() <= 0 or modulus.min() == 0:
        return Agreement(**late, ratio=np.inf, at_most=np.inf)
    ratio = float(np.abs(mean).max() / np.abs(mean).min())
    several = modulus.shape[1] > 1
    exponent, interval = exponent_of(sizes.tolist(), list(modulus)) if several else _of_one_network_each(sizes, modulus[:, 0])
    return Agreement(**late, ratio=ratio, at_most=ratio * _leeway(np.log(modulus)), exponent=exponent, interval=interval)


def _of_one_network_each(sizes: np.ndarray, values: Float[np.ndarray, " sizes"]) -> tuple[float, tuple[float, float]]:
    """Their scatter about the line is all there is: least squares, Student's t."""
    x, y = (np.log(quantity) - np.log(quantity).mean() for quantity in (sizes, values))
    slope, freedom = float(x @ y / (x @ x)), len(sizes) - 2
    scatter = np.sum((y - slope * x) ** 2) / freedom if freedom else 0.0
    reach = float(stdtrit(freedom, 0.975) * np.sqrt(scatter / (x @ x)))
    return slope, (slope - reach, slope + reach)


def _leeway(logs: Float[np.ndarray, "sizes seeds"]) -> float:
    """By what factor the largest ratio of two sizes may be larger than it came out: Student's t, Bonferroni over all pairs."""
    sizes, seeds = logs.shape
    variance = logs.var(axis=1, ddof=1).mean() if seeds > 1 else np.nan
    quantile = stdtrit(sizes * (seeds - 1), 1 - 0.05 / (sizes * (sizes - 1)))
    return float(np.exp(quantile * np.sqrt(2 * variance / seeds)))


# Growth --------------------------------------------------------------------------------------------------------------
#
# At fixed width N let e_N(t) be the root mean square over seeds of o_N(t) − o_∞(t).  Its growth
#
#     g(t) = exp mean_N log( e_N(t)/e_N(0) )
#
# does not depend on N while o_N − o_∞ ~ N^-1/2 at every t, and is predicted: std(t)/std(0).


def measure_growth(
    dataset: xr.Dataset, reference: str, prediction: Prediction | None, unstable_after: int | None
) -> list[Growth]:
    """The growth of every observable.  Steps past the edge of stability, and diverged ones, are left out.

    Where they leave nothing after the start there is no growth to judge, nor anything late: the verdict says which it was.
    """
    finite = np.isfinite(dataset["loss"].values).all(axis=(0, 1))
    stable = finite & (dataset.step.values <= (np.inf if unstable_after is None else unstable_after))
    why = None
    if stable.sum() < 2:
        why = NO_STEPS if len(finite) < 2 else "diverged" if finite.sum() < 2 else "past the edge of stability"
    return [_growth(dataset.isel(step=np.flatnonzero(stable)), *component, reference, prediction, why)
            for component in components(dataset)]  # fmt: skip


def growth_ratio(errors: Float[np.ndarray, "W S T"]) -> Float[np.ndarray, " T"]:
    """g of errors; infinite where the start has no error at all (the loss of NTP, given f(0))."""
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.log(np.sqrt(np.mean(_deviating(errors) ** 2, axis=1)))
        ratio = np.exp(np.mean(magnitude - magnitude[:, :1], axis=0))
    return np.where(np.isnan(ratio), 1.0, ratio)


def _deviating(errors: Float[np.ndarray, "W S T"]) -> Float[np.ndarray, "V S T"]:
    """Of the widths that deviate at all, in units of the largest: squares of anything fit into floats."""
    unit = np.max(np.abs(errors), initial=0.0, where=np.isfinite(errors))
    return errors[errors.any(axis=(1, 2))] / unit if unit else errors


def largest_growth(errors: Float[np.ndarray, "W S T"]) -> tuple[float, tuple[float, float]]:
    """The largest g after the start and its 95 % interval.

    Both ends are the largest of a band over the steps, in log g: bootstrap-t, resampling the seeds of all widths together, so
    that they may be paired or not.  For max g to be below the lower end, g must be below the band at some step: the lower
    ends hold at all steps at once, by the largest studentised distance.  Above the upper end it must be at the step of
    its maximum: there each step's own quantile does.  A percentile bootstrap of the maximum itself covers 9 to 93 %.
    """
    errors = _deviating(errors)
    ratio = growth_ratio(errors)[1:]
    largest = float(ratio.max()) if ratio.size else 1.0
    if not errors[..., 1:].any() or np.isinf(largest):  # from, or to, no deviation at all
        return largest, (largest, largest)
    if errors.shape[1] < FEWEST_SEEDS:
        return largest, NOWHERE
    low, high = _band(errors[..., [True, *(ratio > 0)]])
    return largest, (float(np.exp(low.max())), float(np.exp(high.max())))


def _band(errors: Float[np.ndarray, "W S T"]) -> tuple[np.ndarray, np.ndarray]:
    """Of log g after the start: lower ends that hold together in 97.5 %, upper ends each of which holds in 97.5 %."""
    squares, seeds = errors**2, errors.shape[1]
    resamples = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    (log_g,), (error,) = _log_growth(squares, np.ones((1, seeds)))
    drawn, errors_drawn = _log_growth(squares, resamples.astype(float))
    with np.errstate(divide="ignore", invalid="ignore"):  # of a resample without scatter
        distance = np.nan_to_num((drawn - log_g) / errors_drawn)
    below = np.quantile(distance.max(axis=1), 0.975, method="higher")
    above = np.quantile(-distance, 0.975, axis=0, method="higher")
    scatter = np.where(error > ROUNDING, error, 0.0)
    return log_g - _times(below, scatter), log_g + _times(above, scatter)


def _times(quantile, scatter):
    """What does not scatter is known, however far off a resample without scatter is."""
    return np.where(scatter > 0, quantile * np.where(scatter > 0, scatter, 1.0), 0.0)


def _log_growth(squares: Float[np.ndarray, "W S T"], counts: Float[np.ndarray, "B S"]):
    """log g (B, T − 1) of resamples that draw each seed so many times, and its standard error, linearised."""
    widths, seeds, _ = squares.shape
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means = np.einsum("bs,wst->bwt", counts, squares) / seeds
        log_g = 0.5 * np.log(means[..., 1:] / means[..., :1]).mean(axis=1)
        share = np.einsum("wst,bwt->bst", squares, 1 / means) / (2 * widths)
        error = np.sqrt(np.einsum("bs,bst->bt", counts, (share[..., 1:] - share[..., :1]) ** 2) / (seeds * (seeds - 1)))
    return log_g, error


def _growth(dataset, name, rank, selection, reference, prediction, why):
    unknown = without_limit(dataset, name, selection)
    if not unknown.all():
        dataset = dataset.isel(step=~unknown)
    predicted = _predicted(dataset, name, selection, prediction)
    errors = deviations(dataset, name, selection, reference, "fluctuation").values
    along = name, rank, dataset.step.values.tolist(), growth_ratio(errors).tolist(), predicted
    sizes, values = dataset.width.values, dataset[variable(name)].sel(selection).transpose("width", "seed", "step").values
    if why:
        return Growth(*along, np.nan, NOWHERE, agreement(sizes, np.full(values.shape[:2], np.nan)), why)
    late = agreement(sizes, values[..., late_steps(dataset.step.values)].mean(axis=2))
    largest, interval = largest_growth(errors)
    return Growth(*along, largest, interval, late, verdict(late, interval))


def _predicted(dataset, name, selection, prediction):
    if prediction is None or variable(name) not in prediction:
        return None
    if not len(dataset.step):
        return []
    std = prediction[variable(name)].std[: len(dataset.step)]
    if selection:
        std = std[:, selection["rank"] - 1 if "rank" in selection else int(selection["edge"] == "lower")]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (std / std[0]).tolist()
