"""How long networks follow their limit beyond the edge of stability, against the width.

A network of width N starts about N^-½ off its limit, and follows it until its deviation first exceeds ``TOLERANCE`` of the
limit's value.  How far that is depends on what the limit's dynamics makes of a difference:

    it grows like e^{rt}    an unstable direction, chaos: networks follow for log N/(2r) steps, and a constant
    it adds up              each step one like the last, e^{rt} → t: for a multiple of √N steps
    it stays, or shrinks    also beyond the edge, on a cycle that attracts: wide networks follow to the end

The law of the deviations says it without a network.  Where one direction has outgrown the others the deviation at all steps
is std(t) z/√N with the same z ~ N(0, 1), so that with M(t) the largest std(s)/|o_∞(s)| of s ≤ t

    mean = Σ_t P(|z| M(t) ≤ TOLERANCE √N)        over the measured steps but the last, times the steps from one to the next

A limit that is sampled is off by an error of its own, which grows as the networks' deviations do: nothing is said of what lies
behind the step at which it is ``OWN`` of the tolerance.
"""

from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.special import chdtri, erf, stdtrit

from comparisons.statistics.deviations import deviations, limit_component, limit_error, variable
from comparisons.statistics.power_law import FEWEST_WIDTHS
from limits.law import Prediction

FOLLOWED = ("loss", "sharpness")
TOLERANCE = 0.2
OWN = 0.25  # of the tolerance: twice the error, with which it lies in 95 % of draws, is half of it
SHAPES = {"log N": np.log, "√N": np.sqrt}
DECISIVE = 4.0  # by so much must χ² of the other shape be larger: a likelihood of one seventh
LEVEL = 0.02  # of the test that neither shape fits: one that is right fails it in at most 5 %, as errors of medians are rough
LAST = 0.5  # measured steps: what is not known of the law may be so many
TOP = {"rank": 1}
RESAMPLES = 400
Z = 1.96  # standard errors to the ends of an interval
NOWHERE = (float("nan"), float("nan"))

Growth = tuple[str, float, tuple[float, float]]  # (law, rate, its 95 % interval)


@dataclass(frozen=True)
class Following:
    """Of one observable: the steps for which networks of each width follow the limit.

    steps, intervals    mean over seeds, 95 % (Student's t, cut at the first and the last step); those that follow to the end
                        count as far as the last step
    until               the last step at which the limit is known well enough
    to_the_end          the share of networks that follow it so far
    predicted           mean of the law of the deviations; None where there is none
    law                 what the medians of the widths of which most do not grow like: "log N" or "√N", "log N or √N" where
                        both fit; "to the end" where too few are left, and of the widest most do; else, and where neither
                        fits, "undecided"
    rate, interval      r of the growth e^{rt} that makes log N of it, per step; not a number where none was found
    """

    observable: str
    tolerance: float
    crossing: int
    until: int
    widths: list[int]
    steps: list[float]
    intervals: list[tuple[float, float]]
    to_the_end: list[float]
    predicted: list[float] | None
    law: str
    rate: float
    interval: tuple[float, float]

    def record(self) -> dict:
        return asdict(self)


def measure_following(dataset: xr.Dataset, prediction: Prediction | None, crossing: int) -> list[Following]:
    """Of loss and sharpness, as far as their limit is known; it crosses the edge of stability at the step ``crossing``."""
    known = [name for name in FOLLOWED if f"{variable(name)}_deviation" in dataset]
    return [_following(dataset, name, prediction, crossing) for name in known]


