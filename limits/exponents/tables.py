"""The command line of the derivation: ``python -m limits.exponents`` prints the table, or the derivation itself."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction

from limits.command.arguments import read, stop
from limits.exponents import noise, regimes
from limits.exponents.algebra import COMMON, MUON_SCALES, OPTIMIZERS, Power
from limits.exponents.derivation import Solution, derive, table
from limits.exponents.options import PROGRAM, Options
from limits.exponents.parametrization import QUANTITIES, Scaling, gauge, rational, read_scaling, rows, stored_as
from limits.exponents.requirements import PARAMETRIZATIONS

COLUMNS = ("parametrization", "optimizer", "architecture", "role", *QUANTITIES)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the command asks for; one line on stderr and exit status 2 for wrong input."""
    answer(read(Options, PROGRAM, arguments))


def answer(options: Options) -> None:
    """The same, of options that are read."""
    try:
        print(_text_of(options), flush=True)
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        stop(PROGRAM, str(error))


def records(solutions: Sequence[Solution], gauge_quantity: str = "init_std") -> list[dict]:
    """One record per role: the row of the table, exponents as strings of rationals."""
    canonical = (Scaling(s.parametrization, s.optimizer.name, s.architecture, s.canonical) for s in solutions)
    return [row for scaling in canonical for row in rows(gauge(scaling, gauge_quantity))]


def explain(s: Solution) -> str:
    """The derivation in formulas: rules, conditions, solution family, canonical member."""
    roles = list(s.family)
    lines = [f"{PARAMETRIZATIONS[s.parametrization].title}, {s.optimizer.name}, {s.architecture}", "", "Unknown powers"]
    lines += [f"    {q:<14}{_letters(q, s)}" for q in QUANTITIES] + [f"    of each role: {', '.join(roles)}"]
    lines += ["", "Assumed", *(f"    {a}" for a in s.assumptions), "", "Asked"]
    for requirement in PARAMETRIZATIONS[s.parametrization].conditions:
        lines.append(f"    {requirement.__name__}: {' '.join(requirement.__doc__.split())}")
    width = max(len(c.name) for c in s.conditions)
    lines += ["", "Conditions (the power of the size that is named)"]
    lines += [f"    {c.name:<{width}}  {c.letter}:  {c.expression} {c.relation} 0" for c in s.conditions]
    free = sorted({str(x) for e in s.family.values() for q in QUANTITIES for x in _symbols(getattr(e, q))})
    lines += ["", f"Solution family (free: {', '.join(free) or 'nothing'})"]
    lines += _aligned([[r, *(f"{q} {getattr(e, q)}" for q in QUANTITIES)] for r, e in s.family.items()])
    lines += ["", "Bounds on the solution", *(f"    {b.name}, {b.letter}:  {b.expression} ≤ 0" for b in s.bounds)]
    lines += ["", "Canonical member, weights N(0,1)"]
    lines += _aligned([[r, *(f"{q} {getattr(e, q)}" for q in QUANTITIES)] for r, e in s.canonical.items()])
    return "\n".join(lines + _other_sizes(s))


def _other_sizes(s: Solution) -> list[str]:
    """Of the member without multipliers, as libraries have it, ε and ``regimes.weight_decay``; none where powers are open."""
    if any(_symbols(getattr(e, q)) for e in s.canonical.values() for q in QUANTITIES):
        return []
    depth, block_size = (1 if "hidden" not in s.canonical else 3), (2 if "block_inner" in s.canonical else 1)
    member = gauge(Scaling(s.parametrization, s.optimizer.name, s.architecture, s.canonical), "multiplier")
    case = regimes.Case(member.roles, s.optimizer, s.architecture, depth, block_size)
    columns = {"ε": regimes.predicted(case)["epsilon"]}
    if not s.optimizer.relative:
        columns |= {f"λ, e = {e}": regimes.weight_decay(case, Fraction(e)) for e in ("1/2", "3/4", "1")}
    rows = [["", *columns]]
    for layer in columns["ε"]:
        rows.append([layer, *(_plain_power(str(powers[layer].N), str(powers[layer].L)) for powers in columns.values())])
    as_what = "the norm of a matrix's gradient" if s.optimizer.whole else "an entry of the gradient"
    balance = "" if s.optimizer.relative else "; λ, decoupled, that keeps outputs where weights sum up with exponent e"
    explodes = ["    L^(inf): exponentially with the depth"] if any("inf" in row[1] for row in rows) else []
    return ["", f"Without multipliers: ε, as {as_what}{balance}", *_aligned(rows), *explodes]


