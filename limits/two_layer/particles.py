"""A two-layer network as a population of neurons, each a particle z = (e, v) of the mass that it has in all averages.

    f(x) = (1/γ0) Σ_i w_i v_i φ(e_i·x̂),    x̂ = x/√D,  v_i (C,),  Σ_i w_i = 1      w_i = 1/N in a network of width N in μP
    field γ²∇L at neuron i:   γ0 Σ_p r_p·v_i φ'(e_i·x̂_p) x̂_p  and  γ0 Σ_p r_p φ(e_i·x̂_p),      r = ∂L/∂f

The particles meet only in r (Mei, Montanari & Nguyen 2018; Rotskoff & Vanden-Eijnden 2018; Chizat & Bach 2018).  At N = ∞
their initial law is N(0, 1) in every entry, and training moves the law; a *cloud* stands for it, a scrambled Sobol' sequence
turned into normal numbers (Owen 1997), each e with v and with −v, so that f(0) = 0 exactly, and scaled so that the second
moments <eeᵀ> = 1, <vvᵀ> = 1 are exact, too: linear networks are then exact.  A network of width N is the same system with
N independent draws.

Inputs are taken in the basis of their span (``limits.coordinates``): of the D input weights of a neuron only r act and
have curvature.  The rescaled Hessian, as a map of tangents δz, is the derivative of the field; it is self-adjoint in the
inner product Σ_i w_i δz_i·δz'_i.

Pieces for compiled code: call them within ``limits.machine.computing("float64")``.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from limits.activations import ACTIVATIONS
from limits.coordinates import coordinates
from limits.descent import Descent, descent, follow, heavy_ball
from limits.losses import LOSSES, Loss
from limits.machine import in_float64
from limits.problem import Problem
from limits.theories import features_stay, other_powers, unknown_to_all


class Neurons(NamedTuple):
    """The positions of the particles, or a tangent at them: input weights e in the span of the inputs, readout v."""

    input: Float[Array, "N r"]
    readout: Float[Array, "N C"]


class Population(NamedTuple):
    """What does not move: inputs x/√D in their span, targets, masses of the particles, richness γ0."""

    inputs: Float[Array, "P r"]
    targets: Float[Array, "P C"]
    mass: Float[Array, " N"]
    richness: Float[Array, ""]


class Functions(NamedTuple):
    """Names of the activation φ and the loss ℓ; what compiled code is specialised to."""

    activation: str
    loss: str

    def phi(self, h: Array) -> Array:
        return ACTIVATIONS[self.activation].phi(h)

    def slope(self, h: Array) -> Array:
        """φ'"""
        return jax.jvp(self.phi, (h,), (jnp.ones_like(h),))[1]

    def bend(self, h: Array) -> Array:
        """φ'', without what sits at a kink"""
        return jax.jvp(self.slope, (h,), (jnp.ones_like(h),))[1]

    @property
    def ell(self) -> Loss:
        return LOSSES[self.loss]


def refuses(problem: Problem) -> str | None:
    """Why there is no such limit: of all but one hidden layer in μP, trained by SGD."""
    if refusal := unknown_to_all(problem):
        return refusal
    model = problem.network
    if (model.family, model.architecture, model.depth) != ("perceptron", "plain", 1):
        return f"{problem.model} of depth {model.depth}: the mean-field limit is one of one hidden layer"
    return features_stay(problem) or other_powers(problem.scaling())


@in_float64
def population(problem: Problem, mass: Float[np.ndarray, " N"]) -> Population:
    """The problem's data for particles of these masses."""
    return Population(coordinates(problem).scaled, *(jnp.asarray(a, float) for a in (problem.targets, mass, problem.richness)))


def functions(problem: Problem) -> Functions:
    """The activation and the loss of the problem's network."""
    return Functions(problem.network.activation, problem.loss)


def outputs(network: Functions, population: Population, z: Neurons) -> Float[Array, "P C"]:
    """f on all samples."""
    return network.phi(population.inputs @ z.input.T) @ (population.mass[:, None] * z.readout) / population.richness


def error_signal(network: Functions, population: Population, z: Neurons) -> Float[Array, "P C"]:
    """r = ∂L/∂f"""
    return network.ell.gradient(outputs(network, population, z), population.targets) / len(population.targets)


def field(network: Functions, population: Population, z: Neurons, batch: Int[Array, " b"] | None = None) -> Neurons:
    """γ²∇L of every neuron, L the loss of these samples (None: of all)."""
    if batch is not None:
        population = population._replace(inputs=population.inputs[batch], targets=population.targets[batch])
    error = error_signal(network, population, z)
    h = z.input @ population.inputs.T
    of_input = (network.slope(h) * (z.readout @ error.T)) @ population.inputs
    return Neurons(population.richness * of_input, population.richness * network.phi(h) @ error)


