"""The four commands keep, resume, spread and announce their cells alike: each killed, half done, on two processes."""

import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html import unescape
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import tables

import limits.exponents.tables  # noqa: F401  (before the fork server: importing takes the longest)
from comparisons import cells, files
from comparisons.convergence import study as convergence
from comparisons.coord_check import study as coord_check
from comparisons.landscape import study as landscape
from comparisons.transfer import study as transfer
from limits.command.arguments import read

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--samples", "8", "--inputs", "3", "--steps", "4"]
COMMANDS = {
    "convergence": (convergence, [*SMALL, "--widths", "8", "16", "32", "--seeds", "5", "--measure-every", "2", "--top-k", "2"]),
    "landscape": (landscape, [*SMALL, "--data", "gaussian", "--loss", "mse", "--model", "linear2", "--widths", "8", "16"]),
    "transfer": (transfer, [*SMALL, "--widths", "8", "16", "--seeds", "3", "--param", "mup", "--richness", "1",
                            "--learning-rates", "0.3", "1", "2", "1000"]),
    "coord_check": (coord_check, ["--widths", "8", "16", "32", "--depths", "1", "--seeds", "2", "--steps", "2",
                                  "--optimizer", "sgd"]),
}  # fmt: skip
LOST = {  # a cell that trains networks, and how the progress calls it
    "convergence": ("N16-networks", "N = 16"), "landscape": ("ntp-N16-L1", "ntp N = 16 L = 1"),
    "transfer": ("mup-N16-L1/1.0-2", "mup N = 16 L = 1 η0 = 1 seed 2"), "coord_check": ("sgd-N16-L1", "sgd N = 16 L = 1"),
}  # fmt: skip


@pytest.fixture(scope="module", params=COMMANDS)
def finished(request, tmp_path_factory):
    """(name, main, arguments, folder) of a run in one go."""
    module, arguments = COMMANDS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    module.main([*arguments, "--out", str(folder)])
    return request.param, module.main, arguments, folder


def numbers(folder):
    """Of all cells and results, bit for bit, but for what a clock has measured."""
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as content:
            found[str(path.relative_to(folder))] = {name: content[name].tobytes() for name in content if name != "sha256"}
    for path in sorted(folder.glob("*.nc")):
        found[path.name] = {name: one.values.tobytes() for name, one in files.read(path).variables.items()}
    for held in found.values():
        if held.pop("seconds", None):
            held.pop("sha256", None)
    return found | {path.name: path.read_bytes() for path in folder.glob("*.json")}


def test_every_file_is_there(finished):
    name, _, _, folder = finished
    found = {path.name for path in folder.iterdir()}
    assert {"config.json", "index.html", "cells", {"convergence": "rates.json"}.get(name, f"{name}.json")} <= found
    assert not list(folder.rglob("*.partial"))
    assert list(files.damaged(folder)) == []


def test_the_same_command_computes_nothing_again(finished, monkeypatch, capsys):
    name, main, arguments, folder = finished
    ages = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    before = numbers(folder)
    monkeypatch.setattr(cells, "compute", lambda *_: pytest.fail("computed again"))
    main([*arguments, "--out", str(folder)])
    assert numbers(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")} == ages
    told = capsys.readouterr()
    assert told.out.endswith(f"results in {folder}\n")
    assert told.err == ""
    _the_page_shows(told.out, folder, *COMMANDS[name])


def test_results_are_drawn_anew(finished, tmp_path, monkeypatch, capsys):
    """The example of a newcomer, tests/examples/redraw.py."""
    name, _, _, folder = finished
    if name == "convergence":
        (example,) = (path for path in tables.EXAMPLES if path.stem == "redraw")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(example), str(folder)])
        runpy.run_path(str(example), run_name="__main__")
        assert capsys.readouterr().out == tables.printed(example)
        assert (tmp_path / "redrawn.png").read_bytes().startswith(b"\x89PNG")


def _the_page_shows(told, folder, module, _):
    """What the command printed, all pictures, and a command that makes the same."""
    text = unescape((folder / "index.html").read_text(encoding="utf-8"))
    report = told[told.rindex(re.search("<p>(.*)</p>", text)[1]) :].removesuffix(f"\nresults in {folder}\n")
    assert f"<pre>{report}</pre>" in text
    assert text.count('src="data:image/png') == len(list(folder.glob("*.png"))) > 0
    (command,) = re.findall('class="command">(.*)<', text)
    options = read(module.Options, module.PROGRAM, shlex.split(command.removeprefix(module.PROGRAM)))
    assert files.plain(module.prepare(options).config) == files.read_json(folder / "config.json")


@pytest.fixture
def damaged(finished, tmp_path):
    """A finished run of which one cell is lost, and one file of results damaged."""
    name, main, arguments, folder = finished
    there, (lost, said) = tmp_path / "run", LOST[name]
    shutil.copytree(folder, there)
    (there / "cells" / f"{lost}.npz").unlink()
    whole = next(path for path in sorted(there.glob("*.json")) if path.name != "config.json")
    whole.write_text("[]")
    return main, [*arguments, "--out", str(there)], there, whole, said, numbers(folder)


