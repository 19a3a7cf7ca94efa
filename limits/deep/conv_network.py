"""A convolutional network of infinite width in training: fields per sample and place, one step, and its derivative.

    h⁰ = E ∗ x/√channels  (stride 2),     h^l = [s] + W^l ∗ c φ(s),  s = pools h^{l−1},     f = V · φ(pools h^H)/(γ0 √Z)

([ ] in residual networks; kernels of 3×3 pixels with 1/√9 in front, beyond the border zero; c the gain; Z pixels are left at
the end; SimpleConvNet pools φ(h), the others pool h: to the largest it is the same).  As N → ∞ the channels of a pixel become
independent draws, so a map is a field at each of its places.  W^l acts on patches: with the K pixels of a kernel that meet
anything, z_py = (c φ(s) at those around y)/√9 is a field of K times as many numbers, and W^l, all its K matrices beside each
other, one Gaussian matrix from patches to h^l (``limits.deep.gaussian_matrix``).  Its transpose sends the gradient at y to all
pixels of the patch.  Pooling acts on each channel by itself: elementwise on samples.

What training needs of the outputs is one error signal e_pc, and all gradients are those of Σ e_pc f_pc, one cotangent per
sample and place however many outputs there are:

    g^H = e·V pulled back through the pooling,      g^{l−1} = W^lᵀ g^l pulled back through the patches [and g^l past them]
    Jᵀ e = { Σ_x g⁰_px x̂_pxᵀ on E,   Σ_y g^l_py z_pyᵀ on W^l,   Σ_p e_pc φ(pools h^H)_p on V_c }

Training has e = γ0 π Δ; a product of the Hessian is the derivative of Jᵀ e along a tangent, of the weights and of e: again
one cotangent per sample and place, for G and R together.  φ and the pooling are differentiated as they are: where they are
piecewise linear, twice is zero, as automatic differentiation has it in finite networks.
"""

from functools import partial, reduce
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from limits.activations import ACTIVATIONS
from limits.deep.gaussian_matrix import GaussianMatrix, has_room, image, longer, send, send_back, unmet, with_more
from limits.deep.network import Weights, moved, quasi_gaussians, scaled, without_outputs
from limits.exponents.parametrization import fan_in_multiplier
from limits.losses import LOSSES
from limits.models import POOLINGS

SIDE = 3  # pixels of a kernel
FIRST_STRIDE = 2

Map = Float[Array, "P _ _ S"]  # rows and columns


