"""Does the best learning rate stay where it is when the network grows?  `python -m comparisons.transfer`.

Trains networks of each width with each learning rate η0 and keeps the loss before the first and after the last step.  A
divergence is a result: that loss is not finite, or larger than it was at the start.  In DIR:

    config.json      the options, and a digest of the data
    cells/           one file per finished width of a parametrization, from which an interrupted run goes on
    transfer.nc      final_loss (param, width, seed, learning_rate), initial_loss, and the limit's final_loss_limit
    transfer.json    {"optima": a list of ``Optimum``, "shifts": a list of ``Shift``}
    transfer         .png and .pdf

The optimum is the vertex of the parabola, in log loss against log η0, through the lowest learning rate of the grid and
its neighbours; loss means its mean over seeds.  See ``bracket`` for what cannot be resolved so.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
import xarray as xr
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import norm
from scipy.stats import t as student_t

from comparisons import cases, command_line, plots, records, runs
from finite.networks.build import build
from finite.train import train
from limits import Problem
from limits.limit import solve

PROGRAM = "python -m comparisons.transfer"
TOLERATED = 0.1  # an optimum that moves no faster than N^0.1, by 7 % per doubling of the width, transfers
RESAMPLES = 400


@dataclass(frozen=True)
class Options(runs.DataOptions):
    """Train networks of growing width with each learning rate, and see whether the best one moves with the width."""

    model: str = "linear2"
    """linear2, linear3, ...: so many weight matrices. mlp2, mlp3, ...: an activation between them. mlp: --depth hidden
    layers. resmlp: --depth residual blocks. With their limit, where it is known."""
    param: tuple[str, ...] = ("mup", "ntp")
    """Side by side: mup (maximal update), ntp (neural tangent), sp (standard), mean_field, for resmlp depth_mup, alpha1;
    or your own: a .toml file, or inline as "base=mup, readout.multiplier=-3/4" (see python -m limits.exponents)."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Adam has β1 0.9, β2 0.999 and an ε in units of the gradient; it has no limit here."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Hidden widths N, at least two."""
    learning_rates: tuple[float, ...] = (0.1, 0.15, 0.22, 0.33, 0.47, 0.68, 1.0, 1.5, 2.2, 3.3, 4.7, 6.8, 10.0, 15.0)
    """η0, at least three; the raw step is η0 γ²."""
    seeds: int = 8
    """Networks per width, at least two."""
    steps: int = 20
    """Gradient steps."""
    richness: float = 4.0
    """γ0: how far features move; 0 is the kernel regime."""
    momentum: float = 0.0
    """Heavy-ball coefficient."""
    batch_size: int | None = None
    """Samples per minibatch; all of them if not given."""
    depth: int = 2
    """Hidden layers of mlp, blocks of resmlp."""
    activation: Literal["linear", "relu", "tanh", "erf", "gelu"] = "tanh"
    """Activation of all models but linear...."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the networks; the limit is always float64."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Results; default results/transfer-MODEL-DIGEST, one folder per set of options."""


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one width, its 95 % interval, and the mean final loss next to it on the grid.

    width       None: the limit, whose interval is what the grid leaves open
    interval    from 0, or to infinity (null), where the lowest loss is that of the grid's first, or last
    """

    parametrization: str
    width: int | None
    best_learning_rate: float
    interval: tuple[float, float]
    final_loss: float


@dataclass(frozen=True)
class Shift:
    """best learning rate ∝ N^exponent, with its 95 % interval; not a number where an optimum is off the grid."""

    parametrization: str
    exponent: float
    interval: tuple[float, float]
    verdict: str


@dataclass(frozen=True)
class Sweep:
    """What one run trains: a problem per parametrization, whose learning rate is still the first of the grid."""

    options: Options
    problems: dict[str, Problem]
    config: dict

    @property
    def title(self) -> str:
        o, problem = self.options, next(iter(self.problems.values()))
        momentum = f", β = {o.momentum:g}" if o.momentum else ""
        batch = "" if o.batch_size is None else f", batch {o.batch_size}"
        sizes = f"P = {problem.num_samples}, D = {problem.num_inputs}, C = {problem.num_outputs}"
        training = f"γ0 = {o.richness:g}{momentum}{batch}, {o.steps} steps, {o.seeds} seeds"
        return f"{o.model}, {o.optimizer}, {o.data}, {sizes}, {training}"


