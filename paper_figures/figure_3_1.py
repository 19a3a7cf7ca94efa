"""Paper, Figure 2: a ConvNet without residual branches in μP, eigenvalues of the Hessian and of the NTK against step.

    python -m paper_figures.all --only 3_1

The first, the fifth and the tenth of each.  Titles say whether they are the same at all widths late in training.

The paper has CIFAR-10, batches of 256, learning rates 0.46 to 0.7 with a warm-up of 100 steps, 10 to 25 epochs, and curvature
on 1024 samples; assumed are three convolutions (the paper's depth is not known), and everything is smaller here.
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

from comparisons import style as plots
from comparisons.files import Refused
from comparisons.landscape import picture as landscape_plots
from comparisons.landscape.late import statement
from paper_figures import read, said_of_limits, save

RANKS = (1, 5, 10)
ROWS = {"hessian_eigenvalues": r"$\lambda_{%d}(H)$", "ntk_eigenvalues": r"$\lambda_{%d}(\Theta)/P$"}
EIGENVALUES = {"hessian_eigenvalues": "the Hessian", "ntk_eigenvalues": "the NTK"}

recipe = partial(recipe_of, NAME)


def draw(options: Options) -> None:
    """Raises Refused where the results are missing, or have fewer eigenvalues."""
    results = options.results or Path("results") / NAME
    run = read(results / "landscape.nc", recipe(results))
    if not all(name in run and run[name].attrs["ranks"] >= max(RANKS) for name in ROWS):
        raise Refused(f"{results}: without ten eigenvalues of {' and '.join(ROWS)}; make the results with: {recipe(results)}")
    save(picture(run.isel(param=0)), options.out or results / NAME)


@plots.styled
def picture(run: xr.Dataset) -> Figure:
    """Rows Hessian and NTK, a column per eigenvalue: mean over seeds and their range, a colour per width."""
    figure = Figure(figsize=(1.1 * plots.PANEL[0] * len(RANKS), 0.9 * plots.PANEL[1] * len(ROWS) + 0.7), layout="constrained")
    grid = figure.subplots(len(ROWS), len(RANKS), sharex=True)
    for row, (name, label) in zip(grid, ROWS.items(), strict=True):
        for axis, rank in zip(row, RANKS, strict=True):
            edge = landscape_plots.edge_of(run, name) if rank == 1 else float("nan")
            landscape_plots.panel(axis, run[name].sel(rank=rank), edge, *landscape_plots.limit_of(run, name, rank))
            said = statement(run[name].sel(rank=rank), run["loss"])
            axis.set(ylabel=label % rank, xlim=(0, int(run.step[-1])), title=said)
    for axis in grid[-1]:
        axis.set_xlabel("step")
    handles = [*landscape_plots.sizes(run), *plots.limit_handles(), plots.edge_handle(), plots.band(landscape_plots.RANGE)]
    plots.legend_below(figure, handles)
    name = plots.NAMES.get(str(run.param.values), str(run.param.values))
    figure.suptitle(plots.wrapped(f"{run.attrs['title']}, {name}{said_of_limits(run, EIGENVALUES)}", 110), fontsize=9)
    return figure
