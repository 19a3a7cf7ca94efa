"""How rate, decay, averages and ε go with the batch size B and the horizon D, the number of samples seen: sizes, once more.

These powers multiply those of N and L, which are of a batch and a number of steps of order one.  Steps are D/B.  The gradient
of a batch is the mean of B samples' gradients: a mean of order one, and noise of order B^(-1/2).  What an optimiser makes of it
has two sizes, its *drift*, which all steps share, and its *noise*, new in each:

    linear in the gradient (SGD)        drift 1,       noise B^(-1/2)
    forgets its size (Adam, signs, …)   drift B^(1/2), noise 1           "noise": where that is the larger part
                                        drift 1,       noise B^(-1/2)    "signal": where the mean is
    UVᵀ of a matrix (Muon)              drift B,       noise B^(1/2)     "few": noise, of fewer samples than directions, nearly
                                                                         orthogonal, so that B singular values are equal

What is asked
    diffusion   steps · (rate · noise)² is kept: over all of training noise moves the weights as far as before.  With λ as below
                that is also how large weights are where decay balances the steps, √(rate noise² / λ) (Kosson et al. 2024)
    decay       steps · rate · λ is kept: weights forget where they began in the same part of training (Wang & Aitchison 2024)
    memory      steps · (1 − β) is kept: so do averages of gradients and of their sizes (Malladi et al. 2022).  Those that are
                taken before the size is forgotten (Lion, Muon) make a larger batch, B/(1 − β): there β is kept
    epsilon     ε is as large as what it is added to: a batch's gradient

As B grows at a given D, steps · rate · drift is then kept too: the same motion in coarser steps, as long as these stay below
the edge of stability (SGD's linear rule; Adam's square root, Malladi et al. 2022).  As D grows at a given B it grows as
D^(1/2): longer training does more.  Schedules keep their shape.
"""

from dataclasses import dataclass
from fractions import Fraction

import sympy as sp

from limits.exponents.algebra import OPTIMIZERS, Optimizer

BATCH, HORIZON = sp.symbols("B D", positive=True)
STEPS = HORIZON / BATCH
REGIMES = {
    "few": "noise is the larger part of a batch's gradient, of fewer samples than a matrix has directions",
    "noise": "noise is the larger part of a batch's gradient: B is below the noise scale tr Σ/|g|²",
    "signal": "the mean is the larger part",
}
QUANTITIES = ("learning_rate", "weight_decay", "one_minus_beta", "epsilon")


@dataclass(frozen=True)
class NoiseScaling:
    """Of one optimiser in one regime: {"B": power, "D": power} of each of ``QUANTITIES``, and of the drift that results.

    weight_decay is that of a decoupled decay; one_minus_beta of its averages; epsilon of one that is compared with a gradient.
    None of what the optimiser does not have; heavy ball, whose steps grow with 1/(1 − β), keeps its β.
    """

    optimizer: str
    regime: str
    learning_rate: dict[str, Fraction]
    weight_decay: dict[str, Fraction]
    one_minus_beta: dict[str, Fraction] | None
    epsilon: dict[str, Fraction] | None
    drift: dict[str, Fraction]


def find(name: str) -> Optimizer:
    """Raises ValueError, in one line, for an unknown one."""
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def regimes(optimizer: Optimizer) -> tuple[str, ...]:
    """Those that differ: of SGD all are one, and only UVᵀ asks how many samples there are to how many directions."""
    if not optimizer.forgets_scale():
        return ("noise",)
    return tuple(REGIMES) if optimizer.whole and optimizer.averages == "before" else ("noise", "signal")


def update(optimizer: Optimizer, regime: str) -> tuple[sp.Expr, sp.Expr]:
    """(drift, noise) of an update at learning rate 1, as powers of B.  Raises ValueError for a regime that it does not have."""
    if regime not in regimes(optimizer):
        raise ValueError(f"{optimizer.name} has no regime {regime!r}: wanted {' or '.join(regimes(optimizer))}")
    drift, noise = sp.Integer(1), 1 / sp.sqrt(BATCH)
    if not optimizer.forgets_scale():
        return drift, noise
    by = {"few": 1 / BATCH, "noise": noise, "signal": drift}[regime]  # few: a singular value, 1/B of one sample's
    return drift / by, noise / by


def conditions(optimizer: Optimizer, regime: str) -> tuple[dict[str, sp.Expr], dict[str, sp.Expr]]:
    """(the sizes that are kept, the unknown ones): in B, D and unknown powers of both."""
    _, noise = update(optimizer, regime)
    rate, decay, forgetting = (BATCH ** sp.Symbol(f"{name}_B") * HORIZON ** sp.Symbol(f"{name}_D") for name in QUANTITIES[:3])
    kept = {"diffusion": STEPS * (rate * noise) ** 2, "decay": STEPS * rate * decay}
    unknown = {"learning_rate": rate, "weight_decay": decay}
    if optimizer.averages:
        kept["memory"] = STEPS * forgetting if optimizer.averages == "apart" else forgetting
        unknown["one_minus_beta"] = forgetting
    return kept, unknown


def derive_noise(name: str, regime: str = "noise") -> NoiseScaling:
    """The powers of B and D.  Raises ValueError for an unknown optimiser, and for a regime that it does not have.

    >>> derive_noise("adam").learning_rate
    {'B': Fraction(1, 2), 'D': Fraction(-1, 2)}
    """
    optimizer = find(name)
    kept, unknown = conditions(optimizer, regime)
    symbols = sp.symbols([f"{quantity}_{letter}" for quantity in unknown for letter in "BD"])
    (solution,) = sp.linsolve([power for size in kept.values() for power in powers(size)], *symbols)
    solved = {quantity: size.subs(dict(zip(symbols, solution, strict=True))) for quantity, size in unknown.items()}
    drift, _ = update(optimizer, regime)
    solved["drift"] = STEPS * solved["learning_rate"] * drift
    if optimizer.averages == "apart" or optimizer.whole:  # signs have none
        solved["epsilon"] = sp.Integer(1) if regime == "signal" else 1 / sp.sqrt(BATCH)
    fractions = {quantity: dict(zip("BD", map(_fraction, powers(size)), strict=True)) for quantity, size in solved.items()}
    return NoiseScaling(name, regime, **{"one_minus_beta": None, "epsilon": None} | fractions)


def powers(size: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """Of B and of D."""
    logarithm = sp.expand_log(sp.log(size), force=True).expand()
    return tuple(logarithm.coeff(sp.log(letter)) for letter in (BATCH, HORIZON))


def _fraction(power: sp.Expr) -> Fraction:
    return Fraction(int(power.p), int(power.q))
