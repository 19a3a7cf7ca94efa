"""The optimisers by name: what both rooms ask of them.  What they do to weights is ``finite.training.descent``."""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any

from limits.exponents import algebra
from limits.rows import Table


@dataclass(frozen=True)
class Optimizer:
    """A row.

    size_rule       of ``limits.exponents.algebra.OPTIMIZERS``: whose exponents it takes
    edge            problem → the edge of stability, of ``preconditioned_sharpness``; not a number where there is none
    options         those of ``Problem`` that are its own: momentum and nesterov, or betas and epsilon
    preconditioned  whether it has a P, of ``limits.problem``, that is not 1
    has_limits      whether theories know the infinite width
    description     for the help of the commands
    """

    name: str
    size_rule: str
    edge: Callable[[Any], float] = lambda problem: nan
    options: tuple[str, ...] = ()
    preconditioned: bool = True
    has_limits: bool = False
    description: str = ""

    @property
    def forgets_scale(self) -> bool:
        """Whether a larger gradient makes no larger update."""
        return algebra.OPTIMIZERS[self.size_rule].forgets_scale()

    @property
    def sharpness(self) -> str:
        """The observable that meets the edge of stability."""
        return "preconditioned_sharpness" if self.preconditioned else "sharpness"


def _edge_of_heavy_ball(problem):
    """2(1+β)/η0 − λ, with Nesterov 2(1+β)/((1+2β)η0) − λ"""
    ahead = 1.0 + 2.0 * problem.momentum if problem.nesterov else 1.0
    return 2.0 * (1.0 + problem.momentum) / ahead / problem.learning_rate - problem.weight_decay


def _edge_of_adamw(problem):
    """(2/η0 − λ)(1+β1)/(1−β1): 38/η0 for β1 = 0.9 (Cohen et al. 2022)"""
    beta = problem.betas[0]
    return (2.0 / problem.learning_rate - problem.weight_decay) * (1.0 + beta) / (1.0 - beta)


def _edge_of_adam(problem):
    """With λ > 0 it descends on another function than the loss."""
    return nan if problem.weight_decay else _edge_of_adamw(problem)


ADAPTIVE = "betas", "epsilon"
OPTIMIZERS = Table("optimizer", (
    Optimizer("sgd", "sgd", _edge_of_heavy_ball, ("momentum", "nesterov"), preconditioned=False, has_limits=True,
              description="gradient descent, with momentum if asked for"),
    Optimizer("adam", "adam", _edge_of_adam, ADAPTIVE, description="β1 0.9, β2 0.999, ε in units of the gradient"),
    Optimizer("adamw", "adam", _edge_of_adamw, ADAPTIVE, description="the same, its weight decay apart from the gradient"),
    Optimizer("sign", "sign", preconditioned=False, description="the gradient's signs"),
    Optimizer("lion", "lion", options=("betas",), preconditioned=False, description="signs of two means of gradients"),
    Optimizer("lamb", "lamb", options=ADAPTIVE, preconditioned=False, description="adam's direction, as long as W"),
    Optimizer("adafactor", "adafactor", preconditioned=False,
              description="rms of rows and columns in place of adam's v, and steps in units of the weights' rms"),
    *(Optimizer(f"muon_{scale}", f"muon_{scale}", options=("momentum", "nesterov", *ADAPTIVE), preconditioned=False,
                description=f"{front.words}UVᵀ of the gradient UΣVᵀ (out, in: of the matrix); adam on biases and gains")
      for scale, front in algebra.MUON_SCALES.items()),
    Optimizer("shampoo", "shampoo", _edge_of_adamw, ADAPTIVE, description="(GGᵀ)^(-1/4) G (GᵀG)^(-1/4), of means"),
    Optimizer("soap", "soap", _edge_of_adamw, ADAPTIVE, description="adam in the eigenvectors of shampoo's matrices"),
))  # fmt: skip
