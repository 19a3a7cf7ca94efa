"""How networks of growing width approach their limit: `python -m comparisons.convergence --model linear2 --param mup`.

Trains networks of each width, integrates the limit, fits the rates, prints the table and draws the pictures.  In DIR:

    config.json          the options, and a digest of the data
    cells/               one file per finished width, from which an interrupted run goes on
    trajectories.nc      every observable (width, seed, step[, rank]), its measuring error, the limit, the deviations
    rates.json           a list of ``comparisons.convergence.rates.Rate``
    growth.json          a list of ``comparisons.super_consistency.Growth``
    dynamics, rates, growth .png and .pdf
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
import xarray as xr

from comparisons import cases, command_line, estimate, records, super_consistency
from comparisons import options as runs
from comparisons import style as plots
from comparisons.convergence import picture, rates
from comparisons.convergence.options import PROGRAM, Options
from comparisons.deviations import limit_component
from finite import Numerics
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, Trajectory
from limits import theories as limit
from limits.exponents import parametrization
from limits.trajectory import MEASURED
from limits.two_layer import linear_law as fluctuations

EPSILON = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}
RESOLVE = 0.05  # eigenvalues are computed to this fraction of the smallest gap that a fit has to see
MEANING = {  # of a variable's suffix in trajectories.nc
    "limit": ("at infinite width", "value at infinite width"),
    "deviation": ("network minus limit", "value of the network minus that of its limit (in NTP, of the one with its f(0))"),
    "first_order": ("predicted deviation", "part of the deviation that is linear in that of the initial Gram matrix"),
}
TOLERANCES = {"float32": (3e-6, 1e-3), "float64": (1e-12, 1e-3)}  # the tightest and the loosest relative tolerance


@dataclass(frozen=True)
class Comparison:
    """What one run compares: a problem, and with what ("theory" or "largest-width")."""

    options: Options
    problem: Problem
    reference: str
    config: dict

    @property
    def limit_is_known(self) -> bool:
        return cases.limit_is_known(self.problem)

    @property
    def title(self) -> str:
        o = self.options
        return f"{o.described(self.problem)}, {o.param}, η0 = {o.learning_rate:g}, {o.seeds} seeds"


def compare(options: Options) -> list[rates.Rate]:
    """The whole job.  Raises ValueError or records.Refused, in one line, before anything is written."""
    comparison = prepare(options)
    options, problem = comparison.options, comparison.problem
    networks = [estimate.Networks(problem, width, options.seeds, MEASURED) for width in options.widths]
    if not estimate.begins(networks, PROGRAM, options.dry_run):
        return []
    if runs.slug(options.param) != options.param:  # one of the user's own
        print(cases.regime(problem), flush=True)
    folder = runs.folder(options.out, f"{options.model}-{runs.slug(options.param)}", comparison.config)
    with records.claim(folder, comparison.config, PROGRAM) as store, runs.threads() as pool:
        known = comparison.limit_is_known  # the theory first, then the widest networks, which take longest
        prediction = pool.submit(lambda: limit.predict(problem) if known else None)
        cells = ({"limit": "limit"} if known else {}) | {width: f"N = {width}" for width in options.widths}
        with runs.Progress(cells, "networks") as progress:
            typical = _limit(comparison, store, progress.report("limit")) if known else None
            dataset = _networks(comparison, store, prediction, typical, pool, progress)
        prediction = prediction.result()
        after = _unstable_after(problem, dataset)
        measured = rates.measure_rates(dataset, comparison.reference, prediction, after)
        grown = super_consistency.measure_growth(dataset, comparison.reference, prediction, after)
        records.write_json([rate.record() for rate in measured], folder / "rates.json")
        records.write_json([growth.record() for growth in grown], folder / "growth.json")
        _draw(comparison, dataset, measured, grown, folder)
        print(table(measured, grown, comparison, after, shown_steps(dataset)))
        print(f"results in {folder}")
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
    known = cases.limit_is_known(problem)
    reference = options.reference or ("theory" if known else "largest-width")
    if reference == "theory" and not known:
        raise ValueError(f"no limit is known for {options.model} in {problem.scaling().name}: take --reference largest-width")
    fewest = 3 if reference == "theory" else 4
    if len(widths) < fewest:
        why = "" if known else f" (no limit is known for {options.model} in {problem.scaling().name})"
        raise ValueError(f"{len(widths)} widths: a fit against {reference}{why} needs at least {fewest}")
    smallest = min(widths) * (problem.num_inputs + problem.num_outputs)
    if options.top_k is None:
        options = replace(options, top_k=min(3, smallest))
        problem = replace(problem, top_k=options.top_k)
    if options.top_k > smallest:
        raise ValueError(f"top-k {options.top_k}: a network of width {min(widths)} has only {smallest} parameters")
    settings = {"reference": reference, "exponents": parametrization.rows(problem.scaling())}
    config = runs.config(options, problem.inputs, problem.targets) | settings
    return Comparison(options, problem, reference, config)


def _limit(comparison, store, report) -> Trajectory:
    """The limit, read where it is there and whole, else integrated."""

    def integrated():
        report(0.0)
        return _of_limit(limit.solve(comparison.problem))

    kept = store.kept("limit", integrated)
    report(1.0)
    return _determined(records.to_trajectory(kept))


def _determined(typical: Trajectory) -> Trajectory:
    """Without the observables that the theory leaves open: the error of the (largest) value is infinite at some step."""
    open_ = [name for name in typical.observables if np.isinf(typical.error(name).reshape(len(typical.steps), -1)[:, 0]).any()]
    kept = {name: values for name, values in typical.observables.items() if name not in open_}
    return replace(typical, observables=kept, errors={n: e for n, e in typical.errors.items() if n not in open_})


def _networks(comparison, store, prediction, typical, pool, progress) -> xr.Dataset:
    """Every width, read where it is there and whole, else trained; then all in one file."""
    widths = sorted(comparison.options.widths)

    def ensure(width):
        report = progress.report(width)
        kept = store.kept(str(width), lambda: _cell(comparison, width, prediction, typical, report))
        report(1.0)
        return kept

    cells = {width: pool.submit(ensure, width) for width in reversed(widths)}
    return store.finish([cells[width].result() for width in widths])


def _cell(comparison, width, prediction, typical, report: Callable[[float], None]) -> xr.Dataset:
    """All networks of one width, measured, and their deviations from the limit."""
    options, problem = comparison.options, comparison.problem
    report(0.0)
    network, keys = build(problem, width), cases.keys(options.seed, width, options.seeds)
    started = time.perf_counter()
    numerics = Numerics(options.precision, rtol=tolerance(options), max_matvecs=cases.max_matvecs(problem))
    trained = train(problem, network, keys, numerics=numerics, progress=report, observables=MEASURED)
    dataset = records.from_trajectories({width: trained})
    dataset["seconds"] = ("width", [time.perf_counter() - started])
    if typical:
        pairs = zip(trained, cases.matching_limits(problem, width, keys, typical), strict=True)
        differences = [Trajectory(t.steps, {n: t[n] - m[n] for n in m.observables}) for t, m in pairs]
        dataset = dataset.merge(_named(records.from_trajectories({width: differences}), "deviation"))
        law = prediction.result()
        if law is not None and law.sensitivity is not None:
            first = [law.first_order(cases.initial_gram(network, key)) for key in keys]
            linear = [Trajectory(problem.steps, {n: f[n] for n in typical.observables}) for f in first]
            dataset = dataset.merge(_named(records.from_trajectories({width: linear}), "first_order"))
        dataset = dataset.merge(_named(_of_limit(typical), "limit"))
    return dataset.assign_attrs(epsilon=EPSILON[options.precision], configuration=json.dumps(comparison.config))


def _of_limit(trajectory: Trajectory) -> xr.Dataset:
    """Along the steps only: it has no width, and what is compared with it has many."""
    return records.from_trajectories({1: [trajectory]}).isel(width=0, seed=0, drop=True)


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


def _draw(comparison, dataset, measured, grown, folder):
    title, reference = comparison.title, comparison.reference
    plots.save(picture.dynamics(dataset, comparison.problem.edge_of_stability, title), folder / "dynamics")
    plots.save(picture.rates(dataset, measured, reference, title, shown_steps(dataset)), folder / "rates")
    plots.save(picture.growth(dataset, grown, reference, title), folder / "growth")


def shown_steps(dataset: xr.Dataset, most: int = 4) -> list[int]:
    """A few measured steps, evenly spread from the first to the last."""
    steps = dataset.step.values
    return [int(steps[i]) for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]


def table(measured, grown, comparison: Comparison, unstable_after: int | None, steps: list[int]) -> str:
    """The rates of loss, sharpness and the top NTK eigenvalue at these steps, and the verdicts, for the terminal."""
    lines = [comparison.title, f"error = prefactor · N^exponent, reference: {comparison.reference}"]
    stood_in_for = [rate.observable for rate in measured if rate.reference != comparison.reference]
    left_open = {_short_name(name) for name in stood_in_for if name in picture.SHOWN}
    lines += [f"{name}: the limit leaves it open, the largest width stands for it" for name in sorted(left_open)]
    if not any(isfinite(rate.predicted_prefactor or np.nan) for rate in measured):
        lines.append("no law of the deviations is known here (limits.predict is None): prefactors have no theory beside them")
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
        lines += ["", f"the limit crosses the edge of stability at step {unstable_after}: no exponents after it"]
    return "\n".join(lines)


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
