"""What a job takes, said before it is begun: how many cells, about how many minutes, how much memory.

Counted is one forward pass of one sample: its matrix products (and convolutions), and the numbers that all else makes.  In
units of it a gradient takes 3 and a product with the Hessian, linearised once, 6.  What the device does in a second is
measured at a matrix product.  Minutes are of the networks, of limits that are sampled, and of what is compiled, for them and
for each other part of a theory, to a factor of about three.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf, prod

import jax
import jax.numpy as jnp

from finite.curvature.observers import DENSE_NTK_ROWS, kernels, products, program_of, size
from finite.curvature.own import MATVECS
from finite.networks import Architecture
from finite.networks.build import build
from finite.numerics import USUAL
from finite.training.own import KEPT, Recipe
from finite.training.own import program_of as program_of_own
from finite.training.side_by_side import HOST_MEMORY, footprint
from limits import theories
from limits.machine import RATE, physical_memory, two_digits
from limits.problem import Problem
from limits.trajectory import storable

GRADIENT, PRODUCT = 3, 6  # forward passes
PRODUCTS = 30  # of a Lanczos run, most of which start from their last eigenvectors
COMPILING = 5.0  # seconds for what one size needs, or a cell of a theory's
OVERHEAD = 1e-4  # seconds of a gradient or a product, however small
NUMBERS = 1 / 32  # made per second by what is no matrix product, over the additions and multiplications of one that is
TRIALS = 20  # products of a measurement, about 10 ms each
LONG, LARGE = 600.0, 0.5  # seconds, and part of the memory, from which a job says so


@dataclass(frozen=True)
class Networks:
    """Networks of one size: so many, in so many cells; ``samples`` have the curvature, all if not told."""

    problem: Problem
    width: int
    networks: int
    observables: Sequence[str] = ("loss",)
    samples: int | None = None
    cells: int = 1

    @property
    def depth(self) -> int:
        return self.problem.network.depth


@dataclass(frozen=True)
class Own:
    """Networks of the user's, of one width, alike."""

    recipe: Recipe
    width: int
    networks: int
    observables: Sequence[str] = ("loss",)
    samples: int | None = None
    cells: int = 1
    depth: None = None


@dataclass(frozen=True)
class Limit:
    """One, as a theory knows it, with or without its Hessian: what of it is worth saying beside networks."""

    problem: Problem
    hessian: bool = True
    width: float = inf
    networks: int = 1
    observables: Sequence[str] = ()
    cells: int = 1

    @property
    def depth(self) -> int:
        return self.problem.network.depth


@dataclass(frozen=True)
class Work:
    """Additions and multiplications of matrix products; numbers that all else makes; gradients and products."""

    products: float | int = 0
    numbers: float | int = 0
    calls: float | int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.products + other.products, self.numbers + other.numbers, self.calls + other.calls)

    def __rmul__(self, times: float | int) -> "Work":
        return Work(times * self.products, times * self.numbers, times * self.calls)


@dataclass(frozen=True)
class Estimate:
    """Of all that is left to compute; ``bytes`` are those of the largest networks and of the data."""

    cells: int
    seconds: float | int
    bytes: float | int

    def __str__(self):
        count = f"{self.cells} cells" if self.cells != 1 else "1 cell"
        return f"{count}, about {two_digits(self.seconds / 60)} minutes, {two_digits(self.bytes / 2**30)} GiB"


def warn(takes: Estimate, program: str) -> None:
    """Before a long or large job, on standard error."""
    there = memory()
    if takes.seconds > LONG or takes.bytes > LARGE * there:
        print(f"{program}: {takes} of {two_digits(there / 2**30)}; --dry-run only says this", file=sys.stderr, flush=True)


def estimated(job: Iterable[Networks | Own | Limit], workers: int = 1, elsewhere: bool = False, parts: int = 0) -> Estimate:
    """Of all these networks and limits, and so many other parts of theories, on this machine, or ``elsewhere`` on one like it
    for each worker.

    On this one workers share the processor and the memory: what they gain is compiled, or small.
    """
    job = list(job)
    cells, work = parts + sum(task.cells for task in job), sum((task.networks * of_one(task) for task in job), Work())
    programs = {(task.width, task.depth, tuple(task.observables)) for task in job}
    workers = max(1, min(workers, cells))
    apart = seconds(Work(calls=work.calls)) + COMPILING * (len(programs) + parts)
    shared = seconds(replace(work, calls=0))
    largest = max((bytes_of(task) for task in job), default=0)
    if elsewhere:
        return Estimate(cells, (apart + shared) / workers, largest)
    return Estimate(cells, apart / workers + shared, workers * largest)


def seconds(work: Work) -> float:
    """On this machine."""
    rate = products_per_second()
    return work.products / rate + work.numbers / (NUMBERS * rate) + OVERHEAD * work.calls


