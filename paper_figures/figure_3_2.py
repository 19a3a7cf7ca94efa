"""Paper, Figure 3: how far networks of each width are from the widest one, against width and against time.

    python -m paper_figures.all --only 3_2

Columns: loss, sharpness, largest eigenvalue of the NTK; upper row against width with fitted powers N^exponent, lower row
against step with t^exponent; at last the trace of the Hessian.  Every exponent stands with its 95 % interval, which decides
what a title says of the gaps.

Powers of the step are fitted late, to the second half of the steps (``LATE``), as the paper does: a gap that grows is a
power of the step only where it has left the one it started with, which networks have from their random weights, behind.
The paper's gaps are those of single networks to the widest one, fitted without intervals; here they are root mean squares over
seeds, fitted as comparisons/statistics/power_law.py says: of independent networks too flat near the widest.  Steps of full
batches stand for its 25 epochs of batches of CIFAR-10, and SimpleConvNet for its ConvNet, whose depth is not known.
"""

from functools import partial
from pathlib import Path

from paper_figures import Options, command
from paper_figures.rows import recipe as recipe_of

NAME = Path(__file__).stem
main = partial(command, NAME)
if __name__ == "__main__":  # before what takes seconds to import
    main()
    raise SystemExit

# isort: split
import json
from dataclasses import replace

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import stdtrit

from comparisons import style as plots
from comparisons.convergence.picture import SHOWN, UNFITTED, draw_rate, marks
from comparisons.convergence.rates import Rate
from comparisons.convergence.study import shown_steps
from comparisons.landscape import picture as landscape_plots
from comparisons.statistics import power_law
from comparisons.statistics.deviations import deviations
from limits import OBSERVABLES
from paper_figures import read, said_of_limits, save

TRACE = "hessian_trace"
LATE = 0.5  # of the steps, from which on powers of the step are fitted; the last three, where these are fewer


recipe = partial(recipe_of, NAME)


def draw(options: Options) -> None:
    """Raises Refused where the results are missing."""
    results = options.results or Path("results") / NAME
    run = read(results / "trajectories.nc", recipe(results))
    rates = [Rate.from_record(record) for record in read(results / "rates.json", recipe(results))]
    save(picture(run, rates, json.loads(run.attrs["configuration"])), options.out or results / NAME)


@plots.styled
def picture(run: xr.Dataset, rates: list[Rate], configuration: dict) -> Figure:
    """Gaps against width, gaps against step, and the trace."""
    shown, reference = SHOWN, configuration["reference"]
    figure = Figure(figsize=(plots.PANEL[0] * 4, 2.7 * plots.PANEL[1]), layout="constrained")
    grid = figure.subplots(2, 4)
    steps = shown_steps(run)
    for column, (name, selection) in zip(grid.T, shown.items(), strict=False):
        errors = deviations(run, name, selection, reference, "fluctuation")
        mine = [rate for rate in rates if (rate.observable, rate.kind) == (name, "fluctuation") and rate.rank in (None, 1)]
        rate_at = {rate.step: rate for rate in mine}
        for step, color in zip(steps, _of_steps(steps), strict=True):
            draw_rate(column[0], errors.sel(step=step), rate_at[step], "fluctuation", color)
        _against_width(column[0], errors, [rate_at[step] for step in steps])
        against_time(column[1], errors, run.width.values)
        column[0].set_ylabel(f"gap of {OBSERVABLES[name].label}")
        column[1].set_ylabel(f"gap of {OBSERVABLES[name].label}")
    landscape_plots.panel(grid[0, 3], run[TRACE], np.nan, *landscape_plots.limit_of(run, TRACE))
    grid[0, 3].set(xlabel="step", ylabel=OBSERVABLES[TRACE].symbol)
    grid[1, 3].axis("off")
    handles = plots.drawn(figure, [*landscape_plots.sizes(run), *plots.limit_handles(), plots.band(landscape_plots.RANGE)])
    grid[1, 3].legend(handles=handles, loc="center", title="trace")
    plots.legend_below(figure, marks())
    c = configuration
    title = (f"{c['model']}, {c['data']}, {c['loss'].replace('_', '-')}, P = {c['samples']}, "
             f"{plots.NAMES.get(c['param'], c['param'])}, η0 = {c['learning_rate']:g}, {run.sizes['seed']} seeds; "
             f"gaps to the {_said_of(reference)}, root mean square over seeds{said_of_limits(run)}")
    figure.suptitle(plots.wrapped(title, 130), fontsize=9)
    return figure


