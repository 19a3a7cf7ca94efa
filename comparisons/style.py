"""The pictures of a comparison: dynamics, rates, growth.  Each function returns a figure; ``save`` writes PNG and PDF."""

import re
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from comparisons import records
from comparisons.convergence.rates import Rate, deviations, limit_component, reference_of, variable
from comparisons.super_consistency import GROWN, Growth
from limits import OBSERVABLES

NAMES = {"mup": "μP", "ntp": "NTP", "sp": "SP", "depth_mup": "Depth-μP", "alpha1": "α = 1", "mean_field": "mean field"}
SHOWN = {"loss": {}, "sharpness": {"rank": 1}, "ntk_eigenvalues": {"rank": 1}}  # observable → its component
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.4, "savefig.dpi": 200,
}  # fmt: skip
EDGE = {"color": "firebrick", "linewidth": 0.9, "label": "edge of stability"}
LIMIT = {"color": "black", "linestyle": "--", "linewidth": 1.2, "zorder": 5}
PANEL = (2.9, 2.7)  # inches
HUGE = 1e100  # what is larger has diverged; from 1e300 on matplotlib's own arithmetic overflows
DECADES = 30  # of a logarithmic axis below where its lines start, at most: there is rounding
WIDE = 1e3  # what spans more is on a logarithmic axis
SPREAD, SLOPES = "standard deviation over seeds", "95 % of its exponent"  # what the bands of dynamics, rates are
UNFITTED = "no exponent: the table says why"
FAR = {"linear": 2, "log": 6}  # times as high as the curves, or as low, an edge is told in words: a line would flatten them
SHORTEST, FILLED = 12, 0.98  # characters of a line of a title, and how much of its room it may fill


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The drawing function with the house's style; the process's own matplotlib settings stay as they are."""

    @wraps(draw)
    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def save(figure: Figure, path: Path) -> None:
    """``path`` and .png, and .pdf; written whole or not at all.  Raises records.Unwritten.

    Laid out once for both, and drawn once for each: for a figure with a layout ``savefig`` draws twice.
    """
    fit_titles(figure)
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
    for kind, canvas, unsaid in (("png", FigureCanvasAgg, "Software"), ("pdf", FigureCanvasPdf, "CreationDate")):
        ending = f".{kind}"
        temporary = path.with_name(f".{path.name}{ending}.partial")
        with records.writing(path.with_name(path.name + ending)):
            getattr(canvas(figure), f"print_{kind}")(temporary, metadata={unsaid: None})
            temporary.replace(path.with_name(path.name + ending))


@styled
def dynamics(dataset: xr.Dataset, edge_of_stability: float, title: str) -> Figure:
    """Each shown observable against step: mean over seeds with its spread, one colour per width, the limit dashed."""
    dataset = drawable(dataset)
    figure, axes = _panels(len(SHOWN))
    for axis, (name, selection) in zip(axes, SHOWN.items(), strict=True):
        values = dataset[variable(name)].sel(selection)
        for width, color in colors(dataset.width.values):
            one = values.sel(width=width)
            mean, spread = one.mean("seed"), one.std("seed")
            against_step(axis, mean, color=color, label=f"N = {width}")
            axis.fill_between(dataset.step, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0,
                              label=banded(SPREAD))  # fmt: skip
        limit = limit_component(dataset, name, selection)
        if limit is not None:
            against_step(axis, limit, label="limit", **LIMIT)
        axis.set(xlabel="step", ylabel=_label(name), title=OBSERVABLES[name].label)
        if name == "loss":
            lowest = values.mean("seed").where(lambda mean: mean > 0).min()  # the spread may reach below any loss
            logarithmic(axis, bottom=0.3 * float(lowest))
        elif _spans(axis, WIDE):
            logarithmic(axis)
    mark_edge(axes[1], edge_of_stability)
    legend_below(figure, [*widths(dataset), Line2D([], [], label="limit", **LIMIT), edge_handle(), band(SPREAD)])
    figure.suptitle(title, fontsize=9)
    return figure


@styled
def rates(dataset: xr.Dataset, measured: Sequence[Rate], reference: str, title: str, steps: Sequence[int]) -> Figure:
    """Error against width at several steps: points, fitted lines with their band, predicted lines; one row per kind."""
    kinds, dataset = ("fluctuation", "bias"), drawable(dataset)
    figure, grid = _panels(len(SHOWN), len(kinds))
    table = {(r.observable, r.rank, r.kind, r.step): r for r in measured}
    for row, kind in zip(grid, kinds, strict=True):
        for axis, (name, selection) in zip(row, SHOWN.items(), strict=True):
            errors = deviations(dataset, name, selection, reference, kind)
            rank = None if name in ("loss", "sharpness") else selection.get("rank")
            for step, color in zip(steps, matplotlib.colormaps["plasma"](np.linspace(0.05, 0.8, len(steps))), strict=True):
                draw_rate(axis, errors.sel(step=step), table[name, rank, kind, step], kind, color)
            axis.set(xscale="log", xlabel="width $N$", title=_titled(dataset, name, reference))
            logarithmic(axis)
            subtracted = r"\infty" if reference_of(dataset, name, reference) == "theory" else dataset.width.values[-1]
            what = f"over seeds of $o_N-o_{{{subtracted}}}$"
            axis.set_ylabel(f"rms {what}" if kind == "fluctuation" else f"|mean {what}|")
            axis.set_xticks(errors.width.values, [str(w) for w in errors.width.values], rotation=45)
            axis.tick_params(axis="x", which="minor", bottom=False)
            axis.xaxis.set_minor_formatter(NullFormatter())
    handles = [Line2D([], [], marker="o", linestyle="-", color=matplotlib.colormaps["plasma"](x), label=f"step {step}")
               for step, x in zip(steps, np.linspace(0.05, 0.8, len(steps)), strict=True)]  # fmt: skip
    handles += [Line2D([], [], color="gray", label="fit"), band(SLOPES),
                Line2D([], [], color="gray", linestyle=":", label="predicted"),
                Line2D([], [], color="gray", marker="o", fillstyle="none", linestyle="", label=UNFITTED)]  # fmt: skip
    legend_below(figure, handles)
    figure.suptitle(f"{title}; reference: {reference}", fontsize=9)
    return figure


@styled
def growth(dataset: xr.Dataset, grown: Sequence[Growth], reference: str, title: str) -> Figure:
    """|o_N(t) − o_∞(t)| against step per width, and in the title of each panel the verdict."""
    dataset = drawable(dataset)
    figure, axes = _panels(len(SHOWN))
    for axis, (name, selection) in zip(axes, SHOWN.items(), strict=True):
        errors = deviations(dataset, name, selection, reference, "fluctuation")
        magnitude = np.sqrt((errors**2).mean("seed"))
        for width, color in colors(dataset.width.values):
            if width in magnitude.width.values:
                against_step(axis, magnitude.sel(width=width), color=color, label=f"N = {width}")
        found = next(g for g in grown if g.observable == name and g.rank in (None, 1))
        axis.set(xlabel="step", ylabel=f"rms deviation of {_label(name)}")
        logarithmic(axis)
        grew = [] if np.isnan(found.largest) else [f"at most × {largest(found)}"]
        axis.set_title("\n".join([_titled(dataset, name, reference), *grew, found.verdict]))
    legend_below(figure, widths(dataset))
    figure.suptitle(f"{title}; reference: {reference}; super consistent: at most × {GROWN:g}", fontsize=9)
    return figure


def largest(found: Growth) -> str:
    """The largest growth, if there is one, with its interval, where it has one."""
    low, high = found.interval
    size = f"{found.largest:.3g}".replace("nan", "–").replace("inf", "∞")
    return f"{size} [{low:.3g}, {high:.3g}]" if np.isfinite([low, high]).all() else size


def power(letter: str, exponent: float, interval: tuple[float, float]) -> str:
    """∝ letter^exponent with its interval, as pictures say it."""
    return f"$\\propto {letter}^{{{exponent:+z.2f}}}$ [{interval[0]:+z.2f}, {interval[1]:+z.2f}]"


def wrapped(title: str, characters: int) -> str:
    """In lines of at most so many characters, broken after commas and semicolons: "batch 64" stays together.

    A part that is longer is broken at its spaces, not within $…$, and a word that is longer anywhere.
    """
    return "\n".join(_packed(line, characters) for line in title.split("\n"))


def _packed(line, characters):
    held = re.sub(r"\$[^$]*\$", lambda formula: formula[0].replace(" ", "\0"), line)
    parts = [part for text in re.split(r"(?<=[,;]) ", held)
             for part in textwrap.wrap(text, characters, break_on_hyphens=False)]  # fmt: skip
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) <= characters:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return "\n".join(lines).replace("\0", " ")


def fit_titles(figure: Figure) -> None:
    """Breaks the figure's title, and those of its panels, into lines that end where the figure, or the panel, does.

    What they take in height is added to the figure's.
    """
    added = [_broken(text, figure.bbox.width) for text in figure.texts]
    rows = {}
    for axis in figure.axes:
        spec = axis.get_subplotspec()
        row, columns = (spec.rowspan.start, spec.get_gridspec().ncols / len(spec.colspan)) if spec else (0, 1)
        rows[row] = max(rows.get(row, 0.0), _broken(axis.title, figure.bbox.width / columns))
    figure.set_figheight(figure.get_figheight() + (sum(added) + sum(rows.values())) / figure.dpi)


def _broken(text, room) -> float:
    """How much higher a text has become by being broken so that it fits, in pixels."""
    whole, height = text.get_text(), text.get_window_extent().height
    characters = max(map(len, whole.split("\n")))
    while characters > SHORTEST and text.get_window_extent().width > FILLED * room:
        characters -= 2
        text.set_text(wrapped(whole, characters))
    return text.get_window_extent().height - height


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Of what is drawn (``drawn``); under all panels, in as many columns as the figure is wide.

    The figure grows by all rows but the first.
    """
    handles = drawn(figure, handles)
    if not handles:
        return
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent()
        if columns == 1 or box.width <= figure.bbox.width:
            break
        legend.remove()
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + box.height * (1 - 1 / rows) / figure.dpi)