class Kind(NamedTuple):
    """What is compiled: the static argument of the compiled functions.

    image        rows, columns, channels
    stride       of the H convolutions behind the first
    pools        how maps are pooled before each of them, and before the readout: for each time, no fewer rows and columns
                 than these may be left
    pool_first   whether before φ
    """

    activation: str
    loss: str
    nesterov: bool
    image: tuple[int, int, int]
    pooling: str
    stride: int
    pools: tuple[tuple[int, ...], ...]
    pool_first: bool
    gain: float
    residual: bool

    exact = False

    @property
    def places(self) -> list[tuple[int, int]]:
        """Rows and columns of h⁰ … h^H."""
        places = [tuple(-(-side // FIRST_STRIDE) for side in self.image[:2])]
        for layer in range(len(self.pools) - 1):
            places.append(tuple(-(-side // self.stride) for side in self._left(layer, places[-1])))
        return places

    def _left(self, layer, sides) -> tuple[int, int]:
        """What pooling leaves of a map before layer + 1."""
        return reduce(_halved, self.pools[layer], tuple(sides))

    @property
    def counts(self) -> tuple[list[int], list[int], int]:
        """(places of h¹ … h^H, pixels of the patches that make them, places of the features)"""
        places = self.places
        left = [self._left(layer, sides) for layer, sides in enumerate(places)]
        patches = [prod(len(taps(side, self.stride)) for side in sides) for sides in left[:-1]]
        return [prod(sides) for sides in places[1:]], patches, prod(left[-1])

    def pooled(self, layer: int, h: Float[Array, "PX S"]) -> Map:
        """Before what comes behind layer 0 … H."""
        maps = h.reshape(-1, *self.places[layer], h.shape[-1])
        return reduce(partial(pooled, pooling=self.pooling), self.pools[layer], maps)

    def activated(self, layer: int, h: Float[Array, "PX S"]) -> Map:
        """φ of the pooled, or the pooled φ."""
        phi = ACTIVATIONS[self.activation].phi
        return phi(self.pooled(layer, h)) if self.pool_first else self.pooled(layer, phi(h))

    def seen(self, layer: int, h: Float[Array, "PX S"]) -> Float[Array, "PY KS"]:
        """z of the convolution behind this layer."""
        return neighbourhoods(self.gain * self.activated(layer, h), self.stride)

    def past(self, layer: int, h: Float[Array, "PX S"]) -> Float[Array, "PY S"]:
        """What goes past it in residual networks."""
        return self.pooled(layer, h).reshape(-1, h.shape[-1])

    def features(self, h: Float[Array, "PX S"]) -> Float[Array, "P ZS"]:
        """φ of the Z places that are left of the last map, over √Z."""
        last = self.activated(len(self.pools) - 1, h)
        return last.reshape(len(last), -1) * fan_in_multiplier(prod(last.shape[1:3]))

    # What ``limits.deep.lanczos`` asks of a network

    def linearised(self, data, fields, matrices):
        """With the gradient of L, of all samples."""
        signal = LOSSES[self.loss].gradient(fields.outputs, data.targets) * data.richness / len(data.targets)
        return backward(self, data, fields, matrices, signal)

    def pulled_back(self, data, fields, matrices, signals: Float[Array, "b P C"]):
        return pulled_back(self, data, fields, matrices, signals)

    def product(self, data, fields, matrices, tangents, parts):
        return product(self, data, fields, matrices, tangents, parts)

    def has_room(self, data, matrices, b, products) -> bool:
        return not any(map(any, self.lacking(data, matrices, b, products)))

    def wider(self, data, rng, state, tangents, b, products):
        more = self.lacking(data, state.matrices, b, products)
        drawn = more_draws(self, rng, more, state.matrices[0].sent.shape[1], int(data.space.copies))
        return grown(state, *drawn), widened(tangents, more)

    def lacking(self, data, matrices, b: int = 1, products: int = 0) -> "Rooms":
        """Room for the fields of a step, or of b of them and so many more, that matrices lack: as much again as they have.

        Of samples no more gradients than their number bring anything new.
        """
        rooms = []
        for matrix, rows in zip(matrices, self.rows(data), strict=True):
            (n, S), m, new = matrix.sent.shape, len(matrix.returned), b * rows
            wanted, most = new * (1 + products), S // int(data.space.copies) + new
            below = n if matrix.num_below + wanted > n else 0
            above = min(m, most - m) if min(int(matrix.num_above) + wanted, most) > m else 0
            rooms.append((below, above))
        return rooms

    def rows(self, data) -> list[int]:
        """Fields that a step brings to each matrix on either side."""
        return [len(data.targets) * places for places in self.counts[0]]


def _halved(sides, leave):
    rows, columns = (side // 2 for side in sides)
    return (rows, columns) if min(rows, columns) >= leave else sides


def pooled(x: Map, leave: int = 1, *, pooling: str) -> Map:
    """Over 2×2 pixels; as it is where fewer than ``leave`` rows or columns would be left.  Odd ones at the end are dropped."""
    P, *sides, S = x.shape
    rows, columns = _halved(tuple(sides), leave)
    if (rows, columns) == tuple(sides):
        return x
    windows = x[:, : 2 * rows, : 2 * columns].reshape(P, rows, 2, columns, 2, S)
    return POOLINGS[pooling].reduction(windows, axis=(2, 4))


def neighbourhoods(x: Map, stride: int) -> Float[Array, "_ _"]:
    """The patches of 3×3 pixels, over √9, without the pixels that are beyond the border in all of them ("SAME" in XLA)."""
    _, rows, columns, S = x.shape
    borders = jax.lax.padtype_to_pads((rows, columns), (SIDE, SIDE), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *borders, (0, 0)))
    down, across = (-(-side // stride) * stride for side in (rows, columns))
    pixels = [
        padded[:, i : i + down : stride, j : j + across : stride] for i in taps(rows, stride) for j in taps(columns, stride)
    ]
    return jnp.stack(pixels, 3).reshape(-1, len(pixels) * S) / SIDE


def taps(side: int, stride: int) -> list[int]:
    """The pixels of a kernel that anywhere meet a pixel of the map, along one axis."""
    ((before, _),) = jax.lax.padtype_to_pads((side,), (SIDE,), (stride,), "SAME")
    return [i for i in range(SIDE) if any(0 <= y + i - before < side for y in range(0, side, stride))]


class Fields(NamedTuple):
    """weights that they go by · outputs f · maps h⁰ … h^H · coordinates of the patches that the W^l met · of one error signal,
    gradients (PX, S) at all maps, and coordinates of those that the transposes met."""

    weights: Weights
    outputs: Float[Array, "P C"]
    maps: tuple[Float[Array, "PX S"], ...]
    below: tuple[Float[Array, "PY n"], ...]
    signal: Float[Array, "P C"]
    gradients: tuple[Float[Array, "PX S"], ...]
    above: tuple[Float[Array, "PY m"], ...]


class State(NamedTuple):
    """Before a step; the fields are those of the step before.  ``trained`` of the weights is of each matrix (m, n)."""

    step: Int[Array, ""]
    weights: Weights
    velocity: Weights
    matrices: tuple[GaussianMatrix, ...]
    fields: Fields


Rooms = list[tuple[int, int]]  # fields below and above of each matrix


def first_draws(kind, rng, sizes: tuple[int, int, int], rooms: Rooms, samples: int, copies: int = 1):
    """First weights (r, S), for each matrix the Gaussians in store (n, S) and (m, KS), last weights (C, ZS); sizes r, P, C.

    All that meets in the same neurons at step 0 is one Sobol net: in residual networks those of all layers are the same.
    """
    (r, P, C), (places, patches, Z), size = sizes, kind.counts, samples // copies
    from_below = [r, *(P * Y for Y in places)]
    from_above = [*(K * P * Y for K, Y in zip(patches, places, strict=True)), C * Z]
    counts = [count for pair in zip(from_below, from_above, strict=True) for count in pair]
    if kind.residual:
        drawn = [quasi_gaussians(rng, sum(counts), size)]
    else:
        drawn = [quasi_gaussians(rng, sum(pair), size) for pair in zip(from_below, from_above, strict=True)]
    first, *between, last = np.split(np.concatenate(drawn), np.cumsum(counts)[:-1])
    stored = []
    for back, sent, K, (n, m) in zip(between[::2], between[1::2], patches, rooms, strict=True):
        more_sent, more_back = rng.normal(size=(n - len(sent), size)), rng.normal(size=(m * K - len(back), size))
        sent, back = (np.tile(np.concatenate(pair), copies) for pair in ((sent, more_sent), (back, more_back)))
        stored.append((sent, back.reshape(m, -1)))
    return np.tile(first, copies), *_of_matrices(stored), np.tile(last, copies).reshape(C, -1)


def more_draws(kind, rng, rooms: Rooms, samples: int, copies: int = 1):
    """As many more Gaussians in store for each matrix, (n, S) and (m, KS)."""
    stored = []
    for K, (n, m) in zip(kind.counts[1], rooms, strict=True):
        drawn = np.tile(rng.normal(size=(n + m * K, samples // copies)), copies)
        stored.append((drawn[:n], drawn[n:].reshape(m, K * samples)))
    return _of_matrices(stored)


def _of_matrices(pairs):
    return tuple(tuple(draws) for draws in zip(*pairs, strict=True))


@partial(jax.jit, static_argnums=0)
def begin(kind, data, first, sent, returned, last) -> State:
    """Before step 0, with these Gaussians."""
    rooms, rows, S = [(len(n), len(m)) for n, m in zip(sent, returned, strict=True)], kind.rows(data), first.shape[1]
    nothing = tuple(jnp.zeros((m, n)) for n, m in rooms)
    weights = Weights(data.scales[0] * first, data.scales[1], nothing, data.scales[2] * last)
    velocity = jax.tree.map(jnp.zeros_like, weights)
    maps = tuple(jnp.zeros((count, S)) for count in (len(data.inputs), *rows))
    below, above = (tuple(jnp.zeros((count, pair[i])) for count, pair in zip(rows, rooms, strict=True)) for i in (0, 1))
    outputs = jnp.zeros(data.targets.shape)
    fields = Fields(velocity, outputs, maps, below, outputs, maps, above)
    return State(jnp.zeros((), int), weights, velocity, tuple(map(unmet, sent, returned)), fields)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(kind, data, state, until) -> State:
    """Steps up to ``until``, or as long as the matrices have room.  Its fields are those that the last step went by."""
    rows = kind.rows(data)

    def going(state):
        room = [has_room(matrix, n, n) for matrix, n in zip(state.matrices, rows, strict=True)]
        return (state.step < until) & jnp.all(jnp.stack(room))

    def step(state):
        matrices, maps, below = forward(kind, data, state.weights, state.matrices)
        features, last = kind.features(maps[-1]), state.weights.last
        last = jax.lax.cond(state.step == 0, lambda: without_outputs(data.space, features, last), lambda: last)
        weights = state.weights._replace(last=last)
        fields = state.fields._replace(
            weights=weights, outputs=data.space.products(features, last) / data.richness, maps=maps, below=below
        )
        share = data.shares[state.step % len(data.shares)]
        signal = -LOSSES[kind.loss].gradient(fields.outputs, data.targets) * share[:, None] * data.richness
        matrices, fields = backward(kind, data, fields, matrices, signal)
        force = scaled(data, _force(data, fields.signal, features, fields.gradients[0], fields.below, fields.above))
        weights, velocity = moved(kind, data, state.step, weights, state.velocity, force)
        return State(state.step + 1, weights, velocity, matrices, fields)

    return jax.lax.while_loop(going, step, state)


def forward(kind, data, weights, matrices) -> tuple[tuple[GaussianMatrix, ...], tuple, tuple]:
    """(the matrices, maps h⁰ … h^H, coordinates of the patches)"""
    h, after, coordinates = data.inputs @ weights.first, [], []
    maps = [h]
    for layer, (matrix, trained) in enumerate(zip(matrices, weights.trained, strict=True)):
        matrix, out, below = send(data.space, matrix, kind.seen(layer, h), weights.left, trained)
        h = kind.past(layer, h) + out if kind.residual else out
        after, maps, coordinates = [*after, matrix], [*maps, h], [*coordinates, below]
    return tuple(after), tuple(maps), tuple(coordinates)


def backward(kind, data, fields, matrices, signal: Float[Array, "P C"]) -> tuple[tuple[GaussianMatrix, ...], Fields]:
    """(the matrices, the fields with the gradients of this error signal)"""
    matrices, gradients, above = cotangents(kind, data, fields, matrices, signal[None])
    gradients, above = (tuple(layer[0] for layer in each) for each in (gradients, above))
    return matrices, fields._replace(signal=signal, gradients=gradients, above=above)


def cotangents(kind, data, fields, matrices, signals: Float[Array, "b P C"]) -> tuple[tuple[GaussianMatrix, ...], tuple, tuple]:
    """(the matrices, gradients (b, PX, S) at all maps, coordinates (b, PY, m) of those that the transposes met)"""
    weights, maps = fields.weights, fields.maps
    g = _all_through(kind.features, maps[-1], signals @ weights.last)
    after, gradients, coordinates = [], [g], []
    for layer in reversed(range(len(matrices))):
        matrix, out, above = _sent_back(data, matrices[layer], g, weights.left, weights.trained[layer])
        past = _all_through(partial(kind.past, layer), maps[layer], g) if kind.residual else 0.0
        g = _all_through(partial(kind.seen, layer), maps[layer], out) + past
        after, gradients, coordinates = [matrix, *after], [g, *gradients], [above, *coordinates]
    return tuple(after), tuple(gradients), tuple(coordinates)


def _through(function, at, cotangent):
    """This cotangent of the function, pulled back."""
    return jax.vjp(function, at)[1](cotangent)[0]


def _all_through(function, at, cotangents):
    return jax.vmap(lambda cotangent: _through(function, at, cotangent))(cotangents)


def _sent_back(data, matrix, g: Float[Array, "b PY S"], left, trained):
    """As ``send_back``, of many."""
    b, rows, S = g.shape
    matrix, out, above = send_back(data.space, matrix, g.reshape(-1, S), left, trained)
    return matrix, out.reshape(b, rows, -1), above.reshape(b, rows, -1)


def _force(data, signal, features, gradient, below, above) -> Weights:
    """Jᵀ of this error signal."""
    trained = tuple(a.T @ b for a, b in zip(above, below, strict=True))
    return Weights(data.inputs.T @ gradient, jnp.zeros(()), trained, signal.T @ features)


def pulled_back(kind, data, fields, matrices, signals: Float[Array, "b P C"]) -> tuple[tuple[GaussianMatrix, ...], Weights]:
    """(the matrices, Jᵀ of each of these error signals)"""
    matrices, gradients, above = cotangents(kind, data, fields, matrices, signals)
    force = partial(_force, data, features=kind.features(fields.maps[-1]), below=fields.below)
    return matrices, jax.vmap(lambda e, g, a: force(e, gradient=g, above=a))(signals, gradients[0], above)


@partial(jax.jit, static_argnums=0)
def ntk(kind, data, matrices, fields, sent, returned) -> Float[Array, "P C P C"]:
    """Σ over the matrices of a²r <∂f ∂f>; these draws make room for the gradients of all outputs."""
    (P, C), more = data.targets.shape, [(len(n), len(m)) for n, m in zip(sent, returned, strict=True)]
    fields, matrices = _with_room(fields, more), tuple(map(with_more, matrices, sent, returned))

    def of_output(matrices, signal):
        signals = jnp.broadcast_to(signal, (1, P, C))
        matrices, (g, *_), above = cotangents(kind, data, fields, matrices, signals)
        first = jnp.einsum("pxr,pxs->prs", *(_by_sample(rows, P) for rows in (data.inputs, g[0])))
        return matrices, (first.reshape(P, -1), tuple(_by_sample(layer[0], P) for layer in above))

    _, (first, above) = jax.lax.scan(of_output, matrices, jnp.eye(C))
    features = kind.features(fields.maps[-1])
    theta = data.rates[0] * data.space.weight * jnp.einsum("cps,eqs->pcqe", first, first)
    for below, back in zip(fields.below, above, strict=True):
        below = jnp.einsum("pyn,qzn->pyqz", *[_by_sample(below, P)] * 2)
        theta += data.rates[1] * jnp.einsum("pyqz,pycqze->pcqe", below, jnp.einsum("cpym,eqzm->pycqze", back, back))
    return theta + data.rates[2] * jnp.einsum("pq,ce->pcqe", data.space.products(features, features), jnp.eye(C))


def _by_sample(rows, P):
    return rows.reshape(P, -1, rows.shape[-1])


def product(kind, data, fields, matrices, tangents: Weights, parts) -> tuple[tuple[GaussianMatrix, ...], Weights]:
    """(the matrices having met it, H v of each of b tangents v, or so much of G and so much of R)

    ``fields`` have the gradients of γ0 times the gradient of L: what changes Jᵀ of it is R's part, and that of its change, G's.
    """
    of_signal, of_weights = parts
    u = jax.vmap(partial(scaled, data, power=0.5))(tangents)
    matrices, dh, below = _moved_forward(kind, data, fields, matrices, u)
    features, of_features = jax.vmap(lambda d: jax.jvp(kind.features, (fields.maps[-1],), (d,)), out_axes=(None, 0))(dh[-1])
    outputs = jnp.einsum("ps,bcs->bpc", features, u.last) + jnp.einsum("bps,cs->bpc", of_features, fields.weights.last)
    curved = jnp.einsum(
        "pce,bpe->bpc", LOSSES[kind.loss].curvature(fields.outputs), outputs * data.space.weight / data.richness
    )
    change = of_signal * data.richness / len(data.targets) * curved
    u, dh, below, of_features = jax.tree.map(lambda leaf: of_weights * leaf, (u, dh, below, of_features))
    matrices, gradient, above = _moved_backward(kind, data, fields, matrices, u, dh, change)

    def of_one(change, gradient, above, below, of_features):
        moved_signal = _force(data, change, features, gradient, fields.below, above)
        further = tuple(a.T @ d for a, d in zip(fields.above, below, strict=True))
        trained = jax.tree.map(jnp.add, moved_signal.trained, further)
        return scaled(
            data, moved_signal._replace(trained=trained, last=moved_signal.last + fields.signal.T @ of_features), power=0.5
        )

    return matrices, jax.vmap(of_one)(change, gradient, above, below, of_features)


def _moved_forward(kind, data, fields, matrices, u) -> tuple[tuple[GaussianMatrix, ...], tuple, tuple]:
    """(the matrices, δh (b, PX, S) of all maps, coordinates (b, PY, n) of what patches change by)"""

    def along(function, at, tangents):
        return jax.vmap(lambda d: jax.jvp(function, (at,), (d,))[1])(tangents)

    dh, after, coordinates = data.inputs @ u.first, [], []
    moved_maps, b = [dh], len(u.first)
    for layer, (matrix, h) in enumerate(zip(matrices, fields.maps[:-1], strict=True)):
        seen = along(partial(kind.seen, layer), h, dh)
        matrix, out, below = send(
            data.space, matrix, seen.reshape(-1, seen.shape[-1]), fields.weights.left, fields.weights.trained[layer]
        )
        past = along(partial(kind.past, layer), h, dh) if kind.residual else 0.0
        of_weights = fields.below[layer] @ u.trained[layer].swapaxes(1, 2) @ matrix.above
        dh = past + out.reshape(b, -1, out.shape[-1]) + of_weights
        after, moved_maps = [*after, matrix], [*moved_maps, dh]
        coordinates.append(below.reshape(b, -1, below.shape[-1]))
    return tuple(after), tuple(moved_maps), tuple(coordinates)


def _moved_backward(kind, data, fields, matrices, u, dh, change) -> tuple[tuple[GaussianMatrix, ...], Array, tuple]:
    """(the matrices, δg (b, PX, S) of the first map, coordinates (b, PY, m) of those that the transposes met)"""

    def pulled(function, at, cotangent, of_at, of_cotangents):
        """How ``cotangent``, pulled back, changes along each."""
        along = partial(jax.jvp, partial(_through, function), (at, cotangent))
        return jax.vmap(lambda *moved: along(moved)[1])(of_at, of_cotangents)

    weights, start = fields.weights, fields.signal @ fields.weights.last
    dg = pulled(kind.features, fields.maps[-1], start, dh[-1], change @ weights.last + fields.signal @ u.last)
    after, coordinates = [], []
    for layer in reversed(range(len(matrices))):
        left, trained = weights.left, weights.trained[layer]
        matrix, out, above = _sent_back(data, matrices[layer], dg, left, trained)
        out += fields.above[layer] @ u.trained[layer] @ matrix.below
        before = image(matrix.transposed, fields.above[layer], left, trained.T)
        past = 0.0
        if kind.residual:
            past = pulled(partial(kind.past, layer), fields.maps[layer], fields.gradients[layer + 1], dh[layer], dg)
        dg = pulled(partial(kind.seen, layer), fields.maps[layer], before, dh[layer], out) + past
        after, coordinates = [matrix, *after], [above, *coordinates]
    return tuple(after), dg, tuple(coordinates)


def widened(weights: Weights, rooms: Rooms) -> Weights:
    """The same, or many of them, where there is room for so many more fields below and above each matrix."""
    trained = tuple(longer(A, m, n) for A, (n, m) in zip(weights.trained, rooms, strict=True))
    return weights._replace(trained=trained)


def _with_room(fields: Fields, rooms) -> Fields:
    below, above = (tuple(longer(c, pair[i]) for c, pair in zip(coordinates, rooms, strict=True)) for i, coordinates in
                    enumerate((fields.below, fields.above)))  # fmt: skip
    return fields._replace(weights=widened(fields.weights, rooms), below=below, above=above)


@jax.jit
def grown(state: State, sent, returned) -> State:
    """The same with room for as many more fields."""
    rooms = [(len(n), len(m)) for n, m in zip(sent, returned, strict=True)]
    weights, velocity = (widened(vector, rooms) for vector in (state.weights, state.velocity))
    matrices = tuple(map(with_more, state.matrices, sent, returned))
    return State(state.step, weights, velocity, matrices, _with_room(state.fields, rooms))
