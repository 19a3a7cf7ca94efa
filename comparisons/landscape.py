"""What does the loss look like around a network in training, at every width?  `python -m comparisons.landscape`.

Trains networks of each width and follows the curvature of their loss (any observable of ``limits.trajectory``, rescaled),
all but the loss on a fixed set of samples.  Says of each whether late in training it is the same at all widths: super
consistent (Noci et al. 2024).  In DIR:

    config.json      the options, and a digest of the data
    cells/           one file per finished width of a parametrization, from which an interrupted run goes on
    landscape.nc     every observable (param, width, seed, step[, rank]), its measuring error and the matrix-vector products
                     it took; edge_of_stability (param)
    landscape.json   a list of ``Late``
    landscape        .png and .pdf
"""

import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import linregress
from scipy.stats import t as student_t

from comparisons import cases, command_line, plots, records, runs
from finite.networks.build import build
from finite.train import train
from limits import OBSERVABLES, Problem
from limits.trajectory import STORED

PROGRAM = "python -m comparisons.landscape"
LATE = 0.75  # of the steps, from which on is late
TOLERATED = 1.5  # times the lowest late value may the highest be


@dataclass(frozen=True, kw_only=True)
class Options(runs.TrainingOptions):
    """Train networks of growing width, and see whether the curvature of their loss stays the same."""

    param: tuple[str, ...] = ("mup", "ntp")
    """Side by side: mup (maximal update), ntp (neural tangent), sp (standard), mean_field, for residual models depth_mup,
    alpha1; or your own: a .toml file, or inline as "base=mup, readout.multiplier=-3/4" (see python -m limits.exponents)."""
    learning_rate: tuple[float, ...] = (0.5, 7.0)
    """η0 of each parametrization, or one for all; the raw step is η0 γ²."""
    model: str = "conv"
    data: str = "patches10"
    samples: int | None = 2000
    loss: Literal["mse", "cross_entropy"] = "cross_entropy"
    widths: tuple[int, ...] = (16, 64, 256)
    """Widths N, at least two."""
    depth: int = 2
    """Hidden layers of mlp, convolutions of convnet, blocks of the others."""
    seeds: int = 2
    """Networks per width, at least two."""
    steps: int = 256
    measure_every: int = 32
    """Steps between two measurements, a divisor of the steps."""
    batch_size: int | None = 128
    observables: tuple[str, ...] = ("loss", "hessian_eigenvalues")
    """What is followed: loss, hessian_eigenvalues, hessian_min, gauss_newton_eigenvalues, residual_eigenvalues,
    ntk_eigenvalues, hessian_trace, directional_sharpness, preconditioned_sharpness, gradient_noise."""
    top_k: int = 1
    """How many leading eigenvalues."""
    curvature_samples: int | None = 256
    """Curvature is that of the loss of the first so many samples; of all if not given."""
    tolerance: float = 1e-2
    """Relative, of the eigenvalues."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Results; default results/landscape-MODEL-DIGEST, one folder per set of options."""


@dataclass(frozen=True)
class Late:
    """An observable late in training: its mean from ``LATE`` of the steps on, over seeds, at each width.

    ratio                 the highest over the lowest of them
    exponent, interval    late value ∝ N^exponent, least squares over all networks, with its 95 % interval
    verdict               "super consistent" (ratio at most ``TOLERATED``), "grows" or "falls" with the width, "undecided",
                          or "diverged"
    """

    parametrization: str
    observable: str
    widths: list[int]
    values: list[float]
    ratio: float
    exponent: float
    interval: tuple[float, float]
    verdict: str


@dataclass(frozen=True)
class Run:
    """What one run trains: a problem per parametrization."""

    options: Options
    problems: dict[str, Problem]
    config: dict

    @property
    def title(self) -> str:
        o = self.options
        return f"{o.described(next(iter(self.problems.values())))}, {o.steps} steps, {o.seeds} seeds"


def landscape(options: Options) -> list[Late]:
    """The whole job.  Raises ValueError or records.Refused, in one line, before anything is written."""
    run = prepare(options)
    for param, problem in run.problems.items():
        if runs.slug(param) != param:  # one of the user's own
            print(cases.regime(problem), flush=True)
    folder = runs.folder(options.out, f"landscape-{options.model}", run.config)
    with records.claim(folder, run.config, PROGRAM) as store:
        dataset = _trained(run, store)
        records.write(dataset.assign_attrs(records.provenance()), folder / "landscape.nc")
        found = late_values(dataset)
        records.write_json([asdict(one) for one in found], folder / "landscape.json")
        plots.save(picture(dataset, found, run.title), folder / "landscape")
        print(table(found, run.title))
        print(f"results in {folder}")
    return found


