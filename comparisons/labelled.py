"""Trajectories as arrays, labelled for a file of results or plain for a cell."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Int

from limits.trajectory import OBSERVABLES, RANK, Trajectory


def from_trajectories(
    trajectories: Mapping[int, Sequence[Trajectory]], seeds: Sequence[int] | None = None
) -> xr.Dataset:
    """The trajectories of each width, one per seed, as variables (width, seed, step) and (width, seed, step, rank).

    ``residual_eigenvalues`` have the dimension ``edge`` (upper, lower) in place of ``rank``, which counts from 1, and so does
    ``node`` of a spectral density.
    Where an observable has fewer eigenvalues than another it is filled up with NaN; its attribute ``ranks`` says how
    many it has.  ``<name>_error`` where there are measuring errors; ``<name>_products`` (width, seed, step), integers, where
    matrix-vector products were counted.  ``seeds`` are labels, by default 0, 1, ….
    Raises ValueError where the trajectories differ in steps, seeds or observables.
    """
    if not trajectories or not all(trajectories.values()):
        raise ValueError("no trajectories: wanted at least one seed of at least one width")
    seeds = list(range(len(next(iter(trajectories.values()))))) if seeds is None else list(seeds)
    first = next(iter(trajectories.values()))[0]
    _require_alike(trajectories, first, seeds)
    grid = [[_variables(trajectory) for trajectory in row] for row in trajectories.values()]
    stacked = {name: np.array([[variables[name] for variables in row] for row in grid]) for name in grid[0][0]}
    ranks = max((values.shape[-1] for name, values in stacked.items() if _axis(name) == ("rank",)), default=0)
    coordinates = {"width": list(trajectories), "seed": seeds, "step": first.steps}
    for name, values in stacked.items():
        if _axis(name):
            axis = OBSERVABLES[_parts(name)[0]].axis
            coordinates[axis.name] = list(axis.labels(ranks if axis is RANK else values.shape[-1]))
    return xr.Dataset({name: _labelled(name, values, ranks) for name, values in stacked.items()}, coordinates)


def arrays(trajectories: Sequence[Trajectory]) -> dict[str, np.ndarray]:
    """Of all seeds, (seed, step, …), by the names that variables have: observables, ``<name>_error``, ``<name>_products``."""
    grid = [_variables(trajectory) for trajectory in trajectories]
    return {name: np.array([variables[name] for variables in grid]) for name in grid[0]}


def trajectories(arrays: Mapping[str, np.ndarray], steps: Int[np.ndarray, " T"]) -> list[Trajectory]:
    """What ``arrays`` was given."""
    parts = {name: _parts(name) for name in arrays}
    seeds = len(next(iter(arrays.values())))
    by_seed = [{"": {}, "error": {}, "products": {}} for _ in range(seeds)]
    for name, (observable, kind) in parts.items():
        for seed, values in enumerate(arrays[name]):
            by_seed[seed][kind][observable] = values
    return [Trajectory(steps, kinds[""], kinds["error"], kinds["products"]) for kinds in by_seed]


def _require_alike(trajectories, first, seeds):
    for width, row in trajectories.items():
        if len(row) != len(seeds):
            raise ValueError(f"width {width} has {len(row)} trajectories for {len(seeds)} seeds")
        if any(not np.array_equal(trajectory.steps, first.steps) for trajectory in row):
            raise ValueError(f"width {width} was not measured at the same steps throughout")
        if any(_shapes(trajectory) != _shapes(first) for trajectory in row):
            raise ValueError(f"width {width} does not have the same observables throughout")


def _shapes(trajectory):
    return {name: values.shape for name, values in _variables(trajectory).items()}


def _variables(trajectory: Trajectory) -> dict[str, np.ndarray]:
    errors = {f"{name}_error": values for name, values in trajectory.errors.items()}
    products = {f"{name}_products": counts for name, counts in trajectory.products.items()}
    return {**trajectory.observables, **errors, **products}


def _parts(variable: str) -> tuple[str, str]:
    """(observable, "", "error" or "products") of a variable's name."""
    for kind in ("error", "products"):
        if variable.endswith(f"_{kind}"):
            return variable.removesuffix(f"_{kind}"), kind
    return variable, ""


def _axis(variable) -> tuple[str, ...]:
    name, kind = _parts(variable)
    axis = OBSERVABLES[name].axis
    return (axis.name,) if axis and kind != "products" else ()


def _labelled(variable, values, ranks):
    (name, kind), axis = _parts(variable), _axis(variable)
    observable = OBSERVABLES[name]
    label = {"": "", "error": "measuring error of ", "products": "matrix-vector products of "}[kind]
    definition = {"": "", "error": "bound on what the measuring got wrong in: ", "products": "how many were taken for: "}[kind]
    attributes = {"long_name": label + observable.label, "units": "1", "definition": definition + observable.definition}
    if axis == ("rank",):
        attributes["ranks"] = values.shape[-1]
        values = np.pad(values, [(0, 0)] * 3 + [(0, ranks - values.shape[-1])], constant_values=np.nan)
    return ("width", "seed", "step", *axis), values, attributes