def transfer(options: Options) -> tuple[list[Optimum], list[Shift]]:
    """The whole job.  Raises ValueError or records.Refused, in one line, before anything is written."""
    sweep = prepare(options)
    for param, problem in sweep.problems.items():
        if runs.slug(param) != param:  # one of the user's own
            print(cases.regime(problem), flush=True)
    folder = runs.folder(options.out, f"transfer-{options.model}", sweep.config)
    with records.claim(folder, sweep.config, PROGRAM) as store:
        dataset = _trained(sweep, store)
        records.write(dataset.assign_attrs(records.provenance()), folder / "transfer.nc")
        optima, shifts = analyse(dataset)
        found = {"optima": [asdict(o) for o in optima], "shifts": [asdict(s) for s in shifts]}
        records.write_json(found, folder / "transfer.json")
        plots.save(picture(dataset, optima, shifts, sweep.title), folder / "transfer")
        print(table(optima, shifts, sweep.title))
        print(f"results in {folder}")
    return optima, shifts


def prepare(options: Options) -> Sweep:
    """Check the options and build the problems.  Raises ValueError in one line."""
    runs.check_distinct("parametrizations", options.param, 1)
    runs.check_distinct("widths", options.widths, 2)
    runs.check_distinct("learning rates", options.learning_rates, 3)
    runs.check_seeds(options.seeds, options.seed)
    if options.steps < 1:
        raise ValueError(f"{options.steps} steps: at least 1 is needed for a final loss")
    inputs, targets = options.load()
    batches = runs.batches(options.seed, len(inputs), options.batch_size, options.steps)
    problem = Problem(
        inputs=inputs, targets=targets, parametrization=options.param[0], optimizer=options.optimizer, model=options.model,
        activation=options.activation, depth=options.depth, loss=options.loss, learning_rate=min(options.learning_rates),
        richness=options.richness, num_steps=options.steps,
        measure_every=options.steps, momentum=options.momentum, batches=batches, top_k=1,
    )  # fmt: skip
    given = {name: replace(problem, parametrization=name).scaling() for name in options.param}  # a file is read once
    problems = {name: replace(problem, parametrization=one) for name, one in given.items()}
    config = runs.config(options, problem.inputs, problem.targets) | {"exponents": [str(one) for one in given.values()]}
    return Sweep(options, problems, config)


# Training -------------------------------------------------------------------------------------------------------------


def _trained(sweep, store) -> xr.Dataset:
    """Every cell, read where it is there and whole, else trained; all in one dataset."""
    options, rows = sweep.options, []
    widths = sorted(options.widths)
    with runs.Progress(product(options.param, widths)) as progress:
        for param in options.param:
            row = []
            for width in widths:
                progress.describe(f"{param} N = {width}")
                report = progress.report((param, width))
                row.append(store.kept(f"{runs.slug(param)}-{width}", lambda: cell(sweep, param, width, report)))  # noqa: B023
                report(1.0)
            row = xr.concat(row, dim="width")
            if cases.limit_is_known(sweep.problems[param]):
                progress.describe(f"{param} limit")
                row = row.merge(store.kept(f"{runs.slug(param)}-limit", lambda: limit(sweep, param)))  # noqa: B023
            rows.append(row)
    dataset = xr.concat(rows, dim="param")  # a limit that only some have is not a number for the others
    return dataset.assign_attrs(title=sweep.title, precision=options.precision, configuration=json.dumps(sweep.config))


