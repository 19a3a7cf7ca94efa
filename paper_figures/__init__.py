"""The paper's figures, one script each, named as its output: they read results and never train.

`python -m paper_figures.figure_6_2` reads results/figure_6_2 and writes figure_6_2.png and .pdf there.  Where results
are missing, it says with which command they are made.  (The paper's table of exponents: `python -m limits.exponents`.)
"""

import comparisons  # noqa: F401  (before what takes seconds: limits/command/start.py)

# isort: split
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import xarray as xr
from matplotlib.figure import Figure

from comparisons import files
from comparisons import style as plots


@dataclass(frozen=True)
class Options:
    """Draw one figure of the paper from results on disk."""

    results: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the results are; default results/ and the figure's name."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The picture, without its ending; default the figure's name, in DIR."""


def quoted(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))


def read(path: Path, recipe: str) -> xr.Dataset | list:
    """A results file, .nc or .json.  Raises files.Refused with the command that makes it, where it is missing or damaged."""
    try:
        return files.read_json(path) if path.suffix == ".json" else files.read(path)
    except files.Damaged as damage:
        raise files.Refused(f"{damage}; make the results with: {recipe}") from None


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF, of a path without or with one of these endings.  Raises files.Unwritten."""
    path = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        plots.save(figure, path)
    print(f"figure in {path}.png and {path}.pdf")
