"""`python -m paper_figures`: the scripts, and what each draws."""

import ast
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("figure_*.py")):
    shows = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
    print(f"python -m paper_figures.{path.stem:<12} {shows}")
