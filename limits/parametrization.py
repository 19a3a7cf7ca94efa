"""Parametrizations: which power of the width and the depth stands where.

This is the one place that turns a width into a factor.  The powers are *derived* (``limits.exponents``, by sympy); this
module reads the derivation's stored results, which a test compares with a fresh derivation, so that importing it is
cheap:

    scaling("mup", "adam")["hidden"].learning_rate(width=1024)

Conventions as in ``limits.size_algebra``: weights N(0,1) at initialisation, every forward factor explicit, and the
stored number is the power itself.  In a network whose matrices all carry 1/√fan-in and which has one output multiplier,
one exponent a is left (``Parametrization``):

    f = (1/γ) · (forward pass with factors 1/√fan-in),    γ = γ0 N^a,    learning rate η = η0 γ²

a = 0 is NTP (the kernel regime), a = 1/2 is μP (mean field); everything between is a kernel regime whose
initial output vanishes.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from importlib.resources import files
from math import inf, sqrt
from pathlib import Path
from typing import Any

from limits.size_algebra import HALF, ONE, OPTIMIZERS, ROLES, WIDTH, Exponents, Power, architecture, shifted

QUANTITIES = ("multiplier", "init_std", "learning_rate")
ARCHITECTURES = ("plain", "residual")


@dataclass(frozen=True)
class Scaling:
    """The exponents of every role of an architecture, under an optimiser; ``scaling["hidden"]`` is one role's."""

    name: str
    optimizer: str
    architecture: str
    roles: Mapping[str, Exponents]

    def __getitem__(self, role: str) -> Exponents:
        if role not in self.roles:
            raise ValueError(f"{self.name}, {self.architecture}: no role {role!r}; known: {', '.join(self.roles)}")
        return self.roles[role]


def scaling(name: str, optimizer: str = "sgd", architecture: str = "plain", *, depth: int = 3) -> Scaling:
    """A parametrization by name, as derived.

    ``depth`` matters only as one hidden layer (plain, no hidden matrix) or more: the largest stable global learning
    rate of SP and NTP under Adam differs.
    """
    table = _stored(one_hidden_layer=depth == 1)
    rule = _SAME_EXPONENTS.get(optimizer, optimizer)
    if (name, rule, architecture) not in table:
        _known("parametrization", name, {key[0] for key in table})
        _known("optimizer", optimizer, OPTIMIZERS)
        _known("architecture", architecture, ARCHITECTURES)
        raise ValueError(f"{name} is about residual blocks: it says nothing about a {architecture} network")
    return Scaling(name, optimizer, architecture, table[name, rule, architecture])


def read_scaling(
    text: str, optimizer: str | None = None, architecture: str | None = None, *, depth: int = 3
) -> Scaling:
    """A parametrization by name, from a TOML file, or inline.

        mup                                                     a name
        mine.toml                                               name = "mine"; base = "mup"; optimizer = "adam"
                                                                [hidden]
                                                                learning_rate = {N = "-1/2", L = "0"}
        base=mup, hidden.learning_rate=-1/2, block.multiplier.L=-1
                                                                inline; a bare power is one of N

    What is not given is the base's, or the zeroth power without a base.  ValueError, in one line, for what is not known
    or not rational.
    """
    if text.endswith(".toml"):
        given = _toml(Path(text))
    elif "=" in text:
        given = _inline(text)
    else:
        return scaling(text, optimizer or "sgd", architecture or "plain", depth=depth)
    head = {key: given.pop(key) for key in ("name", "base", "optimizer", "architecture") if key in given}
    optimizer = optimizer or head.get("optimizer", "sgd")
    architecture = architecture or head.get("architecture", "plain")
    _known("optimizer", optimizer, OPTIMIZERS)
    _known("architecture", architecture, ARCHITECTURES)
    roles = dict(scaling(head["base"], optimizer, architecture, depth=depth).roles) if "base" in head else {}
    for role, quantities in given.items():
        _known("role", role, ROLES)
        if not isinstance(quantities, Mapping):
            raise ValueError(f"{role} = {quantities!r}: wanted {', '.join(QUANTITIES)} of the role")
        for quantity, power in quantities.items():
            _known(f"quantity of {role}", quantity, QUANTITIES)
            e = roles.get(role, Exponents())
            power = _power(f"{role}.{quantity}", power, getattr(e, quantity))
            roles[role] = replace(e, **{quantity: power})
    return Scaling(str(head.get("name", text)), optimizer, architecture, roles)


def gauge(given: Scaling, quantity: str = "init_std") -> Scaling:
    """The same training in the gauge where ``quantity`` of every role has no power.

    "init_std" weights N(0,1); "multiplier" none; "learning_rate" one for all (with SGD: Yang & Hu's form of μP).
    """
    _known("quantity", quantity, QUANTITIES)
    optimizer = OPTIMIZERS[given.optimizer]
    all_roles = architecture(given.architecture, depth=2, block_size=2)

    def moved(role, e):
        response = shifted(Exponents(), WIDTH, role, optimizer)  # what a shift by N does to each of the three
        return shifted(e, getattr(e, quantity) ** (-1 / getattr(response, quantity).N), role, optimizer)

    return replace(given, roles={r: moved(all_roles[r], e) if r in all_roles else e for r, e in given.roles.items()})


