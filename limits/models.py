"""The models by name, without a width: which layers a network has.

    linear2, linear3, …   so many weight matrices, no activation
    mlp2, mlp3, …         so many weight matrices, an activation between them
    mlp                   ``depth`` hidden layers: mlp with depth + 1 matrices
    resmlp                residual perceptron of ``depth`` blocks, each of ``block_size`` matrices
"""

import re
from dataclasses import dataclass

from limits import activations

KNOWN = "linear2, linear3, …, mlp2, mlp3, …, mlp, resmlp"


@dataclass(frozen=True)
class Model:
    """architecture "plain" or "residual" · depth L: hidden layers, or residual blocks · activation · matrices per block."""

    architecture: str
    depth: int
    activation: str
    block_size: int = 1


def read_model(name: str, *, activation: str = "tanh", depth: int = 2, block_size: int = 1) -> Model:
    """The model of that name.  ``activation`` is of all but linear…; ``depth``, ``block_size`` of those that do not say it.

    Raises ValueError for an unknown name or activation and for sizes below 1.
    """
    numbered = re.fullmatch(r"(linear|mlp)([0-9]+)", name)
    if numbered and int(numbered[2]) < 2:
        raise ValueError(f"model {name!r}: a network has at least 2 weight matrices; known models: {KNOWN}")
    if not numbered and name not in ("mlp", "resmlp"):
        raise ValueError(f"unknown model {name!r}; known: {KNOWN}")
    activations.check(activation)
    for what, size in (("depth", depth), ("block size", block_size)):
        if size < 1:
            raise ValueError(f"{what} {size} must be at least 1")
    if name == "resmlp":
        return Model("residual", depth, activation, block_size)
    linear = numbered is not None and numbered[1] == "linear"
    return Model("plain", int(numbered[2]) - 1 if numbered else depth, "linear" if linear else activation)
