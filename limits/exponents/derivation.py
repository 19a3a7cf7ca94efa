"""Scaling exponents, derived: which power of width and depth goes where, from what one asks of the network.

Read ``limits.exponents.algebra`` first (the rules: sizes of products, sums and optimiser steps), then
``limits.exponents.requirements`` (what each parametrization asks for).  Here, per role of an architecture, the exponents are
unknowns

    multiplier N^a L^α     init_std N^b L^β     learning_rate N^c L^d         (the powers themselves: 1/√N is a = −1/2)

and a parametrization is *the solution of its requirements*: each is an equation "this size is of order one" or a bound
"at most of order one", linear in the unknowns.  sympy solves the equations; what stays free is the gauge freedom
a + θ, b − θ, c − 2θ (SGD) or c − θ (Adam)  of every role, and the canonical member has N(0,1) weights.
Nothing is typed in: another rule gives another answer.

    python -m limits.exponents --help

The loss matters to SP alone (``limits.exponents.requirements``).

Sources: Yang & Hu 2021 (abc-parametrizations), Yang et al. 2022 (Adam), Yang et al. 2023, Bordelon et al. 2023 (depth),
Dey et al. 2025 (α = 1), Everett et al. 2024 (alignment), Haas et al. 2025 (cross-entropy).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import sympy as sp

from limits.exponents.algebra import (
    COMMON,
    OPTIMIZERS,
    Alignment,
    Exponents,
    Optimizer,
    Power,
    architecture,
    first_step,
    shifted,
)
from limits.exponents.regimes import LOSSES
from limits.exponents.requirements import Condition, Requirements, Setting, named

LETTERS = {"multiplier": ("a", "alpha"), "init_std": ("b", "beta"), "learning_rate": ("c", "d")}
STANDARD_ALIGNMENT = Alignment()


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
    loss: str = "mse",
) -> Solution:
    """Solve a parametrization's requirements (a name in ``PARAMETRIZATIONS``, or one's own) for training on that loss.

    impose  further equations (role, "multiplier" | "init_std" | "learning_rate", "N" | "L", value).  ValueError, naming
            the conditions that conflict, when no exponents meet them all.
    """
    name, wanted = (parametrization, named(parametrization)) if isinstance(parametrization, str) else (
        parametrization.title, parametrization)  # fmt: skip
    optimizer = _optimizer(optimizer)
    if wanted.depth_aware and kind == "plain":
        raise ValueError(f"{name} is about residual blocks: a plain network of growing depth has no such limit")
    roles = architecture(kind, depth, block_size)
    unknown = {role: _unknowns(role, wanted.depth_aware) for role in roles}
    first = first_step(roles, unknown, optimizer, alignment)
    moved = unknown | {"readout": replace(unknown["readout"], init_std=first["readout"].update)}
    setting = Setting(roles, unknown, first, first_step(roles, moved, optimizer, alignment), alignment, _known(loss))
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
    optimizers: tuple[str, ...] = COMMON,
    parametrizations: tuple[str, ...] = ("sp", "ntp", "mup", "mean_field", "depth_mup", "alpha1"),
    depth: int = 3,
    block_size: int = 1,
    loss: str = "mse",
) -> tuple[Solution, ...]:
    """Every parametrization × optimiser × architecture that has a solution of numbers."""
    return tuple(
        derive(name, optimizer, kind, depth=depth, block_size=block_size, loss=loss)
        for name in parametrizations
        for optimizer in optimizers
        for kind in ("plain", "residual")
        if kind == "residual" or not named(name).depth_aware
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


def _map(e: Exponents, f) -> Exponents:
    return Exponents(*(Power(f(p.N), f(p.L)) for p in (e.multiplier, e.init_std, e.learning_rate)))


def _rational(x):
    return Fraction(int(x.p), int(x.q)) if isinstance(x, sp.Rational) else x


def _optimizer(optimizer: str | Optimizer) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[optimizer]


def _known(loss: str) -> str:
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    return loss


def _assumptions(kind: str, optimizer: Optimizer, alignment: Alignment) -> tuple[str, ...]:
    a = alignment
    return (
        "inputs, outputs, batch, number of steps and block size are of order one; φ(h) is as large as h; ∂L/∂f = Θ(1)",
        f"n terms of size s sum to n^e s: e = {a.initial} for W_0 x, {a.update} for ΔW x, {a.propagated} for W_0 Δx "
        f"in a hidden layer, {a.readout} in the readout",
        "the first step: the backward pass runs through W_0 (later steps: limits.exponents.regimes checks the solution)",
        f"{optimizer.name}: {optimizer.rule}",
    ) + (
        (f"L branches sum with e = {a.blocks_initial} at step 0, {a.blocks_update} for their updates",)
        if kind == "residual"
        else ()
    )
