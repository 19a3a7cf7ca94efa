"""The README is executed: its Python as it stands, its commands through the parsers of the programs they start."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from comparisons.convergence import Options

TEXT = (Path(__file__).resolve().parent.parent / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_python_runs(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


COMMANDS = re.findall(r"python -m comparisons\.convergence([^\n#`]*)", TEXT)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_parse(arguments):
    words = [word for word in shlex.split(arguments) if word != "--help"]
    assert tyro.cli(Options, args=words).model in ("linear2", "mlp")


def test_both_main_commands_are_there():
    assert "pip install uv && uv run python -m comparisons.convergence --model linear2 --param mup\n" in TEXT
    assert "pip install uv && uv run pytest\n" in TEXT


def test_the_picture_is_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (Path(__file__).resolve().parent.parent / picture).is_file()
