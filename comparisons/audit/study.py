"""Is my parametrization right, and if not, which weight is wrong?  ``comparisons.audit(model, optimizer=tx)``."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import jax

from comparisons.audit.measure import Measured, measure
from comparisons.audit.verdict import DIFFERS, ENTRYWISE, UNDECIDED, Findings, Row, Suspect, power, requirements
from finite.networks.own import Model, require_model
from limits.machine import computing

WIDTHS = (64, 128, 256, 512)
COLUMNS = ("initial size", "learning rate", "h", "Δh", "ΔW x", "scores", "ε", "decay", "f", "delta_f")


@dataclass(frozen=True)
class Audit:
    """The outcome: every exponent beside the one that is asked for, and the numbers that would have to change.

    suspects   the causes; empty where every weight's own numbers are as they should be
    remarks    what was not understood, and so not checked
    """

    name: str
    parametrization: str
    measured: Measured
    rows: tuple[Row, ...]
    suspects: tuple[Suspect, ...]
    remarks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no number and no size differs."""
        return not self.suspects and not any(row.verdict == DIFFERS for row in self.rows)

    def assert_ok(self) -> None:
        """Raises AssertionError with the whole report."""
        if not self.ok:
            raise AssertionError(f"{self}")

    def save(self, path: Path | str) -> None:
        """The picture."""
        from comparisons.audit.picture import picture

        picture(self, Path(path))

    def __str__(self) -> str:
        widths = self.measured.widths
        head = f"{self.name} beside {self.parametrization}, widths {widths[0]} … {widths[-1]}: "
        compared = [row for row in self.rows if row.verdict]
        wrong = [row for row in compared if row.verdict == DIFFERS]
        undecided = sum(row.verdict == UNDECIDED for row in compared)
        head += f"{len(compared) - len(wrong) - undecided} of {len(compared)} exponents agree, {len(wrong)} differ"
        lines = [head + (f", {undecided} undecided" if undecided else ""), *self.table()]
        lines += [f"suspect: {suspect}" for suspect in self.suspects]
        if wrong and not self.suspects:
            lines.append("no number of a weight explains it: look at what the network does between its weights")
        verdict = ("passes, as far as it is checked" if self.remarks else "passes") if self.ok else "fails"
        return "\n".join([*lines, *(f"not checked: {remark}" for remark in self.remarks), verdict])

    def table(self) -> list[str]:
        """A line for each weight where it acts: exponents of N, found, and after ≠ the one that is wanted."""
        lines: dict[tuple[str, str], dict[str, Row]] = {}
        for row in self.rows:
            lines.setdefault((row.weight, row.operation), {})[row.quantity] = row
        shown = [name for name in COLUMNS if any(name in line for line in lines.values())]
        cells = [["", *shown]] + [[f"{weight} {operation}".strip(), *(_cell(line.get(name)) for name in shown)]
                                  for (weight, operation), line in lines.items()]  # fmt: skip
        sizes = [max(len(line[place]) for line in cells) for place in range(len(shown) + 1)]
        return ["  ".join(f"{cell:<{size}}" for cell, size in zip(line, sizes, strict=True)).rstrip() for line in cells]

    def every(self) -> str:
        """A line for each exponent: it, its 95 % interval, the power that is wanted (or at most), the verdict."""
        return "\n".join(str(row) for row in self.rows if row.verdict)


def _cell(row: Row | None) -> str:
    if row is None or not isfinite(row.exponent):
        return ""
    mark = f" ≠ {power(row.wanted)[2:]}" if row.verdict == DIFFERS else "?" if row.verdict == UNDECIDED else ""
    return f"{row.exponent:+.2f}{mark}"


def audit(
    model: Model,
    *,
    optimizer: Any,
    param: str = "mup",
    widths: Sequence[int] = WIDTHS,
    seeds: int = 3,
    steps: int = 3,
) -> Audit:
    """Measure the model at these widths under its own optimiser, and compare every exponent with that of the parametrization.

    optimizer   an optax transformation, the same at every width, or a function of the width (or of width and params)
    param       a name that ``python -m limits.exponents`` derives for plain networks, or exponents of one's own as there

    Raises ValueError, in one line, for a model, an optimiser or widths that cannot be measured.
    """
    require_model(model)
    if min(widths, default=0) < 1 or len(widths) < 3 or len(set(widths)) < len(widths):
        raise ValueError(f"widths {list(widths)}: an interval wants at least three, positive, none twice")
    if seeds < 2:
        raise ValueError(f"{seeds} seeds: an interval wants at least two")
    if steps < 1:
        raise ValueError(f"{steps} steps: at least 1 is needed for a change")
    requirements(param, ENTRYWISE, "mse")  # before all is measured
    with computing("float64" if jax.config.jax_enable_x64 else "float32"):
        measured = measure(model, optimizer, sorted(widths), seeds=seeds, steps=steps)
    findings = Findings(measured, param, model.loss_name)
    return Audit(model.name, param, measured, tuple(findings.rows), tuple(findings.suspects), tuple(findings.remarks))
