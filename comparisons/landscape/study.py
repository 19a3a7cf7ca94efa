"""What does the loss look like around a network in training, at every size?  `python -m comparisons.landscape`.

Trains networks of each width, or each depth, and follows the curvature of their loss (any observable of
``limits.trajectory``, rescaled), all but the loss on a fixed set of samples.  Says of each whether late in training it is
the same at all sizes: super consistent, see ``comparisons.super_consistency``.  In DIR:

    config.json      the options, and a digest of the data
    cells/           one file per finished size of a parametrization, from which an interrupted run goes on
    landscape.nc     every observable (param, width or depth, seed, step[, rank]), its measuring error and the matrix-vector
                     products it took; edge_of_stability (param)
    landscape.json   a list of ``comparisons.landscape.late.Late``
    landscape        .png and .pdf, and density, where it was asked for
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product

import xarray as xr

from comparisons import cases, command_line, estimate, records
from comparisons import options as runs
from comparisons import style as plots
from comparisons.landscape.late import Late, late_values
from comparisons.landscape.options import PROGRAM, Options
from comparisons.landscape.picture import density, picture, table
from finite import Numerics
from finite.networks.build import build
from finite.training.train import check, train
from limits import Problem
from limits.exponents import parametrization
from limits.trajectory import storable

DENSITY = ("density_nodes", "density_weights")


@dataclass(frozen=True)
class Run:
    """What one run trains: a problem per parametrization and depth, networks that grow in ``growing``."""

    options: Options
    problems: dict[tuple[str, int], Problem]
    config: dict

    @property
    def growing(self) -> str:
        return "depth" if len(self.options.depths) > 1 else "width"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, depth)"""
        return list(product(sorted(self.options.widths), sorted(self.options.depths)))

    @property
    def observables(self) -> tuple[str, ...]:
        return self.options.observables + DENSITY * self.options.density

    def networks(self) -> list[estimate.Networks]:
        """Of every cell."""
        o = self.options
        return [estimate.Networks(self.problems[param, depth], width, o.seeds, self.observables, o.curvature_samples)
                for param, (width, depth) in product(o.param, self.sizes)]  # fmt: skip

    @property
    def title(self) -> str:
        o = self.options
        return f"{runs.sized(o, next(iter(self.problems.values())))}, {o.steps} steps, {o.seeds} seeds"


def landscape(options: Options) -> list[Late]:
    """The whole job.  Raises ValueError or records.Refused, in one line, before anything is written."""
    run = prepare(options)
    options = run.options
    if not estimate.begins(run.networks(), PROGRAM, options.dry_run):
        return []
    for param in options.param:
        if runs.slug(param) != param:  # one of the user's own
            print(cases.regime(run.problems[param, options.depths[0]]), flush=True)
    folder = runs.folder(options.out, f"landscape-{options.model}", run.config)
    with records.claim(folder, run.config, PROGRAM) as store:
        dataset = _trained(run, store)
        records.write(dataset, folder / "landscape.nc")
        found = late_values(dataset)
        records.write_json([asdict(one) for one in found], folder / "landscape.json")
        plots.save(picture(dataset, found, run.title), folder / "landscape")
        if options.density:
            plots.save(density(dataset, run.title), folder / "density")
        print(table(found, run.title))
        print(f"results in {folder}")
    return found


