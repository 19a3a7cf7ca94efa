"""What is shown of curvature along training: the pictures, a column per parametrization, and the table."""

import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparisons import style as plots
from comparisons.landscape.late import Late, first, followed, growing
from comparisons.statistics.super_consistency import APART, FLAT, LATE, SIZES
from finite.curvature.density import Density
from limits import OBSERVABLES

RANGE, ERROR = "range over seeds", "standard error"  # what the bands are
RESOLUTION = 400  # points of a density, whose window is one fiftieth of what is shown


@plots.styled
def picture(dataset: xr.Dataset, late: list[Late], title: str) -> Figure:
    """A row per observable, a column per parametrization, a colour per size: mean and range over seeds; limits dashed."""
    dataset = plots.drawable(dataset)
    names, params = followed(dataset), [str(param) for param in dataset.param.values]
    figure = Figure(figsize=(1.25 * plots.PANEL[0] * len(params) + 0.4, 0.85 * plots.PANEL[1] * len(names) + 0.9),
                    layout="constrained")  # fmt: skip
    grid = figure.subplots(len(names), len(params), sharex=True, squeeze=False)
    said = {(entry.parametrization, entry.observable): entry for entry in late}
    for row, name in zip(grid, names, strict=True):
        for axis, param in zip(row, params, strict=True):
            curves = dataset.sel(param=param)
            panel(axis, first(curves[name]), edge_of(curves, name), *limit_of(curves, name))
            axis.set_title(f"{plots.NAMES.get(param, param)}: late {_ratio(said[param, name])}, {said[param, name].verdict}")
        row[0].set_ylabel(OBSERVABLES[name].symbol.replace("_k", "_1"))
    for axis in grid[-1]:
        axis.set(xlabel="step", xlim=(0, int(dataset.step[-1])))
    plots.legend_below(figure, [*sizes(dataset), *plots.limit_handles(), plots.edge_handle(), plots.band(RANGE)])
    figure.suptitle(title, fontsize=9)
    return figure


def limit_of(curves: xr.Dataset, name: str, rank: int = 1) -> tuple[xr.DataArray | None, xr.DataArray | None]:
    """(limit, its own error), each (step) or (depth, step), of one parametrization; None where it is known nowhere."""
    pair = (curves.get(f"{name}_limit"), curves.get(f"{name}_error_limit"))
    pair = (values if values is None or "rank" not in values.dims else values.sel(rank=rank) for values in pair)
    return tuple(None if values is None else first(values) for values in pair)


def sizes(dataset: xr.Dataset) -> list[Line2D]:
    """A handle per width or depth."""
    letter = growing(dataset)
    return [Line2D([], [], color=color, label=_named(letter, size)) for size, color in plots.colors(dataset[letter].values)]


def _named(letter, size):
    return f"{SIZES[letter]} = {size}"


def edge_of(curves: xr.Dataset, name: str) -> float:
    """The line beyond which full-batch descent of one parametrization is unstable; not a number of what has none."""
    edges = {"hessian_eigenvalues": "edge_of_stability", "preconditioned_sharpness": "preconditioned_edge_of_stability"}
    return float(curves[edges[name]]) if name in edges else np.nan


def panel(
    axis: Axes, values: xr.DataArray, edge: float = np.nan,
    limit: xr.DataArray | None = None, error: xr.DataArray | None = None,
) -> None:  # fmt: skip
    """(width or depth, seed, step) against step: mean over the seeds and their range, a colour per size, a line at the edge.

    The limit dashed, within its own error; those of several depths in the colours of their networks.
    """
    letter = growing(values)
    for size, color in plots.colors(values[letter].values):
        there = values.sel({letter: size})
        mean, low, high = (reduced("seed", skipna=False) for reduced in (there.mean, there.min, there.max))
        # ends where one diverges: those that are left are others on average
        plots.against_step(axis, mean, color=color, label=_named(letter, size))
        axis.fill_between(values.step, low, high, color=color, alpha=0.2, linewidth=0, label=plots.banded(RANGE))
        if limit is not None and letter in limit.dims:
            plots.limit(axis, *(curve if curve is None else curve.sel({letter: size}) for curve in (limit, error)), color=color)
    if limit is not None and letter not in limit.dims:
        plots.limit(axis, limit, error)
    if ((values > 0) | values.isnull()).all() and values.notnull().any():
        plots.logarithmic(axis)
    plots.mark_edge(axis, edge)


