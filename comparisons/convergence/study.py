"""How networks of growing width approach their limit: `python -m comparisons.convergence --model linear2 --param mup`.

Trains networks of each width, integrates the limit, fits the rates, prints the table and draws the pictures.  In DIR:

    config.json          the options, and a digest of the data
    cells/               what is finished, one file each, from which an interrupted run goes on
    trajectories.nc      every observable (width, seed, step[, rank]), its measuring error, the limit, the deviations
    rates.json           a list of ``comparisons.convergence.rates.Rate``
    growth.json          a list of ``comparisons.statistics.super_consistency.Growth``
    following.json       a list of ``comparisons.convergence.following.Following``, if the limit crosses the edge of stability
    dynamics, rates, growth, following    .png and .pdf
    index.html           all of this on one page
"""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import xarray as xr

from comparisons import command_line, estimate, files, labelled, pairs, regime, results
from comparisons import options as runs
from comparisons import style as plots
from comparisons.cells import Report, Store, Values, Work, begin
from comparisons.convergence import picture, rates
from comparisons.convergence.following import Following, measure_following
from comparisons.convergence.options import PROGRAM, Options
from comparisons.statistics import super_consistency
from comparisons.statistics.deviations import limit_component, variable, without_limit
from comparisons.statistics.super_consistency import Growth
from finite import Numerics
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, Trajectory
from limits import theories as limit
from limits.exponents import parametrization
from limits.trajectory import IN_BULK, measured_by_default
from limits.two_layer import linear_law as fluctuations
from limits.two_layer.linear_law import Law, Prediction

EPSILON = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}
RESOLVE = 0.05  # eigenvalues are computed to this fraction of the smallest gap that a fit has to see
MEANING = {  # of a variable's suffix in trajectories.nc
    "limit": ("at infinite width", "value at infinite width"),
    "deviation": ("network minus limit", "value of the network minus that of its limit (in NTP, of the one with its f(0))"),
    "first_order": ("predicted deviation", "part of the deviation that is linear in that of the initial Gram matrix"),
}
TOLERANCES = {"float32": (3e-6, 1e-3), "float64": (1e-12, 1e-3)}  # the tightest and the loosest relative tolerance


@dataclass(frozen=True)
class Cell:
    """The "limit", the "prediction" of how networks depart from it, or of a width the "networks" and their "deviations"."""

    kind: str
    width: int | None = None

    @property
    def name(self) -> str:
        return self.kind if self.width is None else f"N{self.width}-{self.kind}"

    def __str__(self):
        of_width = {"networks": f"N = {self.width}", "deviations": f"N = {self.width} minus limit"}
        return of_width.get(self.kind, self.kind)


@dataclass(frozen=True)
class Comparison(Work):
    """What one run compares: a problem, and with what ("theory" or "largest-width")."""

    options: Options
    problem: Problem
    reference: str
    config: dict

    @property
    def limit_is_known(self) -> bool:
        """And fits this machine.  Beside the largest width, where nobody asked for it, only if it takes no minutes."""
        if pairs.why_no_limit(self.problem, hessian=self.against_theory):
            return False
        return self.against_theory or limit.work(self.problem, hessian=False) == (0.0, 0.0)

    @property
    def why_largest_width(self) -> str | None:
        """Why the limit, which nobody declined, is not what is subtracted; None where it is."""
        return None if self.options.reference or self.against_theory else pairs.refused(self.problem)

    @property
    def against_theory(self) -> bool:
        """Or against the largest width; then the Hessian's limit, which may take minutes, is not asked for."""
        return self.reference == "theory"

    @property
    def title(self) -> str:
        o = self.options
        return f"{o.described(self.problem)}, {o.param}, η0 = {o.learning_rate:g}, {o.seeds} seeds"

    def cells(self, kind: str) -> list[Cell]:
        """One per width, the widest first, which takes longest."""
        return [Cell(kind, width) for width in sorted(self.options.widths, reverse=True)]

    def networks(self, cells: Sequence[Cell]) -> list[estimate.Networks | estimate.Limit]:
        trained = [cell.width for cell in cells if cell.kind == "networks"]
        networks = [estimate.Networks(self.problem, width, self.options.seeds, measured_by_default()) for width in trained]
        return networks + [estimate.Limit(self.problem, self.against_theory) for cell in cells if cell == LIMIT]

    def compute(self, cells: Sequence[Cell], store: Store, report: Report) -> list[Values]:
        (cell,) = cells
        if cell.kind == "networks":
            return [_trained(self, cell.width, report)]
        if cell.kind == "deviations":
            return [_deviations(self, cell.width, store)]
        if cell.kind == "prediction":
            return [_laws(None if pairs.why_no_laws(self.problem) else limit.predict(self.problem))]
        return [labelled.arrays([limit.solve(self.problem, hessian=self.against_theory)])]


