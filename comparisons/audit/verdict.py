"""What a parametrization asks of each weight, what was found, and which number of which weight would have to change.

Two kinds of exponents are compared.  *Numbers* are a weight's own: how large it is as it acts at step 0, its multiplier
included; its learning rate as it acts; the factor of attention scores; Adam's ε; its decay.  A fault in one weight does not
show in another's numbers, so that a number that differs is a ``Suspect``.  *Sizes* are what the network makes of all of them,
h, Δh, ΔW x, f and Δf: there a fault shows wherever its consequences are.  What is asked for is derived (``limits.exponents``),
for weights of a role.

The learning rate is measured, whatever the optimiser is: of one whose update is linear in the gradient it is update/gradient;
of one that forgets the scale of every entry (Adam, Lion, sign) it is the update; of others (Muon, Shampoo) it is ΔW x over x.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import isfinite, nan

import numpy as np

from comparisons.audit.measure import Measured
from comparisons.statistics.power_law import exponent_of
from finite.networks.roles import ACTIVATIONS, BIAS, GAIN, SCORES, UNDERSTOOD, UNUSED, Role
from limits.exponents import regimes
from limits.exponents.algebra import COMMON, OPTIMIZERS, Alignment
from limits.exponents.parametrization import read_scaling

TOLERANCE = 0.1  # within which an exponent agrees, as in ``coord_check``
APART = 0.2  # a number or a size is wrong where its whole interval is farther off: faults are of a quarter or more
STRAIGHT = 0.75  # of the slope that a power law has among the largest widths at least
FELT = 0.8  # an ε matters where it makes an update smaller than so much of what it would be
SMALL = 0.01  # of an update: noise is not told of below
LITTLE = 0.001  # of an update at any width: decay is not compared below
ROUNDING = 1e-5  # of the largest gradient: smaller ones are rounding errors
LINEAR, ENTRYWISE = COMMON  # whose exponents an optimiser takes, by what it does to gradients; or of neither
WHOLE = "whole"
SIZES = {"Δh": "delta_h", "ΔW x": "own_change"}  # as they are measured
CHANGES = (*SIZES.values(), "delta_f")
AGREES, DIFFERS, UNDECIDED = "agrees", "differs", "undecided"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """N^exponent found, and its 95 % interval; ``wanted`` is not a number where nothing is asked for."""

    weight: str
    operation: str
    quantity: str
    exponent: float
    interval: Interval
    wanted: float
    verdict: str

    def __str__(self) -> str:
        name = f"{f'{self.weight} {self.operation}'.strip()}, {self.quantity}"
        measured = f"N^{self.exponent:+.3f} [{self.interval[0]:+.3f}, {self.interval[1]:+.3f}]"
        smaller = self.verdict == AGREES and self.exponent < self.wanted - TOLERANCE
        wanted = f"{'at most' if smaller else 'wanted'} {power(self.wanted)}"
        return f"{name:<44}  {measured}  {wanted:<15}  {self.verdict}"


@dataclass(frozen=True)
class Suspect:
    """The number of these weights that would have to change: from N^exponent to N^wanted.  ``told``: in place of powers."""

    weights: tuple[str, ...]
    number: str
    exponent: float = nan
    wanted: float = nan
    told: str = ""

    def __str__(self) -> str:
        change = self.told or f"{power(self.exponent)} found, {power(self.wanted)} wanted"
        return f"{', '.join(self.weights)}: {self.number}: {change}"


def power(exponent: float) -> str:
    """"N^-1/2"; what is no quarter within the tolerance, in decimals."""
    if not isfinite(exponent):
        return "no power of N"
    nearest = quarter(exponent)
    return f"N^{nearest if abs(exponent - nearest) <= TOLERANCE else format(exponent, '+.2f')}"


def quarter(exponent: float) -> Fraction:
    """The next multiple of 1/4: what is measured scatters."""
    return Fraction(round(4 * exponent), 4)


# What is asked for ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Of a role, under a kind of optimiser: exponents of weights as they act, and of sizes."""

    std: float
    rate: float
    h: float
    delta_h: float
    own_change: float


