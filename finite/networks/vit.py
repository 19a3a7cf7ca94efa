"""The vision transformer: patches of an image as tokens, without biases.

    h_t = E x_t/√D_patch + e_t        x_t the pixels of the t-th patch, e_t the embedding of its place
    f = V · mean over t of out_t      out: ``finite.networks.transformer``

(weights as they act).  Roles: "input" E, "embedding" e, "readout" V, and those of the blocks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.networks import Architecture, Network, Params, Signal, once, parametrized, rowwise, standard_normal
from finite.networks.transformer import HEADS, Sizes, check, init_blocks, matrices, transformed, watched
from limits.exponents.parametrization import fan_in_multiplier
from limits.problem import Problem

PATCH = 4  # pixels a side


def vit(
    problem: Problem, width: int, depth: int, heads: int = HEADS, patch: int = PATCH, activation: str = "gelu"
) -> Network:
    """The network of ``depth`` blocks for the problem's images, outputs and parametrization.

    params = {"input": E (patch²·channels, N), "embedding": e (T, N), "readout": V (N, C), and ``init_blocks``}

    Raises ValueError for sizes below 1, a width that the heads do not divide or an image that the patches do not, and
    exponents that are not of a residual network.
    """
    sizes, image = Sizes(width, depth, heads, activation=activation), problem.image
    check(sizes)
    if patch < 1 or image[0] % patch or image[1] % patch:
        raise ValueError(f"images of {image[0]}×{image[1]} pixels do not fall into patches of {patch}×{patch}")
    return parametrized(_vit(image, sizes, patch, problem.num_outputs), problem, "residual", width, depth, block_size=2)


@once
def _vit(image: tuple[int, int, int], sizes: Sizes, patch: int, num_outputs: int) -> Architecture:
    rows, columns, channels = image[0] // patch, image[1] // patch, image[2]
    tokens, pixels = rows * columns, patch * patch * channels
    shapes = {"input": (pixels, sizes.width), "embedding": (tokens, sizes.width), "readout": (sizes.width, num_outputs)}

    def init(key: Array) -> Params:
        ends, blocks = jax.random.split(key)
        return standard_normal(ends, shapes) | init_blocks(blocks, sizes)

    def patches(inputs):
        cut = inputs.reshape(-1, rows, patch, columns, patch, channels).swapaxes(2, 3)
        return cut.reshape(-1, tokens, pixels) * fan_in_multiplier(pixels)

    def embedded(params, inputs):
        return rowwise(patches(inputs), params["input"]) + params["embedding"]

    def apply(params: Params, inputs: Float[Array, "P D"]) -> Float[Array, "P C"]:
        return jnp.mean(transformed(params, embedded(params, inputs), sizes), axis=1) @ params["readout"]

    def signals(params: Params, inputs: Float[Array, "P D"]) -> dict[str, Signal]:
        out, within = watched(params, embedded(params, inputs), sizes)
        seen, features = patches(inputs).reshape(-1, pixels), jnp.mean(out, axis=1)
        return {
            "input": Signal(seen, seen @ params["input"]),
            "embedding": Signal(jnp.eye(tokens, dtype=inputs.dtype), params["embedding"]),
            **within,
            "readout": Signal(features, features @ params["readout"]),
        }

    def all_matrices(params: Params) -> dict[str, Array]:
        return {role: params[role] for role in shapes} | matrices(params)

    return Architecture(init, apply, matrices=all_matrices, signals=signals, places=tokens)