def test_a_dry_run_says_what_is_left_and_writes_nothing(finished, damaged, capsys):
    """In transfer, where optima are not known before the sweep is done, with what follows the sharpness there."""
    (name, whole, arguments, folder), (main, again, there, *_) = finished, damaged
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    main([*again, "--dry-run"])
    assert capsys.readouterr().out.startswith("5 cells, about " if name == "transfer" else "1 cell, about ")
    whole([*arguments, "--out", str(folder), "--dry-run"])
    assert capsys.readouterr().out == "0 cells, about 0 minutes, 0 GiB\n"
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == before


def test_what_is_lost_is_computed_again_with_one_line(finished, damaged, capsys):
    name, (main, again, there, whole, said, numbers_before) = finished[0], damaged
    main(again)
    told = [line for line in capsys.readouterr().err.splitlines() if "one network after the other" not in line]
    damage = f"{whole}: does not have the digest in {whole.name}.sha256"
    assert told[0] == f"python -m comparisons.{name}: {damage}; it is computed again"
    assert re.fullmatch(rf"{re.escape(said)}: \d+\.\d s; 0 left", told[1])
    assert len(told) == 2
    assert numbers(there) == numbers_before


def test_every_group_has_its_line(finished, tmp_path, capsys):
    """Without a terminal; the count goes down to none."""
    _, main, arguments, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.npz"):
        if "deviations" not in path.name and "limit" not in path.name and "prediction" not in path.name:
            path.unlink()
    main([*arguments, "--out", str(tmp_path / "run")])
    left = [int(count) for count in re.findall(r"; (\d+) left", capsys.readouterr().err)]
    stages = "".join(map(str, left)).split("0")[:-1]
    assert left[-1] == 0
    assert all(list(stage) == sorted(stage, reverse=True) for stage in stages)
    assert numbers(tmp_path / "run") == numbers(folder)


def test_another_configuration_is_refused(finished, capsys):
    _, main, arguments, folder = finished
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--seed", "1", "--out", str(folder), *more])
        assert stop.value.code == 2
        assert "another configuration: seed 0 there, 1 here" in capsys.readouterr().err


@pytest.mark.parametrize("module", [module for module, _ in COMMANDS.values()], ids=COMMANDS)
def test_no_number_depends_on_where_it_is_computed(module):
    usual, elsewhere = (module.prepare(module.Options(**more)).config for more in ({}, {"processes": 3, "cluster": "slurm"}))
    assert usual == elsewhere


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--processes", "0"], "0 processes: at least 1"),
        (["--cluster", "tcp://nowhere:1", "--processes", "2"], "processes 2: the scheduler tcp://nowhere:1 has its own"),
    ],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_one_line_and_leaves_nothing(name, more, line, tmp_path, capsys):
    module, arguments = COMMANDS[name]
    with pytest.raises(SystemExit):
        module.main([*arguments, *more, "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


# a kill at any moment, and other processes


def in_small_chunks(name, arguments):
    """The command, which keeps two cells at a time."""
    cells.at_once = lambda *_: 2
    COMMANDS[name][0].main(arguments)


def wait_for(happened, process):
    """Until something has happened, or the process is done."""
    deadline = time.monotonic() + 300
    while not happened() and (process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kept(folder):
    return len(list(folder.rglob("cells/**/*.npz")))


@pytest.mark.slow
def test_killed_at_random_moments_the_numbers_are_the_same(finished, tmp_path):
    """Processes forked from one that has imported the command, but computed nothing."""
    name, main, arguments, whole = finished
    context, folder, rng = get_context("forkserver"), tmp_path / "killed", np.random.default_rng(0)
    context.set_forkserver_preload(["test_four_commands"])
    wanted, killed = kept(whole), 0
    for _ in range(2):
        process = context.Process(target=in_small_chunks, args=(name, [*arguments, "--out", str(folder)]))
        enough = min(kept(folder) + rng.integers(1, max(2, wanted // 3)), wanted - 1)  # what it then has, at the least
        process.start()
        wait_for(lambda: kept(folder) >= enough, process)  # noqa: B023
        time.sleep(0.03 * rng.random())
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed
    main([*arguments, "--out", str(folder)])
    assert numbers(folder) == numbers(whole)
    assert not list(folder.rglob("*.partial"))


@pytest.mark.slow
def test_processes_give_the_same(finished, tmp_path):
    _, main, arguments, whole = finished
    main([*arguments, "--processes", "2", "--out", str(tmp_path / "run")])
    assert numbers(tmp_path / "run") == numbers(whole)


@pytest.mark.slow
def test_processes_end_with_their_parent(tmp_path):
    words = [sys.executable, "-m", "comparisons.transfer", *COMMANDS["transfer"][1], "--processes", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("no /proc here: cannot list the children of a process")
    seen = set()
    wait_for(lambda: kept(tmp_path) > 2 or seen.update(_workers(children)), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(seen) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in seen):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _workers(children):
    try:
        return children.read_text().split()
    except OSError:  # it has just ended
        return []


def test_the_configuration_of_a_run_is_in_its_results(finished):
    _, _, _, folder = finished
    config = files.read_json(folder / "config.json")
    assert not {"processes", "cluster", "dry_run", "out"} & set(config)
    for path in folder.glob("*.nc"):
        assert json.loads(files.read(path).attrs["configuration"]) == config
