"""Cells: what a command computes, each kept as it finishes and computed once; here, by other processes, or on a cluster.

A cell is the least that is kept: the networks of one size, one network of a sweep, a limit.  In the folder of a run it is
one file, cells/NAME.npz: arrays by name, and as texts their provenance and a digest of it all.  Whole or absent: after a loss
of power, which may cut files that the system had not yet written out, damaged cells are computed again.  (To wait for the disk
at each of a chunk would take longer than to train small ones; a cell that is alone waits.)

Nothing that a cell holds depends on which other cells are there: rounding depends on what runs side by side.  On a CPU alike
cells, such as the networks of one size, run one after the other inside one compiled program, each as if it were alone, and are
kept after about a second.  On an accelerator they run as one batch, also where only one of them is missing.

    with begin(work, options, config, "landscape-conv", PROGRAM, wanted) as run:       None: a dry run
        run.ensure(wanted)
        values = run.store.read(cell)
"""

import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from comparisons import estimate, files, results
from comparisons.options import JOB_QUEUES, DataOptions, as_given
from comparisons.results import page
from finite.training.side_by_side import Plan
from limits.machine import one_lapack_thread

PROVENANCE, DIGEST = "provenance", "sha256"  # names of no value
UNSAID = "ignore:resource_tracker"  # after an interruption that takes away what processes shared, and need not say so
CHUNK = 1.0  # seconds of work on a CPU, as estimated, from one time when cells are kept to the next

Values = Mapping[str, np.ndarray]  # of a cell
Report = Callable[[float], None]  # is told which part is done, from 0 to 1


class Failed(files.Refused):
    """Cells that failed twice.  The message is one line."""


@runtime_checkable
class Cell(Protocol):
    """Hashable; its text is what a person calls it."""

    @property
    def name(self) -> str:
        """Of its file, without the ending; folders by /."""


class Work(ABC):
    """What a command computes, as every worker has it."""

    @abstractmethod
    def compute(self, cells: Sequence[Cell], store: "Store", report: Report) -> Iterable[Values]:
        """Of each of these cells, which are alike.  ``store`` has what was ensured before."""

    def alike(self, cell: Cell) -> Hashable:
        """Cells of which this is the same run side by side.  By default each is alone."""
        return cell

    def networks(self, cells: Sequence[Cell]) -> list[estimate.Networks | estimate.Limit]:
        """What is trained for these alike cells, and limits that take long; nothing where it is another part of a theory."""
        return []


@dataclass(frozen=True)
class Store:
    """The cells in the folder of a run.  ``program`` opens the notices of damage."""

    folder: Path
    program: str

    def path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.npz"

    def read(self, cell: Cell) -> dict[str, np.ndarray]:
        """Raises files.Damaged, and results.Outdated."""
        values, _ = self._content(cell)
        return values

    def write(self, cell: Cell, values: Values, wait: bool = False) -> None:
        """``wait``: until it is on the disk.  A damaged one is replaced.  Raises files.Unwritten."""
        path, content = self.path(cell), io.BytesIO()
        whole = {name: np.asarray(array) for name, array in values.items()}
        whole[PROVENANCE] = np.array(json.dumps(results.provenance()))
        np.savez(content, allow_pickle=False, **whole, **{DIGEST: np.array(_digest(cell, whole))})
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(path, content.getvalue(), wait)

    def missing(self, cells: Iterable[Cell], notice: Callable[[str], None] = lambda line: None) -> list[Cell]:
        """Those that are not there, or not what these sources wrote, of which ``notice`` is told."""
        return [cell for cell in cells if not self._whole(cell, notice)]

    def provenance(self, cells: Iterable[Cell]) -> dict[str, str]:
        """What these cells, all there, were computed with."""
        return results.joined(made for _, made in map(self._content, cells))

    def notice(self, line: str) -> None:
        """One line on standard error, past a progress bar."""
        tqdm.write(f"{self.program}: {line}", file=sys.stderr)

    def _whole(self, cell, notice):
        try:
            self._content(cell)
        except files.Damaged as damage:
            if self.path(cell).exists():
                notice(f"{damage}; it is computed again")
            return False
        return True

    def _content(self, cell):
        """Values and provenance."""
        path = self.path(cell)
        try:
            with np.load(io.BytesIO(path.read_bytes())) as content:  # of a path NumPy leaves a damaged file open
                values = dict(content)
            digest, made = values.pop(DIGEST), json.loads(str(values[PROVENANCE]))
        except Exception:  # whatever NumPy makes of a damaged file
            raise files.Damaged(path, "is not what was written") from None
        results.require_same_sources(path, made)
        if digest != _digest(cell, values):
            raise files.Damaged(path, "is not what was written")
        del values[PROVENANCE]
        return values, made


