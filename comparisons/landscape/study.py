"""What does the loss look like around a network in training, at every size?  `python -m comparisons.landscape`.

Trains networks of each width, or each depth, and follows the curvature of their loss (any observable of
``limits.trajectory``, rescaled), all but the loss on a fixed set of samples.  Says of each whether late in training it is
the same at all sizes: super consistent, see ``comparisons.statistics.super_consistency``.  In DIR:

    config.json      the options, and a digest of the data
    cells/           one file per finished size of a parametrization, or limit, from which an interrupted run goes on
    landscape.nc     every observable (param, width or depth, seed, step[, rank]), its measuring error and the matrix-vector
                     products it took; where it is known its limit, NAME_limit; edge_of_stability (param)
    landscape.json   a list of ``comparisons.landscape.late.Late``
    landscape        .png and .pdf, and density, where it was asked for
    index.html       all of this on one page
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import xarray as xr
from jaxtyping import Int

from comparisons import command_line, estimate, files, labelled, pairs, regime, results
from comparisons import options as runs
from comparisons import style as plots
from comparisons.cells import Report, Store, Values, Work, begin
from comparisons.landscape import limit as infinite
from comparisons.landscape.late import Late, late_values
from comparisons.landscape.options import PROGRAM, Options
from comparisons.landscape.picture import density, picture, table
from comparisons.pairs import Limit
from finite import Numerics
from finite.networks.build import build
from finite.training import own
from finite.training.own import Recipe
from finite.training.train import check, train
from limits import Problem, Trajectory
from limits.exponents import parametrization
from limits.trajectory import storable

DENSITY = ("density_nodes", "density_weights")


@dataclass(frozen=True)
class Cell:
    """All networks of one size of a parametrization."""

    param: str
    width: int
    depth: int | None

    @property
    def name(self) -> str:
        return f"{results.slug(self.param)}-N{self.width}" + ("" if self.depth is None else f"-L{self.depth}")

    def __str__(self):
        return f"{self.param} N = {self.width}" + ("" if self.depth is None else f" L = {self.depth}")


@dataclass(frozen=True)
class Sizes(Work):
    """What one run trains: a problem per parametrization and depth, networks that grow in ``growing``."""

    options: Options
    problems: dict[tuple[str, int], Problem]
    config: dict

    @property
    def growing(self) -> str:
        return "depth" if len(self.depths) > 1 else "width"

    @property
    def observables(self) -> tuple[str, ...]:
        return self.options.observables + DENSITY * self.options.density

    @property
    def title(self) -> str:
        o = self.options
        rates = {param: f"{problem.learning_rate:g}" for (param, _), problem in self.problems.items()}
        alike = len(set(rates.values())) == 1
        said = rates[o.param[0]] if alike else ", ".join(f"{rate} ({param})" for param, rate in rates.items())
        return f"{runs.sized(o, next(iter(self.problems.values())))}, η0 = {said}, {o.steps} steps, {o.seeds} seeds"

    @property
    def depths(self) -> list[int]:
        """The networks' own: one that a model says in its name is not the option's."""
        return sorted({depth for _, depth in self.problems})

    @property
    def steps(self) -> Int[np.ndarray, " T"]:
        """The measured ones."""
        return next(iter(self.problems.values())).steps

    def problem(self, cell: Cell | Limit) -> Problem:
        return self.problems[cell.param, cell.depth]

    def edges(self) -> tuple[list[float], list[float]]:
        """Of stability, of every parametrization: of the sharpness, and of the preconditioned one."""
        typical = [self.problems[param, self.depths[0]] for param in self.options.param]
        return ([problem.edge_of_stability for problem in typical],
                [problem.preconditioned_edge_of_stability for problem in typical])  # fmt: skip

    def announce(self) -> None:
        """What the derivation says of exponents of the user's own."""
        own = [param for param in self.options.param if results.slug(param) != param]
        regime.announce(self.problems[param, self.depths[0]] for param in own)

    def cells(self, param: str) -> list[Cell]:
        """From the smallest size to the largest."""
        return [Cell(param, *size) for size in product(sorted(self.options.widths), self.depths)]

    @property
    def all_cells(self) -> list[Cell]:
        """The largest, which take longest, first."""
        rows = [self.cells(param) for param in self.options.param]
        return [cell for of_size in reversed(list(zip(*rows, strict=True))) for cell in of_size]

    @cached_property
    def no_limits(self) -> dict[tuple[str, int], str | None]:
        """Of every parametrization and depth, why there is no limit; None where there is one, if without the Hessian's."""
        return {key: pairs.why_no_limit(problem, hessian=False) for key, problem in self.problems.items()}

    @property
    def limits(self) -> list[Limit]:
        return [Limit(*key) for key, why in self.no_limits.items() if self.options.limit and why is None]

    def networks(self, cells: Sequence[Cell | Limit]) -> list[estimate.Networks | estimate.Limit]:
        o = self.options
        return [estimate.Networks(self.problem(cell), cell.width, o.seeds, self.observables, o.curvature_samples)
                if isinstance(cell, Cell) else self._limit(self.problem(cell)) for cell in cells]  # fmt: skip

    def left_out(self, limit: Limit) -> dict[str, str]:
        """Observables that this limit is not to be asked for, and why."""
        return infinite.left_out(self.problem(limit), self.options.observables, self.options.curvature_samples)

    def _limit(self, problem):
        return estimate.Limit(problem, self._curved(problem))

    def _curved(self, problem):
        return infinite.needs_hessian(problem, self.options.observables, self.options.curvature_samples)

    def compute(self, cells: Sequence[Cell | Limit], store: Store, report: Report) -> list[Values]:
        return [labelled.arrays(self.trained(cell, report)) if isinstance(cell, Cell) else
                infinite.computed(self.problem(cell), self.options.observables, self.options.curvature_samples)
                for cell in cells]  # fmt: skip

    def trained(self, cell: Cell, report: Report = lambda part: None) -> list[Trajectory]:
        """Every parametrization starts from the same weights."""
        o, problem = self.options, self.problem(cell)
        keys = pairs.keys(o.seed, cell.width, o.seeds, cell.depth if self.growing == "depth" else None)
        return train(problem, build(problem, cell.width), keys, numerics=Numerics(o.precision, rtol=o.tolerance),
                     progress=report, observables=self.observables,
                     curvature_samples=min(o.curvature_samples, problem.num_samples))  # fmt: skip


