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


def learning_rate(problem, t):
    """Of step t, counted from 0."""
    warmup, whole = problem.warmup_steps, problem.num_steps
    if t < warmup:
        return problem.learning_rate * (t + 1) / warmup
    falling = np.cos(np.pi / 2 * (t - warmup) / (whole - warmup)) ** 2
    return problem.learning_rate * (falling if problem.schedule == "cosine" else 1.0)


def descend(problem, params, of: Numbers, activation):
    """Stored weights before steps 0, 1, …: see ``descend_with_squares``."""
    return (weights for weights, _ in descend_with_squares(problem, params, of, activation))


def descend_with_squares(problem, params, of: Numbers, activation):
    """Stored weights and Adam's v̂ before steps 0, 1, …: heavy ball, Nesterov, Adam or AdamW, in numpy; to be run in float64."""
    slope = jax.jit(jax.grad(lambda params, *batch: loss(params, of.multiplier, *batch, activation)))
    names, (b1, b2) = list(params), problem.betas
    params = {role: [np.array(w) for w in jax.tree.leaves(params[role])] for role in names}
    m, v = ({role: [np.zeros_like(w) for w in params[role]] for role in names} for _ in range(2))

    def tree(lists):
        return {role: tuple(map(np.copy, lists[role])) if role == "hidden" else np.copy(lists[role][0]) for role in names}

    for t in range(problem.num_steps + 1):
        yield tree(params), jax.tree.map(lambda v: v / (1 - b2**t) if t else np.full_like(v, np.nan), tree(v))  # noqa: B023
        if t == problem.num_steps:
            return
        rows = slice(None) if problem.batches is None else problem.batches[t]
        gradients = slope(tree(params), problem.inputs[rows], problem.targets[rows])
        for role in names:
            for i, g in enumerate(jax.tree.leaves(gradients[role])):
                g, w, decay = np.asarray(g), params[role][i], problem.weight_decay
                if problem.optimizer == "sgd":
                    g = of.rate[role] * g + decay * w
                    m[role][i] = problem.momentum * m[role][i] + g
                    step = g + problem.momentum * m[role][i] if problem.nesterov else m[role][i]
                else:
                    within = decay * of.gradient[role] if problem.optimizer == "adam" else 0.0
                    g = g + within * w
                    m[role][i] = b1 * m[role][i] + (1 - b1) * g
                    v[role][i] = b2 * v[role][i] + (1 - b2) * g**2
                    root = np.sqrt(v[role][i] / (1 - b2 ** (t + 1))) + problem.epsilon * of.gradient[role]
                    step = of.rate[role] * m[role][i] / (1 - b1 ** (t + 1)) / root
                    step = step + decay * w if problem.optimizer == "adamw" else step
                params[role][i] = w - learning_rate(problem, t) * step


def in_numpy(params):
    return jax.tree.map(np.float64, params)
