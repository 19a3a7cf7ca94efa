"""Hessian, Gauss-Newton and residual spectra of the two-layer linear network from its order parameters.

    W = effective weights (f = XW),  G = K(W − W*) = XᵀXW/P − XᵀY/P,  S = ZZᵀ/N the Gram matrix of Z = [E ; Vᵀ],
    A(G) = [[0, G], [Gᵀ, 0]],  c = γ²/(γ√(ND)) the strength of the residual part

A tangent dZ changes W by dW = dE V + E dV; the rescaled Hessian maps (in units where ZZᵀ = S)

    dZ → A(K dW) Z / D   +   c A(G) dZ            Gauss-Newton part  +  residual part

so a network enters only through S: *any* factor F with FFᵀ = S has the same spectrum, but for the pure residual part
outside the row space of Z.  With n = D + C and n' = min(N, n) columns of F, the spectrum at width N is that of the small
"compressed network" F, joined by ±cσ_i(G), each N − n' times, and zeros.  Rotating F so that its readout rows fill only
their first C columns, and the inputs so that G fills only its first C rows, leaves of the compressed network's tangents
2Cn' + (D−C)C entries that the Hessian does not send to zero: the matrix diagonalised here.  (Noci et al. 2024, App.; the
Gram closure is exact at every width.)  All eigenvalues are rescaled by γ².

The functions of one state are pieces for compiled code: call them within ``limits.machine.computing("float64")``.
"""

from functools import partial
from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from limits.machine import eigh, eigvalsh, in_float64, inv
from limits.spectra import Spectrum, largest, leading_eigenvalues, spectrum
from limits.two_layer import block_lanczos

DENSE_LIMIT = 1024  # above this dimension the top of a spectrum is found by block Lanczos instead of a full decomposition


@jax.custom_jvp
def _inverse(matrix):
    return inv(matrix)


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    inverse = _inverse(*primals)
    return inverse, -inverse @ tangents[0] @ inverse


class OrderParameters(NamedTuple):
    """What is left of a two-layer linear network when its width is forgotten; inputs in the basis where K is diagonal.

    gram (n, n) S · weights (r, C) W · gradient (r, C) G · kernel (r,) the nonzero eigenvalues of K = XᵀX/P ·
    residual_scale c · num_inputs D · loss.  n = r + C, r the rank of the inputs.
    """

    gram: Float[Array, "n n"]
    weights: Float[Array, "r C"]
    gradient: Float[Array, "r C"]
    kernel: Float[Array, " r"]
    residual_scale: Float[Array, ""]
    num_inputs: Float[Array, ""]
    loss: Float[Array, ""]


def measure(state: OrderParameters, *, columns: int, spare: int, top_k: int) -> dict[str, Float[Array, "..."]]:
    """Every observable of the registry at one time.

    ``columns`` is n' = min(N, n); ``spare`` is N − n' or anything above top_k in its stead (N = ∞).  Values of large
    problems that ``block_lanczos`` could not find are NaN.
    """
    ntk = gauss_newton_eigenvalues(state, top_k)
    edge = residual_edge(state)
    top, bottom = _hessian_extremes(state, columns, spare, top_k)
    return {
        "loss": state.loss,
        "hessian_eigenvalues": top,
        "hessian_min": bottom,
        "gauss_newton_eigenvalues": ntk,
        "residual_eigenvalues": jnp.stack([edge, -edge]),
        "ntk_eigenvalues": ntk,
        "hessian_trace": trace(state),
        "directional_sharpness": directional_sharpness(state),
    }


def residual_edge(state: OrderParameters) -> Float[Array, ""]:
    """ρ = c σ_1(G): the residual part's spectrum is ±cσ_i(G) and zeros, with edges ±ρ."""
    return state.residual_scale * _spectral_norm(state.gradient)


