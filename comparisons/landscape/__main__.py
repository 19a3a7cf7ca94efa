from comparisons.command_line import run
from comparisons.landscape.options import PROGRAM, Options

run(Options, "comparisons.landscape.study:landscape", PROGRAM)
