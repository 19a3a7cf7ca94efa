"""The residual multilayer perceptron: L = ``depth`` blocks of k = ``block_size`` matrices, without biases.

    h⁰ = x E/√D,   h^{l+1} = h^l + φ(… φ(φ(h^l) U^{l,1}) …) W^l,   f = φ(h^L) V       (weights as they act)

with k − 1 inner matrices U per block.  The branch multiplier L^{-α} belongs to W, the role "block".
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.networks import (
    Architecture,
    LayerFactors,
    Network,
    Params,
    Signal,
    once,
    one_hot_outputs,
    parametrized,
    standard_normal,
)
from finite.networks.mlp import check_sizes
from limits.activations import ACTIVATIONS
from limits.exponents.parametrization import fan_in_multiplier
from limits.problem import Problem


def resmlp(problem: Problem, width: int, depth: int, activation: str = "relu", block_size: int = 1) -> Network:
    """The residual network of ``depth`` blocks for the problem's inputs, outputs and parametrization.

    params = {"input": E (D, N), "block_inner": U (L, k−1, N, N), absent for k = 1, "block": W (L, N, N),
              "readout": V (N, C)}

    Raises ValueError for sizes below 1, an unknown activation, and exponents that are not of a residual network.
    """
    check_sizes(width, depth, block_size)
    architecture = _resmlp(problem.num_inputs, width, depth, block_size, problem.num_outputs, activation)
    return parametrized(architecture, problem, "residual", width, depth, block_size)


@once
def _resmlp(num_inputs, width, depth, block_size, num_outputs, activation) -> Architecture:
    row = ACTIVATIONS.find(activation)
    phi = row.phi
    shapes = {
        "input": (num_inputs, width),
        "block_inner": (depth, block_size - 1, width, width),
        "block": (depth, width, width),
        "readout": (width, num_outputs),
    }
    shapes = {role: shape for role, shape in shapes.items() if 0 not in shape}
    inside = [role for role in ("block_inner", "block") if role in shapes]

    def init(key: Array) -> Params:
        return standard_normal(key, shapes)

    def block(stream, weights_and_taps):
        """The stream behind a block, and the signals within it."""
        weights, taps = weights_and_taps
        signals, y = [], stream
        for i, (matrix, tap) in enumerate(zip(_of_block(weights), _of_block(taps), strict=True)):
            signals.append(Signal(phi(y), phi(y) @ matrix + tap))
            y = signals[i].output
        return stream + y, signals

    def forward(params, inputs, taps, watch=lambda behind: behind):
        """First layer's signal, blocks' signals (leading axis L), the stream behind them, last layer's signal."""
        x = inputs * fan_in_multiplier(num_inputs)
        first = Signal(x, x @ params["input"] + taps["input"])
        blocks = [{role: of_all[role] for role in inside} for of_all in (params, taps)]
        stream, within = jax.lax.scan(lambda h, weights_and_taps: watch(block(h, weights_and_taps)), first.output, blocks)
        return first, within, stream, Signal(phi(stream), phi(stream) @ params["readout"] + taps["readout"])

    def no_taps(inputs):
        """Zeros to add to every pre-activation: (…, P, n) for a matrix (…, m, n)."""
        return {role: jnp.zeros((*shape[:-2], len(inputs), shape[-1]), inputs.dtype) for role, shape in shapes.items()}

    def apply(params: Params, inputs: Float[Array, "P D"]) -> Float[Array, "P C"]:
        return forward(params, inputs, no_taps(inputs), lambda behind: (behind[0], None))[-1].output

    def layer_factors(params: Params, inputs: Float[Array, "P D"]) -> Params:
        def tapped(taps):
            first, within, _, last = forward(params, inputs, taps)
            arriving = {"input": first.arriving, "block": within[-1].arriving, "readout": last.arriving}
            if block_size > 1:
                arriving["block_inner"] = jnp.stack([s.arriving for s in within[:-1]], axis=1)
            return last.output, arriving

        _, backward, arriving = jax.vjp(tapped, no_taps(inputs), has_aux=True)
        (derivatives,) = jax.vmap(backward, out_axes=-2)(one_hot_outputs(num_outputs, inputs))
        return {role: LayerFactors(arriving[role], derivatives[role]) for role in shapes}

    def matrices(params: Params) -> dict[str, Array]:
        inner = {f"block_inner {i + 1}": params["block_inner"][-1, i] for i in range(block_size - 1)}
        return {"input": params["input"], **inner, "block": params["block"][-1], "readout": params["readout"]}

    def signals(params: Params, inputs: Float[Array, "P D"]) -> dict[str, Signal]:
        first, within, stream, last = forward(params, inputs, no_taps(inputs))
        names = [*(f"block_inner {i + 1}" for i in range(block_size - 1)), "block"]
        of_last_block = {n: Signal(s.arriving[-1], s.output[-1]) for n, s in zip(names, within, strict=True)}
        return {"input": first, **of_last_block, "stream": Signal(None, stream), "readout": last}

    return Architecture(init, apply, row.piecewise_linear, layer_factors, matrices, signals)


def _of_block(of_roles):
    return (*of_roles.get("block_inner", ()), of_roles["block"])
