"""The options of `python -m comparisons.convergence`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from comparisons import options as runs
from limits.command.start import called

PROGRAM = called("comparisons.convergence")


@dataclass(frozen=True, kw_only=True)
class Options(runs.TrainingOptions):
    """Train networks of growing width, integrate their infinite-width limit, and fit how fast they approach it."""

    param: str = "mup"
    """Parametrization: mup (maximal update), ntp (neural tangent), sp (standard), mean_field, for residual models depth_mup
    and alpha1; or your own: a .toml file, or inline as "base=mup, readout.multiplier=-3/4" (see python -m limits.exponents)."""
    widths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    """Hidden widths N, at least three."""
    depth: int = 2
    """Hidden layers of mlp, convolutions of convnet, blocks of the others."""
    seeds: int = 32
    """Networks per width, at least two."""
    measure_every: int | None = None
    """Steps between two measurements; default 4, or all steps if they are fewer."""
    learning_rate: float = 0.5
    """η0; of SGD the raw step is η0 γ², the edge of stability 2/η0."""
    reference: Literal["theory", "largest-width"] | None = None
    """What is subtracted: the limit (default where it is known; from an observable that it leaves open, the largest
    network), or from all the largest network (the paper's way; biased)."""
    top_k: int | None = None
    """How many leading eigenvalues are followed; default 3, or as many as the narrowest network has parameters."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Results; default results/MODEL-PARAM-DIGEST, one folder per set of options."""

    def adapted(self) -> "Options":
        options = super().adapted()
        return replace(options, measure_every=min(4, max(self.steps, 1))) if self.measure_every is None else options
