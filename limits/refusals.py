"""Why a theory does not know a limit: the lines that several of them say.  None where there is nothing to say."""

from limits.exponents.algebra import Scaling
from limits.exponents.parametrization import output_exponent
from limits.optimizers import OPTIMIZERS
from limits.problem import Problem


def insist(refusal: str | None) -> None:
    """Raises ValueError with that line, where there is one."""
    if refusal:
        raise ValueError(refusal)


def unknown_to_all(problem: Problem) -> str | None:
    """Other optimisers, other images at every step, and powers of the width that have no limit."""
    if not OPTIMIZERS[problem.optimizer].has_limits:
        known = " or ".join(row.name for row in OPTIMIZERS.values() if row.has_limits)
        return f"no limit is known with {problem.optimizer}: only of networks trained by {known}"
    if problem.augment:
        return "no limit is known with augmentation"
    try:
        output_exponent(problem.scaling())
    except ValueError as refusal:
        return str(refusal)
    return None


def other_powers(scaling: Scaling) -> str | None:
    """Than those of μP."""
    if output_exponent(scaling) == 0.5:
        return None
    return f"{scaling.name} has another limit: this one is of μP's powers of the width, output exponent 1/2"


def features_stay(problem: Problem) -> str | None:
    """Where not all is trained."""
    return None if problem.trained == "all" else (
        f"only the {problem.trained} is trained: features stay, and the limit is that of ntk")  # fmt: skip
