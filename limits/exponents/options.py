"""The options of `python -m limits.exponents`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from limits.command.arguments import OneOf
from limits.command.start import called
from limits.losses import LOSSES

PROGRAM = called("limits.exponents")


@dataclass(frozen=True)
class Options:
    """Which power of the width N and the depth L goes where, derived from what each parametrization asks for.

    A power N^{-1/2} is printed as it stands (in JSON: "-1/2").  Weights are N(0,1) unless --gauge says otherwise.
    """

    param: str | None = None
    """One parametrization: sp, ntp, mup, mean_field, depth_mup, alpha1, depth_family; or your own, which is classified:
    a .toml file, or inline as "base=mup, hidden.learning_rate=-1/2, block.multiplier.L=-1"."""
    optimizer: tuple[str, ...] = ()
    """sgd, momentum, adam, adamw, sign, lion, lamb, adafactor, muon (or muon_unit, …), shampoo, soap, or all that differ; sgd
    and adam if not given."""
    scale: tuple[Literal["unit", "keller", "spectral", "match_rms"], ...] = ()
    """Of muon, what stands in front of UVᵀ: unit 1, keller √max(1, out/in), spectral √(out/in), match_rms 0.2 √max(out, in);
    all if not given."""
    architecture: Literal["plain", "residual"] | None = None
    """Both if not given."""
    depth: int = 3
    """Hidden layers of the plain network."""
    block_size: int = 1
    """Matrices per residual block."""
    format: Literal["text", "markdown", "latex", "json"] = "text"
    """Of the table."""
    gauge: Literal["init_std", "multiplier", "learning_rate"] = "init_std"
    """Which of the three has no power: init_std (weights N(0,1)), multiplier, or learning_rate."""
    explain: bool = False
    """Print the derivation, condition by condition."""
    noise: bool = False
    """Print how learning rate, weight decay λ, averages and ε go with the batch size B and the horizon D (samples seen), in
    every role and parametrization: powers that multiply those of N and L."""
    impose: tuple[str, ...] = ()
    """Further equations, as role.quantity.N=power."""
    loss: Annotated[str, OneOf(LOSSES)] = "mse"
    """Which is trained on: it decides the learning rate of sp, and the regime of your own exponents."""
