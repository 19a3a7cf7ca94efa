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

Observed = TypeVar("Observed")  # arrays by name


class Law(NamedTuple):
    """Of one observable: what its deviation from the limit is at width N, over seeds.

        root mean square   N^{-1/2} · std
        mean               N^{-1/2} · shift + N^{-1} · bias        shift is 0 in μP, and in NTP but for the residual part

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

        Its mean over networks is zero, which makes it the control variate of a measured bias.  μP only (else ValueError).
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


def law_of_draws(
    squares: Float[np.ndarray, "n T ..."], second: Float[np.ndarray, "m T ..."], known: Bool[np.ndarray, "..."] | bool = True
) -> Law:
    """From independent estimates of E o'² and of o'', over which the errors are standard errors; no shift.

    ``known``  (T, …), where there is a law; what broadcasts to that
    """
    with np.errstate(all="ignore"):  # after a divergence
        std = np.sqrt(squares.mean(0))
        std_error = squares.std(0, ddof=1) / np.sqrt(len(squares)) / (2 * np.where(std > 0, std, 1.0))
        bias, bias_error = second.mean(0) / 2, second.std(0, ddof=1) / np.sqrt(len(second)) / 2
    shift = np.zeros_like(std)
    return Law(*(np.where(known, values, np.nan) for values in (std, bias, shift, std_error, bias_error, shift)))
