from limits.command.arguments import read
from limits.exponents.options import PROGRAM, Options

options = read(Options, PROGRAM)

from limits.exponents.tables import answer  # noqa: E402  (takes seconds: after what may end here)

answer(options)
