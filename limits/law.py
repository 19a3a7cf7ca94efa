"""How networks of width N depart from the limit: the law of each observable, and how one is had from derivatives.

An observable of a network is a smooth function o(ε, ξ) of ε = N^{-1/2} and of the Gaussians ξ that it starts from, and

    o_N − o_∞ = ε o'[ξ] + ½ε² o''[ξ, ξ] + …          std² = E o'²,    bias = ½ E o''
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.linalg import block_diag

from limits.machine import eigh
from limits.spectra import DEGENERATE

Observed = TypeVar("Observed")  # arrays by name


class Law(NamedTuple):
    """Of one observable: what its deviation from the limit is at width N, over seeds.

        root mean square   N^{-1/2} · std
        mean               N^{-1/2} · shift + N^{-1} · bias

    The shift is 0 but for eigenvalues that are one in the limit: they split, and repel each other, at order N^{-1/2}.

    Arrays like the observable's, first axis the measured steps; NaN where there is no such law.  The ``…_error`` are the
    standard errors of the prediction itself, 0 where it is exact.
    """

    std: Float[np.ndarray, "T ..."]
    bias: Float[np.ndarray, "T ..."]
    shift: Float[np.ndarray, "T ..."]
    std_error: Float[np.ndarray, "T ..."]
    bias_error: Float[np.ndarray, "T ..."]
    shift_error: Float[np.ndarray, "T ..."]


@dataclass(frozen=True, eq=False)
class Prediction(Mapping):
    """``prediction[observable]`` is its ``Law``.

    sensitivity   ∂o/∂S_0 of every observable, symmetrised, where o is a function of the Gram matrix: linear2 in μP
    basis         in which it is: that of ``limits.coordinates``
    """

    laws: dict[str, Law]
    basis: Float[np.ndarray, "D r"] | None = None
    sensitivity: dict[str, Float[np.ndarray, "T ... n n"]] | None = None

    def __getitem__(self, name: str) -> Law:
        if name == "sharpness":
            return Law(*(values[:, 0] for values in self.laws["hessian_eigenvalues"]))
        return self.laws[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.laws
        if "hessian_eigenvalues" in self.laws:
            yield "sharpness"

    def __len__(self) -> int:
        return len(tuple(iter(self)))

    def first_order(self, gram: Float[np.ndarray, "m m"]) -> dict[str, np.ndarray]:
        """N^{-1/2} o'[Ξ] of the network that starts at this Gram matrix (D+C, D+C): its deviation but for O(1/N).

        Its mean over networks is zero, which makes it the control variate of a measured bias; of eigenvalues that are one in
        the limit it is no more than that.  μP only (else ValueError).
        """
        if self.sensitivity is None:
            raise ValueError("the first-order deviation is linear in the Gram matrix in μP only")
        outputs = len(gram) - len(self.basis)
        turn = block_diag(self.basis, np.eye(outputs))
        deviation = turn.T @ gram @ turn - np.eye(turn.shape[1])
        response = {name: np.sum(g * deviation, axis=(-2, -1)) for name, g in self.sensitivity.items()}
        return response | {"sharpness": response["hessian_eigenvalues"][:, 0]}


def second_order(curve: Callable[[Array], Observed]) -> tuple[Observed, Observed]:
    """(o', o'') at h = 0 of a function of one number; a piece for compiled code."""
    zero, unit = jnp.zeros(()), jnp.ones(())
    return jax.jvp(lambda h: jax.jvp(curve, (h,), (unit,))[1], (zero,), (unit,))


def branches(moved: Callable[[Array, Array, Array], Array], vectors: Array, inverse: Array) -> tuple[Array, Array]:
    """(λ', λ'') at h = 0 of the g eigenvalues that are one λ there, in the order that they have at h > 0, the largest first.

    They are where M(λ, h) is singular (of a matrix A(h): A(h) − λ), and are smooth in h, each by itself (Rellich 1937):
    M = M_0 + h(M_h + λ' M_λ) + … on the null vectors V of M_0 gives λ' and which of their combinations belongs to it.

    moved    (h, ν, v) → M(λ + hν, h) v of vectors in columns
    vectors  (m, g) V, with −VᵀM_λV = 1;   inverse  (m, m) (−M_0)⁺
    """
    zero = jnp.zeros(())
    change = jax.jvp(lambda h: moved(h, zero, vectors), (zero,), (jnp.ones(()),))[1]
    first, turn = (ascending[..., ::-1] for ascending in eigh(vectors.T @ change))

    def second(rate, vector):
        by_one, by_two = second_order(lambda h: moved(h, rate, vector[:, None])[:, 0])
        return vector @ by_two + 2 * by_one @ inverse @ by_one

    return first, jax.vmap(second, (0, 1))(first, vectors @ turn)


class Group(NamedTuple):
    """Eigenvalues that are one in the limit: at which measured step, the first rank, how many of the k largest are in it; λ,
    and what ``branches`` needs."""

    step: int
    first: int
    shown: int
    value: float
    vectors: Float[Array, "m g"]
    inverse: Float[Array, "m m"]

    @property
    def ranks(self) -> slice:
        return slice(self.first, self.first + self.shown)


def groups(
    values: Float[np.ndarray, "T k"], simple: Bool[np.ndarray, "T k"], singular: Callable[[int, float], tuple[Array, Array]]
) -> Iterator[Group]:
    """Of the k largest eigenvalues that are not simple; (step, λ) → M(λ), which is singular there, and its slope M_λ."""
    for t, of_step in enumerate(values):
        end = 0
        for i in np.flatnonzero(~simple[t] & (of_step > DEGENERATE * of_step[0])):
            if i >= end:
                group = _group(t, of_step[i], len(of_step), *singular(t, of_step[i]))
                yield group
                end = group.first + group.vectors.shape[1]


def _group(step, value, k, matrix, slope) -> Group:
    distances, vectors = (ascending[..., ::-1] for ascending in np.linalg.eigh(matrix))
    together = np.abs(distances) <= DEGENERATE * value * np.linalg.norm(slope, 2)
    first, own, rest = int(np.argmax(together)), vectors[:, together], vectors[:, ~together]
    own = np.linalg.solve(np.linalg.cholesky(-own.T @ slope @ own), own.T).T
    inverse = (rest / -distances[~together]) @ rest.T
    return Group(step, first, min(first + own.shape[1], k) - first, value, own, inverse)


def law_of_draws(
    squares: Float[np.ndarray, "n T ..."],
    second: Float[np.ndarray, "m T ..."],
    known: Bool[np.ndarray, "..."] | bool = True,
    shifts: Float[np.ndarray, "n T ..."] | None = None,
) -> Law:
    """From independent estimates of E o'² and of o'', over which the errors are standard errors.

    ``known``   (T, …), where there is a law; what broadcasts to that
    ``shifts``  of E o', where it need not be zero: what is less than 5 standard errors counts as zero
    """
    count = np.sqrt(len(squares))
    with np.errstate(all="ignore"):  # after a divergence
        std = np.sqrt(squares.mean(0))
        std_error = squares.std(0, ddof=1) / count / (2 * np.where(std > 0, std, 1.0))
        bias, bias_error = second.mean(0) / 2, second.std(0, ddof=1) / np.sqrt(len(second)) / 2
        shift = shift_error = np.zeros_like(std)
        if shifts is not None:
            shift, shift_error = shifts.mean(0), shifts.std(0, ddof=1) / count
            shift = np.where(np.abs(shift) > 5 * shift_error, shift, 0.0)  # most means vanish by symmetry
    return Law(*(np.where(known, values, np.nan) for values in (std, bias, shift, std_error, bias_error, shift_error)))
