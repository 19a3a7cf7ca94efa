"""Where limits and networks meet."""

import finite  # noqa: F401  (before what takes longer: it sees whether ``limits`` is ours; limits/command/start.py)
import limits  # noqa: F401

__all__ = ["audit", "optimum", "parametrize"]


def __getattr__(name: str):
    """``comparisons.audit(model, ...)``, ``parametrize(model, ...)``, ``optimum(sweep)``, imported where they are asked for."""
    from importlib import import_module

    if name in ("audit", "optimum"):
        return import_module(f"comparisons.{name}")
    if name == "parametrize":
        return import_module("comparisons.audit.parametrize").parametrize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
