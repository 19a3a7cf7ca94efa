"""What XLA is told where most of the time is compilation: read when JAX starts, by its subprocesses too.

Without optimisation compiling is 2.5 times faster, by the older of two ways to emit fused loops twice as fast again; that one
is gone in jaxlib 0.12, and XLA ends a process that names what it does not know.
"""

from importlib.metadata import version

OLDER = [] if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 12) else ["--xla_cpu_use_fusion_emitters=false"]
FLAGS = " ".join(["--xla_backend_optimization_level=0", *OLDER])
