"""Paper, Figures 1 and 4: SimpleConvNet in μP and in NTP, sharpness and loss against step, final loss against learning rate.

    python -m paper_figures.all --only 1_1

A row per parametrization.  Titles say whether late sharpness and loss are the same at all widths, and how the best learning
rate moves.

The paper has CIFAR-10 and 50 epochs of batches of 128; here are 2000 crops of ten photographs (finite/data/patches.py), 256
steps, and 128 in the sweep.  The figures of its appendix that show the same of other settings are this script on other
results: the rows that name it in paper_figures/rows.py.
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
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from comparisons import optima as transfer_plots
from comparisons import style as plots
from comparisons.files import Refused
from comparisons.landscape import picture as landscape_plots
from comparisons.landscape.late import first, followed, growing, statement
from comparisons.statistics.minimum import analyse
from limits import OBSERVABLES
from paper_figures import read, said_of_limits, save

SHARPNESS = ("hessian_eigenvalues", "preconditioned_sharpness")


recipe = partial(recipe_of, NAME)


def draw(options: Options) -> None:
    """Raises Refused where results are missing, without a sharpness, or of other parametrizations or sizes."""
    results = options.results or Path("results") / NAME
    along, swept = (read(results / name / f"{name}.nc", recipe(results)) for name in ("landscape", "transfer"))
    for name in ("param", growing(along)):
        if growing(along) != growing(swept) or not np.array_equal(along[name], swept[name]):
            raise Refused(f"{results}: the two runs differ in their {name}; make the results with: {recipe(results)}")
    if not set(SHARPNESS) & set(followed(along)):
        raise Refused(f"{results}: no sharpness was followed; make the results with: {recipe(results)}")
    save(picture(along, swept), options.out or results / NAME)


@plots.styled
def picture(along: xr.Dataset, swept: xr.Dataset) -> Figure:
    """A row per parametrization: sharpness with its edge, loss, final loss with its optima; a colour per size."""
    params = [str(param) for param in along.param.values]
    figure = Figure(figsize=(3.5 * plots.PANEL[0], 0.95 * plots.PANEL[1] * len(params) + 0.7), layout="constrained")
    grid = figure.subplots(len(params), 3, squeeze=False, sharex="col")
    optima, shifts = analyse(swept)
    for row, param in zip(grid, params, strict=True):
        _row(row, along.sel(param=param), swept.sel(param=param), transfer_plots.loss_range(swept), optima)
        row[0].set_title(f"{plots.NAMES.get(param, param)}\n{row[0].get_title()}")
        row[2].set_ylabel(transfer_plots.FINAL_LOSS)
        row[2].set_title("\n".join(transfer_plots.statements(param, shifts)))
    for axis in grid[-1, :2]:
        axis.set_xlabel("step")
    for axis in grid[:-1, 2]:
        axis.set_xlabel("")
    handles = plots.drawn(figure, [*landscape_plots.sizes(along), *plots.limit_handles(), plots.edge_handle()])
    handles += [transfer_plots.OPTIMUM, plots.band(f"{landscape_plots.RANGE}; of final losses, {transfer_plots.OF_LOSSES}")]
    plots.all_below(figure, handles)
    title = f"{along.attrs['title']}; final loss after {int(swept.step[-1])} steps{said_of_limits(along)}"
    figure.suptitle(plots.wrapped(title, 120), fontsize=9)
    return figure


def _row(row, along, swept, shown, optima):
    sharpness = next(name for name in SHARPNESS if name in along)
    for axis, name in zip(row, (sharpness, "loss"), strict=False):
        limit = landscape_plots.limit_of(along, name)
        landscape_plots.panel(axis, first(along[name]), landscape_plots.edge_of(along, name), *limit)
        axis.set(ylabel=OBSERVABLES[name].symbol.replace("_k", "_1"), xlim=(0, int(along.step[-1])))
        axis.set_title(statement(first(along[name]), along["loss"]))
    transfer_plots.final_losses(row[2], swept, shown, optima)
