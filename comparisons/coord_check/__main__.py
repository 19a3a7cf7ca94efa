from comparisons.command_line import run
from comparisons.coord_check.options import PROGRAM, Options

run(Options, "comparisons.coord_check.study:check", PROGRAM)