LIMIT, PREDICTION = Cell("limit"), Cell("prediction")


def compare(options: Options) -> list[rates.Rate]:
    """The whole job.  Raises ValueError or files.Refused, in one line, before anything is written."""
    comparison = prepare(options)
    options, problem, known = comparison.options, comparison.problem, comparison.limit_is_known
    first = [*([LIMIT, PREDICTION] if known else []), *comparison.cells("networks")]
    then = comparison.cells("deviations") if known else []
    name = f"{options.model}-{results.slug(options.param)}"
    with begin(comparison, options, comparison.config, name, PROGRAM, lambda store: first + then) as run:
        if run is None:
            return []
        if results.slug(options.param) != options.param:  # one of the user's own
            regime.announce([problem])
        run.ensure(first)
        run.ensure(then)
        dataset, prediction = _dataset(comparison, run.store), _prediction(run.store) if known else None
        after = _unstable_after(problem, dataset)
        measured = rates.measure_rates(dataset, comparison.reference, prediction, after)
        grown = super_consistency.measure_growth(dataset, comparison.reference, prediction, after)
        folder = run.folder
        files.write(dataset, folder / "trajectories.nc")
        files.write_json([rate.record() for rate in measured], folder / "rates.json")
        files.write_json([growth.record() for growth in grown], folder / "growth.json")
        followed = [] if after is None or not known else measure_following(dataset, prediction, after)
        if followed:
            files.write_json([series.record() for series in followed], folder / "following.json")
        _draw(comparison, dataset, measured, grown, followed, folder)
        left_open = pairs.left_open(_limit(comparison, run.store)) if known else {}
        report = table(measured, grown, followed, comparison, after, shown_steps(dataset))
        run.conclude("\n".join([report, *without_a_limit(dataset, left_open)]), dataset.attrs)
    return measured


def prepare(options: Options) -> Comparison:
    """Check the options and build the problem.  Raises ValueError in one line."""
    options = options.adapted()
    widths = options.widths
    if len(set(widths)) < len(widths) or any(width < 1 for width in widths):
        raise ValueError(f"widths {_listed(widths)}: wanted different numbers, each at least 1")
    runs.check_seeds(options.seeds, options.seed)
    runs.check_depths(options.model, (options.depth,))
    if options.measure_every > max(options.steps, 1) and options.steps >= 0:
        raise ValueError(f"measure-every {options.measure_every}: there are {options.steps} steps")
    problem = options.problem(parametrization=options.param, top_k=1 if options.top_k is None else options.top_k)
    problem = replace(problem, parametrization=problem.scaling())  # a file is read once
    smallest = min(widths, default=1) * (problem.num_inputs + problem.num_outputs)
    if options.top_k is None:
        options = replace(options, top_k=min(3, smallest))
        problem = replace(problem, top_k=options.top_k)
    if options.top_k > smallest:
        raise ValueError(f"top-k {options.top_k}: a network of width {min(widths)} has only {smallest} parameters")
    refusal = pairs.refused(problem)
    reference = options.reference or ("largest-width" if refusal else "theory")
    if reference == "theory" and refusal:
        raise ValueError(f"{refusal}; or take --reference largest-width")
    fewest = 3 if reference == "theory" else 4
    if len(widths) < fewest:
        why = f" ({refusal})" if refusal else ""
        raise ValueError(f"{len(widths)} widths: a fit against {reference}{why} needs at least {fewest}")
    settings = {"reference": reference, "exponents": parametrization.rows(problem.scaling())}
    config = runs.config(options, problem.inputs, problem.targets) | settings
    return Comparison(options, problem, reference, config)


