"""Does the best learning rate stay where it is when the network grows?  `python -m comparisons.transfer`.

Trains networks of each width, and each depth, with each learning rate η0; then, at the learning rate of the grid next to
the optimum of each size, some of them again, to follow their sharpness.  A divergence is a result: its final loss is not
finite, or larger than it was at the start.  In DIR:

    config.json      the options, and a digest of the data
    cells/           one file per finished network, from which an interrupted run goes on (``comparisons.cells``)
    transfer.nc      loss (param, width, depth, seed, learning_rate, step), initial_loss, final_loss and the limit's
                     final_loss_limit; at the optima, at best_on_grid (param, width, depth), sharpness (…, seed, step), its
                     measuring error, edge_of_stability and the limit's sharpness_limit; no dimension depth if there is one
    transfer.json    {"optima": a list of ``Optimum``, "shifts": a list of ``Shift``}, both of
                     ``comparisons.statistics.minimum``
    transfer         .png and .pdf
    index.html       all of this on one page
"""

import json
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import xarray as xr

from comparisons import command_line, files, results
from comparisons import options as runs
from comparisons import style as plots
from comparisons.cells import Store, begin
from comparisons.optima import picture, table
from comparisons.pairs import Limit
from comparisons.statistics.minimum import Optimum, Shift, analyse, nearest
from comparisons.transfer.networks import Cell, Networks
from comparisons.transfer.options import PROGRAM, Options
from comparisons.transfer.own import OwnNetworks, own_networks
from finite.networks.build import build
from limits.exponents import parametrization