def trace(state: OrderParameters) -> Float[Array, ""]:
    """γ² tr H = γ² tr G_GN = (tr K · tr S_VV + C · tr K S_EE)/D: the residual part has no trace."""
    r, C = state.gradient.shape
    S_EE, _, S_VV = _blocks(state.gram, r)
    return (jnp.sum(state.kernel) * jnp.trace(S_VV) + C * jnp.sum(state.kernel * jnp.diag(S_EE))) / state.num_inputs


def directional_sharpness(state: OrderParameters) -> Float[Array, ""]:
    """γ² gᵀHg/|g|² along the gradient g = A(G)Z (up to a factor); not a number where G = 0."""
    r, _ = state.gradient.shape
    S_EE, S_EV, S_VV = _blocks(state.gram, r)
    G = state.gradient / jax.lax.stop_gradient(jnp.max(jnp.abs(state.gradient)))  # or the squares may underflow
    dW = G @ S_VV + S_EE @ G
    norm = jnp.sum(G * dW)  # |A(G)Z|²/N = tr A(G) S A(G)
    gauss_newton = jnp.sum(state.kernel[:, None] * dW**2) / state.num_inputs
    residual = 2 * state.residual_scale * jnp.sum((G @ G.T @ state.gradient) * S_EV)  # c tr A(G)³ S
    return (gauss_newton + residual) / norm


def gauss_newton_eigenvalues(state: OrderParameters, top_k: int) -> Float[Array, " k"]:
    """Top eigenvalues of γ²G_GN, equal to those of γ²Θ/P: C blocks (ν_j K + K^{1/2} S_EE K^{1/2})/D, ν_j those of S_VV.

    A block's i-th eigenvalue grows with ν_j: the k largest of all are among those of the k blocks of largest ν_j.
    """
    r, _ = state.gradient.shape
    S_EE, _, S_VV = _blocks(state.gram, r)
    root = jnp.sqrt(state.kernel)
    fixed = root[:, None] * S_EE * root

    def block(before, nu):  # at step 0 all are equal
        values = lambda: eigvalsh(nu * jnp.diag(state.kernel) + fixed)[-top_k:]  # noqa: E731
        after = jax.lax.cond(nu == before[0], lambda: before[1], values)
        return (nu, after), after

    none = jnp.full(min(r, top_k), jnp.nan)
    _, values = jax.lax.scan(block, (jnp.nan, none), eigh(S_VV)[0][-top_k:])
    return largest(values.ravel() / state.num_inputs, top_k)


def secular_matrix(lam: Float[Array, ""], state: OrderParameters) -> Float[Array, "rC rC"]:
    """M(λ) = J (λ − R)^{-1} Jᵀ/P in the basis where K is diagonal, symmetric and decreasing for λ > ρ.

    The k-th largest eigenvalue of the Hessian, if above ρ, is the λ at which the k-th largest eigenvalue of M(λ) is 1.
    It is smooth in every order parameter, which makes it the way to differentiate an eigenvalue.
    """
    return jax.vmap(partial(secular_product, lam, state))(jnp.eye(state.gradient.size))


def secular_product(lam: Float[Array, ""], state: OrderParameters, vector: Float[Array, " rC"]) -> Float[Array, " rC"]:
    """M(λ) v in O(r²C + rC²): entry rC + c of v belongs to input r and output c."""
    r, C = state.gradient.shape
    S_EE, S_EV, S_VV = _blocks(state.gram, r)
    cG = state.residual_scale * state.gradient
    inner = _inverse(lam**2 * jnp.eye(C) - cG.T @ cG)  # the blocks of (λ − cA(G))^{-1}: λ·inner, mixed, over_E
    mixed = cG @ inner
    root = jnp.sqrt(state.kernel)[:, None]
    u = root * vector.reshape(r, C)
    over_E = (u + mixed @ (cG.T @ u)) / lam
    product = over_E @ S_VV + lam * (S_EE @ u) @ inner + mixed @ (u.T @ S_EV) + S_EV @ (u.T @ mixed)
    return (root * product).ravel() / state.num_inputs


