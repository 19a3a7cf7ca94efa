"""The paper's figures, and its table of exponents, one script each, named as its output: they read results and never train.

`python -m paper_figures.figure_6_2` reads results/figure_6_2 and writes figure_6_2.png and .pdf there.  Where results
are missing, it says with which command they are made.
"""

import comparisons  # noqa: F401  (before what takes seconds: limits/command/start.py)

# isort: split
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from comparisons import command_line
from limits.command.start import called


@dataclass(frozen=True)
class Options:
    """Draw one figure of the paper from results on disk."""

    results: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the results are; default results/ and the figure's name."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """The picture, without its ending; default the figure's name, in DIR."""


def command(name: str, arguments: Sequence[str] | None = None) -> None:
    """`python -m paper_figures.NAME`; the script itself is imported when the options are read."""
    command_line.run(Options, f"paper_figures.{name}:draw", called(f"paper_figures.{name}", f"figures {name}"), arguments)


def read(path: Path, recipe: str):
    """A results file, .nc or .json.  Raises files.Refused with the command that makes it, where it is missing or damaged."""
    from comparisons import files

    try:
        return files.read_json(path) if path.suffix == ".json" else files.read(path)
    except files.Damaged as damage:
        raise files.Refused(f"{damage}; make the results with: {recipe}") from None


def said_of_limits(run, drawn: Mapping[str, str] | None = None) -> str:
    """What a caption adds where limits are drawn; of `drawn`, names and their labels, also which of them have none."""
    if not any(str(name).endswith("_limit") for name in run):
        return ""
    without = [label for name, label in (drawn or {}).items() if f"{name}_limit" not in run]
    return (f"; dashed: the limit, on the same {json.loads(run.attrs['configuration'])['samples']} samples"
            + (f"; that of {' and '.join(without)} is not drawn" if without else ""))  # fmt: skip


def save(figure, path: Path) -> None:
    """A Figure as PNG and PDF, of a path without or with one of these endings.  Raises files.Unwritten."""
    from comparisons import files, style

    path = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        style.save(figure, path)
    print(f"figure in {path}.png and {path}.pdf")