def _said_of(reference):
    return "limit" if reference == "theory" else reference.replace("-", " ")


def _of_steps(steps):
    return matplotlib.colormaps["plasma"](np.linspace(0.05, 0.8, len(steps)))


def _against_width(axis: Axes, errors, rates: list[Rate]):
    colored = zip(rates, _of_steps(rates), strict=True)
    _named(axis, [(f"step {rate.step}", rate.exponent, rate.interval, color) for rate, color in colored], "N")
    axis.set(xscale="log", yscale="log", xlabel="width $N$")
    axis.set_title(said([(rate.step, rate.interval) for rate in rates], "step"))
    plots.at_sizes(axis.xaxis, errors.width.values, rotation=0)
    plots.plain_numbers(axis.yaxis)


def against_time(axis: Axes, errors: xr.DataArray, widths: np.ndarray, letter: str = "N") -> None:
    """(width, seed, step): gaps from the first step on, and the powers of the step that fit the late ones."""
    later, laws = errors.isel(step=errors.step.values > 0), []
    late = later.isel(step=slice(-max(int(np.sum(later.step >= LATE * later.step.values.max(initial=0))), 3), None))
    for width, color in plots.colors(widths):
        if width not in later.width.values:  # the reference
            continue
        gap = np.sqrt((later**2).mean("seed")).sel(width=width)
        enough = late.sizes["step"] >= power_law.FEWEST_WIDTHS
        gaps = late.sel(width=width).transpose("step", "seed").values
        law = late_power(late.step.values, gaps) if enough else power_law.refused("too few widths")
        laws.append((width, law, color))
        fitted = law.status == "fitted"
        axis.plot(later.step, gap, color=color, marker="o", markersize=3, linestyle="", fillstyle="full" if fitted else "none",
                  gid=None if fitted else UNFITTED)  # fmt: skip
        if fitted:
            axis.plot(late.step, law(late.step.values), color=color, label="fit")
    _named(axis, [(f"{letter} = {width}", law.exponent, law.interval, color) for width, law, color in laws], "t")
    axis.set(xscale="log", yscale="log", xlabel="step $t$")
    axis.set_title(said([(width, law.interval) for width, law, _ in laws], f"{letter} ="))
    plots.plain_numbers(axis.xaxis)
    plots.plain_numbers(axis.yaxis)


def late_power(steps: np.ndarray, gaps: np.ndarray) -> power_law.PowerLaw:
    """Of gaps (step, seed), as ``power_law.fit`` has it, its interval as wide as that of the jackknife too.

    A seed's gaps at two steps are nearly the same number, more so the closer the steps: no permutation of the steps shows how
    far a whole trajectory bends by chance.  Leaving out whole seeds does (Tukey 1958; Student's t).
    """
    law, x = power_law.fit(steps, gaps), np.log(steps)
    if law.status != "fitted":
        return law
    leverage, seeds = (x - x.mean()) / np.sum((x - x.mean()) ** 2), gaps.shape[1]

    def exponent(some):
        with np.errstate(divide="ignore", invalid="ignore"):
            return 0.5 * leverage @ np.log(np.mean(some**2, axis=1))

    left = [exponent(np.delete(gaps, seed, axis=1)) for seed in range(seeds)]
    slope, reach = exponent(gaps), stdtrit(seeds - 1, 0.975) * np.sqrt((seeds - 1) * np.var(left))
    low, high = law.interval
    return replace(law, interval=(float(min(low, slope - reach)), float(max(high, slope + reach))))


def said(intervals: list[tuple[int, tuple[float, float]]], label: str) -> str:
    """What the intervals of exponents, each of a width or a step, say: which gaps grow, which fall, which do neither surely."""
    names = {"grows": [], "falls": [], "undecided": []}
    for name, (low, high) in intervals:
        names["grows" if low > 0 else "falls" if high < 0 else "undecided"].append(str(name))
    return "; ".join(f"{verb} at {label} {', '.join(listed)}" for verb, listed in names.items() if listed)


def _named(axis, powers, letter):
    """Under a panel, a line per colour: what it is, and its power with the 95 % interval."""
    handles = []
    for name, exponent, interval, color in powers:
        fitted = np.isfinite(exponent)
        label = plots.power(letter, exponent, interval) if fitted else "no exponent"
        handles.append(Line2D([], [], color=color, marker="o", markersize=3, linestyle="-" if fitted else "",
                              fillstyle="full" if fitted else "none", label=f"{name}: {label}"))  # fmt: skip
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)
