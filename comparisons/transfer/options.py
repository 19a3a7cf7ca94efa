"""The options of `python -m comparisons.transfer`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from comparisons import options as runs
from limits.command.start import called

PROGRAM = called("comparisons.transfer")


@dataclass(frozen=True, kw_only=True)
class Options(runs.OwnOptions):
    """Train networks of growing width with each learning rate, and see whether the best one moves with the width.

    With their limit, where it is known. Or networks of your own, --model FILE.py:NAME, whose optimizer's updates η0 multiplies.
    """

    param: tuple[str, ...] = ("mup", "ntp")
    """Side by side: mup (maximal update), ntp (neural tangent), sp (standard), mean_field, for residual models depth_mup,
    alpha1; or your own: a .toml file, or inline as "base=mup, readout.multiplier=-3/4" (see python -m limits.exponents)."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Hidden widths N, at least two; one is enough with several depths."""
    depths: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--depth"])] = (2,)
    """Hidden layers of mlp, convolutions of convnet, blocks of the others; with several, the optimum's way with the depth."""
    learning_rates: tuple[float, ...] = (0.1, 0.15, 0.22, 0.33, 0.47, 0.68, 1.0, 1.5, 2.2, 3.3, 4.7, 6.8, 10.0, 15.0)
    """η0, at least three; of SGD the raw step is η0 γ²."""
    seeds: int = 8
    """Networks per size and learning rate, at least two."""
    measure_every: int | None = None
    """Steps between two measurements of the loss, and of the sharpness, a divisor of the steps; by default one that leaves
    about eight."""
    sharpness_seeds: int = 2
    """How many networks of each size are trained again, at the optimum, to follow their sharpness; 0: none."""
    curvature_samples: int = 1024
    """The sharpness is that of the loss of the first so many samples; of all if there are fewer."""
    limit: bool = True
    """Whether the infinite network is computed too, where it is known: sampled ones (mlp3, resmlp, ...) take minutes each."""
    richness: float = 4.0
    """γ0: how far features move; towards 0 is the kernel regime."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Results; default results/transfer-MODEL-DIGEST, one folder per set of options."""

    def adapted(self) -> "Options":
        options = super().adapted()
        return replace(options, measure_every=runs.usual_interval(self.steps)) if self.measure_every is None else options

    def without_effect(self) -> dict[str, str]:
        unseen = {} if self.sharpness_seeds else {"curvature_samples": "with sharpness-seeds 0 no curvature is measured"}
        return super().without_effect() | unseen
