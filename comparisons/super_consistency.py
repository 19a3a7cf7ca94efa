"""Does the deviation from the limit accumulate?  The time view of a comparison.

At fixed width N let e_N(t) be the root mean square over seeds of o_N(t) − o_∞(t).  Its growth ratio

    g(t) = exp mean_N log( e_N(t)/e_N(0) )

does not depend on N while o_N − o_∞ ~ N^{-1/2} at every t, and is predicted: std(t)/std(0).  An observable is called
super consistent if g never exceeds ``TOLERATED`` (its whole 95 % interval, bootstrapped over seeds, stays below it), and
accumulating if g does exceed it (interval above); between the two it is undecided.  (Noci et al. 2024.)
"""

from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr

from comparisons.rates import components, deviations, variable
from limits.fluctuations import Prediction

TOLERATED = 2.0
RESAMPLES = 400


@dataclass(frozen=True)
class Growth:
    """One observable: g at each measured step, its largest value with interval, what is predicted for it, the verdict."""

    observable: str
    rank: int | str | None
    steps: list[int]
    ratio: list[float]
    predicted_ratio: list[float] | None
    largest: float
    interval: tuple[float, float]
    verdict: str

    def record(self) -> dict:
        return asdict(self)


def measure_growth(
    dataset: xr.Dataset, reference: str, prediction: Prediction | None, unstable_after: int | None
) -> list[Growth]:
    """The growth of every observable.  Steps past the edge of stability, and diverged ones, are left out."""
    stable = np.isfinite(dataset["loss"].values).all(axis=(0, 1))
    if unstable_after is not None:
        stable &= dataset.step.values <= unstable_after
    return [_growth(dataset.isel(step=np.flatnonzero(stable)), *component, reference, prediction)
            for component in components(dataset)]  # fmt: skip


def growth_ratio(errors: np.ndarray) -> np.ndarray:
    """g (T,) of errors (W, S, T); infinite where the start has no error at all (the loss of NTP, given f(0))."""
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.log(np.sqrt(np.mean(errors**2, axis=1)))
        ratio = np.exp(np.mean(magnitude - magnitude[:, :1], axis=0))
    return np.where(np.isnan(ratio), 1.0, ratio)


def _growth(dataset, name, rank, selection, reference, prediction):
    errors = deviations(dataset, name, selection, reference, "fluctuation").values
    ratio = growth_ratio(errors)
    largest, interval = np.max(ratio, initial=1.0), (np.inf, np.inf)
    if np.isfinite(largest):
        draws = np.random.default_rng(0).integers(errors.shape[1], size=(RESAMPLES, errors.shape[1]))
        resampled = [growth_ratio(errors[:, seeds]).max() for seeds in draws]
        interval = tuple(float(q) for q in np.quantile(resampled, (0.025, 0.975)))
    return Growth(name, rank, dataset.step.values.tolist(), ratio.tolist(),
                  _predicted(dataset, name, selection, prediction), float(largest), interval, _verdict(interval))  # fmt: skip


def _predicted(dataset, name, selection, prediction):
    if prediction is None or variable(name) not in prediction:
        return None
    std = prediction[variable(name)].std[: len(dataset.step)]
    if selection:
        std = std[:, selection["rank"] - 1 if "rank" in selection else int(selection["edge"] == "lower")]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (std / std[0]).tolist()


def _verdict(interval):
    if interval[1] <= TOLERATED:
        return "super consistent"
    return "accumulates" if interval[0] > TOLERATED else "undecided"
