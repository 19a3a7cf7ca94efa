"""The pictures of a comparison: dynamics, rates, growth, following.  Each function returns a figure."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparisons import style as plots
from comparisons.convergence.following import Following, relative_deviations
from comparisons.convergence.rates import Rate
from comparisons.statistics.deviations import deviations, limit_component, limit_error, reference_of, variable
from comparisons.statistics.super_consistency import GROWN, Growth
from limits import OBSERVABLES

SHOWN = {"loss": {}, "sharpness": {"rank": 1}, "ntk_eigenvalues": {"rank": 1}}  # observable → its component
SPREAD, SLOPES = "standard deviation over seeds", "95 % of its exponent"  # what the bands of dynamics, rates are
TOLERATED, TO_THE_END, KNOWN = "tolerance", "some to the end", "the limit is known so far"
UNTIL = {"color": "gray", "linewidth": 0.9, "linestyle": "-."}
UNFITTED = "no exponent could be fitted"


@plots.styled
def dynamics(dataset: xr.Dataset, edge_of_stability: float, title: str) -> Figure:
    """Each shown observable against step: mean over seeds with its spread, one colour per width, the limit dashed."""
    dataset = plots.drawable(dataset)
    figure, axes = _panels(len(SHOWN))
    for axis, (name, selection) in zip(axes, SHOWN.items(), strict=True):
        values = dataset[variable(name)].sel(selection)
        for width, color in plots.colors(dataset.width.values):
            curves = values.sel(width=width)
            mean, spread = curves.mean("seed"), curves.std("seed")
            plots.against_step(axis, mean, color=color, label=f"N = {width}")
            axis.fill_between(dataset.step, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0,
                              label=plots.banded(SPREAD))  # fmt: skip
        limit = limit_component(dataset, name, selection)
        if limit is not None:
            plots.limit(axis, limit, limit_error(dataset, name, selection))
        axis.set(xlabel="step", ylabel=_label(name), title=OBSERVABLES[name].label)
        if name == "loss":
            lowest = values.mean("seed").where(lambda mean: mean > 0).min()  # the spread may reach below any loss
            plots.logarithmic(axis, bottom=0.3 * float(lowest))
        elif plots.spans(axis, plots.WIDE):
            plots.logarithmic(axis)
    plots.mark_edge(axes[1], edge_of_stability)
    handles = [*plots.widths(dataset), *plots.limit_handles(), plots.edge_handle(), plots.band(SPREAD)]
    plots.legend_below(figure, handles)
    figure.suptitle(title, fontsize=9)
    return figure


@plots.styled
def rates(dataset: xr.Dataset, measured: Sequence[Rate], reference: str, title: str, steps: Sequence[int]) -> Figure:
    """Error against width at several steps: points, fitted lines with their band, predicted lines; one row per kind."""
    kinds, dataset = ("fluctuation", "bias"), plots.drawable(dataset)
    figure, grid = _panels(len(SHOWN), len(kinds))
    table = {(r.observable, r.rank, r.kind, r.step): r for r in measured}
    lost = bool(dataset["loss"].sel(step=list(steps)).isnull().all())
    for row, kind in zip(grid, kinds, strict=True):
        for axis, (name, selection) in zip(row, SHOWN.items(), strict=True):
            errors = deviations(dataset, name, selection, reference, kind)
            rank = None if name in ("loss", "sharpness") else selection.get("rank")
            known = [step for step in steps if errors.sel(step=step).notnull().any()]
            for step, color in zip(steps, matplotlib.colormaps["plasma"](np.linspace(0.05, 0.8, len(steps))), strict=True):
                if step in known:
                    draw_rate(axis, errors.sel(step=step), table[name, rank, kind, step], kind, color)
            axis.set(xscale="log", xlabel="width $N$", title=_titled(dataset, name, reference))
            if known:
                plots.logarithmic(axis)
            else:
                axis.text(0.5, 0.5, "diverged" if lost else "not known", transform=axis.transAxes, ha="center", color="gray")
            subtracted = r"\infty" if reference_of(dataset, name, reference) == "theory" else dataset.width.values[-1]
            averaged = f"over seeds of $o_N-o_{{{subtracted}}}$"
            axis.set_ylabel(f"rms {averaged}" if kind == "fluctuation" else f"|mean {averaged}|")
            plots.at_sizes(axis.xaxis, errors.width.values)
    handles = [Line2D([], [], marker="o", linestyle="-", color=matplotlib.colormaps["plasma"](x), label=f"step {step}")
               for step, x in zip(steps, np.linspace(0.05, 0.8, len(steps)), strict=True)]  # fmt: skip
    plots.legend_below(figure, handles + marks())
    figure.suptitle(f"{title}; reference: {reference}", fontsize=9)
    return figure


@plots.styled
def growth(dataset: xr.Dataset, grown: Sequence[Growth], reference: str, title: str) -> Figure:
    """|o_N(t) − o_∞(t)| against step per width, and in the title of each panel the verdict."""
    dataset = plots.drawable(dataset)
    figure, axes = _panels(len(SHOWN))
    for axis, (name, selection) in zip(axes, SHOWN.items(), strict=True):
        errors = deviations(dataset, name, selection, reference, "fluctuation")
        magnitude = np.sqrt((errors**2).mean("seed"))
        for width, color in plots.colors(dataset.width.values):
            if width in magnitude.width.values:
                plots.against_step(axis, magnitude.sel(width=width), color=color, label=f"N = {width}")
        observed = next(g for g in grown if g.observable == name and g.rank in (None, 1))
        axis.set(xlabel="step", ylabel=f"rms deviation of {_label(name)}")
        plots.logarithmic(axis)
        grew = [] if np.isnan(observed.largest) else [f"largest × {largest(observed)}"]
        axis.set_title("\n".join([_titled(dataset, name, reference), *grew, observed.verdict]))
    plots.legend_below(figure, plots.widths(dataset))
    figure.suptitle(f"{title}; reference: {reference}; super consistent: at most × {GROWN:g}", fontsize=9)
    return figure


@plots.styled
def following(dataset: xr.Dataset, followed: Sequence[Following], edge_of_stability: float, title: str) -> Figure:
    """Beyond the edge: one network per width on the limit's sharpness, how far they are off it, and when they first were."""
    dataset = plots.drawable(dataset)
    figure, (sharp, off, when) = _panels(3)
    last, tolerance = followed[-1].observable, followed[-1].tolerance
    rms = np.sqrt((relative_deviations(dataset, last) ** 2).mean("seed"))
    for width, color in plots.colors(dataset.width.values):
        curve = dataset["hessian_eigenvalues"].sel(rank=1, width=width).isel(seed=0)
        plots.against_step(sharp, curve, color=color, label=f"N = {width}")
        plots.against_step(off, rms.sel(width=width), color=color, label=f"N = {width}")
    limit = limit_component(dataset, "sharpness", {"rank": 1})
    if limit is not None:
        plots.limit(sharp, limit, limit_error(dataset, "sharpness", {"rank": 1}))
    plots.mark_edge(sharp, edge_of_stability)
    sharp.set(xlabel="step", ylabel=_label("sharpness"), title="one network of each width")
    plots.logarithmic(off)
    off.axhline(tolerance, color="gray", linewidth=0.9, label=TOLERATED)
    if followed[-1].until < dataset.step.values[-1]:
        off.axvline(followed[-1].until, label=KNOWN, **UNTIL)
    off.set(xlabel="step", ylabel=f"rms relative deviation of {_label(last)}", title=f"tolerated: {tolerance:g}")
    for series, color in zip(followed, ("tab:blue", "tab:orange"), strict=False):
        draw_following(when, series, color)
    when.set(xscale="log", xlabel="width $N$", ylabel="steps",
             title="\n".join(f"{series.observable}: {series.law}" for series in followed))  # fmt: skip
    plots.at_sizes(when.xaxis, dataset.width.values)
    handles = [Line2D([], [], color=color, marker="o", linestyle="", label=f"{series.observable} follows")
               for series, color in zip(followed, ("tab:blue", "tab:orange"), strict=False)]  # fmt: skip
    handles += [*plots.limit_handles(), plots.edge_handle(),
                Line2D([], [], color="gray", marker="o", fillstyle="none", linestyle="", label=TO_THE_END),
                Line2D([], [], color="gray", linewidth=0.9, label=TOLERATED), Line2D([], [], label=KNOWN, **UNTIL),
                Line2D([], [], color="gray", linestyle=":", label="predicted")]  # fmt: skip
    plots.legend_below(figure, [*plots.widths(dataset), *handles])
    crosses = "networks of the largest width cross" if limit is None else "the limit crosses"
    figure.suptitle(f"{title}; {crosses} the edge of stability at step {followed[0].crossing}", fontsize=9)
    return figure


