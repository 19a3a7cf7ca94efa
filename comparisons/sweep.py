"""Many small trainings, each a cell of its own: kept one by one, resumed, tried twice, on one machine or on a cluster.

A cell is one network, trained at one learning rate from one seed.  In the folder of a run it is one file:

    cells/PARAM-N<width>-L<depth>/RATE-SEED.json             "loss" at the measured steps
    cells/PARAM-N<width>-L<depth>/RATE-SEED-sharpness.json   "loss", "sharpness" and "sharpness_error"

Whole or absent, with the digest of what it holds: after a loss of power, which may cut files that the system had not yet
written out, damaged cells are trained again.  (To wait for the disk at each would take longer than to train small ones.)
Numbers have all their digits; what is not finite is "nan", "inf" or "-inf".

Nothing that a cell holds depends on which other cells are there: rounding depends on what runs side by side.  On a CPU the
networks of one size, of all learning rates and seeds, run one after the other inside one compiled program, each as if it were
alone, and are kept after about a second.  On an accelerator they run as one batch, also where only one of them is missing.
"""

import hashlib
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from math import ceil, isfinite
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from comparisons import cases, estimate, records
from comparisons import options as runs
from finite import Numerics
from finite.networks.build import build
from finite.training.side_by_side import Plan
from finite.training.train import train
from limits import Problem
from limits.exponents.algebra import Scaling
from limits.optimizers import OPTIMIZERS
from limits.trajectory import stored

CHUNK = 1.0  # seconds of work on a CPU, as estimated, from one time when cells are kept to the next


class Failed(records.Refused):
    """Cells that failed twice.  The message is one line."""


class Row(NamedTuple):
    """The cells of one size and learning rate: one per seed."""

    param: str
    width: int
    depth: int
    learning_rate: float
    seeds: tuple[int, ...]
    sharpness: bool = False

    def __str__(self):
        return f"{self.param} N = {self.width} L = {self.depth} η0 = {self.learning_rate:g}"


