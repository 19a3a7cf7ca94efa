"""The networks of a sweep, each a cell of its own: of every size, learning rate and seed; and their limits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from jaxtyping import Array, Int

from comparisons import estimate, pairs, regime, results
from comparisons.cells import Report, Store, Values, Work
from comparisons.options import TrainingOptions, sized
from comparisons.pairs import Limit
from finite import Numerics
from finite.networks.build import build
from finite.training.train import train
from limits import Problem
from limits.exponents.algebra import Scaling
from limits.losses import LOSSES
from limits.optimizers import OPTIMIZERS
from limits.theories import solve, theory
from limits.trajectory import OBSERVABLES, Observable, stored
from limits.two_layer import linear as linear2

EDGE = "edge of stability"


@dataclass(frozen=True)
class Cell:
    """One network; of those that follow it the sharpness is measured too."""

    param: str
    width: int
    depth: int | None
    learning_rate: float
    seed: int
    sharpness: bool = False

    @property
    def name(self) -> str:
        size = f"{results.slug(self.param)}-N{self.width}" + ("" if self.depth is None else f"-L{self.depth}")
        return f"{size}/{self.learning_rate!r}-{self.seed}{'-sharpness' if self.sharpness else ''}"

    def __str__(self):
        deep = "" if self.depth is None else f" L = {self.depth}"
        return f"{self.param} N = {self.width}{deep} η0 = {self.learning_rate:g} seed {self.seed}"


@dataclass(frozen=True)
class Networks(Work):
    """What all cells share.

    base        the problem; parametrization, depth and learning rate are a cell's
    scalings    the exponents of every (parametrization, depth)
    rates       the learning rates, ascending
    seed        of the networks
    seeds       how many networks a size has
    followed    of how many the sharpness is followed
    precision   "float32" or "float64", of the networks
    samples     the first so many samples have the curvature
    """

    base: Problem
    scalings: dict[tuple[str, int], Scaling]
    rates: tuple[float, ...]
    seed: int
    seeds: int
    followed: int
    precision: str
    samples: int

    @property
    def steps(self) -> Int[np.ndarray, " T"]:
        """The measured ones."""
        return self.base.steps

    @property
    def depths(self) -> list[int]:
        """The networks' own: one that a model says in its name is not the option's."""
        return sorted({depth for _, depth in self.scalings})

    def described(self, options: TrainingOptions) -> str:
        return sized(options, self.base)

    def announce(self, params: Sequence[str]) -> None:
        """What the derivation says of exponents of the user's own."""
        own = [param for param in params if results.slug(param) != param]
        regime.announce(self.problem(param, self.depths[0]) for param in own)

    @cached_property
    def no_limits(self) -> dict[tuple[str, int], str | None]:
        """Of every parametrization and depth, why no limits are drawn; None where they are."""
        return {key: self._why_not(Limit(*key)) for key in self.scalings}

    def _why_not(self, cell):
        reason = pairs.refused(self.problem(cell.param, cell.depth), hessian=self.limits_follow)
        return reason or pairs.refused(self.at_the_end(cell), hessian=False, times=len(self.rates))

    def at_the_end(self, cell: Limit, learning_rate: float | None = None) -> Problem:
        """Measured there only; but of linear2 another schedule takes longer to compile than all that it saves."""
        problem = self.problem(cell.param, cell.depth, learning_rate)
        return problem if theory(problem) is linear2 else replace(problem, measure_every=self.base.num_steps)

    @property
    def limits_follow(self) -> bool:
        """Whether limits have their sharpness followed too."""
        return bool(self.followed) and sharpness(self.base) == "hessian_eigenvalues"

    @property
    def of_loss(self) -> dict[str, str]:
        """Attributes: its definition, and of its rounding."""
        base = self.base
        definition = f"mean {base.loss.replace('_', '-')} over all samples"
        definition = OBSERVABLES["loss"].definition if LOSSES[base.loss].quadratic else definition
        return {"definition": definition, "precision": self.precision, "loss": base.loss}

    def edge(self, param: str, depth: int, learning_rate: float) -> float:
        """Of stability."""
        return self.problem(param, depth, learning_rate).preconditioned_edge_of_stability

    def of_sharpness(self, edges: Sequence[float]) -> tuple[Observable, str, str]:
        """(what is followed, its definition, what the edges are called)."""
        row = OPTIMIZERS[self.base.optimizer]
        observable = OBSERVABLES[row.sharpness]
        plain = not (row.preconditioned or self.base.momentum or self.base.weight_decay)
        return observable, observable.definition, EDGE + r" $2/\eta_0$" * bool(np.isfinite(edges).all() and plain)

    def problem(self, param: str, depth: int, learning_rate: float | None = None) -> Problem:
        rate = self.base.learning_rate if learning_rate is None else learning_rate
        return replace(self.base, parametrization=self.scalings[param, depth], depth=depth, learning_rate=rate)

    def keys(self, width: int, depth: int, seeds: Sequence[int]) -> Array:
        """One per seed; every learning rate starts from the same weights, and so does every parametrization."""
        return _keys(self.seed, width, depth, self.seeds)[np.asarray(seeds)]

    def alike(self, cell: Cell | Limit) -> tuple:
        """Networks of one size."""
        return (cell,) if isinstance(cell, Limit) else (cell.param, cell.width, cell.depth, cell.sharpness)

    def networks(self, cells: Sequence[Cell | Limit]) -> list[estimate.Networks | estimate.Limit]:
        first = cells[0]
        if isinstance(first, Limit):
            swept = estimate.Limit(self.at_the_end(first), hessian=False, networks=len(self.rates))
            curve = estimate.Limit(self.problem(first.param, first.depth), cells=0)
            return [swept, curve] if self.limits_follow else [swept]
        problem, observables = self.problem(first.param, first.depth), self.observables(first)
        return [estimate.Networks(problem, first.width, len(cells), observables, self.samples, len(cells))]

    def observables(self, cell: Cell) -> tuple[str, ...]:
        return ("loss", sharpness(self.base)) if cell.sharpness else ("loss",)

    def compute(self, cells: Sequence[Cell | Limit], store: Store, report: Report) -> list[Values]:
        return [self.limit(*cells)] if isinstance(cells[0], Limit) else self.trained(cells, report)

    def trained(self, cells: Sequence[Cell], report: Report) -> list[Values]:
        """"loss" (measured steps,), and where it is followed "sharpness" and "sharpness_error"."""
        first, name = cells[0], sharpness(self.base)
        problem = self.problem(first.param, first.depth, first.learning_rate)
        keys = self.keys(first.width, first.depth, [cell.seed for cell in cells])
        trained = train(
            problem, build(problem, first.width), keys, learning_rates=[cell.learning_rate for cell in cells],
            observables=self.observables(first), curvature_samples=min(self.samples, problem.num_samples),
            numerics=Numerics(self.precision, max_matvecs=pairs.max_matvecs(problem)), progress=report,
        )  # fmt: skip
        return [{"loss": trajectory["loss"]} | ({"sharpness": first_of(trajectory[name]),
                                                 "sharpness_error": first_of(trajectory.error(name))}
                                                if first.sharpness else {}) for trajectory in trained]  # fmt: skip

    def limit(self, cell: Limit) -> Values:
        """final_loss_limit (learning_rate,), in NTP, where f(0) is random, its mean; sharpness_limit (step,) at its lowest.

        Not numbers where the limit leaves the sharpness open.
        """
        losses = [solve(self.at_the_end(cell, rate), hessian=False)["loss"][-1] for rate in self.rates]
        best = self.rates[int(np.nanargmin([loss if np.isfinite(loss) else np.inf for loss in losses]))]
        curve = np.full(len(self.base.steps), np.nan)
        if self.limits_follow:
            trajectory = solve(self.problem(cell.param, cell.depth, best))
            if "sharpness" in trajectory:
                curve = np.where(np.isfinite(trajectory.error("sharpness")), trajectory["sharpness"], np.nan)
        return {"final_loss_limit": np.array(losses), "sharpness_limit": curve}


@cache
def _keys(seed, width, depth, seeds):
    return pairs.keys(seed, width, seeds, depth)


def sharpness(problem: Problem) -> str:
    """The observable that meets the edge of stability."""
    return stored(OPTIMIZERS[problem.optimizer].sharpness)


def first_of(values):
    return values[:, 0] if values.ndim == 2 else values