def cell(sweep: Sweep, param: str, width: int, report: Callable[[float], None] = lambda part: None) -> xr.Dataset:
    """All learning rates and seeds of one width, by one compiled program: η0 is one of its arguments.

    Every learning rate starts from the same weights, and so does every parametrization.
    """
    options, problem = sweep.options, sweep.problems[param]
    network = build(problem, width)
    keys = cases.keys(options.seed, width, options.seeds)
    started, rates, trained = time.perf_counter(), sorted(options.learning_rates), []
    for done, rate in enumerate(rates):
        trained.append(train(replace(problem, learning_rate=rate), network, keys, observables=("loss",),
                             precision=options.precision))  # fmt: skip
        report((done + 1) / len(rates))
    losses = np.array([[one["loss"] for one in row] for row in trained])  # (learning rates, seeds, start and end)
    return xr.Dataset(
        {
            "final_loss": (("param", "width", "seed", "learning_rate"), losses[:, :, -1].T[None, None], {
                "long_name": "loss after the last step", "units": "1",
                "definition": "1/(2P) Σ_p |f(x_p) − y_p|² over all samples; not finite after a divergence"}),
            "initial_loss": (("param", "width", "seed"), losses[0, :, 0][None, None], {
                "long_name": "loss before the first step", "units": "1"}),
            "seconds": (("param", "width"), [[time.perf_counter() - started]]),
        },
        {"param": [param], "width": [width], "seed": np.arange(options.seeds), "learning_rate": rates},
    )  # fmt: skip


def limit(sweep: Sweep, param: str) -> xr.Dataset:
    """The infinite network's final loss at each learning rate; in NTP, where f(0) is random, its mean."""
    rates, problem = sorted(sweep.options.learning_rates), sweep.problems[param]
    losses = [solve(replace(problem, learning_rate=rate))["loss"][-1] for rate in rates]
    described = {"long_name": "final loss at infinite width", "units": "1", "definition": "NTP: mean over f(0)"}
    return xr.Dataset({"final_loss_limit": (("param", "learning_rate"), [losses], described)},
                      {"param": [param], "learning_rate": rates})  # fmt: skip


# The optimum ----------------------------------------------------------------------------------------------------------


def bracket(
    rates: Float[np.ndarray, " L"], loss: Float[np.ndarray, " L"], initial: float, floor: float = 0.0
) -> tuple[float, float, float]:
    """(best learning rate, low, high): a parabola's vertex, or where it resolves nothing, the ends of what is possible.

    Losses below ``floor`` are rounding and count as equal; losses above ``initial``, or not finite, as diverged.

    low = high      the vertex through the lowest point and its stable neighbours
    low < high      the neighbours of the lowest points, where one of these neighbours diverged or where several points
                    lie on the floor; infinite (0, ∞) beyond the ends of the grid
    """
    x = np.log(rates)
    stable = np.isfinite(loss) & (loss < initial)
    if not stable.any():
        return float(rates[0]), 0.0, float(rates[0])
    y = np.log(np.where(stable, np.clip(loss, max(floor, np.finfo(float).tiny), initial), initial))
    lowest = np.flatnonzero(y == y.min())
    around = slice(lowest[0] - 1, lowest[-1] + 2)  # the lowest points and their neighbours
    low, high = (float(end) for end in np.concatenate([[0.0], rates, [np.inf]])[[lowest[0], lowest[-1] + 2]])
    if low == 0 or high == np.inf or len(lowest) > 1:
        return float(np.exp(x[lowest].mean())), low, high
    vertex = float(np.exp(_vertex(x[around], y[around])))
    return (vertex, vertex, vertex) if stable[around].all() else (vertex, low, high)


def _vertex(x, y):
    """Where the parabola through three points, the middle one the lowest, has its minimum."""
    left, right = (y[0] - y[1]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])  # both positive
    return 0.5 * (x[1] + (x[0] * right + x[2] * left) / (left + right)) if left + right else x[1]


