"""Networks that are not ours: what each weight does is read off the program, and is right for twelve that people use."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from comparisons.audit.verdict import not_understood
from finite.networks.own import Model, _made, from_haiku, from_linen, from_nnx, from_torch, paths, require_model
from finite.networks.roles import SCORES, branches, follow, roles, uses_of
from finite.networks.torchax_compat import load

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
BATCH = INPUTS, jnp.ones((4, 2))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def of(make, width=8):
    """The roles of ``make(width) -> (params, apply)``, by path."""
    found = {}
    for role in roles(Model(lambda width, key: make(width), "mse", BATCH), (width, 2 * width)):
        found.setdefault(role.use.path, []).append(role)
    return found


@pytest.mark.parametrize("name", [
    "equinox-swiglu", "haiku-mlp", "nnx-llama", "linen-scan",
    *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "nnx-mlp", "nnx-conv", "linen-conv", "linen-gpt", "equinox-mlp", "equinox-attention", "haiku-conv",
        "haiku-transformer")),
])  # fmt: skip
def test_roles_of_public_architectures(name):
    for library in ("flax", "haiku"):
        pytest.importorskip(library, reason=f"{library} is not installed: the dev group has it")
    from public_models import MODELS, expected

    make, wanted = MODELS[name]
    found = {}
    for role in roles(make(), (16, 32)):
        if role.use.operation != SCORES:
            found.setdefault(role.use.path, []).append(role.name)
    assert found
    assert found == {path: expected(wanted, path).split() for path in found}


def test_every_model_of_the_table_is_tested():
    pytest.importorskip("flax", reason="flax is not installed: the dev group has it")
    pytest.importorskip("haiku", reason="haiku is not installed: the dev group has it")
    from public_models import MODELS

    (mark,) = (mark for mark in test_roles_of_public_architectures.pytestmark if mark.name == "parametrize")
    assert {getattr(one, "values", (one,))[0] for one in mark.args[1]} == set(MODELS)
    assert len(MODELS) == 12


def test_fans_and_multipliers():
    """Constants on W, on what arrives, on the product and on its bias; those between scores and queries are the scores'."""

    def make(width):
        shapes = {"first": (3, width), "bias": (width,), "heads": (2, width, width), "gain": (width,), "query": (width, width),
                  "key": (width, width), "last": (2, width), "unread": (3,)}  # fmt: skip
        params = {name: normal(*shape) for name, shape in shapes.items()}

        def apply(p, x):
            h = jnp.tanh((x @ (p["first"] / 3) + p["bias"]) * 5)
            h = h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True)) * (1 + p["gain"])
            q, k = h @ p["query"] / jnp.sqrt(width), h @ p["key"] / 2
            h = jax.nn.softmax((q / width) @ k.T) @ h
            h = jnp.einsum("bi,hij->bhj", h * 7, p["heads"]).sum(1)
            return jnp.tanh(h) / width @ p["last"].T

        return params, jax.jit(apply)

    found = of(make)
    use = {path: uses[0].use for path, uses in found.items()}
    assert (use["first"].fan_in, use["first"].fan_out, use["first"].multiplier) == (3, 8, pytest.approx(5 / 3))
    assert (use["bias"].operation, use["bias"].multiplier) == ("bias", 5)
    assert use["gain"].operation == "gain"
    assert use["query"].multiplier == pytest.approx(8**-0.5)
    assert use["query · key"].operation == SCORES
    assert (use["query · key"].fan_in, use["query · key"].multiplier) == (8, pytest.approx(1 / 16))
    assert (use["heads"].fan_in, use["heads"].multiplier) == (8, 7)
    assert (use["last"].fan_in, use["last"].multiplier) == (8, 1 / 8)
    assert found["last"][0].multiplier == pytest.approx(-1)
    assert found["last"][0].name == "readout"
    assert use["unread"].operation == "unused"


