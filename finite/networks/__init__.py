"""Networks of width N: pure functions over a pytree of weights, one file per architecture."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, Float, PyTree

Params = PyTree[Float[Array, "..."]]  # a dictionary whose top-level keys are the roles: input, hidden, readout, …
Apply = Callable[[Params, Float[Array, "P D"]], Float[Array, "P C"]]


@dataclass(frozen=True)
class Network:
    """A network of one width, as functions; it holds no weights.

    width             N
    gamma             γ, what the output is divided by; γ² rescales curvature and learning rate
    init              key → params, always drawn in float32, so that one key is one network at either precision
    apply             (params, inputs (P, D)) → outputs f (P, C), in the params' precision
    layerwise_linear  f is linear in each single weight matrix, hence tr R = 0 and tr H = tr G exactly
    layer_factors     (params, inputs) → one pair per weight matrix: the layer's inputs a (P, m) and the outputs'
                      derivatives b (P, C, n) by its pre-activations, all multipliers included, so that
                      ∂f_c(x_p)/∂weights = a(p) b(p, c)ᵀ.  None where the weights are not plain matrices.

    Compiled functions are keyed on the network: builders return the same object for the same arguments.
    """

    width: int
    gamma: float
    init: Callable[[Array], Params]
    apply: Apply
    layerwise_linear: bool = False
    layer_factors: Callable[[Params, Float[Array, "P D"]], list[tuple[Array, Array]]] | None = None
