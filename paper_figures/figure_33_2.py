"""Paper, appendix: how far networks of each depth are from the deepest one, against time, in Depth-μP.

Loss and sharpness (of Adam the preconditioned one), with powers t^exponent of the second half of the steps, as figure_3_2.
"""

from functools import partial
from pathlib import Path

from paper_figures import Options, command
from paper_figures.rows import recipe as recipe_of

NAME = Path(__file__).stem
ROW = "33_2_k1"
main = partial(command, NAME)
if __name__ == "__main__":  # before what takes seconds to import
    main()
    raise SystemExit

# isort: split
import xarray as xr
from matplotlib.figure import Figure

from comparisons import style as plots
from comparisons.files import Refused
from limits import OBSERVABLES
from paper_figures import read, save
from paper_figures.figure_3_2 import against_time
from paper_figures.verdicts import gaps_over_depth

recipe = partial(recipe_of, ROW)


def draw(options: Options) -> None:
    """Raises Refused where the results are missing, or are of one depth."""
    results = options.results or Path("results") / NAME
    run = read(results / "landscape.nc", recipe(results))
    if "depth" not in run.dims:
        raise Refused(f"{results}: not of several depths; make the results with: {recipe(results)}")
    save(picture(run), options.out or results / NAME)


@plots.styled
def picture(run: xr.Dataset) -> Figure:
    """A panel per observable, a colour per depth."""
    gaps = gaps_over_depth(run)
    figure = Figure(figsize=(1.4 * plots.PANEL[0] * len(gaps), 1.7 * plots.PANEL[1]), layout="constrained")
    for axis, (name, gap) in zip(figure.subplots(1, len(gaps), squeeze=False)[0], gaps.items(), strict=True):
        against_time(axis, gap.drop_vars("width", errors="ignore").rename(depth="width"), run.depth.values, "L")
        axis.set_ylabel(f"gap of {OBSERVABLES[name].label}")
    figure.suptitle(plots.wrapped(f"{run.attrs['title']}; gaps to the deepest, root mean square over seeds", 90), fontsize=9)
    return figure
