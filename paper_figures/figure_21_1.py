"""Paper, table of appendix: the exponents of SP, NTP, μP, Depth-μP under SGD and Adam, each beside the one that networks have.

    python -m paper_figures.all --only 21_1

The table itself is `python -m limits.exponents --format latex`.
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
from matplotlib.figure import Figure

from comparisons import style as plots
from paper_figures import read, save
from paper_figures.rows import ROWS

recipe = partial(recipe_of, NAME)
GROWS = {"N": "width", "L": "depth"}


def draw(options: Options) -> None:
    """Raises Refused where results are missing."""
    results = options.results or Path("results") / NAME
    checks = [fit for run in ROWS["21_1"].runs for fit in read(results / run / "coord_check.json", recipe(results))]
    save(picture(checks), options.out or results / NAME)


@plots.styled
def picture(checks: list[dict]) -> Figure:
    """Measured exponents with their 95 % intervals against the derived ones; a panel each of width and depth, SGD and Adam."""
    compared = [fit for fit in checks if None not in (fit["derived"], fit["exponent"])]  # JSON has null for what is no number
    panels = sorted({(fit["letter"], fit["optimizer"]) for fit in compared}, reverse=True)
    colors = dict(plots.colors(list(dict.fromkeys(fit["parametrization"] for fit in compared))))
    figure = Figure(figsize=(3.2 * len(panels), 3.6), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = [fit for fit in compared if (fit["letter"], fit["optimizer"]) == panel]
        ends = [fit["derived"] for fit in shown] + [fit["exponent"] for fit in shown]
        axis.axline((0, 0), slope=1, color="gray", linewidth=1, zorder=0, label="as derived")
        for place, (param, color) in enumerate(colors.items()):
            fits = [fit for fit in shown if fit["parametrization"] == param]
            if fits:
                x, y, low, high = np.array([[fit["derived"], fit["exponent"], *fit["interval"]] for fit in fits], float).T
                x += 0.02 * (place - len(colors) / 2)  # beside each other
                axis.vlines(x, low, high, color=color, linewidth=1)
                axis.plot(x, y, "o", markersize=3, color=color, label=plots.NAMES.get(param, param))
        limits, (letter, optimizer) = (min(ends) - 0.2, max(ends) + 0.2), panel
        axis.set(xlim=limits, ylim=limits, xlabel="derived exponent", ylabel="measured exponent",
                 title=f"{optimizer}, powers of the {GROWS[letter]}")  # fmt: skip
    handles = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    plots.legend_below(figure, list(handles.values()))
    figure.suptitle(f"Sizes of signals, gradients, updates and outputs, layer by layer: {len(compared)} exponents", fontsize=9)
    return figure
