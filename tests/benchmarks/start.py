"""CPU seconds until a command answers, of the imports, and of the main job with an empty and a filled compilation cache.

    python tests/benchmarks/start.py [--full] [JOB OPTION …]

Each in a process of its own, which finds Python's own modules compiled: where that is not kept (PYTHONDONTWRITEBYTECODE)
imports take three times as long.  Without --full the job, the main one, is small.  With the cache filled it has another seed.
Also how many programs JAX compiles or loads, and how many are kept.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("limits.exponents", *(f"comparisons.{name}" for name in ("convergence", "transfer", "landscape", "coord_check")))
SMALL = ("--widths", "8", "16", "32", "--seeds", "2", "--steps", "4")


def seconds(*words, **environment):
    """(CPU, wall) seconds of `python …`, and its standard error."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "PYTHONDONTWRITE"))}
    before, began = os.times(), time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=usual | environment, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0 or "see python -m" in done.stderr, done.stderr
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.monotonic() - began, done.stderr


def line(what, cpu, wall, more=""):
    print(f"{what:<52}{cpu:7.2f} CPU s {wall:7.2f} s {more}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    chosen, job = parser.parse_known_args()
    modules = tempfile.TemporaryDirectory()
    os.environ["PYTHONPYCACHEPREFIX"] = modules.name
    seconds("-c", "import comparisons.convergence.study, comparisons.transfer.study")
    for command in COMMANDS:
        line(f"python -m {command} --help", *seconds("-m", command, "--help")[:2])
        line(f"python -m {command} --los mse", *seconds("-m", command, "--los", "mse")[:2])
    for module in ("jax", "limits"):
        line(f"import {module}", *seconds("-c", f"import {module}")[:2])
    line("import limits; limits.solve", *seconds("-c", "import limits; limits.solve")[:2])
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "comparisons.convergence", *(() if chosen.full else SMALL), *job]
        told = {"XDG_CACHE_HOME": folder, "JAX_LOG_COMPILES": "1"}
        for number, state in enumerate(("empty", "filled, another seed")):
            cpu, wall, said = seconds(*words, "--seed", str(number), "--out", f"{folder}/{number}", **told)
            kept = len(list(Path(folder).rglob("*-cache")))
            line(f"the job, cache {state}", cpu, wall, f"{said.count('Compiling jit(')} programs, {kept} in the cache")
