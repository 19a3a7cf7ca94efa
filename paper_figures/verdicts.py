"""What the results of a row say, against what the paper claims.

A finding is "same" (over all sizes), "moves", "flat" or "grows" (in time), "undecided", or an exponent with its 95 % interval;
only what both intervals and the claim allow is called as in the paper.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from comparisons.convergence.picture import SHOWN
from comparisons.files import read, read_json
from comparisons.landscape.late import first, followed, growing, late_agreement
from comparisons.landscape.picture import limit_of
from comparisons.statistics.deviations import deviations
from comparisons.statistics.minimum import FEW_RATES, FEW_SEEDS, OFF_GRID, analyse
from comparisons.statistics.super_consistency import FLAT
from comparisons.statistics.super_consistency import verdict as of_agreement
from paper_figures.rows import Row

SAME, MOVES, UNDECIDED = "same", "moves", "undecided"
WORDS = {"super consistent": SAME, "grows": MOVES, "falls": MOVES, "accumulates": MOVES, "transfers": SAME,
         "does not transfer": MOVES}  # fmt: skip
SHARPNESS = ("hessian_eigenvalues", "preconditioned_sharpness")
SMALL = "tiny"  # the preset whose figures show how, not what
DECIDES = {OFF_GRID: "more learning rates would decide", FEW_RATES: "more would decide", FEW_SEEDS: "more would decide"}
HEADS = {"not as in the paper, at this size": False, "as in the paper": True, "undecided": None}


@dataclass(frozen=True)
class Finding:
    """``outcome`` of ``quantity``; of a power of the step its 95 % interval; ``theirs``: the paper's estimator; more to say."""

    quantity: str
    outcome: str
    interval: tuple[float, float] | None = None
    theirs: float | None = None
    more: str = ""

    def __str__(self):
        theirs = "" if self.theirs is None else f" (paper's estimator {self.theirs:+.2f})"
        return f"{self.quantity}: {self.outcome}{theirs}" + (f" ({self.more})" if self.more else "")

    def against(self, claim: str | None) -> bool | None:
        """Whether it is as claimed; None where it, or the claim, decides nothing."""
        if claim is None or (self.interval is None and self.outcome == UNDECIDED):
            return None
        if self.interval is None:
            return self.outcome == claim
        low, high = self.interval
        if not np.isfinite([low, high]).all():
            return None
        ends = [float(end) for end in re.findall(r"[+-]\d+\.\d+", claim)]
        if ends:
            inside, outside = ends[0] <= low and high <= ends[1], high < ends[0] or low > ends[1]
            return True if inside else False if outside else None
        if claim == "grows":
            return True if low > 0 else False if high < 0 else None
        return True if low >= -FLAT and high <= FLAT else False if low > FLAT or high < -FLAT else None  # flat


def said(row: Row, findings: list[Finding], small: bool = False) -> str:
    """The verdict of a row, in a line; of networks too small to judge by, what was found only."""
    claimed = [finding for finding in findings if finding.quantity in row.claims]
    compared = [finding.against(row.claims[finding.quantity]) for finding in claimed]
    told = "; ".join(map(str, findings))
    if not row.claims:
        return f"the paper's claim is not at hand. {told}"
    head = "too small to judge" if small else _judged([finding.quantity for finding in claimed], compared)
    return f"{head}. {told}"


def _judged(quantities, compared):
    """Of the claims that were compared: which do not hold here, which do, and which are open."""
    if set(compared) == {True}:
        return "as in the paper"
    by_head = {head: ", ".join(name for name, outcome in zip(quantities, compared, strict=True) if outcome is agrees)
               for head, agrees in HEADS.items()}  # fmt: skip
    return "; ".join(f"{head}: {names}" for head, names in by_head.items() if names) or "undecided"


def verdict(row: Row, results: Path, preset: str) -> str:
    """Of a row whose results are there."""
    return said(row, list(OF[row.script](row, results)), small=preset == SMALL)