def describe(scaling: Scaling, depth: int, block_size: int, loss: str) -> str:
    """A given parametrization's regime and the exponents of everything measurable."""
    case = regimes.case(scaling, depth=depth, block_size=block_size, loss=loss)
    verdict = regimes.classify(case)
    lines = [f"{scaling.name}, {scaling.optimizer}, {scaling.architecture}, {loss}: {verdict.regime}", verdict.reason]
    lines += ["", *_aligned([[layer, motion] for layer, motion in verdict.layers.items()])]
    lines += ["", f"border of stability: every learning rate times N^({verdict.border.N}) L^({verdict.border.L})", ""]
    rows = [[q, n, str(size)] for q, by_layer in regimes.predicted(case).items() for n, size in by_layer.items()]
    return "\n".join(lines + _aligned([["quantity", "layer", "size"], *rows]))


NOISE_COLUMNS = {"learning_rate": "learning rate", "weight_decay": "λ, decoupled", "one_minus_beta": "1 − β", "epsilon": "ε",
                 "drift": "steps · rate · drift"}  # fmt: skip


def _noise(names: Sequence[str], form: str) -> str:
    """Powers of B and D, of every regime of these optimisers: as text, or as JSON."""
    solved = [noise.derive_noise(name, regime) for name in names for regime in noise.regimes(noise.find(name))]
    if form == "json":
        return json.dumps([asdict(s) for s in solved], default=str, indent=1)
    rows = [[s.optimizer, s.regime, *(_of_samples(getattr(s, name)) for name in NOISE_COLUMNS)] for s in solved]
    told = [f"{regime:<7} {words}" for regime, words in noise.REGIMES.items() if any(s.regime == regime for s in solved)]
    head = ["optimizer", "regime", *NOISE_COLUMNS.values()]
    return "\n".join([*_aligned([head, *rows], indent=""), "", *told, "B the batch size, D the samples seen in all"])


def _of_samples(power: Mapping[str, Fraction] | None) -> str:
    return _plain_power(*map(str, power.values()), letters="BD") if power else "-"


def _text_of(c: Options) -> str:
    if c.noise:
        asked = replace(c, noise=False, optimizer=(), scale=(), format="text")
        if asked != Options() or c.format not in ("text", "json"):
            raise ValueError("--noise, the same in all parametrizations: only with --optimizer, --scale, --format text or json")
        return _noise(list(OPTIMIZERS) if "all" in c.optimizer else _optimizers(c), c.format)
    optimizers = _optimizers(c)
    if c.param is not None and ("=" in c.param or c.param.endswith(".toml")):
        if c.explain or c.impose:
            raise ValueError("--explain and --impose are about a derivation: give a parametrization's name")
        if len(optimizers) > 1 and c.optimizer:
            raise ValueError(f"optimizers {' '.join(optimizers)}: exponents of your own are for one")
        return _given(c)
    if c.param is None:
        if c.impose:
            raise ValueError("--impose needs one --param")
        solutions = [
            s
            for s in table(optimizers, depth=c.depth, block_size=c.block_size, loss=c.loss)
            if c.architecture in (None, s.architecture)
        ]
    else:
        options = {"depth": c.depth, "block_size": c.block_size, "loss": c.loss}
        solutions = [
            derive(c.param, o, kind, **options, impose=[_equation(e) for e in c.impose])
            for o in optimizers
            for kind in _architectures(c)
        ]
    if c.explain:
        return "\n\n\n".join(explain(s) for s in solutions)
    return FORMATS[c.format](records(solutions, c.gauge))


