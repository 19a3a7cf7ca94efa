"""Before any test is collected: types are checked at run time, pictures need no screen, ``limits`` is ours."""

import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the oracles call LAPACK too; see limits/precision.py

import matplotlib
from jaxtyping import install_import_hook

matplotlib.use("Agg")
install_import_hook(["limits", "finite", "comparisons"], "typecheck.checked")

import limits  # noqa: E402  (after the hook)

HERE = Path(__file__).resolve().parent.parent
assert Path(limits.__file__).resolve().parent == HERE / "limits", f"another distribution's limits: {limits.__file__}"
