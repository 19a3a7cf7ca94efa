"""`superconsistency COMMAND …`: every command by one name, as fast to start, and as short about mistakes."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import limits
import paper_figures
from comparisons.__main__ import COMMANDS, main


def said(monkeypatch, capsys, *words):
    """The status with which it ends, and what it prints, on both streams."""
    monkeypatch.setattr(sys, "argv", ["superconsistency", *words])
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code or 0
    return status, "".join(capsys.readouterr())


@pytest.mark.parametrize("words", [(), ("--help",)], ids=len)
def test_the_list_of_commands(words, monkeypatch, capsys):
    status, told = said(monkeypatch, capsys, *words)
    assert status == 0
    assert [line.split()[0] for line in told.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_its_version(monkeypatch, capsys):
    assert said(monkeypatch, capsys, "--version") == (0, f"superconsistency {limits.__version__}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["convergance"], "superconsistency: unknown command 'convergance': did you mean convergence?; see "),
        (["zzz"], "superconsistency: unknown command 'zzz': known: convergence, transfer, "),
        (["figures", "figure_11_1"], "superconsistency figures: unknown command 'figure_11_1': did you mean figure_1_1?; see "),
        (["figures", "rows"], "superconsistency figures: unknown command 'rows': known: all, figure_19_2, "),
        (["figures", "--al"], "python -m paper_figures: unknown: --al; python -m paper_figures lists the scripts"),
    ],
)
def test_a_mistyped_command_says_what_is_near(words, line, monkeypatch, capsys):
    status, told = said(monkeypatch, capsys, *words)
    assert (status, told.count("\n"), told[: len(line)]) == (2, 1, line)


def test_a_command_of_every_row():
    assert not [row.name for row in COMMANDS.values() if find_spec(f"{row.module}.__main__") is None]


def test_a_row_starts_what_it_names(monkeypatch, capsys):
    status, told = said(monkeypatch, capsys, "optimum", "--sise", "3")
    assert (status, told.count("\n")) == (2, 1)
    assert "did you mean --size?" in told


def test_of_the_figures_the_one_that_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "paper_figures.figure_6_2", raising=False)  # of another test
    status, told = said(monkeypatch, capsys, "figures", "figure_6_2", "--reslts", "x")
    assert (status, told.count("\n")) == (2, 1)
    assert "did you mean --results?" in told


def test_the_figures_have_its_version(monkeypatch, capsys):
    assert said(monkeypatch, capsys, "figures", "--version") == (0, f"superconsistency {limits.__version__}\n")


def test_the_list_of_figures(monkeypatch, capsys):
    status, told = said(monkeypatch, capsys, "figures", "--help")
    assert (status, told.splitlines()[0].split(";")[0]) == (0, "usage: python -m paper_figures.SCRIPT [OPTIONS]")
    scripts = {path.stem for path in Path(paper_figures.__file__).parent.glob("figure_*.py")} | {"all"}
    assert {line.split()[0] for line in told.splitlines()[2:]} == scripts


def test_shells_complete_commands_and_options(monkeypatch, capsys):
    status, told = said(monkeypatch, capsys, "--tyro-print-completion", "bash")
    assert status == 0
    assert not [word for word in (*COMMANDS, "--learning-rates", "--explain", "cross_entropy") if word not in told]


def test_the_script_says_its_own_name(tmp_path):
    """As an installation writes it."""
    script = tmp_path / "superconsistency"
    script.write_text("from comparisons.__main__ import main\nmain()\n")
    done = subprocess.run([sys.executable, script, "transfer", "--los", "mse"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("superconsistency transfer: Unrecognized options: --los, mse: did you mean --loss?; "
                           "see superconsistency transfer --help\n")  # fmt: skip
