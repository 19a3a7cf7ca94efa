"""How big is what, as powers of the width N and the depth L: the rules that every scaling exponent follows from.

A *size* is the typical entry of a tensor, a power N^p L^q (``Power``).  **Sign convention, once and for all: the stored
number is the power itself**, so a multiplier 1/√N is ``Power(N=-1/2)``.  A weight acts as multiplier · W with W of size
init_std at step 0, and moves by learning_rate · (what the optimiser makes of its gradient).  Yang & Hu 2021 write
N^{-a}, N^{-b}, N^{-c}: their letters are minus ours.

The rules
    product      sizes multiply
    sum          n terms of size s add up to n^e s, e the *alignment* exponent: 1/2 for independent terms, 1 for terms
                 of one sign (``Alignment``; Everett et al. 2024 measure these exponents)
    optimiser    one map from the size of a gradient entry to that of an update entry at learning rate 1 (``Optimizer``)

They are linear in the exponents, so the same functions serve sympy (``limits.exponents`` solves for the exponents)
and fractions (``limits.exponents.regimes`` classifies given ones).

Assumed everywhere: input dimension, outputs, batch, steps and block size are of order one; φ(h) is as large as h;
∂L/∂f is of order one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf
from typing import Any

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Power:
    """N^N L^L; the exponents are fractions, or sympy expressions while deriving, or inf for "faster than any power"."""

    N: Any = Fraction(0)
    L: Any = Fraction(0)

    def __mul__(self, other: "Power") -> "Power":
        return Power(self.N + other.N, self.L + other.L)

    def __truediv__(self, other: "Power") -> "Power":
        return Power(self.N - other.N, self.L - other.L)

    def __pow__(self, exponent) -> "Power":
        return Power(self.N * exponent, self.L * exponent)

    def __call__(self, width: float, depth: float = 1) -> float:
        """The number at this width and depth; infinite where no float is so large."""
        try:
            return float(width) ** float(self.N) * float(depth) ** float(self.L)
        except OverflowError:
            return inf

    def __str__(self) -> str:
        factors = [f"{x}^{{{p}}}" if p != 1 else x for x, p in (("N", self.N), ("L", self.L)) if p != 0]
        return " ".join(factors) or "1"


ONE, WIDTH, DEPTH = Power(), Power(N=Fraction(1)), Power(L=Fraction(1))


def largest(*sizes: Power) -> Power:
    """The size of a sum of few terms: its exponent in N at fixed L, and in L at fixed N."""
    return Power(max(s.N for s in sizes), max(s.L for s in sizes))


@dataclass(frozen=True)
class Alignment:
    """The exponent e in "n terms of size s sum to n^e s", for each kind of sum.

    initial         W_0 x and W_0ᵀ δ: the weights are independent of what they meet
    update          ΔW x: ΔW = δ xᵀ has seen x
    propagated      W_0 Δx in a hidden layer: bounded by the spectral norm of W_0
    readout         w_0 Δx: features have moved along the readout weights that their gradient is made of
    blocks_initial  the branches of the L residual blocks at step 0
    blocks_update   their updates: all descend the same loss
    """

    initial: Fraction = HALF
    update: Fraction = Fraction(1)
    propagated: Fraction = HALF
    readout: Fraction = Fraction(1)
    blocks_initial: Fraction = HALF
    blocks_update: Fraction = Fraction(1)


@dataclass(frozen=True)
class Exponents:
    """The three powers of a role: what multiplies W, the standard deviation of W at step 0, and its learning rate."""

    multiplier: Power = ONE
    init_std: Power = ONE
    learning_rate: Power = ONE


@dataclass(frozen=True)
class Scaling:
    """The exponents of every role of an architecture, under an optimiser; ``scaling["hidden"]`` is one role's."""

    name: str
    optimizer: str
    architecture: str
    roles: Mapping[str, Exponents]

    def __getitem__(self, role: str) -> Exponents:
        if role not in self.roles:
            raise ValueError(f"{self.name}, {self.architecture}: no role {role!r}; known: {', '.join(self.roles)}")
        return self.roles[role]


@dataclass(frozen=True)
class Role:
    """A kind of parameter: ``fan_in`` terms per output entry, ``fan_out`` output entries, and what lies behind it.

    downstream  the roles between its output and the network's output, in order; the identity path of a residual stream
                is not listed
    copies      how many of it act in parallel on the residual stream: L inside blocks
    vector      whether it acts unit by unit: no matrix
    """

    name: str
    fan_in: Power
    fan_out: Power
    downstream: tuple[str, ...] = ()
    copies: Power = ONE
    vector: bool = False

    @property
    def entries(self) -> Power:
        return self.fan_in * self.fan_out


