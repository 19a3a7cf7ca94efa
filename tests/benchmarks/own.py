"""Somebody else's transformer: how long its audit takes, and what memory its sharpness.

    PYTHONPATH=. python tests/benchmarks/own.py audit         4 layers, widths 64 … 512, Adam in μP
    PYTHONPATH=. python tests/benchmarks/own.py sharpness     as GPT-2: 12 layers, width 768, vocabulary 50,304, 2 × 64 tokens

Each prints its seconds of CPU and of wall, and the largest memory of the process.
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import comparisons.audit
from finite.curvature import Objective, cross_entropy_in_chunks, sharpness
from finite.networks.own import Model


def norm(x, gain):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain


def block(h, p, heads, scale):
    """Attention and a perceptron, each added to the stream."""
    q, k, v = (one.reshape(*h.shape[:2], heads, -1) for one in jnp.split(norm(h, p["gain1"]) @ p["qkv"], 3, axis=-1))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale
    seen = np.tril(np.ones((h.shape[1], h.shape[1]), bool))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen, scores, -1e9)), v)
    h = h + mixed.reshape(h.shape) @ p["out"] + p["bias1"]
    return h + jax.nn.gelu(norm(h, p["gain2"]) @ p["up"]) @ p["down"] + p["bias2"]


def blocks(rng, layers, n):
    """Their weights, of all layers one array each: matrices N(0, 1/fan-in), gains 1, biases 0."""
    matrices = {"qkv": (n, 3 * n), "out": (n, n), "up": (n, 4 * n), "down": (4 * n, n)}
    made = {name: rng.standard_normal((layers, *shape), np.float32) / np.float32(shape[0] ** 0.5)
            for name, shape in matrices.items()}  # fmt: skip
    return made | {name: np.full((layers, n), name[:4] == "gain", np.float32) for name in ("gain1", "gain2", "bias1", "bias2")}


def audit():
    layers, vocabulary, heads, rng = 4, 64, 4, np.random.default_rng(0)

    def build(width, key):
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        stacked = blocks(draw, layers, width)
        params = {"embed": draw.standard_normal((vocabulary, width), np.float32), "gain": np.ones(width, np.float32),
                  "last": draw.standard_normal((width, vocabulary), np.float32),
                  "blocks": [{name: leaf[layer] for name, leaf in stacked.items()} for layer in range(layers)]}  # fmt: skip

        def apply(p, tokens):
            h = p["embed"][tokens]
            for one in p["blocks"]:
                h = block(h, one, heads, 4 * heads / width)
            return norm(h, p["gain"]) @ p["last"] / width

        return params, apply

    def optimizer(width):
        def scaled(updates, _):
            slower = lambda one: {n: u * (64 / width if u.ndim == 2 else 1) for n, u in one.items()}  # noqa: E731
            return updates | {"blocks": [slower(one) for one in updates["blocks"]]}

        return optax.chain(optax.adam(0.01), optax.stateless(scaled))

    tokens = tuple(rng.integers(vocabulary, size=(2, 2, 16)))
    print(comparisons.audit(Model(build, "cross_entropy", tokens), optimizer=optimizer))


def gpt2():
    layers, n, vocabulary, shape, rng = 12, 768, 50_304, (2, 64), np.random.default_rng(0)
    params = {"embed": 0.02 * rng.standard_normal((vocabulary, n), np.float32), "gain": np.ones(n, np.float32),
              "position": 0.02 * rng.standard_normal((shape[1], n), np.float32), "blocks": blocks(rng, layers, n)}  # fmt: skip
    params = jax.tree.map(jnp.asarray, params)

    def apply(p, tokens):
        layer = lambda h, p: (block(h, p, 12, (n // 12) ** -0.5), None)  # noqa: E731
        h, _ = jax.lax.scan(layer, p["embed"][tokens] + p["position"], p["blocks"])
        return norm(h, p["gain"]), p["embed"].T

    objective = Objective(apply, lambda outputs, labels: cross_entropy_in_chunks(*outputs, labels))
    found = sharpness(objective, params, tuple(rng.integers(vocabulary, size=(2, *shape))))
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{weights:,} weights: sharpness {found.values[0]:.6g} ± {found.errors[0]:.1g}, {found.matvecs} products, "
          f"{'converged' if found.converged[0] else 'not converged'}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("audit", "sharpness"))
    what, cpu, wall = parser.parse_args().what, time.process_time(), time.perf_counter()
    {"audit": audit, "sharpness": gpt2}[what]()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.process_time() - cpu:.0f} s of CPU, {time.perf_counter() - wall:.0f} s, at most {memory:.1f} GiB")


if __name__ == "__main__":
    main()
