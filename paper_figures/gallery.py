"""Rows that are missing are made, drawn and judged; the gallery is a page, with small pictures in a folder beside it."""

import contextlib
import io
import json
import pkgutil
import time
from pathlib import Path

import limits
from comparisons.command_line import stop
from comparisons.files import Damaged, Refused
from comparisons.statistics.super_consistency import APART, FLAT
from limits.command.arguments import Stopped
from paper_figures import Options as Drawing
from paper_figures.all import PROGRAM, Options, absent, chosen, commands, left_to_do, listing, results
from paper_figures.rows import PRESETS, ROWS, Row
from paper_figures.verdicts import verdict

LARGEST = 100 * 1024  # bytes of a picture
WIDEST = 1200  # pixels
KEPT, NOT_MADE = "made.json", "not made"
PAGE, PICTURES = "README.md", "gallery"
WORDS = (
    "Made by `python -m paper_figures.all`, {made} of {rows} rows. Verdicts are computed from the results (`verdicts.py`), at",
    "the sizes of the preset (`rows.py`): `tiny` shows how a figure is made, `cpu` is what two cores can do, `gpu` the paper's",
    "own scale. Brackets hold 95 % intervals, ± is one standard error.",
    "",
    "| word | what it means here |",
    "| --- | --- |",
    "| mup, ntp, sp | the parametrizations μP, NTP and SP |",
    "| sharpness, hessian 5, ntk 5 | the largest eigenvalue of the Hessian, its fifth, the fifth of the NTK |",
    "| gauss_newton, residual | the largest eigenvalue of these parts of the Hessian; directional: gᵀHg/∥g∥² of the gradient |",
    "| transfer | the best learning rate; k1, k2, k3: so many convolutions in a residual block |",
    "| same | late in training the values of all sizes are within a factor {factor:g}, and ∝ size^exponent with an exponent"
    " within ±{exponent:g}, both with their 95 % intervals; of a best learning rate the exponent, with its 90 % interval |",
    "| moves | that exponent's interval is wholly above or below 0; of a best learning rate, outside ±{exponent:g} |",
    "| in time: flat, grows | a gap is a power of the step late in training, with an exponent within ±{exponent:g}; above 0 |",
    "| undecided | intervals are too wide to tell, or no power law fits. More seeds, a wider range of sizes or, where it is"
    " said, more learning rates would decide |",
    "| paper's estimator | the exponent that the paper's way of fitting, without an interval, gives for the same runs |",
)
START, END = "<!-- gallery -->", "<!-- end -->"  # what is around them in a page stays


def make(options: Options) -> None:
    """Makes, draws and judges every row that was chosen, and writes the gallery."""
    if options.dry_run:
        return listing(options)
    rows = chosen(options)
    print(left_to_do(rows, options), flush=True)
    gallery = options.gallery or options.out / options.preset
    (gallery / PICTURES).mkdir(parents=True, exist_ok=True)
    said = {row.name: _made(row, options, results(row, options), gallery) for row in rows}
    print("\n".join(["", *(f"{name:<21} {line}" for name, line in said.items()), f"gallery in {gallery / PAGE}"]), flush=True)
    if failed := [name for name, line in said.items() if line.startswith(NOT_MADE)]:
        stop(PROGRAM, f"not made: {', '.join(failed)}")


def _made(row, options, folder, gallery) -> str:
    """The verdict of one row, which the gallery has then; or why it could not be made: then the gallery keeps what it has."""
    began = time.perf_counter()
    try:
        if lacking := absent(row, options):
            raise Refused(lacking)
        verdict = verdict_of(row, options, folder, gallery / PICTURES / f"{row.name}.png")
    except (Refused, Damaged, ValueError, MemoryError) as refusal:  # of this row; the others are made all the same
        verdict = f"{NOT_MADE}: {refusal}"
    except Stopped as refusal:  # by one of its commands
        verdict = f"{NOT_MADE}: {refusal.line}"
    else:
        made = kept(gallery) | {row.name: {"preset": options.preset, "version": limits.__version__, "verdict": verdict}}
        written = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        (gallery / PICTURES / KEPT).write_text(written, encoding="utf-8")
    _write(gallery / PAGE, page(kept(gallery), options.preset))
    print(f"{row.name}: {(time.perf_counter() - began) / 60:.1f} min: {verdict}", flush=True)
    return verdict