def hessian_product(network: Functions, population: Population, z: Neurons, tangent: Neurons) -> Neurons:
    """The rescaled Hessian of all samples on a tangent."""
    return jax.jvp(partial(field, network, population), (z,), (tangent,))[1]


def inner(population: Population, a: Neurons, b: Neurons) -> Float[Array, ""]:
    """Σ_i w_i a_i·b_i"""
    return population.mass @ (jnp.sum(a.input * b.input, 1) + jnp.sum(a.readout * b.readout, 1))


def loss(network: Functions, population: Population, z: Neurons) -> Float[Array, ""]:
    """L over all samples."""
    return network.ell.mean(outputs(network, population, z), population.targets)


def directional_sharpness(network: Functions, population: Population, z: Neurons) -> Float[Array, ""]:
    """γ² gᵀHg/|g|² along g = ∇L; not a number where g = 0."""
    g = field(network, population, z)
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(g.input)), jnp.max(jnp.abs(g.readout))))
    g = Neurons(g.input / largest, g.readout / largest)  # or the squares may underflow
    return inner(population, g, hessian_product(network, population, z, g)) / inner(population, g, g)


def ntk(network: Functions, population: Population, z: Neurons) -> Float[Array, "PC PC"]:
    """Θ/P; row and column p·C + c.  Θ = Σ_i w_i [(v φ')_i (v φ')_iᵀ x̂·x̂' + 1 φ_i φ_iᵀ]."""
    (P, _), C = population.inputs.shape, z.readout.shape[1]
    h = population.inputs @ z.input.T
    active, moving = network.phi(h), (network.slope(h)[:, None, :] * z.readout.T).reshape(P * C, -1)
    overlap = jnp.repeat(jnp.repeat(population.inputs @ population.inputs.T, C, 0), C, 1)
    features = jnp.kron((population.mass * active) @ active.T, jnp.eye(C))
    return ((population.mass * moving) @ moving.T * overlap + features) / P


def without_ties(theta: Float[Array, "PC PC"], outputs: int) -> Float[Array, "PC PC"]:
    """K ⊗ 1, K = Σ_c Θ_cc/C: Θ at step 0, where no neuron knows one output from another, of which a cloud is a sample."""
    samples = len(theta) // outputs
    alone = jnp.einsum("pcqc->pq", theta.reshape(samples, outputs, samples, outputs)) / outputs
    return jnp.kron(alone, jnp.eye(outputs))


def gauss_newton(network: Functions, population: Population, z: Neurons, ntk: Float[Array, "PC PC"]) -> Float[Array, "PC PC"]:
    """BᵀΘB/P, of the same nonzero eigenvalues as G."""
    P, C = population.targets.shape
    root = network.ell.root(outputs(network, population, z))
    return jnp.einsum("pca,pcqd,qdb->paqb", root, ntk.reshape(P, C, P, C), root).reshape(P * C, P * C)


def cloud(problem: Problem, particles: int, rng: np.random.Generator) -> Neurons:
    """A quasi-random cloud at step 0, its pairs (e, v), (e, −v) half the cloud apart.

    Raises ValueError for a number of particles that is no power of two, or too small for the second moments.
    """
    from scipy.stats import qmc  # takes a second to import

    r, C = coordinates(problem).optimum.shape
    pairs = particles // 2
    if particles < 4 or particles & (particles - 1) or pairs < r + C:
        raise ValueError(f"{particles} particles: wanted a power of two, at least {2 << (max(r + C, 2) - 1).bit_length()}")
    drawn = qmc.MultivariateNormalQMC(np.zeros(r + C), seed=rng).random(pairs)
    e, v = _white(drawn[:, :r]), _white(drawn[:, r:])
    return Neurons(np.concatenate([e, e]), np.concatenate([v, -v]))


@in_float64
def path(network: Functions, population: Population, problem: Problem, start: Neurons) -> Neurons:
    """The particles at the measured steps (leading axis T)."""
    return descend(network, population, descent(problem), jax.tree.map(jnp.asarray, start))


@partial(jax.jit, static_argnums=0)
def descend(network: Functions, population: Population, descent: Descent, start: Neurons) -> Neurons:
    """Gradient descent; the particles at the measured steps."""

    def step(state, rate, batch):
        z, velocity = state
        gradient = jax.tree.map(lambda g, w: g + descent.weight_decay * w, field(network, population, z, batch), z)
        return heavy_ball(z, velocity, gradient, rate, descent.momentum, nesterov=descent.nesterov)

    return follow(descent, step, (start, jax.tree.map(jnp.zeros_like, start)), lambda state: state[0])


def _white(draws):
    """The draws (n, d) with <xxᵀ> = 1."""
    return np.linalg.solve(np.linalg.cholesky(draws.T @ draws / len(draws)), draws.T).T
