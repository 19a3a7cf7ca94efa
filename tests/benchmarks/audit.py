"""How often an audit finds what is wrong, names the weight, and leaves alone what is right.

    PYTHONPATH=. python tests/benchmarks/audit.py [--only NAME]

24 faults, one at a time, in a perceptron and in a transformer that are in μP otherwise, and 24 that are right: a table.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import comparisons.audit
from finite.networks.own import Model

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(16, 6)).astype(np.float32), RNG.normal(size=(16, 2)).astype(np.float32)
TOKENS = RNG.integers(11, size=(6, 5)), RNG.integers(11, size=(6, 5))
MASK, HEADS = np.tril(np.ones((5, 5), bool)), 2
WIDTHS = (32, 64, 128)


def draw(key, width, shapes, std):
    """N(0, std²), std (coefficient, power of the width); a coefficient "one" is that of a gain."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    made = {}
    for name, shape in shapes.items():
        coefficient, power = std.get(name, (1.0, -0.5 if len(shape) == 2 else 0.0))
        values = np.ones(shape) if coefficient == "one" else coefficient * width**power * rng.normal(size=shape)
        made[name] = values.astype(np.float32)
    return made


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def perceptron(readout=-1.0, std=None, loss="mse", normed=True, inside=0.0):
    std = {"first": (0.4, 0), "bias": (0, 0), "gain": ("one", 0), "last": (1.0, 0)} | (std or {})

    def build(width, key):
        shapes = {"first": (6, width), "second": (width, width), "bias": (width,), "gain": (width,), "last": (width, 2)}

        def apply(p, x):
            h = jnp.tanh(x @ p["first"]) @ p["second"] * width**inside + p["bias"]
            return jnp.tanh((norm(h) if normed else h) * p["gain"]) @ p["last"] * width**readout

        return draw(key, width, shapes, std), apply

    return Model(build, loss, VECTORS)


def transformer(readout=-1.0, scale=-1.0, std=None, tied=False):
    std = {"embed": (1.0, 0), "last": (1.0, 0), "gain": ("one", 0), "gain2": ("one", 0)} | (std or {})

    def build(width, key):
        shapes = {"embed": (11, width), "gain": (width,), "query": (width, width), "key": (width, width), "out": (width, width),
                  "value": (width, width), "gain2": (width,), "up": (width, 2 * width), "down": (2 * width, width)}  # fmt: skip
        shapes |= {} if tied else {"last": (width, 11)}

        def apply(p, tokens):
            h = p["embed"][tokens]
            x, split = norm(h) * p["gain"], (*tokens.shape, HEADS, width // HEADS)
            q, k, v = ((x @ p[name]).reshape(split) for name in ("query", "key", "value"))
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * 4 * (width // HEADS) ** scale
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(MASK, scores, -1e9)), v)
            h = h + mixed.reshape(h.shape) @ p["out"]
            h = h + jax.nn.gelu(norm(h) * p["gain2"] @ p["up"]) @ p["down"]
            return norm(h) @ (p["embed"].T if tied else p["last"]) * width**readout

        return draw(key, width, shapes, std), apply

    return Model(build, "cross_entropy", TOKENS)


MATRICES = ("second", "query", "key", "value", "out", "up", "down")
VECTOR = ("first", "bias", "gain", "gain2", "embed", "last")


def by_weight(base, powers, decay=0.0, decay_power=0.0):
    """base's updates times (N/32)^power, by weight; a decoupled decay at a rate of its own."""

    def at(width):
        def update(updates, state, params):
            updates, state = base.update(updates, state, params)
            times = {name: (width / WIDTHS[0]) ** powers.get(name, 0.0) for name in updates}
            lost = decay * (width / WIDTHS[0]) ** decay_power
            return {name: u * times[name] - lost * params[name] for name, u in updates.items()}, state

        return optax.GradientTransformation(base.init, update)

    return at


def adam(base=None, **powers):
    extra = {name: powers.pop(name) for name in ("decay", "decay_power") if name in powers}
    return by_weight(base or optax.adam(0.02), dict.fromkeys(MATRICES, -1.0) | powers, **extra)


def sgd(base=None, **powers):
    return by_weight(base or optax.sgd(0.05), dict.fromkeys(VECTOR, 1.0) | powers)


def muon(reached=MATRICES, scaled=True):
    """UVᵀ √(out/in), or without the factor, on these, Adam on the others."""

    def at(width):
        rest = optax.adam(0.02)

        def update(updates, state, params):
            others, state = rest.update(updates, state, params)

            def orthogonal(g):
                u, _, v = jnp.linalg.svd(g, full_matrices=False)
                return -0.1 * u @ v * (np.sqrt(g.shape[1] / g.shape[0]) if scaled else 1.0)

            return {n: orthogonal(g) if n in reached else others[n] for n, g in updates.items()}, state

        return optax.GradientTransformation(rest.init, update)

    return at


def frozen(names):
    return optax.chain(optax.adam(0.02), optax.stateless(lambda u, _: {n: x * (n not in names) for n, x in u.items()}))


