"""Optimisers beyond SGD and Adam: against optax's own, Shampoo and SOAP against matrices written out, and their curvature."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree
from trained import train

from comparisons.landscape import options as landscape
from finite.networks import by_role
from finite.networks.build import build
from finite.training.descent import UPDATES, descent
from finite.training.matrices import Sides, bases
from limits import Problem, predict
from limits.command.arguments import read
from limits.exponents.algebra import MUON_SCALES, architecture
from limits.machine import computing
from limits.optimizers import OPTIMIZERS

STEPS, BETAS, EPSILON, DECAY, MOMENTUM, ETA = 4, (0.8, 0.9), 0.01, 0.2, 0.6, 0.1
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))
MOVED = {"muon_unit": {"momentum": MOMENTUM}, "muon_keller": {"momentum": MOMENTUM, "nesterov": True},
         "muon_match_rms": {"momentum": MOMENTUM, "nesterov": True}}  # fmt: skip


def a_problem(optimizer, **changes):
    rest = {"num_steps": STEPS, "learning_rate": ETA, "weight_decay": DECAY, "betas": BETAS, "epsilon": EPSILON}
    return Problem(X, Y, **rest | {"parametrization": "sp", "optimizer": optimizer, "model": "mlp3", "richness": 0.7} | changes)


def paths(problem, network, optimizer_of):
    """Acting weights after every step, by ``descent`` and by a transformation per role of the stored ones, which see the same
    gradients: random, of rank 2, and so large as they are in the network.
    """
    numbers, rng = network.factors, np.random.default_rng(1)
    multiplier = network.numbers("multiplier")
    stored = jax.tree.map(jnp.float64, network.init(jax.random.key(0)))
    acting, update = by_role(multiplier, stored), descent(problem, network).transformation()
    theirs = optax.partition({role: optimizer_of(role, numbers[role]) for role in numbers}, {role: role for role in numbers})
    state, of_theirs = update.init(acting), theirs.init(stored)
    ours, in_optax = jax.jit(update.update), jax.jit(theirs.update)
    for _ in range(STEPS):
        drawn = jax.tree.map(lambda w: rng.normal(size=(*w.shape[:-1], 2)) @ rng.normal(size=(2, w.shape[-1])), stored)
        gradient = by_role({role: f.gradient for role, f in numbers.items()}, drawn)
        step, state = ours(by_role({role: 1 / m for role, m in multiplier.items()}, gradient), state, acting)
        acting = optax.apply_updates(acting, step)
        step, of_theirs = in_optax(gradient, of_theirs, stored)
        stored = optax.apply_updates(stored, step)
        yield acting, by_role(multiplier, stored)


def in_optax(optimizer, f):
    """Optax's own, of weights as stored."""
    rate, decay, epsilon = ETA * f.learning_rate, DECAY / f.learning_rate, EPSILON * f.epsilon
    if optimizer == "sign":
        return optax.chain(optax.scale_by_sign(), optax.add_decayed_weights(decay), optax.scale(-rate))
    if optimizer == "lion":
        return optax.lion(rate, *BETAS, weight_decay=decay)
    if optimizer == "lamb":
        return optax.lamb(rate, *BETAS, eps=EPSILON * f.gradient, weight_decay=DECAY / f.init_std)
    if optimizer == "adafactor":
        return optax.adafactor(rate, 1, weight_decay_rate=ETA * DECAY)
    options = MOVED.get(optimizer, {})
    rms = 0.2 if optimizer == "muon_match_rms" else None
    return optax.contrib.muon(rate, beta=options.get("momentum", 0), nesterov=options.get("nesterov", False), eps=epsilon,
                              weight_decay=decay, consistent_rms=rms)  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sign", "lion", "lamb", "adafactor", "muon_keller", "muon_match_rms"])
def test_optax_agrees(optimizer):
    problem = a_problem(optimizer, **MOVED.get(optimizer, {}))
    with computing("float64"):
        for ours, theirs in paths(problem, build(problem, 5), lambda role, f: in_optax(optimizer, f)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours, theirs)


@pytest.mark.parametrize("scale", MUON_SCALES)
def test_scales_of_muon(scale):
    """In front of the same UVᵀ: in numbers, and as powers of the width."""
    sizes = {"input": (3, 64), "hidden": (64, 64), "readout": (64, 2)}
    at = {"unit": (1, 1, 1), "keller": ((64 / 3) ** 0.5, 1, 1), "spectral": ((64 / 3) ** 0.5, 1, (2 / 64) ** 0.5),
          "match_rms": (1.6, 1.6, 1.6)}[scale]  # fmt: skip
    assert [MUON_SCALES[scale](n, m) for m, n in sizes.values()] == pytest.approx(at)
    roles = architecture("plain", 3)
    for role, (m, n) in sizes.items():
        found = [MUON_SCALES[scale](*(wide if size == 64 else size for size in (n, m))) for wide in (2.0**20, 2.0**24)]
        power = MUON_SCALES[scale].power(roles[role].fan_out, roles[role].fan_in)
        assert np.log2(found[1] / found[0]) / 4 == pytest.approx(float(power.N))


