"""Cells: kept one by one, the same whatever is computed beside them, killed, tried again; of a toy that trains nothing."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from comparisons import cells, estimate, files, results
from comparisons.cells import Engine, Group, Progress, Run, Store, Work
from limits import Problem

try:
    import resource
except ImportError:  # not a Unix
    resource = None


@dataclass(frozen=True)
class Cell:
    size: int
    number: int

    @property
    def name(self):
        return f"N{self.size}/{self.number}"

    def __str__(self):
        return f"N = {self.size} number {self.number}"


@dataclass(frozen=True)
class Toy(Work):
    """Numbers; the calls are counted, and some fail."""

    fails: dict = field(default_factory=dict)  # how often each cell
    fault: type[BaseException] = RuntimeError
    calls: list = field(default_factory=list)

    def alike(self, cell):
        return cell.size

    def networks(self, members):
        problem = Problem(np.ones((4, 2)), np.ones(4), num_steps=2)
        return [estimate.Networks(problem, members[0].size, len(members), cells=len(members))]

    def compute(self, members, store, report):
        self.calls.append(members)
        for cell in members:
            if self.fails.get(cell, 0):
                self.fails[cell] -= 1
                raise self.fault("out of\nluck")
        return [value(cell) for cell in members]


def value(cell):
    return {"loss": np.array([cell.size, cell.number, np.pi])}


ALL = [Cell(size, number) for size in (16, 8) for number in range(5)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, "the program")


def ensured(store, work, wanted=ALL, engine=Engine()):  # noqa: B008
    Run(store.folder, work, store, engine, "test").ensure(wanted)


def contents(folder):
    """The bytes of every cell, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "cells").rglob("*.npz"))}


# the store


def test_what_is_read_is_what_was_written(store):
    """All bits, and kinds of numbers; and who writes it again writes the same bytes."""
    values = {"loss": np.array([[0.1 + 0.2, np.pi * 1e-300, 5e-324], [np.inf, -np.inf, np.nan]]),
              "f/readout 1": np.array(0.1, np.float32), "products": np.array([1, 2**40]), "none": np.zeros((0, 3))}  # fmt: skip
    store.write(Cell(8, 1), values)
    ours, found = ({name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
                   for arrays in (values, store.read(Cell(8, 1))))  # fmt: skip
    assert found == ours
    before = contents(store.folder)
    store.write(Cell(8, 1), values, wait=True)
    assert contents(store.folder) == before
    assert store.missing([Cell(8, 0), Cell(8, 1)]) == [Cell(8, 0)]
    assert store.provenance([Cell(8, 1)]) == results.provenance()


def cut(content):
    return content[:-1]


def flipped(content):
    place = content.index(np.array(np.pi).tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: b"{}", lambda content: b"PK", cut, flipped])
def test_a_damaged_cell_is_missing_and_said_to_be(store, damage):
    store.write(ALL[0], value(ALL[0]))
    store.path(ALL[0]).write_bytes(damage(store.path(ALL[0]).read_bytes()))
    lines = []
    assert store.missing(ALL[:2], lines.append) == ALL[:2]
    assert lines == [f"{store.path(ALL[0])}: is not what was written; it is computed again"]
    with pytest.raises(files.Damaged):
        store.read(ALL[0])


def test_a_digest_is_of_the_values(store, monkeypatch):
    """Of a file that is whole, but of other numbers."""
    digest = cells._digest(ALL[0], {})
    monkeypatch.setattr(cells, "_digest", lambda *_: digest)
    store.write(ALL[0], value(ALL[0]))
    monkeypatch.undo()
    assert store.missing([ALL[0]]) == [ALL[0]]


def test_a_cell_of_another_name_is_not_taken(store):
    store.write(ALL[0], value(ALL[0]))
    store.path(ALL[1]).write_bytes(store.path(ALL[0]).read_bytes())
    assert store.missing(ALL[:2]) == [ALL[1]]


def test_a_cell_of_another_version_is_named_and_computed_again(store, monkeypatch, capsys):
    old = results.sources()
    ensured(store, Toy())
    capsys.readouterr()
    monkeypatch.setattr(results, "sources", lambda: "9.9.9+00000000")
    monkeypatch.setattr(results, "provenance", lambda: {"superconsistency": results.sources()})
    with pytest.raises(results.Outdated):
        store.read(ALL[0])
    again = Toy()
    ensured(store, again)
    assert {cell for members in again.calls for cell in members} == set(ALL)
    assert (f"the program: {store.path(ALL[0])}: was computed by superconsistency {old}, this is 9.9.9+00000000; "
            "it is computed again\n") in capsys.readouterr().err  # fmt: skip
    assert not store.missing(ALL)


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from comparisons import cells, results

