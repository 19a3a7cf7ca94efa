"""Make and draw all figures of the paper that are missing, and say of each whether it is as the paper claims.

    python -m paper_figures.all --dry-run                      the rows, with minutes
    python -m paper_figures.all --preset cpu                   makes, draws, says; given again, goes on where it was
    python -m paper_figures.all --preset tiny --only 19_2 6_2

Results are in DIR/PRESET/ROW; the gallery is DIR/PRESET/README.md with small pictures in gallery/ beside it, or where
--gallery says.
"""

import comparisons  # noqa: F401  (before what takes seconds: limits/command/start.py)

# isort: split
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from comparisons import command_line
from limits.command.start import called
from paper_figures.rows import CIFAR10, PRESETS, ROWS, WIKITEXT, Row

PROGRAM = called("paper_figures.all", "figures all")


@dataclass(frozen=True)
class Options:
    """Make and draw the figures of the paper that are missing; then a verdict for each."""

    preset: Literal[PRESETS] = "cpu"
    """tiny: minutes; cpu: two cores; gpu: the paper's scale."""
    only: tuple[str, ...] = ()
    """Names of rows; default all."""
    cifar10: Path = Path(CIFAR10)
    """Where CIFAR-10 is, for gpu: the folder of its binary version, or its .tar.gz."""
    wikitext: Path = Path(WIKITEXT)
    """What GPT reads, for gpu: a plain text in UTF-8, FILE.txt, every character a token."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results/paper")
    """Results, in a folder per preset."""
    gallery: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where README.md and gallery/, its pictures, go; default the folder of the preset."""
    dry_run: bool = False
    """Only list the rows, their minutes and commands."""


def main(arguments=None) -> None:
    command_line.run(Options, "paper_figures.gallery:make", PROGRAM, arguments)


def listing(options: Options) -> None:
    """The rows, with their minutes and commands, and about how long what is not there yet takes."""
    rows = chosen(options)
    for row in rows:
        minutes, drawn = row.minutes[PRESETS.index(options.preset)], " (drawn)" if is_drawn(row, options) else ""
        print(f"{row.name:<21} {minutes:>5g} min  {row.setting}: {row.shows}{drawn}")
        for words in commands(row, options):
            print(f"    python -m {shlex.join(words)}")
    print(left_to_do(rows, options))


def results(row: Row, options: Options) -> Path:
    """The folder of a row."""
    return options.out / options.preset / row.name


def is_drawn(row: Row, options: Options) -> bool:
    """Whether its picture is there, which is drawn last; with other sources than today's, perhaps."""
    return (results(row, options) / f"{row.name}.png").exists()


def left_to_do(rows: list[Row], options: Options) -> str:
    drawn = [row for row in rows if is_drawn(row, options)]
    minutes = sum(row.minutes[PRESETS.index(options.preset)] for row in rows if row not in drawn)
    again = f"; drawn: {len(drawn)}, made again where the sources have changed" if drawn else ""
    return f"rows: {len(rows)}, about {minutes:g} minutes for those that are not drawn yet{again}"


def absent(row: Row, options: Options) -> str | None:
    """What is to be said where the data of a row, which do not come with this package, are not there."""
    words = {word for command in commands(row, options) for word in command}
    for option in ("cifar10", "wikitext"):
        path = getattr(options, option)
        if str(path) in words and not path.exists():
            return f"{path} is not there: --{option} says where it is"
    return None


def commands(row: Row, options: Options) -> list[list[str]]:
    """The words of each, after ``python -m``."""
    templates = row.commands(options.preset, results(row, options))
    places = {CIFAR10: str(options.cifar10), WIKITEXT: str(options.wikitext)}
    return [[places.get(word, word) for word in words] for words in templates]


def chosen(options: Options) -> list[Row]:
    """Raises ValueError for a name that no row has."""
    return [ROWS.find(name) for name in dict.fromkeys(options.only)] if options.only else list(ROWS.values())


if __name__ == "__main__":
    main()
