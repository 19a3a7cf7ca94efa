"""What the derivation says of a problem before anything runs."""

from collections.abc import Iterable

from limits import Problem
from limits.exponents import regimes


def case(problem: Problem) -> regimes.Case:
    """What the algebra of sizes is to say something of."""
    model = problem.network
    depth = model.depth if model.architecture == "plain" else 1
    return regimes.case(problem.scaling(), depth=depth, block_size=model.block_size, loss=problem.loss)


def announce(problems: Iterable[Problem]) -> None:
    """Prints a line for each: what training does in its parametrization."""
    for line in dict.fromkeys(map(_line, problems)):
        print(line, flush=True)


def _line(problem):
    given, verdict = problem.scaling(), regimes.classify(case(problem))
    return f"{given.name}, {given.optimizer}: {verdict.regime}; {verdict.reason}"
