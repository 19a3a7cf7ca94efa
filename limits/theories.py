"""The front door: which theory knows the limit of a problem.

    solve(problem) -> Trajectory        predict(problem) -> Prediction, or None where the rates have no theory yet

The first row of ``THEORIES`` that is meant is asked.  Theories have what they refuse in common from here.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

import numpy as np
from jaxtyping import Float

from limits.exponents.algebra import Scaling
from limits.exponents.parametrization import output_exponent
from limits.law import Prediction
from limits.losses import LOSSES
from limits.machine import RATE, physical_memory, require_memory, two_digits
from limits.models import layers_of
from limits.optimizers import OPTIMIZERS
from limits.problem import Problem, given_outputs
from limits.rows import Table
from limits.trajectory import IN_BULK, OBSERVABLES, Trajectory, storable, without_limit

# As ``work`` and the usual machine have it.  A command draws a limit unasked, so that is minutes, never a job of hours; who
# waits longer asks the theory itself, which knows no such bound.
LONGEST = 60.0  # minutes
UNITS = ("days", 1440.0), ("hours", 60.0), ("minutes", 1.0)


@dataclass(frozen=True)
class Theory:
    """A row.  Its modules are imported where they are asked.

    means     problem → whether this theory is asked, if none before it is.  What it refuses, nobody else is asked
    home      the module with ``refuses(problem)``, the line that says why it does not know the limit, None where it does;
              ``solve(problem)``; and, if it knows limits whose f(0) is random, ``loss_law(problem)`` and
              ``solve(problem, initial_outputs=…)``
    law       the module with ``predict(problem)``, and where that may take minutes ``work_of_laws(problem)``; "" where there is
              none
    has_law   problem → whether that has a law of it
    dear      whether it may take minutes, most of them the Hessian's: then home has ``solve(problem, hessian=…)``, which may
              spare them, ``work(problem, hessian=…)``, and ``insist_on_room(problem, hessian=…)``, which raises MemoryError
    networks, has     for the READMEs: whose limit it knows, and what of it
    """

    name: str
    means: Callable[[Problem], bool]
    home: str
    law: str = ""
    has_law: Callable[[Problem], bool] = lambda problem: True
    dear: bool = False
    networks: str = ""
    has: str = ""


def _features_move(problem):
    return output_exponent(problem.scaling()) == 0.5 and problem.trained == "all"


def _linear(problem):
    """Whether its network, trained on MSE, is linear in its inputs and plain."""
    model = problem.network
    plain = (model.family, model.architecture, problem.trained) == ("perceptron", "plain", "all")
    return plain and LOSSES[problem.loss].quadratic and model.nonlinearity.linear


def _one_layer(problem):
    model = problem.network
    return (model.architecture, model.family, model.depth) == ("plain", "perceptron", 1)


THEORIES = Table("theory", (
    # exact, at every width, in all powers of the width that have a limit
    Theory("linear2", lambda problem: _one_layer(problem) and _linear(problem), "limits.two_layer.linear",
           "limits.two_layer.linear_law", lambda problem: output_exponent(problem.scaling()) in (0.0, 0.5),
           networks="`linear2`, from NTP to μP, every width",
           has="everything, exact, its whole Hessian too; laws in μP and NTP"),
    # kernel gradient descent, of all networks
    Theory("ntk", lambda problem: not _features_move(problem), "limits.kernel.ntk",
           networks="all with an analytic kernel, NTP and up to μP, or of random features",
           has="all observables, exact, a law over f(0); the Hessian's trace only where its residual part has none"),
    # in μP's powers of the width: exact
    Theory("deep_linear", _linear, "limits.deep.linear", "limits.deep.linear", dear=True,
           networks="`linear3`, `linear4`, …, μP",
           has="loss, kernels and the Hessian (`limits/deep/curvature.py`, its bulk in `limits/deep/bulk_edge.py`), exact, one "
               "sweep forward in time; laws"),
    # particles
    Theory("meanfield", _one_layer, "limits.two_layer.meanfield", "limits.two_layer.meanfield_law",
           dear=True,
           networks="`mlp2`, any activation and loss, μP",
           has="everything that has a limit, from clouds of particles, sharpness by a secular equation; laws without a kink"),
    # sampled, images
    Theory("conv", lambda problem: layers_of(problem.model).pools, "limits.deep.conv", dear=True,
           networks="`conv`, `convnet`, `resconvnet`, max or average pooling, μP and its powers of the depth",
           has="loss, kernels and the Hessian's outliers, sampled, with errors; of as many samples as an hour is enough for"),
    # sampled; exact for linear activations
    Theory("dmft", lambda problem: True, "limits.deep.dmft", "limits.deep.dmft", dear=True,
           networks="`mlp3`, …, `resmlp`, μP and its powers of the depth",
           has="loss, kernels and the Hessian's outliers, sampled, with errors; linear ones exact, with laws; L → ∞ in "
               "`limits/deep/infinite_depth.py`"),
))  # fmt: skip


def theory(problem: Problem) -> ModuleType:
    """The module that knows the limit.  Raises ValueError, in one line, where none does."""
    return import_module(_row(problem).home)


def _row(problem):
    insist(unknown_to_all(problem))
    row = next(row for row in THEORIES.values() if row.means(problem))
    home = import_module(row.home)
    insist(home.refuses(problem))
    if outputs_are_random(problem) and not hasattr(home, "loss_law"):
        raise ValueError(f"{row.name} knows no limit whose f(0) stays random, as in {problem.scaling().name}")
    return row


def outputs_are_random(problem: Problem) -> bool:
    """Whether f(0) stays random in the limit: in NTP."""
    return output_exponent(problem.scaling()) == 0


def solve(
    problem: Problem, *, initial_outputs: Float[np.ndarray, "P C"] | None = None, hessian: bool = True
) -> Trajectory:
    """The limit, whatever the model.

    In NTP, where f(0) stays random, the loss is the mean over initialisations; with ``initial_outputs``, f(0), it is that
    of networks which start there.  Without ``hessian`` its observables are left open where they take minutes.  Raises
    ValueError, in one line, where no limit is known, f(0) must vanish, or it takes more than ``LONGEST``; MemoryError where
    it does not fit this machine; both before anything is computed.

    >>> problem = Problem([[1.0, 0.0], [0.0, 2.0]], [1.0, -1.0], learning_rate=0.2, num_steps=8, measure_every=4)
    >>> solve(problem)["loss"].round(4), solve(problem)["sharpness"].round(3)
    (array([0.5   , 0.1027, 0.0333]), array([2.253, 2.392, 2.683]))
    """
    row = _row(problem)
    home = import_module(row.home)
    insist_on_room(problem, hessian=hessian)
    if initial_outputs is not None:
        return home.solve(problem, initial_outputs=given_outputs(problem, initial_outputs))
    limit = home.solve(problem, hessian=hessian) if row.dear else home.solve(problem)
    limit = replace(limit, left_open=_left_open(row, limit))
    if not outputs_are_random(problem):
        return limit
    return replace(limit, observables=limit.observables | {"loss": home.loss_law(problem)[0]})


def _left_open(row, limit):
    """Of each observable that the limit does not have, or not at some steps, why."""
    why = {name: f"{row.name} does not have it" if OBSERVABLES[name].in_limits else "no theory has it" for name in storable()}
    absent = {name: line for name, line in (why | limit.left_open).items() if name not in limit.observables}
    steps = {name: limit.steps[without_limit(limit, name)].tolist() for name in limit.observables}
    return absent | {name: f"{IN_BULK} at step {', '.join(map(str, at))}" for name, at in steps.items() if at}


def work(problem: Problem, *, hessian: bool = True) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``solve``, in float64, where that takes minutes; else (0, 0)."""
    row = _row(problem)
    return import_module(row.home).work(problem, hessian=hessian) if row.dear else (0.0, 0.0)


