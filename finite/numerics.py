"""How exactly networks are trained and measured, and how many at once: what changes no meaning, only digits and seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Numerics:
    """What ``finite.training.train`` is told beside the problem.

    precision     "float32" or "float64", of everything; results are float64 on the host
    rtol          relative tolerance of Lanczos eigenvalues; ``Trajectory.errors`` holds what was reached
    max_matvecs   products after which a Lanczos run gives up, and vectors of the parameters' size that it may hold; None: 100,
                  of many eigenvalues 20 and twice their number
    warm_start    start each Lanczos run from the eigenvectors of the measurement before
    probes        random vectors of the trace estimate, where the trace is not exact
    density_probes, density_steps    random vectors of the spectral density, and products with each: as many nodes, or as many
                  as there are parameters; ``finite.curvature.density.Density(nodes[None], weights[None])`` smooths it
    memory        bytes for the networks that run side by side (None: most of the device's); the rest follow in chunks
    vectorized    whether the networks of a chunk run as one batch, in equal parts on all accelerators of this machine; None:
                  they do, except on a CPU, where one after the other is two to three times faster
    """

    precision: str = "float32"
    rtol: float = 1e-3
    max_matvecs: int | None = None
    warm_start: bool = True
    probes: int = 16
    density_probes: int = 8
    density_steps: int = 32
    memory: int | float | None = None
    vectorized: bool | None = None


USUAL = Numerics()