# Cells ----------------------------------------------------------------------------------------------------------------


def _trained(comparison, width, report) -> Values:
    """All networks of one width, measured, and how long that took."""
    options, problem = comparison.options, comparison.problem
    started = time.perf_counter()
    numerics = Numerics(options.precision, rtol=tolerance(options), max_matvecs=pairs.max_matvecs(problem))
    trained = train(problem, build(problem, width), pairs.keys(options.seed, width, options.seeds), numerics=numerics,
                    progress=report, observables=measured_by_default())  # fmt: skip
    return labelled.arrays(trained) | {"seconds": np.array(time.perf_counter() - started)}


def _deviations(comparison, width, store) -> Values:
    """Of every network from the limit that has its f(0): "deviation NAME", and where it is known the part of first order."""
    problem, typical, law = comparison.problem, _typical(comparison, store), _prediction(store)
    keys, trained = pairs.keys(comparison.options.seed, width, comparison.options.seeds), _networks(comparison, store, width)
    matched = zip(trained, pairs.matching_limits(problem, width, keys, typical), strict=True)
    measured = {"deviation": [{name: trajectory[name] - its[name] for name in its.observables} for trajectory, its in matched]}
    if law is not None and law.sensitivity is not None:
        network = build(problem, width)
        first = [law.first_order(pairs.initial_gram(network, key)) for key in keys]
        measured["first_order"] = [{name: order[name] for name in typical.observables} for order in first]
    return {f"{suffix} {name}": np.array([values[name] for values in of_seeds])
            for suffix, of_seeds in measured.items() for name in of_seeds[0]}  # fmt: skip


def _laws(prediction: Prediction | None) -> Values:
    """A prediction as arrays: "PART NAME"; nothing where there is none."""
    if prediction is None:
        return {}
    laws = {f"{part} {name}": values for name, law in prediction.laws.items() for part, values in law._asdict().items()}
    sensitivity = {f"sensitivity {name}": values for name, values in (prediction.sensitivity or {}).items()}
    return laws | sensitivity | ({} if prediction.basis is None else {"basis": prediction.basis})


def _prediction(store: Store) -> Prediction | None:
    stored = store.read(PREDICTION)
    if not stored:
        return None
    basis, parts = stored.pop("basis", None), defaultdict(dict)
    for label, values in stored.items():
        part, name = label.split(" ")
        parts[name][part] = values
    sensitivity = {name: law.pop("sensitivity") for name, law in parts.items() if "sensitivity" in law}
    return Prediction({name: Law(**law) for name, law in parts.items() if law}, basis, sensitivity or None)


def _networks(comparison, store, width) -> list[Trajectory]:
    stored = store.read(Cell("networks", width))
    del stored["seconds"]
    return labelled.trajectories(stored, comparison.problem.steps)


def _limit(comparison, store) -> Trajectory:
    (limit_alone,) = labelled.trajectories(store.read(LIMIT), comparison.problem.steps)
    return limit_alone


def _typical(comparison, store) -> Trajectory:
    """The limit without the observables that the theory leaves open."""
    whole = _limit(comparison, store)
    return pairs.only(whole, set(whole.observables) - set(pairs.left_open(whole)))


# Results --------------------------------------------------------------------------------------------------------------


