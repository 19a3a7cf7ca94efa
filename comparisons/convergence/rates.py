"""From measured trajectories to rates: one power law per observable, eigenvalue, step and kind, next to the predicted one.

Two kinds: ``fluctuation`` (root mean square over seeds, ~N^{-1/2}) and ``bias`` (mean over seeds, ~N^{-1}).  A mean over 32
seeds is mostly the fluctuation's own error; where the first-order deviation of each network is known (μP, from its
initial Gram matrix; its mean over networks is exactly zero) it is subtracted first, as a control variate.  Eigenvalues that
are one in the limit split, and their bias is ~N^{-1/2}, which is then the predicted exponent.
"""

from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr

from comparisons.statistics.deviations import components, deviations, limit_component, reference_of, variable
from comparisons.statistics.power_law import FEWEST_WIDTHS, PowerLaw, fit, refused
from limits.law import Law, Prediction
from limits.spectra import DEGENERATE

KINDS = ("fluctuation", "bias")
SECOND_ORDER = 3.0  # a mean square is std²/N + E(½o'')²/N², the latter at most so often bias² = (½E o'')², if o'' has one sign


@dataclass(frozen=True)
class Rate:
    """error ≈ prefactor · N^exponent at one step.

    rank                    eigenvalue number from 1, or the edge ("upper", "lower"), None for scalars
    exponent, interval      free fit and its 95 % interval; None where refused, ``status`` says why
    prefactor               with the exponent held at the predicted one (−1/2 or −1): compare with ``predicted_prefactor``;
                            its interval reaches further up than down, as far as the tail that few seeds do not show
    fitted_prefactor        of the free fit: the line fitted_prefactor · N^exponent
    predicted_prefactor     None where nothing is predicted, nor of the bias of an eigenvalue that at the narrowest width would
                            be farther than the next of those measured is: so near, they are not repelled as it expects
    """

    observable: str
    rank: int | str | None
    step: int
    kind: str
    reference: str
    exponent: float
    interval: tuple[float, float]
    prefactor: float
    prefactor_interval: tuple[float, float]
    fitted_prefactor: float
    predicted_exponent: float | None
    predicted_prefactor: float | None
    status: str

    def record(self) -> dict:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict) -> "Rate":
        """What was recorded: JSON has neither tuples nor numbers that are not finite."""
        numbers = {name: np.nan if record[name] is None else float(record[name])
                   for name in ("exponent", "prefactor", "fitted_prefactor")}  # fmt: skip
        intervals = {name: tuple(np.nan if end is None else float(end) for end in record[name])
                     for name in ("interval", "prefactor_interval")}  # fmt: skip
        return cls(**record | numbers | intervals)


def noise_floor(dataset: xr.Dataset, name: str, selection: dict) -> xr.DataArray:
    """(width, step): what measuring, rounding and the limit's own error leave undecided, root mean square over seeds.

    Rounding: curvature is known to a few ε of the operator's norm, a loss ½r² to a few ε of r times the first r.
    """
    stored = variable(name)
    epsilon = 10 * dataset.attrs["epsilon"]
    if name == "loss":
        loss = dataset["loss"]
        rounding = epsilon * np.sqrt(loss * loss.isel(step=0, drop=True))
    else:
        rounding = epsilon * abs(dataset["hessian_eigenvalues"].sel(rank=1, drop=True))
    measured, of_limit = (dataset[error].sel(selection) if error in dataset else 0.0
                          for error in (f"{stored}_error", f"{stored}_error_limit"))  # fmt: skip
    return np.sqrt((rounding**2 + measured**2 + of_limit**2).mean("seed")).transpose("width", "step").reset_coords(drop=True)


def measure_rates(
    dataset: xr.Dataset, reference: str, prediction: Prediction | None, unstable_after: int | None
) -> list[Rate]:
    """Every rate of a comparison.  ``unstable_after``: the step at which the limit crosses the edge of stability, or None."""
    rates = []
    for name, rank, selection in components(dataset):
        floor, used = noise_floor(dataset, name, selection), reference_of(dataset, name, reference)
        distances = _distances(dataset, name, selection)
        for kind in KINDS:
            errors = deviations(dataset, name, selection, reference, kind)
            for index, step in enumerate(int(s) for s in dataset.step.values):
                law = _law(prediction, name, selection, index)
                predicted = _predicted(law, kind, distances[index] * float(dataset.width.min()))
                unstable = unstable_after is not None and step > unstable_after
                fits = _fits(errors.isel(step=index), floor.isel(step=index), kind, law, predicted[0], unstable)
                rates.append(_rate((name, rank, step, kind, used), fits, predicted))
    return rates


def _fits(errors, floor, kind, law, held, unstable) -> tuple[PowerLaw, PowerLaw]:
    """The free fit, and the one with the exponent held."""
    values = errors.values
    if np.isfinite(values).all() and unstable:
        return (refused("past the edge of stability"),) * 2
    if len(errors.width) < FEWEST_WIDTHS:
        return (refused("too few widths"),) * 2
    options = {"kind": kind, "noise_floor": floor.sel(width=errors.width).values}
    if kind == "fluctuation":
        options["next_order"] = allowance(law, float(errors.width.min()))
    free = fit(errors.width.values, values, **options)
    if free.status == "no power law":
        return free, free  # has no prefactor either
    return free, fit(errors.width.values, values, exponent=held, **options)


def allowance(law: Law | None, narrowest: float) -> bool | float:
    """The next order that a theory of one number allows its fluctuation: ``next_order`` of ``power_law.fit``."""
    ratio = law.bias / law.std if law is not None and law.std > 0 else np.nan
    squared = ratio * ratio  # of a divergence a power may raise OverflowError, a product is infinite
    return SECOND_ORDER * squared / narrowest if np.isfinite(squared) else True


def _law(prediction, name, selection, index) -> Law | None:
    """Of one component at one measured step; None where nothing is predicted."""
    if prediction is None or variable(name) not in prediction:
        return None
    return Law(*(_component(values[index], selection) for values in prediction[variable(name)]))


def _distances(dataset, name, selection) -> np.ndarray:
    """(T,): from an eigenvalue's limit to the next that is measured, but for those that are one with it; inf without one."""
    limits = limit_component(dataset, name, {})
    if limits is None or "rank" not in selection:
        return np.full(dataset.sizes["step"], np.inf)
    limit = limits.sel(selection)
    distances = abs(limits - limit)
    return distances.where(distances > DEGENERATE * abs(limit)).min("rank").fillna(np.inf).values


def _predicted(law, kind, farthest) -> tuple[float, float]:
    """(exponent, prefactor ≥ 0), the prefactor NaN where nothing is predicted, as of a bias above ``farthest``."""
    usual = -0.5 if kind == "fluctuation" else -1.0
    if law is None:
        return usual, np.nan
    if kind == "bias" and law.shift != 0:
        return -0.5, abs(law.shift)
    if kind == "bias" and abs(law.bias) > farthest:
        return usual, np.nan
    return usual, law.std if kind == "fluctuation" else abs(law.bias)


def _component(values, selection):
    if "edge" in selection:
        return float(values[0 if selection["edge"] == "upper" else 1])
    return float(values[selection["rank"] - 1] if "rank" in selection else values)


def _rate(label, laws, predicted) -> Rate:
    free, held = laws
    known = predicted if np.isfinite(predicted[1]) else (predicted[0] if label[-1] == "theory" else None, None)
    return Rate(*label, free.exponent, free.interval, held.prefactor, held.prefactor_interval, free.prefactor,
                *known, free.status)  # fmt: skip
