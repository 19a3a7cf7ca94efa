"""Problem: what is learned and how, without a width.

Conventions, stated once and used in every room
-----------------------------------------------
    loss        L(f) = 1/(2P) Σ_p |f(x_p) − y_p|²                     mean over samples, sum over outputs
                or cross-entropy, mean over samples (``limits.losses``)
    output      f = (1/γ) · forward pass,  γ = γ0 N^a                  γ0 the richness, a by the parametrization
    gradient    g(θ) = γ² ∇L_b(θ) + λ θ                                L_b the loss of the step's batch, λ the weight decay
    update      m ← β m + g,   θ ← θ − η m,   m = 0 at step 0         heavy ball;   Nesterov: θ ← θ − η (g + β m)
    rate        η = η0 min(1, (t+1)/W) at step t                      W steps of linear warm-up
                times (1 + cos π(t−W)/(T−W))/2 from step W on         "cosine", T the number of steps
    curvature   rescaled, of all samples' L:   H = √M ∇²L √M = G + R,   G = √M Jᵀ(∂²L/∂f²)J √M,   NTK = J M Jᵀ/P,
                J = ∂f/∂θ;   M the metric: γ² here, so that the edge of stability is 2/η0 − λ at every width
                (2(1+β)/η0 − λ with momentum β)
    time        τ = η0 · step

Weight decay λ is in units of 1/τ (the raw coefficient is λ/γ²): it means the same at every width.

So for SGD in a parametrization with one output multiplier γ.  In general every role of weights has its own learning rate
η0 r_role (``limits.exponents.parametrization.factors``), which stands where γ² stands above: M is diagonal, r_role for all
weights of a role.  AdamW (Loshchilov & Hutter 2019):

    update      θ ← θ − η (r_role m̂/(√v̂ + ε s_role) + λ θ),   s_role the size of the role's gradient entries at step 0
    metric      M = r_role/s_role:   θ ← θ − η (M m̂/P + λ θ),   P = √v̂/s_role + ε of order one

m̂ and v̂ the means of g = ∇L_b and g² without their bias.  Adam (Kingma & Ba 2015) has the decay within,
g = ∇L_b + λ (s_role/σ_role) θ, σ_role the standard deviation of the role's weights at step 0; both are one where λ = 0.
Any other one has M = r_role u_role/s_role, u_role the size of its update at rate 1 (``limits.exponents.algebra``; 1 of Adam).

Whatever the optimiser, rescaled is: in the coordinates θ/√M, in which a step is η times the gradient, √M ∇L, over P, and
P = 1 with SGD.  So the edge of stability is one of P^(-1/2) H P^(-1/2), the preconditioned Hessian: of H itself with SGD only.
Shampoo and SOAP have a P that is a matrix (``finite.training.matrices``).  Signs, Lion, Muon, LAMB and Adafactor have none:
their step is no known matrix times the gradient, and there is no edge that their sharpness meets.
"""

import operator
from dataclasses import dataclass, fields
from functools import cached_property
from math import isqrt, prod
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from limits import losses
from limits.exponents.algebra import Scaling
from limits.exponents.parametrization import output_exponent, read_scaling, stored_as
from limits.models import Model, read_model
from limits.optimizers import OPTIMIZERS