def written_out(soap, gradients):
    """P, a matrix on W flattened, and the mean of the gradients after the last: with all products of matrices written out."""
    (b1, b2), m = BETAS, np.zeros_like(gradients[0])
    (rows, columns), v = m.shape, np.zeros_like(m)
    L, R = np.zeros((rows, rows)), np.zeros((columns, columns))
    for g in gradients:
        m, L, R = b1 * m + (1 - b1) * g, b2 * L + (1 - b2) * g @ g.T, b2 * R + (1 - b2) * g.T @ g
        U, V = (np.linalg.eigh(side)[1] for side in (L, R))
        v = b2 * v + (1 - b2) * (U.T @ g @ V) ** 2
    t = len(gradients)
    basis = np.kron(U, V)  # of W flattened row by row
    diagonal = basis @ np.diag(np.sqrt(v / (1 - b2**t) + EPSILON).ravel()) @ basis.T
    sides = [side / (1 - b2**t) + EPSILON * np.eye(len(side)) for side in (L, R)]
    quarter = [scipy.linalg.fractional_matrix_power(side, 0.25) for side in sides]
    return diagonal if soap else np.kron(*quarter), m / (1 - b1**t)


@pytest.mark.parametrize("optimizer", ["shampoo", "soap"])
def test_shampoo_and_soap_are_matrices_written_out(optimizer):
    """Each step of a stored matrix is −η r P⁻¹ m̂ of gradients in units of their norm, and weight decay."""
    problem = a_problem(optimizer)
    with computing("float64"):
        network = build(problem, 5)
        f, role = network.factors["readout"], "readout"
        params = by_role(network.numbers("multiplier"), jax.tree.map(jnp.float64, network.init(jax.random.key(0))))
        transformation, rng = descent(problem, network).transformation(), np.random.default_rng(1)
        state, gradients, update = transformation.init(params), [], jax.jit(transformation.update)
        for _ in range(STEPS):
            drawn = jax.tree.map(lambda w: rng.normal(size=w.shape), params)
            gradients.append(drawn[role] * f.multiplier / f.epsilon)
            step, state = update(drawn, state, params)
            P, mean = written_out(optimizer == "soap", gradients)
            expected = np.linalg.solve(P, mean.ravel()).reshape(mean.shape) * f.learning_rate * f.multiplier
            np.testing.assert_allclose(step[role], -ETA * (expected + DECAY * params[role]), rtol=1e-7)
            params = optax.apply_updates(params, step)


def test_without_memory_shampoo_and_soap_are_muon():
    """At rank 2, ε → 0: UVᵀ."""
    gradient = np.random.default_rng(1).normal(size=(5, 2)) @ np.random.default_rng(2).normal(size=(2, 4))
    U, _, V = np.linalg.svd(gradient)
    for optimizer in ("shampoo", "soap"):
        problem = a_problem(optimizer, epsilon=1e-13, betas=(0.0, 0.0), weight_decay=0.0)
        with computing("float64"):
            transformation = UPDATES[optimizer].transformation(descent(problem, build(problem, 5)))
            params = {"input": jnp.zeros((3, 5)), "hidden": (jnp.zeros((5, 4)),), "readout": jnp.zeros((5, 2))}
            gradients = params | {"hidden": (jnp.asarray(gradient),)}
            step, _ = jax.jit(transformation.update)(gradients, transformation.init(params), params)
        step = np.array(step["hidden"][0])
        step *= np.sqrt(2) / np.linalg.norm(step)
        np.testing.assert_allclose(step, -U[:, :2] @ V[:2], atol=1e-4)


