"""The networks of a sweep that are the user's own, each a cell of its own: of every width, learning rate and seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Int

from comparisons import estimate, pairs
from comparisons.cells import Report, Store, Values, Work
from comparisons.options import OwnOptions, settings
from comparisons.transfer.networks import EDGE, Cell, first_of
from finite.training.own import DEFINITIONS, Recipe, check_start, has_adam, program_of, train
from limits.trajectory import OBSERVABLES, Observable


@dataclass(frozen=True)
class OwnNetworks(Work):
    """What all cells share: to a sweep what ``comparisons.transfer.networks.Networks`` is, but of the one parametrization that
    the user's network has, of no depth that is known, without a limit or an edge of stability.

    sharpness    the observable that is followed: preconditioned where there is an Adam
    """

    recipe: Recipe
    rates: tuple[float, ...]
    seed: int
    seeds: int
    samples: int
    sharpness: str

    @property
    def steps(self) -> Int[np.ndarray, " T"]:
        return self.recipe.steps

    @property
    def depths(self) -> list[None]:
        return [None]

    def described(self, options: OwnOptions) -> str:
        return options.described_own(self.recipe.num_samples)

    def announce(self, params: Sequence[str]) -> None:
        """Nothing: no exponents are known."""

    @property
    def no_limits(self) -> dict:
        return {}

    @property
    def of_loss(self) -> dict[str, str]:
        loss = self.recipe.read().loss
        rounding = {"precision": "float32", "loss": loss} if isinstance(loss, str) else {}
        return {"definition": f"{loss if rounding else 'their loss'} of the whole batch", **rounding}

    def edge(self, *cell) -> float:
        return nan

    def of_sharpness(self, edges: Sequence[float]) -> tuple[Observable, str, str]:
        name = "sharpness" if self.sharpness == "hessian_eigenvalues" else self.sharpness
        return OBSERVABLES[name], DEFINITIONS[self.sharpness], EDGE

    def alike(self, cell: Cell) -> tuple:
        return cell.width, cell.sharpness

    def observables(self, cell: Cell) -> tuple[str, ...]:
        return ("loss", self.sharpness) if cell.sharpness else ("loss",)

    def networks(self, cells: Sequence[Cell]) -> list[estimate.Own]:
        first = cells[0]
        return [estimate.Own(self.recipe, first.width, len(cells), self.observables(first), self.samples, len(cells))]

    def compute(self, cells: Sequence[Cell], store: Store, report: Report) -> list[Values]:
        """"loss" (measured steps,), and where it is followed "sharpness" and "sharpness_error"."""
        first = cells[0]
        keys = pairs.keys(self.seed, first.width, self.seeds)[np.array([cell.seed for cell in cells])]
        trained = train(self.recipe, first.width, keys, [cell.learning_rate for cell in cells],
                        observables=self.observables(first), curvature_samples=self.samples, progress=report)  # fmt: skip
        return [{"loss": trajectory["loss"]} | ({"sharpness": first_of(trajectory[self.sharpness]),
                                                 "sharpness_error": first_of(trajectory.error(self.sharpness))}
                                                if first.sharpness else {}) for trajectory in trained]  # fmt: skip


def own_networks(options: OwnOptions) -> tuple[OwnNetworks, dict]:
    """And the configuration of their run.  Raises ValueError, in one line, for what their files do not say."""
    o, recipe = options, options.recipe()
    programs = [program_of(recipe, width) for width in sorted(o.widths)]  # raises here what it cannot be
    check_start(recipe, min(o.widths))
    followed = "preconditioned_sharpness" if has_adam(programs[0]) else "hessian_eigenvalues"
    networks = OwnNetworks(recipe, tuple(sorted(o.learning_rates)), o.seed, o.seeds, o.curvature_samples, followed)
    return networks, settings(o) | {"own_sha256": recipe.digest()}
