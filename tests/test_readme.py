"""The README is executed: its Python as it stands, its commands through the parsers of the programs they start."""

import re
import shlex
from pathlib import Path

import pytest
import tables
import tyro

from comparisons.convergence import study as convergence
from comparisons.coord_check import study as coord_check
from comparisons.landscape import study as landscape
from comparisons.transfer import study as transfer
from limits.activations import ACTIVATIONS
from limits.models import read_model
from limits.theories import THEORIES

HERE = Path(__file__).resolve().parent.parent
TEXT = (HERE / "README.md").read_text()


PYTHON = [code for text in (TEXT, (HERE / "finite" / "README.md").read_text())
          for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]  # fmt: skip
OF_AUDIT = re.search(r"```python\n(.*?)```", (HERE / "comparisons" / "README.md").read_text(), re.DOTALL)[1]


def test_the_audit_of_the_readme_names_its_suspect(capsys):
    exec(compile(OF_AUDIT, "README.md", "exec"), {})
    assert "suspect: last: readout multiplier: N^-1/2 found, N^-1 wanted\n" in capsys.readouterr().out


@pytest.mark.parametrize("code", [
    pytest.param(code, marks=[pytest.mark.slow] if "comparisons.audit(" in code else []) for code in PYTHON])  # fmt: skip
def test_python_runs(code, capsys):
    """Audits at fewer widths than there, which say the same."""
    exec(compile(code.replace("widths=(64, 128, 256, 512)", "widths=(16, 32, 64)"), "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert said
    verdicts = re.findall(r"^(?:fails|passes)$", said, re.MULTILINE)
    assert verdicts == (["fails", "passes"] if "comparisons.audit(" in code else [])


PROGRAMS = {"convergence": convergence, "coord_check": coord_check, "landscape": landscape, "transfer": transfer}
COMMANDS = re.findall(rf"python -m comparisons\.({'|'.join(PROGRAMS)})([^\n#`]*)", TEXT)


@pytest.mark.parametrize(("program", "arguments"), COMMANDS)
def test_commands_parse(program, arguments):
    words = [word for word in shlex.split(arguments) if word != "--help"]
    options = tyro.cli(PROGRAMS[program].Options, args=words)
    given = words[words.index("--model") + 1] if "--model" in words else PROGRAMS[program].Options().model
    assert options.model == given


def test_every_model_that_is_named_exists():
    named = set(re.findall(r"--model (\w+)(?![\w.])", TEXT)) | set(re.findall(r"`((?:linear|mlp|res)\w+)`", TEXT))
    assert len(named) > 4
    for model in named:
        read_model(model, activation="linear" if model.startswith("linear") else "tanh", depth=2)


def test_both_main_commands_are_there():
    assert "pip install uv && uv run python -m comparisons.convergence --model linear2 --param mup\n" in TEXT
    assert "pip install uv && uv run pytest\n" in TEXT


def test_the_picture_is_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (HERE / picture).is_file()


@pytest.mark.parametrize("room", ["limits", "finite", "comparisons"])
def test_a_room_says_what_is_where(room):
    """Nothing that is not there; and every file and folder of its floor."""
    floor = HERE / room
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (floor / "README.md").read_text()))
    assert not [name for name in named if not ((HERE / name).exists() or any(floor.rglob(name.rstrip("/"))))]
    folders = {f"{path.parent.name}/" for path in floor.glob("*/__init__.py")}
    assert folders | {path.name for path in floor.glob("*.py")} - {"__init__.py"} <= named


@pytest.mark.parametrize("path", tables.READMES, ids=lambda path: path.parent.name)
def test_tables_of_names_are_those_of_the_rows(path):
    """To renew them: PYTHONPATH=. python tests/tables.py"""
    text = path.read_text(encoding="utf-8")
    assert tables.renewed(text) == text


def test_every_table_stands_in_a_readme():
    found = [name[2] for path in tables.READMES for name in tables.MARKED.finditer(path.read_text(encoding="utf-8"))]
    assert set(found) == set(tables.PRINTED)


def test_tables_have_every_row_there_is():
    """By name, or the module that it is; so a row that is added shows."""
    names = [*ACTIVATIONS, *(row.name for table in tables.OPTIONS.values() for row in table.values())]
    assert not [name for name in names if not re.search(rf"\b{name}\b", tables.options())]
    assert not [row.home for row in THEORIES.values() if f"`{row.home.replace('.', '/')}.py`" not in tables.theories()]
