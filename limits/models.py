"""The models by name, without a width: which layers a network has.

    linear2, linear3, …   so many weight matrices, no activation
    mlp2, mlp3, …         so many weight matrices, an activation between them
    mlp                   ``depth`` hidden layers: mlp with depth + 1 matrices
    resmlp                residual perceptron of ``depth`` blocks, each of ``block_size`` matrices
    conv                  SimpleConvNet: two convolutions and a readout, ReLU
    convnet               ``depth`` convolutions in three stages and a readout, ReLU
    resconvnet            a convolution, then ``depth`` residual blocks of ``block_size`` convolutions in three stages, ReLU
    vit                   transformer over patches of an image, ``depth`` blocks of attention and perceptron, GELU
    gpt                   the same, causal, over tokens: predicts the token behind its last one
"""

import re
from dataclasses import dataclass

from limits.activations import ACTIVATIONS, Activation

READS = {"perceptron": "vectors", "conv": "images", "convnet": "images", "vit": "images", "gpt": "tokens"}  # by family
POOLINGS = ("max", "average")
NAMED = ("mlp", "resmlp", "conv", "convnet", "resconvnet", "vit", "gpt")
DEEPEST = 1000  # layers of a plain network, which are compiled one by one
KNOWN = f"linear2, linear3, …, mlp2, mlp3, …, {', '.join(NAMED)}"


@dataclass(frozen=True)
class Model:
    """Which layers a network has.

    architecture  "plain" or "residual"
    depth         L: hidden layers, or residual blocks
    activation    a name of ``limits.activations``
    block_size    matrices one behind the other in a residual branch
    family        what the layers are: "perceptron", "conv", "convnet", "vit" or "gpt"
    pooling       of conv and convnet: "max", or "average", which has analytic kernels
    """

    architecture: str
    depth: int
    activation: str
    block_size: int = 1
    family: str = "perceptron"
    pooling: str = "max"

    @property
    def reads(self) -> str:
        """What a row of inputs is: "vectors", "images" or "tokens"."""
        return READS[self.family]

    @property
    def nonlinearity(self) -> Activation:
        """The row of its activation."""
        return ACTIVATIONS[self.activation]


def read_model(
    name: str, *, activation: str = "tanh", depth: int = 2, block_size: int = 1, pooling: str = "max"
) -> Model:
    """The model of that name.

    ``activation`` is of mlp… and resmlp, ``depth`` and ``block_size`` of those that do not say it themselves, ``pooling`` of
    conv… .  Raises ValueError for an unknown name, activation or pooling and for sizes below 1.
    """
    numbered = re.fullmatch(r"(linear|mlp)([0-9]+)", name)
    if numbered and int(numbered[2]) < 2:
        raise ValueError(f"model {name!r}: a network has at least 2 weight matrices; known models: {KNOWN}")
    if not numbered and name not in NAMED:
        raise ValueError(f"unknown model {name!r}; known: {KNOWN}")
    ACTIVATIONS.find(activation)
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; known: {', '.join(POOLINGS)}")
    for what, size in (("depth", depth), ("block size", block_size)):
        if size < 1:
            raise ValueError(f"{what} {size} must be at least 1")
    deep = int(numbered[2]) - 1 if numbered else depth
    if deep > DEEPEST and (numbered or name in ("mlp", "convnet")):
        raise ValueError(f"{deep} layers: wanted at most {DEEPEST}; the many blocks of residual networks are one loop")
    if numbered:
        return Model("plain", deep, "linear" if numbered[1] == "linear" else activation)
    return {
        "mlp": Model("plain", depth, activation),
        "resmlp": Model("residual", depth, activation, block_size),
        "conv": Model("plain", 2, "relu", 1, "conv", pooling),
        "convnet": Model("plain", depth, "relu", 1, "convnet", pooling),
        "resconvnet": Model("residual", depth, "relu", block_size, "convnet", pooling),
        "vit": Model("residual", depth, "gelu", 2, "vit"),
        "gpt": Model("residual", depth, "gelu", 2, "gpt"),
    }[name]