@cache
def requirements(param: str, kind: str, loss: str) -> tuple[Mapping[str, Wanted], Mapping[str, float]]:
    """(of every role, of f and delta_f).  Raises ValueError for a parametrization that is none of plain networks."""
    scaling = read_scaling(param, kind, "plain", loss=loss)
    sizes = regimes.predicted(regimes.case(scaling, loss=loss))
    linear = 1 if OPTIMIZERS[kind].forgets_scale() else 2

    def growth(quantity, role):
        return next((float(s.N) for layer, s in sizes[quantity].items() if layer.split()[0] == role), nan)

    by_role = {
        role: Wanted(
            float(e.multiplier.N + e.init_std.N), float(e.learning_rate.N + linear * e.multiplier.N),
            growth("h", role), growth("delta_h", role), growth("own_change", role),
        )
        for role, e in scaling.roles.items()
    }  # fmt: skip
    outputs = {"f": max(growth("f", "readout"), 0.0), "delta_f": growth("delta_f", "readout")}  # f(0) is asked to be bounded
    by_role["constant"] = Wanted(nan, 0.0, nan, nan, nan)  # nothing of it grows
    return by_role, outputs


def score_exponent(role: Role, param: str, loss: str) -> float:
    """Of the factor of attention scores: 1/d where features move, which align, 1/√d where they do not."""
    moves = requirements(param, ENTRYWISE, loss)[0]["hidden"].delta_h == 0
    return -role.fan_in * float(Alignment().update if moves else Alignment().initial)


# What is found --------------------------------------------------------------------------------------------------------


def kind_of(entrywise: float, growth: float) -> str:
    """Whose exponents an optimiser takes that answers a leaf so."""
    if entrywise < 0.2:
        return ENTRYWISE
    return LINEAR if growth > 0.7 else WHOLE


def not_understood(role: Role) -> str:
    """Why nothing is asked of a use; "" where something is."""
    operation = role.use.operation
    if operation == UNUSED:
        return f"{role.use.path}: apply never reads it"
    if role.use.path == ACTIVATIONS:
        return "activations: contracted over the width, not known to be queries and keys: nothing is asked of what comes out"
    if operation == SCORES or (operation in UNDERSTOOD and role.name is not None):
        return ""
    fans = f" of fan-in N^{role.fan_in:.2f}, fan-out N^{role.fan_out:.2f}" if operation in UNDERSTOOD else ""
    return f"{role.use.path}: {operation}{fans} is not understood: nothing is asked of it"


