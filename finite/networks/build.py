"""A problem at a width: the network of its model."""

from finite.networks import Network
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from limits.problem import Problem


def build(problem: Problem, width: int) -> Network:
    """The network of the problem's model, of that width.  Raises ValueError for a width below 1."""
    model = problem.network
    if model.architecture == "residual":
        return resmlp(problem, width, model.depth, model.activation, model.block_size)
    return mlp(problem, width, model.depth, model.activation)
