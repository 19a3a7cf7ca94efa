"""What given exponents do: the size of everything measurable after a few steps, and the regime that follows from it.

``sizes`` runs a few training steps in the algebra of ``limits.exponents.algebra``: forward, back, update, with sizes in
place of tensors.  Here the exponents are numbers, so a sum of several terms is as large as its largest, and weights
that have moved further than they started carry the signals of the next step.  ``classify`` reads the regime off;
``predicted`` gives the exponents that a measurement on networks of growing width and depth should find.  No sympy here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import inf

from limits.exponents.algebra import (
    DEPTH,
    HALF,
    ONE,
    OPTIMIZERS,
    WIDTH,
    Alignment,
    Exponents,
    Optimizer,
    Power,
    Role,
    Scaling,
    architecture,
    carries_back,
    carries_forward,
    largest,
)
from limits.losses import LOSSES

ABSENT = Power(-inf, -inf)  # what is exactly zero
NUM_STEPS = 3  # 1: updates through W_0; 2: signals through the moved weights; 3: is it still growing?


@dataclass(frozen=True)
class Case:
    """Whose sizes: exponents by role, the optimiser, the architecture, the loss.

    Under MSE ∂L/∂f is as large as f; under cross-entropy it is of order one however large f is.
    """

    exponents: Mapping[str, Exponents]
    optimizer: Optimizer
    kind: str = "plain"
    depth: int = 3
    block_size: int = 1
    loss: str = "mse"
    alignment: Alignment = Alignment()  # noqa: RUF009, a frozen record

    def __post_init__(self):
        LOSSES.find(self.loss)
        missing = [role for role in self.roles if role in MATRICES and role not in self.exponents]
        if missing:
            raise ValueError(f"a {self.kind} network needs exponents for {', '.join(missing)}")

    @property
    def roles(self) -> dict[str, Role]:
        return architecture(self.kind, self.depth, self.block_size)

    @property
    def stages(self) -> list[list[str]]:
        """Names of the layers that lie on one path, stage by stage; the residual branch is one stage."""
        if self.kind == "plain":
            return [["input"], *([f"hidden {l}"] for l in range(2, self.depth + 1)), ["readout"]]
        inner = [f"block_inner {i}" for i in range(1, self.block_size)]
        return [["input"], [*inner, "block"], ["readout"]]


MATRICES = ("input", "hidden", "block_inner", "block", "readout")


@dataclass(frozen=True)
class Sizes:
    """Everything at one step, by layer.  ``stream`` is the residual stream behind the blocks.

    h           pre-activation at step 0 (of ``readout``: f; of ``block``: what it adds to the stream)
    delta_h     its change since step 0
    own_change  the part of ``delta_h`` that the layer's own branch made
    gradient, update   an entry of ∂L/∂W and of W − W_0
    error       ∂L/∂f
    """

    h: dict[str, Power]
    delta_h: dict[str, Power]
    own_change: dict[str, Power]
    gradient: dict[str, Power]
    update: dict[str, Power]
    error: Power


def sizes(case: Case, num_steps: int = NUM_STEPS) -> list[Sizes]:
    """The sizes before each of the steps 0 … num_steps."""
    update = {name: ABSENT for stage in case.stages for name in stage}
    update |= {role: ABSENT for role in case.exponents if role in ("bias", "norm_gain", "embedding")}
    history = []
    for _ in range(num_steps + 1):
        h, delta_h, own, arriving = _forward(case, update)
        error = largest(ONE, h["readout"], delta_h["readout"]) if LOSSES[case.loss].quadratic else ONE
        gradient = _backward(case, update, arriving, error)
        history.append(Sizes(h, delta_h, own, gradient, update, error))
        update = {
            name: largest(
                size,
                case.exponents[_role(name)].learning_rate
                * case.optimizer.step(
                    gradient[name], case.roles[_role(name)], largest(case.exponents[_role(name)].init_std, size)
                ),
            )
            for name, size in update.items()
            if name in gradient
        }
    return history


def _forward(case: Case, update):
    """Sizes of outputs, their changes, the changes of own making, and of what arrives at each layer."""
    h, delta_h, own, arriving = {}, {}, {}, {}
    x, dx = ONE, ABSENT
    for stage in case.stages:
        y, made, carried = x, ABSENT, dx  # ``made`` by this stage's updates, ``carried`` from the stages before
        for name in stage:
            role, e = case.roles[_role(name)], case.exponents[_role(name)]
            arriving[name] = largest(y, made, carried)
            own_update = e.multiplier * update[name] * role.fan_in**case.alignment.update * arriving[name]
            passes = carries_forward(role, e, case.alignment)
            y = y * e.multiplier * e.init_std * role.fan_in**case.alignment.initial
            made, carried = largest(own_update, passes * made), passes * carried
            h[name], own[name], delta_h[name] = y, made, largest(made, carried)
        if "block" in stage:
            x = largest(x, y * DEPTH**case.alignment.blocks_initial)
            coherent, independent = case.alignment.blocks_update, case.alignment.blocks_initial
            dx = largest(dx, made * DEPTH**coherent, carried * DEPTH**independent)
            h["stream"], delta_h["stream"] = x, dx
        else:
            x, dx = y, largest(made, carried)
    for name in ("bias", "norm_gain", "embedding"):  # bias and gain act entry by entry on something of order one
        if name in update:
            delta_h[name] = own[name] = case.exponents[name].multiplier * update[name]
            h[name] = case.exponents[name].multiplier * case.exponents[name].init_std
    return h, delta_h, own, arriving


def _backward(case: Case, update, arriving, error):
    """The size of a gradient entry per layer."""
    gradient, at_output = {}, {}
    signal = error
    for stage in reversed(case.stages):
        fresh, moved = signal, ABSENT  # through initial weights only; through at least one update
        for name in reversed(stage):
            role, e = case.roles[_role(name)], case.exponents[_role(name)]
            at_output[name] = largest(fresh, moved)
            gradient[name] = e.multiplier * at_output[name] * arriving[name]
            through_update = e.multiplier * update[name] * role.fan_out**case.alignment.update
            passes = carries_back(role, e, case.alignment)
            fresh, moved = passes * fresh, largest(through_update * at_output[name], passes * moved)
        if "block" in stage:
            at_output["branch input"] = largest(fresh, moved)
            a = case.alignment
            signal = largest(signal, fresh * DEPTH**a.blocks_initial, moved * DEPTH**a.blocks_update)
        else:
            signal = largest(fresh, moved)
    last = case.stages[-2][-1]
    sites = {"bias": last, "norm_gain": "branch input" if last == "block" else last, "embedding": "input"}
    for name, site in sites.items():
        if name in update:
            gradient[name] = case.exponents[name].multiplier * at_output[site]
    return gradient


def predicted(case: Case, num_steps: int = NUM_STEPS) -> dict[str, dict[str, Power]]:
    """The exponents in N and L of every measurable size after so many steps: quantity → layer → power.

    From the third step on they stay, unless the exponents are unstable.

    h, f                     at step 0; ``stream`` is the residual stream behind the blocks, ``block`` one block's part
    delta_h, delta_f         their change since then; ``own_change`` the part that the layer's (branch's) updates made
    alignment                N^e, how much larger ΔW x is than an entry of ΔW times one of x
    gradient, weight_update  an entry of ∂L/∂W and of W − W_0, for W as stored, without its multiplier
    weight_update_spectral   the largest singular value of W − W_0, whose rank is of order one
    sharpness                the largest eigenvalue of the Gauss-Newton part of the raw Hessian, not multiplied by a learning
                             rate, and under rules that forget the gradient's scale over the size of its entries, as Adam's
                             P is: of one layer, of the ``network`` (Adam with an ε as below: at ε = 0 its smallest gradients
                             add logarithms)
    epsilon                  how ε must scale: as a gradient entry, or as its norm (``Optimizer.epsilon``)
    weight_decay             λ with ηλ of order one, decoupled (AdamW), or coupled in SGD
    weight_decay_coupled     λ in the gradient: the same in SGD; in Adam the largest that does not drown the gradient

    A residual network whose branches blow the stream up has L exponents inf: it grows exponentially in L.
    """
    case, explodes = _without_explosion(case)
    history = sizes(case, num_steps)
    start, end = history[0], history[-1]
    roles = {name: case.roles[_role(name)] for name in end.gradient}
    entries = {name: role.entries for name, role in roles.items()}
    rates = {name: case.exponents[_role(name)].learning_rate for name in end.gradient}
    sharpness = {name: _sharpness(case, name, entries[name], start) for name in end.gradient}
    sharpness["network"] = largest(*(size * roles[name].copies for name, size in sharpness.items()))
    decoupled = {name: ONE / rate for name, rate in rates.items()}
    result = {
        "h": {name: size for name, size in start.h.items() if name != "readout"},
        "delta_h": {name: size for name, size in end.delta_h.items() if name != "readout"},
        "own_change": end.own_change,
        "alignment": {name: role.fan_in**case.alignment.update for name, role in roles.items()},
        "f": {"readout": start.h["readout"]},
        "delta_f": {"readout": end.delta_h["readout"]},
        "gradient": start.gradient,
        "weight_update": end.update,
        "weight_update_spectral": {name: size * entries[name] ** HALF for name, size in end.update.items()},
        "sharpness": sharpness,
        "epsilon": {name: case.optimizer.epsilon(size, roles[name]) for name, size in start.gradient.items()},
        "weight_decay": decoupled,
        "weight_decay_coupled": {
            name: start.gradient[name] / case.exponents[_role(name)].init_std
            if case.optimizer.forgets_scale(roles[name])
            else decoupled[name]
            for name in decoupled
        },
    }
    if explodes:
        grows = ("h", "delta_h", "own_change", "f", "delta_f", "gradient", "weight_update", "weight_update_spectral")
        for quantity in (*grows, "sharpness", "epsilon"):
            result[quantity] = {name: Power(size.N, inf) for name, size in result[quantity].items()}
    return result


def weight_decay(case: Case, alignment: Fraction) -> dict[str, Power]:
    """λ of a decoupled decay, W ← W − η (update + λ W), that keeps every layer's size where training ends: by layer.

    There steps and decay are in balance, an entry of W is √(η/2λ) updates large (Kosson et al. 2024), and W x is N^e (of the
    fan-in) times that, e the alignment exponent of the weights: λ ∝ η (multiplier · update · fan-in^e)².  Under Adam without
    multipliers, where η is 1/fan-in, fan-in^(2e − 1): constant for e = 1/2, and for e = 1 that with ηλ of order one.
    ValueError for steps in units of the weights, which have no such balance.
    """
    if case.optimizer.relative:
        raise ValueError(f"{case.optimizer.name} moves weights in units of themselves: no weight decay balances its steps")
    case, _ = _without_explosion(case)
    decay = {}
    for layer, gradient in sizes(case, 0)[0].gradient.items():
        role, e = case.roles[_role(layer)], case.exponents[_role(layer)]
        output = e.multiplier * case.optimizer.step(gradient, role, e.init_std) * role.fan_in**alignment
        decay[layer] = e.learning_rate * output**2
    return decay


@dataclass(frozen=True)
class Verdict:
    """The regime and why.

    regime     "trivial", "unstable", "kernel", "feature learning", or "controlled divergence" (cross-entropy only)
    reason     one line: what decides it
    layers     per layer "moves" (its own weights change its output by as much as it was), "lazy" (its output changes
               only because what arrives does), "frozen" (Δh → 0) or "blows up"
    border     the power that every learning rate could still be multiplied by before something blows up, in N (at
               fixed L) and in L (at fixed N); −inf where no learning rate is stable, inf where every one is
    """

    regime: str
    reason: str
    layers: dict[str, str]
    border: Power


def classify(case: Case) -> Verdict:
    """The regime of given exponents, and what blows up first where something does."""
    flat, explodes = _without_explosion(case)
    if explodes:
        at_fixed_depth = classify(flat)
        reason = f"the residual stream grows exponentially in L at initialisation (at fixed L: {at_fixed_depth.regime})"
        return replace(
            at_fixed_depth, regime="unstable", reason=reason, border=Power(at_fixed_depth.border.N, -inf)
        )
    history = sizes(case)
    layers = {name: _motion(history, name) for name in history[-1].h if name != "readout"}
    border = _border(case)
    output = history[-1].delta_h["readout"]
    if failure := _first_blow_up(history, case.loss):
        return Verdict("unstable", failure[1], layers, border)
    logits = largest(history[0].h["readout"], output)
    if max(logits.N, logits.L) > 0:
        moving = "features move" if "moves" in layers.values() else "features are frozen"
        return Verdict("controlled divergence", f"f grows as {logits}, all else is stable; {moving}", layers, border)
    if min(output.N, output.L) < 0:
        return Verdict("trivial", f"Δf vanishes as {output}", layers, border)
    last = history[-1].delta_h["stream" if case.kind == "residual" else case.stages[-2][-1]]
    if min(last.N, last.L) < 0:
        return Verdict("kernel", f"Δf = Θ(1) while the last features move as {last}", layers, border)
    return Verdict("feature learning", "Δf = Θ(1) and the last features move by Θ(1)", layers, border)


def blow_up(case: Case, letter: str, num_steps: int = NUM_STEPS) -> tuple[int, str] | None:
    """(step, what grows how) of the first thing that grows in N at fixed L, or in L at fixed N, within so many steps.

    Up to that step sizes are powers as derived.  Behind it each step multiplies the exponents, until numbers overflow.
    """
    flat, _ = _without_explosion(case)
    return _first_blow_up(sizes(flat, num_steps), case.loss, letter)


def _first_blow_up(history: list[Sizes], loss: str, letters: str = "NL") -> tuple[int, str] | None:
    for step, scales in enumerate(history):
        watched = {f"h of {n}": s for n, s in scales.h.items() if n != "readout"} if step == 0 else {}
        watched |= {f"Δh of {n}": s for n, s in _features(scales).items()}
        if LOSSES[loss].quadratic:
            watched |= {"f": scales.h["readout"]} if step == 0 else {"Δf": scales.delta_h["readout"]}
        for name, size in watched.items():
            if any(getattr(size, letter) > 0 for letter in letters):
                growth = " and ".join(f"{x}^{p}" for x, p in (("N", size.N), ("L", size.L)) if x in letters and p > 0)
                return step, f"{name} grows as {growth} " + ("at initialisation" if step == 0 else f"after step {step}")
    return None


def _features(scales: Sizes) -> dict[str, Power]:
    return {name: size for name, size in scales.delta_h.items() if name != "readout"}


def _motion(history: list[Sizes], name: str) -> str:
    start, change = history[0].h[name], history[-1].delta_h[name]
    if max(change.N, change.L) > 0:
        return "blows up"
    own, total = (size / start for size in (history[-1].own_change.get(name, change), change))
    if min(own.N, own.L) >= 0:
        return "moves"
    return "lazy" if min(total.N, total.L) >= 0 else "frozen"


def _border(case: Case) -> Power:
    return Power(_border_in(case, WIDTH), _border_in(case, DEPTH))


def _border_in(case: Case, unit: Power) -> Fraction | float:
    """The largest s at which learning rates times unit^s leave everything O(1) in that letter.

    The largest exponent is a convex, piecewise linear, non-decreasing function of s: Newton's method from the right
    arrives at the border after finitely many steps, exactly.
    """

    def worst(s):
        factor = unit**s
        faster = {role: replace(e, learning_rate=e.learning_rate * factor) for role, e in case.exponents.items()}
        scales = sizes(replace(case, exponents=faster))[-1]
        watched = [*scales.h.values(), *scales.delta_h.values()]
        if not LOSSES[case.loss].quadratic:
            watched = [size for sizes_ in (scales.h, scales.delta_h) for name, size in sizes_.items() if name != "readout"]
        return max(size.N if unit.N else size.L for size in watched)

    if worst(Fraction(-100)) > 0:
        return -inf
    s, nearby = Fraction(20), Fraction(1, 10**6)
    while (value := worst(s)) > 0:
        slope = (value - worst(s - nearby)) / nearby
        s -= value / slope
    return s if s < 20 else inf


def gradient_sizes(case: Case) -> dict[str, Power]:
    """An entry of ∂L/∂W at step 0, by role: as its largest layer's.

    Where the residual stream grows exponentially in L, of its powers only that of W's own multiplier means something.
    """
    flat, explodes = _without_explosion(case)
    result: dict[str, Power] = {}
    for layer, size in sizes(flat, num_steps=0)[0].gradient.items():
        own = Power(L=case.exponents[_role(layer)].multiplier.L) if explodes else ONE
        result[_role(layer)] = largest(size * own, result.get(_role(layer), size * own))
    return result


def _sharpness(case: Case, name: str, entries: Power, start: Sizes) -> Power:
    """entries · (∂f/∂W)², over the gradient where its scale is forgotten."""
    gradient = start.gradient[name]
    unit = gradient if case.optimizer.forgets_scale(case.roles[_role(name)]) else ONE
    return entries * (gradient / start.error) ** 2 / unit


def _without_explosion(case: Case) -> tuple[Case, bool]:
    """Whether the branches at step 0 outgrow the stream in L, and if so the case without powers of L."""
    if case.kind == "plain":
        return case, False
    start = sizes(case, num_steps=0)[0]
    if start.h["block"].L + case.alignment.blocks_initial <= start.h["input"].L:
        return case, False
    flat = {role: _in_width(e) for role, e in case.exponents.items()}
    at_fixed_depth = replace(case.alignment, blocks_initial=Fraction(0), blocks_update=Fraction(0))
    return replace(case, exponents=flat, alignment=at_fixed_depth), True


def _in_width(e: Exponents) -> Exponents:
    return Exponents(Power(e.multiplier.N), Power(e.init_std.N), Power(e.learning_rate.N))


def _role(layer: str) -> str:
    return layer.split()[0]


def case(scaling: Scaling, **options) -> Case:
    """The ``Case`` of a scaling (options: depth, block_size, loss, alignment)."""
    present = architecture(scaling.architecture, options.get("depth", 3), options.get("block_size", 1))
    exponents = {role: e for role, e in scaling.roles.items() if role in present}
    return Case(exponents, OPTIMIZERS[scaling.optimizer], scaling.architecture, **options)
