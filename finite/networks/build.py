"""A problem at a width: the network of its model."""

from finite.networks import Network
from finite.networks.conv import conv
from finite.networks.convnet import convnet, resconvnet
from finite.networks.gpt import gpt
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from finite.networks.vit import vit
from limits.problem import Problem


def build(problem: Problem, width: int) -> Network:
    """The network of the problem's model, of that width.  Raises ValueError for a width that it cannot have."""
    model = problem.network
    match model.family, model.architecture:
        case "conv", _:
            return conv(problem, width, model.pooling)
        case "convnet", "plain":
            return convnet(problem, width, model.depth, model.pooling)
        case "convnet", _:
            return resconvnet(problem, width, model.depth, model.block_size, model.pooling)
        case "vit", _:
            return vit(problem, width, model.depth)
        case "gpt", _:
            return gpt(problem, width, model.depth)
        case _, "plain":
            return mlp(problem, width, model.depth, model.activation)
        case _:
            return resmlp(problem, width, model.depth, model.activation, model.block_size)
