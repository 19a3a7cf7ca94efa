"""Where does the best learning rate of a sweep lie, and does it transfer?  ``comparisons.optimum("sweep.csv")``.

What ``comparisons.transfer`` says of networks that it trains is said of any losses.  In DIR, if it is given:

    optimum.json     {"optima": a list of ``Optimum``, "shifts": a list of ``Shift``, both of
                     ``comparisons.statistics.minimum``}, sizes by their column
    optimum          .png and .pdf
    index.html       all of this on one page
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from comparisons import command_line, files, results
from comparisons import style as plots
from comparisons.optima import picture, table
from comparisons.optimum.options import PROGRAM, Options
from comparisons.optimum.sweep import dataset_of, rows_of
from comparisons.options import as_given
from comparisons.results import page
from comparisons.statistics.minimum import Optimum, Shift, analyse


@dataclass(frozen=True)
class Found:
    """The outcome; its text is the table.

    dataset    the sweep, as it was read
    remarks    what of it was not used
    """

    title: str
    dataset: xr.Dataset
    optima: list[Optimum]
    shifts: list[Shift]
    remarks: list[str]

    def __str__(self) -> str:
        return "\n".join([table(self.optima, self.shifts, self.title, self.dataset.attrs["size"]), *self.remarks])

    def save(self, folder: Path | str, command: str = "") -> None:
        """optimum.json, .png and .pdf, and index.html, which says with which command.  Raises files.Unwritten."""
        folder = Path(folder)
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        size = self.dataset.attrs["size"]
        optima = [{size if key == "width" else key: value for key, value in asdict(entry).items() if key != "depth"}
                  for entry in self.optima]  # fmt: skip
        files.write_json({"optima": optima, "shifts": [asdict(shift) for shift in self.shifts]}, folder / "optimum.json")
        plots.save(picture(self.dataset, self.optima, self.shifts, self.title), folder / "optimum")
        page.write(folder, command, str(self), {"superconsistency": results.sources()})


def optimum(sweep: Any, *, initial_loss: float | None = None, **columns: str) -> Found:
    """Of a file, or of columns by name (a dictionary, a DataFrame): a row per network.

    initial_loss    before training, of a sweep without such a column: what is above it has diverged
    columns         size, learning_rate, seed, loss: the names of columns that are called otherwise

    >>> import numpy as np
    >>> sizes, rates = np.meshgrid([64, 128, 256, 512, 1024], 2.0 ** -np.arange(0, 8, 0.5), indexing="ij")
    >>> losses = 1 + np.log(rates * sizes**0.5) ** 2  # the best rate is size^(-1/2)
    >>> found = optimum({"width": sizes.ravel(), "lr": rates.ravel(), "loss": losses.ravel()})
    >>> round(found.shifts[0].exponent, 2), found.shifts[0].verdict
    (-0.5, 'does not transfer')

    Raises ValueError, in one line, for a sweep that cannot be read, or has fewer than two sizes or three learning rates.
    """
    rows = rows_of(sweep)
    dataset, remarks = dataset_of(rows, columns, initial_loss)
    size, sizes, seeds = dataset.attrs["size"], dataset.width.values, dataset.sizes["seed"]
    if seeds == 1:
        remarks.append("one seed: intervals are those between learning rates of the grid; what is chance is not known")
    title = (f"{rows.name}, {size} {sizes[0]} … {sizes[-1]} ({len(sizes)}), "
             f"{dataset.sizes['learning_rate']} learning rates, {seeds} seed{'s' * (seeds > 1)}")  # fmt: skip
    return Found(title, dataset, *analyse(dataset), remarks)


def answer(options: Options) -> None:
    """The command."""
    if not options.file:
        raise ValueError("which sweep? FILE.csv of columns width, learning_rate, seed, loss")
    columns = {role: getattr(options, role) for role in ("size", "learning_rate", "seed", "loss")}
    result = optimum(options.file, initial_loss=options.initial_loss, **columns)
    print(result)
    if options.out:
        result.save(options.out, as_given(options, PROGRAM))
        print(f"results in {options.out}")


def main(arguments=None) -> None:
    command_line.run(Options, answer, PROGRAM, arguments)
