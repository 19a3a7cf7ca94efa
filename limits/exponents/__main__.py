import sys

import limits

if "Problem" not in dir(limits):  # overwritten by `pip install limits`, or removed with it; finite/__init__.py tells the others
    print("python -m limits.exponents: `limits` is another distribution's here: `pip uninstall limits`, then `pip install "
          "--force-reinstall --no-deps .` in the clone of superconsistency", file=sys.stderr)  # fmt: skip
    raise SystemExit(2)

from limits.command.arguments import read
from limits.exponents.options import PROGRAM, Options

options = read(Options, PROGRAM)

from limits.exponents.tables import answer  # noqa: E402  (takes seconds: after what may end here)

answer(options)
