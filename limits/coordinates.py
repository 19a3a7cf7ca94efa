"""The data as training sees it: in the coordinates where K = XᵀX/P is diagonal, in which r = rank X inputs are left of D.

Gradient descent moves input weights within the span of the inputs, and weights N(0,1) are so in every basis of it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from limits.exponents.parametrization import fan_in_multiplier
from limits.machine import in_float64
from limits.problem import Problem


class Coordinates(NamedTuple):
    """The data where K = XᵀX/P is diagonal: X = inputs · basisᵀ.  All that the training dynamics sees of it.

    basis (D, r) · inputs (P, r) · kernel (r,) · optimum (r, C) the least-squares weights W* · targets (P, C) ·
    floor the smallest possible loss.
    """

    basis: Float[Array, "D r"]
    inputs: Float[Array, "P r"]
    kernel: Float[Array, " r"]
    optimum: Float[Array, "r C"]
    targets: Float[Array, "P C"]
    floor: Float[Array, ""]

    @property
    def scaled(self) -> Float[Array, "P r"]:
        """x̂ = x/√D, as it enters the first layer of a network with weights N(0,1)."""
        return self.inputs * fan_in_multiplier(len(self.basis))


@in_float64
def coordinates(problem: Problem) -> Coordinates:
    """The data in the basis that diagonalises K; directions that no sample has are left out (they never train)."""
    P, D = problem.inputs.shape
    left, singular, basis = np.linalg.svd(problem.inputs / np.sqrt(P), full_matrices=False)
    keep = singular > singular[0] * max(P, D) * np.finfo(float).eps
    if not keep.any():
        raise ValueError("all inputs are zero")
    left, singular, basis = left[:, keep], singular[keep], basis[keep].T
    projected = left.T @ problem.targets / np.sqrt(P)
    rest = problem.targets / np.sqrt(P) - left @ projected
    return Coordinates(
        basis=jnp.asarray(basis),
        inputs=jnp.asarray(left * singular * np.sqrt(P)),
        kernel=jnp.asarray(singular**2),
        optimum=jnp.asarray(projected / singular[:, None]),
        targets=jnp.asarray(problem.targets),
        floor=jnp.asarray(0.5 * np.sum(rest**2)),
    )
