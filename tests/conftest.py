"""Before any test is collected: types are checked at run time, pictures need no screen, ``limits`` is ours."""

# ruff: noqa: E402  (JAX, BLAS and the type checker read their settings when they are imported)

import atexit
import gc
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import quickly

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the oracles call LAPACK too; see limits/machine.py
# Most of the suite's time is compilation.  Programs that run once are compiled quickly, and kept where every worker, every
# module and every subprocess of the tests finds them.  XLA_FLAGS= tests optimised ones.
os.environ.setdefault("XLA_FLAGS", quickly.FLAGS)
KEPT = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="compiled-for-tests-")
if KEPT:  # the first process of the suite: those that it starts inherit the folder
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": KEPT, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # each would compile all that it imports: 9 seconds
        os.environ["PYTHONPYCACHEPREFIX"] = KEPT
    atexit.register(shutil.rmtree, KEPT, ignore_errors=True)

import jax
import matplotlib
import pytest
from jaxtyping import install_import_hook

matplotlib.use("Agg")
if "SUPERCONSISTENCY_UNCHECKED" not in os.environ:  # tests/benchmarks/device.py: no beartype there
    install_import_hook(["limits", "finite", "comparisons"], "typecheck.checked")

import limits

HERE = Path(__file__).resolve().parent.parent
assert Path(limits.__file__).resolve().parent == HERE / "limits", f"another distribution's limits: {limits.__file__}"


@pytest.hookimpl(tryfirst=True)  # before the slow ones may be left out
def pytest_collection_modifyitems(items):
    """Files of many slow tests first: a worker that begins one last would be waited for."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _forget_compiled_programs():
    """Each holds dozens of memory maps, of which a process has 65530: all the suite's programs at once abort LLVM."""
    yield
    if _memory_maps() > 16_000:
        jax.clear_caches()
        gc.collect()


def _memory_maps():
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not a Linux, which alone has this bound
        return 0
