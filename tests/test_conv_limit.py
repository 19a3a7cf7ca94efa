"""SimpleConvNet at N = ∞: real matrices in its place, dense networks, the kernel limit, and trained networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comparisons.statistics.power_law import fit
from finite.networks.build import build
from finite.training.train import train
from limits import Problem, minibatches
from limits.deep import conv, conv_network, curvature, dmft, lanczos, network
from limits.deep.gaussian_matrix import unmet
from limits.exponents.parametrization import interpolated
from limits.kernel import ntk
from limits.losses import LOSSES
from limits.machine import in_float64

RNG = np.random.default_rng(0)
TWO_PLACES = (20, 10, 1)  # 5 × 2 pixels before the second convolution, 2 × 1 behind it: patches of 3 × 2
X, Y = RNG.normal(size=(3, 200)), RNG.normal(size=(3, 2))
CLASSES = np.eye(2)[[0, 1, 1]]
OPTIMISER = {"momentum": 0.5, "weight_decay": 0.1, "batches": minibatches(np.random.default_rng(1), 3, 2, 4)}


def a_problem(inputs=X, targets=Y, param="mup", **options):
    usual = {"model": "conv", "image_shape": TWO_PLACES, "learning_rate": 0.3, "num_steps": 4, "measure_every": 2}
    return Problem(inputs, targets, param, **usual | options)


# A matrix that has met everything is a real one


def kernels_of(problem, params, N):
    """Of the convolutions behind the first, without the pixels that are beyond the border wherever the kernel is (KN, N)."""
    kind = conv.kind_of(problem)
    kernels = params["block" if kind.residual else "hidden"].reshape(-1, 3, 3, N, N)
    left = [kind._left(layer, sides) for layer, sides in enumerate(kind.places[:-1])]
    seen = [np.ix_(*(conv_network.taps(side, kind.stride) for side in sides)) for sides in left]
    return [kernel[pixels].reshape(-1, N) for kernel, pixels in zip(kernels, seen, strict=True)]


def in_place_of_infinite(problem, params, N, tangents=1):
    """(kind, data, state before step 0) whose neurons are those of a network of width N, and whose matrices are its kernels."""
    kind, data = conv._read(problem, 4, 2)
    data = data._replace(space=data.space._replace(weight=1.0 / N, normed=jnp.asarray(False)))
    matrices, rng = [], np.random.default_rng(1)
    for kernel, rows in zip(kernels_of(problem, params, N), kind.rows(data), strict=True):
        room = rng.normal(size=(tangents * rows, len(kernel)))
        matrix = unmet(jnp.concatenate([kernel, room[:, :N]]), jnp.concatenate([kernel.T, room]))
        below, above = (np.sqrt(N) * jnp.eye(n + len(room), n) for n in (len(kernel), N))
        count = jnp.asarray(len(kernel)), jnp.asarray(N)
        matrices.append(matrix._replace(below=below, above=above, num_below=count[0], num_above=count[1]))
    last = params["readout"].T.reshape(problem.num_outputs, -1)
    sent, returned = (tuple(getattr(matrix, name) for matrix in matrices) for name in ("sent", "returned"))
    state = conv_network.begin(kind, data, params["input"], sent, returned, last)
    return kind, data, jax.tree.map(jnp.copy, state._replace(matrices=tuple(matrices)))


def a_network(problem, N):
    """(network, its weights)"""
    net = build(problem, N)
    return net, jax.tree.map(lambda of: of.astype(float), net.init(jax.random.key(0)))


def dense_ntk(net, params, inputs):
    """Of a network, by automatic differentiation."""
    jacobian, rates = jax.jit(jax.jacobian(net.apply))(params, inputs), net.numbers("learning_rate")
    return sum(rates[role] * jnp.tensordot(J, J, [tuple(range(2, J.ndim))] * 2) for role, J in jacobian.items())


SMALL = {"inputs": 9 * RNG.normal(size=(2, 64)), "image_shape": (8, 8, 1), "targets": CLASSES[:2], "loss": "cross_entropy",
         "num_steps": 2, "learning_rate": 5.0}  # fmt: skip
NETWORKS = {
    "max": OPTIMISER,
    "average": {"pooling": "average", "loss": "cross_entropy", "targets": CLASSES},
    "convnet": SMALL | {"model": "convnet", "depth": 3, "pooling": "average"},
    "resconvnet": SMALL | {"model": "resconvnet", "depth": 4, "param": "depth_mup"},
}
DEEP = ("convnet", "resconvnet")  # more to compile; the ConvNet of one hidden layer has what they are made of
for_each_network = pytest.mark.parametrize("options", [
    pytest.param(options, marks=pytest.mark.slow if name in DEEP else [], id=name) for name, options in NETWORKS.items()])


@for_each_network
@in_float64
def test_a_network_in_place_of_the_infinite_one_trains_as_it_does(options):
    N, problem = 6, a_problem(richness=0.7, **options)
    (net, params), (P, C) = a_network(problem, N), problem.targets.shape
    kind, data, state = in_place_of_infinite(problem, params, N)
    state = conv_network.advance(kind, data, state, 1)
    # the limit starts at f = 0: so does the network
    params["readout"] = state.fields.weights.last.reshape(C, -1).T
    inputs, targets = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
    rates, velocity = net.numbers("learning_rate"), jax.tree.map(jnp.zeros_like, params)
    gradients = jax.jit(jax.grad(lambda params, x, y: LOSSES[problem.loss].mean(net.apply(params, x), y)))
    more = conv_network.more_draws(kind, RNG, [(0, C * rows) for rows in kind.rows(data)], N)
    for t in range(problem.num_steps):
        rows = np.arange(P) if problem.batches is None else problem.batches[t]
        theta = conv_network.ntk(kind, data, state.matrices, state.fields, *more)
        np.testing.assert_allclose(state.fields.outputs, net.apply(params, inputs), atol=1e-10)
        np.testing.assert_allclose(theta, dense_ntk(net, params, inputs), atol=1e-10)
        gradient = gradients(params, inputs[rows], targets[rows])
        for role in params:
            step = rates[role] * gradient[role] + problem.weight_decay * params[role]
            velocity[role] = problem.momentum * velocity[role] + step
            params[role] = params[role] - problem.learning_rate * velocity[role]
        state = conv_network.advance(kind, data, state, t + 2)
    assert np.abs(state.fields.outputs).max() > 0.01


@pytest.mark.parametrize("options", [
    pytest.param(NETWORKS["max"], id="max"),
    *(pytest.param(NETWORKS[name], marks=pytest.mark.slow, id=name) for name in DEEP),
    pytest.param(NETWORKS["average"], marks=pytest.mark.long, id="average")])  # fmt: skip  # convnet has all that it has
@in_float64
def test_products_of_the_hessian_are_those_of_autodiff(options):
    """Behind a training step, for two tangents at once; and the eigenvalues that Lanczos finds with them are its."""
    N, problem = 6, a_problem(richness=0.7, **options | {"num_steps": 1, "batches": None})
    (net, params), C = a_network(problem, N), problem.num_outputs
    kind, data, state = in_place_of_infinite(problem, params, N, tangents=2)
    state = conv_network.advance(kind, data, state, 2)
    rates, layers = net.numbers("learning_rate"), len(state.matrices)
    counts = [(int(matrix.num_below), N) for matrix in state.matrices]

    def real(tangent):
        """In orthonormal coordinates of the kernels that ``kernels_of`` has."""
        trained = [A[:N, :n].T for A, (n, _) in zip(tangent.trained, counts, strict=True)]
        return [tangent.first / np.sqrt(N), *trained, tangent.last / np.sqrt(N)]

    left, now = state.fields.weights.left, state.fields
    weights = real(now.weights._replace(first=now.weights.first * np.sqrt(N), last=now.weights.last * np.sqrt(N)))
    scale = data.scales[1]
    initial = kernels_of(problem, params, N)
    weights[1:-1] = [(left * W / np.sqrt(N) + A) * np.sqrt(N) / scale for W, A in zip(initial, weights[1:-1], strict=True)]
    role = "block" if kind.residual else "hidden"
    everywhere = [jax.linear_transpose(lambda kernel, l=l: kernels_of(problem, {role: kernel}, N)[l], params[role]) for l in
                  range(layers)]  # fmt: skip

    def loss(weights):
        first, *kernels, last = weights
        whole = sum(put(kernel)[0] for put, kernel in zip(everywhere, kernels, strict=True))
        given = {"input": first, role: whole, "readout": last.reshape(C, -1).T}
        return LOSSES[problem.loss].mean(net.apply(given, jnp.asarray(problem.inputs)), jnp.asarray(problem.targets))

    metric = [rates["input"], *[rates[role]] * layers, rates["readout"]]
    hessian = jax.jit(lambda along: jax.jvp(jax.grad(loss), (weights,), (along,))[1])

    def expected(v):
        along = hessian([np.sqrt(rate) * of for rate, of in zip(metric, v, strict=True)])
        return [np.sqrt(rate) * of for rate, of in zip(metric, along, strict=True)]

    matrices, linearised = kind.linearised(data, now, state.matrices)
    draw = np.random.default_rng(2).normal
    tangents = jax.tree.map(lambda of: jnp.asarray(draw(size=(2, *of.shape))), now.weights)
    met = [(np.arange(A.shape[1])[:, None] < m) & (np.arange(A.shape[2]) < n)
           for A, (n, m) in zip(tangents.trained, counts, strict=True)]  # fmt: skip
    tangents = tangents._replace(trained=tuple(A * of for A, of in zip(tangents.trained, met, strict=True)))
    products = {parts: kind.product(data, linearised, matrices, tangents, parts)[1] for parts in
                (lanczos.HESSIAN, lanczos.GAUSS_NEWTON, lanczos.RESIDUAL)}  # fmt: skip
    for i in range(2):
        v, whole, *parts = (real(jax.tree.map(lambda of, i=i: of[i], each)) for each in (tangents, *products.values()))
        for ours, theirs, *both in zip(whole, expected(v), *parts, strict=True):
            assert np.abs(theirs).max() > 1e-3
            np.testing.assert_allclose(ours, theirs, atol=1e-10)
            np.testing.assert_allclose(sum(both), ours, atol=1e-12)


# Parts of the Hessian


@pytest.mark.parametrize("options", [{}, NETWORKS["average"]], ids=["max", "average"])
@in_float64
def test_gauss_newton_part_alone_has_the_eigenvalues_of_the_kernel(options):
    """Of one run: Lanczos on fields, and the matrix over samples and outputs."""
    problem = a_problem(num_steps=2, **options)
    kind, data = conv._read(problem, 256, 2)
    *_, state = conv.run(problem, kind, data, 256, np.random.default_rng(0))
    more = conv_network.more_draws(kind, RNG, [(0, 2 * rows) for rows in kind.rows(data)], 256)
    theta = conv_network.ntk(kind, data, state.matrices, state.fields, *more)
    exact = dmft.observables(kind, data, state.fields.outputs[None], theta[None], 3)["gauss_newton_eigenvalues"][0]
    found = lanczos.spectrum(kind, data, np.random.default_rng(1), state, 3, 2, lanczos.GAUSS_NEWTON)
    np.testing.assert_allclose(found.values[:3], exact, atol=2e-3 * exact[0])


# Other limits


@in_float64
def test_one_pixel_is_a_perceptron():
    """Of images of one pixel only the middle of a kernel is left, over 3: mlp3, step by step with the same Gaussians."""
    problem = a_problem(9 * X[:, :2], Y[:, :2] + 1, image_shape=(1, 1, 2), learning_rate=1.0)
    kind, data = conv._read(problem, 512, 2)
    data = data._replace(space=data.space._replace(tolerance=jnp.asarray(1e-10)))
    first, sent, returned, last = conv_network.first_draws(kind, np.random.default_rng(0), (2, 3, 2), [(64, 64)], 512)
    ours = conv_network.begin(kind, data, first, sent, returned, last)
    perceptron = network.Kind("relu", "mse", False, False)
    data_of_it = data._replace(scales=data.scales / np.array([1, 3, 1]), rates=data.rates / np.array([1, 9, 1]))
    theirs = network.begin(perceptron, data_of_it, first, sent[0][None], returned[0][None], last)
    ours, theirs = conv_network.advance(kind, data, ours, 5), network.advance(perceptron, data_of_it, theirs, 5)
    assert int(ours.step) == int(theirs.step) == 5
    np.testing.assert_allclose(ours.fields.outputs, theirs.fields.outputs, rtol=1e-9)
    assert np.abs(ours.fields.outputs).max() > 0.1
    theta = conv_network.ntk(kind, data, ours.matrices, ours.fields, *conv_network.more_draws(kind, RNG, [(0, 6)], 512))
    gradients = dmft.gradients(perceptron, data_of_it, theirs)
    np.testing.assert_allclose(theta, dmft.ntk(perceptron, data_of_it, theirs.fields, gradients), rtol=1e-8)
    signals = jnp.asarray(RNG.normal(size=(1, 3, 2)))
    tridiagonal = []
    for model, at, state in ((kind, data, ours), (curvature.Perceptron(perceptron), data_of_it, theirs)):
        matrices, now, krylov = lanczos.begin(model, at, state.fields, state.matrices, signals, 6)
        for _ in range(6):
            matrices, krylov = lanczos.extended(model, at, jnp.asarray(lanczos.HESSIAN), now, matrices, krylov)
        tridiagonal.append(krylov.matrix)
    np.testing.assert_allclose(*tridiagonal, atol=1e-9 * np.abs(tridiagonal[0]).max())
    assert np.abs(tridiagonal[0][1, 0]) > 1e-3 * np.abs(tridiagonal[0]).max()


def test_little_richness_is_the_kernel_limit():
    """Of average pooling, which has an analytic kernel."""
    problem = a_problem(richness=0.01, pooling="average")
    lazy = ntk.solve(replace(problem, parametrization=interpolated(0.25)))
    limit = conv.solve(problem, samples=1024, hessian=False)
    for name in ("loss", "ntk_eigenvalues"):
        assert (np.abs(limit[name] - lazy[name]) < 3 * limit.error(name) + 1e-4).all(), name
        assert limit.error(name).max() < 0.03 * lazy[name].max()
    assert np.ptp(lazy["loss"]) > 10 * limit.error("loss").max()


@in_float64
def test_gradients_have_no_more_room_than_samples_have_directions():
    """Where they are all met what comes then is dropped, and nothing is written over."""
    problem, S = a_problem(num_steps=40, measure_every=40), 64
    kind, data = conv._read(problem, S, 2)
    *_, state = conv.run(problem, kind, data, S, np.random.default_rng(0))
    state, _ = kind.wider(data, RNG, state, state.velocity, 2, lanczos.FEWEST)
    state, _ = kind.wider(data, RNG, state, state.velocity, 2, lanczos.FEWEST)
    assert kind.has_room(data, state.matrices, 2, 1)
    for matrix, rows in zip(state.matrices, kind.rows(data), strict=True):
        met = np.arange(len(matrix.above)) < matrix.num_above
        assert S - rows < matrix.num_above <= S
        assert len(matrix.above) <= S + 2 * rows
        np.testing.assert_allclose(data.space.products(matrix.above, matrix.above), np.diag(met), atol=1e-10)


def test_a_step_must_leave_directions_to_the_next():
    problem = a_problem(X, model="convnet", depth=3)
    with pytest.raises(ValueError, match=r"^128 samples: a step brings a matrix 150 gradients, wanted at least 1024 samples$"):
        conv.solve(problem, samples=128)
    with pytest.raises(ValueError, match=r"no limit of blocks of 2 convolutions is known: block_size 1 only"):
        conv.solve(a_problem(X, param="depth_mup", model="resconvnet", block_size=2))
    with pytest.raises(ValueError, match=r"^no limit is known of one convolution and a readout: depth 2 at least$"):
        conv.solve(a_problem(X, model="convnet", depth=1))


# Networks


KERNELS, SHARPNESS = ("loss", "ntk_eigenvalues"), ("hessian_eigenvalues",)
MAX = {"momentum": 0.5, "batches": OPTIMISER["batches"]}
AVERAGE = {"pooling": "average", "targets": CLASSES, "loss": "cross_entropy"}
ALONE = {"pooling": "average", "targets": 0.3 * np.array([[1.0], [-1.0], [0.5]]), "learning_rate": 1.5}  # far above the bulk


@pytest.mark.slow
@pytest.mark.parametrize(("options", "names"), [
    pytest.param(MAX, KERNELS, id="max"), pytest.param(MAX, SHARPNESS, marks=pytest.mark.long, id="sharpness, max"),
    pytest.param(AVERAGE, KERNELS, marks=pytest.mark.long, id="average"),
    pytest.param(ALONE, SHARPNESS, marks=pytest.mark.long, id="sharpness, average"),
])  # fmt: skip
def test_networks_approach_the_limit(options, names):
    """Loss, largest NTK eigenvalue and sharpness: the distance falls as N^{-1/2}."""
    problem = a_problem(**{"num_steps": 4, "measure_every": 4, "top_k": 1, "learning_rate": 0.6} | options)
    limit = conv.solve(problem, hessian="hessian_eigenvalues" in names)
    widths, distances = (32, 64, 128, 256), {name: [] for name in names}
    for width in widths:
        networks = train(problem, build(problem, width), jax.random.split(jax.random.key(width), 24), observables=names)
        for name in names:
            distances[name].append([np.ravel(one[name] - limit[name])[-1] for one in networks])
    for name, errors in distances.items():
        error = float(np.ravel(limit.error(name))[-1])
        law = fit(widths, np.array(errors), noise_floor=error)
        assert law.interval[0] <= -0.5 <= law.interval[1], (name, law)
        assert law.interval[1] < -0.15  # a wrong limit would leave a distance that does not fall
        assert abs(np.mean(errors[-1])) < 3 * np.hypot(np.std(errors[-1]) / np.sqrt(24), error)
