"""Rows that are missing are made, drawn and judged; the gallery is a page with small pictures."""

import contextlib
import io
import pkgutil
import time
from pathlib import Path

from comparisons.command_line import stop
from comparisons.files import Damaged, Refused
from paper_figures import Options as Drawing
from paper_figures.all import PROGRAM, Options, chosen, commands, listing
from paper_figures.rows import PRESETS, ROWS, Row
from paper_figures.verdicts import verdict

LARGEST = 100 * 1024  # bytes of a picture
WIDEST = 1200  # pixels


def make(options: Options) -> None:
    """Makes, draws and judges every row that was chosen, and writes the gallery."""
    if options.dry_run:
        return listing(options)
    rows, at = chosen(options), PRESETS.index(options.preset)
    print(f"{len(rows)} rows, about {sum(row.minutes[at] for row in rows):g} minutes where nothing is there yet", flush=True)
    folder = options.out / options.preset
    gallery = options.gallery or folder
    gallery.mkdir(parents=True, exist_ok=True)
    drawn = [row for row in ROWS.values() if (folder / row.name / f"{row.name}.png").exists()]
    drawn = [row for row in drawn if (gallery / f"{row.name}.png").exists()]
    found = {row.name: verdict(row, folder / row.name, options.preset) for row in drawn}
    for row in rows:
        began = time.perf_counter()
        try:
            found[row.name] = one(row, options, folder / row.name, gallery / f"{row.name}.png")
        except (Refused, Damaged, ValueError, MemoryError) as refusal:  # of this row; the others are made all the same
            found[row.name] = f"not made: {refusal}"
        print(f"{row.name}: {(time.perf_counter() - began) / 60:.1f} min: {found[row.name]}", flush=True)
        (gallery / "README.md").write_text(page(options.preset, found), encoding="utf-8")
    print("\n".join(["", *(f"{row.name:<21} {found[row.name]}" for row in rows), f"gallery in {gallery}/README.md"]))


def one(row: Row, options: Options, results: Path, picture: Path) -> str:
    """The verdict of one row, all of whose results and pictures then are there."""
    for program, *arguments in commands(row, options):
        with contextlib.redirect_stdout(io.StringIO()):
            pkgutil.resolve_name(f"{program}.study:main")(arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        pkgutil.resolve_name(f"paper_figures.{row.script}:draw")(Drawing(results, results / row.name))
    shrink(results / f"{row.name}.png", picture)
    return verdict(row, results, options.preset)


def shrink(path: Path, to: Path) -> None:
    """As large and as colourful as ``LARGEST`` allows."""
    from PIL import Image

    with Image.open(path) as whole:
        for width in (WIDEST, 1000, 800, 600, 400):
            small = whole.convert("RGB")
            small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
            small.quantize(64).save(to, optimize=True)
            if to.stat().st_size <= LARGEST:
                return
    stop(PROGRAM, f"{to}: more than {LARGEST} bytes")


def page(preset: str, found: dict[str, str]) -> str:
    """The gallery, in Markdown: the verdicts of the rows that were made, and the others."""
    lines = ["# The paper's figures", "",
             f"Made by `python -m paper_figures.all --preset {preset}`; the verdicts are computed from its results"
             f" (`verdicts.py`), at the sizes of that preset (`rows.py`), not the paper's: {len(found)} of {len(ROWS)} rows"
             " are made here.  The table of exponents (tables_21_1) is `python -m limits.exponents`.", ""]  # fmt: skip
    for row in ROWS.values():
        here = found.get(row.name, f"not made: python -m paper_figures.all --preset {preset} --only {row.name}")
        lines += [f"## {row.name}: {row.setting}", "", f"Paper's figure {row.figure}: {row.shows}.", ""]
        if row.claims:
            lines += ["Paper: " + "; ".join(f"{what}: {said}" for what, said in row.claims.items()) + ".", ""]
        lines += [f"Here: {here}.", ""]
        lines += [] if here.startswith("not made") else [f"![{row.setting}]({row.name}.png)", ""]
    return "\n".join(lines)