@pytest.mark.parametrize("optimizer", [pytest.param("shampoo", marks=pytest.mark.slow), "soap"])
def test_preconditioned_sharpness_is_that_of_the_dense_matrices(optimizer):
    """After two steps, of P written out for every matrix."""
    problem = a_problem(optimizer, num_steps=2, measure_every=2)
    network = build(problem, 4)
    (got,) = train(problem, network, jax.random.key(0)[None], precision="float64", rtol=1e-9,
                   observables=["loss", "preconditioned_sharpness"])  # fmt: skip
    with computing("float64"):
        params = by_role(network.numbers("multiplier"), jax.tree.map(jnp.float64, network.init(jax.random.key(0))))
        apply, update = network.architecture.apply, descent(problem, network)
        transformation = update.transformation()

        def loss(params):
            return jnp.sum((apply(params, jnp.asarray(X)) - Y) ** 2) / 2 / len(X)

        state, seen, slope, advance = transformation.init(params), [], jax.jit(jax.grad(loss)), jax.jit(transformation.update)
        for _ in range(2):
            seen.append(slope(params))
            step, state = advance(seen[-1], state, params)
            params = optax.apply_updates(params, step)
        flat, unravel = ravel_pytree(params)
        unit = {role: f.multiplier / f.epsilon for role, f in network.factors.items()}
        of_leaves = zip(*(jax.tree.leaves(by_role(unit, gradient)) for gradient in seen), strict=True)
        P = scipy.linalg.block_diag(*(written_out(optimizer == "soap", list(map(np.asarray, leaf)))[0] for leaf in of_leaves))
        M = {role: f.learning_rate * f.multiplier**2 / f.epsilon for role, f in network.factors.items()}
        root = np.sqrt(ravel_pytree(by_role(M, jax.tree.map(jnp.ones_like, params)))[0])
        H = root[:, None] * jax.hessian(lambda w: loss(unravel(w)))(flat) * root
    expected = scipy.linalg.eigh(H, P, eigvals_only=True)[-1]
    np.testing.assert_allclose(got["preconditioned_sharpness"], [np.nan, expected], rtol=1e-7)


NONE = [name for name, row in UPDATES.items() if row.inverse_root is None]


def test_what_has_no_preconditioner():
    assert {*NONE} == {"sign", "lion", "lamb", "adafactor", *(f"muon_{scale}" for scale in MUON_SCALES)}
    for name in NONE:
        problem = a_problem(name, weight_decay=0.0)
        message = f"^{name} has no preconditioned sharpness: its step is no known matrix times the gradient$"
        with pytest.raises(ValueError, match=message):
            train(problem, build(problem, 5), jax.random.key(0)[None], observables=["loss", "preconditioned_sharpness"])
        assert np.isnan(problem.edge_of_stability)
        assert read(landscape.Options, landscape.PROGRAM, ["--optimizer", name]).followed == ("loss", "hessian_eigenvalues")


@pytest.mark.parametrize("optimizer", [name for name, row in OPTIMIZERS.items() if not row.has_limits])
def test_limits_refuse_all_but_sgd(optimizer):
    problem = a_problem(optimizer, parametrization="mup", weight_decay=0.0)
    with pytest.raises(ValueError, match=f"^no limit is known with {optimizer}: only of networks trained by sgd$"):
        predict(problem)


@pytest.mark.parametrize("optimizer", [pytest.param("lamb", marks=pytest.mark.slow), "muon_spectral", "soap"])
def test_layers_of_a_stack_are_matrices_of_their_own(optimizer):
    """And gains of a stack vectors: as if each layer were alone."""
    problem = replace(a_problem("sgd", model="mlp"), inputs=np.zeros((6, 3)), model="gpt", parametrization="depth_mup",
                      optimizer=optimizer, depth=2, weight_decay=0.0)  # fmt: skip
    with computing("float64"):
        network, rng = build(problem, 8), np.random.default_rng(1)
        params = by_role(network.numbers("multiplier"), jax.tree.map(jnp.float64, network.init(jax.random.key(0))))
        transformation = descent(problem, network).transformation()

        def after(params):
            return jax.jit(transformation.update)(gradient(params), transformation.init(params), params)[0]

        drawn = jax.tree.map(lambda w: rng.normal(size=w.shape), params)
        gradient = lambda params: jax.tree.map(lambda g, w: jnp.asarray(g[-len(w) :]), drawn, params)  # noqa: E731
        blocks = ("block", "block_inner", "norm_gain")
        last = params | {role: jax.tree.map(lambda w: w[-1:], params[role]) for role in blocks}
        both, alone = after(params), after(last)
        for role in blocks:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a[-1:], b, rtol=1e-9), both[role], alone[role])


def test_decompositions_of_stacked_matrices_are_done_one_after_the_other():
    """As of a batch by vmap (test_lanczos): on a CPU they can wait for each other for ever."""
    sides = Sides(jnp.ones((), int), *(jnp.ones((3, *shape)) for shape in ((4, 5), (4, 4), (5, 5), (4, 5))))
    program = jax.jit(bases).lower(sides, jnp.asarray(0.9), jnp.asarray(0.1)).as_text()
    shapes = re.findall(r"stablehlo.custom_call @lapack_\w*syevd\w*\(.*?: \(tensor<([\dx]+)xf", program)
    assert shapes
    assert all(shape.count("x") == 1 for shape in shapes)