ARRAYS = ("inputs", "targets", "batches")
REALS = ("learning_rate", "richness", "momentum", "epsilon", "weight_decay")
COUNTS = ("depth", "block_size", "num_steps", "measure_every", "warmup_steps", "top_k")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, parametrization, optimiser and what to measure.  ``limits`` reads it at N = ∞, ``finite`` at width N.

    inputs            (P, D) array, held as float64
    targets           (P, C) array, held as float64; a vector (P,) is taken as one output
    parametrization   a text for ``limits.exponents.parametrization.read_scaling`` (a name, a TOML file, or inline) or a
                      ``Scaling``
    optimizer         a name of ``limits.optimizers``
    model, activation, depth, block_size, pooling    see ``limits.models``; ``problem.network`` is what they amount to
    image_shape       (H, W, channels) of inputs that are images, in this order; None: a square, grey or of three channels
    trained           "all", or "readout": all other weights stay where they start (random features)
    loss              "mse", or "cross_entropy", whose targets are probability vectors
    learning_rate     η0, order one; the raw step is η0 γ² (of a role η0 r_role)
    warmup_steps      W, over which the learning rate grows to η0
    schedule          what follows: "constant", or "cosine" down to 0 at num_steps
    richness          γ0
    num_steps         gradient steps
    measure_every     the observables are measured before steps 0, measure_every, 2·measure_every, … ≤ num_steps
    momentum          β of the heavy ball, 0 ≤ β < 1; SGD only
    nesterov          whether it looks ahead
    betas             β1, β2 of Adam; β1 = 0 is RMSProp (without its bias)
    epsilon           ε of Adam, in units of a gradient entry at step 0
    weight_decay      λ ≥ 0, see the module's conventions
    batches           (num_steps, b) sample indices of each step, or None for all samples at every step
    augment           whether a step sees its images shifted and mirrored at random (``finite.training.augmentation``); what is
                      measured is of the samples as they are.  For models that read images, and vectors with an image_shape
    top_k             how many of the largest eigenvalues an observable keeps

    Raises ValueError, in one line, for anything out of range, of the wrong shape or not finite.

    >>> problem = Problem([[1.0, 0.0], [0.0, 2.0]], [1.0, -1.0], "mup", model="mlp3", activation="tanh", learning_rate=0.5)
    >>> problem.inputs.shape, problem.targets.shape, problem.edge_of_stability  # targets get an axis of outputs
    ((2, 2), (2, 1), 4.0)
    """

    inputs: Any
    targets: Any
    parametrization: str | Scaling = "mup"
    optimizer: str = "sgd"
    model: str = "linear2"
    activation: str = "tanh"
    depth: int = 2
    block_size: int = 1
    pooling: str = "max"
    image_shape: tuple[int, int, int] | None = None
    trained: str = "all"
    loss: str = "mse"
    learning_rate: float = 0.5
    richness: float = 1.0
    num_steps: int = 100
    measure_every: int = 1
    momentum: float = 0.0
    nesterov: bool = False
    warmup_steps: int = 0
    schedule: str = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    batches: Any = None
    top_k: int = 3
    augment: bool = False

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)

        _check_numbers(self)
        own = OPTIMIZERS.find(self.optimizer).options
        _check_parametrization(self.parametrization, self.rule)
        put("inputs", _finite_matrix("inputs", _real("inputs", self.inputs)))
        targets = _real("targets", self.targets)
        put("targets", _finite_matrix("targets", targets[:, None] if targets.ndim == 1 else targets))
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.targets)} targets: one target row per input row")
        losses.check(self.loss, self.targets)
        _check_inputs(self)
        if self.trained not in ("all", "readout"):
            raise ValueError(f"trained {self.trained!r}: wanted all, or readout")
        _require(self.learning_rate > 0, "learning rate", self.learning_rate, "positive")
        _require(self.richness > 0, "richness", self.richness, "positive")
        _require(1e-15 <= self.richness <= 1e15, "richness", self.richness, "between 1e-15 and 1e15: there are squares of it")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        has = f"{self.optimizer} has {' and '.join(own) or 'none'}"
        _require(self.momentum == 0 or "momentum" in own, "momentum", self.momentum, f"0: {has}")
        if self.nesterov and ("nesterov" not in own or self.momentum == 0):
            raise ValueError(f"nesterov looks ahead along the momentum: {self.optimizer} has none here")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        _require(self.warmup_steps >= 0, "number of warm-up steps", self.warmup_steps, "at least 0")
        for beta in self.betas:
            _require(0 <= beta < 1, "beta", beta, "at least 0 and below 1")
        _require(self.epsilon > 0, "epsilon", self.epsilon, "positive")
        _require(self.weight_decay >= 0, "weight decay", self.weight_decay, "at least 0")
        _require(0 <= self.num_steps < 2**31, "number of steps", self.num_steps, "at least 0 and below 2^31")
        _require(self.measure_every >= 1, "measure_every", self.measure_every, "at least 1")
        _require(self.top_k >= 1, "top_k", self.top_k, "at least 1")
        if self.batches is not None:
            put("batches", _schedule(self.batches, self.num_steps, len(self.inputs)))

    def __repr__(self) -> str:
        """The shapes of its arrays, and what else is not as usual."""
        shapes = [f"{name} {value.shape}" for name in ARRAYS if (value := getattr(self, name)) is not None]
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ARRAYS}
        usual = {f.name: f.default for f in fields(self)}
        other = [f"{name}={getattr(value, 'name', value)!r}" for name, value in given.items() if value != usual[name]]
        return f"Problem({', '.join([*shapes, *other])})"

    @cached_property
    def network(self) -> Model:
        """The layers of the model."""
        options = {"activation": self.activation, "depth": self.depth, "block_size": self.block_size, "pooling": self.pooling}
        return read_model(self.model, **options)

    @cached_property
    def image(self) -> tuple[int, int, int]:
        """(H, W, channels) of the inputs.  Raises ValueError where they are no images of that shape."""
        if self.image_shape is None:
            return _square(self.num_inputs)
        shape = tuple(self.image_shape)
        if len(shape) != 3 or min(shape) < 1 or prod(shape) != self.num_inputs:
            shown = "×".join(map(str, shape))
            raise ValueError(f"image shape {shown}: wanted rows, columns and channels of {self.num_inputs} inputs")
        return shape

    def scaling(self, architecture: str | None = None, depth: int | None = None) -> Scaling:
        """The exponents of the parametrization for the model, or for "plain" networks of that depth, or "residual" ones."""
        given, architecture = self.parametrization, architecture or self.network.architecture
        depth = self.network.depth if depth is None else depth
        if isinstance(given, str):
            return read_scaling(given, self.rule, architecture, depth=depth, loss=self.loss)
        if given.architecture != architecture:
            raise ValueError(f"the exponents of {given.name} are for a {given.architecture} network, not a {architecture} one")
        return given

    @property
    def rule(self) -> str:
        """Whose exponents: a name of ``limits.exponents.algebra.OPTIMIZERS``."""
        return OPTIMIZERS[self.optimizer].size_rule

    @property
    def num_samples(self) -> int:
        return self.inputs.shape[0]

    @property
    def num_inputs(self) -> int:
        return self.inputs.shape[1]

    @property
    def num_outputs(self) -> int:
        return self.targets.shape[1]

    @cached_property
    def steps(self) -> Int[np.ndarray, " T"]:
        """The measured steps; index t is before step t."""
        return np.arange(0, self.num_steps + 1, self.measure_every)

    @cached_property
    def step_sizes(self) -> Float[np.ndarray, " steps"]:
        """η at steps 0 … num_steps, the last of which is not taken."""
        step, warmup = np.arange(self.num_steps + 1), self.warmup_steps
        rates = self.learning_rate * np.minimum(1.0, (step + 1) / max(warmup, 1))
        if self.schedule == "constant":
            return rates
        part = np.clip((step - warmup) / max(self.num_steps - warmup, 1), 0.0, 1.0)
        return rates * (1.0 + np.cos(np.pi * part)) / 2.0

    @property
    def edge_of_stability(self) -> float:
        """The rescaled sharpness beyond which full-batch training at the rate η0 is linearly unstable.

            2(1+β)/η0 − λ,   with Nesterov 2(1+β)/((1+2β)η0) − λ

        η0 is the largest rate: during warm-up, and on the way down a cosine, training is stable up to higher sharpness.
        Not a number for Adam, whose threshold is one of the preconditioned Hessian.
        """
        return float("nan") if OPTIMIZERS[self.optimizer].preconditioned else self.preconditioned_edge_of_stability

    @property
    def preconditioned_edge_of_stability(self) -> float:
        """The same for the observable ``preconditioned_sharpness``, which is the sharpness itself for SGD.

            (2/η0 − λ)(1+β1)/(1−β1)    AdamW, and Adam where λ = 0   (Cohen et al. 2022): 38/η0 for β1 = 0.9

        Not a number for Adam with λ > 0, which descends on another function than the loss.
        """
        return OPTIMIZERS[self.optimizer].edge(self)


def given_outputs(problem: Problem, outputs: Float[np.ndarray, "P C"]) -> Float[np.ndarray, "P C"]:
    """The f(0) that a limit is to start from, as float64.

    Raises ValueError, in one line, for another shape than the targets' and where f(0) vanishes in the limit: all but NTP.
    """
    if output_exponent(problem.scaling()) != 0:
        raise ValueError(f"in the limit of {problem.scaling().name} f(0) = 0; it can be given in NTP only")
    outputs = np.asarray(outputs, np.float64)
    if outputs.shape != problem.targets.shape:
        raise ValueError(f"initial outputs of shape {outputs.shape}: wanted {problem.targets.shape}, like the targets")
    return outputs


def minibatches(rng: np.random.Generator, num_samples: int, batch_size: int, num_steps: int) -> Int[np.ndarray, "T b"]:
    """Sample indices of ``num_steps`` minibatches: every epoch a fresh shuffle, without its incomplete last batch.

    >>> minibatches(np.random.default_rng(0), num_samples=5, batch_size=2, num_steps=3).shape
    (3, 2)
    """
    _require(1 <= batch_size <= num_samples, "batch size", batch_size, f"from 1 to the {num_samples} samples")
    per_epoch = num_samples // batch_size
    epochs = -(-num_steps // per_epoch)
    order = np.stack([rng.permutation(num_samples)[: per_epoch * batch_size] for _ in range(epochs)] or [[]])
    return order.astype(np.int64).reshape(-1, batch_size)[:num_steps]


def _check_parametrization(given, optimizer):
    """It can be read, for one architecture at least."""
    if isinstance(given, Scaling):
        if stored_as(given.optimizer) != stored_as(optimizer):
            raise ValueError(f"the exponents of {given.name} are for {given.optimizer}, not for {optimizer}")
        return
    try:
        read_scaling(given, optimizer, "plain")
    except ValueError as wrong:
        try:
            read_scaling(given, optimizer, "residual")
        except ValueError:
            raise wrong from None


def _check_numbers(problem):
    """They are numbers, and those that count are whole."""
    for name in REALS + COUNTS:
        value = getattr(problem, name)
        try:
            as_number = operator.index(value) if name in COUNTS else float(value)
        except (TypeError, ValueError):
            as_number = None
        if as_number is None or isinstance(value, bool | str):
            wanted = "a whole number" if name in COUNTS else "a number"
            raise ValueError(f"{name.replace('_', ' ')} {value!r}: wanted {wanted}")


def _check_inputs(problem):
    """The model exists and can read them."""
    reads = problem.network.reads
    if reads == "images" or problem.image_shape is not None:
        _ = problem.image
    if problem.augment and (reads == "tokens" or (reads == "vectors" and problem.image_shape is None)):
        raise ValueError(f"augment: only images are, and {problem.model} reads {reads}; vectors that have an image_shape are "
                         "images, and pictures have one")  # fmt: skip
    if reads == "tokens":
        wrong = problem.inputs[(problem.inputs % 1 != 0) | (problem.inputs < 0) | (problem.inputs >= problem.num_outputs)]
        if wrong.size:
            raise ValueError(f"input {wrong[0]:g} is no token: with {problem.num_outputs} outputs they are 0 … "
                             f"{problem.num_outputs - 1}")  # fmt: skip


def _square(num_inputs):
    for channels in (1, 3):
        side = isqrt(num_inputs // channels)
        if channels * side**2 == num_inputs:
            return side, side, channels
    shape = "give its image_shape (H, W, channels), or in a file inputs (P, H, W[, 3])"
    raise ValueError(f"{num_inputs} inputs are no square image of 1 or 3 channels: {shape}")


def _finite_matrix(name, values):
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} of shape {values.shape}: wanted a matrix with one row per sample")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} hold {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    with np.errstate(over="ignore"):
        squares = np.sum(values**2)
    if not np.isfinite(squares):
        raise ValueError(f"{name} reach {np.abs(values).max():.2g}: their squares are beyond float64; scale them")
    return values


def _real(name, values):
    """A copy of them, in float64."""
    try:
        values = np.asanyarray(values)
        if not np.ma.isMaskedArray(values) and values.dtype.kind != "c":
            return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: wanted numbers, in a matrix with one row per sample") from None
    kind = "masked" if np.ma.isMaskedArray(values) else "complex"
    raise ValueError(f"{name} are {kind}: wanted real numbers, one in every place")


def _schedule(batches, num_steps, num_samples):
    batches = np.asarray(batches)
    if batches.ndim != 2 or batches.shape[0] != num_steps or batches.shape[1] < 1:
        raise ValueError(f"batches of shape {batches.shape}: wanted ({num_steps}, batch size), one row per step")
    if not np.issubdtype(batches.dtype, np.integer) or np.any((batches < 0) | (batches >= num_samples)):
        raise ValueError(f"batches must hold sample indices from 0 to {num_samples - 1}")
    return batches.astype(np.int64)


def _require(condition, name, value, wanted):
    if not (condition and np.isfinite(value)):
        raise ValueError(f"{name} {value:g} must be {wanted}")
