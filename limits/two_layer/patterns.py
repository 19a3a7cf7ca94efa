"""The edge of the bulk of a two-layer network with a kink at N = ∞: a maximum over the samples that a neuron can be active on.

A neuron's block of the residual part (``limits.two_layer.neuron_blocks``) is off-diagonal, so its eigenvalues are ±γ0 times the
singular values of

    U(s) = Σ_p (b + (a − b) s_p) x̂_p r_pᵀ    r × C,        s_p = 1[e·x̂_p > 0],        r_p = ∂L/∂f(x_p)

a the slope of φ above 0, b below it (ReLU: 1 and 0), and the edge of the law over neurons is ±γ0 max σ_1(U(s)) over the
patterns s that neurons have.  At step 0 the weights e are
Gaussian: every cell of the arrangement of the hyperplanes x_p⊥ has neurons in it, of however small a mass.  (Not every s is
a cell, once P > r: the maximum is one over a subset of the vertices Σ_p s_p x̂_p r_pᵀ of a cube's shadow.)  Later neurons have
moved, and some cells may have none: then the maximum over cells is a bound.

P hyperplanes in general position in r dimensions have 2 Σ_{i<r} C(P − 1, i) cells (Cover 1965).
"""

from itertools import chain, combinations
from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import nnls

AFFORDABLE = 2**19  # candidates of cells, a quarter of them times C² for C outputs: a second, and 0.2 GB
BLOCK = 1024
CHECKS = 1024  # candidates that are tried for being cells before a bound must do
RELU = 0.0, 1.0  # φ' below and above 0
MARGIN = 1e-9  # of unit normals to a unit vector within their cell


class Edge(NamedTuple):
    """max σ_1(U(s)) over cells: between ``attained``, that of one of them, and ``bound``."""

    attained: float
    bound: float


def candidates(inputs: Float[np.ndarray, "P r"], num_outputs: int) -> Bool[np.ndarray, "m P"] | None:
    """Of every cell its pattern or that of −e, and some that are no cells; None where there are too many.

    ``inputs`` in coordinates of their span.  Samples on one line through the origin share a hyperplane.
    """
    normals, group, same = _hyperplanes(inputs)
    P, r = normals.shape
    of_all = 2 * r >= P  # then at least half of all sign patterns are cells
    count = 2 ** max(P - 1, 0) if of_all else sum(comb(P, i) for i in range(r))
    if count * max(4, min(r, num_outputs) ** 2) > 4 * AFFORDABLE:
        return None
    signs = _all_signs(P) if of_all else _lowest_vertices(normals)
    return (signs[:, group] == same) & inputs.any(1)


def is_cell(inputs: Float[np.ndarray, "P r"], pattern: Bool[np.ndarray, " P"]) -> bool:
    """Whether some e has e·x_p > 0 where the pattern says so and < 0 elsewhere, zero inputs apart.

    Of the nonnegative λ that bring Σ λ_p ±x_p next to 0 at Σ λ_p = 1 the rest ρ is such an e, or 0 (Gordan's theorem).
    """
    rows = inputs[inputs.any(1)] * np.where(pattern, 1.0, -1.0)[inputs.any(1), None]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    system, goal = np.vstack([rows.T, np.ones(len(rows))]), np.append(np.zeros(rows.shape[1]), 1.0)
    inside = (system @ nnls(system, goal)[0] - goal)[:-1]
    return bool(np.all(rows @ inside > MARGIN * np.linalg.norm(inside)))


def edge(
    inputs: Float[np.ndarray, "P r"],
    error: Float[np.ndarray, "P C"],
    patterns: Bool[np.ndarray, "m P"] | None,
    at_least: float = 0.0,
    slopes: tuple[float, float] = RELU,
) -> Edge:
    """The largest σ_1 over cells, one of which is known to have ``at_least`` so much; without their candidates a bound."""
    if patterns is None:
        return Edge(at_least, max(at_least, bound_of_the_cube(inputs, error, slopes)))
    size, best, checks = _frobenius(inputs, error, patterns, slopes), at_least, 0
    above = np.flatnonzero(size > at_least)
    order = above[np.argsort(-size[above])]
    for block in np.split(order, range(BLOCK, len(order), BLOCK)) if len(order) else ():
        if size[block[0]] <= best:
            break
        value = _tallest(inputs, error, patterns, block, slopes)
        for index in np.argsort(-value):
            if value[index] <= best:
                break
            if checks == CHECKS:
                return Edge(best, float(size[block[0]]))
            checks += 1
            if is_cell(inputs, patterns[block[index] % len(patterns)]):
                best = float(value[index])
    return Edge(best, best)


