"""Cells of a sweep: kept one by one, the same whatever is trained beside them, killed, tried again, and on other engines."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from trained import train

import limits
from comparisons import cases, records, sweep
from comparisons import options as runs
from comparisons.sweep import Engine, Group, Row
from comparisons.transfer.study import Options, main, prepare
from finite.networks.build import build

try:
    import resource
except ImportError:  # not a Unix
    resource = None

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--widths", "8", "16", "--seeds", "3", "--steps", "4", "--samples", "8", "--inputs", "3", "--param", "mup",
         "--learning-rates", "0.3", "1", "2", "1000", "--richness", "1"]  # fmt: skip
LARGER = ["--seeds", "8", "--param", "mup", "ntp"]  # 128 cells, and 8 that follow the sharpness


@pytest.fixture
def work(tmp_path):
    sizes = {"widths": (8, 16), "param": ("mup",), "seeds": 3, "steps": 4, "samples": 8, "inputs": 3}
    found = prepare(Options(**sizes, learning_rates=(0.3, 1.0, 1000.0), out=tmp_path)).work
    (tmp_path / "cells").mkdir()
    return found


@pytest.fixture
def row(work):
    made = Row("mup", 8, 1, 0.3, (0, 1, 2))
    work.path(made, 0).parent.mkdir()
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "small"
    main([*SMALL, "--out", str(folder)])
    return folder


def cells(folder):
    """The bytes of every cell, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "cells").rglob("*.json"))}


def assert_same(folder, other):
    """All files in which a run leaves numbers, bit for bit."""
    assert cells(folder) == cells(other)
    assert (folder / "transfer.json").read_bytes() == (other / "transfer.json").read_bytes()
    ours, theirs = (records.read(one / "transfer.nc") for one in (folder, other))
    assert {name: values.values.tobytes() for name, values in ours.variables.items()} == {
        name: values.values.tobytes() for name, values in theirs.variables.items()}  # fmt: skip
    assert not list(folder.rglob("*.partial"))


# cells


def test_what_is_read_is_what_was_written(work, row):
    values = np.array([0.1 + 0.2, np.pi * 1e-300, np.inf, -np.inf, np.nan])
    work.write(row, 1, {"loss": values})
    assert work.read(row, 1)["loss"].tobytes() == values.tobytes()
    assert work.missing(row) == [0, 2]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"cell": {"loss": [1.0]}, "sha256": "0"}', b"\xff"])
def test_a_damaged_cell_is_missing_and_said_to_be(work, row, content):
    work.write(row, 1, {"loss": np.ones(3)})
    work.path(row, 1).write_bytes(content)
    lines = []
    assert work.missing(row, lines.append) == [0, 1, 2]
    assert lines == [f"{work.path(row, 1)}: is not what was written; it is computed again"]


def test_a_seed_is_the_same_alone_and_among_others(work, row, tmp_path):
    sweep.run(work, Group([row]))
    together = cells(tmp_path)
    work.path(row, 1).unlink()
    assert sweep.run(work, Group([row])) == []
    assert cells(tmp_path) == together
    assert len({bytes(content) for content in together.values()}) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"param": ("mup",), "momentum": 0.5, "batch_size": 4},
        {"param": ("sp",), "model": "mlp3", "optimizer": "adam", "limit": False},
        pytest.param({"param": ("mup",), "model": "conv", "data": "digits", "inputs": 64, "outputs": 3, "widths": (2, 4),
                      "loss": "cross_entropy"}, marks=pytest.mark.slow),
    ],
    ids=["linear2", "mlp3", "conv"],
)  # fmt: skip
def test_a_cell_is_bit_for_bit_a_network_trained_alone(options, tmp_path):
    """Whatever else is in its chunk: other seeds, other learning rates, a divergence."""
    sizes = {"widths": (8, 16), "seeds": 2, "steps": 4, "samples": 8, "inputs": 3, "learning_rates": (0.05, 0.3, 1000.0)}
    work = prepare(Options(**{**sizes, **options, "out": tmp_path})).work
    (param, depth), width = next(iter(work.scalings)), options.get("widths", (8,))[0]
    for followed in (False, True):
        rows = [Row(param, width, depth, rate, (0, 1), followed) for rate in sizes["learning_rates"]]
        work.path(rows[0], 0).parent.mkdir(parents=True, exist_ok=True)
        assert sweep.run(work, Group(rows)) == []
        for row, seed in product(rows, (0, 1)):
            problem = work.problem(param, depth, row.learning_rate)
            name = sweep.sharpness(problem)
            (alone,) = train(problem, build(problem, width), work.keys(width, depth, [seed]),
                             observables=("loss", name)[: 1 + followed], max_matvecs=cases.max_matvecs(problem))  # fmt: skip
            wanted = {"loss": alone["loss"]}
            if followed:
                wanted |= {"sharpness": alone[name], "sharpness_error": alone.error(name)}
            for key, values in work.read(row, seed).items():  # nan is nan, whatever its bits
                np.testing.assert_array_equal(values, wanted.pop(key).reshape(len(values), -1)[:, 0], key)
            assert not wanted


