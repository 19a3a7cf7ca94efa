"""Import torchax 0.0.13 (June 2026) on a present-day PyTorch: 2.11, 2.13 and 2.15 were tried.

    torchax = load()

Its tables of operators name some that PyTorch has since dropped: those of named tensors (gone by 2.13), ``cholesky`` and
``qr`` (gone by 2.15).  While the tables are made a stand-in is their key, which nothing looks up; then PyTorch is as it was.
"""

import contextlib
import functools
import importlib.util
import types
from unittest import mock


@functools.cache
def load() -> types.ModuleType:
    """The module ``torchax``, with its tables made.  Raises ModuleNotFoundError, in one line, where it is not installed."""
    if missing := [name for name in ("torch", "torchax") if not _is_there(name)]:
        raise ModuleNotFoundError(f"not installed: {', '.join(missing)}; the extra torch of this package has both")
    import torch

    with contextlib.ExitStack() as stack:
        for kind in (torch._ops._OpNamespace, torch._ops.OpOverloadPacket):
            stack.enter_context(mock.patch.object(kind, "__getattr__", _or_stand_in(kind.__getattr__)))
        import torchax

        torchax.default_env()
    return torchax


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # of a module that is not to be imported
        return False


class _Gone:
    """An operator, and its overloads, that this PyTorch does not have."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Gone()


def _or_stand_in(original):
    def get(self, name):
        try:
            return original(self, name)
        except AttributeError:
            if name.startswith("__") or "aten" not in str(self):
                raise
            return _Gone()

    return get