def analyse(dataset: xr.Dataset) -> tuple[list[Optimum], list[Shift]]:
    """The optimum of every parametrization and width, and how it moves with the width.

    Intervals: bootstrap over the seeds of each width, stretched as Student's t stretches a Gaussian's for so few seeds;
    in each resample an optimum that is only bracketed is drawn from its bracket, evenly in log η0.
    """
    optima, shifts = [], []
    for param in dataset.param.values:
        one = dataset.sel(param=param)
        widths = one.width.values
        found = [_optimum(str(param), one.sel(width=width)) for width in widths]
        optima += [optimum for optimum, _ in found]
        if _has_limit(one):
            optima.append(_optimum_of_limit(str(param), one))
        best, draws = [o.best_learning_rate for o, _ in found], np.array([draws for _, draws in found])
        shifts.append(_shift(str(param), widths, np.log(best), draws))
    return optima, shifts


def _optimum(param, cell) -> tuple[Optimum, np.ndarray]:
    """The optimum of one width, and log best learning rates of the resamples (RESAMPLES,), infinite off the grid."""
    rates, losses = cell.learning_rate.values, cell["final_loss"].transpose("seed", "learning_rate").values
    initial = cell["initial_loss"].values
    floor = (10 * np.finfo(cell.attrs["precision"]).eps) ** 2 * initial.mean()  # the outputs are rounded, not the loss
    rng = np.random.default_rng(int(cell.width))
    resamples = rng.integers(len(losses), size=(RESAMPLES, len(losses)))
    brackets = [bracket(rates, losses[s].mean(axis=0), initial[s].mean(), floor)[1:] for s in resamples]
    best, low, high = bracket(rates, losses.mean(axis=0), initial.mean(), floor)
    with np.errstate(divide="ignore"):
        draws = _draws(*np.log(brackets).T, rng.random(RESAMPLES), np.log(best), len(losses))
    spread = np.exp(np.quantile(draws, (0.025, 0.975), method="nearest"))
    at_best = losses.mean(axis=0)[np.abs(np.log(rates / best)).argmin()]
    interval = float(min(low, spread[0])), float(max(high, spread[1]))
    return Optimum(param, int(cell.width), best, interval, float(at_best)), draws


def _has_limit(one) -> bool:
    """Beside a parametrization that has a limit, one that has none is filled with what is not a number."""
    return "final_loss_limit" in one and bool(one["final_loss_limit"].notnull().any())


def _optimum_of_limit(param, one) -> Optimum:
    rates, loss = one.learning_rate.values, one["final_loss_limit"].values
    best, low, high = bracket(rates, loss, float(one["initial_loss"].isel(width=-1).mean()))
    return Optimum(param, None, best, (low, high), float(loss[np.abs(np.log(rates / best)).argmin()]))


def _draws(low, high, parts, best, seeds):
    """Logarithms: of a bracket the part asked for, or its infinite end; of a vertex its stretched distance from best."""
    stretch = np.sqrt(seeds / (seeds - 1)) * student_t.ppf(0.975, seeds - 1) / norm.ppf(0.975)
    with np.errstate(invalid="ignore"):
        inside = np.where(low == high, best + stretch * (low - best), low + parts * (high - low))
    return np.where(np.isinf(low), low, np.where(np.isinf(high), high, inside))


def _shift(param, widths, best, draws) -> Shift:
    x = np.log(widths / np.exp(np.mean(np.log(widths))))
    slopes = x / np.sum(x**2)
    if not np.isfinite(draws).all():
        return Shift(param, np.nan, (np.nan, np.nan), "undecided: an optimum is off the grid")
    low, high = (float(q) for q in np.quantile(slopes @ draws, (0.025, 0.975)))
    return Shift(param, float(slopes @ best), (low, high), verdict((low, high)))


def verdict(interval: tuple[float, float]) -> str:
    """Whether an optimum ∝ N^exponent, with this interval, stays where it is."""
    low, high = interval
    if max(-low, high) <= TOLERATED:
        return "transfers"
    return "does not transfer" if low > TOLERATED or high < -TOLERATED else "undecided"


# What is shown --------------------------------------------------------------------------------------------------------