results.provenance = lambda: {"superconsistency": results.sources()}
calls = 0

def run(folder, at):
    def counting(function):
        def call(*args, **kwargs):
            global calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    os.replace, os.fsync = counting(os.replace), counting(os.fsync)  # between two of them the disk does not change
    with results.claim(folder, {"seeds": 1}):
        for name in ("8", "16"):
            cells.Store(Path(folder), "").write(SimpleNamespace(name=name), {"loss": np.zeros(1)}, wait=name == "8")
    os._exit(calls)

for at in range(12):
    child = os.fork()                       # before JAX has started a device
    child or run(f"{sys.argv[1]}/{at}", at)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@dataclass(frozen=True)
class Named:
    name: str


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_any_moment_leaves_whole_files_only(tmp_path, pytestconfig):
    """config.json takes six calls: fsync of the file, then fsync, rename and fsync of the folder for its digest, then rename
    and fsync of the folder for itself; a cell that waits fsync, rename and fsync of the folder; another one a rename."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == [10, *[-signal.SIGKILL] * 10, 10]
    for at in range(1, 11):
        with results.claim(tmp_path / str(at), {"seeds": 1}) as folder:  # neither refused nor damaged
            lines, both = [], [Named("8"), Named("16")]
            missing = Store(folder, "").missing(both, lines.append)
        assert missing == [cell for cell, renamed in zip(both, (8, 10), strict=True) if at <= renamed], at
        assert not lines
        assert not list((tmp_path / str(at)).rglob("*.partial"))


# side by side


@pytest.mark.parametrize(("seconds", "lengths"), [(10.0, [1] * 5), (0.4, [2] * 3), (0.16, [5]), (1e-9, [5])])
def test_dear_cells_are_a_chunk_each(store, monkeypatch, seconds, lengths):
    """Chunks are all of one length, which is one program, and of one size; every cell is kept once."""
    monkeypatch.setattr(estimate, "seconds", lambda work: seconds)
    groups = cells.grouped(Toy(), ALL, ALL)
    assert [len(group.cells) for group in groups] == 2 * lengths
    assert [cell for group in groups for cell in group.wanted] == ALL
    assert all(set(group.cells) == set(group.wanted) for group in groups)
    assert cells.at_once(Toy(), ALL[0]) == max(1, int(1 / seconds))


def test_on_an_accelerator_all_alike_ones_run_together(store, monkeypatch):
    """Where rounding depends on the batch: also where only one is missing."""
    monkeypatch.setattr(cells.jax, "default_backend", lambda: "gpu")
    ensured(store, Toy())
    together, age = contents(store.folder), store.path(ALL[0]).stat().st_mtime_ns
    store.path(ALL[1]).unlink()
    again = Toy()
    ensured(store, again)
    assert again.calls == [tuple(ALL[:5])]
    assert contents(store.folder) == together
    assert store.path(ALL[0]).stat().st_mtime_ns == age


def test_what_is_there_is_not_computed_again_and_no_part_of_the_time_left(store, monkeypatch):
    ensured(store, Toy(), ALL[:5])
    shown, made, work = [], Progress, Toy()
    monkeypatch.setattr(cells, "Progress", lambda groups: (shown.extend(groups), made(groups))[1])
    ensured(store, work)
    assert shown == [Group(tuple(ALL[5:]), tuple(ALL[5:]))]
    assert work.calls == [tuple(ALL[5:])]
    ensured(store, work)
    assert len(work.calls) == 1


def test_a_group_is_called_what_its_cells_have_in_common():
    assert str(Group(tuple(ALL[:3]), ())) == "N = 16 number 0 … 2"
    assert str(Group((ALL[0],), ())) == "N = 16 number 0"
    assert str(Group((ALL[0], ALL[0]), ())) == "N = 16 number 0"


# failures


def test_what_fails_once_is_tried_again_alone(store, capsys):
    work = Toy({ALL[1]: 1})
    ensured(store, work)
    assert not store.missing(ALL)
    assert "N = 16 number 0 … 4: out of luck; tried again" in capsys.readouterr().err
    assert {members for members in work.calls if len(members) == 1} == {(cell,) for cell in ALL[:5]}


def test_what_fails_twice_is_told_at_the_end_and_tried_by_the_next_run(store):
    with pytest.raises(cells.Failed) as failed:
        ensured(store, Toy({ALL[1]: 2}))
    assert str(failed.value) == ("failed twice: N = 16 number 1: out of luck; all other cells are kept, the same command "
                                 "tries again")  # fmt: skip
    assert store.missing(ALL) == [ALL[1]]
    ensured(store, Toy())
    assert not store.missing(ALL)


def test_of_many_failures_three_are_told(store):
    with pytest.raises(cells.Failed, match=r"number 2: out of luck, and 2 more; all other"):
        ensured(store, Toy(dict.fromkeys(ALL[:5], 9)))


def test_an_interruption_is_no_failure(store):
    with pytest.raises(KeyboardInterrupt):
        cells.compute(Toy({ALL[0]: 1}, KeyboardInterrupt), store, Group((ALL[0],), (ALL[0],)))
    assert store.missing(ALL) == ALL


@dataclass(frozen=True)
class Slow(Toy):
    def compute(self, members, store, report):
        time.sleep(0.2)
        return super().compute(members, store, report)


# what JAX has compiled cannot be kept either: a warning, which commands do not show (comparisons/compiled.py)
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry")
@pytest.mark.skipif(resource is None, reason="no limits of resources on this system")
def test_a_full_disk_ends_the_run_at_the_first_cell(store, monkeypatch):
    """A file that may not grow: the system's own refusal, of whichever thread is first."""
    monkeypatch.setattr(estimate, "seconds", lambda work: 10.0)
    work, (soft, hard) = Slow(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(files.Unwritten, match=r"N16/\d\.npz: cannot be written: File too large"):
            ensured(store, work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(work.calls) <= 4  # two threads, and what they may have begun since
    assert not contents(store.folder)
    late = time.monotonic() + 10  # the other thread may be at its own
    while partial := list(store.folder.rglob("*.partial")):
        assert time.monotonic() < late, partial


# other processes


@dataclass(frozen=True)
class Deadly(Toy):
    """Its process dies at the first cell, once."""

    def compute(self, members, store, report):
        mark = store.folder / "died"
        if ALL[0] in members and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(members, store, report)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_once(store):
    ensured(store, Deadly(), engine=Engine(2))
    assert (store.folder / "died").exists()
    assert not store.missing(ALL)


@pytest.mark.skipif(importlib.util.find_spec("distributed") is not None, reason="dask.distributed is installed")
def test_without_dask_one_line_says_how_to_install_it():
    with pytest.raises(ValueError, match=re.escape("distributed is not installed; install it with `uv sync --extra cluster`")):
        Engine(cluster="tcp://127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["address", "local"])
def test_a_dask_cluster_gives_the_same(where, store, tmp_path, monkeypatch):
    """One that runs here, by its address; and a job queue whose jobs are processes of this machine."""
    distributed = pytest.importorskip("distributed", reason="needs the extra cluster: uv sync --extra cluster")
    here = Store(tmp_path / "here", "the program")
    ensured(here, Toy())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    if where == "local":
        import dask

        with dask.config.set({"jobqueue.local": {"cores": 1, "memory": "2GB", "processes": 1}}):
            ensured(store, Toy(), engine=Engine(2, "local"))
    else:
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            ensured(store, Toy(), engine=Engine(cluster=cluster.scheduler_address))
    assert contents(store.folder) == contents(here.folder)


# the bar


def test_progress_is_the_sum_over_groups():
    with Progress(["a", "b"]) as progress:
        progress.report("a")(0.25)
        progress.report("b")(1.0)
        progress.report("a")(0.5)
        assert (progress.bar.n, progress.bar.total) == (1.5, 2)


def test_without_a_terminal_a_line_tells_of_each_group_that_is_finished(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 30.0, 30.0, 40.0])
    monkeypatch.setattr(cells.time, "monotonic", lambda: next(clock))
    with Progress(["N = 8", "N = 16", "N = 32"]) as progress:
        for name in ("N = 8", "N = 16"):
            report = progress.report(name)
            report(0.0)  # 0 s, 10 s
            report(1.0)  # 10 s, 30 s
            report(1.0)
        progress.report("N = 32")(0.5)  # 30 s
        progress.report("N = 32")(1.0)  # 40 s
    assert capsys.readouterr().err.splitlines() == [
        "N = 8: 10.0 s; 2 left, about 20 s", "N = 16: 20.0 s; 1 left, about 15 s", "N = 32: 10.0 s; 0 left"]  # fmt: skip
