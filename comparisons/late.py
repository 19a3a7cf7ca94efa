"""The curvature late in training: whether it is the same at all sizes, that is, super consistent (Noci et al. 2024)."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import linregress
from scipy.stats import t as student_t

from limits.trajectory import STORED

LATE = 0.75  # of the steps, from which on is late
TOLERATED = 1.5  # times the lowest late value may the highest be
FLAT = 0.1  # what moves no faster than N^0.1, by 7 % per doubling of the width, is flat: few widths alone would hide a law


@dataclass(frozen=True)
class Late:
    """An observable late in training: its mean from ``LATE`` of the steps on, over seeds, at each width or depth.

    growing               "width" or "depth"; ``sizes`` are the values it takes
    ratio                 the highest over the lowest of them
    exponent, interval    late value ∝ size^exponent, least squares over all networks, with its 95 % interval
    verdict               "super consistent" (ratio at most ``TOLERATED``, and the whole interval within ±``FLAT``), "grows" or
                          "falls" with the size (the interval leaves out 0), "undecided", or "diverged"
    """

    parametrization: str
    observable: str
    growing: str
    sizes: list[int]
    values: list[float]
    ratio: float
    exponent: float
    interval: tuple[float, float]
    verdict: str


def growing(dataset: xr.Dataset | xr.DataArray) -> str:
    """What the networks of a run differ in: "width" or "depth"."""
    return "depth" if "depth" in dataset.dims else "width"


def followed(dataset: xr.Dataset) -> list[str]:
    """The observables that have one number to be compared: of several eigenvalues the first."""
    return [name for name in STORED if name in dataset and "node" not in dataset[name].dims]


def first(values: xr.DataArray) -> xr.DataArray:
    """(…, step): of several eigenvalues the largest."""
    return values.isel({axis: 0 for axis in ("rank", "edge") if axis in values.dims}, drop=True)


def late_values(dataset: xr.Dataset) -> list[Late]:
    """Of every parametrization and observable."""
    late = dataset.isel(step=dataset.step.values >= LATE * int(dataset.step[-1]))
    found, size = [], growing(dataset)
    for param in dataset.param.values:
        for name in followed(dataset):
            values = first(late[name]).sel(param=param).mean("step", skipna=False).transpose(size, "seed").values
            label = {"parametrization": str(param), "observable": name, "growing": size}
            found.append(_late(label, dataset[size].values, values))
    return found


def _late(label, sizes, values: Float[np.ndarray, "sizes seeds"]) -> Late:
    mean = values.mean(axis=1)
    record = label | {"sizes": sizes.tolist(), "values": mean.tolist()}
    nowhere = np.nan, np.nan
    if not np.isfinite(values).all():
        return Late(**record, ratio=np.nan, exponent=np.nan, interval=nowhere, verdict="diverged")
    size = np.abs(values)
    if np.min(mean) * np.max(mean) <= 0 or size.min() == 0:
        return Late(**record, ratio=np.inf, exponent=np.nan, interval=nowhere, verdict="undecided")
    ratio = float(np.abs(mean).max() / np.abs(mean).min())
    law = linregress(np.log(np.repeat(sizes, values.shape[1])), np.log(size.ravel()))
    reach = law.stderr * student_t.ppf(0.975, values.size - 2)
    interval = float(law.slope - reach), float(law.slope + reach)
    return Late(**record, ratio=ratio, exponent=float(law.slope), interval=interval, verdict=verdict(ratio, interval))


def verdict(ratio: float, interval: tuple[float, float]) -> str:
    """Whether a late value is the same at all sizes."""
    low, high = interval
    if ratio <= TOLERATED and max(-low, high) <= FLAT:
        return "super consistent"
    return "grows" if low > 0 else "falls" if high < 0 else "undecided"
