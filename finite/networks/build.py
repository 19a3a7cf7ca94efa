"""A problem at a width: the network of its model."""

from collections.abc import Callable

from finite.networks import Network
from finite.networks.conv import conv
from finite.networks.convnet import convnet, resconvnet
from finite.networks.gpt import gpt
from finite.networks.mlp import mlp
from finite.networks.resmlp import resmlp
from finite.networks.vit import vit
from limits.models import Model
from limits.problem import Problem

BUILDERS: dict[tuple[str, str], Callable[[Problem, int, Model], Network]] = {  # by family and architecture
    ("perceptron", "plain"): lambda problem, width, m: mlp(problem, width, m.depth, m.activation),
    ("perceptron", "residual"): lambda problem, width, m: resmlp(problem, width, m.depth, m.activation, m.block_size),
    ("conv", "plain"): lambda problem, width, m: conv(problem, width, m.pooling, m.activation),
    ("convnet", "plain"): lambda problem, width, m: convnet(problem, width, m.depth, m.pooling, m.activation),
    ("convnet", "residual"): lambda problem, width, m: resconvnet(
        problem, width, m.depth, m.block_size, m.pooling, m.activation),
    ("vit", "residual"): lambda problem, width, m: vit(problem, width, m.depth, activation=m.activation),
    ("gpt", "residual"): lambda problem, width, m: gpt(problem, width, m.depth, activation=m.activation),
}


def build(problem: Problem, width: int) -> Network:
    """The network of the problem's model, of that width.  Raises ValueError for a width that it cannot have.

    >>> import jax
    >>> network = build(Problem([[1.0, 0.0], [0.0, 2.0]], [1.0, -1.0], model="mlp3", activation="tanh"), 64)
    >>> network.init(jax.random.key(0))["readout"].shape
    (64, 1)
    """
    model = problem.network
    if (model.family, model.architecture) not in BUILDERS:
        raise ValueError(f"{problem.model}: no {model.architecture} networks of family {model.family} are built here")
    return BUILDERS[model.family, model.architecture](problem, width, model)
