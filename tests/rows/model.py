"""A residual model: its name, and who builds it at a width.  It knows no power of the width; ``parametrized`` does."""

import jax.numpy as jnp
import numpy as np

from finite.networks import Architecture, once, parametrized, standard_normal
from finite.networks.build import BUILDERS
from limits.models import MODELS, Layers


@once
def architecture(num_inputs, width, depth, num_outputs):
    """h ← h + tanh(h) · (h W)"""
    shapes = {"input": (num_inputs, width), "block": (depth, width, width), "readout": (width, num_outputs)}

    def apply(params, inputs):
        h = inputs / np.sqrt(num_inputs) @ params["input"]
        for block in params["block"]:
            h = h + jnp.tanh(h) * (h @ block)
        return h @ params["readout"]

    return Architecture(lambda key: standard_normal(key, shapes), apply)


def gated(problem, width, model):
    built = architecture(problem.num_inputs, width, model.depth, problem.num_outputs)
    return parametrized(built, problem, "residual", width, model.depth)


MODELS.add(Layers("gated", "residual", "gated", activation="tanh", description="gated residual blocks"))
BUILDERS["gated", "residual"] = gated
