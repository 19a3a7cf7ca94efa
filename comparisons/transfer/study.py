"""Does the best learning rate stay where it is when the network grows?  `python -m comparisons.transfer`.

Trains networks of each width, and each depth, with each learning rate η0; then, at the learning rate of the grid next to
the optimum of each size, some of them again, to follow their sharpness.  A divergence is a result: its final loss is not
finite, or larger than it was at the start.  In DIR:

    config.json      the options, and a digest of the data
    cells/           one file per finished network, from which an interrupted run goes on (``comparisons.sweep``)
    transfer.nc      loss (param, width, depth, seed, learning_rate, step), initial_loss, final_loss and the limit's
                     final_loss_limit; at the optima, at best_on_grid (param, width, depth), sharpness (…, seed, step), its
                     measuring error, edge_of_stability and the limit's sharpness_limit; no dimension depth if there is one
    transfer.json    {"optima": a list of ``Optimum``, "shifts": a list of ``Shift``}, both of ``comparisons.transfer.optimum``
    transfer         .png and .pdf
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr

from comparisons import cases, command_line, estimate, records, sweep
from comparisons import options as runs
from comparisons import style as plots
from comparisons.sweep import Row, Work
from comparisons.transfer.optimum import Optimum, Shift, analyse, nearest
from comparisons.transfer.options import PROGRAM, Options
from comparisons.transfer.picture import picture, table
from finite.networks.build import build
from limits import OBSERVABLES, Problem
from limits.exponents import parametrization
from limits.optimizers import OPTIMIZERS
from limits.theories import solve, theory
from limits.two_layer import linear as linear2

WHERE = ("processes", "cluster")  # options on which no number depends


@dataclass(frozen=True)
class Sweep:
    """What one run trains."""

    options: Options
    work: Work
    config: dict

    @property
    def title(self) -> str:
        o, base = self.options, self.work.base
        return f"{runs.sized(o, base)}, {o.steps} steps, {o.seeds} seeds"

    @property
    def rates(self) -> list[float]:
        return sorted(self.options.learning_rates)

    @property
    def sizes(self) -> list[tuple[str, int, int]]:
        """(parametrization, width, depth)"""
        return list(product(self.options.param, sorted(self.options.widths), self.depths))

    @property
    def depths(self) -> list[int]:
        """The networks' own: one that a model says in its name is not the option's."""
        return sorted({depth for _, depth in self.work.scalings})

    def rows(self) -> list[Row]:
        """All cells.  Every size in turn, the largest first: so the time left is told well from the start."""
        seeds = tuple(range(self.options.seeds))
        return [Row(*size, rate, seeds) for rate in self.rates for size in reversed(self.sizes)]

    @cached_property
    def problems(self) -> dict[tuple[str, int], Problem]:
        """By parametrization and depth; made once, each holds all data."""
        return {key: self.work.problem(*key) for key in self.work.scalings}

    def networks(self) -> list[estimate.Networks]:
        """Of all rows, and of those that follow the sharpness."""
        o, found = self.options, []
        for param, width, depth in self.sizes:
            problem, count = self.problems[param, depth], o.seeds * len(o.learning_rates)
            found.append(estimate.Networks(problem, width, count, cells=count))
            if o.sharpness_seeds:
                count, followed = o.sharpness_seeds, ("loss", sweep.sharpness(problem))
                found.append(estimate.Networks(problem, width, count, followed, o.curvature_samples, count))
        return found

    def gridded(self, values: list, **axes) -> xr.DataArray:
        """Values in the order of ``sizes``, of each along these axes; without a dimension of one depth."""
        sizes = {"param": list(self.options.param), "width": sorted(self.options.widths), "depth": self.depths}
        coordinates = sizes | axes
        shape = [len(axis) for axis in coordinates.values()]
        return self.squeezed(xr.DataArray(np.reshape(np.array(values, dtype=float), shape), coordinates, list(coordinates)))

    def squeezed(self, values: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
        return values.squeeze("depth") if len(self.depths) == 1 else values


def transfer(options: Options) -> tuple[list[Optimum], list[Shift]]:
    """The whole job.  Raises ValueError or records.Refused, in one line, before anything is written.

    Raises sweep.Failed where cells failed, after all others are kept.
    """
    prepared = prepare(options)
    options = prepared.options
    engine = sweep.Engine(options.processes, options.cluster)
    if not estimate.begins(prepared.networks(), PROGRAM, options.dry_run):
        return [], []
    for param in options.param:
        if runs.slug(param) != param:  # one of the user's own
            print(cases.regime(prepared.work.problem(param, prepared.depths[0])), flush=True)
    folder = runs.folder(options.out, f"transfer-{options.model}", prepared.config)
    with records.claim(folder, prepared.config, PROGRAM) as store:
        prepared = replace(prepared, work=replace(prepared.work, folder=folder.resolve()))
        sweep.ensure(prepared.work, prepared.rows(), engine, PROGRAM)
        dataset = losses(prepared).assign(limits_of(prepared, store).data_vars)
        optima, shifts = analyse(dataset)
        rows = []
        if options.sharpness_seeds:
            rows = at_optima(prepared, optima)
            sweep.ensure(prepared.work, rows, engine, PROGRAM)
            dataset = dataset.assign(sharpness(prepared, rows).data_vars)
        records.write(dataset.assign_attrs(prepared.work.provenance([*prepared.rows(), *rows])), folder / "transfer.nc")
        found = {"optima": [asdict(o) for o in optima], "shifts": [asdict(s) for s in shifts]}
        records.write_json(found, folder / "transfer.json")
        plots.save(picture(dataset, optima, shifts, prepared.title), folder / "transfer")
        print(table(optima, shifts, prepared.title))
        print(f"results in {folder}")
    return optima, shifts


def prepare(options: Options) -> Sweep:
    """Check the options and build the problem.  Raises ValueError in one line."""
    o = options.adapted()
    _check(o)
    base = o.problem(parametrization=o.param[0], depth=o.depths[0], learning_rate=min(o.learning_rates),
                     top_k=1)  # fmt: skip
    runs.check_depths(o.model, o.depths)
    scalings = {}  # a file is read once
    for param, depth in product(o.param, o.depths):
        problem = replace(base, parametrization=param, depth=depth)
        scalings[param, problem.network.depth] = problem.scaling()
    config = runs.config(o, base.inputs, base.targets) | {"exponents": [parametrization.rows(one) for one in scalings.values()]}
    config = {name: value for name, value in config.items() if name not in WHERE}
    prepared = Sweep(o, Work(base, scalings, o.seed, o.seeds, o.precision, o.curvature_samples, o.out or Path()), config)
    for param, width, depth in prepared.sizes:
        build(prepared.problems[param, depth], width)  # raises here what it cannot be
    return prepared


def _check(o: Options) -> None:
    runs.check_distinct("parametrizations", o.param, 1)
    runs.check_distinct("depths", o.depths, 1)
    runs.check_distinct("widths", o.widths, 1 if len(o.depths) > 1 else 2)
    runs.check_distinct("learning rates", o.learning_rates, 3)
    runs.check_seeds(o.seeds, o.seed)
    if o.steps < 1:
        raise ValueError(f"{o.steps} steps: at least 1 is needed for a final loss")
    runs.check_interval(o.measure_every, o.steps)
    if o.curvature_samples < 1:
        raise ValueError(f"curvature-samples {o.curvature_samples} must be at least 1")
    if not 0 <= o.sharpness_seeds <= o.seeds:
        raise ValueError(f"sharpness-seeds {o.sharpness_seeds} must be from 0 to the {o.seeds} seeds")


# Results --------------------------------------------------------------------------------------------------------------


def losses(prepared: Sweep) -> xr.Dataset:
    """loss (param, width, depth, seed, learning_rate, step), its first and its last, read from the cells."""
    work, base, seeds = prepared.work, prepared.work.base, tuple(range(prepared.options.seeds))
    values = [[[work.read(Row(*size, rate, seeds), seed)["loss"] for rate in prepared.rates] for seed in seeds]
              for size in prepared.sizes]  # fmt: skip
    loss = prepared.gridded(values, seed=list(seeds), learning_rate=prepared.rates, step=base.steps)
    definition = OBSERVABLES["loss"].definition if base.loss == "mse" else "mean cross-entropy over all samples"
    described = {"units": "1", "definition": definition}
    final, initial = loss.isel(step=-1, drop=True), loss.isel(step=0, learning_rate=0, drop=True)
    dataset = xr.Dataset({
        "final_loss": final.assign_attrs(described, long_name="loss after the last step; not finite after a divergence"),
        "initial_loss": initial.assign_attrs(described, long_name="loss before the first step"),
        "loss": loss.assign_attrs(described, long_name="loss before the step"),
    })  # fmt: skip
    attributes = {"title": prepared.title, "precision": prepared.options.precision, "loss": base.loss}
    return dataset.assign_attrs(attributes, configuration=json.dumps(prepared.config))


def at_optima(prepared: Sweep, optima: list[Optimum]) -> list[Row]:
    """The cells that follow the sharpness: at the learning rate of the grid next to the optimum of each size."""
    best = {(o.parametrization, o.width, o.depth): o.best_learning_rate for o in optima}
    rates, seeds = np.array(prepared.rates), tuple(range(prepared.options.sharpness_seeds))
    return [Row(*size, float(rates[nearest(rates, best[size])]), seeds, sharpness=True) for size in prepared.sizes]


def sharpness(prepared: Sweep, rows: list[Row]) -> xr.Dataset:
    """sharpness (param, width, depth, seed, step) of the rows, its error, their learning rates and edges of stability."""
    work, seeds = prepared.work, list(range(prepared.options.sharpness_seeds))
    row, symbol = OPTIMIZERS[work.base.optimizer], "edge of stability"
    observable = OBSERVABLES[row.sharpness]
    cells = [[work.read(row, seed) for seed in seeds] for row in rows]
    edges = [work.problem(row.param, row.depth, row.learning_rate).preconditioned_edge_of_stability for row in rows]
    if not (row.preconditioned or work.base.momentum or work.base.weight_decay):
        symbol += r" $2/\eta_0$"
    described = {"units": "1", "definition": observable.definition, "symbol": observable.symbol}
    followed = {name: prepared.gridded([[one[name] for one in row] for row in cells], seed=seeds, step=work.base.steps)
                for name in ("sharpness", "sharpness_error")}  # fmt: skip
    return xr.Dataset({
        "sharpness": followed["sharpness"].assign_attrs(described, long_name=f"{observable.label} at best_on_grid"),
        "sharpness_error": followed["sharpness_error"].assign_attrs(units="1", long_name="measuring error of the sharpness"),
        "best_on_grid": prepared.gridded([row.learning_rate for row in rows]).assign_attrs(
            units="1", long_name="learning rate of the grid next to the optimum"),
        "edge_of_stability": prepared.gridded(edges).assign_attrs(
            units="1", long_name="sharpness beyond which best_on_grid is unstable", symbol=symbol),
    }).reindex(seed=range(prepared.options.seeds))  # fmt: skip  (one that was not followed is not a number)


# Limits ---------------------------------------------------------------------------------------------------------------


def limits_of(prepared: Sweep, store: records.Store) -> xr.Dataset:
    """final_loss_limit (param, depth, learning_rate) and, at its lowest, sharpness_limit (param, depth, step).

    Not a number where no limit is known, or where it leaves the sharpness open; empty where that is so throughout.
    """
    options, found = prepared.options, {}
    known = [key for key in product(options.param, prepared.depths)
             if options.limit and cases.limit_is_known(prepared.work.problem(*key))]  # fmt: skip
    with runs.Progress({key: "{} limit L = {}".format(*key) for key in known}) as progress:
        for param, depth in known:
            progress.describe(f"{param} limit")
            name, report = f"{runs.slug(param)}-L{depth}-limit", progress.report((param, depth))
            found[param, depth] = store.kept(name, lambda: limit(prepared, param, depth, report))  # noqa: B023
            report(1.0)
    if not found:
        return xr.Dataset()
    empty = xr.full_like(next(iter(found.values())), np.nan)
    rows = [xr.concat([found.get((param, depth), empty) for depth in prepared.depths], "depth") for param in options.param]
    dataset = xr.concat(rows, "param").assign_coords(param=list(options.param), depth=prepared.depths)
    return prepared.squeezed(dataset if dataset["sharpness_limit"].notnull().any() else dataset.drop_vars("sharpness_limit"))


def limit(
    prepared: Sweep, param: str, depth: int, report: Callable[[float], None] = lambda part: None
) -> xr.Dataset:
    """The infinite network's final loss at each learning rate (in NTP, where f(0) is random, its mean), and the sharpness."""
    report(0.0)
    work, rates, problem = prepared.work, prepared.rates, prepared.work.problem(param, depth)
    # measured at the end only; but of linear2 another schedule takes longer to compile than all that it saves
    every = work.base.measure_every if theory(problem) is linear2 else prepared.options.steps
    found = [solve(replace(problem, learning_rate=rate, measure_every=every))["loss"][-1] for rate in rates]
    best = rates[int(np.nanargmin([one if np.isfinite(one) else np.inf for one in found]))]
    curve = np.full(len(work.base.steps), np.nan)
    if prepared.options.sharpness_seeds and sweep.sharpness(work.base) == "hessian_eigenvalues":
        trajectory = solve(work.problem(param, depth, best))
        if "sharpness" in trajectory and np.isfinite(trajectory.error("sharpness")).all():
            curve = trajectory["sharpness"]
    described = {"long_name": "final loss at infinite width", "units": "1", "definition": "NTP: mean over f(0)"}
    return xr.Dataset({"final_loss_limit": ("learning_rate", found, described),
                       "sharpness_limit": ("step", curve, {"long_name": "sharpness at infinite width, at its best learning "
                                                           "rate of the grid", "units": "1"})},
                      {"learning_rate": rates, "step": work.base.steps})  # fmt: skip


def main(arguments=None) -> None:
    command_line.run(Options, transfer, PROGRAM, arguments)
