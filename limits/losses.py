"""The losses: of one sample ℓ(f, y), and their derivatives in the output f.  L(f) = (1/P) Σ_p ℓ(f(x_p), y_p) everywhere.

    mse             ℓ = ½ |f − y|²                        sum over outputs
    cross_entropy   ℓ = log Σ_c exp f_c − y·f             natural logarithm; each y is a probability vector, usually one-hot
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from limits.command.later import jax, jnp
from limits.rows import Table

Outputs = Float[Any, "*samples C"]  # arrays of JAX, whose class would have it imported


@dataclass(frozen=True)
class Loss:
    """A row: ℓ and its derivatives; outputs and targets (…, C), samples on the leading axes; traceable.

    value       ℓ (…,)
    gradient    ∂ℓ/∂f (…, C): f − y for MSE, softmax(f) − y for cross-entropy
    curvature   ∂²ℓ/∂f² (…, C, C): 1 for MSE, diag p − ppᵀ with p = softmax(f) for cross-entropy
    root        B (…, C, C) with BBᵀ = ∂²ℓ/∂f²: 1, and diag √p − p√pᵀ
    quadratic   whether ∂²ℓ/∂f² = 1 for every output: then G = JᵀJ/P has the nonzero eigenvalues of the NTK, and ∂ℓ/∂f is as
                large as f
    of_classes  whether targets are probability vectors, one entry per class; ∂ℓ/∂f is of order one then, however large f is
    description for the help of the commands
    """

    name: str
    value: Callable[[Outputs, Outputs], Float[Any, "*samples"]]
    gradient: Callable[[Outputs, Outputs], Outputs]
    curvature: Callable[[Outputs], Float[Any, "*samples C C"]]
    root: Callable[[Outputs], Float[Any, "*samples C C"]]
    quadratic: bool = False
    of_classes: bool = False
    description: str = ""

    def mean(self, outputs: Outputs, targets: Outputs) -> Float[Any, ""]:
        """L: the mean over all samples."""
        return jnp.mean(self.value(outputs, targets))


def _ones(outputs):
    return jnp.broadcast_to(jnp.eye(outputs.shape[-1], dtype=outputs.dtype), (*outputs.shape, outputs.shape[-1]))


def _softmax_curvature(outputs):
    p = jax.nn.softmax(outputs)
    return p[..., None] * jnp.eye(p.shape[-1], dtype=p.dtype) - p[..., :, None] * p[..., None, :]


def _softmax_root(outputs):
    p = jax.nn.softmax(outputs)
    root = jnp.sqrt(p)
    return root[..., None] * jnp.eye(p.shape[-1], dtype=p.dtype) - p[..., :, None] * root[..., None, :]


LOSSES = Table("loss", (
    Loss("mse", lambda f, y: 0.5 * jnp.sum((f - y) ** 2, axis=-1), lambda f, y: f - y, _ones, _ones, quadratic=True,
         description="half the squared distance"),
    Loss("cross_entropy", lambda f, y: jax.nn.logsumexp(f, axis=-1) - jnp.sum(y * f, axis=-1),
         lambda f, y: jax.nn.softmax(f) - y, _softmax_curvature, _softmax_root, of_classes=True,
         description="of classes, one per output"),
))  # fmt: skip

MSE = LOSSES["mse"]


def check(name: str, targets: Float[np.ndarray, "P C"]) -> None:
    """Raises ValueError, in one line, for an unknown loss and for targets that it cannot have."""
    if LOSSES.find(name).of_classes:
        if targets.shape[1] < 2:
            wanted = "it wants one output per class, at least 2; in a file, integer labels are classes"
            raise ValueError(f"cross-entropy of one output is zero: {wanted}")
        if targets.min() < 0 or not np.allclose(targets.sum(axis=1), 1.0, atol=1e-6):
            raise ValueError("cross-entropy wants a probability vector per sample as its target, one-hot for a class")
