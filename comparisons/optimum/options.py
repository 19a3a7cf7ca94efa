"""The options of `python -m comparisons.optimum`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from limits.command.start import called

PROGRAM = called("comparisons.optimum")


@dataclass(frozen=True)
class Options:
    """Read a sweep over sizes and learning rates, whoever made it, and say where the best learning rate of each size lies, how
    it moves with the size, with 95 % intervals, and whether it transfers.

    A row per trained network: a size (width, depth, params, batch, ...), learning_rate, loss, and if there are several networks
    of each, seed; param where several parametrizations stand side by side. Names in capitals or small letters, of several
    spellings (lr, eta, val_loss, ...); other columns are not read. A loss that is missing, nan or inf has diverged; so has one
    above initial_loss, where there is a column of that name.
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.csv")] = ""
    """Separated by commas, semicolons or tabs, names of columns in the first line; lines that begin with # are not read."""
    size: str = ""
    """Name of the column of sizes, where it is another, or several could be it."""
    learning_rate: str = ""
    """Name of that column."""
    seed: str = ""
    """Name of that column; without one, rows of the same size and learning rate are of different seeds, in their order."""
    loss: str = ""
    """Name of the column of losses that are compared."""
    initial_loss: float | None = None
    """Loss before training, of a file that has no such column: what is above has diverged. By default nothing finite has."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for optimum.json and the picture, optimum.png and .pdf; nothing is written if not given."""