def bound_of_the_cube(
    inputs: Float[np.ndarray, "P r"], error: Float[np.ndarray, "P C"], slopes: tuple[float, float] = RELU
) -> float:
    """At least σ_1(U(s)) of any s at all: |2s − 1| is known, and so is the largest eigenvalue of x̂x̂ᵀ ∘ rrᵀ."""
    below, above = slopes
    overlap = _overlap(inputs, error)
    scales = np.sqrt(np.diag(overlap))
    unit = overlap / np.where(scales > 0, scales, 1.0) / np.where(scales > 0, scales, 1.0)[:, None]
    spread = min(len(overlap) * np.linalg.eigvalsh(overlap)[-1], np.sum(scales**2) * np.linalg.eigvalsh(unit)[-1])
    middle, half = abs(above + below) * np.sqrt(max(overlap.sum(), 0.0)), abs(above - below) * np.sqrt(max(spread, 0.0))
    return float(middle + half) / 2


def _hyperplanes(inputs):
    """(normals of the different ones, which one is each sample's, whether its side s = 1 is the normal's)"""
    length = np.linalg.norm(inputs, axis=1, keepdims=True)
    unit = inputs / np.where(length > 0, length, 1.0)
    leading = np.take_along_axis(unit, np.argmax(np.abs(unit) > MARGIN, 1)[:, None], 1)[:, 0]
    same = leading >= 0
    upright = np.where(same[:, None], unit, -unit)
    _, first, group = np.unique(np.round(upright / MARGIN), axis=0, return_index=True, return_inverse=True)
    group, kept = group.ravel(), inputs[first].any(1)
    return upright[first[kept]], np.where(kept, np.cumsum(kept) - 1, 0)[group], same


def _all_signs(P):
    return (np.arange(2 ** max(P - 1, 0))[:, None] >> np.arange(P)) & 1 == 1


def _lowest_vertices(normals):
    """A pattern for every i < r hyperplanes: of the cell above their vertex.

    In the slice h·e = 1 of i + 1 dimensions they meet in one vertex, and it is the lowest, in direction ``up``, of one
    cell.  Cells without a lowest vertex go on for ever down, where a slice of fewer dimensions meets them.  Turned and
    shifted at random, so that nothing is parallel; cells of no width that the shift makes are no cells of the inputs.
    """
    rng = np.random.default_rng(0)
    r = normals.shape[1]
    turned = (normals + MARGIN * rng.normal(size=normals.shape)) @ np.linalg.qr(rng.normal(size=(r, r)))[0]
    return np.concatenate([_above(turned[:, : i + 1], rng.normal(size=i + 1)) for i in range(r)])


def _above(normals, up):
    P, i = len(normals), normals.shape[1] - 1
    chosen = np.fromiter(chain.from_iterable(combinations(range(P), i)), int, i * comb(P, i)).reshape(comb(P, i), i)
    height = np.broadcast_to(np.eye(i + 1)[-1], (len(chosen), 1, i + 1))
    duals = np.linalg.inv(np.concatenate([normals[chosen], height], 1))
    patterns = duals[:, :, -1] @ normals.T > 0
    np.put_along_axis(patterns, chosen, (up @ duals)[:, :i] > 0, 1)
    return patterns


def _overlap(inputs, error):
    return (inputs @ inputs.T) * (error @ error.T)


def _frobenius(inputs, error, patterns, slopes):
    """|U| of the m patterns and then of their complements."""
    values, vectors = np.linalg.eigh(_overlap(inputs, error))  # as vectors of so many entries that are not zero
    kept = values > MARGIN**2 * values[-1]
    apart = vectors[:, kept] * np.sqrt(values[kept])
    (below, above), active, whole = slopes, patterns @ apart, apart.sum(0)
    of_each, of_complement = (below * (whole - on) + above * on for on in (active, whole - active))
    return np.sqrt(np.concatenate([np.einsum("ma,ma->m", u, u) for u in (of_each, of_complement)])) * (1 + MARGIN)


def _tallest(inputs, error, patterns, block, slopes):
    """σ_1(U) of these, counted as in ``_frobenius``."""
    s = patterns[block % len(patterns)] ^ (block >= len(patterns))[:, None]
    products = np.einsum("pa,pc->pac", inputs, error).reshape(len(inputs), -1)
    U = (np.where(s, slopes[1], slopes[0]) @ products).reshape(len(s), inputs.shape[1], -1)
    gram = U.swapaxes(1, 2) @ U if U.shape[2] <= U.shape[1] else U @ U.swapaxes(1, 2)
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[:, -1], 0.0))
