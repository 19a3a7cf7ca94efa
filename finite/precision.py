"""Precision is a scope that a computation states, never a setting of the process."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

PRECISIONS = {"float32": False, "float64": True}


@contextmanager
def computing_in(name: str) -> Iterator[None]:
    """Everything inside runs in ``name``, whatever the caller's process has set.  Raises ValueError if it is unknown.

    "float32" means it: matrix products are not rounded to the shorter formats that accelerators prefer by default
    (curvature converged to 1e-3 needs the digits).
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; known: {', '.join(PRECISIONS)}")
    with jax.enable_x64(PRECISIONS[name]), jax.default_matmul_precision("highest"):
        yield