def _training(row: Row, results: Path) -> Iterator[Finding]:
    along, swept = (read(results / name / f"{name}.nc") for name in ("landscape", "transfer"))
    sharpness, shifts = next(name for name in SHARPNESS if name in followed(along)), analyse(swept)[1]
    for param in along.param.values:
        yield agreed(f"sharpness {param}", first(along[sharpness]).sel(param=param), along["loss"].sel(param=param))
        yield from (moved(f"transfer {param}", shift) for shift in shifts if shift.parametrization == param)
        yield from beside_limits(along.sel(param=param))


def beside_limits(along: xr.Dataset) -> Iterator[Finding]:
    """How far the mean of the widest networks is off the limit of one parametrization, at the last step."""
    widest = along.isel({growing(along): -1})
    for name in followed(along):
        limit, error = limit_of(widest, name)
        if limit is None or not np.isfinite(limit.values[-1]):
            continue
        of_limit = 0.0 if error is None else np.nan_to_num(float(error[-1]))  # not a number beside others, where it is exact
        quantity = f"{name} beside its limit in {along.param.item()}"
        yield _off(quantity, first(widest[name]).isel(step=-1), int(widest[growing(along)]), float(limit[-1]), of_limit)


def _off(quantity, last, size, at, of_limit=0.0):
    """The mean of ``last`` (seed) of the widest networks against the limit."""
    of_networks = float(last.std("seed", ddof=1)) / np.sqrt(last.sizes["seed"])
    doubt = np.hypot(of_networks, of_limit) / abs(at)
    return Finding(quantity, f"N = {size} off by {float(last.mean()) / at - 1:+.1%} ± {doubt:.1%}")


def agreed(quantity: str, values: xr.DataArray, loss: xr.DataArray | None = None) -> Finding:
    late = late_agreement(values, loss)
    return Finding(quantity, WORDS.get(of_agreement(late), UNDECIDED if not late.diverged else "diverged"))


def moved(quantity: str, shift) -> Finding:
    why = shift.verdict.partition(": ")[2]
    return Finding(quantity, WORDS.get(shift.verdict, UNDECIDED), more=f"{why}: {DECIDES[why]}" if why in DECIDES else "")


def _eigenvalues(row: Row, results: Path) -> Iterator[Finding]:
    run = read(results / "landscape.nc").isel(param=0)
    for quantity in row.claims:
        name, rank = quantity.split()
        yield agreed(quantity, run[f"{name}_eigenvalues"].sel(rank=int(rank)), run["loss"])


def _gaps(row: Row, results: Path) -> Iterator[Finding]:
    run = read(results / "trajectories.nc")
    for name, component in SHOWN.items():
        short = name.removesuffix("_eigenvalues")
        gaps = deviations(run, name, component, _reference(run), "fluctuation").transpose("width", "seed", "step")
        yield in_time(f"{short} in time", gaps)
        if short == "loss":
            yield in_width(gaps)


def _reference(run):
    return json.loads(run.attrs["configuration"])["reference"]


def in_time(quantity: str, gaps: xr.DataArray) -> Finding:
    """Late gaps (size, seed, step) ∝ step^exponent of the widest size that is not the reference."""
    from paper_figures.figure_3_2 import LATE, late_power

    late = gaps.isel(step=(gaps.step.values >= LATE * gaps.step.values.max()) & (gaps.step.values > 0))
    size = gaps.dims[0]
    if late.sizes["step"] < 3:
        return Finding(quantity, UNDECIDED)
    law = late_power(late.step.values, late.isel({size: -1}).transpose("step", "seed").values)
    theirs = linear_fit(late.step.values, np.abs(late.isel({size: -1}).mean("seed").values))
    return Finding(quantity, _power(law, "t"), law.interval, theirs)


def in_width(gaps: xr.DataArray) -> Finding:
    """Gaps of the last step ∝ N^exponent."""
    from comparisons.statistics import power_law

    last = gaps.isel(step=-1)
    law = power_law.fit(last.width.values, last.values)
    return Finding("loss in width", _power(law, "N"), law.interval,
                   linear_fit(last.width.values, np.abs(last.mean("seed").values)))  # fmt: skip


