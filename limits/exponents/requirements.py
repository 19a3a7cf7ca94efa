"""Requirements: what a parametrization asks of a network, as conditions on unknown exponents.

A requirement speaks of sizes in the first step (``limits.exponents.algebra.first_step``), each a power of N and L whose
exponent is linear in the unknowns, and returns *conditions*: exponent = 0 for "of order one", ≤ 0 for "at most".
``PARAMETRIZATIONS`` holds each named parametrization as its list of requirements; ``limits.exponents`` solves them.

SP and NTP are conventions rather than answers: SP has no multipliers and He initialisation, NTP N(0,1) weights and
1/√fan-in, both one learning rate for all.  What is derived for them is the largest such rate: in NTP, the kernel regime,
the largest that keeps Δf = O(1), and in SP the largest that trains.  With MSE that is the same; with cross-entropy, whose
∂L/∂f is bounded, f may grow as long as features do not (controlled divergence, Haas et al. 2025, arXiv 2505.22491).
μP asks that every layer's update move its features and the output by Θ(1); the depth parametrizations ask it of the L
residual blocks together, and of the branches at step 0 (Depth-μP) or of each block's inside (α = 1).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sympy as sp

from limits.exponents.algebra import ONE, Alignment, Exponents, FirstStep, Power, Role, carries_forward
from limits.losses import LOSSES


@dataclass(frozen=True)
class Condition:
    """``expression`` = 0, or ≤ 0: the exponent of N (or of L) of the size that ``name`` speaks of."""

    name: str
    letter: str
    expression: sp.Expr
    relation: str = "="

    def __str__(self):
        return f"{self.name}, in {self.letter}: {self.expression} {self.relation} 0"


@dataclass(frozen=True)
class Setting:
    """What a requirement may speak of: the roles, their unknown exponents, all sizes of the first step, and the loss.

    ``second`` is a step whose backward pass runs through what the readout has moved by in the first one.
    """

    roles: Mapping[str, Role]
    exponents: Mapping[str, Exponents]
    first: Mapping[str, FirstStep]
    second: Mapping[str, FirstStep]
    alignment: Alignment
    loss: str


def preactivations(s: Setting) -> list[Condition]:
    """Pre-activations Θ(1) at step 0.  What a block adds is Θ(1) in N only: its power of L is another requirement's."""
    conditions = []
    for name, role in s.roles.items():
        if name == "readout":
            continue
        # a bias is as large as what it is added to
        reference = s.first["block"].output if name == "bias" and role.copies != ONE else ONE
        conditions += _of_order_one(f"{name}: output at step 0", s.first[name].output / reference)
    return [c for c in conditions if not (c.name.startswith("block:") and c.letter == "L")]


def output_at_init(s: Setting) -> list[Condition]:
    """f(0) = Θ(1)."""
    return _of_order_one("readout: f(0)", s.first["readout"].output)


def output_at_init_bounded(s: Setting) -> list[Condition]:
    """f(0) = O(1)."""
    return _bounded("readout: f(0)", s.first["readout"].output)


def features_reach_output(s: Setting) -> list[Condition]:
    """Features that move by Θ(1) move f by Θ(1)."""
    passed = carries_forward(s.roles["readout"], s.exponents["readout"], s.alignment)
    return _of_order_one("readout: Δf from Δh", passed)


def maximal_updates(s: Setting) -> list[Condition]:
    """Every role's update moves its output, or the residual stream (all L blocks together), by Θ(1)."""
    return [c for name in s.roles for c in _of_order_one(f"{name}: own Δ", s.first[name].on_stream)]


def branches_bounded(s: Setting) -> list[Condition]:
    """The L branches at step 0 keep the residual stream O(1)."""
    return _bounded("block: L branches at step 0", _branches(s), letters="L")


def branches_visible(s: Setting) -> list[Condition]:
    """The L branches at step 0 move the residual stream by Θ(1): features differ from block to block."""
    return _of_order_one("block: L branches at step 0", _branches(s), letters="L")


def blocks_bounded(s: Setting) -> list[Condition]:
    """Inside a block nothing changes by more than its own size."""
    return [c for n, size in _inside_blocks(s) for c in _bounded(f"{n}: change inside the block", size, "L")]


