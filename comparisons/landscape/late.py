"""The curvature late in training, at all sizes of a run: whether they agree (``comparisons.statistics.super_consistency``)."""

from dataclasses import asdict, dataclass, replace

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


def late_agreement(values: xr.DataArray, loss: xr.DataArray | None = None) -> Agreement:
    """Of one observable (width or depth, seed, step).

    With the ``loss`` of the same networks what has not been found of one that is finite, as an eigenvalue that Lanczos could
    not, is left out; without it, it counts as diverged.
    """
    size, late = growing(values), late_steps(values.step.values)
    means = values.isel(step=late).mean("step", skipna=loss is not None).transpose(size, "seed")
    if loss is None:
        return agreement(values[size].values, means.values)
    trained = np.isfinite(loss.isel(step=late)).all("step").transpose(size, "seed")
    found = agreement(values[size].values, means.where(trained).values)
    return replace(found, diverged=not bool(trained.all()))


def statement(values: xr.DataArray, loss: xr.DataArray | None = None) -> str:
    """What a picture of one observable says of it; ``loss`` as in ``late_agreement``."""
    late = late_agreement(values, loss)
    return f"late × {late.ratio:.2f}: {verdict(late)}" if np.isfinite(late.ratio) else verdict(late)


def late_values(dataset: xr.Dataset) -> list[Late]:
    """Of every parametrization and observable."""
    records = []
    for param in dataset.param.values:
        for name in followed(dataset):
            late = late_agreement(*(first(dataset[one]).sel(param=param) for one in (name, "loss") if one in dataset))
            label = {"parametrization": str(param), "observable": name, "growing": growing(dataset)}
            records.append(Late(**label, verdict=verdict(late), **asdict(late)))
    return records
