"""A sweep that somebody else has made: from rows of (size, learning rate, seed, loss) to the dataset that is analysed."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, isfinite, isnan, nextafter
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from comparisons.statistics.super_consistency import SIZES

COLUMNS = {  # what each can be called, in small letters, words joined by _; the first is preferred
    "learning_rate": ("learning_rate", "lr", "eta", "eta0", "η", "η0", "base_lr", "peak_lr", "max_lr"),
    "loss": ("loss", "final_loss", "val_loss", "valid_loss", "validation_loss", "eval_loss", "test_loss", "train_loss",
             "training_loss"),
    "seed": ("seed", "random_seed", "trial", "rep"),
    "param": ("param", "parametrization", "parameterization"),
    "initial_loss": ("initial_loss", "init_loss"),
    "size": ("width", "n", "hidden_size", "d_model", "n_embd", "depth", "l", "layers", "num_layers", "n_layers", "n_layer",
             "params", "parameters", "num_params", "n_params", "model_size", "batch", "batch_size", "size"),
}  # fmt: skip
DIVERGED = ("", "none", "null", "na", "n/a", "diverged")  # a loss that is not told
FEWEST_RATES, FEWEST_SIZES = 3, 2
EXACT = 2**53  # sizes below which all integers are floats


@dataclass(frozen=True)
class Rows:
    """Texts below the names of their columns, each row with where it stands, for what is to be said of it."""

    name: str
    header: list[str]
    rows: list[tuple[str, list[str]]]


def rows_of(sweep: Any) -> Rows:
    """Of a file, or of columns by name: a dictionary, a DataFrame.  Raises ValueError, in one line, or OSError."""
    if isinstance(sweep, str | Path):
        return _file(Path(sweep))
    columns = {str(name): [str(value) for value in sweep[name]] for name in sweep}
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"columns of different lengths: {', '.join(f'{n} {len(v)}' for n, v in columns.items())}")
    return Rows("sweep", list(columns), [(f"row {i}", list(row)) for i, row in enumerate(zip(*columns.values(), strict=True))])


def _file(path):
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text in UTF-8") from None
    head = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=head.count))
    try:
        lines = [(f"{path}, line {reader.line_num}", [cell.strip() for cell in row]) for row in reader
                 if any(cell.strip() for cell in row) and not row[0].startswith("#")]  # fmt: skip
    except csv.Error as fault:
        raise ValueError(f"{path}, line {reader.line_num}: {fault}") from None
    if len(lines) < 2:
        raise ValueError(f"{path}: wanted a line with the names of columns, and a line for each network")
    (_, header), *rows = lines
    for where, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} fields, the first line has {len(header)}")
    return Rows(path.name, header, rows)


def dataset_of(rows: Rows, named: Mapping[str, str], initial_loss: float | None = None) -> tuple[xr.Dataset, list[str]]:
    """(what ``comparisons.statistics.minimum.analyse`` reads, what is to be said of it).

    final_loss, swept (param, width, seed, learning_rate), initial_loss (param, width, seed); the attribute ``size`` is the name
    of the column that the dimension ``width`` holds.  Where no initial loss is told no finite loss is above it.
    ``named`` says by role what columns are called.  Raises ValueError, in one line.
    """
    if initial_loss is not None and not 0 < initial_loss < inf:
        raise ValueError(f"initial-loss {initial_loss:g}: wanted a positive number")
    columns = _columns(rows, named)
    size = rows.header[columns["size"]]
    size = size.lower() if size.lower() in SIZES else size
    losses, initial, first = {}, {}, {}
    repeated = defaultdict(int)
    for where, row in rows.rows:
        fields = {role: (where, rows.header[place], row[place]) for role, place in columns.items()}
        param = fields["param"][2] if "param" in fields else Path(rows.name).stem
        cell = param, _positive(*fields["size"]), _positive(*fields["learning_rate"])
        seed = fields["seed"][2] if "seed" in fields else str(repeated[cell])
        repeated[cell] += 1
        if (*cell, seed) in losses:
            raise ValueError(f"{where}: {size} {cell[1]:g}, learning rate {cell[2]:g}, seed {seed} again: the first is on "
                             f"{first[*cell, seed].rpartition(', ')[2]}")  # fmt: skip
        losses[*cell, seed], first[*cell, seed] = _loss(*fields["loss"]), where
        start = _loss(*fields["initial_loss"]) if "initial_loss" in fields else initial_loss or inf
        initial[cell[0], cell[1], seed] = min(start, initial.get((cell[0], cell[1], seed), inf))
    return _gridded(losses, initial, size)


def _gridded(losses, initial, size):
    params, sizes, rates, seeds = (list(dict.fromkeys(values)) for values in zip(*losses, strict=True))
    sizes, rates = sorted(sizes), sorted(rates)
    if len(sizes) < FEWEST_SIZES:
        raise ValueError(f"{size} {sizes[0]:g} is the only one: at least {FEWEST_SIZES} sizes are wanted")
    whole = all(scale.is_integer() and scale < EXACT for scale in sizes)
    shape = len(params), len(sizes), len(seeds), len(rates)
    swept = np.reshape([cell in losses for cell in product(params, sizes, rates, seeds)], (*shape[:2], shape[3], shape[2]))
    swept, values = swept.swapaxes(2, 3), np.full(shape, np.nan)
    places = [dict(zip(axis, range(len(axis)), strict=True)) for axis in (params, sizes, seeds, rates)]
    start = np.full(shape[:3], np.nan)
    for (param, scale, rate, seed), loss in losses.items():
        place = tuple(axis[label] for axis, label in zip(places, (param, scale, seed, rate), strict=True))
        values[place], start[place[:3]] = loss, initial[param, scale, seed]
    highest = np.max(values, initial=0.0, where=np.isfinite(values))
    start[np.isinf(start)] = nextafter(highest, inf)
    axes = "param", "width", "seed", "learning_rate"
    dataset = xr.Dataset(
        {"final_loss": (axes, values), "swept": (axes, swept), "initial_loss": (axes[:3], start)},
        {"param": params, "width": [int(scale) for scale in sizes] if whole else sizes, "seed": seeds, "learning_rate": rates},
        {"size": size})  # fmt: skip
    return dataset, [line for param, index in product(range(len(params)), range(len(sizes)))
                     for line in _said(swept[param, index], rates, f"{size} {sizes[index]:g}"
                                       + (f" of {params[param]}" if len(params) > 1 else ""))]  # fmt: skip


def _said(swept, rates, label):
    """Of one size: lines about what is not used.  Raises ValueError where too little is left."""
    present = swept[swept.any(axis=1)]
    whole, some = present.all(axis=0), present.any(axis=0)
    if not len(present):
        raise ValueError(f"{label} has no row")
    apart = [f"{rate:g}" for rate, all_ran, one_ran in zip(rates, whole, some, strict=True) if one_ran and not all_ran]
    if (count := int(whole.sum())) < FEWEST_RATES:
        ran = f"{'s' * (count != 1)}{f' at which all of its {len(present)} seeds have a row' if apart else ''}"
        raise ValueError(f"{label} has {count} learning rate{ran}: at least {FEWEST_RATES} are wanted")
    lines = [f"{label}: left out, as not all of its {len(present)} seeds have a row: learning rate {', '.join(apart)}"]
    return lines if apart else []


# Columns and numbers --------------------------------------------------------------------------------------------------


def _columns(rows: Rows, named: Mapping[str, str]) -> dict[str, int]:
    """The place of each role's column; seed, param and initial_loss may be missing."""
    plain = [re.sub(r"[\W_]+", "_", name.lower()).strip("_") for name in rows.header]
    places = {}
    for role, names in COLUMNS.items():
        if asked := named.get(role):
            if asked not in rows.header:
                raise ValueError(f"{rows.name} has no column {asked!r}: it has {', '.join(rows.header)}")
            places[role] = rows.header.index(asked)
            continue
        known = [place for name in names for place, title in enumerate(plain) if title == name and place not in places.values()]
        if role == "size":
            places[role] = _size(rows, known, places.values())
        elif len(known) > 1 and plain[known[0]] != role:
            _ambiguous(rows, known, role)
        elif known:
            places[role] = known[0]
    for role in ("learning_rate", "loss"):
        if role not in places:
            raise ValueError(f"{rows.name} has no column of the {role.replace('_', ' ')}: it has {', '.join(rows.header)}; "
                             f"--{role.replace('_', '-')} NAME says which it is")  # fmt: skip
    return places


