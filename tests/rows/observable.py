"""A per-layer observable: what it is, and who measures it, on the weights as they act."""

import jax.numpy as jnp

from finite.curvature.observers import OBSERVERS, Measured, Observer
from limits.trajectory import OBSERVABLES, Axis, Observable


def norms(at):
    matrices = at.program.architecture.matrices(at.params).values()
    yield {"layer_norms": Measured(jnp.stack([jnp.linalg.norm(matrix, 2) for matrix in matrices]))}


NORMS = Observable("layer_norms", r"$\|W\|_2$", "spectral norms", "of each layer's weights", Axis("layer"), in_limits=False)

OBSERVABLES.add(NORMS)
OBSERVERS.add(Observer("norms", ("layer_norms",), norms, acting=True))
