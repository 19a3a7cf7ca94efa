"""Networks of width N, on the device."""

import sys
from importlib.util import find_spec
from pathlib import Path

OTHERS = ("`limits` is another distribution's here ({}), and both cannot be: `pip uninstall limits`, then "
          "`pip install --force-reinstall --no-deps .` in the clone of superconsistency")  # fmt: skip


def _require_our_limits():
    """Raises ImportError where `pip install limits`, by hand or for another package, has overwritten ours, or hides it."""
    spec = find_spec("limits")
    origin = spec and spec.origin  # None: removed with the other one
    if origin and "superconsistency" in Path(origin).read_text(encoding="utf-8"):
        return
    line = OTHERS.format(origin or "removed")
    if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).stem == "superconsistency":  # a command is being started
        print(f"{sys.orig_argv[0]}: {line}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(line)


_require_our_limits()

from finite.numerics import Numerics  # noqa: E402  (once ``limits`` is ours)

__all__ = ["Numerics"]
