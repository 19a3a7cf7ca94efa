"""What transformers share: L = ``depth`` blocks, each adds two branches to a stream h of one row per token.

    h ← h + A · attention(Q x, K x, V x),    x = LN(h)               attention: softmax over tokens of q·k/d, of each head
    h ← h + W · φ(U x)/√4,                   x = LN(h)               U (N, 4N), W (4N, N), φ = GELU
    out   LN(h), without gains

(weights as they act), LN: over the N units of a token to mean 0 and variance 1, then times a gain per unit; no biases.
L counts blocks; 2L branches act on the stream.  Roles: "block_inner" Q, K, V, U; "block" A and W, which hold the branch
multiplier L^{-α}; "norm_gain" the gains, which start at 1.

q·k is averaged over the d units of a head, not summed over √d: once trained, q and k are aligned (Yang et al. 2022).  At step 0
they are not: the mean is small as one over √d, every token looks at all others alike, and gradients of Q and K are smaller by
that factor than those of V.  The algebra of sizes (``limits.exponents.algebra``) does not follow this, so Q and K are not among
the layers whose sizes are measured.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from finite.networks import Params, Signal, rowwise, standard_normal
from finite.networks.mlp import check_sizes
from limits.activations import ACTIVATIONS
from limits.exponents.parametrization import fan_in_multiplier

HEADS = 8
RATIO = 4  # units of a perceptron per unit of the stream
VARIANCE = 1e-6  # added to that of a token

Stream = Float[Array, "P T N"]


class Sizes(NamedTuple):
    """Of the blocks: width N, depth L, heads; ``causal``: no token sees those behind it; ``activation`` of the perceptrons."""

    width: int
    depth: int
    heads: int
    causal: bool = False
    activation: str = "gelu"


def check(sizes: Sizes) -> None:
    """Raises ValueError for sizes below 1 and a width that the heads do not divide."""
    check_sizes(sizes.width, sizes.depth)
    if sizes.heads < 1 or sizes.width % sizes.heads:
        raise ValueError(f"width {sizes.width} is no multiple of the {sizes.heads} heads")


def init_blocks(key: Array, sizes: Sizes) -> Params:
    """{"block_inner": {"query", "key", "value": (L, N, N), "mlp": (L, N, 4N)},
    "block": {"attention": (L, N, N), "mlp": (L, 4N, N)}, "norm_gain": {"attention", "mlp": (L, N)}}
    """
    L, N = sizes.depth, sizes.width
    inner, outer = jax.random.split(key)
    square, gains = (L, N, N), np.ones((L, N), np.float32)
    return {
        "block_inner": standard_normal(inner, {**dict.fromkeys(("query", "key", "value"), square), "mlp": (L, N, RATIO * N)}),
        "block": standard_normal(outer, {"attention": square, "mlp": (L, RATIO * N, N)}),
        "norm_gain": {"attention": gains, "mlp": gains},
    }


def transformed(params: Params, stream: Stream, sizes: Sizes) -> Stream:
    """LN of the stream behind all blocks."""
    return normalized(jax.lax.scan(lambda h, block: (_block(h, block, sizes)[0], None), stream, _blocks(params))[0])


def watched(params: Params, stream: Stream, sizes: Sizes) -> tuple[Stream, dict[str, Signal]]:
    """The same, and the signals of the last block and of the stream behind it, by the names of ``matrices``."""
    before = jax.tree.map(lambda w: w[:-1], _blocks(params))
    stream, _ = jax.lax.scan(lambda h, block: (_block(h, block, sizes)[0], None), stream, before)
    stream, signals = _block(stream, jax.tree.map(lambda w: w[-1], _blocks(params)), sizes)
    return normalized(stream), signals | {"stream": Signal(None, _rows(stream))}


def matrices(params: Params) -> dict[str, Array]:
    """The weights of the last block, gains as matrices of one row."""
    inner, outer, gain = (jax.tree.map(lambda w: w[-1], params[role]) for role in ("block_inner", "block", "norm_gain"))
    return {
        "norm_gain": gain["mlp"][None],
        "block_inner value": inner["value"],
        "block_inner mlp": inner["mlp"],
        "block attention": outer["attention"],
        "block mlp": outer["mlp"],
    }


def normalized(x: Float[Array, "*rows N"]) -> Float[Array, "*rows N"]:
    """LN without gains."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + VARIANCE)


def _block(stream, weights, sizes):
    """The stream behind a block, and the signals within it."""
    gain, inner, outer = (weights[role] for role in ("norm_gain", "block_inner", "block"))
    x = normalized(stream) * gain["attention"]
    query, key, value = (rowwise(x, inner[name]) for name in ("query", "key", "value"))
    mixed = _attention(query, key, value, sizes)
    attended = rowwise(mixed, outer["attention"])
    y = normalized(stream + attended) * gain["mlp"]
    hidden = rowwise(y, inner["mlp"])
    active = ACTIVATIONS[sizes.activation].phi(hidden) * fan_in_multiplier(RATIO)
    computed = rowwise(active, outer["mlp"])
    signals = {
        "norm_gain": Signal(jnp.ones((1, 1), x.dtype), gain["mlp"][None]),
        "block_inner value": Signal(_rows(x), _rows(value)),
        "block_inner mlp": Signal(_rows(y), _rows(hidden)),
        "block attention": Signal(_rows(mixed), _rows(attended)),
        "block mlp": Signal(_rows(active), _rows(computed)),
    }
    return stream + attended + computed, signals


def _attention(query: Stream, key: Stream, value: Stream, sizes: Sizes) -> Stream:
    """Means of the values, each head with weights of its own."""
    query, key, value = (x.reshape(*x.shape[:2], sizes.heads, -1) for x in (query, key, value))
    logits = jnp.einsum("ptha,psha->phts", query, key) / query.shape[-1]
    if sizes.causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
    mixed = jnp.einsum("phts,psha->ptha", jax.nn.softmax(logits), value)
    return mixed.reshape(*mixed.shape[:2], -1)


def _blocks(params):
    return {role: params[role] for role in ("norm_gain", "block_inner", "block")}


def _rows(x):
    """Each token a row."""
    return x.reshape(-1, x.shape[-1])
