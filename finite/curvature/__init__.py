"""The Hessian, its parts and the NTK of a network, as products with vectors; their spectra; plain functions of anybody's."""

from importlib import import_module

_OF_OWN = ("Objective", "critical_sharpness", "cross_entropy_in_chunks", "gradient_noise", "ntk", "objective", "sharpness",
           "trace")  # fmt: skip
_OF_THE_HOST = ("sharpness_of_matvec",)
__all__ = [*_OF_OWN, *_OF_THE_HOST]


def __getattr__(name: str):
    if name in _OF_THE_HOST:
        return getattr(import_module("finite.curvature.host"), name)
    if name not in _OF_OWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("finite.curvature.own"), name)
