"""The density of a matrix's eigenvalues, from products with it: stochastic Lanczos quadrature.

    (1/n) Σ_i f(λ_i)  =  E Σ_j w_j f(θ_j),       T_m = S Θ Sᵀ of Lanczos from z/|z|,   w_j = S_0j²,   z random signs

The sum over j is the Gauss quadrature of zᵀf(A)z/n with m nodes: exact for polynomials up to degree 2m − 1, so that only
the spread of the probes z is left (Ubaru, Chen & Saad 2017; of networks Ghorbani, Krishnan & Xiao 2019).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.curvature import lanczos
from finite.curvature.operators import Matvec, signs_like
from finite.networks import Params
from limits.machine import eigh


class Density(NamedTuple):
    """Of every probe a measure of mass 1; their mean estimates the one that has 1/n at each of the n eigenvalues."""

    nodes: Float[Array, "probes m"]
    weights: Float[Array, "probes m"]

    def mean(self, function: Callable[[Array], Array]) -> tuple[Array, Array]:
        """(1/n) Σ_i f(λ_i) and its standard error over the probes; ``function`` takes an array and may add axes in front."""
        of_probes = jnp.sum(self.weights * function(self.nodes), axis=-1)
        return jnp.mean(of_probes, axis=-1), jnp.std(of_probes, axis=-1, ddof=1) / jnp.sqrt(of_probes.shape[-1])

    def cumulative(self, at: Float[Array, " k"]) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """The part of the eigenvalues that is at most ``at``, and its standard error."""
        return self.mean(lambda nodes: nodes <= at[:, None, None])

    def smoothed(self, at: Float[Array, " k"], width: float) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """The density in the window of a Gaussian of standard deviation ``width``, and its standard error.

        Wider than nodes are apart it is that of the eigenvalues in the same window.
        """
        return self.mean(lambda nodes: jax.scipy.stats.norm.pdf(at[:, None, None], nodes, width))


def check(probes: int, steps: int) -> None:
    """Raises ValueError for fewer than two probes, whose spread nobody knows, and for no steps."""
    if probes < 2:
        raise ValueError(f"{probes} probes: a standard error needs two")
    if steps < 1:
        raise ValueError(f"{steps} steps: a quadrature has at least one node")


def spectral_density(matvec: Matvec, like: Params, key: Array, *, probes: int = 8, steps: int = 64) -> Density:
    """From so many random vectors of the structure of ``like``, with ``steps`` products each; one vector after the other.

    A matrix of fewer than ``steps`` dimensions has as many nodes.  Memory: ``steps`` vectors.  Not finite where the matrix
    is not.  Raises ValueError as ``check`` does.
    """
    check(probes, steps)

    def quadrature(key):
        alpha, beta = lanczos.tridiagonal(matvec, signs_like(key, like), steps)
        nodes, vectors = eigh(jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))
        return Density(nodes, vectors[0] ** 2)

    return jax.lax.map(quadrature, jax.random.split(key, probes))
