from comparisons.command_line import run
from comparisons.convergence.options import PROGRAM, Options

run(Options, "comparisons.convergence.study:compare", PROGRAM)
