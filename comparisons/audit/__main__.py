"""Is the parametrization of my network right?"""
from comparisons.audit.options import PROGRAM, Options
from limits.command.arguments import read

options = read(Options, PROGRAM)

from comparisons.audit.command import answer  # noqa: E402  (takes seconds: after what may end here)

answer(options)
