"""``finite.training.train`` with its numerics among the options: tests change one at a time."""

from dataclasses import fields

from finite import Numerics
from finite.training import train as training

NUMERICS = {field.name for field in fields(Numerics)}


def train(problem, network, keys, **options):
    numerics = Numerics(**{name: value for name, value in options.items() if name in NUMERICS})
    return training.train(problem, network, keys, numerics=numerics,
                          **{name: value for name, value in options.items() if name not in NUMERICS})  # fmt: skip
