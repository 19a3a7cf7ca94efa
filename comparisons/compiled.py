"""What JAX has compiled stays in the user's cache folder: most of a command's time goes into compiling, loading takes little.

Nothing in the results depends on it.  A program is loaded on processors like the one it was compiled for only: on another
one it may crash.
"""

import hashlib
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

MOST = 2**30  # bytes of them, when a command begins
SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"  # of what is kept: most programs here take less than JAX's one second


def keep(wanted: bool) -> None:
    """To be called before JAX is imported; later it changes nothing."""
    if "jax" not in sys.modules:
        os.environ.update(settings(wanted, os.environ))
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")  # compiled once more


def settings(wanted: bool, environment: Mapping[str, str]) -> dict[str, str]:
    """What JAX is to be told beside what the user tells it; nothing where a folder cannot be written."""
    if not wanted:
        return {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    shortest = {SHORTEST: environment.get(SHORTEST, "0")}
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return shortest
    programs = home(environment) / "superconsistency" / "compiled"
    folder = programs / f"jaxlib-{version('jaxlib')}-{processor()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        forget(programs, MOST)
    except OSError:
        return {}
    return {"JAX_COMPILATION_CACHE_DIR": str(folder)} | shortest


def home(environment: Mapping[str, str]) -> Path:
    """The user's folder for what can be made again."""
    if given := environment.get("XDG_CACHE_HOME"):
        return Path(given)
    if sys.platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def processor() -> str:
    """Eight digits that stand for the instructions that it has."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        told = [line for line in told.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part", "isa"))]
    except OSError:  # not a Linux
        told = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:8]


def forget(folder: Path, most: int) -> None:
    """The files that were not used for longest, until the others have so many bytes at most."""
    entries = [(max(told.st_atime, told.st_mtime), told.st_size, path)
               for path in folder.rglob("*") if path.is_file() for told in [path.stat()]]  # fmt: skip
    excess = sum(size for _, size, _ in entries) - most
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