def test_what_is_not_understood_is_named():
    def make(width):
        params = {"first": normal(3, width), "soft": normal(width), "low": normal(width, 2), "rank": normal(2, width)}

        def apply(p, x):
            h = x @ p["first"] * jax.nn.softplus(p["soft"])
            return h @ (p["low"] @ p["rank"])

        return params, apply

    found = of(make)
    assert set(found) == {"first", "soft", "low", "rank"}  # what is made of weights is no activation
    assert found["first"][0].name == "input"
    assert found["soft"][0].use.operation not in ("gain", "product")
    assert "not understood" in str(found["soft"][0])
    assert found["low"][0].use.operation == found["rank"][0].use.operation == "dot_general"
    assert found["low"][0].name is None


def test_a_weight_beside_constants_is_still_itself():
    def make(width):
        return {"last": normal(width - 1, 2)}, lambda p, x: jnp.tile(x, width)[:, :width] @ jnp.concatenate(
            [p["last"], jnp.zeros((1, 2))])  # fmt: skip

    ((role,),) = of(make).values()
    assert role.name == "readout"


def test_what_normalises_a_weight_is_not_understood():
    """W/|W| times a gain, which then is none of activations."""

    def make(width):
        params = {"first": normal(3, width), "gain": jnp.ones(width)}
        return params, lambda p, x: x @ (p["first"] / jnp.linalg.norm(p["first"], axis=0) * p["gain"])

    assert {role.use.operation for roles in of(make).values() for role in roles} == {"mul", "div"}


@pytest.mark.parametrize("kind", ["divided", "in a scan", "linear attention"])
def test_scores_are_of_queries_and_keys(kind):
    """They may be divided by their norm, or be brought into a scan; queries and a sum over keys times values make none."""

    def make(width):
        def apply(p, x):
            q, k = x @ p["q"], jnp.clip(x @ p["k"], -3.0, 3.0)
            if kind == "divided":
                return (q / jnp.linalg.norm(q, axis=-1, keepdims=True)) @ k.T
            if kind == "in a scan":
                return lax.map(lambda k: q @ k, k)
            return q @ (jnp.exp(k).T @ x)

        return {name: normal(3, width) for name in "qk"}, apply

    scores = {path: role for path, (role,) in of(make).items() if role.use.operation == SCORES}
    assert list(scores) == [{"divided": "q · k", "in a scan": SCORES}.get(kind, "activations")]
    remarks = [not_understood(role) for role in scores.values()]
    assert bool(remarks[0]) == (kind == "linear attention"), remarks