NET, ATT = perceptron, transformer
FAULTS = {  # name → (model, optimiser, a weight that is to be named)
    "hidden learning rate": (NET(), adam(second=0.0), "second"),
    "learning rate of the queries": (ATT(), adam(query=0.0), "query"),
    "readout multiplier N^-1/2": (NET(readout=-0.5), adam(), "last"),
    "readout multiplier N^-1/2, transformer": (ATT(readout=-0.5), adam(), "last"),
    "readout multiplier missing": (NET(readout=0.0, std={"last": (0.1, 0)}), adam(), "last"),
    "hidden initial std N^0": (NET(std={"second": (0.1, 0)}), adam(), "second"),
    "embedding's initial std": (ATT(std={"embed": (1.0, -0.5)}), adam(), "embed"),
    "attention scale 1/√d": (ATT(scale=-0.5), adam(), "query · key"),
    "attention scale missing": (ATT(scale=0.0), adam(), "query · key"),
    "tied embedding scaled twice": (ATT(tied=True, readout=-2.0), adam(), "embed"),
    "tied embedding without multiplier": (ATT(tied=True, readout=0.0, std={"embed": (0.1, 0)}), adam(), "embed"),
    "bias rate, Adam": (NET(), adam(bias=1.0), "bias"),
    "bias rate, SGD": (NET(), sgd(bias=0.0), "bias"),
    "gain rate, SGD": (NET(), sgd(gain=0.0), "gain"),
    "ε, transformer": (ATT(), adam(optax.adam(0.02, eps=3e-3)), "up"),
    "ε": (NET(), adam(optax.adam(0.02, eps=2e-2)), "second"),
    "decay times N": (NET(), adam(decay=0.01, decay_power=1.0), "second"),
    "decay within Adam's gradient": (NET(), adam(optax.chain(optax.add_decayed_weights(5.0), optax.adam(0.02))), "second"),
    "Muon absent": (ATT(), adam(frozen(("up",))), "up"),
    "Muon, UVᵀ alone, on the embedding": (ATT(), muon((*MATRICES, "embed"), scaled=False), "embed"),
    "SGD without vector scaling": (NET(), sgd(**dict.fromkeys(VECTOR, 0.0)), "first"),
    "input learning rate": (NET(), adam(first=-1.0), "first"),
    "readout learning rate scaled twice": (ATT(), adam(last=-1.0), "last"),
    "initial std of a branch": (ATT(std={"down": (1.0, -1.0)}), adam(), "down"),
}
RIGHT = {
    "perceptron, Adam": (NET(), adam()),
    "perceptron, SGD": (NET(), sgd()),
    "momentum": (NET(), sgd(optax.sgd(0.02, 0.9))),
    "Lion": (NET(), adam(optax.lion(0.01))),
    "sign": (NET(), adam(optax.sign_sgd(0.01))),
    "RMSProp": (NET(), adam(optax.rmsprop(0.01, eps=1e-14))),  # within the root: 1e-8 would be felt
    "AMSGrad": (NET(), adam(optax.amsgrad(0.02))),
    "clipped Adam": (NET(), adam(optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(0.02)))),
    "warm-up": (NET(), adam(optax.adam(optax.linear_schedule(0.0, 0.02, 3)))),
    "decay at a rate of its own": (NET(), adam(decay=0.01)),
    "tiny decay times rate": (NET(), adam(optax.adamw(0.02, weight_decay=1e-4))),
    "readout of zeros": (NET(std={"last": (0.0, 0)}), adam()),
    "readout N^-1 in its initial std": (NET(readout=0.0, std={"last": (1.0, -1.0)}), adam(last=-1.0)),
    "hidden multiplier N^-1/2": (NET(inside=-0.5, std={"second": (1.0, 0)}), adam(second=-0.5)),
    "hidden multiplier, SGD": (NET(inside=-0.5, std={"second": (1.0, 0)}), sgd(second=1.0)),
    "without normalisation": (NET(normed=False), adam()),
    "cross-entropy": (NET(loss=lambda f, y: jnp.mean(jax.nn.logsumexp(f, -1) - jnp.sum(f * jax.nn.softmax(y), -1))), adam()),
    "large initial biases": (NET(std={"bias": (1.0, 0)}), adam()),
    "transformer, Adam": (ATT(), adam()),
    "transformer, SGD": (ATT(), sgd()),
    "transformer, Muon": (ATT(), muon()),
    "transformer, tied": (ATT(tied=True), adam()),
    "transformer, readout of zeros": (ATT(std={"last": (0.0, 0)}), adam()),
    "transformer, Lion": (ATT(), adam(optax.lion(0.01))),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    only, counts = parser.parse_args().only, {"found": 0, "named": 0, "faults": 0, "false alarms": 0, "right": 0}
    for name, (model, optimizer, *weight) in {**FAULTS, **RIGHT}.items():
        if only not in name:
            continue
        start = time.process_time()
        audit = comparisons.audit(model, optimizer=optimizer, widths=WIDTHS, seeds=3, steps=3)
        named = [one for one in audit.suspects if weight and weight[0] in one.weights]
        counts["faults" if weight else "right"] += 1
        counts["found" if weight else "false alarms"] += not audit.ok
        counts["named"] += bool(named)
        told = named[0] if named else audit.suspects[0] if audit.suspects else "passes" if audit.ok else "fails, no suspect"
        print(f"{'fault' if weight else 'right'}  {name:<40}{len(audit.suspects)} suspects  {told!s:<80}"
              f"{time.process_time() - start:5.0f} CPU s", flush=True)  # fmt: skip
        if not weight and not audit.ok:
            print(audit, flush=True)
    print(counts)


if __name__ == "__main__":
    main()
