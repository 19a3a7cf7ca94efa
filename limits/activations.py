"""The activations by name, for both rooms."""

from collections.abc import Callable
from typing import Any

from limits.later import jax, jnp


def _gelu(h):
    """h Φ(h) with the exact normal distribution function, not its tanh approximation."""
    return jax.nn.gelu(h, approximate=False)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda h: h,
    "relu": lambda h: jax.nn.relu(h),
    "tanh": lambda h: jnp.tanh(h),
    "erf": lambda h: jax.lax.erf(h),
    "gelu": _gelu,
}
PIECEWISE_LINEAR = {"linear", "relu"}
KINKED = {"relu"}  # φ' = 1 where h > 0, else 0


def check(name: str) -> None:
    """Raises ValueError for an unknown activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
