"""The multilayer perceptron, without biases; the two-layer linear network is ``mlp(problem, width)``.

    h¹ = x E/√D,   h^{l+1} = φ(h^l) W^l/√N,   f = φ(h^L) V/(γ√N)

for L = ``depth`` hidden layers.  All weights are N(0, 1) at initialisation, every power of the width is explicit
(``limits.parametrization``).  φ stands between all layers, for the linear network φ(h) = h.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from finite.networks import Network, Params
from limits.parametrization import forward_multiplier, output_multiplier
from limits.problem import Problem


def _gelu(h):
    """h Φ(h) with the exact normal distribution function, not its tanh approximation."""
    return jax.nn.gelu(h, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda h: h,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
    "gelu": _gelu,
}
PIECEWISE_LINEAR = {"linear", "relu"}


def mlp(problem: Problem, width: int, depth: int = 1, activation: str = "linear") -> Network:
    """The network of ``depth`` hidden layers for the problem's inputs, outputs and parametrization.

    params = {"input": E (D, N), "hidden": (W¹, …) each (N, N), empty for depth 1, "readout": V (N, C)}

    Raises ValueError for a width or depth below 1 and for an unknown activation.
    """
    if width < 1 or depth < 1:
        raise ValueError(f"width {width} and depth {depth}: both must be at least 1")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    gamma = output_multiplier(problem.parametrization, problem.richness, width)
    sizes = (problem.num_inputs, *[width] * depth, problem.num_outputs)
    return _mlp(sizes, gamma, activation)


@cache
def _mlp(sizes: tuple[int, ...], gamma: float, activation: str) -> Network:
    phi, num_outputs = ACTIVATIONS[activation], sizes[-1]

    def init(key: Array) -> Params:
        first, *middle, last = (
            jax.random.normal(k, (m, n), jnp.float32)
            for k, m, n in zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
        )
        return {"input": first, "hidden": tuple(middle), "readout": last}

    def forward(params, inputs, taps):
        """f (P, C) and the inputs of every layer, with ``taps`` added to the pre-activations."""
        signal, layer_inputs, last = inputs, [], len(sizes) - 2
        for l, (weights, tap) in enumerate(zip(_matrices(params), taps, strict=True)):
            layer_inputs.append(signal * forward_multiplier(sizes[l]))
            h = layer_inputs[-1] @ weights + tap
            signal = phi(h) if l < last else h
        return signal / gamma, layer_inputs

    def apply(params: Params, inputs: Float[Array, "P D"]) -> Float[Array, "P C"]:
        return forward(params, inputs, [0.0] * (len(sizes) - 1))[0]

    def layer_factors(params: Params, inputs: Float[Array, "P D"]) -> list[tuple[Array, Array]]:
        """Samples do not mix, so one backward pass per output, summed over samples, serves all samples at once."""
        taps = [jnp.zeros((len(inputs), n), inputs.dtype) for n in sizes[1:]]
        _, backward, layer_inputs = jax.vjp(lambda taps: forward(params, inputs, taps), taps, has_aux=True)
        one_hot = jnp.eye(num_outputs, dtype=inputs.dtype)[:, None, :]  # (C, 1, C)
        cotangents = jnp.broadcast_to(one_hot, (num_outputs, len(inputs), num_outputs))
        (derivatives,) = jax.vmap(backward, out_axes=1)(cotangents)  # per layer (P, C, n)
        return list(zip(layer_inputs, derivatives, strict=True))

    return Network(sizes[1], gamma, init, apply, activation in PIECEWISE_LINEAR, layer_factors)


def _matrices(params):
    return (params["input"], *params["hidden"], params["readout"])
