"""Data of your own with integer labels, in FILE.npz: what is read from it, and its limit.

Then, too: superconsistency convergence --data mine.npz --model mlp2 --loss cross_entropy
"""

import jax
import numpy as np

import limits
from comparisons.convergence.options import Options
from finite.networks.build import build
from finite.training.train import train

rng = np.random.default_rng(0)
labels = rng.integers(1, 4, size=60)  # classes 1, 2, 3; or 0, 1, 2
np.savez("mine.npz", inputs=rng.normal(size=(60, 5)) + labels[:, None], targets=labels)

inputs, targets = Options(data="mine.npz").load()  # an output per class
problem = limits.Problem(inputs, targets, learning_rate=0.05, num_steps=40, measure_every=20)
limit = limits.solve(problem)
(network,) = train(problem, build(problem, width=4096), jax.random.split(jax.random.key(0), 1))
print(inputs.shape, targets.shape, np.unique(targets.round(2)))
print(limit["loss"].round(2), limit["sharpness"].round(2))
print(network["loss"].round(2), network["sharpness"].round(1))

# (60, 5) (60, 3) [-0.33  0.67]
# [0.33 0.3  0.3 ] [9.57 9.59 9.64]
# [0.33 0.31 0.3 ] [9.7 9.7 9.7]
