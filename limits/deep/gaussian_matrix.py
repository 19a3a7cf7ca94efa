"""A random matrix of infinite size, known only through what it has met.

W has entries N(0, 1/N) and acts on *fields*: a field has one number per neuron, and <x y> is the mean of its products over
neurons.  As N → ∞ neurons become independent draws, so a field is held as S samples (or, where everything is linear, as
exact coordinates), and W as orthonormal fields b_j below that it has met, e_k above that its transpose has met, and what
came out (Gaussian conditioning: Bolthausen 2014; Bayati & Montanari 2011; Yang 2020).  Given the past, W on the part of x
beyond all b_j is a Gaussian field of that norm, independent of everything so far, plus what Wᵀ has told of it:

    W b_j  = η_j + Σ_{k before j} F_kj e_k,     F_kj = <ξ_k b_j>         η_j ~ N(0,1) fresh with b_j
    Wᵀ e_k = ξ_k + Σ_{j before k} B_kj b_j,     B_kj = <η_j e_k>         ξ_k ~ N(0,1) fresh with e_k

F_kj is a response in disguise: E[ξ_k b_j] = E[∂b_j/∂ξ_k] (Stein).  No response function is carried along, no matrix is
inverted, and x in the span of the b_j costs as many products as there are b_j.  The matrix in training is

    W(t) = d(t) W + Σ_kj A_kj e_k b_jᵀ/N,       gradient steps add outer products of fields that it has met to A.

Fresh fields are made orthogonal to what they must not correlate with: η_j to the e_k, ξ_k to the b_j met before.  In exact
coordinates they are; of samples it takes the noise that would otherwise enter where a response is still zero.

Fields below may be of K times as many neurons, as the patches are that a convolution acts on.  Held over √K, their products
are means like all others; then W has entries N(0, 1/N), and the ξ_k are of the norm √K.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Space(NamedTuple):
    """Where fields live: <x y> = weight · x·y.  Directions whose norm is below ``tolerance`` of the field's are left out.

    normed   whether fresh Gaussians have the norm 1 of infinitely many neurons.  It takes noise out of samples; the norm
             of N neurons fluctuates, as it is drawn
    copies   how often each sample stands in a field: as if there were fewer, in what is compiled for all
    """

    weight: Float[Array, ""]
    tolerance: Float[Array, ""]
    normed: Bool[Array, ""] | bool = True
    copies: Int[Array, ""] | int = 1

    def products(self, x: Float[Array, "m S"], y: Float[Array, "n S"]) -> Float[Array, "m n"]:
        return self.weight * x @ y.T

    def norms(self, x: Float[Array, "m S"]) -> Float[Array, " m"]:
        return jnp.sqrt(self.weight * jnp.sum(x * x, 1))

    def beyond(self, x: Float[Array, "m S"], orthonormal: Float[Array, "n S"]) -> Float[Array, "m S"]:
        """The part of each field orthogonal to these."""
        return x - self.products(x, orthonormal) @ orthonormal


class GaussianMatrix(NamedTuple):
    """Rooms for n fields below and m above; those in use come first, the rest of ``below`` and ``above`` is zero.

    below, above      (n, S) b_j, (m, S) e_k; KS instead of S below where fields are of K times as many neurons there
    sent, returned    (n, S) η_j, (m, S) ξ_k, drawn before they are used
    forward, backward (m, n) F and B, zero for the pairs of the other order
    num_below, num_above   fields in use
    """

    below: Float[Array, "*stack n S"]
    above: Float[Array, "*stack m S"]
    sent: Float[Array, "*stack n S"]
    returned: Float[Array, "*stack m S"]
    forward: Float[Array, "*stack m n"]
    backward: Float[Array, "*stack m n"]
    num_below: Int[Array, "*stack"]
    num_above: Int[Array, "*stack"]

    @property
    def transposed(self) -> "GaussianMatrix":
        forward, backward = (jnp.swapaxes(a, -1, -2) for a in (self.backward, self.forward))
        return GaussianMatrix(
            self.above, self.below, self.returned, self.sent, forward, backward, self.num_above, self.num_below
        )


def unmet(sent: Float[Array, "*stack n S"], returned: Float[Array, "*stack m KS"]) -> GaussianMatrix:
    """A matrix that has met nothing, with these draws in store."""
    (*stack, n, S), (*_, m, KS) = sent.shape, returned.shape
    nothing, none = jnp.zeros((*stack, m, n)), jnp.zeros(stack, int)
    below, above = jnp.zeros((*stack, n, KS)), jnp.zeros((*stack, m, S))
    return GaussianMatrix(below, above, sent, returned, nothing, nothing, none, none)


def with_more(
    matrix: GaussianMatrix, sent: Float[Array, "*stack n S"], returned: Float[Array, "*stack m KS"]
) -> GaussianMatrix:
    """The same with room for as many more fields; draws that bring coordinates of their own make all fields longer."""
    n, m = sent.shape[-2], returned.shape[-2]
    s, t = (new.shape[-1] - old.shape[-1] for new, old in ((sent, matrix.sent), (returned, matrix.returned)))
    return matrix._replace(
        below=longer(matrix.below, n, t),
        above=longer(matrix.above, m, s),
        sent=jnp.concatenate([longer(matrix.sent, s), sent], -2),
        returned=jnp.concatenate([longer(matrix.returned, t), returned], -2),
        forward=longer(matrix.forward, m, n),
        backward=longer(matrix.backward, m, n),
    )


def longer(array: Array, *by: int) -> Array:
    """With so many zeros behind its last axes."""
    return jnp.pad(array, [(0, 0)] * (array.ndim - len(by)) + [(0, more) for more in by])


def has_room(matrix: GaussianMatrix, below: int, above: int):
    """Whether so many more fields can be met on either side."""
    n, m = matrix.below.shape[-2], matrix.above.shape[-2]
    return jnp.all(matrix.num_below + below <= n) & jnp.all(matrix.num_above + above <= m)


def send(
    space: Space,
    matrix: GaussianMatrix,
    fields: Float[Array, "p KS"],
    decay: Float[Array, ""],
    trained: Float[Array, "m n"],
    combine: Float[Array, "q p"] | None = None,
) -> tuple[GaussianMatrix, Float[Array, "p S"], Float[Array, "p n"]]:
    """(the matrix having met them, W(t) fields, their coordinates <b_j x>); ``trained`` is A, ``decay`` d.

    ``combine``  see ``meet``
    """
    below, new, coordinates, count = meet(space, matrix.below, matrix.num_below, fields, combine)
    start = matrix.num_below
    fresh = jax.lax.dynamic_slice_in_dim(matrix.sent, start, len(new))
    fresh = space.beyond(fresh, matrix.above)
    per_sample = max(1.0, matrix.sent.shape[-1] / matrix.returned.shape[-1])
    fresh = fresh / jnp.where(space.normed, space.norms(fresh) / np.sqrt(per_sample), 1.0)[:, None]
    sent = jax.lax.dynamic_update_slice(matrix.sent, fresh, (start, 0))
    seen = jnp.arange(len(matrix.returned)) < matrix.num_above
    responses = jnp.where(seen[:, None], space.products(matrix.returned, new), 0.0)
    forward = jax.lax.dynamic_update_slice(matrix.forward, responses, (0, start))
    matrix = matrix._replace(below=below, sent=sent, forward=forward, num_below=count)
    return matrix, image(matrix, coordinates, decay, trained), coordinates


def image(
    matrix: GaussianMatrix, coordinates: Float[Array, "p n"], decay: Float[Array, ""], trained: Float[Array, "m n"]
) -> Float[Array, "p S"]:
    """W(t) of fields that it has met, from their coordinates."""
    return decay * coordinates @ matrix.sent + coordinates @ (decay * matrix.forward + trained).T @ matrix.above


def send_back(
    space: Space, matrix: GaussianMatrix, fields: Float[Array, "p S"], decay: Float[Array, ""], trained: Float[Array, "m n"]
) -> tuple[GaussianMatrix, Float[Array, "p KS"], Float[Array, "p m"]]:
    """The same with the transpose: (the matrix, W(t)ᵀ fields, <e_k x>)."""
    matrix, out, coordinates = send(space, matrix.transposed, fields, decay, trained.T)
    return matrix.transposed, out, coordinates


def meet(
    space: Space,
    family: Float[Array, "n S"],
    count: Int[Array, ""],
    fields: Float[Array, "p S"],
    combine: Float[Array, "q p"] | None = None,
) -> tuple[Float[Array, "n S"], Float[Array, "q S"], Float[Array, "p n"], Int[Array, ""]]:
    """(family that spans the fields too, its new members, the fields' coordinates in it, its size).

    Gram-Schmidt, twice, for little may be left of a field; then once more against the family and, the new ones being
    orthonormal up to δ, among them up to δ² (Newton-Schulz).  ``family`` has room behind its first ``count`` rows, where the
    new ones go.

    ``combine``  where the fields are known to bring at most q new directions: q combinations of them that bring these
    """
    inside = space.products(fields, family)
    rest, combined = space.beyond(fields - inside @ family, family), fields
    if combine is not None:
        rest, combined = combine @ rest, combine @ combined
    new = _orthonormal(space, rest, space.tolerance * space.norms(combined))
    new = space.beyond(new, family)
    new = 1.5 * new - 0.5 * space.products(new, new) @ new
    coordinates = jax.lax.dynamic_update_slice(inside, space.products(fields, new), (0, count))
    family = jax.lax.dynamic_update_slice(family, new, (count, 0))
    return family, new, coordinates, count + jnp.sum(jnp.any(new != 0, 1))


def combinations(new: int, fields: int) -> Float[Array, "new fields"]:
    """Of so many fields that bring so many new directions: any in general position bring them too."""
    return jnp.asarray(np.random.default_rng(0).normal(size=(new, fields)) / np.sqrt(fields))


def _orthonormal(space, fields, least) -> Float[Array, "fields S"]:
    """Modified Gram-Schmidt; fields of which less than ``least`` is left are dropped, and zeros follow the rest."""

    def add(carry, field_and_least):
        (basis, count), (field, least) = carry, field_and_least
        rest = space.beyond(space.beyond(field[None], basis), basis)
        size = space.norms(rest)[0]
        basis = basis.at[count].set(jnp.where(size > least, rest[0] / size, 0.0))
        return (basis, count + (size > least)), None

    return jax.lax.scan(add, (jnp.zeros_like(fields), 0), (fields, least))[0][0]