def draw_following(axis: Axes, series: Following, color) -> None:
    """Mean over seeds with its interval, hollow where some follow to the end; the mean that the law of first order has."""
    steps, ends = np.array(series.steps), np.array(series.intervals).T
    for left, fill, group in ((False, "full", None), (True, "none", TO_THE_END)):
        shown = (np.array(series.to_the_end) > 0) == left
        points = axis.errorbar(np.array(series.widths)[shown], steps[shown], yerr=np.abs(ends - steps)[:, shown], color=color,
                               marker="o", markersize=3.5, linestyle="", elinewidth=0.8, fillstyle=fill)[0]  # fmt: skip
        points.set(label=f"{series.observable} follows", gid=group)
    if series.predicted is not None:
        axis.plot(series.widths, series.predicted, color=color, linestyle=":", label="predicted")


def largest(observed: Growth) -> str:
    """The largest growth, if there is one, with its interval, where it has one."""
    low, high = observed.interval
    size = f"{observed.largest:.3g}".replace("nan", "–").replace("inf", "∞")
    return f"{size} [{low:.3g}, {high:.3g}]" if np.isfinite([low, high]).all() else size


def marks() -> list[Artist]:
    """What is drawn by ``draw_rate``, whatever the step: for a legend."""
    return [Line2D([], [], color="gray", label="fit"), plots.band(SLOPES),
            Line2D([], [], color="gray", linestyle=":", label="predicted"),
            Line2D([], [], color="gray", marker="o", fillstyle="none", linestyle="", label=UNFITTED)]  # fmt: skip


