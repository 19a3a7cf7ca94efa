"""The activations by name, for both rooms: a row each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from limits.command.later import jax, jnp
from limits.rows import Table


@dataclass(frozen=True)
class Activation:
    """φ, entry by entry, and what theories ask of it.

    phi       h → φ(h) on arrays, traceable
    slopes    φ' below and above 0 of a piecewise linear φ with φ(0) = 0 and no other kink; None for any other
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
    def bent(self) -> bool:
        """Piecewise linear, and not linear."""
        return self.piecewise_linear and self.slopes[0] != self.slopes[1]

    @property
    def kinked(self) -> bool:
        """Whether φ' jumps somewhere: the neurons that cross a kink are a density that no derivative contains."""
        return self.bent if self.piecewise_linear else _jumps(self.phi)


@cache
def _jumps(phi, reach=32.0, cells=4096, least=1e-3) -> bool:
    """Whether φ' jumps, by so much beside 1 + |φ'|, within ± so far: three times the cell is cut up in which it changes most.

    What is left of it is 2 · 32/4096³ = 1e-9 wide, in which a smooth φ' does not change.
    """
    with jax.enable_x64(True):
        slope, left, width = jax.jit(jax.vmap(jax.grad(phi))), -reach, 2 * reach
        for _ in range(3):
            slopes = slope(left + width * jnp.linspace(0.0, 1.0, cells + 1))
            changes = abs(jnp.diff(slopes)) / (1 + abs(slopes[:-1]))
            left, width = left + width * float(changes.argmax()) / cells, width / cells
        return bool(changes.max() > least)


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
