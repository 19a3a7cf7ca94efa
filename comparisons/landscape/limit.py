"""The infinite network beside those of a landscape: what of its limit is known, and why the rest is not."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from comparisons import labelled, pairs
from comparisons.cells import Values
from limits import Problem, Trajectory
from limits.losses import LOSSES
from limits.theories import outputs_are_random, solve
from limits.trajectory import OF_HESSIAN

UNKNOWN = "unknown"  # in a cell: why each observable that is not there is not
OF_OUTPUTS = {*OF_HESSIAN, "gauss_newton_eigenvalues"}  # of whatever loss is not quadratic they depend on f


def left_out(problem: Problem, observables: Sequence[str], samples: int) -> dict[str, str]:
    """Of these observables, those that no limit is to be asked for, whose curvature is that of the first so many samples."""
    why = {}
    if outputs_are_random(problem) and not LOSSES[problem.loss].quadratic:
        why = dict.fromkeys(OF_OUTPUTS, f"with {problem.loss} it depends on f(0), which stays random")
    if samples < problem.num_samples:
        fewer = f"the networks' is of the first {samples} samples, the limit's of all {problem.num_samples}"
        why |= dict.fromkeys(set(observables) - {"loss"}, fewer)
    if set(observables) & set(OF_HESSIAN) - set(why) and (too_dear := pairs.why_no_limit(problem)):
        why |= dict.fromkeys(OF_HESSIAN, too_dear)
    return {name: why[name] for name in observables if name in why}


def needs_hessian(problem: Problem, observables: Sequence[str], samples: int) -> bool:
    """Whether any of what is to be asked for is the Hessian's, which takes most of the time."""
    return bool(set(observables) & set(OF_HESSIAN) - set(left_out(problem, observables, samples)))


def computed(problem: Problem, observables: Sequence[str], samples: int) -> Values:
    """The arrays of a cell.  A limit that turns out not to fit this machine is not known, which is no failure."""
    unknown = left_out(problem, observables, samples)
    wanted = [name for name in observables if name not in unknown]
    try:
        limit = solve(problem, hessian=needs_hessian(problem, observables, samples))
    except (ValueError, MemoryError) as refusal:
        return {UNKNOWN: np.array(json.dumps(dict.fromkeys(observables, str(refusal))))}
    left_open = pairs.left_open(limit)
    known = [name for name in wanted if name in limit and name not in left_open]
    reasons = limit.left_open | left_open
    unknown |= {name: reasons.get(name, "theory leaves it open") for name in wanted if name not in known}
    arrays = labelled.arrays([pairs.only(limit, known)]) if known else {}
    return {**arrays, UNKNOWN: np.array(json.dumps(unknown))}


def read(values: Values, problem: Problem) -> tuple[Trajectory | None, dict[str, str]]:
    """(what is known, why the rest is not), of the arrays of a cell."""
    arrays = dict(values)
    unknown = json.loads(str(arrays.pop(UNKNOWN)))
    return labelled.trajectories(arrays, problem.steps)[0] if arrays else None, unknown


def why_not(unknown: Mapping[str, str], param: str) -> list[str]:
    """A line for each reason that there is."""
    names: dict[str, list[str]] = {}
    for name, why in unknown.items():
        names.setdefault(why, []).append(name)
    return [f"no limit is drawn of {', '.join(observables)} in {param}: {why}" for why, observables in names.items()]


def together(limits: Sequence[xr.Dataset], params: Sequence[str], depths: Sequence[int]) -> xr.Dataset:
    """Of each (param, depth) what is known, the rest not a number."""
    return xr.merge(limits, join="outer", compat="no_conflicts").reindex(param=list(params), depth=list(depths))


def named(limit: Trajectory) -> xr.Dataset:
    """Every observable, (step[, rank]), by names that say what it is."""
    dataset = labelled.from_trajectories({1: [limit]}).isel(width=0, seed=0, drop=True)
    for values in dataset.data_vars.values():
        values.attrs["long_name"] += ", at infinite width"
        values.attrs["definition"] = f"value at infinite width of: {values.attrs['definition']}"
    return dataset.rename({name: f"{name}_limit" for name in dataset.data_vars})
