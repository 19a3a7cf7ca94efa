"""Curvature against PyTorch: the same weights, PyTorch's own layers and derivatives, SciPy's eigensolver.

Run where PyTorch is installed, which is no dependency: pip install torch.
"""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its curvature is compared where it is")

from trained import train  # noqa: E402

from finite.curvature import operators as curvature  # noqa: E402  (after the skip)
from finite.curvature.host import sharpness_of_matvec  # noqa: E402
from finite.curvature.own import objective, sharpness  # noqa: E402
from finite.networks.conv import conv  # noqa: E402
from finite.networks.own import Model  # noqa: E402
from limits import Problem  # noqa: E402
from limits.exponents.parametrization import output_multiplier  # noqa: E402
from limits.losses import LOSSES  # noqa: E402
from limits.machine import computing  # noqa: E402

WIDTH, SAMPLES, CLASSES = 4, 6, 3
ROLES = ("hidden", "input", "readout")  # in the order in which JAX flattens them
POOL = {"max": torch.nn.functional.max_pool2d, "average": torch.nn.functional.avg_pool2d}

SMALL, CIFAR = (8, 8, 1), (32, 32, 3)
CASES = [
    (SMALL, {}),
    (SMALL, {"loss": "cross_entropy"}),
    (SMALL, {"parametrization": "sp", "pooling": "average"}),
    (CIFAR, {"loss": "cross_entropy", "pooling": "average"}),
    (CIFAR, {}),
]


def a_problem(image, **changes):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES, np.prod(image)))
    targets = np.eye(CLASSES)[rng.integers(CLASSES, size=SAMPLES)]
    return Problem(inputs, targets, model="conv", num_steps=0, richness=0.7, image_shape=image, **changes)


