"""Models by name, and the networks that are built of them."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from finite.networks import once
from finite.networks.build import build
from limits import Problem
from limits.models import Model, read_model

X, Y = np.ones((4, 3)), np.ones((4, 2))


@pytest.mark.parametrize(
    ("name", "options", "model"),
    [
        ("linear2", {}, Model("plain", 1, "linear")),
        ("linear5", {"activation": "relu", "depth": 9}, Model("plain", 4, "linear")),
        ("mlp2", {"activation": "relu"}, Model("plain", 1, "relu")),
        ("mlp4", {"depth": 9}, Model("plain", 3, "tanh")),
        ("mlp", {"depth": 3, "activation": "linear"}, Model("plain", 3, "linear")),
        ("resmlp", {"depth": 8, "block_size": 2}, Model("residual", 8, "tanh", 2)),
    ],
)
def test_names(name, options, model):
    assert read_model(name, **options) == model


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear1", {}, "at least 2 weight matrices"),
        ("mlp0", {}, "at least 2 weight matrices"),
        ("linear", {}, "unknown model 'linear'; known: linear2, linear3"),
        ("transformer", {}, "unknown model 'transformer'"),
        ("mlp3", {"activation": "sine"}, "unknown activation 'sine'; known: linear, relu"),
        ("resmlp", {"depth": 0}, "depth 0 must be at least 1"),
        ("resmlp", {"block_size": 0}, "block size 0 must be at least 1"),
        ("mlp1002", {}, "1001 layers: wanted at most 1000"),
        ("convnet", {"depth": 1001}, "1001 layers: wanted at most 1000"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=message):
        read_model(name, **options)
    with pytest.raises(ValueError, match=message):
        Problem(X, Y, model=name, **options)


@pytest.mark.parametrize(
    ("model", "matrices"), [("linear2", 2), ("linear4", 4), ("mlp3", 3), ("mlp", 4), ("resmlp", 5)]
)
def test_a_network_has_the_matrices_of_its_name(model, matrices):
    param = "depth_mup" if model == "resmlp" else "mup"
    network = build(Problem(X, Y, param, model=model, depth=3), 6)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(int(np.prod(w.shape[:-2])) for w in jax.tree.leaves(params)) == matrices
    assert network.layerwise_linear == model.startswith("linear")
    assert network.scaling.architecture == ("residual" if model == "resmlp" else "plain")


def test_threads_that_ask_for_one_architecture_get_one_object():
    """Compiled functions are keyed on it; many threads build at once."""
    built = once(lambda size: object())
    with ThreadPoolExecutor(16) as pool:
        assert len(set(map(id, pool.map(built, [1] * 200)))) == 1
    assert built(2) is not built(1)