class Findings:
    """Rows and suspects of a measurement."""

    def __init__(self, measured: Measured, param: str, loss: str):
        self.measured, self.param, self.loss = measured, param, loss
        self.rows: list[Row] = []
        self.suspects: list[Suspect] = []
        self.remarks: list[str] = []
        leaves = dict.fromkeys(name for quantity, name in measured.sizes[0] if quantity == "gradient")
        self.largest_gradient = max(self.typical("gradient", path) for path in leaves)
        if not self.largest_gradient:
            raise ValueError("no weight has a gradient: the loss does not depend on them")
        scores = [role.use.path for role in measured.roles if role.use.operation == SCORES]
        self.of_attention = {path for made_by in scores for path in made_by.split(" · ")}
        for role in measured.roles:
            self.of_use(role)
        for path in leaves:
            self.of_leaf(path)
        if noisy := [path for path in leaves if self.typical("noise", path) > SMALL]:
            self.remarks.append(f"noise, which the optimizer adds to updates of {', '.join(noisy)}: nothing is derived for it")
        if not measured.drawn:
            self.remarks.append("chance: build(width, key) makes the same weights of every key, so that seeds are no repeats")
        of_outputs = requirements(param, ENTRYWISE, self.loss)[1]
        self.size("outputs", "", "f", "", of_outputs["f"], at_most=True)
        self.size("outputs", "", "delta_f", "", of_outputs["delta_f"])

    def fitted(self, quantity: str, name: str = "", over: tuple[str, str] | None = None) -> tuple[float, Interval]:
        """(exponent, interval) of a size, or of one over another."""
        values = self.measured.by_width(quantity, name)
        if over:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = [a / b for a, b in zip(values, self.measured.by_width(*over), strict=True)]
        return exponent_of(self.measured.widths, values)

    def typical(self, quantity: str, name: str, width: int = -1) -> float:
        return float(np.median(self.measured.by_width(quantity, name)[width]))

    def kind(self, path: str) -> str:
        return kind_of(self.typical("entrywise", path), self.typical("growth", path))

    def size(self, weight, operation, quantity, site, wanted, at_most=False) -> None:
        """The row of a size, which is wrong where it is so between the two largest widths too, about as much.

        Among few units the parts that do not align are seen, √(a + b/N), as of updates that many samples share.  A change that
        falls no more than √(1 + crowd/N) does, in which all of them are as large as what aligns, is undecided.
        """
        name = SIZES.get(quantity, quantity)
        widths, values = self.measured.widths, self.measured.by_width(name, site)
        fit, late, most = exponent_of(widths, values), exponent_of(widths[-2:], values[-2:])[0], 0.0
        if name in CHANGES and fit[0] < wanted:
            squares = [np.full(2, 1 + self.measured.crowd / width) for width in widths]
            most, of_late = (exponent_of(widths[which], squares[which])[0] / 2 for which in (slice(None), slice(-2, None)))
            late -= of_late
        self.row(weight, operation, quantity, fit, wanted, at_most, late, most)

    def row(self, weight, operation, quantity, fit, wanted, at_most=False, late=None, most=0.0) -> float:
        """Adds it; returns by how much it is off, 0 where it is not clearly.  ``most``, below 0: how far below is undecided."""
        exponent, (low, high) = fit
        off = exponent - wanted
        if not isfinite(off) or abs(off) <= TOLERANCE or (at_most and off < 0):
            verdict = AGREES if isfinite(off) else ""
        else:
            far = off if off > 0 else most - off
            apart = low > wanted + TOLERANCE or high < wanted + most - TOLERANCE
            still = late is None or (late - wanted) * np.sign(off) > max(APART, STRAIGHT * far)
            verdict = DIFFERS if apart and still and far > APART else UNDECIDED
        self.rows.append(Row(weight, operation, quantity, exponent, (low, high), wanted, verdict))
        return off if verdict == DIFFERS else 0.0

    def of_use(self, role: Role) -> None:
        if remark := not_understood(role):
            self.remarks += [remark] if remark not in self.remarks else []
        elif role.use.operation == SCORES:
            self.of_scores(role)
        else:
            self.of_weight(role)

    def of_weight(self, role: Role) -> None:
        path, operation, site = role.use.path, role.use.operation, role.use.site
        kind = self.kind(path)
        wanted = requirements(self.param, ENTRYWISE if kind == WHOLE else kind, self.loss)[0][role.name]
        size = _times(self.fitted("std", path), role.multiplier)
        off_std = self.row(path, operation, "initial size", size, wanted.std, at_most=role.name == "readout")
        linear = 2 if kind == LINEAR else 1
        if not self.moved(path) or self.uphill(path):
            off_rate = 0.0
        elif kind == LINEAR:
            rate = _times(self.fitted("update", path, ("gradient", path)), 2 * role.multiplier)
            off_rate = self.row(path, operation, "learning rate", rate, wanted.rate)
        elif kind == ENTRYWISE:
            rate = _times(self.fitted("update_of_large", path), role.multiplier)
            off_rate = self.row(path, operation, "learning rate", rate, wanted.rate)
        else:
            rate = self.fitted("own_per_input", site)
            off_rate = self.row(path, operation, "learning rate", rate, 0.0 if role.name == "constant" else wanted.own_change)
        if off_rate and abs(off_rate - linear * (size[0] - wanted.std)) < APART:
            off_std = size[0] - wanted.std  # a readout may be smaller than wanted, but not with its learning rate
        self.suspect(role, off_std, off_rate, linear)
        # scores begin with no alignment, and with them gradients of queries and keys: linear in these, they move less at first
        at_most = kind == LINEAR and path in self.of_attention
        if operation not in (BIAS, GAIN):
            self.size(path, operation, "h", site, wanted.h)
            self.size(path, operation, "Δh", site, wanted.delta_h, at_most)
        self.size(path, operation, "ΔW x", site, wanted.own_change, at_most)

    def suspect(self, role, off_std, off_rate, linear) -> None:
        """One shift of the multiplier explains both, or each is a number of its own."""
        path, name, m = role.use.path, role.name, role.multiplier
        if off_std and off_rate and abs(off_rate - linear * off_std) < APART:
            self.add(path, f"{name} multiplier", m, m - off_std)
            return
        if off_std:
            std = self.fitted("std", path)[0]
            self.add(path, f"{name} initial std", std, std - off_std)
        if off_rate:
            rate = self.fitted("update", path, ("gradient", path) if linear == 2 else None)[0]
            self.add(path, f"{name} learning rate", rate, rate - off_rate)

    def of_scores(self, role: Role) -> None:
        """Queries and keys of order one, aligned as far as features move, make scores of order one."""
        wanted = score_exponent(role, self.param, self.loss)
        off = self.row(role.use.path, SCORES, "scores", self.fitted("bound", role.use.site), role.fan_in + wanted)
        if off and abs(role.multiplier - wanted) > APART:
            self.add(role.use.path, "attention scale", role.multiplier, wanted)

    def moved(self, path) -> bool:
        return self.typical("total", path) > 0

    def uphill(self, path) -> bool:
        """Whether what the optimiser first makes of a gradient goes up it."""
        return self.typical("uphill", path) > 0.5

    def of_leaf(self, path: str) -> None:
        gradient = self.typical("gradient", path)
        if not gradient:
            if not any(role.use.path == path and role.use.operation == UNUSED for role in self.measured.roles):
                self.remarks.append(f"{path}: the loss has no gradient there: its learning rate is not checked")
            return
        if not self.moved(path):
            self.suspects.append(Suspect((path,), "optimizer", told="never moved, though it has a gradient"))
            return
        if self.uphill(path):
            told = "goes up the gradient: no optimizer acts on it, or the sign is missing"
            self.suspects.append(Suspect((path,), "optimizer", told=told))
            return
        if gradient < ROUNDING * self.largest_gradient:
            return
        muted = [np.median(values) for values in self.measured.by_width("muted", path)]
        if self.kind(path) != LINEAR and muted[-1] < FELT:
            off, epsilon = self.of_epsilon(path)
            if off > 0:
                self.add(path, "epsilon", epsilon, epsilon - off)
        if self.typical("drowned", path) > FELT:
            self.suspects.append(Suspect((path,), "weight decay", told="within the gradient, which it drowns"))
        decay, std, update = (np.array([self.typical(name, path, width) for width in range(len(self.measured.widths))])
                              for name in ("decay", "std", "update"))  # fmt: skip
        if (decay * std > LITTLE * update).any():
            fit = self.fitted("decay", path)
            off = self.row(path, "", "decay", fit, 0.0)
            if off:
                self.add(path, "weight decay times learning rate", fit[0], fit[0] - off)

    def of_epsilon(self, path: str) -> tuple[float, float]:
        """(by how much it is off beside the gradient, its exponent): of entries, where these have one each."""
        if self.kind(path) == ENTRYWISE:
            return self.row(path, "", "ε", self.fitted("damped", path), 0.0), self.fitted("epsilon", path)[0]
        over = [1 / np.minimum(values, 1 - 1e-7) - 1 for values in self.measured.by_width("muted", path)]
        off = self.row(path, "", "ε", exponent_of(self.measured.widths, over), 0.0)
        return off, self.fitted("gradient", path)[0] + off

    def add(self, path: str, number: str, exponent: float, wanted: float) -> None:
        """Beside others of the same fault."""
        for place, other in enumerate(self.suspects):
            if other.number == number and abs(other.exponent - exponent) + abs(other.wanted - wanted) < TOLERANCE:
                weights = dict.fromkeys((*other.weights, path))  # which may act more than once
                self.suspects[place] = Suspect(tuple(weights), number, other.exponent, other.wanted)
                return
        self.suspects.append(Suspect((path,), number, exponent, wanted))


def _times(fit: tuple[float, Interval], exponent: float) -> tuple[float, Interval]:
    value, (low, high) = fit
    return value + exponent, (low + exponent, high + exponent)