def blocks_learn(s: Setting) -> list[Condition]:
    """Inside a block every matrix changes its output by Θ(1): more than one matrix then learns nonlinearly."""
    return [c for n, size in _inside_blocks(s) for c in _of_order_one(f"{n}: change inside the block", size, "L")]


def output_changes_bounded(s: Setting) -> list[Condition]:
    """No role's update changes f by more than Θ(1)."""
    return [c for name in s.roles for c in _bounded(f"{name}: its Δf", s.first[name].on_f)]


def features_bounded(s: Setting) -> list[Condition]:
    """No role's update moves features by more than Θ(1), nor does the next one, through the readout as it has moved."""
    hidden = [name for name in s.roles if name != "readout"]
    first = [c for name in hidden for c in _bounded(f"{name}: own Δ", s.first[name].on_stream)]
    return first + [c for n in hidden for c in _bounded(f"{n}: own Δ after the readout's", s.second[n].on_stream)]


def trains(s: Setting) -> list[Condition]:
    """No role's update makes grow what the loss feels: with MSE f, with cross-entropy the features only."""
    return output_changes_bounded(s) if LOSSES[s.loss].quadratic else features_bounded(s)


def unit_init(s: Setting) -> list[Condition]:
    """All weights N(0,1)."""
    return [c for name, e in s.exponents.items() for c in _of_order_one(f"{name}: init_std", e.init_std)]


def unit_multiplier(s: Setting) -> list[Condition]:
    """No multipliers."""
    return [c for name, e in s.exponents.items() for c in _of_order_one(f"{name}: multiplier", e.multiplier)]


def one_learning_rate(s: Setting) -> list[Condition]:
    """One learning rate for every role."""
    reference = s.exponents["readout"].learning_rate
    pairs = ((name, e.learning_rate / reference) for name, e in s.exponents.items())
    return [c for name, ratio in pairs for c in _of_order_one(f"{name}: learning rate / readout's", ratio)]


@dataclass(frozen=True)
class Requirements:
    """A parametrization as what it asks for.

    depth_aware  powers of L are unknowns too (they are 0 otherwise, and nothing is asked in L); residual networks only
    maximise     of the learning rates that are left, take the largest that the bounds allow
    """

    title: str
    conditions: tuple[Callable[[Setting], list[Condition]], ...]
    depth_aware: bool = False
    maximise: bool = False


_ONE_RATE = (preactivations, output_at_init, one_learning_rate)
_MAXIMAL = (preactivations, output_at_init_bounded, features_reach_output, maximal_updates)
PARAMETRIZATIONS = {
    "sp": Requirements("SP", (unit_multiplier, *_ONE_RATE, trains), maximise=True),
    "ntp": Requirements("NTP", (unit_init, *_ONE_RATE, output_changes_bounded), maximise=True),
    "mup": Requirements("μP", _MAXIMAL),
    "mean_field": Requirements("mean field", (unit_init, *_MAXIMAL)),
    "depth_mup": Requirements("Depth-μP", (*_MAXIMAL, branches_visible, blocks_bounded), depth_aware=True),
    "alpha1": Requirements("α = 1", (*_MAXIMAL, branches_bounded, blocks_learn), depth_aware=True),
    "depth_family": Requirements("all α", (*_MAXIMAL, branches_bounded, blocks_bounded), depth_aware=True),
}


def named(name: str) -> Requirements:
    """The requirements of that name.  Raises ValueError for an unknown one."""
    if name not in PARAMETRIZATIONS:
        raise ValueError(f"unknown parametrization {name!r}; known: {', '.join(PARAMETRIZATIONS)}")
    return PARAMETRIZATIONS[name]


def _branches(s: Setting) -> Power:
    return s.first["block"].output * s.roles["block"].copies ** s.alignment.blocks_initial


def _inside_blocks(s: Setting) -> list[tuple[str, Power]]:
    return [(n, s.first[n].change / s.first[n].output) for n in ("block_inner", "block") if n in s.roles]


def _of_order_one(name: str, size: Power, letters: str = "NL") -> list[Condition]:
    return [Condition(name, letter, sp.sympify(getattr(size, letter))) for letter in letters]


def _bounded(name: str, size: Power, letters: str = "NL") -> list[Condition]:
    return [Condition(name, letter, sp.sympify(getattr(size, letter)), "≤") for letter in letters]
