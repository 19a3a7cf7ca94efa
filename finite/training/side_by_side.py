"""How many networks of one size run side by side, and where: as many as the memory holds.

Their memory is estimated, of what one keeps all the time and of what is needed while it is worked on.
"""

from dataclasses import dataclass
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from finite.curvature.observers import DENSE_NTK_ROWS, DENSITY, Program, kernels, lanczos_runs, size
from finite.curvature.operators import SAMPLES_AT_ONCE
from finite.networks import Network
from limits.machine import physical_memory
from limits.problem import Problem

FRAMED = 6  # times a batch of images of its own, with frames around them, is what a seed holds that augments it
HOST_MEMORY = 2 * 2**30  # bytes for the seeds of a chunk, where the device does not tell what it has; for one large network
HOST_PART = 0.5  # more, up to so much of this machine's


@dataclass(frozen=True)
class Plan:
    """Networks of one size, in chunks of equally many.

    batched    whether those of a chunk are one batch, or one after the other
    devices    on which a batch is spread, in equal parts
    """

    networks: int
    chunks: int
    batched: bool
    devices: int

    def rows(self) -> list[Int[np.ndarray, " chunk"]]:
        """The networks of each chunk, all of one length (one compilation), filled up with the last network."""
        length = self.devices * ceil(ceil(self.networks / self.chunks) / self.devices)
        return list(np.minimum(np.arange(self.chunks * length), self.networks - 1).reshape(self.chunks, length))

    def __str__(self):
        where = jax.default_backend()
        if not self.batched or self.networks == 1:
            return f"one network after the other ({where})"
        turns = f", {self.chunks} batches one after the other" if self.chunks > 1 else ""
        devices = f", spread over {self.devices} devices" if self.devices > 1 else ""
        return f"{ceil(self.networks / self.chunks)} networks in a batch{turns}{devices} ({where})"


def plan(problem: Problem, network: Network, program: Program, networks: int, samples: int, memory: float | None) -> Plan:
    """For so many networks, and curvature of so many samples; ``memory`` in bytes, by default most of each device's.

    Raises MemoryError where that does not hold one network.
    """
    devices = len(jax.local_devices()) if program.numerics.vectorized else 1
    chunks = ceil(networks / (devices * _at_once(problem, network, program, samples, memory)))
    return Plan(networks, chunks, program.numerics.vectorized, devices)


def _at_once(problem, network, program, samples, memory):
    """How many seeds fit into the memory of one device at once."""
    resident, workspace = footprint(problem, network, program, samples)
    memory = device_memory(resident + workspace) if memory is None else memory
    most = memory // (resident + workspace) if program.numerics.vectorized else (memory - workspace) // resident
    if most < 1:
        needed = (resident + workspace) / 2**30
        raise MemoryError(f"one network needs about {needed:.1f} GiB, more than the {memory / 2**30:.1f} GiB of memory")
    return int(most)


def footprint(problem: Problem, network: Network, program: Program, samples: int) -> tuple[float, float]:
    """Bytes of one seed, estimated: (what it keeps all the time, what is needed while it is worked on)."""
    itemsize, shapes = jnp.zeros(()).dtype.itemsize, jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    parameters, rows = size(shapes), problem.targets.size
    runs = lanczos_runs(program, network, rows)
    kept = 2 * 3 * (1 + runs) * parameters  # weights, two moments, three vectors of each Lanczos run, coming in and going out
    of_density = program.numerics.density_steps * bool(DENSITY & set(program.observables))
    vectors = max(program.numerics.max_matvecs * (runs > 0), of_density)
    lanczos = (min(vectors, parameters) + 8) * parameters
    copies = 1 if network.layer_factors is None else problem.num_outputs  # each output has its way back
    batch = problem.num_samples if problem.batches is None else problem.batches.shape[1]
    evaluated = min(problem.num_samples, SAMPLES_AT_ONCE)
    rows_at_once = max(8 * samples * copies, 3 * batch, 2 * evaluated)  # curvature, a step, the loss
    signals = (network.depth + 1) * rows_at_once * network.places * network.width
    kernel = 4 * min(rows, DENSE_NTK_ROWS) ** 2 * bool(kernels(program))
    framed = FRAMED * batch * problem.num_inputs if problem.augment else 0
    return itemsize * kept, itemsize * (lanczos + signals + kernel + framed)


def device_memory(of_one):
    """Most of what is free on the device; where it does not tell, what serves on a CPU, and what one network needs."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return 0.8 * (stats["bytes_limit"] - stats["bytes_in_use"])
    return min(max(HOST_MEMORY, of_one), HOST_PART * physical_memory())
