"""How often intervals and verdicts are right, over synthetic seeds: the numbers behind "95 %".

    PYTHONPATH=. python tests/benchmarks/coverage.py [--size small]

Seeds of unit variance and zero mean, of four shapes, from benign to badly skewed; one seed's values at several widths are
independent, half shared or the same.
"""

import numpy as np
from jaxtyping import Float

# name → draws of zero mean and unit variance; (skewness, excess kurtosis)
SHAPES = {
    "Gaussian": lambda rng, size: rng.standard_normal(size),  # (0, 0)
    "t5": lambda rng, size: rng.standard_t(5, size) * np.sqrt(3 / 5),  # (0, 6)
    "chi2": lambda rng, size: (rng.chisquare(3, size) - 3) / np.sqrt(6),  # 3 degrees of freedom: (1.6, 4)
    "lognormal": lambda rng, size: (np.exp(0.5 * rng.standard_normal(size)) - np.exp(1 / 8))
    / np.sqrt(np.exp(1 / 2) - np.exp(1 / 4)),  # σ = 1/2: (1.75, 5.9)
}
PAIRINGS = {"unpaired": 0.0, "half paired": 0.5, "paired": 1.0}  # share of a seed's variance that is the same at all widths
SEEDS = (3, 4, 8, 16, 32)


def seeds(rng: np.random.Generator, shape: str, shared: float, size: tuple[int, int, int]) -> Float[np.ndarray, "D W S"]:
    """Data sets of S seeds at W widths (or steps): zero mean, unit variance."""
    sets, widths, count = size
    common = SHAPES[shape](rng, (sets, 1, count)) if shared > 0 else 0.0
    own = SHAPES[shape](rng, (sets, widths, count)) if shared < 1 else np.zeros(size)
    return np.sqrt(shared) * common + np.sqrt(1 - shared) * own
