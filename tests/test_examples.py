"""The examples in docstrings of public entries print what they say."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
ROOMS = ("limits", "finite", "comparisons")
FILES = [path for room in ROOMS for path in sorted((HERE / room).rglob("*.py"))]
SHOWN = [".".join(path.relative_to(HERE).with_suffix("").parts) for path in FILES
         if re.search(r"^ +>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)]  # fmt: skip


@pytest.mark.parametrize("module", SHOWN)
def test_examples_print_what_they_say(module):
    failed, tried = doctest.testmod(import_module(module))
    assert (failed, tried > 0) == (0, True)