def _ratio(late):
    return f"× {late.ratio:.2f}" if np.isfinite(late.ratio) else "–"


def table(late: list[Late], title: str) -> str:
    """The late values, for the terminal."""
    symbol, sizes = SIZES[late[0].growing], late[0].sizes
    long = max(9, *(len(row.parametrization) for row in late))
    form = f"{{:<{long}}} {{:<26}}{'{:>10}' * len(sizes)}  {{:>7}}  {{:<24}} {{}}".format
    lines = [title, f"late: mean over seeds and steps from {LATE:g} of all on", ""]
    lines.append(form("param", "observable", *(f"{symbol} = {size}" for size in sizes), "ratio", f"{symbol}^exponent", ""))
    for row in late:
        law = f"{row.exponent:+.3f} [{row.interval[0]:+.3f}, {row.interval[1]:+.3f}]" if np.isfinite(row.exponent) else "–"
        values = (f"{value:.4g}" for value in row.values)
        lines.append(form(row.parametrization, row.observable, *values, _ratio(row), law, row.verdict))
    lines.append(f"super consistent: ratio at most {APART:g} and exponent within ±{FLAT:g}, each with its whole 95 % interval")
    return "\n".join(lines)


@plots.styled
def density(dataset: xr.Dataset, title: str) -> Figure:
    """The density of the Hessian's eigenvalues before the first and after the last step, mean over the seeds.

    Eigenvalues are seen through a Gaussian of a fiftieth of the range shown; the band is one standard error of the
    quadrature, from the spread of its random vectors and of the seeds.
    """
    params, steps = [str(param) for param in dataset.param.values], dataset.step.values[[0, -1]]
    figure = Figure(figsize=(1.25 * plots.PANEL[0] * len(params) + 0.4, 1.7 * plots.PANEL[1] + 0.9), layout="constrained")
    grid = figure.subplots(2, len(params), squeeze=False)
    for row, step in zip(grid, steps, strict=True):
        for axis, param in zip(row, params, strict=True):
            _density(axis, dataset.sel(param=param, step=step))
            axis.set_title(f"{plots.NAMES.get(param, param)}, step {step}")
        row[0].set_ylabel("density of eigenvalues")
    for axis in grid[-1]:
        axis.set_xlabel(r"$\lambda(H)$")
    plots.legend_below(figure, [*sizes(dataset), plots.band(ERROR)])
    figure.suptitle(title, fontsize=9)
    return figure


def _density(axis, dataset):
    nodes = dataset["density_nodes"].values
    if not np.isfinite(nodes).any():
        return
    low, high = np.nanmin(nodes), np.nanmax(nodes)
    at, window = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), RESOLUTION), (high - low) / 50
    top, letter = 0.0, growing(dataset)
    for size, color in plots.colors(dataset[letter].values):
        there = dataset.sel({letter: size})
        vectors = [there[name].values.reshape(-1) for name in ("density_nodes", "density_weights")]
        seeds = there.sizes["seed"]
        nodes, weights = (values.reshape(seeds, -1) for values in vectors)
        spectrum = Density(*(jnp.asarray(values) for values in (nodes, weights / weights.sum(1, keepdims=True))))
        mean, error = spectrum.smoothed(jnp.asarray(at), float(window))
        mean, error = np.asarray(mean), np.asarray(error)
        axis.plot(at, mean, color=color, label=_named(letter, size))
        axis.fill_between(at, np.maximum(mean - error, 1e-300), mean + error, color=color, alpha=0.2, linewidth=0,
                          label=plots.banded(ERROR))  # fmt: skip
        top = max(top, mean.max(initial=0.0))
    axis.set(yscale="log", ylim=(1e-6 * top, 3 * top) if top > 0 else None)