def _digest(cell, values):
    """SHA-256 of the name and all values."""
    digest = hashlib.sha256(cell.name.encode())
    for name, array in sorted(values.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


# Side by side ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Alike cells that one worker computes side by side (on a CPU filled up to one length, by one of them), and those of them
    that are kept."""

    cells: tuple[Cell, ...]
    wanted: tuple[Cell, ...]

    def __str__(self):
        """The first, and of the last what is another."""
        first, last = (str(cell).split() for cell in (self.cells[0], self.cells[-1]))
        other = next((place for place, (ours, its) in enumerate(zip(first, last, strict=True)) if ours != its), None)
        return " ".join(first if other is None else [*first, "…", *last[other:]])


def grouped(work: Work, cells: Sequence[Cell], missing: Sequence[Cell]) -> list[Group]:
    """On a CPU chunks of those that are missing; on an accelerator all alike ones together, whichever is missing."""
    sizes, lacking = _alike(work, cells), set(missing)
    groups = []
    for members in sizes:
        left = [cell for cell in members if cell in lacking]
        if left and jax.default_backend() != "cpu":
            groups.append(Group(tuple(members), tuple(left)))
        elif left:
            count = ceil(len(left) / at_once(work, left[0])) if len(left) > 1 else 1
            chunks = [[left[i] for i in places] for places in Plan(len(left), count, batched=False, devices=1).rows()]
            groups += [Group(tuple(chunk), tuple(dict.fromkeys(chunk))) for chunk in chunks]
    return groups


def _alike(work, cells) -> list[list[Cell]]:
    sizes: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        sizes.setdefault(work.alike(cell), []).append(cell)
    return list(sizes.values())


def at_once(work: Work, cell: Cell) -> int:
    """How many cells like this one make a chunk."""
    needed = sum((task.networks * estimate.of_one(task) for task in work.networks([cell])), estimate.Work())
    return max(1, int(CHUNK / estimate.seconds(needed)))


def compute(work: Work, store: Store, group: Group, report: Report = lambda part: None) -> list[str]:
    """Compute and keep the cells of a group.  A line for each that failed, and failed again."""
    fault = _fault(work, store, group, report)
    if fault is None:
        return []
    tqdm.write(f"{fault}; tried again", file=sys.stderr)
    again = [Group((cell,), (cell,)) for cell in group.wanted] if jax.default_backend() == "cpu" else [group]
    return [fault for part in again if (fault := _fault(work, store, part, report)) is not None]


def _fault(work, store, group, report):
    """None, or in a line what went wrong.  Interruptions are no failures, and a full disk ends the run."""
    try:
        made = dict(zip(group.cells, work.compute(group.cells, store, report), strict=True))
        for cell in group.wanted:
            store.write(cell, made[cell], wait=len(group.wanted) == 1)
    except files.Unwritten:
        raise
    except Exception as fault:  # whatever it is: the other cells do not suffer from it
        return f"{group}: {files.one_line(fault)}"


# All of them ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """Where cells are computed.

    processes   so many of this machine; 1: this one.  With a job queue, so many jobs
    cluster     None: this machine.  The address of a Dask scheduler, its file (.json), or a job queue
                (``comparisons.options.JOB_QUEUES``)

    Raises ValueError for what cannot work.
    """

    processes: int = 1
    cluster: str | None = None

    def __post_init__(self):
        if self.processes < 1:
            raise ValueError(f"{self.processes} processes: at least 1 is needed")
        for name in ["distributed", *(["dask_jobqueue"] if self.cluster in JOB_QUEUES else [])]:
            if self.cluster is not None and find_spec(name) is None:
                raise ValueError(f"cluster {self.cluster}: {name} is not installed; install it with "
                                 "`uv sync --extra cluster` or `pip install -e '.[cluster]'`")  # fmt: skip

    def results(
        self, work: Work, store: Store, groups: Sequence[Group], progress: "Progress"
    ) -> Iterator[tuple[Group, list[str]]]:
        """Each group with the lines of its failures, as they finish."""
        if self.cluster is not None:
            return _on_cluster(self, work, store, groups)
        if self.processes > 1:
            return _by_processes(self.processes, work, store, groups)
        return _here(work, store, groups, progress)


@dataclass(frozen=True)
class Run:
    """A command at work in its folder."""

    folder: Path
    work: Work
    store: Store
    engine: Engine
    command: str

    def ensure(self, cells: Sequence[Cell]) -> None:
        """Every one is there.  Raises Failed, after all others are done, where some failed twice, and files.Unwritten."""
        work, store = self.work, self.store
        groups = grouped(work, cells, store.missing(cells, store.notice))
        failures = []
        with Progress(groups) as progress:
            if self.engine != Engine():  # others do not tell when a group begins: their seconds are from here on
                for group in groups:
                    progress.report(group)(0.0)
            for group, failed in self.engine.results(work, store, groups, progress) if groups else ():
                failures += failed
                progress.report(group)(1.0)
        if failures:
            more = f", and {len(failures) - 3} more" if len(failures) > 3 else ""
            raise Failed(f"failed twice: {'; '.join(failures[:3])}{more}; all other cells are kept, "
                         "the same command tries again")  # fmt: skip

    def conclude(self, report: str, made: Mapping[str, str]) -> None:
        """Prints what was found, and where it is; there a page shows that and all that was written before.

        ``made`` says, among other things, what the numbers were computed with.
        """
        page.write(self.folder, self.command, report, {name: made[name] for name in results.provenance()})
        print(f"{report}\nresults in {self.folder}")


@contextmanager
def begin(
    work: Work, options: DataOptions, config: Mapping, name: str, program: str, wanted: Callable[[Store], Sequence[Cell]]
) -> Iterator[Run | None]:
    """The run of a command in its folder, results/NAME-DIGEST if the options have no other, for the length of a ``with``.

    A dry run, for which it is None, only prints what the cells that are ``wanted`` and not there take; before a long or
    large job that is said on standard error.  Raises ValueError or files.Refused, in one line, before anything is written.
    """
    engine = Engine(options.processes, options.cluster)
    folder = results.folder(options.out, name, config)
    results.check(folder, config)
    store = Store(folder.resolve(), program)
    takes = _estimate(work, store.missing(wanted(store)), engine)
    if options.dry_run:
        print(takes)
        yield None
        return
    estimate.warn(takes, program)
    with results.claim(folder, config):
        for damage in files.damaged(folder):
            store.notice(f"{damage}; it is computed again")
        yield Run(folder, work, store, engine, as_given(options, program))


def _estimate(work, cells, engine) -> estimate.Estimate:
    trained = [(alike, work.networks(alike)) for alike in _alike(work, cells)]
    parts = sum(len(alike) for alike, networks in trained if not networks)
    job = [task for _, networks in trained for task in networks]
    return estimate.estimated(job, engine.processes, engine.cluster is not None, parts)


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """For the length of a ``with``: what computes two things at a time on a CPU, where compiling takes one core, and so do
    small networks.  An accelerator is kept for one."""
    pool = ThreadPoolExecutor(2 if jax.default_backend() == "cpu" else 1)
    try:
        with one_lapack_thread():
            yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _here(work, store, groups, progress):
    def reported(group):
        report = progress.report(group)
        report(0.0)
        return compute(work, store, group, report)

    with threads() as pool:
        yield from _finished({pool.submit(reported, group): group for group in groups})


def _finished(futures: dict[Future, Group]) -> Iterator[tuple[Group, list[str]]]:
    for future in as_completed(futures):
        yield futures[future], future.result()


def _by_processes(count, work, store, groups):
    """A process that is killed takes the pool with it: once there is another one."""
    remaining = list(groups)
    for _ in range(2):
        try:
            for group, failures in _pool(count, work, store, tuple(remaining)):
                remaining.remove(group)
                yield group, failures
            return
        except BrokenProcessPool:
            pass
    yield from ((group, [f"{group}: its process was killed"]) for group in remaining)


def _pool(count, work, store, groups):
    os.environ.setdefault("PYTHONWARNINGS", UNSAID)
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin, initargs=(work, store))
    try:
        yield from _finished({pool.submit(_compute_shared, group): group for group in groups})
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(work, store):
    """In a new process.  It ends with its parent, however that one ends, and leaves interruptions to it."""
    global _shared
    _shared = work, store
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes on one accelerator
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _compute_shared(group):
    return _elsewhere(_shared, group)


def _elsewhere(shared, group):
    """In a process that is not the command's."""
    _held_to_one_thread()
    return compute(*shared, group)


@cache
def _held_to_one_thread():
    """LAPACK, for as long as the process lasts: the number of threads changes the rounding."""
    return one_lapack_thread()


def _on_cluster(engine, work, store, groups):
    """By Dask, which does again what a worker left that was lost.  Workers see the same folder, and this package."""
    from distributed import Client, as_completed

    with ExitStack() as held:
        if engine.cluster in JOB_QUEUES:
            queue = getattr(import_module(f"dask_jobqueue.{engine.cluster}"), JOB_QUEUES[engine.cluster])
            cluster = held.enter_context(queue())  # as the user's jobqueue.yaml says
            cluster.scale(jobs=engine.processes)
            client = held.enter_context(Client(cluster))
        else:
            where = "scheduler_file" if engine.cluster.endswith(".json") else "address"
            client = held.enter_context(Client(**{where: engine.cluster}))
        shared = client.submit(_same, (work, store), pure=False)  # not scattered: what is lost with its worker is made again
        futures = {client.submit(_elsewhere, shared, group, pure=False): group for group in groups}
        for future in as_completed(futures):
            fault = future.exception()
            if isinstance(fault, files.Unwritten):
                raise fault
            yield futures[future], future.result() if fault is None else [f"{futures[future]}: {fault}"]


def _same(shared):
    return shared


class Progress:
    """One bar over all groups, which may advance on threads of their own; without a terminal, a line for each that is done."""

    def __init__(self, groups: Iterable[Hashable]):
        form = "{desc:<14}{percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
        self.parts = dict.fromkeys(groups, 0.0)
        self.began: dict[Hashable, float] = {}
        self.bar = tqdm(total=len(self.parts), bar_format=form, disable=None, leave=False)

    def report(self, group: Hashable) -> Report:
        """A function that is told which part of this group is done, from 0 to 1."""

        def advance(part):
            if group not in self.began:
                self.began[group] = time.monotonic()
            finished = part >= 1 > self.parts[group]
            self.parts[group] = part
            self.bar.n = sum(self.parts.values())
            self.bar.set_description_str(str(group).partition(" … ")[0])
            if self.bar.disable and finished:
                tqdm.write(self._line(group), file=sys.stderr)

        return advance

    def _line(self, group):
        """How long it took, and how long the rest will at this pace."""
        clock, done, left = time.monotonic(), sum(self.parts.values()), sum(part < 1 for part in self.parts.values())
        rest = (clock - min(self.began.values())) * (len(self.parts) - done) / done
        line = f"{group}: {clock - self.began[group]:.1f} s; {left} left"
        return line + (f", about {rest:.0f} s" if left else "")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
