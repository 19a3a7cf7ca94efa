"""Whether the best learning rate of a sweep moves with the size."""
from comparisons.command_line import run
from comparisons.optimum.options import PROGRAM, Options

run(Options, "comparisons.optimum.study:answer", PROGRAM)
