"""The curvature late in training, at all sizes of a run: whether they agree (``comparisons.super_consistency``)."""

from dataclasses import asdict, dataclass

import xarray as xr

from comparisons.super_consistency import Agreement, agreement, late_steps, verdict
from limits.trajectory import STORED


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
    return [name for name in STORED if name in dataset and "node" not in dataset[name].dims]


def first(values: xr.DataArray) -> xr.DataArray:
    """(…, step): of several eigenvalues the largest."""
    return values.isel({axis: 0 for axis in ("rank", "edge") if axis in values.dims}, drop=True)


def late_values(dataset: xr.Dataset) -> list[Late]:
    """Of every parametrization and observable."""
    late, size = dataset.isel(step=late_steps(dataset.step.values)), growing(dataset)
    found = []
    for param in dataset.param.values:
        for name in followed(dataset):
            values = first(late[name]).sel(param=param).mean("step", skipna=False).transpose(size, "seed").values
            one = agreement(dataset[size].values, values)
            found.append(Late(parametrization=str(param), observable=name, growing=size, verdict=verdict(one), **asdict(one)))
    return found
