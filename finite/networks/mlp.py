"""The multilayer perceptron, without biases; the two-layer linear network is ``mlp(problem, width)``.

    h¹ = x E/√D,   h^{l+1} = φ(h^l) W^l,   f = φ(h^L) V       (weights as they act: multipliers included)

for L = ``depth`` hidden layers.  φ stands between all layers, for the linear network φ(h) = h.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.networks import Architecture, LayerFactors, Network, Params, Signal, normal, once, one_hot_outputs, parametrized
from limits.activations import ACTIVATIONS
from limits.exponents.parametrization import fan_in_multiplier
from limits.problem import Problem


def mlp(problem: Problem, width: int, depth: int = 1, activation: str = "linear") -> Network:
    """The network of ``depth`` hidden layers for the problem's inputs, outputs and parametrization.

    params = {"input": E (D, N), "hidden": (W¹, …) each (N, N), empty for depth 1, "readout": V (N, C)}

    Raises ValueError for a width or depth below 1, an unknown activation, and exponents that are not of a plain network.
    """
    check_sizes(width, depth)
    architecture = _mlp((problem.num_inputs, *[width] * depth, problem.num_outputs), activation)
    return parametrized(architecture, problem, "plain", width, depth)


def check_sizes(width: int, depth: int, block_size: int = 1) -> None:
    """Raises ValueError for what no network has."""
    for name, size in (("width", width), ("depth", depth), ("block size", block_size)):
        if size < 1:
            raise ValueError(f"{name} {size} must be at least 1")


@once
def _mlp(sizes: tuple[int, ...], activation: str) -> Architecture:
    row, num_outputs, depth = ACTIVATIONS.find(activation), sizes[-1], len(sizes) - 2
    names = ["input", *(f"hidden {l}" for l in range(2, depth + 1)), "readout"]

    def init(key: Array) -> Params:
        keys = jax.random.split(key, depth + 1)
        return _by_name([normal(k, (m, n)) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)])

    def forward(params, inputs, taps):
        """f (P, C) and the signals of every layer, with ``taps`` added to the pre-activations."""
        arriving, signals = inputs * fan_in_multiplier(sizes[0]), []
        for weights, tap in zip(_matrices(params), taps, strict=True):
            signals.append(Signal(arriving, arriving @ weights + tap))
            arriving = row.phi(signals[-1].output)
        return signals[-1].output, signals

    def apply(params: Params, inputs: Float[Array, "P D"]) -> Float[Array, "P C"]:
        return forward(params, inputs, [0.0] * (depth + 1))[0]

    def layer_factors(params: Params, inputs: Float[Array, "P D"]) -> Params:
        taps = [jnp.zeros((len(inputs), n), inputs.dtype) for n in sizes[1:]]
        _, backward, signals = jax.vjp(lambda taps: forward(params, inputs, taps), taps, has_aux=True)
        (derivatives,) = jax.vmap(backward, out_axes=1)(one_hot_outputs(num_outputs, inputs))  # per layer (P, C, n)
        return _by_name([LayerFactors(s.arriving, b) for s, b in zip(signals, derivatives, strict=True)])

    def matrices(params: Params) -> dict[str, Array]:
        return dict(zip(names, _matrices(params), strict=True))

    def signals(params: Params, inputs: Float[Array, "P D"]) -> dict[str, Signal]:
        return dict(zip(names, forward(params, inputs, [0.0] * (depth + 1))[1], strict=True))

    return Architecture(init, apply, row.piecewise_linear, layer_factors, matrices, signals)


def _by_name(layers: list) -> dict:
    first, *middle, last = layers
    return {"input": first, "hidden": tuple(middle), "readout": last}


def _matrices(params):
    return (params["input"], *params["hidden"], params["readout"])
