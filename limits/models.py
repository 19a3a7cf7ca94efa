"""The models by name, without a width: which layers a network has, a row each.

``linear2``, ``linear3``, … have so many weight matrices and no activation, ``mlp2``, ``mlp3``, … an activation between them;
the others are ``MODELS``.  Networks of their layers are built by ``finite.networks.build``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from limits.activations import ACTIVATIONS, Activation
from limits.command.later import jnp
from limits.rows import Table

DEEPEST = 1000  # layers of a plain network, which are compiled one by one


@dataclass(frozen=True)
class Pooling:
    """A row.

    reduction     (windows, axis=) → one number of each window; traceable
    first         whether it may come before an activation that only grows: of the largest, φ is the largest
    has_kernel    whether it has an analytic kernel
    description   for the help of the commands
    """

    name: str
    reduction: Callable[..., Any]
    first: bool = False
    has_kernel: bool = False
    description: str = ""


POOLINGS = Table("pooling", (
    Pooling("max", lambda windows, axis: jnp.max(windows, axis=axis), first=True, description="the largest"),
    Pooling("average", lambda windows, axis: jnp.mean(windows, axis=axis), has_kernel=True,
            description="has an analytic kernel, so a limit in NTP"),
))  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """A row.  What is None is chosen with the problem.

    architecture  "plain" or "residual"
    family        of layers: with the architecture what ``finite.networks.build`` builds it by; "perceptron" is what theories of
                  perceptrons know
    reads         what a row of inputs is: "vectors", "images" or "tokens"
    depth, activation, block_size    its own, as of ``Model``
    pools         whether there is a choice of pooling
    depths        at which its exponents are measured; () as usual
    small_rate    η0 at which a few steps are stable
    description   for the help of the commands
    """

    name: str
    architecture: str
    family: str = "perceptron"
    reads: str = "vectors"
    depth: int | None = None
    activation: str | None = None
    block_size: int | None = 1
    pools: bool = False
    depths: tuple[int, ...] = ()
    small_rate: float = 0.2
    description: str = ""


RELU_IMAGES = {"reads": "images", "activation": "relu", "pools": True}
MODELS = Table("model", (
    Layers("mlp", "plain", description="DEPTH hidden layers"),
    Layers("resmlp", "residual", block_size=None, depths=(4, 8, 16, 32, 64),  # cheap ones
           description="DEPTH residual blocks, each of BLOCK-SIZE matrices"),
    Layers("conv", "plain", "conv", depth=2, **RELU_IMAGES, description="of images, two convolutions and a readout"),
    Layers("convnet", "plain", "convnet", **RELU_IMAGES, depths=(4,),
           description="of images, DEPTH convolutions in three stages"),
    Layers("resconvnet", "residual", "convnet", block_size=None, **RELU_IMAGES,
           depths=(6, 12, 24, 48), small_rate=0.02,  # of three stages, and sharp
           description="of images, a convolution, then DEPTH residual blocks of BLOCK-SIZE ones in three stages"),
    Layers("vit", "residual", "vit", "images", activation="gelu", block_size=2,
           description="of images, a transformer over patches, DEPTH blocks of attention and perceptron"),
    Layers("gpt", "residual", "gpt", "tokens", activation="gelu", block_size=2,
           description="of tokens, the same, causal: predicts the one behind the last"),
))  # fmt: skip


@dataclass(frozen=True)
class Model:
    """Which layers a network has.

    architecture  "plain" or "residual"
    depth         L: hidden layers, or residual blocks
    activation    a name of ``limits.activations``
    block_size    matrices one behind the other in a residual branch
    family        what the layers are
    pooling       a name of ``POOLINGS``, of models that have a choice
    reads         what a row of inputs is: "vectors", "images" or "tokens"
    """

    architecture: str
    depth: int
    activation: str
    block_size: int = 1
    family: str = "perceptron"
    pooling: str = "max"
    reads: str = "vectors"

    @property
    def nonlinearity(self) -> Activation:
        """The row of its activation."""
        return ACTIVATIONS[self.activation]


def layers_of(name: str) -> Layers:
    """The row of that name; a number in the name is a depth.  Raises ValueError for an unknown name."""
    known = f"linear2, linear3, …, mlp2, mlp3, …, {', '.join(MODELS)}"
    numbered = re.fullmatch(r"(linear|mlp)([0-9]+)", name)
    if numbered and int(numbered[2]) < 2:
        raise ValueError(f"model {name!r}: a network has at least 2 weight matrices; known models: {known}")
    if numbered:
        own = "linear" if numbered[1] == "linear" else None
        return replace(MODELS["mlp"], name=name, depth=int(numbered[2]) - 1, activation=own)
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {known}")
    return MODELS[name]


def read_model(
    name: str, *, activation: str = "tanh", depth: int = 2, block_size: int = 1, pooling: str = "max"
) -> Model:
    """The model of that name.

    What it has of its own is its own, whatever is chosen.  Raises ValueError for an unknown name, activation or pooling and
    for sizes below 1.
    """
    row = layers_of(name)
    ACTIVATIONS.find(activation)
    POOLINGS.find(pooling)
    for label, size in (("depth", depth), ("block size", block_size)):
        if size < 1:
            raise ValueError(f"{label} {size} must be at least 1")
    depth = depth if row.depth is None else row.depth
    if depth > DEEPEST and row.architecture == "plain":
        raise ValueError(f"{depth} layers: wanted at most {DEEPEST}; the many blocks of residual networks are one loop")
    own = row.activation or activation, row.block_size or block_size
    return Model(row.architecture, depth, *own, row.family, pooling if row.pools else next(iter(POOLINGS)), row.reads)