def insist_on_room(problem: Problem, *, hessian: bool = True, times: int = 1) -> None:
    """Raises what ``solve`` would, as far as that is known before it begins: ValueError where there is no limit, or so many
    like it take longer than ``LONGEST``, MemoryError where there is not enough memory."""
    row = _row(problem)
    if row.dear:
        insist(_too_long(row, problem, hessian, times))
        import_module(row.home).insist_on_room(problem, hessian=hessian)


def _too_long(row, problem, hessian, times) -> str | None:
    """What it would take, and of how many samples it is waited for."""
    minutes, gibibytes = _takes(row, problem, hessian, times)
    if minutes <= LONGEST:
        return None
    subject = "the limit" if times == 1 else f"{times} limits"
    counted = "1 sample" if problem.num_samples == 1 else f"{problem.num_samples} samples"
    subject += f" of {problem.model} in {problem.scaling().name} on {counted}"
    enough = _enough(row, problem, hessian, times) or _waiting(row, problem, hessian)
    return (f"{subject} would take about {_lasting(minutes)} and {two_digits(gibibytes)} GiB, and at most {_lasting(LONGEST)}"
            f" are waited for: {enough}")  # fmt: skip


def _waiting(row, problem, hessian) -> str:
    """What the theory's own ``solve`` makes of it, which counts no minutes."""
    try:
        import_module(row.home).insist_on_room(problem, hessian=hessian)
    except (MemoryError, ValueError) as refusal:
        return f"{row.home}.solve refuses it too, {refusal}"
    return f"{row.home}.solve waits longer"


