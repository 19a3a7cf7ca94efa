"""The paper's figures, one script each, named as its output: they read results and never train.

`python -m paper_figures.figure_6_2` reads results/figure_6_2 and writes figure_6_2.png and .pdf there.  Where results
are missing, it says with which command they are made.  (The paper's table of exponents: `python -m limits.exponents`.)
"""

import comparisons  # noqa: F401  (before what takes seconds: limits/command/start.py)

# isort: split
from collections.abc import Sequence
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
