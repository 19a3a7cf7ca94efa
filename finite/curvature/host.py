"""Eigenvalues of somebody else's Hessian: of any product with vectors that runs outside of JAX, PyTorch's say.

    weights = list(network.parameters())
    gradient = torch.autograd.grad(loss, weights, create_graph=True)

    def matvec(v):                                              NumPy → NumPy, vectors of ``size``
        parts = torch.from_numpy(v).split([w.numel() for w in weights])
        along = sum((g.flatten() * part).sum() for g, part in zip(gradient, parts))
        return torch.cat([row.flatten() for row in torch.autograd.grad(along, weights, retain_graph=True)]).numpy()

    sharpness_of_matvec(matvec, size=sum(w.numel() for w in weights), top=3).values

SciPy's restarted Lanczos (ARPACK: Lehoucq, Sorensen & Yang 1998) and not ours: that is one compiled loop, and a program that
calls back into the host, and through it into JAX or a GPU, may wait for itself.  Further runs see to repeated eigenvalues.
"""

from collections.abc import Callable

import numpy as np

from finite.curvature.lanczos import BREAKDOWN, ROUNDING, Extremes

FEW = 20  # dimensions of which the matrix itself is made


def sharpness_of_matvec(
    matvec: Callable[[np.ndarray], np.ndarray], size: int, *, top: int = 1, rtol: float = 1e-3, dtype: type = np.float32,
    basis: int | None = None, max_matvecs: int = 1000, seed: int = 0,
) -> Extremes:  # fmt: skip
    """The ``top`` largest eigenvalues of the symmetric v ↦ matvec(v), v and result arrays (size,) of ``dtype``, on the host.

    basis   vectors that are kept at once, at least top + 2; default SciPy's, 20 or 2 top + 1

    ``Extremes`` with NumPy arrays: ``errors`` are residuals, with rounding, ``vectors`` (top, size), ``beyond`` is None.  An
    eigenvalue counts as often as it occurs: a run among vectors orthogonal to those found, from a random one, looks for more
    until there is none larger.  Not converged within ``max_matvecs`` products, what was found is returned as such.

    Raises ValueError, in one line, for a product of another shape or one that is not finite.
    """
    if not 1 <= top <= size:
        raise ValueError(f"top {top}: wanted 1 to {size}, the number of weights")
    products, rng = _Products(matvec, size, np.dtype(dtype)), np.random.default_rng(seed)
    if size <= max(FEW, 2 * top + 1):
        values, columns = np.linalg.eigh(np.stack([products(unit) for unit in np.eye(size, dtype=dtype)]))
        values, vectors = values[-top:], columns.T[-top:]
    else:
        values, vectors = _largest(products, top, None, rtol, basis, max_matvecs, rng)
        more = top > 1 and len(values) == top
        while more and products.count < max_matvecs:
            value, vector = _largest(products, 1, (values, vectors), rtol, basis, max_matvecs, rng)
            if more := len(value) == 1 and value[0] > values.min():
                kept = np.argsort(values)[1:]
                values, vectors = np.append(values[kept], value), np.concatenate([vectors[kept], vector])
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[order]
    rounding = ROUNDING * np.finfo(dtype).eps * np.max(np.abs(values), initial=0.0)
    errors = np.array([np.linalg.norm(products(y) - t * y) for t, y in zip(values, vectors, strict=True)]) + rounding
    missing = top - len(values)
    values, errors = (np.pad(x, (0, missing), constant_values=np.nan) for x in (values, errors))
    vectors = np.pad(vectors, ((0, missing), (0, 0)), constant_values=np.nan)
    converged = errors <= np.maximum(rtol * np.abs(values), 2 * BREAKDOWN / ROUNDING * rounding)
    return Extremes(values, errors, converged, vectors, None, np.asarray(products.count))


def _largest(products, top, known, rtol, basis, max_matvecs, rng):
    """(values, vectors) of so many largest, those of ``known`` projected out: what has converged within the products."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    values, rows = known or (np.zeros(0), np.zeros((0, products.size), products.dtype))
    below = np.max(np.abs(values), initial=0.0).astype(products.dtype)  # where those that are known are put, minus this
    out = lambda v: v - (v @ rows.T) @ rows  # noqa: E731
    operator = LinearOperator(
        (products.size, products.size), dtype=products.dtype,
        matvec=lambda v: out(products(out(v.ravel()))) - below * (v.ravel() @ rows.T) @ rows,
    )  # fmt: skip
    kept = min(basis or max(2 * top + 1, FEW), products.size)
    restarts = max((max_matvecs - products.count - top) // (kept - top), 1)
    start = out(rng.normal(size=products.size).astype(products.dtype))
    try:
        eigenvalues, columns = eigsh(operator, top, which="LA", v0=start, ncv=kept, maxiter=restarts, tol=rtol / 2)
    except ArpackNoConvergence as partial:
        eigenvalues, columns = partial.eigenvalues, partial.eigenvectors
    return eigenvalues, columns.T


class _Products:
    """The user's products, counted, their results as they should be."""

    def __init__(self, matvec, size, dtype):
        self.matvec, self.size, self.dtype, self.count = matvec, size, dtype, 0

    def __call__(self, v: np.ndarray) -> np.ndarray:
        self.count += 1
        product = np.asarray(self.matvec(np.ascontiguousarray(v, self.dtype)), self.dtype)
        if product.shape != (self.size,):
            raise ValueError(f"matvec returned an array of shape {product.shape}: wanted ({self.size},)")
        if not np.isfinite(product).all():
            raise ValueError("matvec returned values that are not finite")
        return product
