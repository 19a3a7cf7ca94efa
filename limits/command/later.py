"""JAX for the files that commands read their options from: importing it takes seconds, so it waits for its first use."""

from importlib import import_module


class Later:
    """A module that is imported where something of it is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        return getattr(import_module(self._name), attribute)


jax, jnp = Later("jax"), Later("jax.numpy")
