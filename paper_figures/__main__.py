"""`python -m paper_figures`: the scripts, and what each draws."""

import ast
import sys
from pathlib import Path

import limits
from limits.command.arguments import stop
from limits.command.start import called

PROGRAM = called("paper_figures", "figures")
joint = "." if PROGRAM.endswith("paper_figures") else " "
if sys.argv[1:] == ["--version"]:
    print(f"superconsistency {limits.__version__}")
    raise SystemExit
if sys.argv[1:] not in ([], ["-h"], ["--help"]):
    stop(PROGRAM, f"unknown: {' '.join(sys.argv[1:])}; {PROGRAM} lists the scripts")
print(f"usage: {PROGRAM}{joint}SCRIPT [OPTIONS]; --help behind a script has its options\n")
for path in sorted(Path(__file__).parent.glob("figure_*.py")):
    print(f"{path.stem:<12} {ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))).splitlines()[0]}")
print("all          all of them at once, with a verdict for each: makes and draws what is missing")
