"""What is called the error of a measured network: its deviation, number by number, from a reference.

    theory          each network minus the limit (in NTP the limit with that network's f(0))
    largest-width   each network minus the network of the largest width that has its seed number, the paper's
                    way.  For independent networks its error A√(1/N + 1/M) is too flat near M, for deterministic gaps
                    A(1/N − 1/M) it is too steep; compare ``comparisons.statistics.power_law``.
"""

from collections.abc import Iterator

import numpy as np
import xarray as xr
from jaxtyping import Bool

from limits import OBSERVABLES


def components(dataset: xr.Dataset) -> Iterator[tuple[str, int | str | None, dict]]:
    """(observable, rank, selection) of every number that is followed in time; sharpness first among the eigenvalues."""
    for name in (n for n in OBSERVABLES if n == "sharpness" or n in dataset):
        if name == "sharpness":
            if "hessian_eigenvalues" in dataset:
                yield name, None, {"rank": 1}
        elif "edge" in dataset[name].dims:
            yield from ((name, str(edge), {"edge": edge}) for edge in dataset["edge"].values)
        elif "rank" in dataset[name].dims:
            ranks = dataset["rank"].values[: dataset[name].attrs["ranks"]]
            yield from ((name, int(rank), {"rank": rank}) for rank in ranks)
        else:
            yield name, None, {}


def variable(name: str) -> str:
    """The stored variable of an observable."""
    return "hessian_eigenvalues" if name == "sharpness" else name


def reference_of(dataset: xr.Dataset, name: str, reference: str) -> str:
    """What is subtracted from an observable: where the limit leaves it open, the largest width stands for it."""
    return reference if f"{variable(name)}_deviation" in dataset else "largest-width"


def deviations(dataset: xr.Dataset, name: str, selection: dict, reference: str, kind: str) -> xr.DataArray:
    """(width, seed, step): what is called the error of one component."""
    stored = variable(name)
    if reference_of(dataset, name, reference) == "largest-width":
        values = dataset[stored].sel(selection)
        return values.isel(width=slice(None, -1)) - values.isel(width=-1, drop=True)
    values = dataset[f"{stored}_deviation"].sel(selection)
    if kind == "bias" and f"{stored}_first_order" in dataset:
        values = values - dataset[f"{stored}_first_order"].sel(selection)
    return values.transpose("width", "seed", "step")


def limit_component(dataset: xr.Dataset, name: str, selection: dict) -> xr.DataArray | None:
    """The limit of one component against step, where it is stored."""
    return _stored(dataset, f"{variable(name)}_limit", selection)


def limit_error(dataset: xr.Dataset, name: str, selection: dict) -> xr.DataArray | None:
    """The own error of that, where it is sampled and stored."""
    return _stored(dataset, f"{variable(name)}_error_limit", selection)


def without_limit(dataset: xr.Dataset, name: str, selection: dict) -> Bool[np.ndarray, " T"]:
    """The steps at which this component has none, as its infinite error says."""
    error = limit_error(dataset, name, selection)
    return np.zeros(len(dataset.step), bool) if error is None else np.isinf(error.values)


def _stored(dataset, variable, selection):
    return dataset[variable].sel(selection) if variable in dataset else None
