"""Infinite width: the theory.  No random network is ever built here."""

__version__ = "0.15.0"  # of the distribution superconsistency (pyproject.toml reads it here); it changes with the numbers

from importlib import import_module

import limits.command.start  # noqa: F401  (before what takes seconds)

_HOMES = {  # of what is offered here, each imported where it is first asked for: JAX and what stands on it take seconds
    "OBSERVABLES": "limits.trajectory:OBSERVABLES",
    "Problem": "limits.problem:Problem",
    "Scaling": "limits.exponents.algebra:Scaling",
    "Trajectory": "limits.trajectory:Trajectory",
    "conv": "limits.deep.conv",
    "curvature": "limits.two_layer.linear_curvature",
    "deep_linear": "limits.deep.linear",
    "depth": "limits.deep.infinite_depth",
    "dmft": "limits.deep.dmft",
    "fluctuations": "limits.two_layer.linear_law",
    "linear2": "limits.two_layer.linear",
    "meanfield": "limits.two_layer.meanfield",
    "minibatches": "limits.problem:minibatches",
    "ntk": "limits.kernel.ntk",
    "predict": "limits.theories:predict",
    "solve": "limits.theories:solve",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    home = import_module(module)
    globals()[name] = getattr(home, attribute) if attribute else home
    return globals()[name]


def __dir__():
    """Without what only stands here because a file of its name was imported."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
