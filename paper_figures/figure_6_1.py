"""Paper, Figure 5: residual networks of growing depth in Depth-μP, with one convolution per block, with two, and a ViT.

    python -m paper_figures.all --only 6_1

Upper row: final loss against learning rate, a colour per depth; lower row: the sharpness at the optima against step (of Adam
the preconditioned one), with its edge of stability.

The paper has depths 3 to 192 at one width, batches of 128 of CIFAR-10, 40 epochs (ViT: 6 to 96, batches of 64, 20 epochs);
here they are what two cores can do in minutes, at width 8.
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
import xarray as xr
from matplotlib.figure import Figure

from comparisons import optima as transfer_plots
from comparisons import style as plots
from comparisons.files import Refused
from comparisons.statistics.minimum import analyse
from paper_figures import read, said_of_limits, save
from paper_figures.rows import ROWS

COLUMNS = {"k1": "one convolution per block", "k2": "two convolutions per block", "k3": "three convolutions per block",
           "vit": "ViT, Adam"}  # fmt: skip
recipe = partial(recipe_of, NAME)


def draw(options: Options) -> None:
    """Raises Refused where results are missing, or are not of several depths with their sharpness."""
    results = options.results or Path("results") / NAME
    runs = {name: read(results / name / "transfer.nc", recipe(results)) for name in _columns(results)}
    for name, run in runs.items():
        if "depth" not in run.dims or "sharpness" not in run:
            raise Refused(f"{results / name}: not of several depths with their sharpness; make it with: {recipe(results)}")
    save(picture(runs), options.out or results / NAME)


def _columns(results):
    """Those that are there; where there are none, the figure's own."""
    return [name for name in COLUMNS if (results / name).is_dir()] or list(ROWS.find("6_1").runs)


@plots.styled
def picture(runs: dict[str, xr.Dataset]) -> Figure:
    """A column per network, each with a legend of its own: the depths differ."""
    figure = Figure(figsize=(1.2 * plots.PANEL[0] * len(runs), 2.3 * plots.PANEL[1] + 0.8), layout="constrained")
    grid = figure.subplots(2, len(runs), squeeze=False)
    for column, (name, run) in zip(grid.T, runs.items(), strict=True):
        sweep, (optima, shifts) = run.isel(param=0), analyse(run)
        transfer_plots.final_losses(column[0], sweep, transfer_plots.loss_range(run), optima)
        column[0].set_ylabel(transfer_plots.FINAL_LOSS)
        column[0].set_title("\n".join([COLUMNS[name], *transfer_plots.statements(str(sweep.param.values), shifts)]))
        transfer_plots.sharpness(column[1], sweep)
        column[1].set(ylim=transfer_plots.sharpness_range(run), ylabel=run["sharpness"].attrs["symbol"] + " at the optimum")
        plots.plain_numbers(column[1].yaxis)
        sizes = transfer_plots.sizes(run)
        column[1].legend(handles=sizes, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(sizes))
    plots.legend_below(figure, transfer_plots.marks(run))
    first = next(iter(runs.values()))
    title = f"{plots.NAMES.get(str(sweep.param.values))}; {_common(runs)}{said_of_limits(first)}"
    figure.suptitle(plots.wrapped(title, 110), fontsize=9)
    return figure


def _common(runs):
    """What the titles of all runs say."""
    first, *others = (run.attrs["title"].split(", ") for run in runs.values())
    return ", ".join(part for part in first if all(part in other for other in others))