def drawn(figure: Figure, handles: Sequence[Artist]) -> list[Artist]:
    """Those of which a panel shows something: a line or a band with the same label, or group, that is more than empty."""
    shown = [artist for axis in figure.axes for artist in (*axis.lines, *axis.collections) if _shows(axis, artist)]
    names = {name for artist in shown for name in (artist.get_label(), artist.get_gid())}
    return [handle for handle in handles if handle.get_label() in names]


def _shows(axis, artist):
    if isinstance(artist, PolyCollection):
        return any(path.get_extents().width > 0 for path in artist.get_paths())
    points = artist.get_xydata() if isinstance(artist, Line2D) else np.empty((0, 2))
    above = points[:, 1] > 0 if axis.get_yscale() == "log" else True
    return bool(np.any(np.isfinite(points).all(axis=1) & above))


def banded(what: str) -> str:
    """The label of a shaded band."""
    return f"band: {what}"


def band(what: str) -> Patch:
    """Its handle."""
    return Patch(facecolor="gray", alpha=0.3, linewidth=0, label=banded(what))


def widths(dataset: xr.Dataset) -> list[Line2D]:
    """A handle per width."""
    return [Line2D([], [], color=color, label=f"N = {width}") for width, color in colors(dataset.width.values)]


def drawable(dataset: xr.Dataset) -> xr.Dataset:
    """Not a number where a value is not finite or beyond ``HUGE``: it has diverged, and its line ends there."""
    return dataset.map(lambda values: values.where(abs(values) < HUGE) if values.dtype.kind == "f" else values, keep_attrs=True)


