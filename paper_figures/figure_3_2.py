"""Paper, Figure 3: how far networks of each width are from the widest one, against width and against time.

    python -m comparisons.convergence --model conv --data patches10 --samples 64 --loss cross_entropy --learning-rate 0.2 --widths 8 16 32 64 128 --seeds 5 --steps 48 --measure-every 6 --top-k 1 --reference largest-width --out results/figure_3_2
    python -m paper_figures.figure_3_2

Columns: loss, sharpness, largest eigenvalue of the NTK; upper row against width with fitted powers N^exponent, lower row against
step with t^exponent; at last the trace of the Hessian.  Gaps of loss and NTK grow while training goes on, that of the
sharpness does not.

The paper's gaps are those of single networks to the widest one, fitted without intervals; here they are root mean squares over
seeds, fitted as comparisons/power_law.py says: of independent networks too flat near the widest.  Steps of full batches stand
for its 25 epochs of batches of CIFAR-10, and SimpleConvNet for its ConvNet, whose depth is not known.
"""  # noqa: E501  (a command that is to be copied)

import json
from pathlib import Path

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from comparisons import command_line, landscape_plots, plots, power_law
from comparisons.convergence import shown_steps
from comparisons.rates import Rate, deviations
from limits import OBSERVABLES
from paper_figures import Options, quoted, read, save

NAME = Path(__file__).stem
PROGRAM = f"python -m paper_figures.{NAME}"
TRACE = "hessian_trace"


def recipe(results: Path) -> str:
    """The shell command that makes the results."""
    return (
        "python -m comparisons.convergence --model conv --data patches10 --samples 64 --loss cross_entropy"
        " --learning-rate 0.2 --widths 8 16 32 64 128 --seeds 5 --steps 48 --measure-every 6 --top-k 1"
        f" --reference largest-width --out {quoted(results)}"
    )


def draw(options: Options) -> None:
    """Raises Refused where the results are missing."""
    results = options.results or Path("results") / NAME
    run = read(results / "trajectories.nc", recipe(results))
    rates = [Rate.of(one) for one in read(results / "rates.json", recipe(results))]
    save(picture(run, rates, json.loads(run.attrs["configuration"])), options.out or results / NAME)


@plots.styled
def picture(run: xr.Dataset, rates: list[Rate], configuration: dict) -> Figure:
    """Gaps against width, gaps against step, and the trace."""
    shown, reference = plots.SHOWN, configuration["reference"]
    figure = Figure(figsize=(plots.PANEL[0] * 4, 2 * plots.PANEL[1]), layout="constrained")
    grid = figure.subplots(2, 4)
    steps = shown_steps(run)
    for column, (name, selection) in zip(grid.T, shown.items(), strict=False):
        errors = deviations(run, name, selection, reference, "fluctuation")
        mine = [rate for rate in rates if (rate.observable, rate.kind) == (name, "fluctuation") and rate.rank in (None, 1)]
        found = {rate.step: rate for rate in mine}
        for step, color in zip(steps, _of_steps(steps), strict=True):
            plots.draw_rate(column[0], errors.sel(step=step), found[step], "fluctuation", color)
        _against_width(column[0], errors, [found[step] for step in steps])
        against_time(column[1], errors, run.width.values)
        column[0].set_ylabel(f"gap of {OBSERVABLES[name].label}")
        column[1].set_ylabel(f"gap of {OBSERVABLES[name].label}")
    landscape_plots.panel(grid[0, 3], run[TRACE])
    grid[0, 3].set(xlabel="step", ylabel=OBSERVABLES[TRACE].symbol)
    grid[1, 3].axis("off")
    handles = [Line2D([], [], color=color, marker="o", linestyle="", markersize=4, label=f"step {step}")
               for step, color in zip(steps, _of_steps(steps), strict=True)]  # fmt: skip
    grid[1, 3].legend(handles=handles + landscape_plots.sizes(run), loc="center", ncols=2)
    c = configuration
    title = (f"{c['model']}, {c['data']}, {c['loss']}, P = {c['samples']}, {plots.NAMES.get(c['param'], c['param'])}, η0 = "
             f"{c['learning_rate']:g}, {run.sizes['seed']} seeds; gaps to the {reference}, root mean square over seeds")
    figure.suptitle(plots.wrapped(title, 130), fontsize=9)
    return figure


def _of_steps(steps):
    return matplotlib.colormaps["plasma"](np.linspace(0.05, 0.8, len(steps)))


def _against_width(axis: Axes, errors, found: list[Rate]):
    exponents = [rate.exponent for rate in found if rate.status == "fitted"]
    law = f"$N^{{{min(exponents):+.2f}}}$ … $N^{{{max(exponents):+.2f}}}$" if exponents else "no exponent"
    axis.set(xscale="log", yscale="log", xlabel="width $N$", title=law)
    axis.set_xticks(errors.width.values, [str(width) for width in errors.width.values])
    axis.xaxis.set_minor_formatter(NullFormatter())
    plots.plain_numbers(axis.yaxis)


def against_time(axis: Axes, errors: xr.DataArray, widths: np.ndarray) -> None:
    """(width, seed, step): gaps from the first step on, and the powers of the step that fit them, seeds resampled together."""
    later, exponents = errors.isel(step=errors.step.values > 0), []
    for width, color in plots.colors(widths):
        if width not in later.width.values:  # the reference
            continue
        gaps = later.sel(width=width).transpose("step", "seed").values
        axis.plot(later.step, np.sqrt((gaps**2).mean(axis=1)), color=color, marker="o", markersize=3, linestyle="")
        law = power_law.fit(later.step.values, gaps) if len(gaps) >= power_law.FEWEST_WIDTHS else None
        if law is not None and law.status == "fitted":
            exponents.append(law.exponent)
            axis.plot(later.step, law(later.step.values), color=color)
    title = f"$t^{{{min(exponents):+.2f}}}$ … $t^{{{max(exponents):+.2f}}}$" if exponents else "no exponent"
    axis.set(xscale="log", yscale="log", xlabel="step $t$", title=title)
    plots.plain_numbers(axis.xaxis)
    plots.plain_numbers(axis.yaxis)


def main(arguments=None) -> None:
    command_line.run(Options, draw, PROGRAM, arguments)


if __name__ == "__main__":
    main()