def of_one(task: Networks | Own | Limit) -> Work:
    """Training and measuring one network."""
    if isinstance(task, Limit):
        takes = theories.work(task.problem, hessian=task.hessian)[0] / RATE  # seconds: products of fields are seldom large
        return Work(takes * products_per_second())
    if isinstance(task, Own):
        return _of_own(task)
    problem, network, compiled, samples = _program(task)
    forward = forward_pass(network.architecture, problem.num_inputs)
    parameters = size(jax.eval_shape(network.init, jax.random.key(0)))
    batch = problem.num_samples if problem.batches is None else problem.batches.shape[1]
    step = GRADIENT * batch * forward + Work(0, 4 * parameters, 1)
    product = PRODUCT * samples * forward + Work(0, PRODUCTS * parameters, 1)  # with the orthogonalisation
    measurement = problem.num_samples * forward
    measurement += products(compiled, network, problem.targets.size, PRODUCTS) * product
    measurement += _dense_kernel(compiled, network, samples * problem.num_outputs)
    return problem.num_steps * step + len(problem.steps) * measurement


def _of_own(task):
    recipe, program = task.recipe, program_of_own(task.recipe, task.width)
    samples = recipe.num_samples
    forward = _counted(jax.make_jaxpr(program.objective)(program.shapes, program.data).jaxpr)  # of all of them
    parameters, curved = size(program.shapes), min(task.samples or samples, samples) / samples
    step = GRADIENT * (recipe.batch_size or samples) / samples * forward + Work(0, 4 * parameters, 1)
    product = PRODUCT * curved * forward + Work(0, PRODUCTS * parameters, 1)
    measurement = forward + PRODUCTS * len(set(task.observables) - {"loss"}) * product
    return recipe.num_steps * step + len(recipe.steps) * measurement


def _dense_kernel(compiled, network, rows):
    """Built from the layers' factors, and decomposed."""
    if network.layer_factors is None or rows > DENSE_NTK_ROWS or not kernels(compiled):
        return Work()
    return Work(4 * rows**2 * network.width * (network.depth + 1) + 9 * rows**3)


def bytes_of(task: Networks | Own | Limit) -> float | int:
    """What runs at once, and the data: on the host in float64, on the device once more."""
    if isinstance(task, Limit):
        return 8 * theories.work(task.problem, hessian=task.hessian)[1]
    if isinstance(task, Own):
        made = _of_own(replace(task, recipe=replace(task.recipe, num_steps=0), observables=("loss",))).numbers
        vectors = MATVECS * bool(set(task.observables) - {"loss"})
        return 4 * (3 * made + (KEPT * task.networks / max(task.cells, 1) + vectors) * size(
            program_of_own(task.recipe, task.width).shapes))  # fmt: skip
    problem, network, compiled, samples = _program(task)
    resident, workspace = footprint(problem, network, compiled, samples)
    batched = compiled.numerics.vectorized
    count = task.networks / max(task.cells, 1)
    networks = min(count * (resident + workspace), memory()) if batched else min(count * resident, HOST_MEMORY)
    return max(networks, resident) + workspace * (not batched) + 12 * (problem.inputs.size + problem.targets.size)


def _program(task):
    problem, network = task.problem, build(task.problem, task.width)
    observables = tuple(name for name in task.observables if name in storable())
    samples = problem.num_samples if task.samples is None else min(task.samples, problem.num_samples)
    samples = samples if set(observables) - {"loss"} else 1
    return problem, network, program_of(problem, network.architecture, observables, USUAL), samples


@cache
def forward_pass(architecture: Architecture, num_inputs: int) -> Work:
    """Of one sample; traced, not compiled."""
    params = jax.eval_shape(architecture.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((1, num_inputs), jnp.float32)
    return _counted(jax.make_jaxpr(architecture.apply)(params, inputs).jaxpr)


def _counted(jaxpr):
    return sum((_of_equation(equation) for equation in jaxpr.eqns), Work())


def _of_equation(equation):
    made, name = sum(out.aval.size for out in equation.outvars), equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return Work(2 * made * prod(equation.invars[0].aval.shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return Work(2 * made * kernel.size / kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]])
    inner = [value for parameter in equation.params.values() for value in _sequence(parameter) if _jaxpr(value) is not None]
    if inner:
        return equation.params.get("length", 1) * sum((_counted(_jaxpr(value)) for value in inner), Work())
    return Work(0, made)


def _sequence(value):
    return value if isinstance(value, tuple | list) else (value,)


def _jaxpr(value):
    return value if hasattr(value, "eqns") and hasattr(value, "invars") else getattr(value, "jaxpr", None)


@cache
def products_per_second(side: int = 1024) -> float:
    """Additions and multiplications of a matrix product in float32; the best of many, for others may use the processor too."""
    matrix, product = jnp.ones((side, side), jnp.float32), jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()

    def seconds():
        started = time.perf_counter()
        product(matrix).block_until_ready()
        return time.perf_counter() - started

    return 2 * side**3 / min(seconds() for _ in range(TRIALS))


def memory() -> float | int:
    """Bytes of the device, or of this machine."""
    stats = jax.devices()[0].memory_stats()
    return stats["bytes_limit"] if stats else physical_memory()
