"""tests/benchmarks/device.py: what it makes of parts that end in every way, and all its parts on a CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.device import fuller

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"
ABSENT = (  # on the machine that the program is for
    "neural_tangents", "beartype", "matfree", "frozendict", "xdist", "hypothesis", "flax", "haiku",
)  # fmt: skip

ENDINGS = """
import os, sys, time
import device, device_parts

def well(report, size, out):
    report.row("size", size)
    report.row("number", 1.5, "s")

def badly(report, size, out):
    with report.attempt("first"):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of\\nmemory")
    report.row("second", 2)

def at_once(report, size, out):
    raise ValueError("no such thing")

def killed(report, size, out):
    report.row("before", 3)
    os.kill(os.getpid(), 9)

def hanging(report, size, out):
    report.row("before", 4)
    report.row("process", os.getpid())
    print('{"half a row', end="", file=report.stream, flush=True)
    time.sleep(600)

def late(report, size, out):
    with report.attempt("the rest", 1e6):
        raise AssertionError

def spare(report, size, out):
    report.extras([("first", lambda: report.row("extra", 5)), ("second", lambda: 1 / 0)], longest=1)

def some(report, size, out):
    report.extras([("first", lambda: report.row("extra", 5))], longest=1)
    report.extras([("third", None), ("fourth", None)], longest=1e6)

parts = {"hanging": hanging, "well": well, "badly": badly, "at_once": at_once, "killed": killed, "late": late, "spare": spare,
         "some": some}
device_parts.PARTS = parts
device.SHARES = dict.fromkeys(parts, 1)
from jax._src import xla_bridge
status = device.main(sys.argv[1:])
assert not xla_bridge.backends_are_initialized(), "the parent touched the device"
sys.exit(status)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The environment of a machine on which these packages cannot be imported."""
    folder = tmp_path_factory.mktemp("absent")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n")
    root = BENCHMARKS.parents[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, (folder, BENCHMARKS, root))), "JAX_PLATFORMS": "cpu"}


def run(environment, *command):
    return subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)


@pytest.mark.slow  # one part waits for the end of its time
def test_every_ending_has_its_verdict_and_the_next_part_runs(elsewhere, tmp_path):
    """All that the program imports is imported here without the absent packages; the second time only what has not passed."""
    (tmp_path / "program.py").write_text(ENDINGS)
    first = run(elsewhere, tmp_path / "program.py", "--minutes", 0.7, "--out", tmp_path / "out")
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert first.returncode == 1, first.stderr
    assert {name: record["verdict"] for name, record in records.items()} == {
        "well": "passed",
        "badly": "failed: first: RuntimeError: RESOURCE_EXHAUSTED: out of memory",
        "at_once": "failed: ValueError: no such thing",
        "killed": "failed: killed by SIGKILL; it said nothing",
        "late": "out of time",
        "spare": "failed: second: ZeroDivisionError: division by zero",
        "some": "passed in part",
        "hanging": "out of time",
    }
    rows = [row for name in ("well", "badly", "killed", "hanging") for row in records[name]["rows"]]
    assert [row["value"] for row in rows if "value" in row][:5] == ["tiny", 1.5, 2.0, 3.0, 4.0]
    assert [row["value"] for row in records["some"]["rows"]] == [5.0, "third; fourth"]
    assert "out of time before the rest" in (tmp_path / "out" / "log.txt").read_text()
    shown = (tmp_path / "out" / "table.txt").read_text()
    assert first.stdout == shown
    assert "FAULT RuntimeError" in shown
    assert "1.5 s\n" in shown
    again = run(elsewhere, tmp_path / "program.py", "--minutes", 0.7, "--out", tmp_path / "out", "--parts", "some", "well")
    assert again.returncode == 0, again.stderr
    after = json.loads((tmp_path / "out" / "results.json").read_text())
    assert after.pop("some")["rows"] == records.pop("some")["rows"]
    assert after == records


def test_a_part_ends_with_the_program_and_what_it_had_found_is_kept(elsewhere, tmp_path):
    (tmp_path / "program.py").write_text(ENDINGS)
    command = [sys.executable, str(tmp_path / "program.py"), "--out", str(tmp_path), "--parts"]
    program = subprocess.Popen([*command, "hanging"], env=elsewhere)
    found = tmp_path / "hanging.rows"
    assert eventually(lambda: found.exists() and len(found.read_text().splitlines()) == 4)
    program.kill()
    program.wait()
    part = int(json.loads(found.read_text().splitlines()[2])["value"])
    assert eventually(lambda: ended(part))
    done = subprocess.run([*command, "well"], env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "results.json").read_text())
    assert {name: record["verdict"] for name, record in records.items()} == {"hanging": "cut off", "well": "passed"}
    assert [row["what"] for row in records["hanging"]["rows"]] == ["before", "process"]
    assert records["hanging"]["device"] == records["well"]["device"] != ""


def eventually(what, seconds=60):
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.1)
    return what()


def ended(process):
    """Gone, or a zombie that its new parent has not waited for."""
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(("before", "after", "kept"), [
    (None, ("cut off", 0), ("cut off", 0)),
    (("passed", 3), ("passed", 2), ("passed", 2)),
    (("passed", 3), ("cut off", 3), ("passed", 3)),  # killed before its rows were taken away
    (("passed in part", 3), ("out of time", 4), ("passed in part", 3)),
    (("passed in part", 3), ("passed in part", 4), ("passed in part", 4)),
    (("out of time", 3), ("passed in part", 2), ("passed in part", 2)),
    (("out of time", 3), ("out of time", 2), ("out of time", 3)),
    (("passed in part", 3), ("failed: so", 1), ("failed: so", 3)),
    (("failed: so", 1), ("out of time", 2), ("out of time", 2))])  # fmt: skip
def test_of_two_runs_the_one_that_found_more_is_kept(before, after, kept):
    record, one = (pair and {"verdict": pair[0], "rows": list(range(pair[1]))} for pair in (before, after))
    found = fuller(record, one)
    assert (found["verdict"], len(found["rows"])) == kept


def test_figures_of_two_devices_are_kept_apart(elsewhere, tmp_path):
    record = {"verdict": "passed", "seconds": 1.0, "rows": [], "device": "NVIDIA H200"}
    (tmp_path / "results.json").write_text(json.dumps({"conv": record}))
    done = run(elsewhere, BENCHMARKS / "device.py", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("has what was measured on NVIDIA H200, this is cpu: another folder keeps them apart\n")


@pytest.mark.parametrize(("words", "line"), [
    (["--minutes", 0], "--minutes 0: wanted a positive number"),
    (["--minutes", "inf"], "--minutes inf: wanted a positive number"),
    (["--out", "file"], "--out file: [Errno 17] File exists: 'file'"),
    (["--out", "damaged"], "--out damaged: Expecting value: line 1 column 1 (char 0)"),
    (["--out", "another's"], "--out another's: results.json is not of this program")])  # fmt: skip
def test_mistakes_are_one_line(words, line, elsewhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name, text in {"damaged": "nothing", "another's": '{"conv": {}}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    done = run(elsewhere, BENCHMARKS / "device.py", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(line)


@pytest.mark.slow
def test_all_parts_pass_on_a_cpu(elsewhere, tmp_path):
    """More minutes than the one that a quiet machine wants: others may be at work."""
    done = run(elsewhere, BENCHMARKS / "device.py", "--minutes", 60, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "table.txt", "figure.png"}
    records = json.loads((tmp_path / "results.json").read_text())
    assert len(records) == 7
    assert all(record["verdict"] == "passed" and record["rows"] for record in records.values())
