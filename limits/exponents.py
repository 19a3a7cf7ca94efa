"""Scaling exponents, derived: which power of width and depth goes where, from what one asks of the network.

Read ``limits.size_algebra`` first: it holds the rules (sizes of products, sums and optimiser steps).  Here, per role of
an architecture, the exponents are unknowns

    multiplier N^a L^α     init_std N^b L^β     learning_rate N^c L^d         (the powers themselves: 1/√N is a = −1/2)

and a parametrization is *the solution of requirements* (``PARAMETRIZATIONS``): each requirement is an equation "this
size is of order one" or a bound "at most of order one", linear in the unknowns.  sympy solves the equations; what stays
free is the gauge freedom  a + θ, b − θ, c − 2θ (SGD) or c − θ (Adam)  of every role, and the canonical member has
N(0,1) weights.  Nothing is typed in: another rule gives another answer.

SP and NTP are conventions rather than answers: SP has no multipliers and He initialisation, NTP N(0,1) weights and
1/√fan-in, both one learning rate for all; what is derived for them is the largest such rate that keeps Δf = O(1).
μP asks that every layer's update move its features and the output by Θ(1); the depth parametrizations ask it of the L
residual blocks together, and of the branches at step 0 (Depth-μP) or of each block's inside (α = 1).

    python -m limits.exponents --help

Sources: Yang & Hu 2021 (abc-parametrizations), Yang et al. 2022 (Adam), Yang et al. 2023, Bordelon et al. 2023 (depth),
Dey et al. 2025 (α = 1), Everett et al. 2024 (alignment).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import sympy as sp

from limits.size_algebra import (
    ONE,
    OPTIMIZERS,
    Alignment,
    Exponents,
    FirstStep,
    Optimizer,
    Power,
    Role,
    architecture,
    carries_forward,
    first_step,
    shifted,
)

LETTERS = {"multiplier": ("a", "alpha"), "init_std": ("b", "beta"), "learning_rate": ("c", "d")}
STANDARD_ALIGNMENT = Alignment()


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
    """What a requirement may speak of: the roles, their unknown exponents, and all sizes of the first step."""

    roles: Mapping[str, Role]
    exponents: Mapping[str, Exponents]
    first: Mapping[str, FirstStep]
    alignment: Alignment


# requirements: each returns its conditions


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


_LARGEST_STABLE_RATE = (preactivations, output_at_init, one_learning_rate, output_changes_bounded)
_MAXIMAL = (preactivations, output_at_init_bounded, features_reach_output, maximal_updates)
PARAMETRIZATIONS = {
    "sp": Requirements("SP", (unit_multiplier, *_LARGEST_STABLE_RATE), maximise=True),
    "ntp": Requirements("NTP", (unit_init, *_LARGEST_STABLE_RATE), maximise=True),
    "mup": Requirements("μP", _MAXIMAL),
    "mean_field": Requirements("mean field", (unit_init, *_MAXIMAL)),
    "depth_mup": Requirements("Depth-μP", (*_MAXIMAL, branches_visible, blocks_bounded), depth_aware=True),
    "alpha1": Requirements("α = 1", (*_MAXIMAL, branches_bounded, blocks_learn), depth_aware=True),
    "depth_family": Requirements("all α", (*_MAXIMAL, branches_bounded, blocks_bounded), depth_aware=True),
}


# solving


@dataclass(frozen=True)
class Solution:
    """The solution family of a parametrization's requirements.

    family       per role, with gauge symbols theta_role (in N) and vartheta_role (in L) where the requirements leave
                 the gauge open, and ``alpha`` where they leave the branch multiplier L^{-α} open
    canonical    per role, the member with N(0,1) weights
    conditions   all that was asked, in the unknowns
    bounds       the bounds on the solution; the binding one of a maximised learning rate has expression 0
    assumptions  what the derivation takes for granted, in words
    """

    parametrization: str
    optimizer: Optimizer
    architecture: str
    family: Mapping[str, Exponents]
    canonical: Mapping[str, Exponents]
    conditions: tuple[Condition, ...]
    bounds: tuple[Condition, ...]
    assumptions: tuple[str, ...]


def derive(
    parametrization: str | Requirements,
    optimizer: str | Optimizer = "sgd",
    kind: str = "plain",
    *,
    depth: int = 3,
    block_size: int = 1,
    alignment: Alignment = STANDARD_ALIGNMENT,
    impose: Sequence[tuple[str, str, str, Fraction]] = (),
) -> Solution:
    """Solve a parametrization's requirements (a name in ``PARAMETRIZATIONS``, or one's own).

    impose  further equations (role, "multiplier" | "init_std" | "learning_rate", "N" | "L", value).  ValueError, naming
            the conditions that conflict, when no exponents meet them all.
    """
    name, wanted = (parametrization, _named(parametrization)) if isinstance(parametrization, str) else (
        parametrization.title, parametrization)  # fmt: skip
    optimizer = _optimizer(optimizer)
    if wanted.depth_aware and kind == "plain":
        raise ValueError(f"{name} is about residual blocks: a plain network of growing depth has no such limit")
    roles = architecture(kind, depth, block_size)
    unknown = {role: _unknowns(role, wanted.depth_aware) for role in roles}
    setting = Setting(roles, unknown, first_step(roles, unknown, optimizer, alignment), alignment)
    conditions = [c for requirement in wanted.conditions for c in requirement(setting)]
    conditions += [_imposed(unknown, *equation) for equation in impose]
    conditions = [c for c in conditions if c.expression != 0 and (wanted.depth_aware or c.letter == "N")]

    values = _solve([c for c in conditions if c.relation == "="], _symbols(unknown))
    if wanted.maximise:
        values = _largest_rate(values, conditions, [e.learning_rate.N for e in unknown.values()])
    values = _with_gauge_symbols(values, unknown)
    bounds = tuple(
        Condition(c.name, c.letter, sp.expand(c.expression.subs(values)), "≤") for c in conditions if c.relation == "≤"
    )
    for bound in bounds:
        if bound.expression.is_number and bound.expression > 0:
            raise ValueError(f"no exponents meet every bound: {bound.name} grows as {bound.letter}^{bound.expression}")
    family = {role: _map(e, lambda x: sp.expand(sp.sympify(x).subs(values))) for role, e in unknown.items()}
    canonical = {
        role: _map(shifted(e, e.init_std, roles[role], optimizer), lambda x: _rational(sp.expand(x)))
        for role, e in family.items()
    }
    return Solution(
        name, optimizer, kind, family, canonical, tuple(conditions), bounds, _assumptions(kind, optimizer, alignment)
    )


@cache
def table(
    optimizers: tuple[str, ...] = ("sgd", "adam"),
    parametrizations: tuple[str, ...] = ("sp", "ntp", "mup", "mean_field", "depth_mup", "alpha1"),
    depth: int = 3,
    block_size: int = 1,
) -> tuple[Solution, ...]:
    """Every parametrization × optimiser × architecture that has a solution of numbers."""
    return tuple(
        derive(name, optimizer, kind, depth=depth, block_size=block_size)
        for name in parametrizations
        for optimizer in optimizers
        for kind in ("plain", "residual")
        if kind == "residual" or not _named(name).depth_aware
    )


# the linear algebra


def _solve(equations: list[Condition], symbols: list[sp.Symbol]) -> dict[sp.Symbol, sp.Expr]:
    """The solved symbols in terms of the free ones; linsolve prefers the later symbols as free ones."""
    solutions = sp.linsolve([c.expression for c in equations], symbols)
    if not solutions:
        conflict = "  against  ".join(str(c) for c in _conflict(equations, symbols))
        raise ValueError(f"contradictory conditions: {conflict}")
    return dict(zip(symbols, next(iter(solutions)), strict=True))


def _conflict(equations: list[Condition], symbols: list[sp.Symbol]) -> list[Condition]:
    """A subset that has no solution, every proper subset of which has one."""

    def solvable(subset):
        return bool(sp.linsolve([c.expression for c in subset], symbols)) if subset else True

    core = list(equations)
    for condition in equations:
        without = [c for c in core if c is not condition]
        if not solvable(without):
            core = without
    return core


def _largest_rate(values, conditions, rates):
    """Put the largest value of the one learning rate that the equations left free that every bound allows."""
    free = [rate for rate in rates if values[rate] == rate]
    if not free:
        return values
    (rate,) = free
    limits = []
    for c in conditions:
        expression = sp.expand(c.expression.subs(values))
        slope = expression.coeff(rate)
        if c.relation == "≤" and slope > 0:
            limits.append(rate - expression / slope)
    best = {rate: sp.Min(*limits)}
    return {symbol: sp.expand(sp.sympify(value).subs(best)) for symbol, value in values.items()}


def _with_gauge_symbols(values, unknown):
    """Write what is free as the gauge b = −θ, and the free branch multiplier as L^{−α+θ}."""
    names = {}
    for role, e in unknown.items():
        for prefix, symbol in (("theta", e.init_std.N), ("vartheta", e.init_std.L)):
            if values.get(symbol) == symbol:
                names[symbol] = -sp.Symbol(f"{prefix}_{role}")
    branch = unknown["block"].multiplier.L if "block" in unknown else None
    if values.get(branch) == branch and branch is not None:
        names[branch] = -sp.Symbol("alpha") - names.get(unknown["block"].init_std.L, 0)
    return {symbol: sp.expand(sp.sympify(value).subs(names)) for symbol, value in values.items()}


def _unknowns(role: str, depth_aware: bool) -> Exponents:
    def power(in_width, in_depth):
        return Power(sp.Symbol(f"{in_width}_{role}"), sp.Symbol(f"{in_depth}_{role}") if depth_aware else sp.Integer(0))

    return Exponents(**{field: power(*letters) for field, letters in LETTERS.items()})


def _symbols(unknown: Mapping[str, Exponents]) -> list[sp.Symbol]:
    """All unknowns, those that may stay free last: learning rates, multipliers (the block's last), initialisations."""
    by_kind = [
        power
        for field in ("learning_rate", "multiplier", "init_std")
        for _, e in sorted(unknown.items(), key=lambda item: item[0] == "block")
        for power in (getattr(e, field).N, getattr(e, field).L)
    ]
    return [symbol for symbol in by_kind if symbol != 0]


def _imposed(unknown, role, field, letter, value) -> Condition:
    if role not in unknown:
        raise ValueError(f"unknown role {role!r}; known: {', '.join(unknown)}")
    symbol = getattr(getattr(unknown[role], field), letter)
    if not symbol.free_symbols:
        raise ValueError(f"imposed {role}.{field}.{letter}: this parametrization has no powers of {letter}")
    return Condition(f"imposed {role}.{field} = {letter}^({value})", letter, symbol - sp.Rational(value))


def _branches(s: Setting) -> Power:
    return s.first["block"].output * s.roles["block"].copies ** s.alignment.blocks_initial


def _inside_blocks(s: Setting) -> list[tuple[str, Power]]:
    return [(n, s.first[n].change / s.first[n].output) for n in ("block_inner", "block") if n in s.roles]


def _of_order_one(name: str, size: Power, letters: str = "NL") -> list[Condition]:
    return [Condition(name, letter, sp.sympify(getattr(size, letter))) for letter in letters]


def _bounded(name: str, size: Power, letters: str = "NL") -> list[Condition]:
    return [Condition(name, letter, sp.sympify(getattr(size, letter)), "≤") for letter in letters]


def _map(e: Exponents, f) -> Exponents:
    return Exponents(*(Power(f(p.N), f(p.L)) for p in (e.multiplier, e.init_std, e.learning_rate)))


def _rational(x):
    return Fraction(int(x.p), int(x.q)) if isinstance(x, sp.Rational) else x


def _named(name: str) -> Requirements:
    if name not in PARAMETRIZATIONS:
        raise ValueError(f"unknown parametrization {name!r}; known: {', '.join(PARAMETRIZATIONS)}")
    return PARAMETRIZATIONS[name]


def _optimizer(optimizer: str | Optimizer) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[optimizer]


def _assumptions(kind: str, optimizer: Optimizer, alignment: Alignment) -> tuple[str, ...]:
    a = alignment
    return (
        "inputs, outputs, batch, number of steps and block size are of order one; φ(h) is as large as h; ∂L/∂f = Θ(1)",
        f"n terms of size s sum to n^e s: e = {a.initial} for W_0 x, {a.update} for ΔW x, {a.propagated} for W_0 Δx "
        f"in a hidden layer, {a.readout} in the readout",
        "the first step: the backward pass runs through W_0 (later steps: limits.regimes checks the solution)",
        f"{optimizer.name}: {optimizer.rule}",
    ) + (
        (f"L branches sum with e = {a.blocks_initial} at step 0, {a.blocks_update} for their updates",)
        if kind == "residual"
        else ()
    )


if __name__ == "__main__":
    from limits.exponent_tables import main

    main()