@pytest.mark.slow
def test_adapters_take_dropout_and_batch_statistics():
    """Their random numbers are the same at every call, and the statistics those of the batch."""
    nnx, linen, haiku = (pytest.importorskip(name) for name in ("flax.nnx", "flax.linen", "haiku"))

    class Nnx(nnx.Module):
        def __init__(self, width, rngs):
            self.first, self.last = nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
            self.norm, self.dropout = nnx.BatchNorm(width, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.last(self.dropout(self.norm(self.first(x))))

    class Linen(linen.Module):
        width: int

        @linen.compact
        def __call__(self, x):
            x = linen.BatchNorm(use_running_average=False)(linen.Dense(self.width)(x))
            return linen.Dense(2)(linen.Dropout(0.5, deterministic=False)(x))

    def of_haiku(width):
        def forward(x):
            x = haiku.BatchNorm(True, True, 0.9)(haiku.Linear(width)(x), is_training=True)
            return haiku.Linear(2)(haiku.dropout(haiku.next_rng_key(), 0.5, x))

        return forward

    for model in (from_nnx(Nnx, "mse", BATCH), from_linen(Linen, "mse", BATCH), from_haiku(of_haiku, "mse", BATCH)):
        found = [role.name for role in roles(model, (8, 16))]
        assert sorted(found) == ["bias", "bias", "constant", "input", "norm_gain", "readout"], model.name
        params, apply = model.at(8, KEY)
        alike = jax.tree.map(lambda leaf: 3 * leaf if leaf.shape == (3, 8) else leaf, params)
        outputs = jax.jit(apply)
        np.testing.assert_allclose(outputs(alike, INPUTS), outputs(params, INPUTS), rtol=1e-3, atol=1e-3)


def a_network(width, layers):
    """A scan over layers with a branch and a custom derivative inside, or the same unrolled."""
    params = {"first": normal(3, width), "layers": normal(3, width, width) / width**0.5, "last": normal(width, 2)}

    def layer(h, w):
        h = h + jax.nn.relu(jax.checkpoint(lambda h, w: h @ w)(h, w))
        return lax.cond(jnp.sum(h) > 0, lambda h, w: h + 2 * h @ w, lambda h, w: h - h @ w, h, w), None

    def apply(p, inputs):
        h = inputs["x"] @ p["first"]
        if layers == "scan":
            h, _ = lax.scan(layer, h, p["layers"])
        else:
            for w in p["layers"]:
                h, _ = layer(h, w)
        return {"outputs": h @ p["last"] / width}

    return params, apply


@pytest.mark.parametrize("layers", ["scan", "unrolled"])
def test_what_is_followed_is_the_same_function(layers):
    """Outputs, and of every use the part that is (W − W_0) x; a factor acts where its weight does."""
    params, apply = a_network(8, layers)
    initial = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    inputs = {"x": INPUTS}
    outputs, signals = jax.jit(lambda *at: follow(apply, *at)[::2])(params, inputs, initial)
    np.testing.assert_allclose(outputs["outputs"], apply(params, inputs)["outputs"], rtol=1e-5)
    for use, signal in zip(uses_of(apply, params, inputs), signals, strict=True):
        np.testing.assert_allclose(signal.own, 0.1 * signal.output, rtol=1e-4, atol=1e-6, err_msg=str(use))
    last = uses_of(apply, params, inputs)[-1]
    assert last.path == "last"
    doubled = jax.jit(lambda params: follow(apply, params, inputs, factors={last.site: 2.0})[0])(params)
    np.testing.assert_allclose(doubled["outputs"], 2 * outputs["outputs"], rtol=1e-5)
    if layers == "scan":
        inner = [use for use in uses_of(apply, params, inputs) if use.path == "layers"]
        assert [use.copies for use in inner] == [3, 3, 3]
        assert signals[1].output.shape[0] == 3


def test_what_combines_two_entries_at_a_time_is_no_program_to_follow():
    """The program of a reduction is of two entries."""

    def apply(p, x):
        return lax.reduce(x @ p["first"], 0.0, lambda a, b: a + 2.0 * b - b, (1,))

    params = {"first": normal(3, 8)}
    np.testing.assert_allclose(follow(apply, params, INPUTS)[0], apply(params, INPUTS), rtol=1e-5)


def test_derivatives_of_what_is_followed_are_those_of_apply():
    params, apply = a_network(8, "scan")
    inputs = {"x": INPUTS}
    wanted = jax.grad(lambda p: jnp.sum(apply(p, inputs)["outputs"] ** 2))(params)
    found = jax.grad(lambda p: jnp.sum(follow(apply, p, inputs, factors={})[0]["outputs"] ** 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def test_residual_branches():
    """In a scan and unrolled: what is inside, what comes last, how many; a bias beside the sum is the branch's."""

    def make(scanned, depth=3):
        def block(h, p):
            h = h + jnp.tanh(h * p["gain"] @ p["inner"] + p["offset"]) @ p["outer"] / 2 + p["bias"]
            return h + 0.5 * (h @ p["alone"]), None

        def apply(p, inputs):
            h = inputs @ p["first"] + p["position"]
            if scanned:
                h, _ = lax.scan(block, h, p["blocks"])
            else:
                for layer in range(depth):
                    h, _ = block(h, {name: leaf[layer] for name, leaf in p["blocks"].items()})
            return jax.nn.gelu(h - h.mean(-1, keepdims=True)) * p["norm"] @ p["last"]

        n, blocks = 8, {"gain": (8,), "inner": (8, 8), "offset": (8,), "outer": (8, 8), "bias": (8,), "alone": (8, 8)}
        params = {"first": normal(3, n), "position": normal(4, n), "norm": normal(n), "last": normal(n, 2)}
        return apply, params | {"blocks": {name: normal(depth, *shape) for name, shape in blocks.items()}}

    for scanned in (True, False):
        uses = uses_of(*make(scanned), INPUTS)
        inside = {use.path.split("/")[-1]: use.last for use in uses if use.branch}
        assert inside == {"gain": False, "inner": False, "offset": False, "outer": True, "bias": True, "alone": True}
        assert branches(uses) == 6
        assert len({use.branch for use in uses if use.path in ("blocks/gain", "blocks/alone")}) == (2 if scanned else 6)


def test_a_branch_in_a_scan_is_of_what_acts_there():
    """What a scan is given is nobody's branch: a recurrent cell has none, and one that reads more than its stream its own."""

    def recurrent(p, x):
        def cell(state, x):
            h, c = state
            i, f, g = jnp.split(x @ p["in"] + h @ p["back"], 3, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jnp.tanh(c), c), None

        return lax.scan(cell, (x * 0, x * 0), jnp.stack([x, x]))[0][0] @ p["in"]

    def across(p, x):
        layer = lambda h, w: (h + (x + h @ p["in"][:, :3]) @ w, None)  # noqa: E731
        return lax.scan(layer, 2 * jnp.tanh(x @ p["back"][:, :3]), p["layers"])[0]

    params = {"in": normal(3, 9), "back": normal(3, 9), "layers": normal(2, 3, 3)}
    assert not branches(uses_of(recurrent, params, INPUTS))
    uses = uses_of(across, params, INPUTS)
    assert [(use.path, bool(use.branch), use.last) for use in uses] == [
        ("back", False, False), ("in", True, False), ("layers", True, True)]  # fmt: skip


def test_tokens_of_their_own_are_embeddings():
    """As a ViT's class token, and registers: weights that are put beside activations; constants after them are theirs too."""

    def make(width):
        shapes = {"patch": (3, width), "class": (1, 1, width), "register": (2, width), "last": (width, 2)}

        def apply(p, x):
            h = jnp.stack([x, x], axis=1) @ p["patch"]
            h = jnp.concatenate([jnp.tile(p["class"], (len(x), 1, 1)), h], axis=1)
            h = 3 * jnp.concatenate([h, jnp.broadcast_to(p["register"] / 2, (len(x), *p["register"].shape))], axis=1)
            return jnp.tanh(h)[:, 0] @ p["last"]

        return {name: normal(*shape) for name, shape in shapes.items()}, apply

    found = {path: role for path, (role,) in of(make).items()}
    assert {path: role.name for path, role in found.items()} == {
        "patch": "input", "class": "embedding", "register": "embedding", "last": "readout"}  # fmt: skip
    assert (found["register"].use.multiplier, found["register"].use.fan_out) == (1.5, 16)
    params, apply = make(8)
    outputs, uses, signals = follow(apply, params, INPUTS, jax.tree.map(lambda leaf: 0.9 * leaf, params))
    np.testing.assert_allclose(outputs, apply(params, INPUTS), rtol=1e-5)
    for use, signal in zip(uses, signals, strict=True):
        np.testing.assert_allclose(signal.own, 0.1 * signal.output, rtol=1e-4, atol=1e-6, err_msg=str(use))


def test_tied_weights():
    def make(width):
        return {"table": normal(7, width)}, lambda p, x: jnp.tanh(p["table"][jnp.int32(x) % 7]).mean(1) @ p["table"].T / width

    embedding, readout = of(make)["table"]
    assert (embedding.use.operation, readout.use.operation) == ("embedding", "product")
    assert (embedding.name, readout.name, readout.multiplier) == ("embedding", "readout", pytest.approx(-1))
    assert str(readout) == "table: product, fan-in N^1, fan-out 7, tied with its embedding"


def test_paths():
    tree = {"blocks": [{"w": 1.0}, {"w": 2.0}], "head": (3.0,)}
    assert paths(tree) == ["blocks/0/w", "blocks/1/w", "head/0"]


def test_without_pytorch_it_is_said_where_to_have_it(monkeypatch):
    load.cache_clear()
    for name in ("torch", "torchax"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as mistake:
        from_torch(lambda width: 1 / 0, "mse", BATCH).at(4, KEY)
    assert str(mistake.value) == "not installed: torch, torchax; the extra torch of this package has both"


def a_model(build, loss="mse", batch=BATCH):
    return Model(build, loss, batch)


class Module:
    def __init__(self, width, *, key=None, rngs=None):
        self.width, self.random = width, (key, rngs)

    def __call__(self, x):
        return x


def test_what_makes_a_network_is_given_random_numbers_by_their_name():
    """As flax.nnx has it, ``__init__(self, width, *, rngs)``; or where there is no such name, after the width."""
    assert _made(Module, 8, rngs="some").random == (None, "some")
    assert _made(partial(Module), 8, key="a key").random == ("a key", None)
    assert _made(lambda width, other: (width, other), 8, rngs="some") == (8, "some")
    assert _made(lambda width: width, 8) == 8


KEY = jax.random.key(0)
MISTAKES = {
    "model is type: wanted a Model(build, loss, batch) of finite.networks.own, or from_nnx": lambda: require_model(Module),
    "returned ndarray": lambda: a_model(lambda width, key: np.ones(3)).at(4, KEY),
    "params hold no arrays": lambda: a_model(lambda width, key: ({}, len)).at(4, KEY),
    "count is of int32: params are arrays of real numbers": lambda: a_model(
        lambda width, key: ({"count": jnp.arange(3)}, len)).at(4, KEY),
    "closes over others": lambda: roles(a_model(lambda width, key: ({"w": jnp.ones((3, width))}, lambda p, x: x))),
    "the width changes nothing": lambda: roles(a_model(lambda width, key: ({"w": jnp.ones((3, 2))}, lambda p, x: x @ p["w"]))),
    "differ in more than their shapes": lambda: roles(a_model(lambda width, key: (
        {"w": jnp.ones((3, width)), **({"b": jnp.ones(width)} if width > 64 else {})},
        lambda p, x: x @ p["w"] + p.get("b", 0.0)))),
    "unknown loss 'l2'": lambda: a_model(len, "l2"),
    "labels of classes are integers, these are float32": lambda: a_model(len, "cross_entropy").of_outputs(INPUTS, jnp.ones(4)),
    "make is one Module, of one width: wanted what makes it of any, lambda width: Module(width), say": lambda: from_linen(
        Module(8), "mse", BATCH).at(8, KEY),
    "wanted the pair (inputs, targets)": lambda: a_model(len, batch=(INPUTS, INPUTS, INPUTS)),
    "array of shape (4,): wanted one number": lambda: a_model(len, lambda f, y: f[:, 0]).of_outputs(*BATCH),
    "outputs of shape (4, 3) and targets of shape (4, 2)": lambda: a_model(len).of_outputs(*BATCH),
}  # fmt: skip


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_end_in_one_line(line):
    with pytest.raises(ValueError) as mistake:  # noqa: PT011  (below)
        MISTAKES[line]()
    assert line in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_labels_are_classes():
    outputs, labels = normal(4, 5, 3), jnp.asarray(np.random.default_rng(1).integers(3, size=(4, 5)))
    of = a_model(len, "cross_entropy").of_outputs
    np.testing.assert_allclose(of(outputs, labels), of(outputs, jax.nn.one_hot(labels, 3)), rtol=1e-6)
    assert np.isnan(of(outputs, labels - 1))
    assert np.isnan(of(outputs, labels + 1))


def centred(x):
    return x - jnp.mean(x, -1, keepdims=True)


@pytest.mark.parametrize("apply", [
    lambda p, x: centred(jnp.tanh(x @ p["first"]) * p["gain"]) @ p["last"],  # a normalisation behind a gain
    lambda p, x: (h := x @ p["first"], centred(h + jnp.tanh(h) * p["gain"]) @ p["last"])[1],  # a branch's own scale
    lambda p, x: (h := jnp.tanh(x @ p["first"]) * p["gain"], h @ p["last"] + jnp.sum(h, -1, keepdims=True) / h.shape[1])[1],
], ids=["norm", "branch", "also summed"])  # fmt: skip
def test_a_gain_whose_units_are_summed_beside_another_use_is_a_gain(apply):
    def build(width, key):
        return {"first": jnp.ones((3, width)), "gain": jnp.ones(width), "last": jnp.ones((width, 1))}, apply

    found = {role.use.path: role for role in roles(Model(build, "mse", (jnp.ones((4, 3)), jnp.ones((4, 1)))))}
    assert {path: role.name for path, role in found.items()} == {"first": "input", "gain": "norm_gain", "last": "readout"}
    assert found["gain"].use.multiplier == 1