@dataclass(frozen=True)
class OwnSizes(Sizes):
    """Of the user's own network: of the one parametrization that it has, without a depth, a limit or edges that are known."""

    recipe: Recipe

    @property
    def title(self) -> str:
        o = self.options
        return f"{o.described_own(self.recipe.num_samples)}, η0 = {self.rate:g}, {o.steps} steps, {o.seeds} seeds"

    @property
    def rate(self) -> float:
        return self.options.learning_rate[0] if self.options.learning_rate else 1.0

    @property
    def depths(self) -> list[None]:
        return [None]

    @property
    def steps(self) -> Int[np.ndarray, " T"]:
        return self.recipe.steps

    def edges(self) -> tuple[list[float], list[float]]:
        return [np.nan], [np.nan]

    def announce(self) -> None:
        """Nothing: no exponents are known."""

    def networks(self, cells: Sequence[Cell]) -> list[estimate.Own]:
        o = self.options
        return [estimate.Own(self.recipe, cell.width, o.seeds, o.observables, o.curvature_samples) for cell in cells]

    def trained(self, cell: Cell, report: Report = lambda part: None) -> list[Trajectory]:
        o = self.options
        return own.train(self.recipe, cell.width, pairs.keys(o.seed, cell.width, o.seeds), [self.rate] * o.seeds,
                         observables=o.observables, curvature_samples=o.curvature_samples, top_k=o.top_k, rtol=o.tolerance,
                         progress=report)  # fmt: skip


def _own_sizes(options):
    """Raises ValueError, in one line, for what the user's files do not say."""
    recipe = options.recipe()
    for width in sorted(options.widths):
        own.check_observables(own.program_of(recipe, width), options.observables)
    config = runs.settings(options) | {"own_sha256": recipe.digest()}
    return OwnSizes(replace(options, param=(options.name,)), {}, config, recipe)


def landscape(options: Options) -> list[Late]:
    """The whole job.  Raises ValueError or files.Refused, in one line, before anything is written."""
    sizes = prepare(options)
    options, cells = sizes.options, [*sizes.limits, *sizes.all_cells]
    with begin(sizes, options, sizes.config, f"landscape-{results.slug(options.name)}", PROGRAM, lambda store: cells) as run:
        if run is None:
            for line in _without_limit(sizes, {limit: sizes.left_out(limit) for limit in sizes.limits}):
                print(line)
            return []
        sizes.announce()
        run.ensure(cells)
        dataset = _dataset(sizes, run.store)
        files.write(dataset, run.folder / "landscape.nc")
        late = late_values(dataset)
        files.write_json([asdict(entry) for entry in late], run.folder / "landscape.json")
        plots.save(picture(dataset, late, sizes.title), run.folder / "landscape")
        if options.density:
            plots.save(density(dataset, sizes.title), run.folder / "density")
        unknown = {limit: infinite.read(run.store.read(limit), sizes.problem(limit))[1] for limit in sizes.limits}
        run.conclude("\n".join([table(late, sizes.title), *_without_limit(sizes, unknown)]), dataset.attrs)
    return late