@plots.styled
def picture(dataset: xr.Dataset, optima: list[Optimum], shifts: list[Shift], title: str) -> Figure:
    """Final loss against learning rate, a panel per parametrization, a colour per width; the limit dashed.

    Lines are means over seeds, bands hold the middle half of the seeds, triangles stand at the optima.  What diverged
    leaves through the top.
    """
    names = [str(name) for name in dataset.param.values]
    size = (1.25 * plots.PANEL[0] * len(names) + 0.3, 1.2 * plots.PANEL[1] + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    top = 10 * float(dataset["initial_loss"].mean("seed").max())
    for axis, name, shift in zip(axes, names, shifts, strict=True):
        _panel(axis, dataset.sel(param=name), top, [o for o in optima if o.parametrization == name and o.width])
        axis.set_title(f"{plots.NAMES.get(name, name)}: {_statement(shift)}")
    axes[0].set(ylabel=r"final loss $\mathcal{L}$", ylim=(_bottom(dataset, top), top))
    colors = plots.colors(dataset.width.values)
    handles = [Line2D([], [], color=color, label=f"N = {width}") for width, color in colors]
    if "final_loss_limit" in dataset:
        handles.append(Line2D([], [], label=r"$N\to\infty$", **plots.LIMIT))
    handles.append(Line2D([], [], color="gray", marker="v", markersize=4, linestyle="", label="optimum"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(2 * len(names), len(handles)))
    figure.suptitle(title, fontsize=9)
    return figure


def _panel(axis, one, top, optima):
    rates = one.learning_rate.values
    for (width, color), optimum in zip(plots.colors(one.width.values), optima, strict=True):
        losses = _drawable(one["final_loss"].sel(width=width).transpose("seed", "learning_rate").values, top)
        mean = _drawable(one["final_loss"].sel(width=width).mean("seed").values, top)
        axis.plot(rates, mean, color=color)
        axis.fill_between(rates, *np.quantile(losses, (0.25, 0.75), axis=0), where=mean < top, color=color, alpha=0.15,
                          linewidth=0)  # fmt: skip
        axis.plot(optimum.best_learning_rate, 0.97, transform=axis.get_xaxis_transform(), color=color, marker="v",
                  markersize=5, alpha=0.8)  # fmt: skip
    if _has_limit(one):
        axis.plot(rates, _drawable(one["final_loss_limit"].values, top), **plots.LIMIT)
    axis.set(xscale="log", yscale="log", xlabel=r"learning rate $\eta_0$", xlim=(rates[0], rates[-1]))


def _drawable(loss, top):
    """What is not finite, or far beyond the top, a little beyond it: a line that leaves the picture."""
    return np.where(np.isfinite(loss), np.minimum(loss, 10 * top), 10 * top)


def _bottom(dataset, top):
    """A little below the lowest mean that is not zero."""
    mean = dataset["final_loss"].mean("seed").values
    return max(0.5 * float(np.min(mean, where=mean > 0, initial=top / 20)), 1e-18 * top)


def _statement(shift):
    if not np.isfinite(shift.exponent):
        return shift.verdict
    return f"optimum $\\propto N^{{{shift.exponent:+z.2f}}}$, {shift.verdict}"


def table(optima: list[Optimum], shifts: list[Shift], title: str) -> str:
    """The optima and the verdicts, for the terminal."""
    form = "{:<6}{:>7}  {:>8}  {:<18}{:>11}".format
    lines = [title, "", form("param", "width", "best η0", "95 % interval", "final loss")]
    for o in optima:
        best, final, (low, high) = f"{o.best_learning_rate:.3g}", f"{o.final_loss:.3g}", o.interval
        lines.append(form(o.parametrization, o.width or "∞", best, f"[{low:.3g}, {high:.3g}]", final))
    lines += ["", f"best η0 ∝ N^exponent; it transfers where the exponent's whole interval lies within ±{TOLERATED:g}"]
    for s in shifts:
        exponent = f"{s.exponent:+z.3f} [{s.interval[0]:+z.3f}, {s.interval[1]:+z.3f}]  "
        lines.append(f"{s.parametrization:<6}{exponent if np.isfinite(s.exponent) else ''}{s.verdict}")
    return "\n".join(lines)


def main(arguments=None) -> None:
    command_line.run(Options, transfer, PROGRAM, arguments)


if __name__ == "__main__":
    main()