def against_step(axis: Axes, values: xr.DataArray, **style) -> None:
    """A line; of a single value, after which all has diverged, a point, on an axis of all steps."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lone = int(values.notnull().sum()) == 1
    axis.plot(values.step, values, marker="o" if lone else None, markersize=3.5, **style)
    if lone and (last := int(values.step[-1])) > 0:
        axis.set_xlim(-0.02 * last, 1.02 * last)


def logarithmic(axis: Axes, bottom: float = 0.0) -> None:
    """A logarithmic y axis, from ``bottom`` on, and ``DECADES`` below the highest start of a line at most.

    Where nothing above zero is drawn it says so.
    """
    lines = [heights[heights > 0] for heights in _heights(axis)]
    start = max((heights[0] for heights in lines if heights.size), default=0.0)
    if not start:
        axis.text(0.5, 0.5, "nothing above zero", transform=axis.transAxes, ha="center", color="gray")
        return
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 10.0**-DECADES * start, bottom if np.isfinite(bottom) else 0.0), high)
    plain_numbers(axis.yaxis)


def _heights(axis):
    """Of each line, those that are finite."""
    found = [np.asarray(line.get_ydata(), float) for line in axis.lines]
    return [heights[np.isfinite(heights)] for heights in found]


def _spans(axis, factor):
    """Whether all that is drawn is above zero, and the highest more than so many times the lowest."""
    heights = np.concatenate([np.empty(0), *_heights(axis)])
    return bool(heights.size) and 0 < factor * heights.min() < heights.max()


def plain_numbers(axis: Axis) -> None:
    """0.5, 1, 2, 5 in place of powers of ten, on a logarithmic axis that shows less than two and a half decades."""
    low, high = axis.get_view_interval()
    if high > 300 * low:
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


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
                          label=banded(SLOPES))  # fmt: skip
    if rate.predicted_prefactor is not None and rate.predicted_prefactor > 0:
        axis.plot(ends, _power(rate.predicted_prefactor, ends, rate.predicted_exponent), color=color, linestyle=":",
                  label="predicted")  # fmt: skip


def _power(prefactor, widths, exponent):
    """Not a number where it is beyond ``HUGE``."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = prefactor * np.asarray(widths, float) ** exponent
        return np.where(np.abs(values) < HUGE, values, np.nan)


