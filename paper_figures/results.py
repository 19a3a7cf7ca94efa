"""What the scripts share: results on disk, and where a picture goes."""

import json
import shlex
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from comparisons import files
from comparisons import style as plots


def quoted(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))


def read(path: Path, recipe: str) -> xr.Dataset | list:
    """A results file, .nc or .json.  Raises files.Refused with the command that makes it, where it is missing or damaged."""
    try:
        return files.read_json(path) if path.suffix == ".json" else files.read(path)
    except files.Damaged as damage:
        raise files.Refused(f"{damage}; make the results with: {recipe}") from None


def said_of_limits(run: xr.Dataset) -> str:
    """What a caption adds where limits are drawn."""
    if not any(str(name).endswith("_limit") for name in run):
        return ""
    return f"; dashed: the limit, on the same {json.loads(run.attrs['configuration'])['samples']} samples"


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF, of a path without or with one of these endings.  Raises files.Unwritten."""
    path = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        plots.save(figure, path)
    print(f"figure in {path}.png and {path}.pdf")