def same(x, stride):
    """The border of zeros that "SAME" has in XLA: with a stride there is more of it below and to the right, or none."""
    pads = []
    for side in x.shape[:1:-1]:  # torch pads the last axis first
        total = max((-(-side // stride) - 1) * stride + 3 - side, 0)
        pads += [total // 2, total - total // 2]
    return torch.nn.functional.pad(x, pads)


def convolution(x, kernel, stride):
    """``kernel`` (9·channels, n), rows of which are row, column and channel of a pixel, on x (P, channels, H, W); 1/√9."""
    kernel = kernel.reshape(3, 3, x.shape[1], -1).permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(same(x, stride), kernel / 3, stride=stride)


def outputs(problem, multipliers, weights):
    """f of the stored weights, as ``finite.networks.conv`` defines it."""
    H, W, channels = problem.image
    pool = POOL[problem.pooling]
    hidden, first, readout = (multipliers[role] * w for role, w in zip(ROLES, weights, strict=True))
    x = torch.tensor(problem.inputs).reshape(-1, H, W, channels).permute(0, 3, 1, 2) / channels**0.5
    x = pool(torch.relu(convolution(x, first, 2)), 2)
    x = torch.relu(convolution(x, hidden, 4))
    x = pool(x, 2) if min(x.shape[2:]) > 1 else x
    features = x.permute(0, 2, 3, 1).flatten(1)
    return features @ readout / (x.shape[2] * x.shape[3]) ** 0.5


def loss(problem, multipliers, weights):
    f, y = outputs(problem, multipliers, weights), torch.tensor(problem.targets)
    if problem.loss == "cross_entropy":
        return torch.nn.functional.cross_entropy(f, y)
    return ((f - y) ** 2).sum() / (2 * len(f))


class InTorch:
    """Loss and products with its Hessian, of flat vectors in the order of JAX, by two passes backwards."""

    def __init__(self, problem, network, params):
        self.weights = [torch.tensor(np.float64(params[role]), requires_grad=True) for role in ROLES]
        self.loss = loss(problem, network.numbers("multiplier"), self.weights)
        self.gradient = torch.cat([g.flatten() for g in torch.autograd.grad(self.loss, self.weights, create_graph=True)])
        rates = network.numbers("learning_rate")
        self.root = np.concatenate([np.full(params[role].size, rates[role]) for role in ROLES]) ** 0.5

    def product(self, v):
        along = self.gradient @ torch.tensor(np.ravel(v))
        rows = torch.autograd.grad(along, self.weights, retain_graph=True)
        return torch.cat([row.flatten() for row in rows]).numpy()

    def eigenvalues(self, count, which):
        """Of √r H √r, r the learning rate of each weight over η0: γ² in μP and NTP."""
        size = len(self.root)
        operator = LinearOperator((size, size), matvec=lambda v: self.root * self.product(self.root * np.ravel(v)))
        start = np.random.default_rng(0).normal(size=size)
        return eigsh(operator, count, which=which, v0=start, ncv=min(size, 60), tol=1e-12, return_eigenvectors=False)[::-1]


@pytest.fixture(params=CASES, ids=lambda case: "×".join(map(str, case[0])) + ",".join(["", *case[1].values()]))
def case(request):
    image, changes = request.param
    problem = a_problem(image, **changes)
    network, key = conv(problem, WIDTH, problem.pooling), jax.random.key(3)
    return problem, network, key, InTorch(problem, network, network.init(key))


def test_products_are_those_of_pytorch(case):
    problem, network, key, in_torch = case
    with computing("float64"):
        params = jax.tree.map(jnp.float64, network.init(key))
        flat, unravel = ravel_pytree(params)
        matvec = curvature.hessian(network.apply, params, jnp.asarray(problem.inputs), jnp.asarray(problem.targets),
                                   LOSSES[problem.loss])  # fmt: skip
        assert in_torch.product(np.zeros(flat.size)).shape == flat.shape
        for seed in range(3):
            v = np.random.default_rng(seed).normal(size=flat.size)
            ours = ravel_pytree(matvec(unravel(jnp.asarray(v))))[0]
            expected = in_torch.product(v)
            np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-11 * np.abs(expected).max())


def test_lanczos_agrees_with_products_of_pytorch(case):
    problem, network, key, in_torch = case
    size = len(in_torch.root)
    (got,) = train(problem, network, key[None], precision="float64", rtol=1e-9, max_matvecs=size,
                   observables=["loss", "hessian_eigenvalues", "hessian_min"])  # fmt: skip
    if problem.parametrization == "mup":
        gamma = output_multiplier(problem.scaling(), problem.richness, WIDTH)
        np.testing.assert_allclose(in_torch.root, gamma)
    largest, (smallest,) = in_torch.eigenvalues(problem.top_k, "LA"), in_torch.eigenvalues(1, "SA")
    assert largest[-1] > 1e-3
    assert smallest < -1e-3
    assert got["loss"][0] == pytest.approx(in_torch.loss.item(), rel=1e-12)
    np.testing.assert_allclose(got["hessian_eigenvalues"][0], largest, rtol=1e-6)
    np.testing.assert_allclose(got["hessian_min"][0], smallest, rtol=1e-6)


def a_torch_network(seed):
    """Attention and a perceptron with LayerNorm, on tokens, with PyTorch's layers; float64."""
    from torch import nn

    torch.manual_seed(seed)
    layers = {"embed": nn.Embedding(11, 16), "norm": nn.LayerNorm(16), "attend": nn.MultiheadAttention(16, 2, batch_first=True),
              "up": nn.Linear(16, 32), "down": nn.Linear(32, 11)}  # fmt: skip
    return nn.ModuleDict(layers).double()


def of_torch(layers, tokens):
    h = layers["embed"](tokens)
    x = layers["norm"](h)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the only one that can be derived twice
        h = h + layers["attend"](x, x, x, need_weights=False)[0]
    return layers["down"](torch.nn.functional.gelu(layers["up"](h)))


def of_jax(p, tokens):
    """The same, of the same weights by name."""
    h = p["embed.weight"][tokens]
    centred = h - h.mean(-1, keepdims=True)
    x = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["norm.weight"] + p["norm.bias"]
    made = x @ p["attend.in_proj_weight"].T + p["attend.in_proj_bias"]
    q, k, v = (one.reshape(*tokens.shape, 2, 8) for one in jnp.split(made, 3, axis=-1))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5), v)
    h = h + mixed.reshape(h.shape) @ p["attend.out_proj.weight"].T + p["attend.out_proj.bias"]
    h = jax.nn.gelu(h @ p["up.weight"].T + p["up.bias"], approximate=False)
    return h @ p["down.weight"].T + p["down.bias"]


@pytest.mark.parametrize(("precision", "agree"), [("float64", 1e-7), ("float32", 1e-5)])
def test_sharpness_of_the_same_network(precision, agree):
    """By our products with its weights, in either precision, and by the host's Lanczos with PyTorch's own in float64."""
    layers, rng = a_torch_network(0), np.random.default_rng(0)
    tokens, labels = rng.integers(11, size=(2, 4, 6))
    weights = list(layers.parameters())
    outputs = of_torch(layers, torch.tensor(tokens))
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), torch.tensor(labels).flatten())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])

    def product(v):
        rows = torch.autograd.grad(gradient @ torch.from_numpy(v), weights, retain_graph=True)
        return torch.cat([row.flatten() for row in rows]).numpy()

    theirs = sharpness_of_matvec(product, len(gradient), top=3, rtol=1e-8, dtype=np.float64).values
    with computing(precision):
        params = {name: jnp.asarray(w.detach().numpy(), precision) for name, w in layers.named_parameters()}
        model = Model(lambda width, key: (params, of_jax), "cross_entropy", (tokens, labels))
        ours = np.asarray(sharpness(objective(model, of_jax), params, model.batch, top=3, rtol=1e-8).values, float)
    print(f"{precision}: {ours}, relative difference {np.max(np.abs(ours / theirs - 1)):.1e}")
    np.testing.assert_allclose(ours, theirs, rtol=agree)
