"""What all pictures share: style, axes, legends, titles that fit.  ``save`` writes a figure as PNG and PDF."""

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
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from comparisons import files

NAMES = {"mup": "μP", "ntp": "NTP", "sp": "SP", "depth_mup": "Depth-μP", "alpha1": "α = 1", "mean_field": "mean field"}
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.4, "savefig.dpi": 200,
}  # fmt: skip
EDGE = {"color": "firebrick", "linewidth": 0.9, "label": "edge of stability"}
LIMIT = {"color": "black", "linestyle": "--", "linewidth": 1.2, "zorder": 5}
OF_LIMIT = "twice the limit's own error"
PANEL = (2.9, 2.7)  # inches
HUGE = 1e100  # what is larger has diverged; from 1e300 on matplotlib's own arithmetic overflows
DECADES = 30  # of a logarithmic axis below where its lines start, at most: there is rounding
WIDE = 1e3  # what spans more is on a logarithmic axis
FAR = {"linear": 2, "log": 6}  # times as high as the curves, or as low, an edge is told in words: a line would flatten them
SHORTEST, FILLED = 12, 0.98  # characters of a line of a title, and how much of its room it may fill
CENTRED = 0.86  # of a panel's room, for titles over the axes: these are right of its middle by half of what their labels take


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The drawing function with the house's style; the process's own matplotlib settings stay as they are."""

    @wraps(draw)
    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def save(figure: Figure, path: Path) -> None:
    """``path`` and .png, and .pdf; written whole or not at all.  Raises files.Unwritten.

    Laid out once for both, and drawn once for each: for a figure with a layout ``savefig`` draws twice.
    """
    fit_titles(figure)
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
    for kind, canvas, unsaid in (("png", FigureCanvasAgg, "Software"), ("pdf", FigureCanvasPdf, "CreationDate")):
        ending = f".{kind}"
        temporary = path.with_name(f".{path.name}{ending}.partial")
        with files.writing(path.with_name(path.name + ending)):
            getattr(canvas(figure), f"print_{kind}")(temporary, metadata={unsaid: None})
            temporary.replace(path.with_name(path.name + ending))


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
        rows[row] = max(rows.get(row, 0.0), _broken(axis.title, CENTRED * figure.bbox.width / columns))
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
    """Of what is drawn (``drawn``), as ``all_below`` has it."""
    all_below(figure, drawn(figure, handles))


def all_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Under all panels, in as few rows as the figure is wide for.  It grows by all of them but the first."""
    if not handles:
        return
    for rows in range(1, len(handles) + 1):
        columns = -(-len(handles) // rows)
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent()
        if columns == 1 or box.width <= figure.bbox.width:
            break
        legend.remove()
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


def banded(statistic: str) -> str:
    """The label of a shaded band."""
    return f"band: {statistic}"


def band(statistic: str, color: str = "gray") -> Patch:
    """Its handle."""
    return Patch(facecolor=color, alpha=0.3, linewidth=0, label=banded(statistic))


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


def limit(axis: Axes, values: xr.DataArray, error: xr.DataArray | None = None, **style) -> None:
    """Dashed, against step; a sampled one within twice its own error, and not where that is infinite."""
    style = LIMIT | style
    values = values if error is None else values.where(np.isfinite(error))
    if error is not None and (error > 0).any():
        axis.fill_between(values.step, values - 2 * error, values + 2 * error, color=style["color"], alpha=0.3, linewidth=0,
                          label=banded(OF_LIMIT))  # fmt: skip
    against_step(axis, values, label="limit", **style)


def limit_handles() -> list[Artist]:
    """Of the limit and of its error, in a legend."""
    return [Line2D([], [], label="limit", **LIMIT), band(OF_LIMIT, LIMIT["color"])]


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
    curves = [np.asarray(line.get_ydata(), float) for line in axis.lines]
    return [heights[np.isfinite(heights)] for heights in curves]


def spans(axis, factor):
    """Whether all that is drawn is above zero, and the highest more than so many times the lowest."""
    heights = np.concatenate([np.empty(0), *_heights(axis)])
    return bool(heights.size) and 0 < factor * heights.min() < heights.max()


def at_sizes(axis: Axis, sizes: Sequence[int] | np.ndarray, rotation: float = 45) -> None:
    """A tick at each size of a network, and none between them; upright where a legend is close below."""
    axis.set_ticks([*sizes], [str(size) for size in sizes], rotation=rotation)
    axis.set_minor_locator(NullLocator())


def plain_numbers(axis: Axis) -> None:
    """0.5, 1, 2, 5 in place of powers of ten, on a logarithmic axis that shows less than two decades, 0.3, 1, 3 up to two and a
    half; and some between them where it shows little more than one of these."""
    low, high = axis.get_view_interval()
    if high > 300 * low:
        return
    few, some, many = (1, 3), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(subs=few if high > 100 * low else some if high > 6 * low else many))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def colors(widths):
    return list(zip(widths, matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(widths))), strict=True))


def edge_handle() -> Line2D:
    """Of the edge of stability."""
    return Line2D([], [], **EDGE)


def mark_edge(axis: Axes, height: float) -> None:
    """The line 2/η0, if it is among the curves or near enough not to squash them; else its height in words, if there is one."""
    if not np.isfinite(height):
        return
    (low, top), far = axis.get_ylim(), FAR[axis.get_yscale()]
    lowest = min((heights.min() for heights in _heights(axis) if heights.size), default=np.inf)
    if min(lowest, top / far) < height < far * top:
        axis.axhline(height, **EDGE)
        axis.set_ylim(min(low, height / 1.2), max(top, 1.2 * height))
    else:
        axis.annotate(f"edge of stability at {height:.3g}", (0.02, 0.98), xycoords="axes fraction", color=EDGE["color"],
                      fontsize=7, va="top")  # fmt: skip
