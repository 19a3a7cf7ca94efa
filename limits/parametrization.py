"""Parametrizations: which power of the width stands where.

Weights are N(0,1) at initialisation and every forward factor is explicit, so that in a network of width N
with one output multiplier a parametrization is one exponent a:

    f = (1/γ) · (forward pass with factors 1/√fan-in),    γ = γ0 N^a,    learning rate η = η0 γ²

a = 0 is NTP (the kernel regime), a = 1/2 is μP (mean field); everything between is a kernel regime whose
initial output vanishes.  This module is the one place that turns a width into a factor.
"""

from dataclasses import dataclass
from math import inf, sqrt


@dataclass(frozen=True)
class Parametrization:
    """A name and the exponent a of the output multiplier γ = γ0 N^a; 0 ≤ a ≤ 1/2."""

    name: str
    output_exponent: float

    def __post_init__(self):
        if not 0.0 <= self.output_exponent <= 0.5:
            raise ValueError(
                f"output exponent {self.output_exponent:g}: a limit exists for 0 (NTP) to 0.5 (μP); "
                "above, training is unstable at large width, below, the initial output diverges"
            )


NTP = Parametrization("ntp", 0.0)
MUP = Parametrization("mup", 0.5)
PARAMETRIZATIONS = {p.name: p for p in (MUP, NTP)}


def resolve(parametrization: str | Parametrization) -> Parametrization:
    """The parametrization of that name (or the one given).  Raises ValueError for an unknown name."""
    if isinstance(parametrization, Parametrization):
        return parametrization
    if parametrization not in PARAMETRIZATIONS:
        known = ", ".join(PARAMETRIZATIONS)
        raise ValueError(f"unknown parametrization {parametrization!r}; known: {known}")
    return PARAMETRIZATIONS[parametrization]


def output_multiplier(parametrization: Parametrization, richness: float, width: int) -> float:
    """γ = γ0 N^a, the number that the network's output is divided by."""
    return richness * float(width) ** parametrization.output_exponent


def learning_rate(parametrization: Parametrization, eta0: float, richness: float, width: int) -> float:
    """η = η0 γ², the raw step of plain gradient descent."""
    return eta0 * output_multiplier(parametrization, richness, width) ** 2


def forward_multiplier(fan_in: int) -> float:
    """1/√fan-in, in front of every weight matrix."""
    return 1.0 / sqrt(fan_in)


def laziness(parametrization: Parametrization, width: float) -> float:
    """ε = N^{a − 1/2}: how far one feature moves when the function moves by one; 1 in μP, → 0 in a kernel regime.

    ``width`` may be ``math.inf``.
    """
    if parametrization.output_exponent == 0.5:
        return 1.0
    return 0.0 if width == inf else float(width) ** (parametrization.output_exponent - 0.5)
