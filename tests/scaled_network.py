"""A network in numpy, written out by hand, at the sizes that a scaling prescribes: measured exponents.

ReLU with gain √2, MSE on Gaussian data, full batch; plain, or residual with ``block_size`` matrices per branch.
"""

import numpy as np

from limits.exponents.parametrization import Scaling

NUM_INPUTS, NUM_SAMPLES = 6, 4


def stages(kind: str, depth: int, block_size: int) -> list[list[str]]:
    hidden = ["hidden"] if kind == "plain" else ["block_inner"] * (block_size - 1) + ["block"]
    return [["input"], *[list(hidden) for _ in range(depth - (kind == "plain"))], ["readout"]]


class Network:
    def __init__(self, scaling: Scaling, width: int, depth: int, block_size: int = 1, seed: int = 0):
        self.stages = stages(scaling.architecture, depth, block_size)
        self.residual = scaling.architecture == "residual"
        roles = [role for stage in self.stages for role in stage]
        self.at = lambda power: np.float32(power(width, depth))
        self.scaling, rng = scaling, np.random.default_rng(seed)
        ends = {"input": (width, NUM_INPUTS), "readout": (1, width)}
        self.initial = [
            self.at(scaling[role].init_std) * rng.standard_normal(ends.get(role, (width, width)), dtype=np.float32)
            for role in roles
        ]
        self.weights = [W.copy() for W in self.initial]
        self.preconditioner = [np.ones_like(W) for W in self.initial]
        self.multipliers = [self.at(scaling[role].multiplier) for role in roles]
        self.rates = [self.at(scaling[role].learning_rate) for role in roles]
        data = np.random.default_rng([seed, 1])  # the same at every width and depth
        self.x = data.standard_normal((NUM_INPUTS, NUM_SAMPLES), dtype=np.float32)
        self.y = data.standard_normal((1, NUM_SAMPLES), dtype=np.float32)

    def forward(self):
        """What arrives at each matrix, what each returns, and the stream behind each stage; the last one is f."""
        arriving, outputs, streams, i = [], [], [], 0
        stream = self.x / np.float32(np.sqrt(NUM_INPUTS))
        for stage in self.stages:
            y = stream
            for _ in stage:
                arriving.append(y if i == 0 else np.float32(np.sqrt(2)) * np.maximum(y, 0))
                y = self.multipliers[i] * (self.weights[i] @ arriving[i])
                outputs.append(y)
                i += 1
            stream = stream + y if self.residual and stage[-1] == "block" else y
            streams.append(stream)
        return arriving, outputs, streams

    def backward(self, arriving, error):
        """∂/∂output of each matrix, for ∂L/∂f = error."""
        signals, i = [None] * len(self.weights), len(self.weights)
        stream = error
        for stage in reversed(self.stages):
            d = stream
            for _ in stage:
                i -= 1
                signals[i] = d
                d = self.multipliers[i] * (self.weights[i].T @ d)
                d = d * (np.float32(np.sqrt(2)) * (arriving[i] > 0) if i else 1)
            stream = stream + d if self.residual and stage[-1] == "block" else d
        return signals

    def train(self, optimizer: str, num_steps: int, eta0: float):
        m, v = ([np.zeros_like(W) for W in self.weights] for _ in range(2))
        for t in range(1, num_steps + 1):
            arriving, _, streams = self.forward()
            signals = self.backward(arriving, (streams[-1] - self.y) / NUM_SAMPLES)
            for i, W in enumerate(self.weights):
                g = self.multipliers[i] * (signals[i] @ arriving[i].T)
                if optimizer == "adam":  # β = 0.9, 0.999; ε = 0; a weight without any gradient stays
                    m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
                    self.preconditioner[i] = np.sqrt(np.where(v[i] > 0, v[i] / (1 - 0.999**t), np.inf))
                    g = m[i] / (1 - 0.9**t) / self.preconditioner[i]
                W -= np.float32(eta0) * self.rates[i] * g.astype(np.float32)

    def sharpness(self) -> float:
        """The largest eigenvalue of the Gauss-Newton matrix, with Adam preconditioned by √v + ε.

        ε is as large as a gradient entry: without it the smallest gradients rule (Σ 1/|g| has logarithms).
        """
        arriving, _, _ = self.forward()
        signals = self.backward(arriving, np.ones((1, NUM_SAMPLES), np.float32))
        kernel = 0.0
        for m, d, x, root in zip(self.multipliers, signals, arriving, self.preconditioner, strict=True):
            tangents = m * np.einsum("ip,jp->pij", d, x).reshape(NUM_SAMPLES, -1)
            epsilon = np.sqrt(np.mean(root[np.isfinite(root)] ** 2)) if self.scaling.optimizer == "adam" else 0.0
            kernel = kernel + tangents @ (tangents / (root.ravel() + epsilon)).T
        return float(np.linalg.eigvalsh(kernel / NUM_SAMPLES)[-1])


def measure(scaling: Scaling, width: int, depth: int, block_size=1, seed=0, num_steps=3, eta0=0.2):
    """Root mean squares, under the names of ``limits.exponents.regimes.predicted``: (quantity, layer) → size."""
    net = Network(scaling, width, depth, block_size, seed)
    before = net.forward()
    net.train(scaling.optimizer, num_steps, eta0)
    after = net.forward()
    roles = [role for stage in net.stages for role in stage]
    result, counts = {}, {"hidden": 1, "block_inner": 0}

    def rms(a):
        return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))

    last = {}  # of many equal blocks, the last is measured
    for i, role in enumerate(roles):
        counts[role] = counts.get(role, 0) + 1
        name = f"hidden {counts[role]}" if role == "hidden" else "block_inner 1" if role == "block_inner" else role
        last[name] = i
    for name, i in last.items():
        moved = net.weights[i] - net.initial[i]
        if name == "readout":
            result["f", name], result["delta_f", name] = rms(before[1][i]), rms(after[1][i] - before[1][i])
        else:
            result["h", name], result["delta_h", name] = rms(before[1][i]), rms(after[1][i] - before[1][i])
        if net.residual and name != "readout":
            result["own_change", name] = rms(net.multipliers[i] * (moved @ after[0][i]))
        result["weight_update", name] = rms(moved)
        v = np.ones(moved.shape[1], np.float32)
        for _ in range(4):
            v = moved.T @ (moved @ v)
            v /= np.linalg.norm(v)
        result["weight_update_spectral", name] = float(np.linalg.norm(moved @ v))
    if net.residual:
        result["h", "stream"], result["delta_h", "stream"] = rms(before[2][-2]), rms(after[2][-2] - before[2][-2])
    result["sharpness", "network"] = net.sharpness()
    return result


def slopes(scaling: Scaling, *, widths=(), depths=(), width=64, depth=3, block_size=1, seeds=8, **options):
    """Measured exponents: of the width at fixed depth, or of the depth at fixed width."""
    grid = [(w, depth) for w in widths] or [(width, d) for d in depths]
    runs = [[measure(scaling, w, d, block_size, seed, **options) for seed in range(seeds)] for w, d in grid]
    x = np.log(widths or depths)
    return {
        key: float(np.polyfit(x, [np.mean([np.log(r[key]) for r in run]) for run in runs], 1)[0])
        for key in runs[0][0]
    }
