"""The options of `python -m comparisons.audit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from limits.command.start import called

PROGRAM = called("comparisons.audit")


@dataclass(frozen=True)
class Options:
    """Measure a network of your own at several widths under its own optimiser, and say whether every exponent is that of μP (or
    of another parametrization), and if not, which number of which weight would have to change.

    Exit status 0 where all is as it should be, 1 where it is not, 2 for a mistake.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.py:NAME")] = ""
    """A function build(width, key) that returns (params, apply), or a finite.networks.own.Model, which has loss and batch."""
    loss: str = ""
    """mse, cross_entropy, or FILE.py:NAME of a function (outputs, targets) that returns one number."""
    batch: str = ""
    """FILE.npz with arrays inputs and targets, or FILE.py:NAME of a pair (inputs, targets)."""
    optimizer: str = ""
    """Python that makes an optax transformation, of optax and width: "optax.adamw(1e-3)"; or FILE.py:NAME of one, or of a
    function of the width (or of width and params)."""
    param: str = "mup"
    """The parametrization that is asked for: mup, sp, ntp, mean_field, or exponents of your own as in limits.exponents."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """At least three."""
    seeds: int = 3
    """Networks of every width, at least two."""
    steps: int = 3
    """Of the optimiser, before sizes are compared."""
    every: bool = False
    """Print every exponent, with its 95 % interval, beside the power that is wanted."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The picture, .png or .pdf; none if not given."""