def _panels(columns, rows=1):
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns)


def colors(widths):
    return list(zip(widths, matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(widths))), strict=True))


def _label(name):
    return OBSERVABLES[name].symbol.replace("_k", "_1") if name == "ntk_eigenvalues" else OBSERVABLES[name].symbol


def _titled(dataset, name, reference):
    """The observable, and what is subtracted from it if that is not what is from the others."""
    used = reference_of(dataset, name, reference)
    return OBSERVABLES[name].label + ("" if used == reference else f", against N = {dataset.width.values[-1]}")


def edge_handle() -> Line2D:
    """Of the edge of stability."""
    return Line2D([], [], **EDGE)


def mark_edge(axis: Axes, height: float) -> None:
    """The line 2/η0, if it is near enough not to squash the curves; else its height in words.  Nothing if there is none."""
    if not np.isfinite(height):
        return
    (low, top), far = axis.get_ylim(), FAR[axis.get_yscale()]
    if top / far < height < far * top:
        axis.axhline(height, **EDGE)
        axis.set_ylim(min(low, height / 1.2), max(top, 1.2 * height))
    else:
        axis.annotate(f"edge of stability at {height:.3g}", (0.02, 0.98), xycoords="axes fraction", color=EDGE["color"],
                      fontsize=7, va="top")  # fmt: skip