def prepare(options: Options) -> Run:
    """Check the options and build the problems.  Raises ValueError in one line."""
    o = options
    runs.check_distinct("parametrizations", o.param, 1)
    runs.check_distinct("widths", o.widths, 2)
    runs.check_seeds(o.seeds, o.seed)
    if len(o.learning_rate) not in (1, len(o.param)):
        raise ValueError(f"{len(o.learning_rate)} learning rates for {len(o.param)} parametrizations: one for each, or one")
    if o.steps < 1 or o.measure_every < 1 or o.steps % o.measure_every:
        raise ValueError(f"measure-every {o.measure_every}: wanted a divisor of the {o.steps} steps")
    unknown = [name for name in o.observables if name not in STORED]
    if unknown or not o.observables:
        raise ValueError(f"unknown observable {' '.join(unknown) or 'none'!r}; known: {', '.join(STORED)}")
    rates = o.learning_rate * (len(o.param) // len(o.learning_rate))
    base = o.problem(parametrization=o.param[0], learning_rate=rates[0])
    if o.curvature_samples is not None and not 1 <= o.curvature_samples <= base.num_samples:
        raise ValueError(f"curvature-samples {o.curvature_samples} must be from 1 to the {base.num_samples} samples")
    problems = {}
    for param, rate in zip(o.param, rates, strict=True):
        problem = replace(base, parametrization=param, learning_rate=rate)
        problems[param] = replace(problem, parametrization=problem.scaling())  # a file is read once
        build(problems[param], min(o.widths))  # raises here what it cannot be
    exponents = [str(problem.parametrization) for problem in problems.values()]
    return Run(o, problems, runs.config(o, base.inputs, base.targets) | {"exponents": exponents})


def _trained(run, store) -> xr.Dataset:
    """Every cell, read where it is there and whole, else trained; all in one dataset."""
    params, widths = run.options.param, sorted(run.options.widths)
    with runs.Progress([(param, width) for param in params for width in widths]) as progress:

        def cell(param, width):
            progress.describe(f"{param} N = {width}")
            report = progress.report((param, width))
            kept = store.kept(f"{runs.slug(param)}-{width}", lambda: measured(run, param, width, report))
            report(1.0)
            return kept

        rows = [xr.concat([cell(param, width) for width in widths], "width") for param in params]
    edges = [[problem.edge_of_stability, problem.preconditioned_edge_of_stability] for problem in run.problems.values()]
    dataset = xr.concat(rows, "param").assign_coords(param=list(params)).assign(
        edge_of_stability=("param", [edge for edge, _ in edges], {"units": "1"}),
        preconditioned_edge_of_stability=("param", [edge for _, edge in edges], {"units": "1"}),
    )  # fmt: skip
    return dataset.assign_attrs(title=run.title, configuration=json.dumps(run.config))


def measured(run: Run, param: str, width: int, report: Callable[[float], None] = lambda part: None) -> xr.Dataset:
    """All networks of one width; every parametrization starts from the same weights."""
    o, problem = run.options, run.problems[param]
    keys = cases.keys(o.seed, width, o.seeds)
    trained = train(problem, build(problem, width), keys, precision=o.precision, observables=o.observables,
                    curvature_samples=o.curvature_samples, rtol=o.tolerance, progress=report)  # fmt: skip
    return records.from_trajectories({width: trained})


# What is said of it ---------------------------------------------------------------------------------------------------


def followed(dataset: xr.Dataset) -> list[str]:
    """The observables that have one number to be compared: of several eigenvalues the first."""
    return [name for name in STORED if name in dataset and "node" not in dataset[name].dims]


def first(values: xr.DataArray) -> xr.DataArray:
    """(…, step): of several eigenvalues the largest."""
    return values.isel({axis: 0 for axis in ("rank", "edge") if axis in values.dims}, drop=True)


def late_values(dataset: xr.Dataset) -> list[Late]:
    """Of every parametrization and observable."""
    late = dataset.isel(step=dataset.step.values >= LATE * int(dataset.step[-1]))
    found = []
    for param in dataset.param.values:
        for name in followed(dataset):
            values = first(late[name]).sel(param=param).mean("step", skipna=False).transpose("width", "seed").values
            found.append(_late(str(param), name, dataset.width.values, values))
    return found


def _late(param, name, widths, values: Float[np.ndarray, "W S"]) -> Late:
    mean = values.mean(axis=1)
    record = {"parametrization": param, "observable": name, "widths": widths.tolist(), "values": mean.tolist()}
    nowhere = np.nan, np.nan
    if not np.isfinite(values).all():
        return Late(**record, ratio=np.nan, exponent=np.nan, interval=nowhere, verdict="diverged")
    size = np.abs(values)
    if np.min(mean) * np.max(mean) <= 0 or size.min() == 0:
        return Late(**record, ratio=np.inf, exponent=np.nan, interval=nowhere, verdict="undecided")
    ratio = float(np.abs(mean).max() / np.abs(mean).min())
    law = linregress(np.log(np.repeat(widths, values.shape[1])), np.log(size.ravel()))
    reach = law.stderr * student_t.ppf(0.975, values.size - 2)
    interval = float(law.slope - reach), float(law.slope + reach)
    return Late(**record, ratio=ratio, exponent=float(law.slope), interval=interval, verdict=verdict(ratio, interval))


def verdict(ratio: float, interval: tuple[float, float]) -> str:
    """Whether a late value is the same at all widths."""
    if ratio <= TOLERATED:
        return "super consistent"
    low, high = interval
    return "grows" if low > 0 else "falls" if high < 0 else "undecided"


@plots.styled
def picture(dataset: xr.Dataset, found: list[Late], title: str) -> Figure:
    """A row per observable, a column per parametrization, a colour per width: mean over the seeds, and their range."""
    names, params = followed(dataset), [str(param) for param in dataset.param.values]
    figure = Figure(figsize=(1.25 * plots.PANEL[0] * len(params) + 0.4, 0.85 * plots.PANEL[1] * len(names) + 0.9),
                    layout="constrained")  # fmt: skip
    grid = figure.subplots(len(names), len(params), sharex=True, squeeze=False)
    said = {(one.parametrization, one.observable): one for one in found}
    for row, name in zip(grid, names, strict=True):
        for axis, param in zip(row, params, strict=True):
            _panel(axis, dataset.sel(param=param), name)
            axis.set_title(f"{plots.NAMES.get(param, param)}: late {_ratio(said[param, name])}, {said[param, name].verdict}")
        row[0].set_ylabel(OBSERVABLES[name].symbol.replace("_k", "_1"))
    for axis in grid[-1]:
        axis.set(xlabel="step", xlim=(0, int(dataset.step[-1])))
    handles = [Line2D([], [], color=color, label=f"N = {width}") for width, color in plots.colors(dataset.width.values)]
    handles.append(Line2D([], [], color="firebrick", linewidth=0.9, label="edge of stability"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    figure.suptitle(textwrap.fill(title, 62 * len(params)), fontsize=9)
    return figure


def _panel(axis, one, name):
    values = first(one[name])
    for width, color in plots.colors(one.width.values):
        there = values.sel(width=width)
        axis.plot(one.step, there.mean("seed"), color=color)
        axis.fill_between(one.step, there.min("seed"), there.max("seed"), color=color, alpha=0.2, linewidth=0)
    if (values > 0).all():
        axis.set_yscale("log")
        if float(values.max()) < 1000 * float(values.min()):
            plots.plain_numbers(axis.yaxis)
    edge = {"hessian_eigenvalues": "edge_of_stability", "preconditioned_sharpness": "preconditioned_edge_of_stability"}
    if name in edge and np.isfinite(one[edge[name]]):
        axis.axhline(float(one[edge[name]]), color="firebrick", linewidth=0.9)


def _ratio(late):
    return f"× {late.ratio:.2f}" if np.isfinite(late.ratio) else "–"


def table(found: list[Late], title: str) -> str:
    """The late values, for the terminal."""
    widths = found[0].widths
    form = f"{{:<8}} {{:<26}}{'{:>10}' * len(widths)}  {{:>7}}  {{:<24}} {{}}".format
    lines = [title, f"late: mean over seeds and steps from {LATE:g} of all on; super consistent: at most × {TOLERATED:g}", ""]
    lines.append(form("param", "observable", *(f"N = {width}" for width in widths), "ratio", "N^exponent", ""))
    for one in found:
        law = f"{one.exponent:+.3f} [{one.interval[0]:+.3f}, {one.interval[1]:+.3f}]" if np.isfinite(one.exponent) else "–"
        values = (f"{value:.4g}" for value in one.values)
        lines.append(form(one.parametrization, one.observable, *values, _ratio(one), law, one.verdict))
    return "\n".join(lines)


def main(arguments=None) -> None:
    command_line.run(Options, landscape, PROGRAM, arguments)


if __name__ == "__main__":
    main()
