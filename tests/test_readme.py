"""The READMEs are executed: their Python as it stands, their commands through the parsers of the programs they start, their
links.
"""

import re
import shlex
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import tables

from comparisons.__main__ import COMMANDS
from limits.activations import ACTIVATIONS
from limits.command.arguments import read
from limits.models import read_model
from limits.theories import THEORIES
from paper_figures.all import Options as AllFigures

HERE = Path(__file__).resolve().parent.parent
READMES = [*tables.READMES, HERE / "paper_figures" / "README.md", HERE / ".github" / "CONTRIBUTING.md"]
TEXTS = {str(path.relative_to(HERE)): path.read_text(encoding="utf-8") for path in READMES}
PYTHON = [(name, code) for name, text in TEXTS.items()
          for code in re.findall(r"```python\n(.*?)```", tables.MARKED.sub("", text), re.DOTALL)]  # fmt: skip
NAMED = r"(?:python -m (?:comparisons\.|limits\.|(?=paper_figures))|superconsistency )(\w+)(?:\.\w+)?"
LINES = {line.split("#")[0].strip() for text in TEXTS.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
         for line in block.replace("\\\n", " ").splitlines()}  # fmt: skip
SPOKEN = {code for text in TEXTS.values() for code in re.findall(rf"`({NAMED}[^`]*)`", text)}


@pytest.mark.parametrize("code", [
    pytest.param(code, id=f"{name}-{place}", marks=[pytest.mark.slow] if re.search(r"\baudit\(|limits\.depth", code) else [])
    for place, (name, code) in enumerate(PYTHON)])  # fmt: skip
def test_python_runs(code, capsys):
    """Audits at fewer widths than there, which say the same.  (Marked examples run in test_examples.py.)"""
    exec(compile(code.replace("widths=(64, 128, 256, 512)", "widths=(16, 32, 64)"), "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert said
    verdicts = re.findall(r"^(?:fails|passes)$", said, re.MULTILINE)
    assert verdicts == (["fails", "passes"] if "comparisons.audit(" in code else [])


def started(line):
    """(command, words) of a line that starts one of ours, as a shell has it; None of another."""
    found = re.search(NAMED, line)
    name = found and found[1].replace("paper_figures", "figures")
    return found and (name, shlex.split(line[found.end() :].partition(" && ")[0]))


@pytest.mark.parametrize("line", sorted(line for line in LINES if started(line)))
def test_commands_parse(line):
    name, words = started(line)
    options = import_module(COMMANDS.find(name).options).Options
    parsed = read(options, name, [word for word in words if word != "--help"])
    given = words[words.index("--model") + 1] if "--model" in words else getattr(options(), "model", None)
    assert getattr(parsed, "model", given) == given or name == "audit"


def test_many_commands_are_shown():
    """What is looked for above is there: lines of every command but the figures."""
    assert {started(line)[0] for line in LINES if started(line)} >= set(COMMANDS) - {"figures"}


def test_other_lines_are_those_of_installing():
    others = {line for line in LINES if line and not started(line)}
    assert others == {"pip install uv && uv run pytest"}


def test_commands_that_are_spoken_of_exist():
    named = {name.replace("paper_figures", "figures") for _, name in SPOKEN} - {"COMMAND", "NAME"}
    assert len(named) > 4
    assert named <= set(COMMANDS)
    for code in (code for code, name in SPOKEN if name not in ("COMMAND", "NAME")):
        name, words = started(code)
        assert "paper_figures" not in code or find_spec(code.split()[2])
        if "…" not in words and not code.startswith("python -m paper_figures.figure"):
            module = code.split()[2] if "paper_figures.all" in code else COMMANDS.find(name).options
            read(import_module(module).Options, name, [word for word in words if word != "--help"])


def test_options_that_are_spoken_of_exist():
    """Whether of a command or of a program of tests/benchmarks."""
    codes = [code for text in TEXTS.values() for code in re.findall(r"`([^`\n]*)`", text)]
    named = {word for code in codes for word in re.findall(r"--[a-z][a-z0-9-]+", code)}
    known = {"--" + field.name.replace("_", "-") for command in COMMANDS.values()
             for field in fields(import_module(command.options).Options)}  # fmt: skip
    known |= {"--" + field.name.replace("_", "-") for field in fields(AllFigures)}
    known |= {"--no" + name[1:] for name in known}
    benchmarks = "".join(path.read_text(encoding="utf-8") for path in (HERE / "tests" / "benchmarks").glob("*.py"))
    known |= set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)", benchmarks))
    assert len(named) > 30
    assert named - known == {"--help", "--tyro-print-completion", "--extra", "--no-deps"}  # of all, and of what installs


def test_every_model_that_is_named_exists():
    whole = "".join(TEXTS.values())
    named = set(re.findall(r"--model (\w+)(?![\w.])", whole)) | set(re.findall(r"`((?:linear|mlp|res)\d\w*)`", whole))
    assert len(named) > 4
    for model in named:
        read_model(model, activation="linear" if model.startswith("linear") else "tanh", depth=2)


def test_both_main_commands_are_there():
    text = TEXTS["README.md"]
    assert "pip install uv && uv run python -m comparisons.convergence --model linear2 --param mup\n" in text
    assert "pip install uv && uv run pytest\n" in text


def anchors(text):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    """Within the repository: to a file or folder, and to a heading that is there.  Pictures too."""
    broken, links = [], re.findall(r"\]\((?!https?:)([^)\s]*)\)", TEXTS[name])
    for link in links:
        file, _, anchor = link.partition("#")
        target = ((HERE / name).parent / file).resolve() if file else HERE / name
        there = target.exists() and target.is_relative_to(HERE)
        if not there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken
    assert links or name.startswith("paper_figures")


@pytest.mark.parametrize("room", tables.ROOMS)
def test_a_rooms_first_page_is_short_and_leads_to_all_others(room):
    text = TEXTS[f"{room}/README.md"]
    assert text.count("\n") <= 100
    pages = [page.removeprefix(f"{room}/") for page in TEXTS if page.startswith(f"{room}/")]
    assert not [page for page in pages if page != "README.md" and f"]({page}" not in text]


def test_pages_lead_to_every_room():
    for room in ("limits", "finite", "comparisons", "paper_figures"):
        assert f"]({room}/README.md)" in TEXTS["README.md"]


@pytest.mark.parametrize("room", tables.ROOMS)
def test_a_room_says_what_is_where(room):
    """Nothing that is not there; and every file and folder of its floor."""
    floor = HERE / room
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (floor / "README.md").read_text()))
    assert not [name for name in named if not ((HERE / name).exists() or any(floor.rglob(name.rstrip("/"))))]
    folders = {f"{path.parent.name}/" for path in floor.glob("*/__init__.py")}
    assert folders | {path.name for path in floor.glob("*.py")} - {"__init__.py"} <= named


@pytest.mark.parametrize("path", tables.READMES, ids=lambda path: str(path.relative_to(HERE)))
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