def draw_rate(axis: Axes, errors: xr.DataArray, rate: Rate, kind: str, color) -> None:
    """(width, seed): the errors, and the line that was fitted to them with its band, beside the predicted one."""
    magnitude = np.sqrt((errors**2).mean("seed")) if kind == "fluctuation" else abs(errors.mean("seed"))
    scatter = errors.std("seed", ddof=1) / np.sqrt(errors.sizes["seed"])
    if kind == "fluctuation":
        scatter = magnitude / np.sqrt(2 * errors.sizes["seed"])
    fitted = rate.status == "fitted"
    points = axis.errorbar(errors.width, magnitude, yerr=np.minimum(scatter, 0.9 * magnitude), color=color, marker="o",
                           markersize=3.5, linestyle="", elinewidth=0.8, fillstyle="full" if fitted else "none")[0]
    points.set(label=f"step {rate.step}", gid=None if fitted else UNFITTED)
    ends = np.geomspace(errors.width.values.min(), errors.width.values.max(), 30)
    if fitted:
        axis.plot(ends, _power(rate.fitted_prefactor, ends, rate.exponent), color=color, label="fit")
        pivot = np.exp(np.mean(np.log(errors.width.values)))
        level = _power(rate.fitted_prefactor, pivot, rate.exponent)
        sides = [_power(level, ends / pivot, slope) for slope in rate.interval]
        axis.fill_between(ends, np.minimum(*sides), np.maximum(*sides), color=color, alpha=0.15, linewidth=0,
                          label=plots.banded(SLOPES))  # fmt: skip
    if rate.predicted_prefactor is not None and rate.predicted_prefactor > 0:
        axis.plot(ends, _power(rate.predicted_prefactor, ends, rate.predicted_exponent), color=color, linestyle=":",
                  label="predicted")  # fmt: skip


def _power(prefactor, widths, exponent):
    """Not a number where it is beyond ``HUGE``."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = prefactor * np.asarray(widths, float) ** exponent
        return np.where(np.abs(values) < plots.HUGE, values, np.nan)


def _panels(columns, rows=1):
    figure = Figure(figsize=(plots.PANEL[0] * columns, plots.PANEL[1] * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns)


def _label(name):
    return OBSERVABLES[name].symbol.replace("_k", "_1") if name == "ntk_eigenvalues" else OBSERVABLES[name].symbol


def _titled(dataset, name, reference):
    """The observable, and what is subtracted from it if that is not what is from the others."""
    used = reference_of(dataset, name, reference)
    return OBSERVABLES[name].label + ("" if used == reference else f", against N = {dataset.width.values[-1]}")
