"""How deep linear networks of finite width depart from their limit in μP: second-order expansion of the exact recursion.

At every width N a network trains within the span of what its matrices have met, and is exact in coordinates with respect
to its Gaussians (``limits.deep.network``).  Three things differ from N = ∞, and no other:

    Gaussians     those of one space of neurons are N-vectors; their inner products are not 0 and 1 but Wishart, those of
                  the rows of B, lower triangular, B_ij ~ N(0, 1/N) below the diagonal and B_ii² ~ χ²(N − i)/N on it
    conditioning  W on what is new to it is a Gaussian minus its part along the e_k, of whatever norm is left (the part
                  along e_k is what Wᵀ has told): ``limits.deep.gaussian_matrix``, not brought to norm 1
    f(0)          is <V_c h^L>/γ0 and not 0

A plain network has L spaces of neurons, a residual one has one.  With ε = N^{-1/2}, up to what is beyond 1/N,

    B = D + εℓ,   D_ii² = 1 − ε²(i + ½),     ℓ_ij ~ N(0,1) below the diagonal,  N(0,½) on it,     i = 0, 1, …

and o_N = o_∞ + ε o'[ℓ] + ½ε² o''[ℓ, ℓ] + …, so that as in ``limits.two_layer.linear_law`` std² = E o'² and bias = ½ E o'',
averages over draws of ℓ, with their standard errors.

Differentiation.  Fields that are dependent in the limit need not be so at finite width; their new direction has size ε, and
what is normalised there has no derivative at ε = 0.  Outputs and kernels have: at every N they are polynomials in the
weights.  So these are differentiated by central differences between the networks of ℓ and −ℓ at ε = ``STEP``, right to ε² of
what they are, and loss and eigenvalues as functions of them.  Directions smaller than ``TOLERANCE`` are left out, which
costs TOLERANCE/STEP² in o''.

The Hessian of these networks, at ε and −ε, is that of ``limits.deep.curvature``, by as many products in each: an eigenvalue
outside the bulk is a smooth function of ε, however little its vector is one, and is differentiated itself.  Eigenvalues that
are one in the limit cross at ε = 0, each on a smooth branch: the first of them at ε is the last at −ε, and the law is of
these branches.  Those of Θ have theirs by perturbation theory, as in ``limits.law.branches``.  There is no law of the edge of
the bulk, where those of R are, and of eigenvalues close to it: a finite network's are N^{-2/3} from it.

Cost.  A network is its fields in coordinates, about a hundred at any N.  1024 draws of 20 steps take, beside some 15 s of
compilation on two shared cores, 5 s for linear3 of 10 inputs, 30 s for 64 inputs, 100 s for three residual blocks of 10; the
Hessian at six of them, for linear3 of 10 inputs, a minute.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from limits.deep import curvature, lanczos
from limits.deep.gaussian_matrix import Space, combinations, has_room
from limits.deep.network import Data, Kind, State, begin, descended, forward
from limits.law import Group, Law, Prediction, branches, groups, law_of_draws, second_order
from limits.losses import LOSSES
from limits.machine import eigh, in_float64, require_memory
from limits.problem import Problem
from limits.spectra import apart, leading_eigenvalues, multiplets

STEP = 2.0**-9  # ε of the differences
TOLERANCE = 1e-10
ROOM = 24  # steps that there is room for whatever they bring; then it doubles
SIDE_BY_SIDE = 16  # draws
SHORT = 10  # so many times as long do multiplications take here: of small matrices, one draw beside the other
HESSIAN, NTK = "hessian_eigenvalues", "ntk_eigenvalues"
PRODUCTS = 12  # of a block, in a network
LEANING = 4  # power of the eigenvalues of the inputs' covariance in what these start from
FOUND = 1e-2  # residual, to the largest eigenvalue, of what so many products find; its square over the gap is the error
ROUGH = 0.3  # the most that o' may change by within an ε, of itself
SAME = 1e-6  # of the largest: eigenvalues of the Hessian that are closer are one
ALONE = 0.03  # of the largest: what is closer to others, or to the bulk, is moved by them even at so small an ε


class Sizes(NamedTuple):
    """r directions of the inputs, C outputs, H matrices between layers, each with room for n fields below and m above.

    new   how many directions a step brings at most to the features of a layer
    """

    r: int
    C: int
    H: int
    new: int
    n: int
    m: int


def _sizes(r, C, H, steps, below=0, above=0) -> Sizes:
    """With room for so many steps of plain networks, and more fields besides; the decay of residual ones asks for more.

    The first layer's features are moved along C gradients a step, by which of these r × C numbers say, the same at all later
    times: C new directions.  In further layers these numbers change, and past gradients may become new directions later.
    """
    at_once, on_average = min(r, C) if H <= 1 else r, min(r, max(H, 1) * C)
    return Sizes(r, C, H, at_once, r + steps * on_average + at_once + below, (steps + 1) * C + above)


class Smooth(NamedTuple):
    """What the observables are functions of: w and Θ, on directions and outputs, with the spectrum of γ²JJᵀ/P."""

    weights: Float[Array, "*T r C"]
    theta: Float[Array, "*T rC rC"]


class Ritz(NamedTuple):
    """values, largest first, zeros where there are none · residuals, bounds of their errors · directional g·Hg/|g|²."""

    values: Float[Array, "*T M"]
    residuals: Float[Array, "*T M"]
    directional: Float[Array, "*T"]


class Measured(NamedTuple):
    """smooth · kernels of features, in the directions of the inputs, and of gradients · left of the initial W^l · what so
    many products find of the Hessian."""

    smooth: Smooth
    features: Float[Array, "*T layers r r"]
    gradients: Float[Array, "*T layers C C"]
    left: Float[Array, "*T"]
    hessian: Ritz


@in_float64
def predict(
    problem: Problem, kind: Kind, data: Data, *, draws: int = 1024, seed: int = 0, hessian: bool = True
) -> Prediction:
    """The laws of the observables at the measured steps, of linear networks trained on MSE; of the Hessian, if wanted, what is
    outside its bulk.

    ``kind``, ``data``  the network, as ``limits.deep.dmft`` reads it;  ``draws``  of ℓ, over which the errors are standard
                        errors;  ``hessian``  takes most of the time.  Raises MemoryError, in one line.
    """
    data = data._replace(space=Space(jnp.ones(()), jnp.asarray(TOLERANCE), jnp.asarray(False)))
    (_, r), C, H = data.inputs.shape, data.targets.shape[1], problem.network.depth - (not kind.residual)
    signals = _signals(data, np.random.default_rng(seed), min(problem.top_k, C) if hessian else 0)
    runs, steps = jnp.asarray(np.diff(problem.steps, prepend=-1)), min(ROOM, problem.steps[-1] + 1)
    while True:
        sizes = _sizes(r, C, H, int(steps), *_room(kind, data, H, len(signals)))
        require_memory(_numbers_held(sizes, kind.residual, len(runs), len(signals)), "these laws need")
        if (laws := _laws(kind, sizes, data, runs, signals, problem.top_k, draws, seed)) is not None:
            return Prediction(laws)
        steps *= 2


def _signals(data, rng, count) -> Float[Array, "b P C"]:
    """Random, with most of it where the inputs have most: near the eigenvectors that are wanted."""
    (_, r), C = data.inputs.shape, data.targets.shape[1]
    kernel = jnp.sum(data.inputs**2, 0)[:, None]
    return (data.inputs / kernel.T) @ (rng.normal(size=(count, r, C)) * (kernel / kernel.max()) ** LEANING)


def work(problem: Problem, kind: Kind, data: Data, *, draws: int = 1024, hessian: bool = True) -> tuple[float, float]:
    """(multiplications, numbers held at once) of ``predict``, to a factor of about three, if the first room is enough."""
    (_, r), C, H = data.inputs.shape, data.targets.shape[1], problem.network.depth - (not kind.residual)
    steps, measured, block = int(problem.steps[-1]) + 1, len(problem.steps), min(problem.top_k, C) * hessian
    sizes = _sizes(r, C, H, min(ROOM, steps), *_room(kind, data, H, block))
    below, above = curvature.brought(kind, data, H)
    met = steps * (sizes.n * sizes.new + sizes.m * C) + measured * PRODUCTS * block * (sizes.n * below + sizes.m * above)
    multiplications = 2 * draws * SHORT * 15 * max(H, 1) * met * _side(sizes, kind.residual)
    return multiplications, _numbers_held(sizes, kind.residual, measured, block)


def _side(sizes, residual) -> int:
    """Gaussians of a space of neurons."""
    side = sizes.n + sizes.m
    return (sizes.H + 1) * side if residual else side


def _numbers_held(sizes, residual, T, block) -> int:
    S = _side(sizes, residual)
    network = (sizes.H + 1) * (sizes.n + sizes.m) * S * 6
    krylov = 2 * (PRODUCTS + 1) * block * ((sizes.r + sizes.C) * S + sizes.H * sizes.n * sizes.m)
    kernels = T * (sizes.r * sizes.C) ** 2
    return SIDE_BY_SIDE * (2 * network + krylov + 8 * kernels)


def _laws(kind, sizes, data, runs, signals, k, draws, seed) -> dict[str, Law] | None:
    """None where there is no room."""
    spaces, side = 1 if kind.residual else sizes.H + 1, _side(sizes, kind.residual)
    networks, shape = partial(_networks, kind, sizes, data, runs, signals), (SIDE_BY_SIDE, spaces, side, side)
    limits, fits = networks(jnp.zeros((), float), jnp.zeros(shape))
    limit, derivatives = jax.tree.map(lambda a: np.asarray(a[0]), limits), []
    simple, split = _split_levels(limit.smooth.theta, k)
    levels = _levels(kind, data, limit, k) if len(signals) else None
    for key in jax.random.split(jax.random.key(seed), -(-draws // SIDE_BY_SIDE)):
        noise = jax.random.normal(key, shape, dtype=float)
        (up, room), (down, too) = (networks(jnp.asarray(step, float), noise) for step in (STEP, -STEP))
        if not jnp.all(fits & room & too):
            return None
        derivatives.append(_derivatives(data, k, split, levels, up, limit, down))
    first, second = jax.tree.map(lambda *parts: np.concatenate(parts)[:draws], *derivatives)
    together = np.zeros_like(simple)
    for group in split:
        together[group.step, group.ranks] = True
    known, shifted = {NTK: simple | together}, {NTK: together}
    if levels is not None:
        smooth = {name: mask & _is_smooth(first[name], second[name]) for name, mask in levels.known.items()}
        known, shifted = known | smooth, shifted | {HESSIAN: levels.split}
    laws = {}
    with np.errstate(over="ignore", invalid="ignore"):  # after a divergence
        for name, o1 in first.items():
            shifts = np.where(shifted[name], o1, 0.0) if name in shifted else None
            laws[name] = law_of_draws(o1**2, second[name], known.get(name, True), shifts)
    return laws | {"gauss_newton_eigenvalues": laws[NTK]}  # of MSE


def _split_levels(theta, k) -> tuple[Bool[np.ndarray, "T k"], list[Group]]:
    """(which eigenvalues of Θ are simple, the groups of others)"""
    theta, identity = np.nan_to_num(theta), np.eye(theta.shape[-1])
    values = np.linalg.eigvalsh(theta)[:, ::-1]
    simple = apart(values, k)
    values = values[:, : simple.shape[1]]
    return simple, list(groups(values, simple[:, : values.shape[1]], lambda t, value: (theta[t] - value * identity, -identity)))


def _is_smooth(first, second) -> Bool[np.ndarray, "T ..."]:
    """Whether ε was small enough: of what splits unseen, o'' is of order 1/ε; of a direction that vanishes, without bound."""
    with np.errstate(all="ignore"):  # after a divergence
        return STEP**2 * np.mean(second**2, 0) <= ROUGH**2 * np.mean(first**2, 0)


def _derivatives(data, k, split, levels, up, limit, down) -> tuple[dict, dict]:
    """(o', o'') of each observable, (draws, T, …)"""
    smooth = _differences(up.smooth, limit.smooth, down.smooth)
    derivatives = jax.tree.map(np.array, _observed(data, limit.smooth, *smooth, k))
    for group in split:
        both = _split(limit.smooth.theta[group.step], *(derivative.theta[:, group.step] for derivative in smooth), group)
        for derivative, branch in zip(derivatives, both, strict=True):
            derivative[NTK][:, group.step, group.ranks] = branch[:, : group.shown]
    if levels is None:
        return derivatives
    followed = (_followed(levels, k, network.hessian, sign) for network, sign in ((up, 1), (limit, 1), (down, -1)))
    return tuple(
        derivative | jax.tree.map(np.asarray, more)
        for derivative, more in zip(derivatives, _differences(*followed), strict=True)
    )


class Levels(NamedTuple):
    """Of the m largest eigenvalues of the Hessian: opposite, the rank at −ε of what has this rank at ε; split, whether it is
    one with others in the limit; known, what has a law."""

    opposite: Int[np.ndarray, "T m"]
    split: Bool[np.ndarray, "T k"]
    known: dict[str, Bool[np.ndarray, "T ..."]]


def _levels(kind, data, limit, k) -> Levels:
    """Known is what is outside the bulk, found by so many products, and not close to others without being one with them."""
    values, residuals, _ = jax.tree.map(np.nan_to_num, limit.hessian)
    m, largest = min(k + data.targets.shape[1], values.shape[1]), values[:, :1]
    opposite, split, alone = np.tile(np.arange(m), (len(values), 1)), *np.zeros((2, len(values), m), bool)
    for t, of_step in enumerate(values[:, : m + 1]):
        far = np.concatenate([[np.inf], -np.diff(of_step), [0.0]]) > ALONE * largest[t]
        for first, end in multiplets(of_step[:m], SAME):
            ranks = slice(first, end)
            opposite[t, ranks] = opposite[t, ranks][::-1]
            split[t, ranks], alone[t, ranks] = end - first > 1, far[first] & far[end]
    edges = np.array([_edge(kind, data, jax.tree.map(lambda a: a[t], limit)) for t in range(len(values))])[:, None]  # noqa: B023
    converged, near = residuals <= FOUND * largest, edges + ALONE * largest
    lowest = converged[:, -1] & (-values[:, -1:] > near)[:, 0] & (values[:, -2:-1] - values[:, -1:] > ALONE * largest)[:, 0]
    top = (alone & converged[:, :m] & (values[:, :m] > near))[:, :k]
    return Levels(opposite, split[:, :k], {HESSIAN: top, "hessian_min": lowest, "directional_sharpness": largest[:, 0] > 0})


def _edge(kind, data, measured) -> float:
    outputs = data.inputs @ measured.smooth.weights
    return curvature.edge_from_kernels(kind, data, outputs, measured.features, measured.gradients, measured.left)


def _followed(levels, k, ritz, sign) -> dict[str, np.ndarray]:
    """The observables at ε, or at −ε those that become them."""
    values = np.asarray(ritz.values)
    top = values[..., : levels.opposite.shape[1]]
    top = np.take_along_axis(top, levels.opposite[None], 2) if sign < 0 else top
    return {HESSIAN: top[..., :k], "hessian_min": values[..., -1], "directional_sharpness": np.asarray(ritz.directional)}


@jax.jit
def _split(theta, first, second, group) -> tuple[Float[Array, "draws g"], Float[Array, "draws g"]]:
    """(λ', λ'') of a group."""

    def of_draw(slope, bend):
        def moved(h, rate, v):
            return (theta + h * slope + 0.5 * h * h * bend) @ v - (group.value + h * rate) * v

        return branches(moved, group.vectors, group.inverse)

    return jax.vmap(of_draw)(first, second)


@partial(jax.jit, static_argnums=(0, 1))
def _networks(kind, sizes, data, runs, signals, epsilon, noise) -> tuple[Measured, Bool[Array, " draws"]]:
    """(networks of these ℓ, whether there was room)"""

    def network(noise):
        return _train(kind, sizes, data, runs, signals, _gaussians(sizes, epsilon, noise))

    return jax.vmap(network)(noise)


def _differences(up, limit, down):
    """(first, second)"""
    first = jax.tree.map(lambda u, d: (u - d) / (2 * STEP), up, down)
    return first, jax.tree.map(lambda u, o, d: (u - 2 * o + d) / STEP**2, up, limit, down)


def _gaussians(sizes, epsilon, noise) -> Float[Array, "layers rows S"]:
    """Rows of B; of each layer n for what comes from below, m for what comes from above."""
    rows = jnp.arange(noise.shape[-1])
    diagonal = jnp.sqrt(1.0 - epsilon**2 * (rows + 0.5))
    factor = jnp.tril(noise, -1) + noise * jnp.eye(len(rows)) / jnp.sqrt(2.0)
    B = jnp.diag(diagonal) + epsilon * factor
    return B.reshape(sizes.H + 1, sizes.n + sizes.m, -1)


def _train(kind, sizes, data, runs, signals, gaussians) -> tuple[Measured, Bool[Array, ""]]:
    """(one network of these Gaussians at the last step of each of the runs, so many steps long; whether there was room)"""
    from_below, from_above = gaussians[:, : sizes.n], gaussians[:, sizes.n :]
    state = begin(kind, data, from_below[0, : sizes.r], from_below[1:], from_above[:-1], from_above[-1, : sizes.C])
    combine = None
    if sizes.new < sizes.r:  # the first of all bring as many as they are
        (matrices, *_), combine = forward(kind, data, state.weights, state.matrices), combinations(sizes.new, sizes.r)
        state = state._replace(matrices=matrices)

    def run(state, length):
        state = jax.lax.fori_loop(0, length, lambda _, state: _step(kind, data, combine, state), state)
        return state, _measured(kind, data, state, signals)

    end, measured = jax.lax.scan(run, state, runs)
    below, above = _room(kind, data, sizes.H, len(signals))
    return measured, has_room(end.matrices, sizes.new + below, sizes.C + above)


def _step(kind, data, combine, state) -> State:
    """After a step of gradient descent, with the fields that it went by."""
    return descended(kind, data, state, *forward(kind, data, state.weights, state.matrices, combine))


def _measured(kind, data, state, signals) -> Measured:
    """At the step of ``state.fields``.  What the matrices meet in the products, training does not see."""
    fields = state.fields
    features, gradients = (jnp.einsum("lis,ljs->lij", layers, layers) for layers in (fields.h, fields.cotangents))
    weights = data.space.products(fields.h[-1], fields.weights.last) / data.richness
    smooth = Smooth(weights, _theta(data, features, gradients))
    hessian = _hessian(kind, data, state, signals) if len(signals) else None
    return Measured(smooth, features, gradients, fields.weights.left, hessian)


def _hessian(kind, data, state, signals) -> Ritz:
    """What so many products find, starting from these."""
    network, parts = curvature.Perceptron(kind), jnp.asarray(lanczos.HESSIAN)

    def after(signals, products):
        matrices, fields, krylov = lanczos.begin(network, data, state.fields, state.matrices, signals, products)
        extended = partial(lanczos.extended, network, data, parts, fields)
        return jax.lax.scan(lambda carry, _: (extended(*carry), None), (matrices, krylov), length=products)[0][1]

    gradient = LOSSES[kind.loss].gradient(state.fields.outputs, data.targets)
    return Ritz(*_ritz(after(signals, PRODUCTS)), after(gradient[None], 1).matrix[0, 0])


def _ritz(krylov) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """(values, largest first, residuals)"""
    values, vectors = eigh((krylov.matrix + krylov.matrix.T) / 2)
    return values[::-1], jnp.linalg.norm(krylov.rest @ vectors[-len(krylov.rest) :], axis=0)[::-1]


def _room(kind, data, H, starts) -> tuple[int, int]:
    """Fields below and above that the products of so many tangents bring to each matrix."""
    return tuple(PRODUCTS * starts * fields for fields in curvature.brought(kind, data, H))


def _theta(data, features, gradients) -> Float[Array, "rC rC"]:
    """Θ = Σ_matrices a²r Φ below ∘ G above; the columns of x̂ are orthogonal, and √(x̂ᵀx̂/P) stands for x̂."""
    (P, r), C = data.inputs.shape, data.targets.shape[1]
    x = jnp.linalg.norm(data.inputs, axis=0) / jnp.sqrt(P)
    features = x[:, None] * features * x
    first = jnp.einsum("ab,ce->acbe", jnp.diag(x * x), gradients[0])
    between = jnp.einsum("lab,lce->acbe", features[:-1], gradients[1:])
    last = jnp.einsum("ab,ce->acbe", features[-1], jnp.eye(C))
    return (data.rates[0] * first + data.rates[1] * between + data.rates[2] * last).reshape(r * C, r * C)


@partial(jax.jit, static_argnums=4)
def _observed(data, limit, first, second, top_k) -> tuple[dict, dict]:
    """(o', o'') of every observable, of each draw and measured step."""

    def observe(at):
        return {
            "loss": LOSSES["mse"].mean(data.inputs @ at.weights, data.targets),
            "ntk_eigenvalues": leading_eigenvalues(at.theta, top_k),
            "hessian_trace": jnp.trace(at.theta),
        }

    def derivatives(o, o1, o2):
        return second_order(lambda h: observe(jax.tree.map(lambda a, b, c: a + h * b + 0.5 * h * h * c, o, o1, o2)))

    def at_a_step(args):
        return jax.vmap(derivatives, (None, 0, 0))(*args)

    by_step = jax.tree.map(lambda a: a.swapaxes(0, 1), (first, second))
    return jax.tree.map(lambda a: a.swapaxes(0, 1), jax.lax.map(at_a_step, (limit, *by_step)))