@dataclass(frozen=True)
class Optimizer:
    """``update(gradient_entry, role)``: the size of an update entry at learning rate 1.

    relative  whether the update is in units of the weights' entries
    whole     whether it takes the gradient of a matrix as a whole, so that its ε is compared with the gradient's norm
    same_as   another one of the same sizes, whose exponents are its own
    averages  of gradients over steps: "" none; "apart", taken of what is linear in them and of their sizes, each by itself;
              "before" it forgets their size, so that they are like a larger batch
    """

    name: str
    rule: str
    update: Callable[[Power, Role], Power]
    relative: bool = False
    whole: bool = False
    same_as: str | None = None
    averages: str = ""

    def forgets_scale(self, role: Role = Role("any", ONE, ONE)) -> bool:
        """Whether a larger gradient makes no larger update (Adam, sign, Muon)."""
        return self.update(WIDTH, role) == self.update(ONE, role)

    def step(self, gradient: Power, role: Role, weight: Power) -> Power:
        """The update, of weights of that size."""
        return self.update(gradient, role) * (weight if self.relative else ONE)

    def epsilon(self, gradient: Power, role: Role) -> Power:
        """What its ε is to be compared with: a gradient's entry, or its norm."""
        return gradient * role.entries**HALF if self.whole and not role.vector else gradient


@dataclass(frozen=True)
class Scale:
    """What Muon has in front of UVᵀ: ``constant`` times the largest of out^a in^b, of the (a, b) of ``terms``."""

    words: str
    terms: tuple[tuple[Fraction, Fraction], ...]
    constant: float = 1.0

    def power(self, out: Power, in_: Power) -> Power:
        return largest(*(out**a * in_**b for a, b in self.terms))

    def __call__(self, out: float, in_: float) -> float:
        """Of the matrices' sides."""
        return self.constant * max(float(out) ** float(a) * float(in_) ** float(b) for a, b in self.terms)


_NO = Fraction(0)
MUON_SCALES = {
    "unit": Scale("", ((_NO, _NO),)),
    "keller": Scale("√max(1, out/in) ", ((_NO, _NO), (HALF, -HALF))),
    "spectral": Scale("√(out/in) ", ((HALF, -HALF),)),
    "match_rms": Scale("0.2 √max(out, in) ", ((HALF, _NO), (_NO, HALF)), 0.2),
}


def _orthogonal(scale: str) -> Optimizer:
    """UVᵀ of a gradient UΣVᵀ whose rank, that of the batch, is of order one: so is its norm."""
    front = MUON_SCALES[scale]

    def update(gradient, role):
        return ONE if role.vector else front.power(role.fan_out, role.fan_in) / role.entries**HALF

    return Optimizer(f"muon_{scale}", f"update = {front.words}UVᵀ of the gradient UΣVᵀ, whose rank is of order one (ε → 0); "
                                      "of a bias, a gain as Adam", update, whole=True, averages="before")  # fmt: skip


_SGD = Optimizer("sgd", "update = gradient", lambda gradient, role: gradient)
_ADAM = Optimizer("adam", "update = gradient / |gradient|, entry by entry (ε → 0)", lambda gradient, role: ONE,
                  averages="apart")  # fmt: skip
_LAMB = replace(_ADAM, name="lamb", rule="update = Adam's times |W| over its norm", relative=True)
_UNIT = _orthogonal("unit")
OPTIMIZERS = {
    rule.name: rule
    for rule in (
        _SGD,
        replace(_SGD, name="momentum", rule="update = sum of O(1) gradients", same_as="sgd"),
        _ADAM,
        replace(_ADAM, name="adamw", rule=f"{_ADAM.rule}, and weight decay apart from it", same_as="adam"),
        replace(_ADAM, name="sign", rule="update = sign of the gradient", same_as="adam", averages=""),
        replace(_ADAM, name="lion", rule="update = sign of O(1) gradients' average", same_as="adam", averages="before"),
        _LAMB,
        replace(_LAMB, name="adafactor", rule="update = gradient / its factored rms, times the rms of W", same_as="lamb"),
        _UNIT,
        *(_orthogonal(scale) for scale in MUON_SCALES if scale != "unit"),
        replace(_UNIT, name="shampoo", rule=f"{_UNIT.rule}: (GGᵀ)^(-1/4) G (GᵀG)^(-1/4)", same_as="muon_unit",
                averages="apart"),
        replace(_UNIT, name="soap", rule=f"{_UNIT.rule}: Adam in the bases of GGᵀ, GᵀG, in which few entries are not 0",
                same_as="muon_unit", averages="apart"),
    )
}  # fmt: skip
COMMON = ("sgd", "adam")  # which commands begin with
ROLES = ("input", "hidden", "block_inner", "block", "readout", "bias", "norm_gain", "embedding")
VECTORS = ("bias", "norm_gain")


def plain(depth: int) -> dict[str, Role]:
    """The roles of a network of ``depth`` hidden layers: one input layer, depth − 1 hidden matrices, one readout.

    ``bias`` and ``norm_gain`` (a factor per unit) belong to the last hidden layer; an ``embedding`` is an input layer
    whose input is one-hot.
    """
    _require_count("depth", depth)
    after_input = ("hidden",) * (depth - 1) + ("readout",)
    roles = [Role("input", ONE, WIDTH, after_input), Role("embedding", ONE, WIDTH, after_input)]
    if depth > 1:
        roles.append(Role("hidden", WIDTH, WIDTH, after_input[1:]))
    roles += [Role(name, ONE, WIDTH, ("readout",), vector=True) for name in VECTORS]
    return _in_order([*roles, Role("readout", WIDTH, ONE)])


