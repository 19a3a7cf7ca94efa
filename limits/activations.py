"""The activations by name, for both rooms."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array


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
KINKED = {"relu"}  # φ' = 1 where h > 0, else 0


def check(name: str) -> None:
    """Raises ValueError for an unknown activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
