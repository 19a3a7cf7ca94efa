"""The curvature late in training, at all sizes of a run: whether they agree (``comparisons.statistics.super_consistency``)."""

from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr

from comparisons.statistics.super_consistency import Agreement, agreement, late_steps, verdict
from limits.trajectory import OBSERVABLES, storable


@dataclass(frozen=True, kw_only=True)
class Late(Agreement):
    """An observable late in training.

    growing    "width" or "depth", of which ``sizes`` are the values
    verdict    "super consistent", "grows" or "falls" with the size, "undecided", or "diverged"
    """

    parametrization: str
    observable: str
    growing: str
    verdict: str


def growing(dataset: xr.Dataset | xr.DataArray) -> str:
    """What the networks of a run differ in: "width" or "depth"."""
    return "depth" if "depth" in dataset.dims else "width"


def followed(dataset: xr.Dataset) -> list[str]:
    """The observables that have one number to be compared: of several eigenvalues the first."""
    return [name for name in storable() if name in dataset and OBSERVABLES[name].leads]


def first(values: xr.DataArray) -> xr.DataArray:
    """(…, step): of several eigenvalues the largest."""
    axes = {observable.axis.name for observable in OBSERVABLES.values() if observable.axis}
    return values.isel({axis: 0 for axis in axes if axis in values.dims}, drop=True)


def late_agreement(values: xr.DataArray) -> Agreement:
    """Of one observable (width or depth, seed, step)."""
    size, late = growing(values), values.isel(step=late_steps(values.step.values))
    return agreement(values[size].values, late.mean("step", skipna=False).transpose(size, "seed").values)


def statement(values: xr.DataArray) -> str:
    """What a picture of one observable says of it."""
    late = late_agreement(values)
    return f"late × {late.ratio:.2f}: {verdict(late)}" if np.isfinite(late.ratio) else verdict(late)


def late_values(dataset: xr.Dataset) -> list[Late]:
    """Of every parametrization and observable."""
    records = []
    for param in dataset.param.values:
        for name in followed(dataset):
            late = late_agreement(first(dataset[name]).sel(param=param))
            label = {"parametrization": str(param), "observable": name, "growing": growing(dataset)}
            records.append(Late(**label, verdict=verdict(late), **asdict(late)))
    return records
