"""Before any test is collected: types are checked at run time, pictures need no screen, ``limits`` is ours."""

import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the oracles call LAPACK too; see limits/precision.py

import gc

import jax
import matplotlib
import pytest
from jaxtyping import install_import_hook

matplotlib.use("Agg")
if "SUPERCONSISTENCY_UNCHECKED" not in os.environ:  # tests/benchmarks/device.py: no beartype there
    install_import_hook(["limits", "finite", "comparisons"], "typecheck.checked")

import limits  # after the hook

HERE = Path(__file__).resolve().parent.parent
assert Path(limits.__file__).resolve().parent == HERE / "limits", f"another distribution's limits: {limits.__file__}"


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Each holds dozens of memory maps, of which a process has 65530: all the suite's programs at once abort LLVM."""
    yield
    jax.clear_caches()
    gc.collect()
