"""Parametrizations: which power of the width and the depth stands where.

This is the one place that turns a width into a factor.  The powers are *derived* (``limits.exponents``, by sympy); this
module reads the derivation's stored results, which a test compares with a fresh derivation, so that importing it is
cheap:

    scaling("mup", "adam")["hidden"].learning_rate(width=1024)

Conventions as in ``limits.exponents.algebra``: weights N(0,1) at initialisation, every forward factor explicit, and the
stored number is the power itself; ``factors`` turns it into numbers.  In a network whose matrices all carry 1/√fan-in and
which has one output multiplier, one exponent a is left (``output_exponent``):

    f = (1/γ) · (forward pass with factors 1/√fan-in),    γ = γ0 N^a,    learning rate η = η0 γ²

a = 0 is NTP (the kernel regime), a = 1/2 is μP (mean field); everything between is a kernel regime whose
initial output vanishes.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from importlib.resources import files
from math import inf, sqrt
from pathlib import Path
from typing import Any

from limits.exponents import regimes
from limits.exponents.algebra import HALF, OPTIMIZERS, ROLES, WIDTH, Exponents, Power, Scaling, architecture, shifted
from limits.exponents.regimes import MATRICES
from limits.losses import LOSSES

QUANTITIES = ("multiplier", "init_std", "learning_rate")
LARGEST_POWER = 16  # of a size: what is derived stays below 2
ARCHITECTURES = ("plain", "residual")


def scaling(
    name: str, optimizer: str = "sgd", architecture: str = "plain", *, depth: int = 3, loss: str = "mse"
) -> Scaling:
    """A parametrization by name, as derived.

    ``depth`` matters only as one hidden layer (plain, no hidden matrix) or more: the largest stable global learning
    rate of SP and NTP under Adam differs, and of SP with cross-entropy.  ``loss`` matters to SP only.

    >>> readout = scaling("mup").roles["readout"]
    >>> f"multiplier N^{readout.multiplier.N}, learning rate N^{readout.learning_rate.N}"
    'multiplier N^-1, learning rate N^1'
    """
    _known("loss", loss, regimes.LOSSES)
    table = _stored(depth == 1, loss)
    rule = stored_as(optimizer)
    if (name, rule, architecture) not in table:
        _known("parametrization", name, {key[0] for key in table})
        _known("optimizer", optimizer, OPTIMIZERS)
        _known("architecture", architecture, ARCHITECTURES)
        raise ValueError(f"{name} is about residual blocks: it says nothing about a {architecture} network")
    return Scaling(name, optimizer, architecture, table[name, rule, architecture])


def read_scaling(
    text: str, optimizer: str | None = None, architecture: str | None = None, *, depth: int = 3, loss: str = "mse"
) -> Scaling:
    """A parametrization by name, from a TOML file, or inline.

        mup                                                     a name
        mine.toml                                               name = "mine"; base = "mup"; optimizer = "adam"
                                                                [hidden]
                                                                learning_rate = {N = "-1/2", L = "0"}
        base=mup, hidden.learning_rate=-1/2, block.multiplier.L=-1
                                                                inline; a bare power is one of N

    What is not given is the base's, or the zeroth power without a base.  ValueError, in one line, for what is not known,
    not rational or beyond ±16, and for an optimiser or an architecture other than the given one.  ``depth`` and ``loss`` are
    of the name, or of the base (``scaling``).
    """
    wanted = {"optimizer": optimizer, "architecture": architecture, "depth": depth, "loss": loss}
    if text.lower().endswith(".toml"):
        try:
            return _assembled(text, _toml(Path(os.path.expanduser(text))), **wanted)
        except ValueError as mistake:
            raise ValueError(f"{text}: {mistake}") from None
    if "=" in text:
        return _assembled(text, _inline(text), **wanted)
    return scaling(text, optimizer or "sgd", architecture or "plain", depth=depth, loss=loss)


def _assembled(text: str, given: dict, *, optimizer: str | None, architecture: str | None, depth: int, loss: str) -> Scaling:
    """What a file or an inline text says, on its base."""
    head = {key: _text(key, given.pop(key)) for key in ("name", "base", "optimizer", "architecture") if key in given}
    optimizer = _agreed("optimizer", head, optimizer, "sgd", OPTIMIZERS)
    architecture = _agreed("architecture", head, architecture, "plain", ARCHITECTURES)
    based = "base" in head
    roles = dict(scaling(head["base"], optimizer, architecture, depth=depth, loss=loss).roles) if based else {}
    for role, quantities in given.items():
        _known("role", role, ROLES)
        if not isinstance(quantities, Mapping):
            raise ValueError(f"{role} = {quantities!r}: wanted {', '.join(QUANTITIES)} of the role")
        for quantity, power in quantities.items():
            _known(f"quantity of {role}", quantity, QUANTITIES)
            e = roles.get(role, Exponents())
            power = _power(f"{role}.{quantity}", power, getattr(e, quantity))
            roles[role] = replace(e, **{quantity: power})
    return Scaling(head.get("name", text), optimizer, architecture, roles)


def gauge(given: Scaling, quantity: str = "init_std") -> Scaling:
    """The same training in the gauge where ``quantity`` of every role has no power.

    "init_std" weights N(0,1); "multiplier" none; "learning_rate" one for all (with SGD: Yang & Hu's form of μP).
    """
    _known("quantity", quantity, QUANTITIES)
    optimizer = OPTIMIZERS[given.optimizer]
    all_roles = architecture(given.architecture, depth=2, block_size=2)

    def moved(role, e):
        response = getattr(shifted(Exponents(), WIDTH, role, optimizer), quantity).N  # what a shift by N does to it
        if response == 0:
            raise ValueError(f"{given.optimizer} moves weights in units of themselves: no gauge changes a learning rate")
        return shifted(e, getattr(e, quantity) ** (-1 / response), role, optimizer)

    return replace(given, roles={r: moved(all_roles[r], e) if r in all_roles else e for r, e in given.roles.items()})


def interpolated(exponent: Fraction | float | str) -> Scaling:
    """Between NTP (a = 0) and μP (a = 1/2): factors 1/√fan-in, output multiplier γ0 N^a, η = η0 γ²; plain, SGD."""
    a = rational("output exponent", exponent)
    rate = Power(N=2 * a)
    first, middle = Exponents(learning_rate=rate), Exponents(Power(N=-HALF), learning_rate=rate)
    last = Exponents(Power(N=-HALF - a), learning_rate=rate)
    return Scaling(f"N^{a} in the output", "sgd", "plain", {"input": first, "hidden": middle, "readout": last})


def output_exponent(given: Scaling) -> float:
    """The exponent a of the one output multiplier γ = γ0 N^a, with 1/√fan-in in front of every matrix and η = η0 γ².

    Powers of the depth are free.  ValueError for a scaling whose powers of the width are not of this form (SP: once its
    weights are N(0,1), its layers have different rates), and for an exponent beyond 0 … 1/2.
    """
    canonical = gauge(given)
    a = -canonical["readout"].multiplier.N - HALF
    powers = {r: (e.multiplier.N, e.learning_rate.N) for r, e in canonical.roles.items() if r in MATRICES}
    of_this_form = {role: ({"input": 0, "readout": -HALF - a}.get(role, -HALF), 2 * a) for role in powers}
    if OPTIMIZERS[given.optimizer].forgets_scale() or powers != of_this_form:
        raise ValueError(f"{given.name}: not SGD at η0 γ² with factors 1/√fan-in and one γ; no limit is known for it")
    if not 0 <= a <= HALF:
        raise ValueError(
            f"output exponent {float(a):g}: a limit exists for 0 (NTP) to 0.5 (μP); "
            "above, training is unstable at large width, below, the initial output diverges"
        )
    return float(a)


def _agreed(kind: str, head: Mapping, wanted: str | None, usual: str, names) -> str:
    """What the text says, what the caller wants, or the usual; ValueError if the first two differ."""
    given = head.get(kind, wanted or usual)
    _known(kind, given, names)
    if given != (wanted or given):
        raise ValueError(f"these exponents are for {kind} {given}, not for {wanted}")
    return given


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} = {value!r}: wanted a text")
    return value


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin with a byte order mark
    except OSError as error:
        raise ValueError(error.strerror) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text in UTF-8: byte {error.object[error.start]:#04x}, {error.reason}") from None
    except RecursionError as error:
        raise ValueError(str(error)) from None


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
    """ "-1/2", 0.5 or 1 as a fraction; ValueError for what is none, and for what is too large to be a power of a size."""
    try:
        text = str(value).strip()
        if isinstance(value, bool):
            raise ValueError
        power = Fraction(text if "/" in text else repr(float(text)))  # by a float: the digits of 1e999999 would fill the memory
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{where} = {value!r} is not a rational number") from None
    if abs(power) > LARGEST_POWER:
        raise ValueError(f"{where} = {text[:20]}: wanted a power from -{LARGEST_POWER} to {LARGEST_POWER}")
    return power


def stored_as(optimizer: str) -> str:
    """The optimiser under whose name its exponents are stored: those of several that are the same, once."""
    rule = OPTIMIZERS.get(optimizer)
    return rule.same_as or optimizer if rule else optimizer


@cache
def _stored(one_hidden_layer: bool, loss: str) -> dict[tuple[str, str, str], dict[str, Exponents]]:
    """The derivation's results, by ``python -m limits.exponents --format json --block-size 2 --optimizer all [--depth 1]``.

    Those that are others with cross-entropy: ``… --param sp --loss cross_entropy``.
    """
    name, table = "exponents_one_hidden_layer.json" if one_hidden_layer else "exponents.json", {}
    records = json.loads((files("limits.exponents") / name).read_text(encoding="utf-8"))
    if not LOSSES[loss].quadratic:
        records += json.loads((files("limits.exponents") / f"cross_entropy_{name}").read_text(encoding="utf-8"))
    for record in records:
        key = record["parametrization"], record["optimizer"], record["architecture"]
        powers = {q: Power(Fraction(record[q]["N"]), Fraction(record[q]["L"])) for q in QUANTITIES}
        table.setdefault(key, {})[record["role"]] = Exponents(**powers)
    return table


def rows(scaling: Scaling) -> list[dict]:
    """Of every role its exponents, as JSON has them: "-1/2"."""
    head = {"parametrization": scaling.name, "optimizer": scaling.optimizer, "architecture": scaling.architecture}
    return [
        head | {"role": role} | {q: {x: str(getattr(getattr(e, q), x)) for x in "NL"} for q in QUANTITIES}
        for role, e in scaling.roles.items()
    ]


def _known(kind: str, name: str, names) -> None:
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(names))}")


@dataclass(frozen=True)
class Factors:
    """What the exponents of a role amount to at one size.

    multiplier      in front of the stored weights
    init_std        of the stored weights
    learning_rate   of the stored weights, over η0
    gradient        the size of an entry of ∂L/∂W at step 0, up to a constant
    update          what the optimiser makes of it at learning rate 1
    epsilon         the unit of its ε: ``gradient``, or a whole gradient's norm
    gauge           the power of the multiplier that a learning rate of multiplier · W has beyond one of W: 2 under SGD
    """

    multiplier: float
    init_std: float
    learning_rate: float
    gradient: float
    update: float
    epsilon: float
    gauge: int


def factors(
    given: Scaling, width: int, depth: int = 1, *, richness: float = 1.0, block_size: int = 1
) -> dict[str, Factors]:
    """The numbers of every role of a network of this width and depth.

    The richness γ0 divides the output and multiplies each learning rate by γ0² (under an optimiser that forgets the
    gradient's scale, by γ0): features move γ0 times as far while f moves as before.
    """
    setting = regimes.case(given, depth=depth if given.architecture == "plain" else 1, block_size=block_size)
    gradients, optimizer = regimes.gradient_sizes(setting), setting.optimizer
    linear = not optimizer.forgets_scale()

    def numbers(name, e):
        role, gradient = setting.roles[name], gradients[name]
        return Factors(
            multiplier=e.multiplier(width, depth) / (richness if name == "readout" else 1.0),
            init_std=e.init_std(width, depth),
            learning_rate=e.learning_rate(width, depth) * richness ** (2.0 if linear else 1.0),
            gradient=gradient(width, depth) / richness,
            update=optimizer.step(gradient, role, e.init_std)(width, depth) / (richness if linear else 1.0),
            epsilon=optimizer.epsilon(gradient, role)(width, depth) / richness,
            gauge=-int(shifted(Exponents(), WIDTH, role, optimizer).learning_rate.N),
        )

    return {name: numbers(name, e) for name, e in setting.exponents.items()}


def output_multiplier(given: Scaling, richness: float, width: int) -> float:
    """γ = γ0 N^a, the number that the network's output is divided by."""
    return richness * float(width) ** output_exponent(given)


def fan_in_multiplier(fan_in: int) -> float:
    """1/√n of what of a fan-in has no power of the width in it: D inputs, pixels, the ratio of two widths."""
    return 1.0 / sqrt(fan_in)


def laziness(given: Scaling, width: float) -> float:
    """ε = N^{a − 1/2}: how far one feature moves when the function moves by one; 1 in μP, → 0 in a kernel regime.

    ``width`` may be ``math.inf``.
    """
    a = output_exponent(given)
    if a == 0.5:
        return 1.0
    return 0.0 if width == inf else float(width) ** (a - 0.5)
