"""Trajectory: what was measured along training, at any width; and the registry of what can be measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from limits.rows import Table


@dataclass(frozen=True)
class Axis:
    """The second axis of an observable.

    labels    of so many numbers along it
    ranked    whether it is of eigenvalues, the largest first
    leads     whether the first one stands for all where one is shown, or compared
    """

    name: str
    labels: Callable[[int], Sequence[int | str]] = lambda count: range(1, count + 1)
    ranked: bool = False
    leads: bool = True


RANK = Axis("rank", ranked=True)
EDGE = Axis("edge", lambda count: ("upper", "lower")[:count], ranked=True)
NODE = Axis("node", leads=False)  # of a quadrature


@dataclass(frozen=True)
class Observable:
    """A measured quantity.

    axis        its second axis; None where it is one number
    in_limits   theories compute it too; others only networks have
    by_lanczos  networks have it to a tolerance
    """

    name: str
    symbol: str
    label: str
    definition: str
    axis: Axis | None = None
    in_limits: bool = True
    by_lanczos: bool = False

    @property
    def ranked(self) -> bool:
        """Whether its second axis is of eigenvalues."""
        return self.axis is not None and self.axis.ranked

    @property
    def stored(self) -> bool:
        """Whether a trajectory holds it: all but the sharpness, which is the first of others."""
        return stored(self.name) == self.name

    @property
    def leads(self) -> bool:
        """Whether it is one number, or its first stands for all."""
        return self.axis is None or self.axis.leads


RESCALED = ("H = √M ∇²L √M, M = γ² of SGD with one multiplier, by role its learning rate r, of Adam r/s, s the size of a "
            "gradient entry at step 0: the conventions of limits/problem.py")  # fmt: skip
OBSERVABLES = Table("observable", (
    Observable("loss", r"$\mathcal{L}$", "loss",
               "(1/P) Σ_p ℓ(f(x_p), y_p) over all samples; ℓ = |f − y|²/2 of mse, −Σ_c y_c log softmax(f)_c of cross_entropy"),
    Observable("sharpness", r"$\lambda_1(H)$", "sharpness", f"the largest eigenvalue of {RESCALED}"),
    Observable("hessian_eigenvalues", r"$\lambda_k(H)$", "Hessian eigenvalues",
               f"the top_k algebraically largest eigenvalues of {RESCALED}", axis=RANK, by_lanczos=True),
    Observable("hessian_min", r"$\lambda_{\min}(H)$", "smallest Hessian eigenvalue",
               f"the algebraically smallest eigenvalue of {RESCALED}", by_lanczos=True),
    Observable("gauss_newton_eigenvalues", r"$\lambda_k(G)$", "Gauss-Newton eigenvalues",
               "the top_k eigenvalues of G = (1/P) Σ_p √M Jᵀ(∂²ℓ/∂f²)J √M, J = ∂f(x_p)/∂θ, a part of "
               f"{RESCALED}", axis=RANK, by_lanczos=True),
    Observable("residual_eigenvalues", r"$\lambda_\pm(R)$", "edges of the residual part",
               f"the largest and the smallest eigenvalue of R = H − G, in this order; {RESCALED}", axis=EDGE,
               by_lanczos=True),
    Observable("ntk_eigenvalues", r"$\lambda_k(\Theta)/P$", "NTK eigenvalues",
               f"the top_k eigenvalues of J M Jᵀ/P, of size PC × PC over all samples and outputs; {RESCALED}", axis=RANK,
               by_lanczos=True),
    Observable("hessian_trace", r"$\mathrm{tr}\,H$", "Hessian trace", f"the trace of {RESCALED}"),
    Observable("directional_sharpness", r"$g^\top H g/|g|^2$", "directional sharpness",
               f"gᵀHg/|g|² along the full gradient g = √M ∇L; not a number where g = 0; {RESCALED}"),
    Observable("preconditioned_sharpness", r"$\lambda_1(P^{-1/2}HP^{-1/2})$", "preconditioned sharpness",
               "the largest eigenvalue of P^{-1/2} H P^{-1/2}, P = √v̂/s + ε of Adam before step t (not a number at t = 0), "
               f"P = 1 of SGD; {RESCALED}", in_limits=False, by_lanczos=True),
    Observable("gradient_noise", r"$\mathrm{tr}\,\Sigma$", "gradient noise",
               "(1/P) Σ_p |√M (∇ℓ_p − ∇L)|², ℓ_p the loss of one sample: the variance of a step's gradient is this over "
               f"the size of its batch; M as in {RESCALED}", in_limits=False),
    Observable("density_nodes", r"$\theta_j$", "nodes of the spectral density",
               "where a quadrature of the density of the eigenvalues of H has its masses: Σ_j w_j f(θ_j) stands for their "
               f"mean (1/n) Σ_i f(λ_i); of each random vector in turn, in ascending order; {RESCALED}",
               axis=NODE, in_limits=False),
    Observable("density_weights", r"$w_j$", "weights of the spectral density",
               "the masses w_j at density_nodes; those of each random vector have the same sum, all together 1",
               axis=NODE, in_limits=False),
))  # fmt: skip

IN_BULK = "it lies in the bulk of the Hessian, carried by a few neurons"  # what has no limit
OF_HESSIAN = "hessian_eigenvalues", "hessian_min", "residual_eigenvalues", "hessian_trace", "directional_sharpness"


def storable() -> tuple[str, ...]:
    """What a trajectory can hold."""
    return tuple(row.name for row in OBSERVABLES.values() if row.stored)


def stored(name: str) -> str:
    """The observable that holds it."""
    return "hessian_eigenvalues" if name == "sharpness" else name


def measured_by_default() -> tuple[str, ...]:
    """In every room, if not told otherwise."""
    return tuple(name for name in storable() if OBSERVABLES[name].in_limits)


def check_storable(names: Sequence[str]) -> None:
    """Raises ValueError for what no trajectory can hold."""
    if unknown := [name for name in names if name not in storable()]:
        raise ValueError(f"unknown observable {unknown[0]!r}; known: {', '.join(storable())}")


class NotKnown(KeyError):
    """An observable that a trajectory does not have.  (The text of a KeyError is the repr of its key.)"""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, eq=False)
class Trajectory(Mapping):
    """The observables at the measured steps of one network, or of the limit.

    ``trajectory[name]`` is a float array whose first axis is ``steps`` (index t is before step t); some observables have a
    second one (``Observable.axis``).  All curvature is rescaled (``limits.problem``).  After a divergence values are not
    finite.
    ``errors[name]``, of the same shape, bounds what the measuring itself got wrong: a Lanczos residual, a distance to a
    bound, or, where something is sampled, a standard error of which twice is enough in 95 % (``limits.repeats``); absent
    means exact to rounding, infinite that the theory leaves it open.
    ``products[name]`` counts, at each step, the matrix-vector products that the value took: shared by observables of one
    Lanczos run; absent where there were none.
    ``left_open[name]`` says why a theory does not know an observable, or not at which steps.

    >>> found = Trajectory(np.array([0, 10]), {"loss": np.array([0.5, 0.1])})
    >>> found.steps, found["loss"], list(found)
    (array([ 0, 10]), array([0.5, 0.1]), ['loss'])
    """

    steps: Int[np.ndarray, " T"]
    observables: dict[str, np.ndarray]
    errors: dict[str, np.ndarray] = field(default_factory=dict)
    products: dict[str, Int[np.ndarray, " T"]] = field(default_factory=dict)
    left_open: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name, values in self.observables.items():
            check_storable((name,))
            if values.ndim != 1 + bool(OBSERVABLES[name].axis) or len(values) != len(self.steps):
                raise ValueError(f"{name} of shape {values.shape} does not fit {len(self.steps)} measured steps")

    def __repr__(self) -> str:
        """The shapes of its observables."""
        shapes = ", ".join(f"{name} {values.shape}" for name, values in self.observables.items())
        return f"Trajectory({len(self.steps)} steps: {shapes})"

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises NotKnown, in one line, for an observable that it does not have."""
        if (values := self.observables.get(stored(name))) is None:
            raise NotKnown(self._not_known(name))
        return values[:, 0] if name == "sharpness" else values

    def error(self, name: str) -> np.ndarray:
        """The measuring error of an observable, zeros where it is exact; raises as its value does."""
        values = self[name]
        if (held := stored(name)) not in self.errors:
            return np.zeros_like(values)
        return self.errors[held][:, 0] if name == "sharpness" else self.errors[held]

    def _not_known(self, name) -> str:
        if name not in OBSERVABLES:
            return f"unknown observable {name!r}; known: {', '.join(OBSERVABLES)}"
        why = self.left_open.get(stored(name), "it was not measured")
        return f"no {name} here: {why}; there are {', '.join(self)}"

    def __iter__(self) -> Iterator[str]:
        yield from self.observables
        if "hessian_eigenvalues" in self.observables:
            yield "sharpness"

    def __len__(self) -> int:
        return len(tuple(iter(self)))

    @property
    def diverged(self) -> np.ndarray:
        """(T,) whether the loss has stopped being finite at or before a measured step."""
        return np.logical_or.accumulate(~np.isfinite(self.observables["loss"]))


def without_limit(trajectory: Trajectory, name: str) -> Bool[np.ndarray, " T"]:
    """The steps at which the (largest) value of an observable has an infinite error, and so no limit."""
    return np.isinf(trajectory.error(name).reshape(len(trajectory.steps), -1)[:, 0])


def hessian_left_open(why: str) -> dict[str, str]:
    """``left_open`` of a theory of the loss and the NTK."""
    return dict.fromkeys(OF_HESSIAN, why)