def test_cells_are_kept_chunk_by_chunk(work, row, tmp_path, monkeypatch):
    """Chunks of two of nine cells, all of one length, interrupted in the third; what then follows is what one chunk gives."""
    group = Group(row._replace(learning_rate=rate) for rate in (0.3, 1.0, 2.0))
    assert sweep.at_once(work, row) > 9
    sweep.run(work, group)
    together = cells(tmp_path)
    for name in together:
        (tmp_path / name).unlink()
    lengths, true = [], sweep.train

    def interrupted(*arguments, **options):
        lengths.append(len(options["learning_rates"]))
        if len(lengths) == 3:
            raise KeyboardInterrupt
        return true(*arguments, **options)

    monkeypatch.setattr(sweep, "at_once", lambda *_: 2)
    monkeypatch.setattr(sweep, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(work, group)
    assert list(cells(tmp_path)) == list(together)[:4]
    assert sweep.run(work, group) == []
    assert cells(tmp_path) == together
    assert lengths == [2] * (3 + 3)


def test_dear_cells_are_a_chunk_each(work, row, monkeypatch):
    """Every row is then a group of its own, for as many workers; of cheap ones as many together as a chunk holds."""
    rows = [row._replace(learning_rate=float(rate)) for rate in range(1, 6)]
    for seconds, sizes in ((10.0, [1] * 5), (0.4, [1] * 5), (0.16, [2, 2, 1]), (0.01, [5])):
        monkeypatch.setattr(sweep.estimate, "seconds", lambda work: seconds)  # noqa: B023
        groups = sweep.grouped(work, rows)
        assert [len(group) for group in groups] == sizes
        assert [one for group in groups for one in group] == rows
        assert sweep.at_once(work, row) == max(1, int(1 / seconds))


def test_side_by_side_all_rates_and_seeds_of_a_size_run_together(work, row, tmp_path, monkeypatch):
    """As on an accelerator, where rounding depends on the batch: also where only one is missing."""
    monkeypatch.setattr(sweep.jax, "default_backend", lambda: "gpu")
    rows = [row, row._replace(width=16), row._replace(learning_rate=1000.0)]
    sizes, batches, true = [[row, rows[2]], [rows[1]]], [], sweep.train
    assert [list(group) for group in sweep.grouped(work, rows)] == sizes
    monkeypatch.setattr(sweep, "train", lambda *args, **kw: (batches.append(kw["learning_rates"]), true(*args, **kw))[1])
    sweep.ensure(work, rows, Engine(), "test")
    together, age = cells(tmp_path), work.path(row, 0).stat().st_mtime_ns
    work.path(rows[2], 1).unlink()
    sweep.ensure(work, rows, Engine(), "test")
    assert cells(tmp_path) == together
    assert work.path(row, 0).stat().st_mtime_ns == age
    assert batches == [[0.3] * 3 + [1000.0] * 3, [0.3] * 3, [0.3] * 3 + [1000.0] * 3]


def test_side_by_side_is_one_by_one(work, row, monkeypatch):
    """Up to rounding, of each learning rate."""
    rows = [row, row._replace(learning_rate=1.0)]
    sweep.run(work, Group(rows))
    alone = [work.read(one, seed)["loss"] for one in rows for seed in one.seeds]
    for path in work.path(row, 0).parent.iterdir():
        path.unlink()
    monkeypatch.setattr(sweep.jax, "default_backend", lambda: "gpu")
    sweep.run(work, Group(rows))
    np.testing.assert_allclose([work.read(one, seed)["loss"] for one in rows for seed in one.seeds], alone, rtol=1e-5)


def test_a_divergence_is_a_result(work, row):
    wild = row._replace(learning_rate=1000.0)
    assert sweep.run(work, Group([wild])) == []
    assert work.missing(wild) == []
    assert not (work.read(wild, 0)["loss"] < work.read(wild, 0)["loss"][0]).any()


# failures


def failing(monkeypatch, times, width, fault=None):
    """Training at η0 = 1 and this width, alone or among others, fails so many times."""
    true, left = sweep.train, [times]

    def train(problem, network, *arguments, **options):
        if 1 in options["learning_rates"] and network.width == width and left[0]:
            left[0] -= 1
            raise fault or RuntimeError("out of\nluck")
        return true(problem, network, *arguments, **options)

    monkeypatch.setattr(sweep, "train", train)


def test_what_fails_once_is_tried_again(finished, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, 1, 16)
    main([*SMALL, "--out", str(tmp_path / "run")])
    assert_same(tmp_path / "run", finished)
    assert "mup N = 16 L = 1 η0 = 0.3 … 1000: out of luck; tried again" in capsys.readouterr().err


def test_what_fails_twice_is_told_at_the_end_and_tried_by_the_next_run(finished, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, 2, 16)
    with pytest.raises(SystemExit) as stop:
        main([*SMALL, "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "failed twice: mup N = 16 L = 1 η0 = 1 seed 0: out of luck; all other cells are kept" in line
    assert len(cells(tmp_path / "run")) == 2 * 4 * 3 - 1
    assert not (tmp_path / "run" / "transfer.nc").exists()
    main([*SMALL, "--out", str(tmp_path / "run")])
    assert_same(tmp_path / "run", finished)


@pytest.mark.skipif(resource is None, reason="no limits of resources on this system")
def test_a_full_disk_ends_the_sweep_at_the_first_cell(work, row, monkeypatch):
    trained, true = [], sweep.train
    monkeypatch.setattr(sweep, "train", lambda problem, *rest, **options: (trained.append(problem),
                                                                           true(problem, *rest, **options))[1])  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(records.Unwritten, match=r"0\.3-0\.json: cannot be written: File too large"):
            sweep.ensure(work, [row, row._replace(learning_rate=1.0)], Engine(), "test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(trained) == 1
    assert not list(work.path(row, 0).parent.iterdir())


def test_a_cell_of_another_version_is_trained_again(work, row, monkeypatch):
    work.write(row, 0, {"loss": np.ones(3)})
    monkeypatch.setattr(records, "sources", lambda: "9.9.9+00000000")
    lines = []
    assert work.missing(row, lines.append) == [0, 1, 2]
    (line,) = lines
    assert f"{work.path(row, 0)}: was computed by superconsistency {limits.__version__}+" in line
    assert line.endswith("this is 9.9.9+00000000; it is computed again")


def test_an_interruption_is_no_failure(work, row, monkeypatch):
    failing(monkeypatch, 1, 8, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        sweep.run(work, Group([row._replace(learning_rate=1.0)]))
    assert work.missing(row._replace(learning_rate=1.0)) == [0, 1, 2]


# a kill at any moment


def start(folder, *options):
    return subprocess.Popen([sys.executable, "-m", "comparisons.transfer", *SMALL, *options, "--out", str(folder)], cwd=ROOT,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})  # fmt: skip


def wait_for(happened, process):
    """Until something has happened, or the process is done."""
    deadline = time.monotonic() + 300
    while not happened() and running(process):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def running(process):
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def in_small_chunks(arguments):
    """The command, which keeps two cells at a time."""
    sweep.at_once = lambda *_: 2
    main(arguments)


@pytest.mark.slow
def test_killed_ten_times_at_random_moments_the_numbers_are_the_same(tmp_path):
    """Processes forked from one that has imported the command, but computed nothing: importing takes the longest."""
    context, arguments = get_context("forkserver"), [*SMALL, *LARGER, "--out"]
    context.set_forkserver_preload(["comparisons.transfer"])
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    for _ in range(10):
        process = context.Process(target=in_small_chunks, args=([*arguments, str(folder)],))
        wanted = len(list(folder.rglob("*.json"))) + rng.integers(1, 6)  # what it then has, at the least
        process.start()
        wait_for(lambda: len(list(folder.rglob("*.json"))) >= wanted, process)  # noqa: B023
        time.sleep(0.03 * rng.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (folder / "transfer.json").exists()
    for one in (folder, tmp_path / "whole"):
        main([*arguments, str(one)])
    assert_same(folder, tmp_path / "whole")


@pytest.mark.slow
def test_processes_give_the_same_and_end_with_their_parent(finished, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "--processes", "2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("no /proc here: cannot list the children of a process")
    seen = set()
    wait_for(lambda: len(list(folder.rglob("*.json"))) > 2 or seen.update(_workers(children)), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(seen) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in seen):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    main([*SMALL, "--processes", "2", "--out", str(folder)])
    assert_same(folder, finished)


def _workers(children):
    try:
        return children.read_text().split()
    except OSError:  # it has just ended
        return []


def killing_itself(group):
    """In a worker: dies at η0 = 1, once."""
    mark = sweep._shared.folder / "died"
    if any(row.learning_rate == 1 for row in group) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep.run(sweep._shared, group)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_once(work, row, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_run_shared", killing_itself)
    rows = [row, row._replace(learning_rate=1.0)]
    sweep.ensure(work, rows, Engine(2), "test")
    assert (tmp_path / "died").exists()
    assert not any(work.missing(one) for one in rows)


# a cluster


@pytest.mark.skipif(importlib.util.find_spec("distributed") is not None, reason="dask.distributed is installed")
def test_without_dask_one_line_says_how_to_install_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*SMALL, "--cluster", "tcp://127.0.0.1:1", "--out", str(tmp_path / "run")])
    line = capsys.readouterr().err
    assert "distributed is not installed; install it with `uv sync --extra cluster`" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["address", "local"])
def test_a_dask_cluster_gives_the_same(where, finished, tmp_path):
    """One that runs here, by its address; and a job queue whose jobs are processes of this machine."""
    distributed = pytest.importorskip("distributed", reason="needs the extra cluster: uv sync --extra cluster")
    options = [*SMALL, "--out", str(tmp_path / "run"), "--processes", "2"]
    if where == "local":
        settings = tmp_path / "dask"
        settings.mkdir()
        (settings / "jobqueue.yaml").write_text("jobqueue: {local: {cores: 1, memory: 2GB, processes: 1}}\n")
        subprocess.run([sys.executable, "-m", "comparisons.transfer", *options, "--cluster", "local"], cwd=ROOT, check=True,
                       env={**os.environ, "DASK_CONFIG": str(settings)}, timeout=300)  # fmt: skip
    else:
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            main([*options, "--cluster", cluster.scheduler_address])
    assert_same(tmp_path / "run", finished)


def test_no_number_depends_on_where_it_is_computed(tmp_path):
    sizes = {"widths": (8, 16), "samples": 8, "inputs": 3}
    assert prepare(Options(**sizes)).config == prepare(Options(**sizes, processes=3, cluster="slurm")).config


def test_the_time_left_is_over_what_is_left(work, row, monkeypatch):
    sweep.run(work, Group([row]))
    shown, made, missing = [], runs.Progress, row._replace(width=16)
    monkeypatch.setattr(sweep.runs, "Progress", lambda rows: (shown.append(rows), made(rows))[1])
    sweep.ensure(work, [row, missing], Engine(), "test")
    assert shown == [[(missing,)]]