@in_float64
def hessian_spectrum(state: OrderParameters, width: float) -> Spectrum:
    """The whole spectrum of the rescaled Hessian at width N (``math.inf`` allowed): outliers, bulk ±cσ_i(G), zeros.

    Equal values are listed once per source, not merged.
    """
    r, C = state.gradient.shape
    columns = int(min(width, r + C))
    outliers, bulk = (np.asarray(values) for values in _closed_spectrum(state, columns))
    spare, size = width - columns, len(outliers)
    zeros = width if width == inf else width * (float(state.num_inputs) + C) - size - 2 * len(bulk) * spare
    counts = np.concatenate([np.ones(size), np.full(2 * len(bulk), float(spare))])
    return spectrum(np.concatenate([outliers, bulk, -bulk]), counts, zeros)


@partial(jax.jit, static_argnames="columns")
def _closed_spectrum(state, columns):
    """(eigenvalues within the compressed network, cσ_i(G))."""
    closed, size = _closed_hessian(state, columns)
    bulk = state.residual_scale * jnp.linalg.svd(state.gradient, compute_uv=False)
    return eigh(jax.vmap(closed)(jnp.eye(size)))[0], bulk


class Expansion(NamedTuple):
    """About one state: for each rank i an eigenvalue and the matrix of which it, or 1, is the i-th eigenvalue.

    known (k,) the eigenvalues, as measured · vectors (k, m) the i-th of each matrix · inverses (k, m, m) its (μ_i − A)⁺ ·
    slopes (k,) ∂μ_i/∂λ of M(λ) · outlier (k,) whether there is a root.  m = rC.
    """

    known: Float[Array, " k"]
    vectors: Float[Array, "k m"]
    inverses: Float[Array, "k m m"]
    slopes: Float[Array, " k"]
    outlier: Bool[Array, " k"]


def expansions(state: OrderParameters, known: dict[str, Float[Array, "..."]]) -> tuple[Expansion, Expansion]:
    """Of the Hessian's eigenvalues, roots of the secular equation, and of the Gauss-Newton matrix's, at N = ∞."""
    values, edge, m = known["hessian_eigenvalues"], residual_edge(state), state.gradient.size
    ranks = jnp.minimum(jnp.arange(len(values)), m - 1)
    outlier = values > edge * (1 + 1e-9)
    values = jnp.where(outlier, values, 2 * edge + 1.0)
    of_hessian = jax.lax.map(lambda pair: _resolvent(secular_matrix(pair[0], state), pair[1]), (values, ranks))

    def slope(lam, vector):
        return jax.jvp(lambda lam: vector @ secular_product(lam, state, vector), (lam,), (jnp.ones(()),))[1]

    matrix = jax.vmap(partial(gauss_newton_product, state))(jnp.eye(m))
    there = jnp.arange(len(values)) < m
    of_ntk = jax.lax.map(lambda i: _resolvent(matrix, i), ranks)
    slopes = jax.vmap(slope)(values, of_hessian[0])
    return Expansion(values, *of_hessian, slopes, outlier), Expansion(known["ntk_eigenvalues"], *of_ntk, there * 1.0, there)


def _resolvent(matrix, i):
    """(v, (μ − A)⁺) of the i-th largest eigenvalue."""
    values, vectors = (array[..., ::-1] for array in eigh(matrix))
    gaps = values[i] - values
    inverse = jnp.where((gaps == 0) | (jnp.arange(len(gaps)) == i), 0.0, 1.0 / jnp.where(gaps == 0, 1.0, gaps))
    return vectors[:, i], (vectors * inverse) @ vectors.T


