"""Every paper figure from tiny results, end to end; without results, one line with the command that makes them."""

import json
import re
import shlex
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
import xarray as xr
from matplotlib.figure import Figure

from comparisons import command_line, files, labelled
from comparisons.convergence import rates
from comparisons.convergence import study as convergence
from comparisons.coord_check import study as coord_check
from comparisons.landscape import study as landscape
from comparisons.transfer import study as transfer
from limits import Problem
from limits.two_layer import linear as linear2
from paper_figures import (
    figure_1_1,
    figure_3_1,
    figure_3_2,
    figure_6_1,
    figure_6_2,
    figure_19_2,
    figure_21_1,
    figure_33_2,
    figure_36_1,
    said_of_limits,
)
from paper_figures.rows import ROWS
from paper_figures.verdicts import verdict

TINY = ["--widths", "8", "16", "32", "--seeds", "2", "--steps", "2", "--samples", "8", "--inputs", "3"]
DIGITS = ["--data", "digits", "--samples", "12", "--outputs", "2", "--model", "mlp", "--seeds", "2", "--steps", "2"]
WIDE, DEEP = ["--widths", "8", "16"], ["--widths", "8", "--depths", "1", "2"]
FOLLOWED = ["--observables", "loss", "hessian_eigenvalues", "ntk_eigenvalues", "directional_sharpness", "--top-k", "10",
            "--measure-every", "1", "--batch-size", "4", "--curvature-samples", "6", "--learning-rate", "0.5"]  # fmt: skip
RATES = ["--learning-rates", "0.3", "1", "3", "--no-limit"]
FIGURES = [figure_1_1, figure_3_1, figure_3_2, figure_6_1, figure_6_2, figure_19_2, figure_21_1, figure_33_2, figure_36_1]
PROGRAMS = {"landscape": landscape, "transfer": transfer, "convergence": convergence, "coord_check": coord_check}


def exact_run(param, widths=(8, 16)) -> xr.Dataset:
    """What a convergence run leaves that Figure 6 reads, from the exact recursion, in which nothing is compiled anew."""
    rng = np.random.default_rng(0)
    problem = Problem(rng.standard_normal((8, 3)), rng.standard_normal(8), param, num_steps=4, top_k=1)
    keys = jax.random.split(jax.random.key(0), 2)
    networks = {width: [linear2.solve(problem, width=width, gram=linear2.sample_gram(key, problem, width=width))
                        for key in keys] for width in widths}  # fmt: skip
    limit = labelled.from_trajectories({8: [linear2.solve(problem)]}).isel(width=0, seed=0, drop=True)
    configuration = {"param": param, "data": "gaussian", "inputs": 3, "samples": 8, "learning_rate": 0.5, "richness": 1.0}
    dataset = labelled.from_trajectories(networks).merge(limit.rename({name: f"{name}_limit" for name in limit}))
    return dataset.assign_attrs(configuration=json.dumps(configuration))


