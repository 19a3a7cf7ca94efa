"""The tables of names in the READMEs, made from the rows, and the examples: `PYTHONPATH=. python tests/tables.py` writes them
anew.

Each stands between <!-- rows: NAME -->, or <!-- example: NAME -->, and <!-- end -->.
"""

import ast
import re
import textwrap
from functools import partial
from pathlib import Path

from comparisons.__main__ import COMMANDS
from finite.data.named import DATA
from limits.activations import ACTIVATIONS
from limits.exponents import algebra
from limits.exponents.parametrization import gauge, scaling
from limits.losses import LOSSES
from limits.models import MODELS, POOLINGS
from limits.optimizers import OPTIMIZERS
from limits.theories import THEORIES
from limits.trajectory import OBSERVABLES

ROOT = Path(__file__).resolve().parent.parent
ROOMS = "limits", "finite", "comparisons"
READMES = [ROOT / "README.md", *(page for room in ROOMS for page in sorted((ROOT / room).rglob("*.md")))]
EXAMPLES = sorted((ROOT / "tests" / "examples").glob("*.py"))
MARKED = re.compile(r"(<!-- (?:rows|example): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OPTIONS = {"model": MODELS, "pooling": POOLINGS, "optimizer": OPTIMIZERS, "loss": LOSSES, "data": DATA}


def theories() -> str:
    """In the order in which they are asked."""
    rows = [(f"`{row.home.replace('.', '/')}.py`", row.networks, row.has) for row in THEORIES.values()]
    return _table(("theory", "networks", "what it has"), rows)


def options() -> str:
    """What a problem can be made of, a line for each value that says what it is."""
    rows = [(option * (not place), f"`{row.name}`", row.description)
            for option, table in ((f"`--{name}`", table) for name, table in OPTIONS.items())
            for place, row in enumerate(row for row in table.values() if hasattr(row, "description"))]  # fmt: skip
    observed = [row.name for row in OBSERVABLES.values() if row.stored and row.leads]
    plain = [("`--activation`", list(ACTIVATIONS)), ("`--observables`", observed)]
    rows += [(option, ", ".join(f"`{name}`" for name in names), "") for option, names in plain]
    return _table(("option", "values", ""), rows)


def optimizers() -> str:
    """Powers of N in μP without multipliers, a line for each size of an update that differs."""
    alike: dict[tuple, list] = {}
    for row in OPTIMIZERS.values():
        roles = gauge(scaling("mup", row.size_rule), "multiplier").roles
        powers = tuple(str(roles[role].learning_rate.N).replace("-", "−") for role in ("input", "hidden", "readout", "bias"))
        alike.setdefault(powers, []).append(row)
    head = ("`--optimizer`", "update, at rate 1", "input", "hidden", "readout", "bias, gain")
    return _table(head, [(" ".join(f"`{row.name}`" for row in of), _rule(of[0]), *powers) for powers, of in alike.items()])


def _rule(row):
    """Without what a table has no room for: which rank, and that ε is small."""
    rule = algebra.OPTIMIZERS[row.size_rule].rule.removeprefix("update = ")
    return re.split(r", whose| \(ε", rule)[0].replace("|", r"\|")


def _table(head, rows) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def commands() -> str:
    """What each answers."""
    return _table(("`superconsistency …`", "answers"), [(f"`{row.name}`", row.answers) for row in COMMANDS.values()])


def code(path: Path) -> str:
    """An example, without its first words and what it prints."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)[ast.parse(text).body[0].end_lineno :]
    return "".join(lines).rpartition("\n\n# ")[0].strip("\n") + "\n"


def printed(path: Path) -> str:
    """What it prints: its last lines."""
    last = path.read_text(encoding="utf-8").rpartition("\n\n# ")[2]
    return last.replace("\n# ", "\n")


def example(path: Path) -> str:
    """In a README."""
    return f"```python\n{code(path)}```\n\n{textwrap.indent(printed(path), '    ')}\n"


PRINTED = {"commands": commands, "theories": theories, "options": options, "optimizers": optimizers}
PRINTED |= {path.stem: partial(example, path) for path in EXAMPLES}


def renewed(text: str) -> str:
    """The text with every marked table as the rows have it."""
    return MARKED.sub(lambda found: f"{found[1]}{PRINTED[found[2]]()}{found[4]}", text)


if __name__ == "__main__":
    for path in READMES:
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
