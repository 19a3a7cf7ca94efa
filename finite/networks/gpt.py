"""The decoder: a causal transformer over tokens, without biases, that predicts the token behind its last one.

    h_t = E_{token t} + e_t           e_t the embedding of the place
    f = V · out_T                     out: ``finite.networks.transformer``

(weights as they act).  Inputs (P, T) hold the numbers of the tokens, 0 … C − 1; outputs (P, C) are the logits of the next one.
Roles: "embedding" E and e, "readout" V, and those of the blocks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.networks import Architecture, Network, Params, Signal, once, parametrized, standard_normal
from finite.networks.transformer import HEADS, Sizes, check, init_blocks, matrices, transformed, watched
from limits.problem import Problem


def gpt(problem: Problem, width: int, depth: int, heads: int = HEADS, activation: str = "gelu") -> Network:
    """The network of ``depth`` blocks for the problem's tokens, outputs and parametrization.

    params = {"embedding": {"token": E (C, N), "place": e (T, N)}, "readout": V (N, C), and ``init_blocks``}

    Raises ValueError for sizes below 1, a width that the heads do not divide, and exponents that are not of a residual network.
    """
    sizes = Sizes(width, depth, heads, causal=True, activation=activation)
    check(sizes)
    return parametrized(_gpt(problem.num_inputs, sizes, problem.num_outputs), problem, "residual", width, depth, block_size=2)


@once
def _gpt(tokens: int, sizes: Sizes, vocabulary: int) -> Architecture:
    embeddings = {"token": (vocabulary, sizes.width), "place": (tokens, sizes.width)}
    readout = {"readout": (sizes.width, vocabulary)}

    def init(key: Array) -> Params:
        first, last, blocks = jax.random.split(key, 3)
        ends = {"embedding": standard_normal(first, embeddings), **standard_normal(last, readout)}
        return ends | init_blocks(blocks, sizes)

    def embedded(params, inputs):
        return params["embedding"]["token"][inputs.astype(int)] + params["embedding"]["place"]

    def apply(params: Params, inputs: Float[Array, "P T"]) -> Float[Array, "P C"]:
        return transformed(params, embedded(params, inputs), sizes)[:, -1] @ params["readout"]

    def signals(params: Params, inputs: Float[Array, "P T"]) -> dict[str, Signal]:
        out, within = watched(params, embedded(params, inputs), sizes)
        one_hot = jax.nn.one_hot(inputs.astype(int).reshape(-1), vocabulary, dtype=inputs.dtype)
        of_token, of_place = (params["embedding"][name] for name in embeddings)
        return {
            "embedding token": Signal(one_hot, one_hot @ of_token),
            "embedding place": Signal(jnp.eye(tokens, dtype=inputs.dtype), of_place),
            **within,
            "readout": Signal(out[:, -1], out[:, -1] @ params["readout"]),
        }

    def all_matrices(params: Params) -> dict[str, Array]:
        ends = {f"embedding {name}": params["embedding"][name] for name in embeddings}
        return ends | matrices(params) | {"readout": params["readout"]}

    return Architecture(init, apply, matrices=all_matrices, signals=signals, places=tokens)