def _optimizers(c: Options) -> tuple[str, ...]:
    """The rules' names: ``muon`` is one per scale."""
    if c.scale and "muon" not in c.optimizer:
        raise ValueError("--scale is what stands in front of UVᵀ: it wants --optimizer muon")
    several = {"muon": [f"muon_{scale}" for scale in c.scale or MUON_SCALES],
               "all": [name for name in OPTIMIZERS if stored_as(name) == name]}  # fmt: skip
    return tuple(rule for name in c.optimizer or COMMON for rule in several.get(name, [name]))


def _architectures(c: Options) -> tuple[str, ...]:
    if c.architecture is not None:
        return (c.architecture,)
    about_blocks = c.param in PARAMETRIZATIONS and PARAMETRIZATIONS[c.param].depth_aware
    return ("residual",) if about_blocks else ("plain", "residual")


def _given(c: Options) -> str:
    (optimizer,) = _optimizers(c) if c.optimizer else (None,)
    scaling = read_scaling(c.param, optimizer, c.architecture, depth=c.depth, loss=c.loss)
    if c.format == "text":
        return describe(scaling, c.depth, c.block_size, c.loss)
    return FORMATS[c.format](rows(gauge(scaling, c.gauge)))


def _equation(text: str) -> tuple[str, str, str, Fraction]:
    left, _, value = text.partition("=")
    parts = left.strip().split(".")
    if len(parts) != 3 or parts[1] not in QUANTITIES or parts[2] not in ("N", "L"):
        raise ValueError(f"{text!r}: wanted role.quantity.N=power, quantity one of {', '.join(QUANTITIES)}")
    role, quantity, letter = parts
    return role, quantity, letter, rational(left.strip(), value)


def _cells(row: dict, power) -> list[str]:
    return [row[c] if isinstance(row[c], str) else power(row[c]["N"], row[c]["L"]) for c in COLUMNS]


def _text(rows: list[dict]) -> str:
    return "\n".join(_aligned([list(COLUMNS), *(_cells(row, _plain_power) for row in rows)], indent=""))


def _markdown(rows: list[dict]) -> str:
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *(_cells(row, _math) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _latex(rows: list[dict]) -> str:
    def line(cells):
        return " & ".join(cell if "$" in cell else cell.replace("_", r"\_") for cell in cells) + r" \\"

    lines = [line(COLUMNS), *(line(_cells(row, _math)) for row in rows)]
    return "\n".join([r"\begin{tabular}{lllllll}", lines[0], r"\hline", *lines[1:], r"\end{tabular}"])


def _json(rows: list[dict]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


FORMATS = {"text": _text, "markdown": _markdown, "latex": _latex, "json": _json}


def _plain_power(n: str, l: str, letters: str = "NL") -> str:
    def factor(x, p):
        return x if p == "1" else f"{x}^{p}" if p.isdigit() else f"{x}^({p})"

    return " ".join(factor(x, p) for x, p in zip(letters, (n, l), strict=True) if p != "0") or "1"


def _math(n: str, l: str) -> str:
    factors = [x if p == "1" else f"{x}^{{{p}}}" for x, p in (("N", n), ("L", l)) if p != "0"]
    return "$" + (r" \, ".join(factors).replace("alpha", r"\alpha") or "1") + "$"


def _aligned(rows: list[list[str]], indent: str = "    ") -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [indent + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _letters(quantity: str, s: Solution) -> str:
    in_width, in_depth = {"multiplier": "a α", "init_std": "b β", "learning_rate": "c d"}[quantity].split()
    return f"N^{in_width} L^{in_depth}" if PARAMETRIZATIONS[s.parametrization].depth_aware else f"N^{in_width}"


def _symbols(power: Power) -> set:
    return set().union(*(getattr(x, "free_symbols", set()) for x in (power.N, power.L)))
