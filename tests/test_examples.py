"""The examples in docstrings of public entries, and those that stand alone, print what they say; every public name has one."""

import doctest
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tables

import comparisons
import finite
import limits
from finite import curvature

HERE = Path(__file__).resolve().parent.parent
ROOMS = ("limits", "finite", "comparisons")
FILES = [path for room in ROOMS for path in sorted((HERE / room).rglob("*.py"))]
SHOWN = [".".join(path.relative_to(HERE).with_suffix("").parts) for path in FILES
         if re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)]  # fmt: skip


@pytest.mark.parametrize("module", SHOWN)
def test_examples_print_what_they_say(module):
    failed, tried = doctest.testmod(import_module(module))
    assert (failed, tried > 0) == (0, True)


PUBLIC = {room.__name__: room.__all__ for room in (limits, finite, comparisons, curvature)}


def shown():
    """All Python that the tests run as an example, each in one piece: of docstrings, READMEs and files."""
    for path in FILES:
        for docstring in path.read_text(encoding="utf-8").split('"""'):
            yield "\n".join(re.findall(r"^ +(?:>>>|\.\.\.) (.*)$", docstring, re.MULTILINE))
    for path in tables.READMES:
        yield from re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    yield from map(tables.code, tables.EXAMPLES)


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_has_an_example_that_runs(room):
    """It is named there, and not as a variable of the example's own."""
    codes = list(shown())
    assert not [name for name in PUBLIC[room] if not any(
        re.search(rf"\b{name}\b", code) and not re.search(rf"^\s*{name} = ", code, re.MULTILINE) for code in codes)]


@pytest.mark.parametrize("path", [path for path in tables.EXAMPLES if path.stem not in ("redraw", "cluster")],
                         ids=lambda path: path.stem)  # fmt: skip
def test_an_example_prints_what_stands_below_it(path, tmp_path, monkeypatch, capsys):
    """redraw: of a run, in test_four_commands.py."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out == tables.printed(path)


def test_the_example_of_a_cluster(tmp_path):
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    path = HERE / "tests" / "examples" / "cluster.py"
    done = subprocess.run([sys.executable, path], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert done.stdout == tables.printed(path)


def test_examples_are_short():
    """As a newcomer reads them: without what they print, and the blank lines."""
    assert not [path.stem for path in tables.EXAMPLES if sum(map(bool, tables.code(path).splitlines())) > 25]
