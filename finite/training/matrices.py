"""What optimisers that take a matrix as a whole do to it: Muon, Shampoo, SOAP, and the norms of LAMB and Adafactor.

``leaf_by_leaf`` hands them every matrix for itself, of stacks of layers too; weights are (in, out), as in h = x W.  Gradients
are in units of their norm (``Factors.epsilon``), of biases and gains, on which Muon, Shampoo and SOAP are Adam, of an entry.

Shampoo (Gupta et al. 2018) and SOAP (Vyas et al. 2024), which optax has not: with means over the steps as Adam's, without
their bias, L of GGᵀ and R of GᵀG, λ and μ their eigenvalues, U and V their eigenvectors, decomposed at every step,

    W ← W − η U ((Uᵀ m̂ V)/p) Vᵀ,    p_ij = ((λ_i + ε)(μ_j + ε))^(1/4)  Shampoo,    √(v̂_ij + ε)  SOAP,  v̂ of (UᵀGV)²

so that P of ``limits.problem`` is diagonal in these bases.  In SOAP's v̂ is of the bases that there were at each step, and m̂ of
those that are: along a direction that is new m̂/√v̂ may be several times what Adam's ever is (seen: 6 at N = 64, 21 at 256), so
that networks of other seeds scatter, and exponents after a few steps with them: after one there are no other directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax import contrib

from limits.exponents.algebra import MUON_SCALES, VECTORS
from limits.machine import eigh

Choice = Callable[[str], optax.GradientTransformation]  # of a role


class Leaves(NamedTuple):
    """The state of every leaf's transformation, with leading axes over the matrices of a stack."""

    states: tuple[Any, ...]


def leaf_by_leaf(choose: Choice) -> optax.GradientTransformation:
    """The transformation that is chosen for its role, of every matrix, bias and gain."""

    def init(params):
        return Leaves(tuple(stacked(role, leaf, choose(role).init)(leaf) for role, leaf in by_leaf(params)))

    def update(updates, state, params):
        many = zip(by_leaf(updates), state.states, jax.tree.leaves(params), strict=True)
        pairs = [stacked(role, leaf, choose(role).update)(leaf, of_leaf, weights) for (role, leaf), of_leaf, weights in many]
        updates, states = zip(*pairs, strict=True)
        return jax.tree.unflatten(jax.tree.structure(params), updates), Leaves(states)

    return optax.GradientTransformation(init, update)


def by_leaf(params: Any) -> list[tuple[str, Array]]:
    """(role, leaf) of each."""
    return [(path[0].key, leaf) for path, leaf in jax.tree.leaves_with_path(params)]


def stacked(role: str, leaf: Array, function: Callable) -> Callable:
    """The function of one matrix, or vector, of a stack of them."""
    for _ in range(leaf.ndim - (1 if role in VECTORS else 2)):
        function = jax.vmap(function)
    return function


def muon(scale: str, momentum: Array, nesterov: bool, epsilon: Array) -> optax.GradientTransformation:
    """``optax.contrib.muon`` with any of the scales in front."""
    orthogonal = contrib.scale_by_muon(beta=momentum, eps=epsilon, nesterov=nesterov,
                                       weight_dimension_numbers=contrib.MuonDimensionNumbers())  # fmt: skip
    return optax.chain(orthogonal, optax.stateless(lambda update, _: MUON_SCALES[scale](*update.shape[::-1]) * update))


class Sides(NamedTuple):
    """Of Shampoo and SOAP: means, with their bias."""

    count: Array
    mean: Float[Array, "m n"]
    left: Float[Array, "m m"]
    right: Float[Array, "n n"]
    squares: Float[Array, "m n"]  # of SOAP, in its bases


class Bases(NamedTuple):
    """U, V and p of the module."""

    left: Float[Array, "m m"]
    right: Float[Array, "n n"]
    p: Float[Array, "m n"]

    def into(self, matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
        return self.left.mT @ matrix @ self.right

    def over(self, matrix: Float[Array, "m n"], power: float = 1.0) -> Float[Array, "m n"]:
        """P^(−power) times the matrix."""
        return self.left @ (self.into(matrix) / self.p**power) @ self.right.mT


def shampoo(betas: tuple[Array, Array], epsilon: Array, *, adam: bool = False) -> optax.GradientTransformation:
    """Or SOAP, which has Adam in these bases."""

    def init(weights):
        m, n = weights.shape
        return Sides(jnp.zeros((), int), *(jnp.zeros(shape, weights.dtype) for shape in ((m, n), (m, m), (n, n), (m, n))))

    def update(gradient, state, _):
        (b1, b2), count = betas, state.count + 1
        new = gradient @ gradient.T, gradient.T @ gradient
        left, right = (b2 * old + (1 - b2) * of_step for old, of_step in zip(state[2:4], new, strict=True))
        state = Sides(count, b1 * state.mean + (1 - b1) * gradient, left, right, state.squares)
        eigenbases = bases(state, b2, epsilon)
        if adam:
            state = state._replace(squares=b2 * state.squares + (1 - b2) * eigenbases.into(gradient) ** 2)
            eigenbases = eigenbases._replace(p=root_of_squares(state, b2, epsilon))
        return eigenbases.over(state.mean / (1 - b1**count)), state

    return optax.GradientTransformation(init, update)


def bases(state: Sides, beta: Array, epsilon: Array, *, adam: bool = False) -> Bases:
    """Of stacks of matrices, too."""
    (left, U), (right, V) = (eigh(side / _unbiased(state, beta)) for side in (state.left, state.right))
    p = ((jnp.maximum(left, 0)[..., :, None] + epsilon) * (jnp.maximum(right, 0)[..., None, :] + epsilon)) ** 0.25
    return Bases(U, V, root_of_squares(state, beta, epsilon) if adam else p)


def root_of_squares(state: Sides, beta: Array, epsilon: Array) -> Float[Array, "m n"]:
    return jnp.sqrt(state.squares / _unbiased(state, beta) + epsilon)


def _unbiased(state, beta):
    return (1 - beta**state.count)[..., None, None]