def differentiable(
    state: OrderParameters, expanded: tuple[Expansion, Expansion], known: dict[str, Float[Array, "..."]]
) -> dict[str, Float[Array, "..."]]:
    """The observables at N = ∞ as smooth functions of the order parameters, right to second order about those ``expanded``.

    ``known`` are their values, from ``measure``.  With v an eigenvector of A and w = (A + dA)v − μv,

        μ(A + dA) = μ + v·w + w·(μ − A)⁺w + O(dA³),

    which takes products with v, and no derivative of a matrix.  The eigenvalues of the Hessian above ρ are roots of the
    secular equation: two chord steps reproduce their first two derivatives.  Those at ρ are the bulk's edge.
    """
    hessian, gauss_newton = expanded
    edge = residual_edge(state)
    ntk = jax.vmap(partial(_gauss_newton_eigenvalue, state))(gauss_newton)
    roots = jnp.where(hessian.outlier, jax.vmap(partial(_hessian_root, state))(hessian), edge)
    return known | {
        "loss": state.loss,
        "hessian_eigenvalues": roots,
        "hessian_min": -edge,
        "gauss_newton_eigenvalues": ntk,
        "residual_eigenvalues": jnp.stack([edge, -edge]),
        "ntk_eigenvalues": ntk,
        "hessian_trace": trace(state),
        "directional_sharpness": directional_sharpness(state),
    }


def _gauss_newton_eigenvalue(state, at):
    moved = gauss_newton_product(state, at.vectors) - at.known * at.vectors
    return at.slopes * (at.known + at.vectors @ moved + moved @ (at.inverses @ moved))


def _hessian_root(state, at):
    def chord(lam, _):
        moved = secular_product(lam, state, at.vectors) - at.vectors
        return lam - (at.vectors @ moved + moved @ (at.inverses @ moved)) / at.slopes, None

    return jax.lax.scan(chord, at.known, length=2)[0]


def gauss_newton_product(state: OrderParameters, vector: Float[Array, " rC"]) -> Float[Array, " rC"]:
    """G_GN on effective weights, symmetrised: K^{1/2}(1 ⊗ S_VV + S_EE ⊗ 1)K^{1/2}/D, which is λM(λ) without a residual part."""
    return secular_product(jnp.ones(()), state._replace(gradient=jnp.zeros_like(state.gradient)), vector)


def _blocks(gram, r):
    return gram[:r, :r], gram[:r, r:], gram[r:, r:]


def _spectral_norm(matrix):
    r, C = matrix.shape
    if min(r, C) == 1:
        return jnp.linalg.norm(matrix)
    return jnp.sqrt(leading_eigenvalues(matrix.T @ matrix if r > C else matrix @ matrix.T, 1)[0])


def _hessian_extremes(state, columns, spare, top_k):
    """(top_k largest, smallest) eigenvalues of the rescaled Hessian."""
    closed, size = _closed_hessian(state, columns)
    if size <= DENSE_LIMIT:
        outliers = eigh(jax.vmap(closed)(jnp.eye(size)))[0]
        lowest = outliers[0]
    else:
        edge = residual_edge(state)  # no eigenvalue is below −ρ: the Gauss-Newton part has no negative ones
        outliers = block_lanczos.largest(closed, size, top_k, -edge)
        lowest = -edge if spare else -block_lanczos.largest(lambda v: -closed(v), size, 1, -outliers[0], edge)[0]
    bulk = jnp.repeat(state.residual_scale * jnp.linalg.svd(state.gradient, compute_uv=False), min(spare, top_k))
    return _with_bulk(outliers, bulk, top_k), jnp.minimum(lowest, jnp.min(-bulk, initial=jnp.inf))


def _with_bulk(outliers, bulk, top_k):
    """The largest of both; below the first outlier that is not known there may be others, hence no numbers."""
    unknown = jnp.isnan(outliers)
    least = jnp.min(jnp.where(jnp.cumsum(unknown) == 0, outliers, jnp.inf), initial=jnp.inf)
    merged = largest(jnp.concatenate([jnp.where(unknown, -jnp.inf, outliers), bulk]), top_k)
    return jnp.where((merged >= least) | ~jnp.any(unknown), merged, jnp.nan)