def residual(block_size: int) -> dict[str, Role]:
    """The roles of h ← h + branch(h), L times: ``block_size`` matrices per branch, nonlinearities between them.

    ``block`` is the last matrix of the branch, and its multiplier holds the branch multiplier L^{-α}; ``block_inner``
    are the matrices before it; ``bias`` is added to the branch, ``norm_gain`` multiplies the branch's input.
    """
    _require_count("block size", block_size)
    branch = ("block_inner",) * (block_size - 1) + ("block", "readout")
    roles = [Role("input", ONE, WIDTH, ("readout",)), Role("embedding", ONE, WIDTH, ("readout",))]
    if block_size > 1:
        roles.append(Role("block_inner", WIDTH, WIDTH, branch[1:], DEPTH))
    roles += [
        Role("block", WIDTH, WIDTH, ("readout",), DEPTH),
        Role("bias", ONE, WIDTH, ("readout",), DEPTH, vector=True),
        Role("norm_gain", ONE, WIDTH, branch, DEPTH, vector=True),
        Role("readout", WIDTH, ONE),
    ]
    return _in_order(roles)


def architecture(kind: str, depth: int = 3, block_size: int = 1) -> dict[str, Role]:
    """The roles of a "plain" or "residual" network; ``depth`` is of the first, ``block_size`` of the second."""
    if kind not in ("plain", "residual"):
        raise ValueError(f"unknown architecture {kind!r}; known: plain, residual")
    return plain(depth) if kind == "plain" else residual(block_size)


def output_at_init(role: Role, e: Exponents, alignment: Alignment) -> Power:
    """multiplier · W_0 x, for x of order one."""
    return e.multiplier * e.init_std * role.fan_in**alignment.initial


def carries_forward(role: Role, e: Exponents, alignment: Alignment) -> Power:
    """multiplier · W_0 Δx per Δx."""
    aligned = alignment.readout if role.name == "readout" else alignment.propagated
    return e.multiplier * e.init_std * role.fan_in**aligned


def carries_back(role: Role, e: Exponents, alignment: Alignment) -> Power:
    """multiplier · W_0ᵀ δ per δ."""
    return e.multiplier * e.init_std * role.fan_out**alignment.initial


@dataclass(frozen=True)
class FirstStep:
    """Sizes in the first step from initialisation, for one role whose input is of order one.

    output      its output at step 0
    signal      δ, the gradient in its output
    gradient    an entry of the gradient in W
    update      an entry of ΔW
    change      multiplier · ΔW x: the change of its output that is its own doing
    on_stream   ``change`` where it meets the features: behind the rest of its branch, summed over the L blocks
    on_f        ``change`` at the network's output, summed over the L blocks
    """

    output: Power
    signal: Power
    gradient: Power
    update: Power
    change: Power
    on_stream: Power
    on_f: Power


def first_step(
    roles: Mapping[str, Role], exponents: Mapping[str, Exponents], optimizer: Optimizer, alignment: Alignment
) -> dict[str, FirstStep]:
    """The first step, role by role: forward, back, update, forward again."""

    def size_of(role):
        e = exponents[role.name]
        behind = [(roles[name], exponents[name]) for name in role.downstream]
        signal = _product(carries_back(r, x, alignment) for r, x in behind)
        gradient = e.multiplier * signal
        update = e.learning_rate * optimizer.step(gradient, role, e.init_std)
        change = e.multiplier * update * role.fan_in**alignment.update
        coherent = role.copies**alignment.blocks_update
        branch = [(r, x) for r, x in behind if r.copies != ONE]
        return FirstStep(
            output=output_at_init(role, e, alignment),
            signal=signal,
            gradient=gradient,
            update=update,
            change=change,
            on_stream=change * coherent * _product(carries_forward(r, x, alignment) for r, x in branch),
            on_f=change * coherent * _product(carries_forward(r, x, alignment) for r, x in behind),
        )

    return {name: size_of(role) for name, role in roles.items()}


def shifted(e: Exponents, theta: Power, role: Role, optimizer: Optimizer) -> Exponents:
    """The gauge transformation: W → W/θ, multiplier → θ · multiplier, and the rate that trains the same function.

    The gradient grows by θ and the update must shrink by θ, so the learning rate goes with θ^{-2} for a rule that is
    linear in the gradient, θ^{-1} for one that forgets its scale, and not at all for one in units of the weights.
    """
    growth = optimizer.step(theta, role, ONE / theta) / optimizer.step(ONE, role, ONE)
    return Exponents(e.multiplier * theta, e.init_std / theta, e.learning_rate / (theta * growth))


def _product(sizes) -> Power:
    result = ONE
    for size in sizes:
        result = result * size
    return result


def _in_order(roles: list[Role]) -> dict[str, Role]:
    return {role.name: role for role in sorted(roles, key=lambda role: ROLES.index(role.name))}


def _require_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} {value} must be at least 1")
