"""How numbers are computed belongs to the function, not to the process: precision explicit, results reproducible.

And how many of them fit: one line for what does not, before it is begun.
"""

import os
from contextlib import contextmanager
from functools import cache, partial, wraps
from math import ceil
from threading import Lock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  loads the BLAS that JAX calls, before its threads are counted
from threadpoolctl import ThreadpoolController

PRECISIONS = {"float32": False, "float64": True}
RATE = 1e10  # multiplications a second in float64 of the usual machine, two cores, about
QUICKLY = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}  # compiled, on a CPU


@contextmanager
def computing(precision: str):
    """Within: JAX at "float32" or "float64" whatever the process has set, and LAPACK on one thread.

    "float32" means it: matrix products are not rounded to the shorter formats that accelerators prefer by default
    (curvature converged to 1e-3 needs the digits).
    Results must be ready (on the host) when the block ends.  Raises ValueError for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    with jax.enable_x64(PRECISIONS[precision]), jax.default_matmul_precision("highest"), one_lapack_thread():
        yield


def one_lapack_thread():
    """Within: LAPACK on one thread, process-wide.

    The number of threads changes the rounding, and OpenBLAS threads that share their cores with another process wait for
    each other: a 301 × 301 eigenvalue problem took 2300 ms instead of 8.  Hold it around work done by several threads.
    """
    return _blas().limit(limits=1, user_api="blas")


def in_float64(function):
    """The function ``computing("float64")``, its result ready."""

    @wraps(function)
    def wrapped(*args, **kwargs):
        with computing("float64"):
            return jax.block_until_ready(function(*args, **kwargs))

    return wrapped


def eigh(matrix):
    """Eigenvalues, ascending, and vectors, of a symmetric JAX array; of a batch (``jax.vmap``, or leading axes) on a CPU one
    after the other.

    There the decompositions of a batch wait for each other on the thread pool, and with two programs at once on two cores,
    or one that is one of three threads, they wait forever (jaxlib 0.10.2).
    """
    return _over_leading_axes(_one_by_one, matrix) if jax.default_backend() == "cpu" else tuple(jnp.linalg.eigh(matrix))


def eigvalsh(matrix):
    """The eigenvalues alone, ascending, guarded as ``eigh`` is."""
    return _over_leading_axes(_values_one_by_one, matrix) if jax.default_backend() == "cpu" else jnp.linalg.eigvalsh(matrix)


def inv(matrix):
    """The inverse, guarded as ``eigh`` is."""
    return _inverses_one_by_one(matrix) if jax.default_backend() == "cpu" else jnp.linalg.inv(matrix)


def _over_leading_axes(function, matrix):
    return function(matrix) if matrix.ndim == 2 else jax.vmap(partial(_over_leading_axes, function))(matrix)


_one_by_one = jax.custom_batching.sequential_vmap(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
_values_one_by_one = jax.custom_batching.sequential_vmap(lambda matrix: jnp.linalg.eigvalsh(matrix))
_inverses_one_by_one = jax.custom_batching.sequential_vmap(lambda matrix: jnp.linalg.inv(matrix))


def compiled_soon(static_argnums=()):
    """``jax.jit`` of what is compiled for longer than it runs, for calls from outside compiled code.

    On a CPU by the older of XLA's two ways to emit fused loops and LLVM's first level, where this jaxlib knows them and
    XLA_FLAGS has no others: half as long to compile, up to a tenth longer to run.
    """

    def jitted(function):
        turn, unknown = Lock(), []

        @cache
        def compiled(quickly):
            options = {name: value for name, value in QUICKLY.items() if name not in os.environ.get("XLA_FLAGS", "")}
            return jax.jit(function, static_argnums=static_argnums, compiler_options=options if quickly else None)

        @wraps(function)
        def called(*args):
            with turn:
                program = compiled(not unknown and jax.default_backend() == "cpu")
            try:
                return program(*args)
            except jax.errors.JaxRuntimeError as refusal:
                if "No such compile option" not in str(refusal):
                    raise
            unknown.append(True)
            return compiled(False)(*args)

        return called

    return jitted


def by_batches(function, rows, most: int):
    """The function of each row, ``most`` side by side at most; a piece for compiled code.

    Batches have one length, for which the last row is repeated: another one would be compiled apart, as long again.
    """
    batches = ceil(len(rows) / most)
    length = ceil(len(rows) / batches)
    whole = rows[np.minimum(np.arange(batches * length), len(rows) - 1)]
    return jax.tree.map(lambda mapped: mapped[: len(rows)], jax.lax.map(function, whole, batch_size=length))


def physical_memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def two_digits(value: float | int) -> str:
    """Without a power of ten.

    >>> two_digits(61234), two_digits(0.0123)
    ('61 000', '0.012')
    """
    return f"{float(f'{value:.2g}'):,.10g}".replace(",", " ")


def require_memory(numbers: float, subject: str = "this limit needs", advice: str = "") -> None:
    """Raises MemoryError, in one line, where so many float64 numbers are more than there is room for."""
    needed, there = 8 * numbers, physical_memory()
    if needed > there:
        more = f": {advice}" if advice else ""
        raise MemoryError(f"{subject} about {needed / 2**30:.1f} GiB, more than the {there / 2**30:.1f} GiB there are{more}")


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
