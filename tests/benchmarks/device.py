"""One accelerator, measured in a few minutes: what it is, what every part of the package reaches on it, what it gets wrong.

    PYTHONPATH=. python tests/benchmarks/device.py [--minutes 8] [--out DIR] [--parts card conv …]

Parts (``device_parts.py`` has them), each in a process and a time limit of its own:

    card      what is there, and the peaks of matrix products, memory and small programs
    conv      SimpleConvNet at growing width: seconds per step and per measurement, part of the peak, and what else was possible
    main      the main job unchanged, then wider networks, compilation apart
    lanczos   eigenvalues of 1.8 and 100 million parameters: time over (products × one product)
    memory    what was planned, what was used, the largest width that fits
    figure    figure 1's rows at a tenth of the paper's length
    checks    results against the CPU's, and tests in process

A part that fails, hangs or is killed names its fault, and the next one runs; time that is left over goes to those after it,
and at the end, once, to those that ran out of theirs.  One that had no time for all that it could measure passes in part.
In DIR (default results/device) results.json and table.txt are written anew after every part, log.txt has what parts said that
did not pass, figure.png is figure 1's.  The same command again runs what has not passed, or in part, with all the time for it;
what has been compiled lies in DIR/compiled until all parts have passed.  On a CPU all sizes are tiny.
Exit status 0 if all parts passed, be it in part, 1 if not, 2 for a mistake at the command line.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARES = {"card": 30, "conv": 140, "main": 135, "lanczos": 45, "memory": 30, "figure": 45, "checks": 55}  # of the time
KEPT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}  # everything
RESERVE = 3.0  # seconds, to end in
OUT_OF_TIME = 3  # the exit status of a part that could not do the least
PASSED = ("passed", "passed in part")
LOOK = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep='\\n')"


def main(arguments=None) -> int:
    given, fault = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a part does not outlive this
    until = time.time() + 60 * given.minutes
    compiled = given.out.resolve() / "compiled"  # by one part, for those after it
    for name, value in {"JAX_COMPILATION_CACHE_DIR": str(compiled), **KEPT}.items():
        os.environ.setdefault(name, value)  # before JAX is imported
    records, (platform, device) = read(given.out), looked_at()
    if others := {record["device"] for record in records.values() if record.get("device")} - {device} if device else set():
        fault(f"--out {given.out}: has what was measured on {others.pop()}, this is {device}: another folder keeps them apart")
    parts = [name for name in SHARES if name in given.parts]
    waiting, again = [name for name in parts if records.get(name, {}).get("verdict") != "passed"], True
    while waiting:
        name, *later = waiting
        share = SHARES[name] / sum(SHARES[other] for other in waiting)
        limit = (until - RESERVE - time.time()) * share
        found = run(name, limit, "tiny" if platform == "cpu" else "full", given.out, device)
        records[name] = fuller(records.get(name), found)
        write(records, given.out)
        _rows_of(name, given.out).unlink()
        waiting = later
        if again and not waiting:  # what the others have left is for those that it was not enough for
            left = until - RESERVE - time.time()
            waiting = [name for name in parts if records[name]["verdict"] == "out of time" and records[name]["seconds"] < left]
            again = False
    print(table(records))
    verdicts = {name: record["verdict"] for name, record in records.items()}
    if list(verdicts.values()).count("passed") == len(SHARES):
        shutil.rmtree(compiled, ignore_errors=True)
    return int(not all(verdicts[name] in PASSED for name in parts))


def _parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path("results/device"))
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    given = parser.parse_args(arguments)
    if not 0 < given.minutes < float("inf"):
        parser.error(f"--minutes {given.minutes:g}: wanted a positive number")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        read(given.out)
    except (OSError, ValueError) as fault:
        parser.error(f"--out {given.out}: {fault}")
    return given, parser.error


def looked_at() -> tuple[str, str]:
    """(platform, kind) of the device, by a process of its own; ("", "") where JAX finds none: every part will say so."""
    try:
        done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "", ""
    platform, _, device = done.stdout.strip().rpartition("\n")
    return (platform.rpartition("\n")[2], device) if done.returncode == 0 else ("", "")


def fuller(before: dict | None, record: dict) -> dict:
    """Of two runs of a part the one that passed, or found more; what failed last has failed."""
    if not before or record["verdict"] == "passed":
        return record
    if record["verdict"].startswith("failed"):
        return record if len(record["rows"]) >= len(before["rows"]) else before | {"verdict": record["verdict"]}
    worse = (record["verdict"] not in PASSED) - (before["verdict"] not in PASSED)
    return before if worse > 0 or (worse == 0 and len(record["rows"]) <= len(before["rows"])) else record


def run(name: str, limit: float, size: str, out: Path, device: str) -> dict:
    """One part, in a process of its own: this one never touches the device, whose memory is free for each."""
    started = time.time()
    with _rows_of(name, out).open("w") as said, tempfile.TemporaryFile("w+", errors="replace") as complained:
        print(json.dumps({"device": device}), file=said, flush=True)
        status = _status(name, limit, size, out, said, complained)
        complained.seek(0)
        (_, rows), errors = _read_rows(_rows_of(name, out)), complained.read()
    found = verdict(status, rows, errors)
    if found != "passed":
        with (out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"=== {name}: {found}\n{errors[-20000:]}\n")
    return {"verdict": found, "seconds": round(time.time() - started, 1), "rows": rows, "device": device}


def _rows_of(name, out):
    """Where a part's rows are until they are recorded: those of one that ends together with this program, too."""
    return out / f"{name}.rows"