def kept(gallery: Path) -> dict[str, dict[str, str]]:
    """Of each row that was made, now or by an earlier command: its preset, the version of this package, the verdict."""
    try:
        return json.loads((gallery / PICTURES / KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        stop(PROGRAM, f"{gallery / PICTURES / KEPT}: not what this command wrote; move it away, and its rows are made again")


def verdict_of(row: Row, options: Options, folder: Path, picture: Path) -> str:
    """The verdict of one row, all of whose results and pictures then are there."""
    for program, *arguments in commands(row, options):
        with contextlib.redirect_stdout(io.StringIO()):
            pkgutil.resolve_name(f"{program}.study:main")(arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        pkgutil.resolve_name(f"paper_figures.{row.script}:draw")(Drawing(folder, folder / row.name))
    shrink(folder / f"{row.name}.png", picture)
    return verdict(row, folder, options.preset)


def shrink(path: Path, to: Path) -> None:
    """As large and as colourful as ``LARGEST`` allows."""
    from PIL import Image

    with Image.open(path) as whole:
        for width in (WIDEST, 1000, 800, 600, 400):
            small = whole.convert("RGB")
            small.thumbnail((width, 10 * width), Image.Resampling.LANCZOS)
            small.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(to, optimize=True)  # thin lines keep their colour
            if to.stat().st_size <= LARGEST:
                return
    stop(PROGRAM, f"{to}: more than {LARGEST} bytes")


def _write(path: Path, gallery: str) -> None:
    """Into the page that is there, behind what it has if it has no place for a gallery."""
    there = path.read_text(encoding="utf-8") if path.exists() else "# The paper's figures\n"
    if START not in there:
        there = f"{there}\n## Gallery\n\n{START}{END}\n"
    before, _, rest = there.partition(START)
    if END not in rest:
        stop(PROGRAM, f"{path}: {START} without {END} behind it: wanted both, on lines of their own")
    path.write_text(f"{before}{START}\n{gallery}{END}{rest.partition(END)[2]}", encoding="utf-8")


def page(made: dict[str, dict[str, str]], preset: str = "cpu") -> str:
    """The gallery, in Markdown: a table of verdicts, then each row with its picture; of rows that are not made with the
    minutes and the command of this preset.
    """
    lines = [*(line.format(made=len(made), rows=len(ROWS), factor=APART, exponent=FLAT) for line in WORDS), "",
             "| row | in the paper | preset | takes | verdict |", "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in ROWS.values():
        record = made.get(row.name, {"preset": preset, "verdict": NOT_MADE})
        takes = f"{row.minutes[PRESETS.index(record['preset'])]:g} min"
        verdict = record["verdict"].split(". ")[0]
        lines.append(f"| [{row.name}](#{_anchor(row)}) | {row.in_paper} | {record['preset']} | {takes} | {verdict} |")
    for row in ROWS.values():
        of_preset = made.get(row.name, {"preset": preset})["preset"]
        command = f"`python -m paper_figures.all --preset {of_preset} --only {row.name}`"
        lines += ["", f"### {_title(row)}", "", f"Paper, {row.in_paper}: {row.shows}. {command}"]
        if row.claims:
            lines += ["", "Paper: " + "; ".join(f"{quantity}: {said}" for quantity, said in row.claims.items()) + "."]
        if row.name in made:
            record = made[row.name]
            lines += ["", f"Here (`{record['preset']}`, version {record['version']}): {record['verdict']}.", "",
                      f"![{row.setting}]({PICTURES}/{row.name}.png)"]  # fmt: skip
        else:
            lines += ["", "Not made."]
    return "\n".join([*lines, ""])


def _title(row):
    return f"{row.name}: {row.setting}"


def _anchor(row):
    """As GitHub makes it of a heading."""
    return "".join(c for c in _title(row).lower().replace(" ", "-") if c.isalnum() or c in "-_")