def checks(param, letter) -> list[dict]:
    """What coord_check leaves of a parametrization, one that is not compared among it."""
    check = partial(coord_check.Check, param, "sgd", letter, "", quantity="h", layer="input")
    found = ((0.02, 0.0, "agrees"), (-0.9, -0.5, "differs"), (2.0, np.nan, "not compared: "))
    return [asdict(check(exponent=exponent, interval=(exponent - 0.1, exponent + 0.1), derived=derived, verdict=verdict))
            for exponent, derived, verdict in found]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One folder per figure, as its command makes it, but small."""
    folder = tmp_path_factory.mktemp("results")
    for param in ("mup", "ntp"):
        (folder / "figure_6_2" / param).mkdir(parents=True)
        files.write(exact_run(param), folder / "figure_6_2" / param / "trajectories.nc")
    for run, of in (("plain", ("mup", "N")), ("residual", ("depth_mup", "L"))):
        (folder / "figure_21_1" / run).mkdir(parents=True)
        files.write_json(checks(*of), folder / "figure_21_1" / run / "coord_check.json")
    transfer.main([*TINY, *RATES, "--out", str(folder / "figure_19_2")])
    landscape.main([*DIGITS, *WIDE, *FOLLOWED, "--out", str(folder / "figure_1_1" / "landscape")])
    transfer.main([*DIGITS, *WIDE, *RATES, "--sharpness-seeds", "0", "--out", str(folder / "figure_1_1" / "transfer")])
    shutil.copytree(folder / "figure_1_1" / "landscape", folder / "figure_3_1")
    convergence.main([*DIGITS, "--widths", "8", "12", "16", "24", "--measure-every", "1", "--top-k", "1", "--reference",
                      "largest-width", "--out", str(folder / "figure_3_2")])  # fmt: skip
    transfer.main([*DIGITS, *DEEP, *RATES, "--out", str(folder / "figure_6_1" / "k1")])
    for other in ("k2", "vit"):
        shutil.copytree(folder / "figure_6_1" / "k1", folder / "figure_6_1" / other)
    shutil.copytree(folder / "figure_1_1", folder / "figure_36_1" / "width")
    shutil.copytree(folder / "figure_6_1" / "k1", folder / "figure_36_1" / "depth" / "transfer")
    landscape.main([*DIGITS, *DEEP, *FOLLOWED, "--out", str(folder / "figure_36_1" / "depth" / "landscape")])
    shutil.copytree(folder / "figure_36_1" / "depth" / "landscape", folder / "figure_33_2")
    return folder


@pytest.mark.long
def test_figure_6_2_from_the_commands_that_it_names(tmp_path):
    for param in ("mup", "ntp"):
        options = ["--param", param, "--top-k", "1", "--measure-every", "2"]
        convergence.main([*TINY, *options, "--out", str(tmp_path / param)])
    figure_6_2.main(["--results", str(tmp_path)])
    assert (tmp_path / "figure_6_2.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.NAME)
def test_a_figure_is_drawn_next_to_its_results_and_judged(figure, results, capsys):
    folder = results / figure.NAME
    figure.main(["--results", str(folder)])
    assert (folder / f"{figure.NAME}.png").read_bytes().startswith(b"\x89PNG")
    row = next(row for row in ROWS.values() if row.script == figure.NAME)
    told = verdict(row, folder, "cpu")
    assert all(f"{claim}: " in told for claim in row.claims), told
    assert (folder / f"{figure.NAME}.pdf").read_bytes().startswith(b"%PDF")
    assert str(folder / figure.NAME) in capsys.readouterr().out


@pytest.mark.slow
def test_networks_whose_sharpness_was_not_followed_have_not_diverged(results, tmp_path):
    """A sweep follows it of its first seeds alone."""
    shutil.copytree(results / "figure_6_1", tmp_path / "all")
    row, told = ROWS.find("6_1"), []
    for folder in (results / "figure_6_1", tmp_path / "all"):
        told.append(re.findall(r"(?<=sharpness \w\w: )\w+", verdict(row, folder, "cpu")))
        for column in row.runs:
            run = files.read(tmp_path / "all" / column / "transfer.nc")
            more = run.assign(sharpness=run["sharpness"] * np.nan).assign_coords(seed=run.seed + run.sizes["seed"])
            files.write(xr.concat([run, more], "seed", data_vars="minimal"), tmp_path / "all" / column / "transfer.nc")
    assert told[0] == told[1]
    assert len(told[0]) >= 2
    assert "diverged" not in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.NAME)
def test_panels_have_room(figure, results, monkeypatch):
    """A title or legend that is too wide would squeeze them: a row of panels takes most of the width."""
    drawn = []
    monkeypatch.setattr(figure, "save", lambda picture, out: drawn.append(picture))
    figure.main(["--results", str(results / figure.NAME)])
    (picture,) = drawn
    picture.draw_without_rendering()
    boxes = [axis.get_position() for axis in picture.axes]
    columns = len({round(box.x0, 3) for box in boxes})
    assert min(box.width for box in boxes) > 0.6 / columns
    inside = picture.get_tightbbox().padded(-0.02)
    assert inside.x0 >= 0
    assert inside.x1 <= picture.get_figwidth()


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.NAME)
def test_or_where_it_is_wanted(figure, results, tmp_path):
    figure.main(["--results", str(results / figure.NAME), "--out", str(tmp_path / "new" / "picture")])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["picture.pdf", "picture.png"]


def complaint(figure, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        figure.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.NAME)
def test_missing_results_are_one_line_with_the_command(figure, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = figure.recipe(Path("results") / figure.NAME)
    assert command in complaint(figure, [], capsys)
    assert "--out 'my results" in complaint(figure, ["--results", "my results"], capsys)
    assert not any(tmp_path.iterdir())


def parsed(command, options):
    """The options of a command line, or SystemExit."""
    return tyro.cli(options, args=shlex.split(command))


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.NAME)
def test_the_commands_are_accepted(figure):
    """What the scripts tell a user to run are valid commands, in a folder of any name."""
    commands = re.findall(r"python -m comparisons\.(\w+) (.*?)(?: &&|; done|$)", figure.recipe(Path("a b")))
    assert commands
    for program, arguments in commands:
        options = parsed(arguments, PROGRAMS[program].Options)
        assert options.out.parts[0] == "a b"
        PROGRAMS[program].prepare(options)


@pytest.mark.slow
def test_results_that_do_not_belong_together_are_refused(results, tmp_path, capsys):
    for param, source in (("mup", "mup"), ("ntp", "mup")):
        dataset = files.read(results / "figure_6_2" / source / "trajectories.nc")
        (tmp_path / param).mkdir()
        files.write(dataset, tmp_path / param / "trajectories.nc")
    assert "mup and ntp differ" in complaint(figure_6_2, ["--results", str(tmp_path)], capsys)
    assert json.loads(dataset.attrs["configuration"])["param"] == "mup"


@pytest.mark.slow
def test_one_parametrization_is_half_a_figure(results, tmp_path, capsys):
    dataset = files.read(results / "figure_19_2" / "transfer.nc")
    files.write(dataset.sel(param=["mup"]), tmp_path / "transfer.nc")
    assert "without ntp" in complaint(figure_19_2, ["--results", str(tmp_path)], capsys)


@pytest.mark.slow
def test_a_name_with_dots_stays_whole(results, tmp_path, capsys):
    for name in ("mup_0.5", "mup_0.7", "pic.png"):
        figure_6_2.main(["--results", str(results / figure_6_2.NAME), "--out", str(tmp_path / name)])
    wanted = {f"{name}.{ending}" for name in ("mup_0.5", "mup_0.7", "pic") for ending in ("png", "pdf")}
    assert {path.name for path in tmp_path.iterdir()} == wanted
    assert str(tmp_path / "pic.pdf") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.NAME)
def test_a_place_that_cannot_be_written(figure, results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_leave", lambda prog, line, _: command_line.stop(prog, line))  # not this process
    (tmp_path / "file").write_text("")
    arguments = ["--results", str(results / figure.NAME), "--out", str(tmp_path / "file" / "picture")]
    assert "cannot be written" in complaint(figure, arguments, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("figure", "at", "change", "complains"),
    [
        (figure_1_1, "transfer/transfer.nc", lambda run: run.isel(width=[0]), "the two runs differ in their width"),
        (figure_1_1, "landscape/landscape.nc", lambda run: run.drop_vars("hessian_eigenvalues"), "no sharpness was followed"),
        (figure_3_1, "landscape.nc", lambda run: run.drop_vars("ntk_eigenvalues"), "without ten eigenvalues"),
        (figure_6_2, "mup/trajectories.nc", lambda run: run.drop_vars("residual_eigenvalues_limit"), "without the limit"),
        (figure_6_1, "k2/transfer.nc", lambda run: run.drop_vars("sharpness"), "not of several depths with their sharpness"),
        (figure_36_1, "depth/landscape/landscape.nc", lambda run: run.isel(depth=0), "no directional sharpness over depth"),
    ],
)
def test_results_of_something_else_are_refused(figure, at, change, complains, results, tmp_path, capsys):
    shutil.copytree(results / figure.NAME, tmp_path / "there")
    path = tmp_path / "there" / at
    changed = change(files.read(path))
    files.write(changed, path)
    assert complains in complaint(figure, ["--results", str(tmp_path / "there")], capsys)


def test_gaps_to_the_limit_are_drawn_as_such():
    """The title says of how many samples; the trace has its limit dashed."""
    run = exact_run("mup", widths=(8, 16, 32))
    off = {f"{name}_deviation": run[name] - run[f"{name}_limit"] for name in run if f"{name}_limit" in run}
    run = run.assign(off).assign_attrs(epsilon=1e-16)
    found, configuration = rates.measure_rates(run, "theory", None, None), json.loads(run.attrs["configuration"])
    picture = figure_3_2.picture(run, found, configuration | {"model": "linear2", "loss": "mse", "reference": "theory"})
    title = picture.get_suptitle().replace("\n", " ")
    assert "gaps to the limit, root mean square over seeds; dashed: the limit, on the same 8 samples" in title
    (dashed,) = [line for axis in picture.axes for line in axis.lines if line.get_label() == "limit"]
    np.testing.assert_array_equal(dashed.get_ydata(), run["hessian_trace_limit"])
    assert said_of_limits(run.drop_vars([name for name in run if name.endswith("_limit")])) == ""
    drawn = {"loss": "the loss", "hessian_trace": "the trace"}
    assert said_of_limits(run, drawn).endswith("samples")
    assert said_of_limits(run.drop_vars("hessian_trace_limit"), drawn).endswith("samples; that of the trace is not drawn")


def test_gaps_that_drift_together_are_not_said_to_grow():
    """Trajectories of five seeds whose gaps at neighbouring steps correlate by 0.99, and have no power of the step."""
    rng, steps = np.random.default_rng(0), np.array([24.0, 30, 36, 42, 48])
    correlated = np.linalg.cholesky(0.99 ** np.abs(np.subtract.outer(range(5), range(5))))
    laws = [figure_3_2.late_power(steps, correlated @ rng.normal(size=(5, 5))) for _ in range(200)]
    fitted = [law.interval for law in laws if law.status == "fitted"]
    assert len(fitted) > 150
    assert np.mean([low <= 0 <= high for low, high in fitted]) > 0.9  # 0.8 by permutations of the steps


def gaps_of(law):
    """(width, seed, step): gaps ± law(step) of six networks at two widths, and a third width that is the reference."""
    steps, noise = np.array([0, 2, 4, 8, 12, 16]), np.random.default_rng(0).choice([-1.0, 1.0], size=(2, 6, 1))
    return xr.DataArray(noise * law(steps), dims=("width", "seed", "step"), coords={"width": [8, 16], "step": steps})


@pytest.mark.parametrize(
    ("law", "title", "exponent"),
    [
        (lambda t: t**0.7, "grows at N = 8, 16", "+0.70"),
        (lambda t: 3 * np.maximum(t, 1) ** -0.5, "falls at N = 8, 16", "-0.50"),
        (lambda t: np.where(t < 8, 1.0, (t / 8) ** 2), "grows at N = 8, 16", "+2.00"),  # after what it started with
    ],
)
def test_gaps_against_time_find_their_late_power(law, title, exponent):
    axis, gaps = Figure().subplots(), gaps_of(law)
    figure_3_2.against_time(axis, gaps, np.array([8, 16, 32]))
    assert axis.get_title() == title
    named = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [name.split(":")[0] for name in named] == ["N = 8", "N = 16"]
    for name in named:
        assert f"^{{{exponent}}}$ [" in name
        low, high = (float(end) for end in name.split("[")[1].rstrip("]").split(","))
        assert low < float(exponent) < high < low + 0.3  # no scatter; but a next order may hide in any three points
    np.testing.assert_allclose(axis.lines[1].get_ydata(), law(np.array([8, 12, 16])))


def test_titles_say_what_the_intervals_say():
    intervals = [(8, (-0.27, -0.03)), (16, (-0.1, 0.2)), (32, (0.1, 2.0)), (64, (np.nan, np.nan))]
    assert figure_3_2.said(intervals, "N =") == "grows at N = 32; falls at N = 8; undecided at N = 16, 64"
