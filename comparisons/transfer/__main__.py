from comparisons.command_line import run
from comparisons.transfer.options import PROGRAM, Options

run(Options, "comparisons.transfer.study:transfer", PROGRAM)