def _power(law, letter):
    if law.status != "fitted":
        return f"no exponent: {law.status}"
    return f"{letter}^{law.exponent:+.2f} [{law.interval[0]:+.2f}, {law.interval[1]:+.2f}]"


def linear_fit(x: np.ndarray, gaps: np.ndarray) -> float:
    """The paper's estimator: B of gap ≈ A x^B by unweighted least squares, not of logarithms; nan where there is none."""
    from scipy.optimize import minimize_scalar

    x = x / x.max()

    def misfit(exponent):
        power = x**exponent
        return np.sum((gaps - power * (power @ gaps) / (power @ power)) ** 2)

    return float(minimize_scalar(misfit, bounds=(-6, 6), method="bounded").x) if np.isfinite(gaps).all() else np.nan


def _gaps_over_depth(row: Row, results: Path) -> Iterator[Finding]:
    for name, gaps in gaps_over_depth(read(results / "landscape.nc")).items():
        yield in_time(f"{'loss' if name == 'loss' else 'sharpness'} in time", gaps)


def gaps_over_depth(run: xr.Dataset) -> dict[str, xr.DataArray]:
    """(depth, seed, step): gaps to the deepest network."""
    run = run.isel(param=0)
    values = {name: first(run[name]) for name in ("loss", *SHARPNESS) if name in run}
    return {name: (curves.isel(depth=slice(None, -1)) - curves.isel(depth=-1, drop=True)).transpose("depth", "seed", "step")
            for name, curves in values.items()}  # fmt: skip


def _depths(row: Row, results: Path) -> Iterator[Finding]:
    for column in row.runs:
        run = read(results / column / "transfer.nc")
        yield from (moved(f"transfer {column}", shift) for shift in analyse(run)[1] if shift.size == "depth")
        sharpness = run["sharpness"].isel(param=0, width=0).dropna("seed", how="all")  # of fewer seeds than were swept
        yield agreed(f"sharpness {column}", sharpness)


def _parts(row: Row, results: Path) -> Iterator[Finding]:
    for param in ("mup", "ntp"):
        run = read(results / param / "trajectories.nc")
        for part, component in (("gauss_newton", {"rank": 1}), ("residual", {"edge": "upper"})):
            values, limit = (run[f"{part}_eigenvalues{of}"].sel(component) for of in ("", "_limit"))
            yield agreed(f"{part} {param}", values)
            if at := float(limit[-1]):
                last = values.isel(width=-1, step=-1)
                yield _off(f"{part} beside its limit in {param}", last, int(values.width[-1]), at)


def _rates(row: Row, results: Path) -> Iterator[Finding]:
    for shift in analyse(read(results / "transfer.nc"))[1]:
        yield moved(f"transfer {shift.parametrization}", shift)


def _directional(row: Row, results: Path) -> Iterator[Finding]:
    for grows in ("width", "depth"):
        swept, along = (read(results / grows / name / f"{name}.nc") for name in ("transfer", "landscape"))
        yield from (moved(f"transfer {grows}", shift) for shift in analyse(swept)[1] if shift.size == grows == growing(along))
        yield agreed(f"directional {grows}", along["directional_sharpness"].isel(param=0), along["loss"].isel(param=0))


def _exponents(row: Row, results: Path) -> Iterator[Finding]:
    """Of those that are compared, whether all agree."""
    checks = [fit for run in row.runs for fit in read_json(results / run / "coord_check.json")]
    said = [fit["verdict"] for fit in checks if not fit["verdict"].startswith("not compared")]
    agree, differ = said.count("agrees"), said.count("differs")
    outcome = "as derived" if agree == len(said) else f"{differ} differ" if differ else UNDECIDED
    yield Finding("exponents", outcome, more=f"{agree} of {len(said)} agree")


OF = {"figure_1_1": _training, "figure_3_1": _eigenvalues, "figure_3_2": _gaps, "figure_33_2": _gaps_over_depth,
      "figure_6_1": _depths, "figure_6_2": _parts, "figure_19_2": _rates, "figure_36_1": _directional,
      "figure_21_1": _exponents}  # fmt: skip