def _read_rows(path) -> tuple[str, list[dict]]:
    """(the device that they are of, the rows)"""
    said = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]  # the last one may be cut off
    return "".join(row["device"] for row in said[:1]), said[1:]


def _status(name, limit, size, out, said, complained):
    """The exit status, None where the time was over; what the part itself has started ends with it.

    A fork: what is imported is so once for all parts.  JAX starts its threads when it first sees the device, in the child.
    """
    import device_parts  # noqa: F401  not for --help

    part = multiprocessing.get_context("fork").Process(target=_alone, args=(name, limit, size, out, said, complained))
    part.start()
    try:
        part.join(max(limit, 0))
        return part.exitcode
    finally:
        part.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(part.pid, signal.SIGKILL)
        part.join()


def _alone(name, limit, size, out, said, complained):
    """In the child: rows to ``said``, whatever else is printed to ``complained``."""
    import device_parts

    os.setsid()
    device_parts.end_with_parent()
    signal.alarm(max(int(limit), 0) + 10)  # where a system has no such thing
    for descriptor in (1, 2):
        os.dup2(complained.fileno(), descriptor)
    try:
        device_parts.run(name, time.time() + limit, size, out, said)
    except device_parts.OutOfTime as what:
        print(f"out of time before {what}", file=sys.stderr)
        sys.exit(OUT_OF_TIME)


def verdict(status: int | None, rows: list[dict], errors: str) -> str:
    """passed, passed in part, out of time, or failed and a line that says why."""
    if faults := [f"{row['what']}: {row['fault']}" for row in rows if "fault" in row]:
        more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        return f"failed: {faults[0]}{more}"
    if status in (None, OUT_OF_TIME):
        return "out of time"
    if status == 0:
        return "passed in part" if any(row["what"].startswith("left out") for row in rows) else "passed"
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "it said nothing")
    killed = f"killed by {signal.Signals(-status).name}; " if status < 0 else ""
    return f"failed: {killed}{last[:300]}"


def read(out: Path) -> dict[str, dict]:
    """The parts that have run before, by name; of those that were cut off together with the program, what they had found.

    Raises ValueError where results.json is not of this program.
    """
    path = out / "results.json"
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(records, dict) or not all(map(_is_record, records.values())):
        raise ValueError("results.json is not of this program")
    for left in sorted(out.glob("*.rows")):
        device, rows = _read_rows(left)
        found = {"verdict": "cut off", "seconds": 0.0, "rows": rows, "device": device}
        records[left.stem] = fuller(records.get(left.stem), found)
    return records


def _is_record(found):
    return isinstance(found, dict) and {"verdict", "rows"} <= set(found)


def write(records: dict[str, dict], out: Path) -> None:
    for name, text in {"results.json": json.dumps(records, indent=1, ensure_ascii=False), "table.txt": table(records)}.items():
        new = out / f"{name}.new"
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(out / name)


def table(records: dict[str, dict]) -> str:
    """Every part with its verdict, every number with its unit."""
    lines = []
    for name, record in records.items():
        lines += ["", f"{name}: {record['verdict']} ({record['seconds']:.0f} s)"]
        lines += [f"  {row['what']:<84}{_shown(row)}" for row in record["rows"]]
    return "\n".join(lines[1:])


def _shown(row):
    if "fault" in row:
        return f"FAULT {row['fault']}"
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
    return f"{value} {row['unit']}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
