"""Paper, Figure 6: two-layer linear networks, top eigenvalues of the Hessian's two parts against step, per width.

    python -m paper_figures.all --only 6_2

Rows: the Gauss-Newton part G and the residual part R, H = G + R; columns:
μP and NTP.  Titles say whether they are the same at all widths late in training.

The paper has D = 100, MSE and random data; assumed are P = 400 samples of a linear teacher, full batches, η0 = 1.5, γ0 = 1,
24 steps and the widths (the paper's may go to 8192).  Dashed is the exact limit, which the paper does not draw.
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

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from comparisons import style as plots
from comparisons.convergence.picture import SPREAD
from comparisons.files import Refused
from comparisons.landscape.late import statement
from comparisons.style import NAMES
from paper_figures import read, save

PARAMS = ("mup", "ntp")
ROWS = {
    "gauss_newton_eigenvalues": ({"rank": 1}, r"Gauss-Newton part $\lambda_{\max}(G)$"),
    "residual_eigenvalues": ({"edge": "upper"}, r"residual part $\lambda_{\max}(R)$"),
}  # variable: (its component, its label)


recipe = partial(recipe_of, NAME)


def draw(options: Options) -> None:
    """Raises Refused where the results of a parametrization are missing, or those of the two do not belong together."""
    results = options.results or Path("results") / NAME
    runs = {param: read(results / param / "trajectories.nc", recipe(results)) for param in PARAMS}
    configurations = {param: json.loads(run.attrs["configuration"]) for param, run in runs.items()}
    rest = [{name: value for name, value in c.items() if name not in ("param", "exponents")} for c in configurations.values()]
    for param, configuration in configurations.items():
        if configuration["param"] != param or rest[0] != rest[1]:
            raise Refused(f"{results}: mup and ntp differ in more than that; make the results with: {recipe(results)}")
    if not all(f"{variable}_limit" in run for run in runs.values() for variable in ROWS):
        raise Refused(f"{results}: without the limit; make the results with: {recipe(results)}")
    save(picture(runs, configurations["mup"]), options.out or results / NAME)


@plots.styled
def picture(runs: dict[str, xr.Dataset], configuration: dict) -> Figure:
    """Rows G and R, columns μP and NTP: mean over seeds with its spread, one colour per width, the limit dashed."""
    size = (1.3 * plots.PANEL[0] * len(runs), 0.9 * plots.PANEL[1] * len(ROWS) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(ROWS), len(runs), sharex=True, sharey="row")
    for column, (param, run) in zip(grid.T, runs.items(), strict=True):
        for axis, (variable, (component, _)) in zip(column, ROWS.items(), strict=True):
            _curves(axis, run, variable, component)
            axis.set_title(statement(run[variable].sel(component)))
        column[0].set_title(f"{NAMES[param]}\n{column[0].get_title()}")
        column[-1].set_xlabel("step")
    for axis, (_, label) in zip(grid[:, 0], ROWS.values(), strict=True):
        axis.set_ylim(bottom=-0.03 * axis.get_ylim()[1])  # so that a limit of zero is seen
        axis.set_ylabel(label)
    widths = next(iter(runs.values())).width.values
    handles = [Line2D([], [], color=color, label=f"N = {width}") for width, color in plots.colors(widths)]
    plots.all_below(figure, [*handles, Line2D([], [], label=r"$N\to\infty$", **plots.LIMIT), plots.band(SPREAD)])
    figure.suptitle(_title(configuration, next(iter(runs.values()))), fontsize=9)
    return figure


def _curves(axis, run, variable, component):
    values = run[variable].sel(component)
    for width, color in plots.colors(run.width.values):
        mean, spread = values.sel(width=width).mean("seed"), values.sel(width=width).std("seed", ddof=1)
        axis.plot(run.step, mean, color=color)
        axis.fill_between(run.step, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
    axis.plot(run.step, run[f"{variable}_limit"].sel(component), **plots.LIMIT)


def _title(c, run):
    sizes = f"D = {c['inputs']}, P = {c['samples']}"
    return (f"two-layer linear, {c['data']} data, {sizes}, η0 = {c['learning_rate']:g} (edge of stability "
            f"{2 / c['learning_rate']:.3g}), γ0 = {c['richness']:g}, {run.sizes['seed']} seeds")  # fmt: skip