def prepare(options: Options) -> Sizes:
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
        meant = "the sharpness is hessian_eigenvalues, the first; " if "sharpness" in unknown else ""
        raise ValueError(f"unknown observable {' '.join(unknown)!r}; {meant}known: {', '.join(known)}; "
                         "--density for the density")  # fmt: skip
    if not 0 < o.tolerance < 1:
        raise ValueError(f"tolerance {o.tolerance:g} must be above 0 and below 1")
    if o.curvature_samples < 1:
        raise ValueError(f"curvature-samples {o.curvature_samples} must be at least 1")
    if o.own:
        return _own_sizes(o)
    usual = tuple(7.0 if param == "ntp" else 0.5 for param in o.param)
    rates = o.learning_rate * (len(o.param) // max(len(o.learning_rate), 1)) or usual
    base = o.problem(parametrization=o.param[0], learning_rate=rates[0], depth=o.depths[0])
    runs.check_depths(o.model, o.depths)
    problems = {}
    for (param, rate), depth in product(zip(o.param, rates, strict=True), o.depths):
        problem = replace(base, parametrization=param, learning_rate=rate, depth=depth)
        problem = replace(problem, parametrization=problem.scaling())  # a file is read once
        problems[param, problem.network.depth] = problem
        for width in sorted(o.widths):
            check(problem, build(problem, width), o.observables)
    exponents = [parametrization.rows(problem.scaling()) for problem in problems.values()]
    config = runs.config(o, base.inputs, base.targets) | {"exponents": exponents}
    del config["limit"]  # no network depends on it
    return Sizes(o, problems, config)


def _dataset(sizes: Sizes, store: Store) -> xr.Dataset:
    """Every cell in one dataset, (param, width or depth, seed, step[, rank])."""
    params = sizes.options.param

    def of_size(cell):
        trained = labelled.trajectories(store.read(cell), sizes.steps)
        alone = labelled.from_trajectories({cell.width: trained})
        return alone.isel(width=0).assign_coords(depth=cell.depth) if sizes.growing == "depth" else alone

    rows = [xr.concat([of_size(cell) for cell in sizes.cells(param)], sizes.growing) for param in params]
    edge, preconditioned = sizes.edges()
    dataset = xr.concat(rows, "param").assign_coords(param=list(params)).assign(
        edge_of_stability=("param", edge, {"units": "1", "long_name": "sharpness beyond which training is unstable"}),
        preconditioned_edge_of_stability=(
            "param", preconditioned, {"units": "1", "long_name": "the same of the preconditioned sharpness"}),
    )  # fmt: skip
    dataset = dataset.merge(_limits(sizes, store))
    for name in set(own.DEFINITIONS) & set(dataset) if sizes.options.own else ():
        dataset[name].attrs["definition"] = own.DEFINITIONS[name]
    made = store.provenance([*sizes.limits, *sizes.all_cells])
    return dataset.assign_attrs(made, title=sizes.title, configuration=json.dumps(sizes.config))


def _limits(sizes: Sizes, store: Store) -> xr.Dataset:
    """NAME_limit (param[, depth], step[, rank]); not a number where it is not known, nothing where no limit is."""
    rows = []
    for cell in sizes.limits:
        limit, _ = infinite.read(store.read(cell), sizes.problem(cell))
        if limit is not None:
            rows.append(infinite.named(limit).expand_dims(param=[cell.param], depth=[cell.depth]))
    if not rows:
        return xr.Dataset()
    whole = infinite.together(rows, sizes.options.param, sizes.depths)
    return whole if sizes.growing == "depth" else whole.isel(depth=0, drop=True)


def _without_limit(sizes: Sizes, unknown: Mapping[Limit, Mapping[str, str]]) -> list[str]:
    """A line for each parametrization, or observable of it, without a limit: why.  None where no limit is wanted."""
    lines = [f"no limit is drawn in {param}: {why}" for (param, _), why in sizes.no_limits.items() if why]
    lines += [line for limit, reasons in unknown.items() for line in infinite.why_not(reasons, limit.param)]
    return list(dict.fromkeys(lines)) if sizes.options.limit else []


def main(arguments=None) -> None:
    command_line.run(Options, landscape, PROGRAM, arguments)
