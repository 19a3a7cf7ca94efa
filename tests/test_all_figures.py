"""Every figure of the paper is a row; its commands are valid; what is said of results is what they show."""

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tyro
import xarray as xr
from PIL import Image

from comparisons.convergence.options import Options as Convergence
from comparisons.coord_check.options import Options as CoordCheck
from comparisons.landscape.options import Options as Landscape
from comparisons.statistics.minimum import FEW_SEEDS, OFF_GRID, Shift
from comparisons.transfer.options import Options as Transfer
from paper_figures import all as program
from paper_figures import gallery, verdicts
from paper_figures.rows import CIFAR10, PRESETS, ROWS, WIKITEXT
from paper_figures.verdicts import Finding

OPTIONS = {"comparisons.convergence": Convergence, "comparisons.landscape": Landscape, "comparisons.transfer": Transfer,
           "comparisons.coord_check": CoordCheck}  # fmt: skip
STANDS_FOR = {CIFAR10: "patches10", WIKITEXT: "plays"}  # data that do not come with this package
FOLDER = Path(gallery.__file__).parent
PAPER = ["tables_21_1", "1_1", "4_1", "3_1", "28_1", "35_1", "3_2", "34_1", "6_1", "32_2", "6_2", "19_2", "33_2", "36_1"]
STEPS, SIZES = np.arange(0, 41, 4), [8, 16, 32]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_command_is_accepted(preset):
    for row in ROWS.values():
        assert row.script in verdicts.OF
        for module, *arguments in row.commands(preset, Path("a b") / row.name):
            options = tyro.cli(OPTIONS[module], args=arguments)
            assert options.out.parts[:2] == ("a b", row.name)
            if (data := getattr(options, "data", None)) in STANDS_FOR:
                options = replace(options, data=STANDS_FOR[data], samples=options.samples or 512)
            import_module(f"{module}.study").prepare(options)


def test_every_figure_is_there():
    assert len(ROWS) >= 25
    assert {row.figure for row in ROWS.values()} >= set(PAPER)


def test_a_dry_run_lists_them(capsys):
    program.main(["--dry-run", "--preset", "gpu", "--cifar10", "my data", "--wikitext", "my text"])
    printed = capsys.readouterr().out
    assert re.findall(r"^(\S+) +[\d.]+ min  ", printed, re.MULTILINE) == list(ROWS)
    assert "--data 'my data'" in printed
    assert "--data 'my text'" in printed


