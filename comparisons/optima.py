"""What is shown of a sweep over learning rates: the picture, a column per parametrization, and the table."""

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparisons import style as plots
from comparisons.statistics.minimum import TOLERATED, Optimum, Shift, at_size, has_limit, size_names, sizes_of
from comparisons.statistics.super_consistency import SIZES

EDGE = {"linestyle": ":", "linewidth": 1.1}
LIMIT = plots.LIMIT | {"label": r"$N\to\infty$"}
FINAL_LOSS = r"final loss $\mathcal{L}$"
WIDE, LEAST = 3.6, 4.4  # inches of a panel, and of all together: there is a title
OF_LOSSES = "middle half of the seeds"  # what the bands are
BEYOND = "from 0, or to inf: these learning rates and seeds do not say how far an optimum may be; more of them there would tell"
OPTIMUM = Line2D([], [], color="gray", marker="v", markersize=4, linestyle="", label="optimum")


@plots.styled
def picture(dataset: xr.Dataset, optima: list[Optimum], shifts: list[Shift], title: str) -> Figure:
    """A column per parametrization, a colour per size, the limit dashed.

    Upper row: final loss against learning rate.  Lines are means over seeds, bands hold the middle half of the seeds,
    triangles stand at the optima.  What diverged leaves through the top.
    Lower row, where the sharpness was followed: it against step, at the learning rate of the grid next to each optimum,
    with its line 2/η0; mean over the networks, bands from the lowest to the highest.
    """
    names, rows = [str(name) for name in dataset.param.values], 1 + ("sharpness" in dataset)
    figure = Figure(figsize=(max(WIDE * len(names), LEAST) + 0.4, 2.9 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, len(names), sharey="row", squeeze=False)
    for axis, name in zip(grid[0], names, strict=True):
        final_losses(axis, dataset.sel(param=name), loss_range(dataset), optima)
        axis.set_title("\n".join([plots.NAMES.get(name, name), *statements(name, shifts)]))
    grid[0, 0].set_ylabel(FINAL_LOSS)
    if rows > 1:
        for axis, name in zip(grid[1], names, strict=True):
            sharpness(axis, dataset.sel(param=name))
        grid[1, 0].set(ylabel=dataset["sharpness"].attrs["symbol"] + " at the optimum", ylim=sharpness_range(dataset))
        plots.plain_numbers(grid[1, 0].yaxis)
    plots.legend_below(figure, [*sizes(dataset), *marks(dataset)])
    figure.suptitle(title, fontsize=9)
    return figure


def _named(dataset, width, depth):
    """A size in the legend: of width and depth those that there are several of."""
    sizes = zip(SIZES, size_names(dataset), (width, depth), strict=True)
    return ", ".join(f"{_symbol(name)} = {value}" for axis, name, value in sizes if dataset.sizes.get(axis, 1) > 1)


def _symbol(name):
    """Of a size that has none its name."""
    return SIZES.get(name, name)


def _in_formulas(name):
    return SIZES.get(name) or r"\mathrm{" + name.replace("_", r"\_") + "}"


def _spread(dataset):
    """What the bands are."""
    return OF_LOSSES + ("; below, all" if "sharpness" in dataset else "")


def _colored(dataset):
    """(size, colour), the narrowest first and within a width the shallowest."""
    return plots.colors(sorted(sizes_of(dataset), key=lambda size: (size[0], size[1] or 0)))


def final_losses(axis: Axes, sweep: xr.Dataset, shown: tuple[float, float], optima: list[Optimum]) -> None:
    """Of one parametrization; what is beyond the range shown (``loss_range``), or diverged, leaves through the top."""
    top = shown[1]
    mine = [o for o in optima if o.parametrization == str(sweep.param.values) and o.width and np.isfinite(o.final_loss)]
    ends, best = sweep.learning_rate.values[[0, -1]], {(o.width, o.depth): o.best_learning_rate for o in mine}
    for size, color in _colored(sweep):
        there = at_size(sweep, *size)["final_loss"].transpose("seed", "learning_rate")
        rates = there.learning_rate.values
        mean = _drawable(there.values.mean(axis=0), top)  # of one that diverged, too
        axis.plot(rates, mean, color=color, label=_named(sweep, *size))
        axis.fill_between(rates, *np.quantile(_drawable(there.values, top), (0.25, 0.75), axis=0), where=mean < top,
                          color=color, alpha=0.15, linewidth=0, label=plots.banded(_spread(sweep)))  # fmt: skip
        axis.plot(best.get(size, np.nan), 0.97, transform=axis.get_xaxis_transform(), color=color, marker="v", markersize=5,
                  alpha=0.8, clip_on=False, label=OPTIMUM.get_label())  # fmt: skip  (one at the end of the grid is whole)
    if has_limit(sweep):
        for limit, style in _limits(sweep, "final_loss_limit"):
            axis.plot(sweep.learning_rate, _drawable(limit.values, top), **style)
    nothing = "diverged" if not mine else "" if (sweep["final_loss"] > 0).any() else "every loss is zero"
    axis.text(0.5, 0.5, nothing, transform=axis.transAxes, ha="center", color="gray")
    axis.set(xlim=ends, ylim=shown, xscale="log", yscale="log", xlabel=r"learning rate $\eta_0$")
    plots.plain_numbers(axis.xaxis)
    plots.plain_numbers(axis.yaxis)


def sharpness(axis: Axes, sweep: xr.Dataset) -> None:
    """Of one parametrization against step, at the learning rates next to its optima, with their edges of stability."""
    edges = np.unique(sweep["edge_of_stability"].values)
    for size, color in _colored(sweep):
        there = at_size(sweep, *size)
        values = there["sharpness"].dropna("seed", how="all")
        if values.sizes["seed"]:
            mean, low, high = (reduced("seed", skipna=False) for reduced in (values.mean, values.min, values.max))
            plots.against_step(axis, mean, color=color, label=_named(sweep, *size))
            axis.fill_between(sweep.step, low, high, color=color, alpha=0.15, linewidth=0, label=plots.banded(_spread(sweep)))
        if np.isfinite(edge := float(there["edge_of_stability"])):
            label = sweep["edge_of_stability"].attrs["symbol"]
            axis.axhline(edge, color=color if len(edges) > 1 else "gray", label=label, **EDGE)
    if "sharpness_limit" in sweep:
        for limit, style in _limits(sweep, "sharpness_limit"):
            axis.plot(sweep.step, limit, **style)
    axis.set(yscale="log", xlabel="step", xlim=(0, int(sweep.step[-1])))


def _limits(sweep, name):
    """[(curve, how it is drawn)]: those of several depths in the colours of networks that differ by depth alone."""
    if "depth" not in sweep[name].dims:
        return [(sweep[name], LIMIT)]
    colors = {depth: color for (_, depth), color in _colored(sweep)} if sweep.sizes.get("width", 1) == 1 else {}
    return [(sweep[name].sel(depth=depth), LIMIT | ({"color": colors[depth]} if depth in colors else {}))
            for depth in sweep.depth.values]  # fmt: skip


def _drawable(loss, top):
    """What is not finite, or far beyond the top, a little beyond it: a line that leaves the picture."""
    return np.where(np.isfinite(loss), np.minimum(loss, 10 * top), 10 * top)


def loss_range(dataset: xr.Dataset) -> tuple[float, float]:
    """A little below the lowest mean, or limit, that is not zero, and above the start, by more where the losses span more."""
    drawn = [dataset["final_loss"].mean("seed"), *(dataset[name] for name in ("final_loss_limit",) if name in dataset)]
    mean = np.concatenate([losses.values.ravel() for losses in drawn])
    start = float(np.clip(dataset["initial_loss"].mean("seed").max(), 1 / plots.HUGE, plots.HUGE))
    bottom = max(float(np.min(mean, where=mean > 0, initial=start)) / 2, 1e-18 * start)
    return bottom, start * float(np.clip((start / bottom) ** 0.15, 1.5, 10.0))


def sharpness_range(dataset: xr.Dataset) -> tuple[float, float]:
    """From the lowest to the highest of sharpness and edges, at most three decades from what there is before the first step,
    and from the edges, on: networks may have gone flat, or be on their way to infinity.
    """
    values, edges = dataset["sharpness"], dataset["edge_of_stability"].values
    (low, high), (least, most) = (_range(v) for v in ((values.values, edges), (values.isel(step=0).values, edges)))
    return max(low / 1.5, 1e-3 * least), min(1.5 * high, 1e3 * most)


def _range(parts):
    """The lowest and the highest that is above zero and finite."""
    values = np.concatenate([part.ravel() for part in parts])
    values = values[np.isfinite(values) & (values > 0)]
    return (float(values.min()), float(values.max())) if values.size else (1e-3, 1e-3)


def statements(name: str, shifts: list[Shift]) -> list[str]:
    """How the optimum of a parametrization moves, with its 95 % interval, in a line each."""
    moves = [shift for shift in shifts if shift.parametrization == name]
    powers = [plots.power(_in_formulas(s.size), s.exponent, s.interval) for s in moves]
    said = (f"optimum {power}, {s.verdict}" if np.isfinite(s.exponent) else s.verdict
            for power, s in zip(powers, moves, strict=True))  # fmt: skip
    return list(dict.fromkeys(said))  # the same of width and depth: once


def sizes(dataset: xr.Dataset) -> list[Artist]:
    """A handle per size."""
    return [Line2D([], [], color=color, label=_named(dataset, *size)) for size, color in _colored(dataset)]


def marks(dataset: xr.Dataset) -> list[Artist]:
    """Handles of all that is drawn besides the sizes."""
    handles = []
    if "final_loss_limit" in dataset:
        handles.append(Line2D([], [], **LIMIT))
    if dataset.sizes["seed"] > 1:
        handles.append(plots.band(_spread(dataset)))
    handles.append(OPTIMUM)
    if "sharpness" in dataset:
        handles.append(Line2D([], [], color="gray", label=dataset["edge_of_stability"].attrs["symbol"], **EDGE))
    return handles


def table(optima: list[Optimum], shifts: list[Shift], title: str, size: str = "width") -> str:
    """The optima and the verdicts, for the terminal."""
    long, large = max(5, *(len(o.parametrization) for o in optima)), max(6, len(size), *(len(str(o.width)) for o in optima))
    deep = len({o.depth for o in optima}) > 1
    form = f"{{:<{long}}} {{:>{large}}}{' {:>5}' if deep else ''}  {{:>8}}  {{:<18}}{{:>11}}".format
    lines = [title, "", form("param", size, *(["depth"] if deep else []), "best η0", "95 % interval", "final loss")]
    for o in optima:
        final = f"{o.final_loss:.3g}" if np.isfinite(o.final_loss) else "diverged"
        columns, (low, high) = [o.width or "∞", *([o.depth] if deep else [])], o.interval
        lines.append(form(o.parametrization, *columns, f"{o.best_learning_rate:.3g}", f"[{low:.3g}, {high:.3g}]", final))
    if any(low == 0 or high == np.inf for low, high in (o.interval for o in optima)):
        lines.append(BEYOND)
    lines += ["", f"best η0 ∝ size^exponent [95 % interval]; it transfers where the 90 % interval lies within ±{TOLERATED:g}"]
    for s in shifts:
        exponent = f"{_symbol(s.size)}^{s.exponent:+z.3f} [{s.interval[0]:+z.3f}, {s.interval[1]:+z.3f}]  "
        said = exponent if np.isfinite(s.exponent) else f"{_symbol(s.size)}: "
        lines.append(f"{s.parametrization:<{long}} {said}{s.verdict}")
    return "\n".join(lines)
