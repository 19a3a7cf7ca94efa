"""Perceptrons and their training written out by hand, plain and residual, with weights as stored: an oracle.

Every power of the width N, the depth L and the richness γ0 is written here; none is taken from the package.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

NUMPY_ACTIVATIONS = {
    "linear": lambda h: h,
    "relu": lambda h: np.maximum(h, 0),
    "tanh": np.tanh,
    "erf": scipy.special.erf,
    "gelu": lambda h: h * scipy.special.ndtr(h),
}
TRACED_ACTIVATIONS = {"linear": lambda h: h, "relu": lambda h: jnp.where(h > 0, h, 0.0), "tanh": jnp.tanh}


class Numbers(NamedTuple):
    """By role, for weights that start as N(0, 1)."""

    multiplier: dict[str, float]
    rate: dict[str, float]  # over η0
    gradient: dict[str, float]  # the unit of Adam's ε


def numbers(name: str, optimizer: str, N: int, L: int, richness: float) -> Numbers:
    """What stands in front of the weights, their learning rates, and the size of their gradient's entries at step 0.

    What arrives at a matrix is of order one, and what comes back to it is the readout's multiplier.
    """
    n, kernel = N**-0.5, name in ("sp", "ntp")
    branch = {"depth_mup": L**-0.5, "alpha1": 1.0 / L}.get(name, 1.0)
    out = (n if kernel else 1.0 / N) / richness
    multiplier = {"input": 1.0, "hidden": n, "block_inner": n, "block": n * branch, "readout": out}
    before = {"input": 1.0, "hidden": n, "block_inner": n * branch, "block": n * branch, "readout": 1.0}
    if optimizer == "sgd":
        everywhere = richness**2 * (1.0 if kernel else N)
        first, inside = {"sp": 1.0 / N}.get(name, 1.0), {"alpha1": L}.get(name, 1.0)
        rate = {"input": first, "hidden": 1.0, "block_inner": inside, "block": inside, "readout": 1.0}
    else:
        everywhere = richness / N if kernel else richness
        first, hidden = {"sp": n}.get(name, 1.0), 1.0 if kernel else n
        inside = hidden * {"depth_mup": L**-0.5}.get(name, 1.0)
        rate = {"input": first, "hidden": hidden, "block_inner": inside, "block": inside, "readout": 1.0}
    rate = {role: everywhere * r for role, r in rate.items()}
    return Numbers(multiplier, rate, {role: out * g for role, g in before.items()})


def forward(params, multiplier, inputs, phi):
    """[(layer, what arrives, what its matrix makes of it), …] of every layer and block, in order; the last output is f.

    "stream" is what stands behind a block: nothing arrives there.
    """
    x = inputs / np.sqrt(inputs.shape[1])
    found = [("input", x, multiplier["input"] * (x @ params["input"]))]
    for l, W in enumerate(params.get("hidden", ())):
        x = phi(found[-1][2])
        found.append((f"hidden {l + 2}", x, multiplier["hidden"] * (x @ W)))
    for l in range(len(params.get("block", ()))):
        stream = y = found[-1][2]
        for i in range(params["block_inner"].shape[1] if "block_inner" in params else 0):
            x = phi(y)
            y = multiplier["block_inner"] * (x @ params["block_inner"][l, i])
            found.append((f"block_inner {i + 1}", x, y))
        x = phi(y)
        y = multiplier["block"] * (x @ params["block"][l])
        found += [("block", x, y), ("stream", None, stream + y)]
    x = phi(found[-1][2])
    return [*found, ("readout", x, multiplier["readout"] * (x @ params["readout"]))]


def outputs(params, multiplier, inputs, activation):
    """f, which jax can differentiate."""
    return forward(params, multiplier, inputs, TRACED_ACTIVATIONS[activation])[-1][2]


def loss(params, multiplier, inputs, targets, activation):
    return jnp.sum((outputs(params, multiplier, inputs, activation) - targets) ** 2) / (2 * len(inputs))


def descend(problem, params, of: Numbers, activation):
    """Stored weights before steps 0, 1, …: heavy ball or Adam, in numpy; to be run in float64."""
    slope = jax.jit(jax.grad(lambda params, *batch: loss(params, of.multiplier, *batch, activation)))
    names, (b1, b2) = list(params), problem.betas
    params = {role: [np.array(w) for w in jax.tree.leaves(params[role])] for role in names}
    stacked = {role: role != "hidden" for role in names}
    m, v = ({role: [np.zeros_like(w) for w in params[role]] for role in names} for _ in range(2))
    for t in range(problem.num_steps + 1):
        tree = {role: params[role][0] if stacked[role] else tuple(params[role]) for role in names}
        yield jax.tree.map(np.copy, tree)
        rows = slice(None) if problem.batches is None or t == problem.num_steps else problem.batches[t]
        gradients = slope(tree, problem.inputs[rows], problem.targets[rows])
        for role in names:
            for i, g in enumerate(jax.tree.leaves(gradients[role])):
                g, w = np.asarray(g), params[role][i]
                if problem.optimizer == "sgd":
                    m[role][i] = problem.momentum * m[role][i] + of.rate[role] * g + problem.weight_decay * w
                    step = m[role][i]
                else:
                    m[role][i] = b1 * m[role][i] + (1 - b1) * g
                    v[role][i] = b2 * v[role][i] + (1 - b2) * g**2
                    root = np.sqrt(v[role][i] / (1 - b2 ** (t + 1))) + problem.epsilon * of.gradient[role]
                    step = of.rate[role] * m[role][i] / (1 - b1 ** (t + 1)) / root + problem.weight_decay * w
                params[role][i] = w - problem.learning_rate * step


def in_numpy(params):
    return jax.tree.map(np.float64, params)