def test_an_unknown_row_is_one_line(capsys):
    with pytest.raises(SystemExit):
        program.main(["--dry-run", "--only", "1_7"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("claim", "interval", "agrees"), [
    ("+0.58 … +0.88", (0.6, 0.8), True), ("+0.58 … +0.88", (0.1, 0.5), False), ("+0.58 … +0.88", (0.5, 0.8), None),
    ("-0.77 … -0.47", (-0.7, -0.5), True), ("flat", (0.11, 0.5), False), ("flat", (-0.1, 0.5), None),
    ("flat", (-0.3, -0.11), False), ("flat", (0.05, 0.3), None), ("flat", (-0.1, 0.05), True),
    ("flat", (0.01, 0.05), True), ("flat", (np.nan, np.nan), None),
    ("grows", (0.1, 0.5), True), ("grows", (-0.5, -0.1), False), ("grows", (np.nan, np.nan), None),
    ("grows", (-0.1, 0.5), None),
])  # fmt: skip
def test_an_interval_against_a_claim(claim, interval, agrees):
    assert Finding("loss in time", "", interval).against(claim) is agrees


@pytest.mark.parametrize(("mup", "ntp", "says"), [
    ("same", "moves", "as in the paper. "),
    ("same", "same", "not as in the paper, at this size: transfer ntp; as in the paper: transfer mup. "),
    ("undecided", "moves", "as in the paper: transfer ntp; undecided: transfer mup. "),
    ("undecided", "same", "not as in the paper, at this size: transfer ntp; undecided: transfer mup. "),
    ("undecided", "undecided", "undecided: transfer mup, transfer ntp. "),
])  # fmt: skip
def test_a_verdict_needs_all_findings(mup, ntp, says):
    found = [Finding("transfer mup", mup), Finding("transfer ntp", ntp)]
    assert verdicts.said(ROWS["19_2"], found).startswith(says)
    assert verdicts.said(ROWS["random_features"], found).startswith("the paper's claim is not at hand")
    assert verdicts.said(ROWS["19_2"], found, small=True).startswith("too small to judge. transfer mup: ")


def test_what_would_decide_is_said_of_an_optimum_that_may_be_off_the_grid():
    off = Shift("mup", "width", np.nan, (np.nan, np.nan), f"undecided: {OFF_GRID}")
    assert str(verdicts.moved("transfer mup", off)).endswith("off the grid: more learning rates would decide)")
    few = replace(off, verdict=f"undecided: {FEW_SEEDS}")
    assert str(verdicts.moved("transfer mup", few)).endswith("(too few seeds: more would decide)")
    assert str(verdicts.moved("transfer mup", replace(off, verdict="undecided"))) == "transfer mup: undecided"


def gaps(power, width=0.0):
    """(width, seed, step) of six seeds."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (1, 6, 1)) * (1 + 0.01 * np.arange(6)[:, None])
    values = signs * np.array(SIZES, float)[:, None, None] ** width * np.maximum(STEPS, 1.0) ** power
    return xr.DataArray(values, dims=("width", "seed", "step"), coords={"width": SIZES, "step": STEPS})


def test_powers_are_found_by_both_estimators():
    late = verdicts.in_time("loss in time", gaps(0.7))
    assert late.interval[0] < 0.7 < late.interval[1]
    assert late.theirs == pytest.approx(0.7, abs=1e-3)
    assert late.against("+0.58 … +0.88")
    wide = verdicts.in_width(gaps(0.7, width=-0.6))
    assert "N^-0.6" in wide.outcome
    assert wide.theirs == pytest.approx(-0.6, abs=1e-3)


def test_gaps_are_those_to_the_reference_of_the_run(monkeypatch):
    """Against theory the widest networks have one too, and networks may be anything else alike."""
    run = {name: gaps(2.0) for name in ("loss", "hessian_eigenvalues", "ntk_eigenvalues")}
    run |= {f"{name}_deviation": gaps(0.7, width=-0.5) for name in run}
    run = {name: values.expand_dims(rank=[1]) if "eigen" in name else values for name, values in run.items()}
    dataset = xr.Dataset(run, attrs={"configuration": json.dumps({"reference": "theory"})})
    monkeypatch.setattr(verdicts, "read", lambda path: dataset)
    found = {one.quantity: one.outcome for one in verdicts.OF["figure_3_2"](ROWS["3_2_limit"], Path("there"))}
    assert found["loss in width"].startswith("N^-0.5")
    assert found["loss in time"].startswith("t^+0.70")


def test_how_far_the_widest_are_off_their_limit():
    """In percent of the limit, with the error of both; of what has none nothing is said, and no claim hangs on it."""
    values = xr.DataArray(np.ones((3, 4, 11)), dims=("width", "seed", "step"), coords={"width": SIZES, "step": STEPS})
    values[2, :, -1] = [1.9, 2.1, 2.3, 2.1]
    along = xr.Dataset({"loss": values, "loss_limit": ("step", np.full(11, 2.0)), "ntk_eigenvalues": values,
                        "loss_error_limit": ("step", np.full(11, 0.08))}, {"param": "mup"})  # fmt: skip
    (found,) = verdicts.beside_limits(along)
    doubt = 100 * np.hypot(0.04, np.std([1.9, 2.1, 2.3, 2.1], ddof=1) / 4)
    assert str(found) == f"loss beside its limit in mup: N = 32 off by +5.0% ± {doubt:.1f}%"
    agreed = [Finding(what, said) for what, said in ROWS["1_1_limit"].claims.items()]
    assert verdicts.said(ROWS["1_1_limit"], [*agreed, found]).startswith("as in the paper. ")


def test_what_agrees_late_is_the_same_and_what_grows_moves():
    flat = xr.DataArray(np.ones((3, 2, 11)) + 0.001 * np.arange(6).reshape(3, 2, 1), dims=("width", "seed", "step"),
                        coords={"width": SIZES, "step": STEPS})  # fmt: skip
    assert verdicts.agreed("sharpness mup", flat).outcome == "same"
    assert verdicts.agreed("sharpness ntp", flat * xr.DataArray(SIZES, dims="width")).outcome == "moves"
    loss, last = xr.ones_like(flat), flat.step == flat.step[-1]
    missing = flat.where(~last)  # an eigenvalue that was not found is no divergence
    assert verdicts.agreed("sharpness mup", missing, loss).outcome == "same"
    assert verdicts.agreed("sharpness mup", missing, loss.where(~last, np.inf)).outcome == "diverged"
    assert verdicts.agreed("sharpness mup", flat * np.nan, loss).outcome == "undecided"


def test_the_gallery_is_there():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert pictures
    for picture in pictures:
        assert 0 < (FOLDER / picture).stat().st_size <= gallery.LARGEST
    assert re.findall(r"^### (\S+):", page, re.MULTILINE) == list(ROWS)
    assert page.partition(gallery.START)[2].strip() == gallery.page(gallery.kept(FOLDER)) + gallery.END


def test_a_gallery_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    """Rows of other presets stay, and so does what a row had where it cannot be made again."""
    (tmp_path / "gallery").mkdir()
    (tmp_path / "README.md").write_text("Mine.\n<!-- gallery -->\nwhat was here\n<!-- end -->\nMine too.\n")
    record = {"preset": "gpu", "version": "0", "verdict": "as in the paper. T"}
    (tmp_path / "gallery" / "made.json").write_text(json.dumps({"19_2": record}))
    monkeypatch.setattr(gallery, "verdict_of", lambda row, *_: "undecided. S" if row.name == "6_2" else refuse())
    arguments = ["--preset", "cpu", "--only", "19_2", "6_2", "--out", str(tmp_path / "results"), "--gallery", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == 2
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| \[(.*?)\]\(.*?\) (\|.*\|)$", page, re.MULTILINE))
    assert "all --preset gpu --only 19_2`" in page
    assert table["19_2"] == "| appendix | gpu | 3 min | as in the paper |"
    assert table["6_2"] == "| Figure 6 | cpu | 5 min | undecided |"
    assert sum("not made" in cells for cells in table.values()) == len(ROWS) - 2
    assert page.startswith("Mine.\n<!-- gallery -->\nMade by ")
    assert page.endswith("\n<!-- end -->\nMine too.\n")
    assert "what was here" not in page
    printed = capsys.readouterr()
    assert "19_2: 0.0 min: not made: no room" in printed.out
    assert printed.err.endswith(".all: not made: 19_2\n")


def test_a_command_that_is_refused_stops_no_other_row(tmp_path, monkeypatch, capsys):
    """Its data are not there; the row behind it is made all the same."""
    verdict_of = gallery.verdict_of
    monkeypatch.setattr(gallery, "verdict_of", lambda row, *more: "S" if row.name == "6_2" else verdict_of(row, *more))
    arguments = ["--preset", "gpu", "--cifar10", "nowhere", "--only", "3_1", "6_2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        program.main(arguments)
    printed = capsys.readouterr()
    assert re.findall(r"^(\w+): [\d.]+ min: (.*)$", printed.out, re.MULTILINE) == [
        ("3_1", "not made: nowhere is not there: --cifar10 says where it is"), ("6_2", "S")]  # fmt: skip
    monkeypatch.setattr(gallery, "commands", lambda row, options: [["comparisons.landscape", "--steps", "0"]])
    with pytest.raises(SystemExit):
        program.main(["--preset", "tiny", "--only", "1_1", "6_2", "--out", str(tmp_path)])
    assert "1_1: 0.0 min: not made: 0 steps: at least 1 is needed\n6_2: 0.0 min: S\n" in capsys.readouterr().out


def test_a_dry_run_counts_what_is_left(tmp_path, capsys):
    (tmp_path / "cpu" / "6_2").mkdir(parents=True)
    (tmp_path / "cpu" / "6_2" / "6_2.png").touch()
    program.main(["--dry-run", "--only", "19_2", "6_2", "19_2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = re.findall(r"^(\w+) .* min .*$", printed, re.MULTILINE)
    assert rows == ["19_2", "6_2"]
    assert [line.endswith("(drawn)") for line in printed.splitlines() if line.startswith(tuple(rows))] == [False, True]
    assert printed.endswith("rows: 2, about 1 minutes for those that are not drawn yet; drawn: 1, made again where the sources "
                            "have changed\n")  # fmt: skip


def test_a_gallery_in_a_page_of_the_user(tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("# Mine\n")
    gallery._write(page, "pictures\n")
    assert page.read_text() == "# Mine\n\n## Gallery\n\n<!-- gallery -->\npictures\n<!-- end -->\n"
    gallery._write(page, "others\n")
    assert page.read_text() == "# Mine\n\n## Gallery\n\n<!-- gallery -->\nothers\n<!-- end -->\n"
    page.write_text("<!-- gallery -->\nmine\n")
    with pytest.raises(SystemExit):
        gallery._write(page, "")
    assert page.read_text() == "<!-- gallery -->\nmine\n"
    assert capsys.readouterr().err.count("\n") == 1


def refuse():
    raise MemoryError("no room")


def test_what_no_command_wrote_is_no_gallery(tmp_path, capsys):
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "made.json").write_text("mine")
    with pytest.raises(SystemExit):
        gallery.kept(tmp_path)
    assert capsys.readouterr().err.count("\n") == 1


def test_pictures_become_small(tmp_path, monkeypatch):
    """Noise, which no palette and no compression helps: it loses pixels."""
    monkeypatch.setattr(gallery, "LARGEST", 18 * 1024)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 500, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    gallery.shrink(tmp_path / "large.png", tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size <= gallery.LARGEST
    with Image.open(tmp_path / "small.png") as small:
        assert small.width < 500


def test_a_thin_red_line_stays_red(tmp_path):
    picture = np.full((600, 1000, 3), 255, np.uint8)
    picture[100:500] = np.linspace((68, 1, 84), (253, 231, 37), 1000)  # of many colours else
    picture[300] = 178, 34, 34
    Image.fromarray(picture).save(tmp_path / "large.png")
    gallery.shrink(tmp_path / "large.png", tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as small:
        line = np.asarray(small.convert("RGB"), float)[300].mean(0)
    assert np.abs(line - (178, 34, 34)).max() < 30


@pytest.mark.slow
def test_rows_are_made_again(tmp_path, capsys):
    """And taken as they are the second time."""
    rows = ["19_2", "6_2"]
    arguments = ["--preset", "tiny", "--only", *rows, "--out", str(tmp_path)]
    for _ in range(2):
        program.main(arguments)
        printed = capsys.readouterr().out
        assert re.findall(r"^(19_2|6_2): [\d.]+ min: ", printed, re.MULTILINE) == rows
        assert "not made" not in printed
    assert {path.stem for path in (tmp_path / "tiny" / "gallery").glob("*.png")} == set(rows)