def _closed_hessian(state, columns):
    """The Hessian on the entries of the rotated compressed network that it does not annihilate: (matvec, dimension).

    Inputs and columns are such that F_E is diagonal, and only K takes a product of r²C; from there Householder vectors turn.
    """
    r, C = state.gradient.shape
    rows, cols = min(r, C), min(C, columns)  # what G, and what the readout, can fill
    U, stretch, F_V = _diagonal_factor(state.gram, r, columns)
    K, G = U.T @ (state.kernel[:, None] * U) / state.num_inputs, U.T @ state.gradient
    turn, back = _turn(G)
    turn_columns, back_columns = _turn(F_V)
    cG, F_V = state.residual_scale * back(G)[:rows], back_columns(F_V)[:cols].T
    sizes = (C * columns, rows * columns, (r - rows) * cols)

    def times_F_E(x, length):
        return jnp.pad(stretch[:, None] * x[: len(stretch)], ((0, length - len(stretch)), (0, 0)))

    def matvec(vector):
        v, upper, lower = jnp.split(vector, (sizes[0], sizes[0] + sizes[1]))
        dV, upper, lower = v.reshape(C, columns), upper.reshape(rows, columns), lower.reshape(r - rows, cols)
        of_inputs = jnp.concatenate([upper[:, :cols], lower]) @ F_V.T
        M_in = K @ (times_F_E(turn_columns(dV.T), r) + turn(of_inputs))
        M = back(M_in) @ F_V
        out_V = back_columns(times_F_E(M_in, columns)).T + cG.T @ upper
        out_upper = cG @ dV + jnp.pad(M[:rows], ((0, 0), (0, columns - cols)))
        return jnp.concatenate([out_V.ravel(), out_upper.ravel(), M[rows:].ravel()])

    return matvec, sum(sizes)


def _turn(matrix):
    """Products with Q and with Qᵀ of the complete decomposition QR of a matrix (m, n), in O(mn) each column.

    Q = 1 − V T Vᵀ, V the Householder vectors, T⁻¹ the upper triangle of VᵀV with half its diagonal (Puglisi, SIAM J. Sci.
    Stat. Comput. 13 (1992) 723).
    """
    number = min(matrix.shape)
    V = jnp.tril(jnp.linalg.qr(matrix, mode="raw")[0].T[:, :number], -1) + jnp.eye(len(matrix), number)
    overlaps = V.T @ V
    T = jax.scipy.linalg.solve_triangular(jnp.triu(overlaps) - jnp.diag(jnp.diag(overlaps)) / 2, jnp.eye(number))
    return (lambda x: x - V @ (T @ (V.T @ x))), (lambda x: x - V @ (T.T @ (V.T @ x)))


def _diagonal_factor(gram, r, columns):
    """(U, σ, F_Vᵀ) of a factor FFᵀ = S with ``columns`` columns (S has no larger rank): F_E = U diag(σ)."""
    if columns < len(gram):
        values, vectors = eigh(gram)
        F = vectors[:, -columns:] * jnp.sqrt(jnp.maximum(values[-columns:], 0.0))
        U, stretch, across = jnp.linalg.svd(F[:r])
        return U, stretch, across @ F[r:].T
    S_EE, S_EV, S_VV = _blocks(gram, r)
    U, stretch = _root(S_EE)
    seen = jnp.where(stretch > jnp.finfo(float).eps * stretch[-1], stretch, jnp.inf)
    of_E = U.T @ S_EV / seen[:, None]
    vectors, root = _root(S_VV - of_E.T @ of_E)
    return U, stretch, jnp.concatenate([of_E, root[:, None] * vectors.T])


def _root(matrix):
    """(U, σ ascending) of U σ² Uᵀ, positive semi-definite."""
    values, vectors = eigh(matrix)
    return vectors, jnp.sqrt(jnp.maximum(values, 0.0))