def relative_deviations(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """(width, seed, step): |network − limit| over |limit|, which in NTP is each network's own; of a divergence infinite."""
    deviation = deviations(dataset, name, selection_of(name), "theory", "fluctuation")
    limit = dataset[variable(name)].sel(selection_of(name)) - deviation
    return (abs(deviation) / abs(limit)).fillna(np.inf).transpose("width", "seed", "step")


def selection_of(name: str) -> dict:
    """Of what is followed: of several eigenvalues the first."""
    return TOP if name == "sharpness" else {}


def followed_steps(off: Bool[np.ndarray, "*shape T"], steps: Int[np.ndarray, " T"]) -> Int[np.ndarray, "*shape"]:
    """The measured step at which one is off for the first time; the last one, if never before it."""
    gone = np.logical_or.accumulate(off, axis=-1)
    return np.sum(~gone[..., :-1] * np.diff(steps), axis=-1)


def predicted_steps(
    relative_std: Float[np.ndarray, " T"], widths: Int[np.ndarray, " W"], steps: Int[np.ndarray, " T"]
) -> Float[np.ndarray, " W"]:
    """The mean over networks, of the law; ``relative_std`` is std(t)/|o_∞(t)|."""
    largest = np.maximum.accumulate(relative_std)
    within = erf(TOLERANCE * np.sqrt(widths)[:, None] / (np.sqrt(2) * largest))
    return np.sum(within[:, :-1] * np.diff(steps), axis=-1)


def growth_of(widths: Int[np.ndarray, " W"], values: Int[np.ndarray, "W S"], every: int = 1) -> Growth:
    """The law of the steps, measured ``every`` so many, for which S networks of each of W widths follow.

    Both shapes are fitted by least squares to the medians, which do not see how long the last ones do (differences that add up
    have no mean), weighted with the errors that resampled seeds show.
    """
    seeds = values.shape[1]
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
    error = np.hypot(np.median(values[:, drawn], axis=2).std(axis=1), every / np.sqrt(12))  # which step it was is rounded
    fits = [_line(shape(widths.astype(float)), np.median(values, axis=1), error) for shape in SHAPES.values()]
    (misfits, (slope, _), (error, _)) = zip(*fits, strict=True)
    low, high = slope - Z * error, slope + Z * error
    if low <= 0 or min(misfits) > chdtri(len(widths) - 2, LEVEL):
        return "undecided", np.nan, NOWHERE
    better, worse = np.argsort(misfits)
    law = list(SHAPES)[better] if misfits[worse] - misfits[better] > DECISIVE else " or ".join(SHAPES)
    return (law, 0.5 / slope, (0.5 / high, 0.5 / low)) if "log N" in law else (law, np.nan, NOWHERE)


def _line(x, y, error) -> tuple[float, float, float]:
    """(χ², slope, its standard error)"""
    weights = 1 / error**2
    x = x - np.average(x, weights=weights)
    slope = np.sum(weights * x * y) / np.sum(weights * x**2)
    beside = y - np.average(y, weights=weights) - slope * x
    return np.sum(weights * beside**2), slope, 1 / np.sqrt(np.sum(weights * x**2))


def until_unknown(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """The steps before the first at which the limit's own error is too large a part of its value."""
    limit, error = (component(dataset, name, selection_of(name)) for component in (limit_component, limit_error))
    if limit is None or error is None:
        return dataset
    lost = np.logical_or.accumulate((error > OWN * TOLERANCE * abs(limit)).values)
    return dataset.isel(step=slice(None, max(int(np.sum(~lost)), 1)))


def _following(dataset, name, prediction, crossing):
    dataset = until_unknown(dataset, name)
    widths, steps = dataset.width.values, dataset.step.values
    off = relative_deviations(dataset, name).values > TOLERANCE
    values, to_the_end = followed_steps(off, steps), 1 - off.any(axis=-1).mean(axis=1)
    law, rate, interval = _law(widths, values, to_the_end, int(np.diff(steps).max(initial=1)))
    reach = stdtrit(values.shape[1] - 1, 0.975) * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    mean = values.mean(axis=1)
    return Following(
        name, TOLERANCE, crossing, int(steps[-1]), widths.tolist(), mean.tolist(),
        [tuple(ends) for ends in np.clip([mean - reach, mean + reach], 0, np.ptp(steps)).T.tolist()], to_the_end.tolist(),
        _predicted(dataset, name, prediction), law, float(rate), tuple(float(end) for end in interval),
    )  # fmt: skip


def _law(widths, values, to_the_end, every) -> Growth:
    lost = to_the_end < 0.5
    if lost.sum() >= FEWEST_WIDTHS:
        return growth_of(widths[lost], values[lost], every)
    return "to the end" if to_the_end[-1] > 0.5 else "undecided", np.nan, NOWHERE


def _predicted(dataset, name, prediction):
    """Where the law ends, before the steps do, networks are off, if but few would have been within at its last step."""
    relative = relative_std(dataset, name, prediction)
    if relative is None:
        return None
    widths, steps = dataset.width.values, dataset.step.values
    least, most = (predicted_steps(np.where(np.isinf(relative), bound, relative), widths, steps) for bound in (np.inf, 0.0))
    return least.tolist() if np.all(most - least <= LAST * np.diff(steps).max(initial=1)) else None


def relative_std(dataset: xr.Dataset, name: str, prediction: Prediction | None) -> Float[np.ndarray, " T"] | None:
    """√N times the relative deviation's predicted standard deviation at the measured steps, infinite from the first on at
    which there is no law; None where there is none at all."""
    limit = limit_component(dataset, name, selection_of(name))
    if prediction is None or variable(name) not in prediction or limit is None:
        return None
    with np.errstate(all="ignore"):
        relative = prediction[name].std[: limit.sizes["step"]] / np.abs(limit.values)
    unknown = np.logical_or.accumulate(~np.isfinite(relative))
    return None if unknown[0] else np.where(unknown, np.inf, relative)
