"""The options of `python -m comparisons.landscape`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from comparisons import options as runs
from finite.data.arrays import holds_classes
from finite.data.images import holds_images
from limits.command.arguments import OneOf
from limits.command.start import called
from limits.losses import LOSSES
from limits.models import MODELS
from limits.optimizers import OPTIMIZERS
from limits.trajectory import OBSERVABLES, RANK, stored

PROGRAM = called("comparisons.landscape")

FOLLOWED = OneOf(OBSERVABLES, only=False, where=lambda row: row.leads and row.stored)


@dataclass(frozen=True, kw_only=True)
class Options(runs.OwnOptions):
    """Train networks of growing width, or depth, and see whether the curvature of their loss stays the same.

    Or networks of your own, --model FILE.py:NAME: raw curvature, of the weights as they are stored.
    """

    param: tuple[str, ...] = ("mup", "ntp")
    """Side by side: mup (maximal update), ntp (neural tangent), sp (standard), mean_field, for residual models depth_mup,
    alpha1; or your own: a .toml file, or inline as "base=mup, readout.multiplier=-3/4" (see python -m limits.exponents)."""
    learning_rate: tuple[float, ...] = ()
    """η0 of each parametrization, or one for all; of SGD the raw step is η0 γ². Default 0.5, of ntp 7, of one of your own 1."""
    model: Annotated[str, OneOf(MODELS, only=False)] = "conv"
    """Or a network of your own, FILE.py:NAME: a function build(width, key) that returns (params, apply), or a
    finite.networks.own.Model. There are"""
    samples: int | None = None
    """P, drawn at random, as they come; default 2000 for patches10, 40 for gaussian, 256 for digits and texts, for other files
    all."""
    usual_samples: ClassVar[Mapping[str, int]] = {"patches10": 2000}
    loss: Annotated[str, OneOf(LOSSES, only=False)] | None = None
    """Default cross_entropy; mse for FILE.npz whose targets are no classes. Of your own network also FILE.py:NAME."""
    widths: tuple[int, ...] = (16, 64, 256)
    """Widths N, at least two; one with several depths."""
    depths: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--depth"])] = (2,)
    """Hidden layers of mlp, convolutions of convnet, blocks of the others; with several, networks of growing depth."""
    seeds: int = 3
    """Networks per size, at least two; of two an exponent hardly has an interval."""
    steps: int = 256
    measure_every: int | None = None
    """Steps between two measurements, a divisor of the steps; by default one that leaves about eight."""
    batch_size: int | Literal["all"] | None = None
    """Samples per minibatch; default 128, or all of them if there are no more."""
    usual_batch: ClassVar[int | None] = 128
    observables: tuple[Annotated[str, FOLLOWED], ...] | None = None
    """What is followed. Default the loss and what has an edge of stability: hessian_eigenvalues, or where gradients are
    preconditioned preconditioned_sharpness. Of your own network loss, hessian_eigenvalues, hessian_trace, gradient_noise and,
    where there is an adam in its optimizer, preconditioned_sharpness. There are"""
    top_k: int = 1
    """How many leading eigenvalues."""
    curvature_samples: int = 256
    """Curvature is that of the loss of the first so many samples; of all if there are fewer."""
    density: bool = False
    """Also the density of all eigenvalues of the Hessian, by stochastic Lanczos quadrature: 8 times 32 products each time."""
    tolerance: float = 1e-2
    """Relative, of the eigenvalues."""
    limit: bool = True
    """Whether the infinite network is followed too, where it is known: sampled ones (mlp3, resmlp, ...) take minutes each."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Results; default results/landscape-MODEL-DIGEST, one folder per set of options."""

    def adapted(self) -> "Options":
        options = super().adapted()
        if self.measure_every is None:
            options = replace(options, measure_every=runs.usual_interval(self.steps))
        options = replace(options, observables=self.followed)
        return options if self.loss or self.own else replace(options, loss=options.usual_loss)

    @property
    def followed(self) -> tuple[str, ...]:
        if self.observables is not None:
            return self.observables
        return "loss", "hessian_eigenvalues" if self.own else stored(OPTIMIZERS.find(self.optimizer).sharpness)

    @property
    def usual_data(self) -> str | None:
        """patches10, also for models of vectors."""
        if self.own:
            return None
        return "plays" if self.network.reads == "tokens" else "patches10"

    @property
    def usual_loss(self) -> str:
        numbers = self.suffix == ".npz" and not holds_images(self.data) and not holds_classes(self.data)
        return "mse" if numbers else "cross_entropy"

    def without_effect(self) -> dict[str, str]:
        wanted = [OBSERVABLES[name] for name in self.followed if name in OBSERVABLES]
        curved = self.density or set(self.followed) - {"loss"}
        ranked, by_lanczos = [row for row in wanted if row.axis is RANK], [row for row in wanted if row.by_lanczos]
        asked = {"curvature_samples": curved, "top_k": ranked, "tolerance": by_lanczos}
        why = f"nothing that depends on it is among the observables {' '.join(self.followed)}"
        return super().without_effect() | {name: why for name, names in asked.items() if not names}
