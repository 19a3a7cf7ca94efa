"""Eigenvalues, whatever they are of: the k largest, their derivatives, which of them stand apart, a whole spectrum.

Largest first, and beyond their number zeros: what is missing lies in the null space.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from limits.machine import eigh

Numbers = Array | np.ndarray

DEGENERATE = 1e-7  # relative distance under which two eigenvalues count as one


class Spectrum(NamedTuple):
    """Eigenvalues, largest first, and how often each occurs (``inf`` in the limit)."""

    values: Float[np.ndarray, " m"]
    multiplicities: Float[np.ndarray, " m"]


def spectrum(values: Float[np.ndarray, " m"], multiplicities: Float[np.ndarray, " m"], zeros: float) -> Spectrum:
    """In order, with so many zeros besides; what does not occur is left out."""
    values, counts = np.append(values, 0.0), np.append(multiplicities, zeros)
    order = np.argsort(-values)
    order = order[counts[order] > 0]
    return Spectrum(values[order], counts[order])


def largest(values: Float[Numbers, " m"], k: int) -> Float[Numbers, " k"]:
    """The k largest of eigenvalues in any order; in compiled code too."""
    missing = max(0, k - len(values))
    if isinstance(values, jax.Array):
        return jax.lax.top_k(jnp.concatenate([values, jnp.zeros(missing)]), k)[0]
    return np.sort(np.pad(values, (0, missing)))[::-1][:k]


def apart(values: Float[np.ndarray, "*any m"], k: int, tolerance: float = DEGENERATE) -> Bool[np.ndarray, "*any k"]:
    """Whether each of the k largest is farther from its neighbours than this part of the largest.

    ``values``, largest first, should be one more than k: the last one's neighbour.
    """
    others = [(0, 0)] * (values.ndim - 1)
    values = np.pad(values, [*others, (0, k + 1)])[..., : k + 1]
    close = -np.diff(values) <= tolerance * np.abs(values[..., :1])
    return ~(np.pad(close, [*others, (1, 0)]) | np.pad(close, [*others, (0, 1)]))[..., :k]


def multiplets(values: Float[np.ndarray, " m"], tolerance: float = DEGENERATE) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each run of ranks, largest first, each closer to the next than this part of the first value."""
    far = np.flatnonzero(-np.diff(values) > tolerance * np.abs(values[0])) + 1
    return pairwise([0, *far.tolist(), len(values)])


def leading_eigenvalues(matrix: Float[Array, "n n"], k: int) -> Float[Array, " k"]:
    """The k largest of a symmetric matrix, twice differentiable where they are simple; a piece for compiled code."""
    values = _leading(min(k, len(matrix)), matrix)[0]
    return jnp.concatenate([values, jnp.zeros(k - len(values))])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _leading(k, matrix):
    """(values, vectors) of the k largest, and all of both as constants for the perturbation series."""
    values, vectors = eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    return values[:k], vectors[:, :k], values, vectors


@_leading.defjvp
def _leading_jvp(k, primals, tangents):
    """λ' = vᵀA'v,  v' = Σ_j v_j (v_jᵀA'v)/(λ − λ_j): k vectors instead of all n, and λ'' follows from applying it twice."""
    top, leading, values, vectors = out = _leading(k, *primals)
    values, vectors = jax.lax.stop_gradient((values, vectors))
    moved = tangents[0] @ leading
    gaps = jax.lax.stop_gradient(top) - values[:, None]
    inverse = jnp.where(gaps == 0, 0.0, 1.0 / jnp.where(gaps == 0, 1.0, gaps))
    rates = (jnp.sum(leading * moved, 0), vectors @ (inverse * (vectors.T @ moved)))
    return out, (*rates, jnp.zeros_like(values), jnp.zeros_like(vectors))