def prepare(options: Options) -> Run:
    """Check the options and build the problems.  Raises ValueError in one line."""
    o = options.adapted()
    runs.check_distinct("parametrizations", o.param, 1)
    runs.check_distinct("depths", o.depths, 1)
    runs.check_distinct("widths", o.widths, 1 if len(o.depths) > 1 else 2)
    if len(o.depths) > 1 and len(o.widths) > 1:
        raise ValueError(f"{len(o.widths)} widths and {len(o.depths)} depths: one of them grows, of the other give one")
    runs.check_seeds(o.seeds, o.seed)
    if len(o.learning_rate) not in (0, 1, len(o.param)):
        raise ValueError(f"{len(o.learning_rate)} learning rates for {len(o.param)} parametrizations: one for each, or one")
    if o.steps < 1:
        raise ValueError(f"{o.steps} steps: at least 1 is needed")
    runs.check_interval(o.measure_every, o.steps)
    runs.check_distinct("observables", o.observables, 1)
    known = [name for name in storable() if name not in DENSITY]
    if unknown := [name for name in o.observables if name not in known]:
        raise ValueError(f"unknown observable {' '.join(unknown)!r}; known: {', '.join(known)}; --density for the density")
    usual = tuple(7.0 if param == "ntp" else 0.5 for param in o.param)
    rates = o.learning_rate * (len(o.param) // max(len(o.learning_rate), 1)) or usual
    base = o.problem(parametrization=o.param[0], learning_rate=rates[0], depth=o.depths[0])
    runs.check_depths(o.model, o.depths)
    if not 0 < o.tolerance < 1:
        raise ValueError(f"tolerance {o.tolerance:g} must be above 0 and below 1")
    if o.curvature_samples < 1:
        raise ValueError(f"curvature-samples {o.curvature_samples} must be at least 1")
    problems = {}
    for (param, rate), depth in product(zip(o.param, rates, strict=True), o.depths):
        problem = replace(base, parametrization=param, learning_rate=rate, depth=depth)
        problems[param, depth] = replace(problem, parametrization=problem.scaling())  # a file is read once
        for width in sorted(o.widths):
            check(problems[param, depth], build(problems[param, depth], width), o.observables)
    exponents = [parametrization.rows(problem.scaling()) for problem in problems.values()]
    return Run(o, problems, runs.config(o, base.inputs, base.targets) | {"exponents": exponents})


def _trained(run, store) -> xr.Dataset:
    """Every cell, read where it is there and whole, else trained; all in one dataset."""
    params, deep = run.options.param, run.growing == "depth"
    names = {(param, size): f"{param} L = {size[1]}" if deep else f"{param} N = {size[0]}"
             for param, size in product(params, run.sizes)}  # fmt: skip
    with runs.Progress(names) as progress:

        def cell(param, size):
            progress.describe(names[param, size])
            report = progress.report((param, size))
            name = f"{runs.slug(param)}-{size[0]}" + (f"-L{size[1]}" if deep else "")
            kept = store.kept(name, lambda: measured(run, param, *size, report))
            report(1.0)
            return kept.isel(width=0).assign_coords(depth=size[1]) if deep else kept

        rows = [[cell(param, size) for size in run.sizes] for param in params]
    typical = [run.problems[param, run.options.depths[0]] for param in params]
    edges = [[problem.edge_of_stability, problem.preconditioned_edge_of_stability] for problem in typical]
    dataset = xr.concat([xr.concat(row, run.growing) for row in rows], "param").assign_coords(param=list(params)).assign(
        edge_of_stability=("param", [edge for edge, _ in edges], {"units": "1"}),
        preconditioned_edge_of_stability=("param", [edge for _, edge in edges], {"units": "1"}),
    )  # fmt: skip
    made = records.joined(one.attrs for row in rows for one in row)
    return dataset.assign_attrs(made, title=run.title, configuration=json.dumps(run.config))


def measured(
    run: Run, param: str, width: int, depth: int, report: Callable[[float], None] = lambda part: None
) -> xr.Dataset:
    """All networks of one size; every parametrization starts from the same weights."""
    report(0.0)
    o, problem = run.options, run.problems[param, depth]
    keys = cases.keys(o.seed, width, o.seeds, depth if run.growing == "depth" else None)
    trained = train(problem, build(problem, width), keys, numerics=Numerics(o.precision, rtol=o.tolerance), progress=report,
                    observables=run.observables,
                    curvature_samples=min(o.curvature_samples, problem.num_samples))  # fmt: skip
    return records.from_trajectories({width: trained})


def main(arguments=None) -> None:
    command_line.run(Options, landscape, PROGRAM, arguments)
