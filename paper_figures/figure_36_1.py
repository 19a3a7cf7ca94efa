"""Paper, appendix: learning-rate transfer and directional sharpness gᵀHg/|g|², μP over width beside Depth-μP over depth.

    python -m paper_figures.all --only 36_1

Upper row: final loss against learning rate; lower row: the curvature along the gradient, one product each time, at one
learning rate, with its edge of stability.  Settings of the paper's figure are not known but for what is shown.
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
from comparisons.landscape import picture as landscape_plots
from comparisons.landscape.late import growing, statement
from comparisons.statistics.minimum import analyse
from limits import OBSERVABLES
from paper_figures import read, save

NETWORKS = ("width", "depth")
SHOWN = "directional_sharpness"
recipe = partial(recipe_of, NAME)


def draw(options: Options) -> None:
    """Raises Refused where results are missing, or without directional sharpness, or do not grow in that."""
    results = options.results or Path("results") / NAME
    runs = {}
    for grows in NETWORKS:
        swept, along = (read(results / grows / name / f"{name}.nc", recipe(results)) for name in ("transfer", "landscape"))
        if (growing(swept), growing(along)) != (grows, grows) or SHOWN not in along:
            raise Refused(f"{results / grows}: no directional sharpness over {grows}; make it with: {recipe(results)}")
        runs[grows] = swept, along
    save(picture(runs), options.out or results / NAME)


@plots.styled
def picture(runs: dict[str, tuple[xr.Dataset, xr.Dataset]]) -> Figure:
    """A column per kind of size, each with a legend of its own."""
    figure = Figure(figsize=(1.4 * plots.PANEL[0] * len(runs), 2.3 * plots.PANEL[1] + 0.4), layout="constrained")
    grid = figure.subplots(2, len(runs))
    for column, (swept, along) in zip(grid.T, runs.values(), strict=True):
        param, (optima, shifts) = str(swept.param.values[0]), analyse(swept)
        transfer_plots.final_losses(column[0], swept.isel(param=0), transfer_plots.loss_range(swept), optima)
        column[0].set_ylabel(transfer_plots.FINAL_LOSS)
        name = f"{plots.NAMES.get(param, param)}: {along.attrs['title']}"
        column[0].set_title("\n".join([plots.wrapped(name, 52), *transfer_plots.statements(param, shifts)]))
        run = along.isel(param=0)
        landscape_plots.panel(column[1], run[SHOWN], landscape_plots.edge_of(run, "hessian_eigenvalues"))
        said = statement(run[SHOWN], run["loss"])
        column[1].set(xlabel="step", ylabel=OBSERVABLES[SHOWN].symbol, xlim=(0, int(run.step[-1])), title=said)
        sizes = landscape_plots.sizes(along)
        column[1].legend(handles=sizes, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(sizes))
    band = plots.band(f"{transfer_plots.OF_LOSSES}; below, {landscape_plots.RANGE}")
    handles = [*plots.drawn(figure, [plots.edge_handle()]), transfer_plots.OPTIMUM, band]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
