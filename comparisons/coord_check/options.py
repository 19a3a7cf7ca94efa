"""The options of `python -m comparisons.coord_check`, and its data: the probes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from comparisons import options as runs
from limits.activations import ACTIVATIONS
from limits.command.arguments import OneOf
from limits.command.start import called
from limits.exponents.algebra import COMMON
from limits.losses import LOSSES
from limits.models import MODELS, read_model
from limits.optimizers import OPTIMIZERS

PROGRAM = called("comparisons.coord_check")
PIXELS, TOKENS = 64, 6  # of the probes
SURE = 7 / 8  # the probability of a probe's class
VOCABULARY = 2  # as few outputs as there can be: of C, sharpness is by (1 + √(C/N))² above its power of N


@dataclass(frozen=True)
class Options(runs.DataOptions):
    """Train networks of growing width and depth for a few steps and compare the exponent of every size with the derived
    one.
    """

    model: Annotated[str, OneOf(MODELS)] = "mlp"
    """Those with blocks are residual, the others plain."""
    param: tuple[str, ...] = ()
    """sp, ntp, mup, mean_field, depth_mup, alpha1, a .toml file, or inline as "base=mup, hidden.learning_rate=1/2";
    default sp ntp mup for plain models, depth_mup alpha1 for residual ones."""
    optimizer: tuple[Annotated[str, OneOf(OPTIMIZERS)], ...] = COMMON
    """One picture each."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """Hidden widths N, at least three."""
    depths: tuple[int, ...] = ()
    """mlp, convnet: hidden layers, one sweep of the widths for each. Residual: blocks L, at least three, swept at the
    second smallest width; the widths are swept at the fewest."""
    block_size: int = 1
    """Matrices per residual block of resmlp, kernels per one of resconvnet."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "tanh"
    """Activation of mlp and resmlp."""
    learning_rate: float | None = None
    """η0; default 0.2, for resconvnet, which is ten times as sharp, 0.02. With cross-entropy a tenth of it, so that f, which
    may grow with the width, saturates no softmax yet: errors are then of one size at all widths."""
    steps: int = 3
    """Gradient steps; exponents that blow up after k of them are compared up to k."""
    seeds: int = 8
    """Networks of the largest width, at least two; up to 8 times as many of the narrower ones."""
    data: str = "probe"
    """probe (8 directions in a plane, for gpt 8 texts, targets ±4, so large that the noise of f(0) does not show in the
    gradients; with cross-entropy classes that are 7/8 sure, so that gradients stay however large f is), gaussian (linear
    teacher), digits (real 8×8 images), or FILE.npz with arrays inputs (P, D) and targets."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the networks."""
    every: bool = False
    """Print every check, not only those that do not agree."""
    rates: bool = False
    """Print the power of N that each layer's learning rate has without multipliers, as derived and as measured: that with which
    its own updates move its output by as much at every width."""
    along: bool = False
    """Measure after every step how far each layer's whole update aligns with what arrives there, N^e: weight decay of decoupled
    optimisers, which balances it, goes as N^(2e − 1)."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Results; default results/coord_check-MODEL-DIGEST, one folder per set of options."""

    def without_effect(self) -> dict[str, str]:
        drawn = ("samples", "inputs", "outputs", "image_size") if self.data == "probe" else ()
        layers = {name: why for name, why in runs.without_effect_on(self.model).items() if name != "pooling"}
        return super().without_effect() | layers | dict.fromkeys(drawn, "the data probe has its own")

    def load_shaped(self) -> runs.Shaped:
        """Inputs, targets and the images' shape; "probe" is made here."""
        if self.data != "probe":
            return super().load_shaped()
        inputs, targets, shape = self._probe()
        if LOSSES[self.loss].of_classes:
            first = np.where(targets[:, :1] > 0, SURE, 1 - SURE)
            targets = np.concatenate([first, 1 - first], axis=1)
        return inputs, targets, shape

    def _probe(self) -> runs.Shaped:
        rng, reads = np.random.default_rng(self.seed), read_model(self.model).reads
        if reads == "tokens":
            texts = rng.integers(VOCABULARY, size=(8, TOKENS)).astype(float)
            return texts, rng.choice([-4.0, 4.0], size=(8, VOCABULARY)), None
        directions = rng.normal(size=(8, 2))
        on_circle = np.sqrt(2) * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        if reads == "vectors":
            return on_circle, 4.0 * (-1.0) ** np.arange(8)[:, None], None
        targets = np.where(np.arange(8) % 4, 4.0, -4.0)  # with a mean: embeddings of places are common to all samples
        return on_circle @ rng.normal(size=(2, PIXELS)), targets[:, None], None
