"""Do networks do what their scaling exponents say?  `python -m comparisons.coord_check --model mlp --param sp ntp mup`.

Trains networks of growing width (and depth, for residual ones) for a few steps, measures how large everything is, fits
each size's exponent, and puts it beside the derived one (``limits.exponents.regimes.predicted``).  In DIR:

    config.json         the options, the exponents, and a digest of the data
    cells/              one file per finished size of a network, from which an interrupted run goes on
    coord_check.json    a list of ``Check``
    coord_check-OPTIMIZER .png and .pdf
    index.html          all of this on one page

The fit: least squares of the mean over seeds of log size against log width, with a 95 % interval from the spread over
seeds.  A check agrees within ``TOLERANCE``; it differs where its whole interval does; between the two it is undecided.
Behind the step at which exponents of one's own blow up nothing is compared: the table says what blew up, and when.  Nor is
anything of networks whose loss rose ``RISEN``-fold, the smallest where f is to grow: their learning rate is past what trains
(but of optimisers whose steps are as long whatever the gradient: their powers last).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from comparisons import command_line, estimate, files, pairs, regime
from comparisons import options as runs
from comparisons import style as plots
from comparisons.cells import Report, Store, Values, Work, begin
from comparisons.coord_check.options import PROGRAM, Options
from comparisons.statistics.power_law import exponent_of
from finite import sizes as measured_sizes
from finite.networks.build import build
from finite.training.descent import UPDATES
from limits import Problem
from limits.exponents import parametrization, regimes
from limits.losses import LOSSES
from limits.machine import two_digits
from limits.models import layers_of, read_model

TOLERANCE = 0.1
FEWEST = 3  # sizes to fit an exponent to
MORE_SEEDS = 8  # times as many of narrow networks, which are cheap and scatter as much as wide ones
USUAL = {"plain": (("sp", "ntp", "mup"), (2,)), "residual": (("depth_mup", "alpha1"), (2, 4, 8, 16))}  # and depths
AT_STEP_0 = ("h", "f", "gradient", "sharpness")
NOT_COMPARED = "not compared: "
RISEN = 10.0
LOSS = "loss"  # at "start" and "end"
ALONG = "alignment along training"  # (params, seeds, steps)
DERIVED, DISAGREES = "derived exponent", "not seen to agree: the table says why"  # in the legend
SHOWN = ("delta_h", "f", "delta_f", "weight_update_spectral", "sharpness")
LABELS = {
    "h": r"$h$ at step 0", "f": r"$f$ at step 0", "delta_h": r"$\Delta h$", "delta_f": r"$\Delta f$",
    "own_change": r"$\Delta W\,x$", "alignment": r"$\Delta W\,x$ / $|\Delta W||x|$",
    "gradient": r"$\partial\mathcal{L}/\partial W$", "weight_update": r"$\Delta W$",
    "weight_update_spectral": r"$\|\Delta W\|_2$", "sharpness": r"raw $\lambda_1(G)$",
}  # fmt: skip


Sizes = Mapping[tuple[str, str], Float[np.ndarray, "params _ ..."]]  # of the quantity of a layer


@dataclass(frozen=True)
class Cell:
    """The networks of one size and optimiser, in every parametrization."""

    optimizer: str
    width: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.optimizer}-N{self.width}-L{self.depth}"

    def __str__(self):
        return f"{self.optimizer} N = {self.width} L = {self.depth}"


@dataclass(frozen=True)
class Sweep:
    """Networks that differ in width (``letter`` "N") or in depth ("L") only."""

    optimizer: str
    letter: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(self.optimizer, width, depth) for width in self.widths for depth in self.depths]

    @property
    def growing(self) -> tuple[int, ...]:
        return self.widths if self.letter == "N" else self.depths

    @property
    def fixed(self) -> str:
        return f"L = {self.depths[0]}" if self.letter == "N" else f"N = {self.widths[0]}"


@dataclass(frozen=True)
class Check:
    """size ≈ N^exponent (or L^exponent) at fixed depth (or width): the fit, its 95 % interval, the derived exponent.

    derived     not a number where nothing is compared
    verdict     "agrees", "differs", "undecided", why there is no exponent, or "not compared: …", after a blow-up or divergence
    """

    parametrization: str
    optimizer: str
    letter: str
    fixed: str
    quantity: str
    layer: str
    exponent: float
    interval: tuple[float, float]
    derived: float
    verdict: str

    @property
    def compared(self) -> bool:
        return not self.verdict.startswith(NOT_COMPARED)


@dataclass(frozen=True)
class Job(Work):
    """What one run does."""

    options: Options
    params: tuple[str, ...]
    sweeps: list[Sweep]
    data: runs.Shaped
    config: dict

    def problem(self, param: str, optimizer: str, depth: int) -> Problem:
        o, (inputs, targets, shape) = self.options, self.data
        UPDATES.find(optimizer)
        problem = Problem(
            inputs, targets, param, optimizer, model=o.model, activation=o.activation, depth=depth,
            block_size=o.block_size, loss=o.loss, image_shape=shape, learning_rate=o.learning_rate, num_steps=o.steps,
        )  # fmt: skip
        return replace(problem, parametrization=problem.scaling())  # a file is read once

    def problems(self, optimizer: str, depth: int) -> list[Problem]:
        return [self.problem(param, optimizer, depth) for param in self.params]

    @property
    def cells(self) -> list[Cell]:
        """The dearest first."""
        wanted = dict.fromkeys(cell for sweep in self.sweeps for cell in sweep.cells)
        return sorted(wanted, key=lambda cell: -cell.depth * cell.width * cell.width)

    def seeds(self, width: int) -> int:
        return self.options.seeds * max(1, min(MORE_SEEDS, max(self.options.widths) // width))

    def networks(self, cells: Sequence[Cell]) -> list[estimate.Networks]:
        """A raw λ1(G) costs what a Gauss-Newton eigenvalue does."""
        observables = ("loss", "gauss_newton_eigenvalues")
        return [estimate.Networks(problem, cell.width, self.seeds(cell.width), observables, cells=int(not place))
                for cell in cells for place, problem in enumerate(self.problems(cell.optimizer, cell.depth))]  # fmt: skip

    def compute(self, cells: Sequence[Cell], store: Store, report: Report) -> list[Values]:
        return [self.measured(cell) for cell in cells]

    def measured(self, cell: Cell) -> Values:
        """The size (param, seed) of each "quantity/layer"."""
        problems = self.problems(cell.optimizer, cell.depth)
        keys = pairs.keys(self.options.seed, cell.width, self.seeds(cell.width), cell.depth)
        networks = [build(problem, cell.width) for problem in problems]
        quantities = measured_sizes.measure(problems, networks, keys, self.options.precision)
        if self.options.along:
            quantities |= {ALONG: measured_sizes.alignment(problems, networks, keys, self.options.precision)}
        return {f"{quantity}/{layer}": sizes for quantity, layers in quantities.items() for layer, sizes in layers.items()}


def sizes(store: Store, cell: Cell) -> Sizes:
    """What ``Job.measured`` has found, in its order."""
    return {tuple(name.split("/")): values for name, values in store.read(cell).items()}


def check(options: Options) -> list[Check]:
    """The whole job.  Raises ValueError or files.Refused, in one line, before anything is written."""
    job = prepare(options)
    options = job.options
    with begin(job, options, job.config, f"coord_check-{options.model}", PROGRAM, lambda store: job.cells) as run:
        if run is None:
            return []
        regime.announce(problem for sweep in job.sweeps for problem in job.problems(sweep.optimizer, sweep.depths[0]))
        run.ensure(job.cells)
        measured = {cell: sizes(run.store, cell) for cell in job.cells}
        checks = [fit for sweep in job.sweeps for fit in checked(job, sweep, [measured[cell] for cell in sweep.cells])]
        files.write_json([asdict(fit) for fit in checks], run.folder / "coord_check.json")
        for optimizer in options.optimizer:
            plots.save(picture(job, optimizer, measured, checks), run.folder / f"coord_check-{optimizer}")
        report = [table(checks, options.every)]
        report += [rates(job, checks)] if options.rates else []
        report += [alignments(job, measured)] if options.along else []
        run.conclude("\n".join(report), run.store.provenance(job.cells))
    return checks


def prepare(options: Options) -> Job:
    """Check the options.  Raises ValueError in one line."""
    options = options.adapted()
    row = layers_of(options.model)
    usual_params, usual_depths = USUAL[row.architecture]
    usual_depths = row.depths or usual_depths
    usual_rate = row.small_rate * (1.0 if LOSSES[options.loss].quadratic else 0.1)
    options = replace(options, learning_rate=usual_rate if options.learning_rate is None else options.learning_rate)
    model = read_model(options.model, activation=options.activation, block_size=options.block_size)
    params, depths = options.param or usual_params, options.depths or usual_depths
    runs.check_distinct("parametrizations", params, 1)
    runs.check_distinct("optimizers", options.optimizer, 1)
    runs.check_distinct("widths", options.widths, FEWEST)
    residual = model.architecture == "residual"
    runs.check_distinct("depths", depths, FEWEST if residual else 1)
    if layers_of(options.model).depth and depths != usual_depths:
        raise ValueError(f"{options.model} has {model.depth} hidden layers: no other depths")
    runs.check_seeds(options.seeds, options.seed)
    if options.steps < 1:
        raise ValueError(f"{options.steps} steps: at least 1 is needed for a change")
    widths, depths = tuple(sorted(options.widths)), tuple(sorted(depths))
    sweeps = [Sweep(o, "N", widths, (depth,)) for o in options.optimizer for depth in (depths[:1] if residual else depths)]
    sweeps += [Sweep(o, "L", widths[1:2], depths) for o in options.optimizer if residual]
    data = options.load_shaped()
    job = Job(options, params, sweeps, data, {})
    problems = [problem for sweep in sweeps for problem in job.problems(sweep.optimizer, sweep.depths[0])]
    measured_sizes.check(build(problems[0], widths[0]))
    config = runs.config(options, *data[:2]) | {"exponents": [parametrization.rows(problem.scaling()) for problem in problems]}
    for printed in ("every", "rates"):
        config.pop(printed)  # changes what is printed only
    return replace(job, config=config)


# Checking -------------------------------------------------------------------------------------------------------------


def checked(job: Job, sweep: Sweep, cells: Sequence[Sizes]) -> Iterator[Check]:
    """One check per parametrization, quantity and layer; a layer that not all networks have is left out."""
    for place, param in enumerate(job.params):
        problem = job.problem(param, sweep.optimizer, sweep.depths[0])
        case, steps = regime.case(problem), job.options.steps
        derived = regimes.predicted(case, steps)
        spoilt = _spoilt(case, steps, derived, sweep, [cell[LOSS, "end"][place] / cell[LOSS, "start"][place] for cell in cells])
        for quantity, layer in (named for named in cells[0] if named[0] not in (LOSS, ALONG)):
            wanted = float(getattr(_of_layer(derived[quantity], layer), sweep.letter))
            exponent, interval = exponent_of(sweep.growing, [cell[quantity, layer][place] for cell in cells])
            label = param, sweep.optimizer, sweep.letter, sweep.fixed, quantity, layer
            if spoilt and quantity not in AT_STEP_0:
                yield Check(*label, exponent, interval, np.nan, NOT_COMPARED + spoilt)
            else:
                yield Check(*label, exponent, interval, wanted, _verdict(exponent, interval, wanted))


def _spoilt(case, steps, derived, sweep: Sweep, losses: Sequence[Float[np.ndarray, " _"]]) -> str | None:
    """What makes powers of sizes after step 0 meaningless, if something does; ``losses`` of each size, after over before."""
    if blow_up := regimes.blow_up(case, sweep.letter, steps):
        step, what = blow_up
        return what if step < steps else None
    if case.optimizer.forgets_scale():
        return None
    grows = getattr(_of_layer(derived["delta_f"], "readout"), sweep.letter) > 0  # and with f the loss, but not of the smallest
    for size, ratios in zip(sweep.growing[: 1 if grows else None], losses, strict=not grows):
        ratio = np.median(np.nan_to_num(ratios, nan=np.inf, posinf=np.inf))
        if ratio > RISEN:
            what = f"rose {two_digits(ratio)}-fold" if isfinite(ratio) else "diverged"
            return f"the loss {what} at {sweep.letter} = {size}, at a learning rate past what trains"
    return None


def _of_layer(derived, layer):
    """The power of that layer, or of the first of its role: "block_inner value" is one of the "block_inner 1"."""
    role = layer.split()[0]
    return derived.get(layer) or next(power for name, power in derived.items() if name.split()[0] == role)


def _verdict(exponent, interval, derived):
    if not isfinite(exponent):
        return "diverged"
    if not isfinite(derived):
        return "faster than any power"
    if abs(exponent - derived) <= TOLERANCE:
        return "agrees"
    low, high = interval
    return "differs" if low > derived + TOLERANCE or high < derived - TOLERANCE else "undecided"


def table(checks: Sequence[Check], every: bool = False) -> str:
    """One line per parametrization, optimiser and sweep, one per check that does not agree (or per check), and one that says
    what is not compared and why.
    """
    groups: dict[tuple, list[Check]] = {}
    for fit in checks:
        groups.setdefault((fit.parametrization, fit.optimizer, fit.fixed), []).append(fit)
    lines = []
    for (param, optimizer, fixed), members in groups.items():
        agree, left_out = [fit for fit in members if fit.verdict == "agrees"], [fit for fit in members if not fit.compared]
        worst = max((abs(fit.exponent - fit.derived) for fit in agree), default=float("nan"))
        head = f"{param}, {optimizer}, {fixed}: {len(agree)} of {len(members) - len(left_out)} exponents agree"
        lines.append(head + (f", within {worst:.3f}" if agree else ""))
        lines += [_row(fit) for fit in members if every or (fit.compared and fit.verdict != "agrees")]
        lines += [f"    {len(left_out)} {left_out[0].verdict}"] if left_out else []
    return "\n".join(lines)


def rates(job: Job, checks: Sequence[Check]) -> str:
    """One line per parametrization, optimiser and layer whose own change has an exponent: what stands there less that exponent,
    for weights without multipliers.
    """
    lines = ["power of the learning rate, without multipliers, with which ΔW x is as large at every width: derived, measured"]
    for fit in checks:
        if (fit.quantity, fit.letter) == ("own_change", "N") and isfinite(fit.exponent) and isfinite(fit.derived):
            scaling = job.problem(fit.parametrization, fit.optimizer, job.sweeps[0].depths[0]).scaling()
            power = float(parametrization.gauge(scaling, "multiplier")[fit.layer.split()[0]].learning_rate.N)
            high, low = (power - end for end in fit.interval)
            powers = f"{power - fit.derived:+.2f}  {power - fit.exponent:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append(f"    {fit.parametrization}, {fit.optimizer + ',':<15} {fit.fixed}  {fit.layer:<15}{powers}")
    return "\n".join(lines)


def alignments(job: Job, measured: Mapping[Cell, Sizes]) -> str:
    """One line per parametrization, optimiser, layer and step 1, 2, 4, …, the last: e with its 95 % interval."""
    steps = sorted({min(2**k, job.options.steps) for k in range(job.options.steps.bit_length() + 1)})
    lines = ["alignment of each layer's whole update with what arrives, e of N^e, after so many steps"]
    for sweep in (sweep for sweep in job.sweeps if sweep.letter == "N"):
        cells = [measured[cell] for cell in sweep.cells]
        for place, param in enumerate(job.params):
            for layer in (name for quantity, name in cells[0] if quantity == ALONG):
                told = [_told(step, *exponent_of(sweep.growing, [cell[ALONG, layer][place][:, step - 1] for cell in cells]))
                        for step in steps]  # fmt: skip
                label = f"{param}, {sweep.optimizer},"
                lines.append(f"    {label:<20} {sweep.fixed}  {layer:<15}{'   '.join(told)}")
    return "\n".join(lines)


def _told(step, exponent, interval):
    return f"{step}: {exponent:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def _row(fit: Check) -> str:
    low, high = fit.interval
    mark = "✗ " if fit.compared and fit.verdict != "agrees" else "  "
    derived = f"derived {fit.letter}^{fit.derived:<+6.2f} " if fit.compared else ""
    measured = f"{fit.letter}^{fit.exponent:<+8.3f}[{low:+.3f}, {high:+.3f}]" if isfinite(fit.exponent) else f"{'–':<26}"
    return f"  {mark}{fit.quantity:<24}{fit.layer:<15}{measured}  {derived}{fit.verdict}"


# The picture ----------------------------------------------------------------------------------------------------------


@plots.styled
def picture(job: Job, optimizer: str, cells: Mapping[Cell, Sizes], checks: Sequence[Check]) -> Figure:
    """Size against width or depth, one row per sweep; points are networks, lines the derived power through their middle.

    What is not compared is left out, and the title says why: after a blow-up sizes span all decades there are.
    """
    sweeps = [sweep for sweep in job.sweeps if sweep.optimizer == optimizer]
    figure = Figure(figsize=(2.5 * len(SHOWN), 2.4 * len(sweeps) + 0.7), layout="constrained")
    grid = figure.subplots(len(sweeps), len(SHOWN), squeeze=False)
    colors = dict(plots.colors(job.params))
    fits = {(c.parametrization, c.fixed, c.quantity, c.layer): c for c in checks if c.optimizer == optimizer}
    for row, sweep in zip(grid, sweeps, strict=True):
        measured = [cells[cell] for cell in sweep.cells]
        for axis, quantity in zip(row, SHOWN, strict=True):
            layer = _shown_layer([n for q, n in measured[0] if q == quantity])
            for rank, param in enumerate(job.params):
                fit = fits[param, sweep.fixed, quantity, layer]
                if not fit.compared:
                    continue
                with np.errstate(divide="ignore", over="ignore"):
                    logs = [np.log(cell[quantity, layer][rank]).mean() for cell in measured]
                size = 2 + 5 * (1 - rank / len(job.params))  # those drawn later leave the earlier ones visible
                _draw(axis, np.array(sweep.growing), np.exp(logs), fit, colors[param], size)
            axis.set(xscale="log", xlabel="width $N$" if sweep.letter == "N" else "depth $L$")
            if any(line.get_xdata().size for line in axis.lines):
                axis.set_yscale("log")
            else:
                axis.set(xlim=(sweep.growing[0], sweep.growing[-1]), yticks=[])
                compared = any(fits[param, sweep.fixed, quantity, layer].compared for param in job.params)
                axis.text(0.5, 0.5, "diverged" if compared else "not compared", transform=axis.transAxes, ha="center")
            axis.set_title(LABELS[quantity] + ("" if layer == "readout" else f", {layer}"))
            low, high = axis.get_ylim()
            if 0 < high < 30 * low:  # what is flat is to look flat
                axis.set_ylim(low / np.sqrt(30 * low / high), high * np.sqrt(30 * low / high))
            plots.at_sizes(axis.xaxis, sweep.growing)
            axis.yaxis.set_minor_formatter(NullFormatter())
            plots.plain_numbers(axis.yaxis)
        row[0].set_ylabel(f"root mean square at {sweep.fixed}")
    handles = [Line2D([], [], color=color, marker="o", linestyle="", label=plots.NAMES.get(param, param))
               for param, color in colors.items()]
    handles += [Line2D([], [], color="gray", label=DERIVED),
                Line2D([], [], color="gray", marker="o", fillstyle="none", linestyle="", label=DISAGREES)]  # fmt: skip
    plots.legend_below(figure, handles)
    o = job.options
    title = f"{o.model}, {optimizer}, {o.activation}, {o.data} data, η0 = {o.learning_rate:g}, {o.steps} steps"
    reasons = dict.fromkeys(f"{fit.parametrization}, {fit.verdict}" for fit in fits.values() if not fit.compared)
    figure.suptitle("\n".join([f"{title}; geometric mean over seeds", *reasons]), fontsize=9)
    return figure


def _shown_layer(layers: list[str]) -> str:
    """The last one before the readout, if there is one."""
    hidden = sorted((name for name in layers if name.startswith("hidden")), key=lambda name: int(name.split()[1]))
    last = ("stream", "block", "block mlp", *reversed(hidden), "input", "readout")
    return next(name for name in last if name in layers)


def _draw(axis: Axes, growing: np.ndarray, magnitude: np.ndarray, fit: Check, color, markersize) -> None:
    drawn, agrees = np.isfinite(magnitude) & (magnitude > 0), fit.verdict == "agrees"
    axis.plot(growing[drawn], magnitude[drawn], marker="o", markersize=markersize, linestyle="", color=color,
              fillstyle="full" if agrees else "none", label=plots.NAMES.get(fit.parametrization, fit.parametrization),
              gid=None if agrees else DISAGREES)  # fmt: skip
    if isfinite(fit.derived) and drawn.all():
        level = np.exp(np.mean(np.log(magnitude) - fit.derived * np.log(growing)))
        axis.plot(growing, level * growing.astype(float) ** fit.derived, color=color, linewidth=1, label=DERIVED)


def main(arguments=None) -> None:
    command_line.run(Options, check, PROGRAM, arguments)
