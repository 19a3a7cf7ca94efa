"""The activations by name, for both rooms: a row each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limits.command.later import jax, jnp
from limits.rows import Table


@dataclass(frozen=True)
class Activation:
    """φ, entry by entry, and what theories ask of it.

    phi       h → φ(h) on arrays, traceable
    slopes    φ' below and above 0 of a piecewise linear φ with φ(0) = 0; None for any other
    kernel    of neural-tangents' ``stax`` makes the layer with the analytic kernels of φ; None where there are none
    """

    name: str
    phi: Callable[[Any], Any]
    slopes: tuple[float, float] | None = None
    kernel: Callable[[Any], Any] | None = None

    @property
    def linear(self) -> bool:
        """φ(h) = h"""
        return self.slopes == (1.0, 1.0)

    @property
    def piecewise_linear(self) -> bool:
        """φ'' = 0 but at 0: f is linear in each single weight matrix, as long as no neuron crosses 0."""
        return self.slopes is not None

    @property
    def kinked(self) -> bool:
        """Piecewise linear with two slopes: the neurons that cross 0 are a density that no derivative contains."""
        return self.slopes is not None and self.slopes[0] != self.slopes[1]


def _tanh_kernel(stax):
    from limits.kernel import tanh

    return tanh.layer(stax)


def _gelu(h):
    """h Φ(h) with the exact normal distribution function, not its tanh approximation."""
    return jax.nn.gelu(h, approximate=False)


ACTIVATIONS = Table("activation", (
    Activation("linear", lambda h: h, slopes=(1.0, 1.0), kernel=lambda stax: stax.Identity()),
    Activation("relu", lambda h: jax.nn.relu(h), slopes=(0.0, 1.0), kernel=lambda stax: stax.Relu()),
    Activation("tanh", lambda h: jnp.tanh(h), kernel=_tanh_kernel),
    Activation("erf", lambda h: jax.lax.erf(h), kernel=lambda stax: stax.Erf()),
    Activation("gelu", _gelu, kernel=lambda stax: stax.Gelu()),
))  # fmt: skip