def _size(rows, known: Sequence[int], taken: Iterable[int]) -> int:
    """Of the known ones the one that varies; where none is known, the only one that is left."""
    places = known or [place for place in range(len(rows.header)) if place not in taken]
    if not known and len(places) != 1:
        raise ValueError(f"{rows.name} has no column of sizes (width, depth, params, batch, ...): it has "
                         f"{', '.join(rows.header)}; --size NAME says which it is")  # fmt: skip
    varying = [place for place in places if len({row[place] for _, row in rows.rows}) > 1]
    if len(varying) > 1:
        _ambiguous(rows, varying, "size")
    return (varying or places)[0]


def _ambiguous(rows, places, role):
    names = ", ".join(rows.header[place] for place in places)
    raise ValueError(f"{rows.name}: which column is the {role.replace('_', ' ')}, {names}? --{role.replace('_', '-')} NAME")


def _number(where, column, text) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {column} {text!r} is no number") from None


def _positive(where, column, text) -> float:
    number = _number(where, column, text)
    if not 0 < number < inf:
        raise ValueError(f"{where}: {column} {text}: wanted a positive number")
    return number


def _loss(where, column, text) -> float:
    """Infinite where it has diverged."""
    number = inf if text.lower() in DIVERGED else _number(where, column, text)
    if isfinite(number) and number < 0:
        raise ValueError(f"{where}: {column} {text} is below zero: its logarithm is looked at")
    return inf if isnan(number) or number == -inf else number