def _dataset(comparison, store) -> xr.Dataset:
    """All that was measured, (width, seed, step[, rank]); its deviations; and along the steps the limit, which has no width."""
    widths, steps = sorted(comparison.options.widths), comparison.problem.steps
    cells = [Cell("networks", width) for width in widths]
    dataset = labelled.from_trajectories({width: _networks(comparison, store, width) for width in widths})
    took = {"long_name": "time that the cell of this width took", "units": "s"}
    dataset["seconds"] = ("width", [float(store.read(cell)["seconds"]) for cell in cells], took)
    if comparison.limit_is_known:
        cells += [LIMIT, PREDICTION, *comparison.cells("deviations")]
        arrays = {width: store.read(Cell("deviations", width)) for width in widths}
        for suffix in dict.fromkeys(label.split(" ")[0] for label in arrays[widths[0]]):
            of_suffix = {width: labelled.trajectories(_with(suffix, stored), steps) for width, stored in arrays.items()}
            dataset = dataset.merge(_named(labelled.from_trajectories(of_suffix), suffix))
        limit_alone = labelled.from_trajectories({1: [_typical(comparison, store)]}).isel(width=0, seed=0, drop=True)
        dataset = dataset.merge(_named(limit_alone, "limit"))
    epsilon = EPSILON[comparison.options.precision]
    return dataset.assign_attrs(store.provenance(cells), epsilon=epsilon, configuration=json.dumps(comparison.config))


def _with(suffix, arrays):
    return {label.split(" ")[1]: values for label, values in arrays.items() if label.startswith(f"{suffix} ")}


def _named(dataset: xr.Dataset, suffix: str) -> xr.Dataset:
    """Under names with that suffix, and with what they then are."""
    label, definition = MEANING[suffix]
    for values in dataset.data_vars.values():
        values.attrs["long_name"] += f", {label}"
        values.attrs["definition"] = f"{definition} of: {values.attrs['definition']}"
    return dataset.rename({name: f"{name}_{suffix}" for name in dataset.data_vars})


def tolerance(options: Options) -> float:
    """The relative tolerance of Lanczos: a fraction of the smallest gap, the bias of the widest networks, about 1/N."""
    return float(np.clip(RESOLVE / max(options.widths), *TOLERANCES[options.precision]))


def _unstable_after(problem, dataset):
    """The step at which the limit (or, where it leaves that open, the mean of the largest width) crosses the edge."""
    values = limit_component(dataset, "sharpness", {"rank": 1})
    if values is None:
        values = dataset["hessian_eigenvalues"].sel(rank=1).isel(width=-1).mean("seed")
    return fluctuations.edge_crossing(problem, Trajectory(problem.steps, {"hessian_eigenvalues": values.values[:, None]}))


def _draw(comparison, dataset, measured, grown, followed, folder):
    title, reference, edge = comparison.title, comparison.reference, comparison.problem.edge_of_stability
    if followed:
        plots.save(picture.following(dataset, followed, edge, title), folder / "following")
    plots.save(picture.dynamics(dataset, edge, title), folder / "dynamics")
    plots.save(picture.rates(dataset, measured, reference, title, shown_steps(dataset)), folder / "rates")
    plots.save(picture.growth(dataset, grown, reference, title), folder / "growth")


def shown_steps(dataset: xr.Dataset, most: int = 4) -> list[int]:
    """A few measured steps, evenly spread from the first to the last."""
    steps = dataset.step.values
    return [int(steps[i]) for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]


def without_a_limit(dataset, left_open: dict[str, str]) -> list[str]:
    """A line for each observable that is shown and has no limit, with why: at some steps, or at none."""
    shown = {variable(name): name for name in picture.SHOWN}
    never = [f"{_short_name(shown[name])} has no limit: {why}" for name, why in left_open.items() if name in shown]
    steps = {name: dataset.step.values[without_limit(dataset, name, at)].tolist()
             for name, at in picture.SHOWN.items() if variable(name) in dataset}  # fmt: skip
    return never + [f"{_short_name(name)} has no limit at step {', '.join(map(str, at))}: {IN_BULK}"
                    for name, at in steps.items() if at]  # fmt: skip