@dataclass(frozen=True)
class Parametrization:
    """A name and the exponent a of the output multiplier γ = γ0 N^a; 0 ≤ a ≤ 1/2."""

    name: str
    output_exponent: float

    def __post_init__(self):
        if not 0.0 <= self.output_exponent <= 0.5:
            raise ValueError(
                f"output exponent {self.output_exponent:g}: a limit exists for 0 (NTP) to 0.5 (μP); "
                "above, training is unstable at large width, below, the initial output diverges"
            )


def with_output_multiplier(given: Scaling) -> Parametrization:
    """The scaling as a ``Parametrization``: 1/√fan-in in front of every matrix, one γ, η = η0 γ².

    ValueError for one that is not of this form (SP: once its weights are N(0,1), its layers have different rates).
    """
    canonical = gauge(given)
    a = -canonical["readout"].multiplier.N - HALF
    unit = {"input": ONE, "hidden": Power(N=-HALF)}
    matrices = {role: canonical.roles[role] for role in ("input", "hidden", "readout") if role in canonical.roles}
    fits = given.optimizer == "sgd" and given.architecture == "plain" and all(
        e.multiplier == unit.get(role, e.multiplier) and e.learning_rate == Power(N=2 * a)
        for role, e in matrices.items()
    )  # fmt: skip
    if not fits:
        raise ValueError(f"{given.name}: not SGD at η0 γ² with factors 1/√fan-in and one γ; no limit is known for it")
    return Parametrization(given.name, float(a))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None


def _inline(text: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        *path, last = key.split(".")
        if not equals or not last or len(path) > 2:
            raise ValueError(f"{item.strip()!r}: wanted role.quantity=power, role.quantity.L=power or base=name")
        table = given
        for name in path:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ValueError(f"{item.strip()!r}: {name} already has a power; give .N and .L")
        table[last] = value
    return given


def _power(where: str, value: Any, base: Power) -> Power:
    if not isinstance(value, Mapping):
        return replace(base, N=rational(where, value))
    for letter, power in value.items():
        _known(f"letter of {where}", letter, ("N", "L"))
        base = replace(base, **{letter: rational(f"{where}.{letter}", power)})
    return base


def rational(where: str, value: Any) -> Fraction:
    """ "-1/2", 0.5 or 1 as a fraction; ValueError for what is none."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{where} = {value!r} is not a rational number") from None


_SAME_EXPONENTS = {"momentum": "sgd", "sign": "adam"}  # the same rule (a test holds it), stored once


@cache
def _stored(one_hidden_layer: bool) -> dict[tuple[str, str, str], dict[str, Exponents]]:
    """The derivation's results, written by ``python -m limits.exponents --format json --block-size 2 [--depth 1]``."""
    name = "exponents_one_hidden_layer.json" if one_hidden_layer else "exponents.json"
    table: dict[tuple[str, str, str], dict[str, Exponents]] = {}
    for record in json.loads((files("limits") / name).read_text(encoding="utf-8")):
        key = record["parametrization"], record["optimizer"], record["architecture"]
        powers = {q: Power(Fraction(record[q]["N"]), Fraction(record[q]["L"])) for q in QUANTITIES}
        table.setdefault(key, {})[record["role"]] = Exponents(**powers)
    return table


def _known(kind: str, name: str, names) -> None:
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(names))}")


NTP = with_output_multiplier(scaling("ntp"))
MUP = with_output_multiplier(scaling("mup"))
PARAMETRIZATIONS = {p.name: p for p in (MUP, NTP)}


def resolve(parametrization: str | Parametrization) -> Parametrization:
    """The parametrization of that name (or the one given, or a text for ``read_scaling``).

    Raises ValueError for an unknown name, or for exponents that no limit is known for.
    """
    if isinstance(parametrization, Parametrization):
        return parametrization
    if "=" in parametrization or parametrization.endswith(".toml"):
        return with_output_multiplier(read_scaling(parametrization))
    if parametrization not in PARAMETRIZATIONS:
        known = ", ".join(PARAMETRIZATIONS)
        raise ValueError(f"unknown parametrization {parametrization!r}; known: {known}")
    return PARAMETRIZATIONS[parametrization]


def output_multiplier(parametrization: Parametrization, richness: float, width: int) -> float:
    """γ = γ0 N^a, the number that the network's output is divided by."""
    return richness * float(width) ** parametrization.output_exponent


def learning_rate(parametrization: Parametrization, eta0: float, richness: float, width: int) -> float:
    """η = η0 γ², the raw step of plain gradient descent."""
    return eta0 * output_multiplier(parametrization, richness, width) ** 2


def forward_multiplier(fan_in: int) -> float:
    """1/√fan-in, in front of every weight matrix."""
    return 1.0 / sqrt(fan_in)


def laziness(parametrization: Parametrization, width: float) -> float:
    """ε = N^{a − 1/2}: how far one feature moves when the function moves by one; 1 in μP, → 0 in a kernel regime.

    ``width`` may be ``math.inf``.
    """
    if parametrization.output_exponent == 0.5:
        return 1.0
    return 0.0 if width == inf else float(width) ** (parametrization.output_exponent - 0.5)