def _takes(row, problem, hessian, times):
    """(minutes, GiB)"""
    multiplications, numbers = import_module(row.home).work(problem, hessian=hessian)
    return times * multiplications / RATE / 60, 8 * numbers / 2**30


def _enough(row, problem, hessian, times) -> str | None:
    """The largest power of two of samples that would not be refused."""
    for power in reversed(range((problem.num_samples - 1).bit_length())):
        first = slice(2**power)
        fewer = replace(problem, inputs=problem.inputs[first], targets=problem.targets[first], batches=None)
        minutes, gibibytes = _takes(row, fewer, hessian, times)
        if minutes <= LONGEST and gibibytes * 2**30 <= physical_memory():
            return f"on {2**power} it takes {_lasting(minutes)}"
    return None


def _lasting(minutes):
    unit, length = next(row for row in UNITS if minutes >= 2 * row[1] or row == UNITS[-1])
    return f"{two_digits(minutes / length)} {unit}"


def predict(problem: Problem) -> Prediction | None:
    """How networks of width N depart from the limit, where that is known: see ``limits.two_layer.linear_law``.

    The spread over seeds is std / √N, the mean's distance from the limit bias / N; where eigenvalues that are one in the limit
    split, shift / √N.  None where no law is known.  Raises ValueError, in one line, where that takes more than ``LONGEST``;
    MemoryError where it does not fit this machine; both before anything is computed.

    >>> problem = Problem([[1.0, 0.0], [0.0, 2.0]], [1.0, -1.0], learning_rate=0.2, num_steps=8, measure_every=4)
    >>> predict(problem)["sharpness"].std.round(3), predict(problem)["sharpness"].bias.round(3)
    (array([2.127, 2.089, 1.724]), array([ 1.017, -1.633, -1.256]))
    """
    insist_on_room_for_laws(problem)
    row = _row(problem)
    return import_module(row.law).predict(problem) if row.law and row.has_law(problem) else None


def insist_on_room_for_laws(problem: Problem) -> None:
    """Raises what ``predict`` would, as far as that is known before it begins."""
    row = _row(problem)
    law = import_module(row.law) if row.law else None
    if not hasattr(law, "work_of_laws"):
        return
    multiplications, numbers = law.work_of_laws(problem)
    minutes = multiplications / RATE / 60
    lasting, advice = _lasting(minutes), f"with hessian=False {row.law}.predict takes less"
    require_memory(numbers, f"the laws of {problem.model} would take about {lasting} and", advice)
    if minutes > LONGEST:
        subject = f"the laws of {problem.model} in {problem.scaling().name} would take about {lasting} and"
        gibibytes = two_digits(8 * numbers / 2**30)
        raise ValueError(f"{subject} {gibibytes} GiB, and at most {_lasting(LONGEST)} are waited for: {advice}")


# Refusals that several theories share: the line, or None where there is nothing to say ------------------------------------


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


def other_layers(problem: Problem, families: Container[str], layers: str) -> str | None:
    """Why a theory of those families, with one of the layers in a residual branch, does not know this network."""
    if problem.network.family not in families:
        return f"no limit is known for {problem.model} in {problem.scaling().name}"
    if problem.network.block_size > 1:
        return f"no limit of blocks of {problem.network.block_size} {layers} is known: block_size 1 only"
    return None


def insist_on_outputs(problem: Problem) -> None:
    """Raises ValueError where f(0) vanishes in the limit."""
    if not outputs_are_random(problem):
        raise ValueError(f"the limit of {problem.scaling().name} does not depend on f(0): its loss has no spread")