def table(
    measured: Sequence[rates.Rate], grown: Sequence[Growth], followed: Sequence[Following], comparison: Comparison,
    unstable_after: int | None, steps: list[int],
) -> str:  # fmt: skip
    """The rates of loss, sharpness and the top NTK eigenvalue at these steps, and the verdicts, for the terminal."""
    lines = [comparison.title, f"error = prefactor · N^exponent, reference: {comparison.reference}"]
    stood_in_for = [rate.observable for rate in measured if rate.reference != comparison.reference]
    left_open = {_short_name(name) for name in stood_in_for if name in picture.SHOWN}
    if comparison.why_largest_width:
        lines.append(f"the largest width stands for the limit: {comparison.why_largest_width}")
    lines += [f"{name}: the limit leaves it open, the largest width stands for it" for name in sorted(left_open)]
    if not any(isfinite(rate.predicted_prefactor or np.nan) for rate in measured):
        why = pairs.why_no_laws(comparison.problem) if comparison.limit_is_known else None
        why = why or "no law of the deviations is known here (limits.predict is None)"
        lines.append(f"{why}: prefactors have no theory beside them")
    lines.append("")
    lines.append(f"{'observable':<16}{'step':>6}  {'kind':<12}{'exponent':>9} {'95 % interval':<18}{'theory':>7}   "
                 f"{'prefactor':>9} {'theory':>9}  status")  # fmt: skip
    for rate in measured:
        if rate.observable in picture.SHOWN and rate.rank in (None, 1) and rate.step in steps:
            lines.append(_row(rate))
    lines += ["", "super consistency: largest growth of the deviation from its start, and what late values of all widths do"]
    for growth in grown:
        if growth.observable in picture.SHOWN and growth.rank in (None, 1):
            late = f"late × {_number(growth.late.ratio, '.3g')}, ∝ N^{_number(growth.late.exponent, '+.2f')}"
            lines.append(f"{_short_name(growth.observable):<16}× {picture.largest(growth):<22} {late:<26} {growth.verdict}")
    if unstable_after is not None:
        crosses = "networks of the largest width cross" if "sharpness" in left_open else "the limit crosses"
        lines += ["", f"{crosses} the edge of stability at step {unstable_after}: no exponents after it"]
    lines += [line for series in followed for line in _followed(series, int(comparison.problem.steps[-1]))]
    return "\n".join(lines)


def _followed(series: Following, last: int):
    """How long networks follow the limit beyond the edge; the end is the last step, or that until which it is known."""
    rate, (low, high) = series.rate, series.interval
    grows = f"; if log N/(2r), r = {rate:.3g} [{low:.3g}, {high:.3g}] per step" if isfinite(rate) else ""
    known = "" if series.until == last else f"; behind step {series.until} its own error is too large to say"
    yield f"{series.observable} within {series.tolerance:.0%} of it for so many steps: {series.law}{grows}{known}"
    columns = (series.widths, series.steps, series.intervals, series.predicted or [np.nan] * len(series.widths),
               series.to_the_end)  # fmt: skip
    for width, steps, (low, high), predicted, to_the_end in zip(*columns, strict=True):
        theory = f"theory {predicted:.1f}" if isfinite(predicted) else ""
        left = f"{to_the_end:.0%} to the end" if to_the_end else ""
        yield f"  N = {width:<8}{steps:8.1f} [{low:.1f}, {high:.1f}]".ljust(36) + f"{theory:<14} {left}".rstrip()


def _row(rate):
    interval = f"[{_number(rate.interval[0], '+.3f')}, {_number(rate.interval[1], '+.3f')}]"
    return (
        f"{_short_name(rate.observable):<16}{rate.step:>6}  {rate.kind:<12}{_number(rate.exponent, '+.3f'):>9} "
        f"{interval:<18}{_number(rate.predicted_exponent, '+.1f'):>7}   "
        f"{_number(rate.prefactor, '.4g'):>9} {_number(rate.predicted_prefactor, '.4g'):>9}  {rate.status}"
    )


def _short_name(observable):
    return {"ntk_eigenvalues": "ntk eigenvalue"}.get(observable, observable)


def _number(value, form):
    return "–" if value is None or not np.isfinite(value) else format(value, form)


def _listed(values):
    return " ".join(str(value) for value in values)


def main(arguments=None) -> None:
    command_line.run(Options, compare, PROGRAM, arguments)