@dataclass(frozen=True)
class Work:
    """What all rows share.

    base        the problem; parametrization, depth and learning rate are a row's
    scalings    the exponents of every (parametrization, depth)
    seed        of the networks
    seeds       how many networks a size has
    precision   "float32" or "float64", of the networks
    samples     the first so many samples have the curvature
    folder      the run's, as every worker sees it
    """

    base: Problem
    scalings: dict[tuple[str, int], Scaling]
    seed: int
    seeds: int
    precision: str
    samples: int
    folder: Path

    def problem(self, param: str, depth: int, learning_rate: float | None = None) -> Problem:
        rate = self.base.learning_rate if learning_rate is None else learning_rate
        return replace(self.base, parametrization=self.scalings[param, depth], depth=depth, learning_rate=rate)

    def keys(self, width: int, depth: int, seeds: Sequence[int]) -> Array:
        """One per seed; every learning rate starts from the same weights, and so does every parametrization."""
        return _keys(self.seed, width, depth, self.seeds)[np.asarray(seeds)]

    def path(self, row: Row, seed: int) -> Path:
        size = f"{runs.slug(row.param)}-N{row.width}-L{row.depth}"
        return self.folder / "cells" / size / f"{row.learning_rate!r}-{seed}{'-sharpness' if row.sharpness else ''}.json"

    def read(self, row: Row, seed: int) -> dict[str, np.ndarray]:
        """What the cell holds, each (measured steps,).  Raises records.Damaged, and Outdated."""
        path = self.path(row, seed)
        try:
            found = json.loads(path.read_bytes())
            whole, made = found["sha256"] == _digest(found["cell"]), dict(found["provenance"])
            values = {name: np.array(values, dtype=float) for name, values in found["cell"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise records.Damaged(path, "is not what was written")
        records.require_same_sources(path, made)
        return values

    def provenance(self, rows: Sequence[Row]) -> dict[str, str]:
        """What these cells, all there, were computed with."""
        paths = (self.path(row, seed) for row in rows for seed in row.seeds)
        return records.joined(json.loads(path.read_bytes())["provenance"] for path in paths)

    def write(self, row: Row, seed: int, values: dict[str, np.ndarray]) -> None:
        """Raises records.Unwritten."""
        path, cell = self.path(row, seed), {name: [_number(one) for one in column.tolist()] for name, column in values.items()}
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{records.TEMPORARY}")
        content = {"cell": cell, "sha256": _digest(cell), "provenance": records.provenance()}
        try:
            with records.writing(path):
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def missing(self, row: Row, notice: Callable[[str], None] = lambda line: None) -> list[int]:
        """The seeds of the cells that are not there, or damaged, of which ``notice`` is told."""
        absent = []
        for seed in row.seeds:
            try:
                if self.path(row, seed).exists():
                    self.read(row, seed)
                    continue
            except records.Damaged as damage:
                notice(f"{damage}; it is computed again")
            absent.append(seed)
        return absent


@cache
def _keys(seed, width, depth, seeds):
    return cases.keys(seed, width, seeds, depth)


def _digest(cell):
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()


def _number(value):
    """As JSON has it, which knows only finite ones."""
    return value if isfinite(value) else str(value)


# Side by side ---------------------------------------------------------------------------------------------------------


class Group(tuple[Row, ...]):
    """Rows of one size, which one worker trains: on an accelerator as one batch."""

    def __str__(self):
        return str(self[0]) + (f" … {self[-1].learning_rate:g}" if len(self) > 1 else "")


def grouped(work: Work, rows: Sequence[Row]) -> list[Group]:
    """On a CPU as many rows of one size as a chunk holds, at least one; on an accelerator all of them."""
    sizes: dict[tuple, list[Row]] = {}
    for row in rows:
        sizes.setdefault((row.param, row.width, row.depth, row.sharpness), []).append(row)
    if jax.default_backend() != "cpu":
        return [Group(members) for members in sizes.values()]
    groups = []
    for members in sizes.values():
        count = ceil(len(members) / max(1, at_once(work, members[0]) // len(members[0].seeds)))
        groups += [Group(members[i] for i in places) for places in np.array_split(np.arange(len(members)), count)]
    return groups


def at_once(work: Work, row: Row) -> int:
    """How many cells of this size make a chunk."""
    problem = work.problem(row.param, row.depth)
    one = estimate.Networks(problem, row.width, 1, _observables(problem, row), work.samples)
    return max(1, int(CHUNK / estimate.seconds(estimate.of_one(one))))


def run(work: Work, group: Group, report: Callable[[float], None] = lambda part: None) -> list[str]:
    """Train and write the cells that are not there.  A line for each that failed, and failed again."""
    missing = [(row, seed) for row in group for seed in work.missing(row)]
    if not missing:
        return []
    alone = jax.default_backend() == "cpu"
    chunks = [[(row, seed) for row in group for seed in row.seeds]]
    if alone:  # filled up to one length, so there is one program
        plan = Plan(len(missing), ceil(len(missing) / at_once(work, group[0])), batched=False, devices=1)
        chunks = [[missing[i] for i in places] for places in plan.rows()]
    failures = []
    for done, cells in enumerate(chunks):
        fault = _fault(work, set(missing), cells, partial(_part, report, done, len(chunks)))
        if fault is not None:
            tqdm.write(f"{fault}; tried again", file=sys.stderr)
            again = [[cell] for cell in dict.fromkeys(cells)] if alone else [cells]
            failures += [fault for part in again if (fault := _fault(work, set(missing), part)) is not None]
        report((done + 1) / len(chunks))
    return failures


def _part(report, done, count, part):
    report((done + part) / count)


def _fault(work, wanted, cells, report=None):
    """None, or in a line what went wrong.  Interruptions are no failures, and a full disk ends the run."""
    try:
        return _train(work, wanted, cells, report)
    except records.Unwritten:
        raise
    except Exception as fault:  # whatever it is: the other cells do not suffer from it
        name = str(Group(dict.fromkeys(row for row, _ in cells))) + (f" seed {cells[0][1]}" if len(cells) == 1 else "")
        return f"{name}: {' '.join(str(fault).split()) or type(fault).__name__}"


def _train(work, wanted, cells, report):
    """Cells of one size, (row, seed) each, side by side; those wanted are written."""
    row, rates, seeds = cells[0][0], [row.learning_rate for row, _ in cells], [seed for _, seed in cells]
    problem = work.problem(row.param, row.depth, row.learning_rate)
    name = sharpness(problem)
    trained = train(
        problem, build(problem, row.width), work.keys(row.width, row.depth, seeds), learning_rates=rates,
        observables=_observables(problem, row), curvature_samples=min(work.samples, problem.num_samples),
        numerics=Numerics(work.precision, max_matvecs=cases.max_matvecs(problem)), progress=report,
    )  # fmt: skip
    for cell, one in dict(zip(cells, trained, strict=True)).items():
        values = {"loss": one["loss"]}
        if row.sharpness:
            values |= {"sharpness": _first(one[name]), "sharpness_error": _first(one.error(name))}
        if cell in wanted:
            work.write(*cell, values)


def _observables(problem, row):
    return ("loss", sharpness(problem)) if row.sharpness else ("loss",)


def sharpness(problem: Problem) -> str:
    """The observable that meets the edge of stability."""
    return stored(OPTIMIZERS[problem.optimizer].sharpness)


def _first(values):
    return values[:, 0] if values.ndim == 2 else values


# All of them ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """Where the groups are computed.

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
        for name in ["distributed", *(["dask_jobqueue"] if self.cluster in runs.JOB_QUEUES else [])]:
            if self.cluster is not None and find_spec(name) is None:
                raise ValueError(f"cluster {self.cluster}: {name} is not installed; install it with "
                                 "`uv sync --extra cluster` or `pip install 'superconsistency[cluster]'`")  # fmt: skip

    def results(self, work: Work, groups: Sequence[Group], progress: runs.Progress) -> Iterator[tuple[Group, list[str]]]:
        """Each group with the lines of its failures, as they finish."""
        if self.cluster is not None:
            return _on_cluster(self, work, groups)
        return _by_processes(self.processes, work, groups) if self.processes > 1 else _here(work, groups, progress)


def ensure(work: Work, rows: Sequence[Row], engine: Engine, program: str) -> None:
    """Every cell of the rows is there.  Raises Failed, after all others are done, where some failed twice."""
    for folder in {work.path(row, 0).parent for row in rows}:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{records.TEMPORARY}"):  # by a run that was killed
            left.unlink(missing_ok=True)
    notice = partial(_notice, program)
    todo = [group for group in grouped(work, rows) if any([work.missing(row, notice) for row in group])]  # all are looked at
    failures = []
    with runs.Progress(todo) as progress:
        if engine != Engine():  # others do not tell when a group begins: their seconds are from here on
            for group in todo:
                progress.report(group)(0.0)
        for group, failed in engine.results(work, todo, progress) if todo else ():
            failures += failed
            progress.describe(f"{group[0].param} N = {group[0].width}")
            progress.report(group)(1.0)
    if failures:
        more = f", and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise Failed(f"failed twice: {'; '.join(failures[:3])}{more}; all other cells are kept, the same command tries again")


def _notice(program, line):
    tqdm.write(f"{program}: {line}", file=sys.stderr)


def _here(work, groups, progress):
    def reported(group):
        report = progress.report(group)
        report(0.0)
        return run(work, group, report)

    with runs.threads() as pool:
        yield from _finished({pool.submit(reported, group): group for group in groups})


def _finished(futures: dict[Future, Group]) -> Iterator[tuple[Group, list[str]]]:
    for future in as_completed(futures):
        yield futures[future], future.result()


def _by_processes(count, work, groups):
    """A process that is killed takes the pool with it: once there is another one."""
    remaining = list(groups)
    for _ in range(2):
        try:
            for group, failures in _pool(count, work, tuple(remaining)):
                remaining.remove(group)
                yield group, failures
            return
        except BrokenProcessPool:
            pass
    yield from ((group, [f"{group}: its process was killed"]) for group in remaining)


def _pool(count, work, groups):
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin, initargs=(work,))
    try:
        yield from _finished({pool.submit(_run_shared, group): group for group in groups})
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(work):
    """In a new process.  It ends with its parent, however that one ends, and leaves interruptions to it."""
    global _shared
    _shared = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes on one accelerator
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _run_shared(group):
    return run(_shared, group)


def _on_cluster(engine, work, groups):
    """By Dask, which does again what a worker left that was lost.  Workers see the same folder, and this package."""
    from distributed import Client, as_completed

    with ExitStack() as held:
        if engine.cluster in runs.JOB_QUEUES:
            queue = getattr(import_module(f"dask_jobqueue.{engine.cluster}"), runs.JOB_QUEUES[engine.cluster])
            cluster = held.enter_context(queue())  # as the user's jobqueue.yaml says
            cluster.scale(jobs=engine.processes)
            client = held.enter_context(Client(cluster))
        else:
            where = "scheduler_file" if engine.cluster.endswith(".json") else "address"
            client = held.enter_context(Client(**{where: engine.cluster}))
        shared = client.submit(_same, work, pure=False)  # not scattered: what is lost with its worker is made again
        futures = {client.submit(run, shared, group, pure=False): group for group in groups}
        for future in as_completed(futures):
            fault = future.exception()
            if isinstance(fault, records.Unwritten):
                raise fault
            yield futures[future], future.result() if fault is None else [f"{futures[future]}: {fault}"]


def _same(work):
    return work