@dataclass(frozen=True)
class Sweep:
    """What one run trains."""

    options: Options
    work: Networks | OwnNetworks
    config: dict

    @property
    def title(self) -> str:
        o = self.options
        return f"{self.work.described(o)}, {o.steps} steps, {o.seeds} seeds"

    @property
    def sizes(self) -> list[tuple[str, int, int | None]]:
        """(parametrization, width, depth)"""
        return list(product(self.options.param, sorted(self.options.widths), self.depths))

    @property
    def depths(self) -> list[int] | list[None]:
        return self.work.depths

    @property
    def seeds(self) -> range:
        return range(self.options.seeds)

    @property
    def cells(self) -> list[Cell]:
        """The largest size, which takes longest, first."""
        return [Cell(*size, rate, seed) for size in reversed(self.sizes) for rate in self.work.rates for seed in self.seeds]

    @property
    def limits(self) -> list[Limit]:
        """Those that are known, and wanted."""
        return [Limit(*key) for key, why in self.work.no_limits.items() if self.options.limit and why is None]

    @property
    def without_limit(self) -> list[str]:
        """A line for each parametrization that has none, which nobody declined: why."""
        lines = [f"no limit is drawn in {param}: {why}" for (param, _), why in self.work.no_limits.items() if why]
        return list(dict.fromkeys(lines)) if self.options.limit else []

    def followed(self, rates: list[float]) -> list[Cell]:
        """The cells that follow the sharpness, at a learning rate for each size."""
        return [Cell(*size, rate, seed, sharpness=True) for size, rate in zip(self.sizes, rates, strict=True)
                for seed in range(self.options.sharpness_seeds)]  # fmt: skip

    def wanted(self, store: Store) -> list[Cell | Limit]:
        """All cells of the run; before the sweep is done, those that follow the sharpness are at no learning rate yet."""
        swept = not store.missing(self.cells)
        rates = best_on_grid(self, analyse(losses(self, store))[0]) if swept else [np.nan] * len(self.sizes)
        return self.cells + self.limits + self.followed(rates)

    def gridded(self, values: list, **axes) -> xr.DataArray:
        """Values in the order of ``sizes``, of each along these axes; without a dimension of one depth."""
        sizes = {"param": list(self.options.param), "width": sorted(self.options.widths), "depth": self.depths}
        coordinates = sizes | axes
        shape = [len(axis) for axis in coordinates.values()]
        return self.squeezed(xr.DataArray(np.reshape(np.array(values, dtype=float), shape), coordinates, list(coordinates)))

    def squeezed(self, values: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
        return values.squeeze("depth", drop=self.depths == [None]) if len(self.depths) == 1 else values


def transfer(options: Options) -> tuple[list[Optimum], list[Shift]]:
    """The whole job.  Raises ValueError or files.Refused, in one line, before anything is written.

    Raises cells.Failed where cells failed, after all others are kept.
    """
    sweep = prepare(options)
    options, work = sweep.options, sweep.work
    with begin(work, options, sweep.config, f"transfer-{results.slug(options.name)}", PROGRAM, sweep.wanted) as run:
        if run is None:
            return [], []
        work.announce(options.param)
        swept = sweep.cells + sweep.limits
        run.ensure(swept)
        dataset = losses(sweep, run.store).assign(limits_of(sweep, run.store).data_vars)
        optima, shifts = analyse(dataset)
        rates = best_on_grid(sweep, optima)
        followed = sweep.followed(rates)
        run.ensure(followed)
        if followed:
            dataset = dataset.assign(sharpness(sweep, run.store, rates).data_vars)
        made = run.store.provenance(swept + followed)
        files.write(dataset.assign_attrs(made), run.folder / "transfer.nc")
        record = {"optima": [asdict(o) for o in optima], "shifts": [asdict(s) for s in shifts]}
        files.write_json(record, run.folder / "transfer.json")
        plots.save(picture(dataset, optima, shifts, sweep.title), run.folder / "transfer")
        run.conclude("\n".join([table(optima, shifts, sweep.title), *sweep.without_limit]), made)
    return optima, shifts


def prepare(options: Options) -> Sweep:
    """Check the options and build the problem.  Raises ValueError in one line."""
    o = options.adapted()
    _check(o)
    if o.own:
        return Sweep(replace(o, param=(o.name,)), *own_networks(o))
    base = o.problem(parametrization=o.param[0], depth=o.depths[0], learning_rate=min(o.learning_rates),
                     top_k=1)  # fmt: skip
    runs.check_depths(o.model, o.depths)
    scalings = {}  # a file is read once
    for param, depth in product(o.param, o.depths):
        problem = replace(base, parametrization=param, depth=depth)
        scalings[param, problem.network.depth] = problem.scaling()
    exponents = [parametrization.rows(scaling) for scaling in scalings.values()]
    rates = tuple(sorted(o.learning_rates))
    work = Networks(base, scalings, rates, o.seed, o.seeds, o.sharpness_seeds, o.precision, o.curvature_samples)
    sweep = Sweep(o, work, runs.config(o, base.inputs, base.targets) | {"exponents": exponents})
    for param, width, depth in sweep.sizes:
        build(work.problem(param, depth), width)  # raises here what it cannot be
    return sweep


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


def losses(sweep: Sweep, store: Store) -> xr.Dataset:
    """loss (param, width, depth, seed, learning_rate, step), its first and its last, read from the cells."""
    work, rates = sweep.work, list(sweep.work.rates)
    values = [[[store.read(Cell(*size, rate, seed))["loss"] for rate in rates] for seed in sweep.seeds]
              for size in sweep.sizes]  # fmt: skip
    loss = sweep.gridded(values, seed=list(sweep.seeds), learning_rate=rates, step=work.steps)
    attributes = work.of_loss
    described = {"units": "1", "definition": attributes.pop("definition")}
    final, initial = loss.isel(step=-1, drop=True), loss.isel(step=0, learning_rate=0, drop=True)
    dataset = xr.Dataset({
        "final_loss": final.assign_attrs(described, long_name="loss after the last step; not finite after a divergence"),
        "initial_loss": initial.assign_attrs(described, long_name="loss before the first step"),
        "loss": loss.assign_attrs(described, long_name="loss before the step"),
    })  # fmt: skip
    return dataset.assign_attrs(attributes, title=sweep.title, configuration=json.dumps(sweep.config))


def best_on_grid(sweep: Sweep, optima: list[Optimum]) -> list[float]:
    """The learning rate of the grid next to the optimum of each size."""
    best = {(o.parametrization, o.width, o.depth): o.best_learning_rate for o in optima}
    rates = np.array(sweep.work.rates)
    return [float(rates[nearest(rates, best[size])]) for size in sweep.sizes]


def sharpness(sweep: Sweep, store: Store, rates: list[float]) -> xr.Dataset:
    """sharpness (param, width, depth, seed, step) at these learning rates, its error, and the edges of stability."""
    work, seeds = sweep.work, list(range(sweep.options.sharpness_seeds))
    cells = list(map(store.read, sweep.followed(rates)))
    edges = [work.edge(param, depth, rate) for (param, _, depth), rate in zip(sweep.sizes, rates, strict=True)]
    observable, definition, symbol = work.of_sharpness(edges)
    described = {"units": "1", "definition": definition, "symbol": observable.symbol}
    followed = {name: sweep.gridded([cell[name] for cell in cells], seed=seeds, step=work.steps)
                for name in ("sharpness", "sharpness_error")}  # fmt: skip
    return xr.Dataset({
        "sharpness": followed["sharpness"].assign_attrs(described, long_name=f"{observable.label} at best_on_grid"),
        "sharpness_error": followed["sharpness_error"].assign_attrs(units="1", long_name="measuring error of the sharpness"),
        "best_on_grid": sweep.gridded(rates).assign_attrs(
            units="1", long_name="learning rate of the grid next to the optimum"),
        "edge_of_stability": sweep.gridded(edges).assign_attrs(
            units="1", long_name="sharpness beyond which best_on_grid is unstable", symbol=symbol),
    }).reindex(seed=list(sweep.seeds))  # fmt: skip  (one that was not followed is not a number)


def limits_of(sweep: Sweep, store: Store) -> xr.Dataset:
    """final_loss_limit (param, depth, learning_rate) and, at its lowest, sharpness_limit (param, depth, step).

    Not a number where no limit is known, or where it leaves the sharpness open; empty where that is so throughout.
    """
    if not sweep.limits:
        return xr.Dataset()
    stored, rates, steps = {cell: store.read(cell) for cell in sweep.limits}, list(sweep.work.rates), sweep.work.steps
    params, lacking = list(sweep.options.param), {"final_loss_limit": np.full(len(rates), np.nan),
                                                  "sharpness_limit": np.full(len(steps), np.nan)}  # fmt: skip
    told = {"final_loss_limit": ("learning_rate", {"long_name": "final loss at infinite width", "units": "1",
                                                   "definition": "NTP: mean over f(0)"}),
            "sharpness_limit": ("step", {"long_name": "sharpness at infinite width, at its best learning rate of the grid",
                                         "units": "1"})}  # fmt: skip
    dataset = xr.Dataset(
        {name: (("param", "depth", axis),
                [[stored.get(Limit(param, depth), lacking)[name] for depth in sweep.depths] for param in params], attributes)
         for name, (axis, attributes) in told.items()},
        {"param": params, "depth": sweep.depths, "learning_rate": rates, "step": steps},
    )  # fmt: skip
    return sweep.squeezed(dataset if dataset["sharpness_limit"].notnull().any() else dataset.drop_vars("sharpness_limit"))


def main(arguments=None) -> None:
    command_line.run(Options, transfer, PROGRAM, arguments)
