"""The sizes that an audit compares: of a model at every width, at step 0 and after a few steps of its own optimiser.

Everything is a root mean square, of one width an array over seeds.  Compiled once per width: a step, the walk of
``finite.networks.roles``, and what the optimiser makes of other gradients than the network's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finite.networks.from_file import check, transformation
from finite.networks.own import Model, paths
from finite.networks.roles import Role, Use, follow, roles_of, uses_of

QUIET = 4  # more steps than asked for that a schedule may warm up from 0 for
SLIGHT = 1e-3  # times an update: less is no answer to a gradient, but to momentum
LARGE = 1e4  # times a gradient: an optimiser's ε is then nothing

Sizes = Mapping[tuple[str, str], np.ndarray]  # (quantity, path or site) → (seeds,)


@dataclass(frozen=True)
class Measured:
    """Of all widths.

    roles    of the uses, at the two ends of the widths
    drawn    whether other keys make other weights
    crowd    samples (or places) and outputs together: so many directions share the units of a layer
    sizes    width by width:
             h, delta_h, own_change     of a use (by site): its output at step 0, its change, the part (W_T − W_0) x
             own_per_input              of the first step alone, over what arrives
             bound                      of scores: of queries times of keys, their axis and the factors: what they can grow to
             std, gradient, update      of a leaf (by path): stored W_0, ∂L/∂W, the first update without decay
             update_of_large            what it would be of ``LARGE`` times the gradient
             total                      W_T − W_0
             decay                      of the update what is there without a gradient, over the stored weights
             drowned                    cosine of the update and of decay alone, of a decay within the gradient
             noise                      of the first update what is there without a gradient and without weights, over the rest
             growth                     log2 of how an update grows with twice the gradient: 1 linear, 0 forgets the scale
             entrywise                  relative change of the update when each entry is scaled by itself: 0 for Adam's
             relative                   change of the update with twice the weights, without decay: 1 if in units of them
             muted                      update over that of a large gradient: less than 1 where ε is felt
             f, delta_f, loss           of the outputs, under ""
    """

    widths: tuple[int, ...]
    roles: list[Role]
    sizes: list[Sizes]
    drawn: bool = True
    crowd: int = 0

    def by_width(self, quantity: str, name: str = "") -> list[np.ndarray]:
        return [sizes[quantity, name] for sizes in self.sizes]


def measure(model: Model, optimizer: Any, widths: Sequence[int], *, seeds: int = 3, steps: int = 3) -> Measured:
    """Raises ValueError, in one line, for what is no network, widths that change nothing, and a loss that is not finite.

    optimizer   an optax transformation, or a function of the width, or of (width, params), that returns one
    """
    uses, sizes, drawn = [], [], False
    for width in widths:
        start, apply = model.at(width, jax.random.key(0))
        program = _Program(model, width, start, apply, optimizer)
        uses.append(uses_of(apply, start, model.batch[0]))
        crowd = _crowd(jax.eval_shape(apply, start, model.batch[0]))
        if len(uses) == 2:
            roles_of(uses, widths[:2])  # before all is trained
        rest = [model.at(width, jax.random.key(seed))[0] for seed in range(1, seeds)]
        drawn = drawn or not all(map(np.array_equal, jax.tree.leaves(start), jax.tree.leaves(rest[0])))
        by_seed = [program.sizes(params, uses[-1], steps) for params in (start, *rest)]
        sizes.append({name: np.array([values[name] for values in by_seed], dtype=float) for name in by_seed[0]})
    return Measured(tuple(widths), roles_of([uses[0], uses[-1]], [widths[0], widths[-1]]), sizes, drawn, crowd)


def _crowd(outputs: Any) -> int:
    """Places and outputs of the largest array."""
    shape = max((leaf.shape for leaf in jax.tree.leaves(outputs)), key=prod)
    return prod(shape[:-1]) + shape[-1] if len(shape) > 1 else prod(shape) + 1


def answers_of(model: Model, optimizer: Any, width: int) -> dict[str, dict[str, float]]:
    """By path what ``Measured.sizes`` says of a leaf, but not what is compared over steps: of one network, after one step."""
    params, apply = model.at(width, jax.random.key(0))
    program = _Program(model, width, params, apply, optimizer)
    return dict(zip(paths(params), program.asked(params, 1)[1], strict=True))


class _Program:
    """What is compiled once for all seeds of a width.  Raises ValueError, in one line, for what cannot be trained."""

    def __init__(self, model: Model, width: int, params: Any, apply: Callable, optimizer: Any):
        self.width, optimizer = width, transformation(optimizer, width, params)
        batch = jax.tree.map(jnp.asarray, tuple(model.batch))

        def loss_of(params, batch):
            return model.of_outputs(apply(params, batch[0]), batch[1])

        def step(params, state):
            loss, gradient = jax.value_and_grad(loss_of)(params, batch)
            updates, state = optimizer.update(gradient, state, params)
            return loss, gradient, jax.tree.map(jnp.add, params, updates), state, _rms(updates) > 0

        def walk(params, initial, inputs):
            outputs, _, signals = follow(apply, params, inputs, initial)
            return outputs, signals

        _refuse_half_precision(params)
        check(loss_of, optimizer, params, batch, width)
        labels = np.asarray(model.batch[1]) if isinstance(model.loss, str) else np.zeros(0)
        of_integers = labels.size and np.issubdtype(labels.dtype, np.integer)
        self.told_of_labels = f" (labels lie from {labels.min()} to {labels.max()})" if of_integers else ""
        self.init, self.step, walk = jax.jit(optimizer.init), jax.jit(step), jax.jit(walk)
        self.walk = lambda params, initial: walk(params, initial, batch[0])  # as an argument: constants are computed with
        self.answers = jax.jit(lambda *at: _answers(optimizer, *at))
        self.compared = jax.jit(_compared)

    def asked(self, initial: Any, steps: int) -> tuple[float, list[dict[str, float]], Any, Any]:
        """(loss at step 0, what the optimiser answers leaf by leaf, the params after its first step, and after the last).

        Steps that a schedule begins with at rate 0 are not counted; a leaf that has no gradient at first (behind a readout of
        zeros) is asked for again at the end.
        """
        params, state, first, loss = initial, self.init(initial), None, []
        while len(loss) < steps or (first is None and len(loss) < steps + QUIET):
            before = state, params
            value, gradient, params, state, moves = self.step(params, state)
            loss.append(float(value))
            if not np.isfinite(loss[0]):
                fault = f"the loss at width {self.width} is {loss[0]} at step 0"
                raise ValueError(f"{fault}: nothing can be measured{self.told_of_labels}")
            if first is None and (moves or len(loss) == steps + QUIET):  # or an optimiser that moves nothing
                first = before[0], self.answers(len(loss) == 1, gradient, *before, initial), params
        late = self.answers(False, gradient, first[0], params, initial)
        answers = [{name: float(value) for name, value in (early if early["gradient"] > 0 else later).items()}
                   for early, later in zip(*jax.device_get((first[1], late)), strict=True)]  # fmt: skip
        return loss[0], answers, first[2], params

    def sizes(self, initial: Any, uses: Sequence[Use], steps: int) -> dict[tuple[str, str], float]:
        """Of one network."""
        loss, answers, first, params = self.asked(initial, steps)
        walked = self.walk(initial, initial), self.walk(first, initial)[1], self.walk(params, initial)
        of_uses, of_outputs, totals = jax.device_get(self.compared(*walked, initial, params))
        if not np.isfinite([of_outputs["delta_f"], *totals]).all():
            raise ValueError(f"at width {self.width} nothing is finite after {steps} steps: a smaller learning rate is wanted")
        sizes = {("loss", ""): loss, **{(name, ""): float(value) for name, value in of_outputs.items()}}
        for path, answer, total in zip(paths(params), answers, totals, strict=True):
            sizes |= {(name, path): value for name, value in answer.items()} | {("total", path): float(total)}
        for use, values in zip(uses, of_uses, strict=True):
            values = {name: float(value) for name, value in values.items()}
            values["bound"] *= use.fan_in
            if not values["own_per_input"]:
                values["own_per_input"] = values["own_at_end"]
            sizes |= {(name, use.site): value for name, value in values.items()}
        return sizes


def _refuse_half_precision(params: Any) -> None:
    for path, leaf in zip(paths(params), jax.tree.leaves(params), strict=True):
        if jnp.finfo(leaf.dtype).bits < 32:
            why = "of which rounding leaves too little of an optimiser's steps"
            raise ValueError(f"{path} is stored as {leaf.dtype}, {why}: build it in float32, and let apply cast it")


def _answers(optimizer, fresh, gradient, state, params, initial) -> list[dict[str, jax.Array]]:
    """Leaf by leaf: what the optimiser makes of the network's gradient, and of others; ``fresh``: in its first state."""
    held, structure = jax.tree.flatten(state)
    are_weights = _which_are_weights(optimizer, initial)
    others = jax.tree.map(lambda g: 1.5 + jnp.cos(jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape), gradient)

    def update(asked):
        times, of_params, apart = asked
        scaled = jax.tree.map(lambda g, other: g * times * jnp.where(apart, other, 1), gradient, others)
        of_state = structure.unflatten([jnp.where(is_weight, leaf * of_params, leaf).astype(leaf.dtype) if is_weight is not None
                                        else leaf for leaf, is_weight in zip(held, are_weights, strict=True)])  # fmt: skip
        return jax.tree.leaves(optimizer.update(scaled, of_state, jax.tree.map(lambda p: p * of_params, params))[0])

    times = jnp.array([0.0, 0.0, 0.0, 1.0, 2.0, LARGE, LARGE, LARGE])
    of_params = jnp.array([0.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    made = jax.lax.map(update, (times, of_params, jnp.arange(8) == 6))  # compiled once
    answers = []
    for p, g, (still, *made_of) in zip(*map(jax.tree.leaves, (initial, gradient)), made, strict=True):
        still = jnp.nan_to_num(still)  # 0/0 of what estimates its own rate
        noise, momentum = jnp.where(fresh, still, 0.0), jnp.where(fresh, 0.0, still)  # neither of gradients nor of weights
        d, dd, *rest = (answer - noise for answer in made_of)
        d, dd = jnp.nan_to_num(d), jnp.nan_to_num(dd)
        apart = dd - d  # a decay that is no part of a gradient whose scale is forgotten; without what momentum makes
        plain, twice, large, scaled, heavy = (answer - apart for answer in rest)
        answered = _rms(plain - momentum) > SLIGHT * _rms(plain)
        within = fresh & (_rms(apart) < 0.5 * _rms(d))
        answers.append({
            "std": _rms(p), "gradient": _rms(g), "update": _rms(plain), "update_of_large": _rms(large),
            "decay": _rms(apart) / _rms(p),
            "drowned": jnp.where(within, jnp.abs(jnp.mean(rest[0] * d)) / (_rms(rest[0]) * _rms(d)), 0.0),
            "growth": jnp.where(answered, jnp.log2(_rms(twice - momentum) / _rms(plain - momentum)), 0.0),
            "muted": _rms(plain) / _rms(large), "noise": _rms(noise) / _rms(plain),
            "damped": _median(jnp.abs(large / plain) - 1), "epsilon": _median(jnp.abs(g) * (jnp.abs(large / plain) - 1)),
            "uphill": jnp.where(fresh, jnp.mean(plain * g) / (_rms(plain) * _rms(g)), 0.0),
            "entrywise": _rms(scaled - large) / _rms(large), "relative": _rms(heavy - large - apart) / _rms(large),
        })  # fmt: skip
    return answers


def _which_are_weights(optimizer, params) -> list[jax.Array | None]:
    """Of each leaf of an optimiser's state, whether it is a weight (schedule-free methods keep some); None: no real."""
    begun, moved = (jax.tree.leaves(optimizer.init(at)) for at in (params, jax.tree.map(lambda p: p + 1, params)))
    return [jnp.all(jnp.abs(b - a - 1) < 1e-3) if jnp.issubdtype(a.dtype, jnp.floating) else None
            for a, b in zip(begun, moved, strict=True)]  # fmt: skip


def _compared(start, after_one, end, initial, params):
    """(of every use its sizes, of the outputs theirs, how far each leaf has moved)."""
    (outputs, before), (outputs_end, after) = start, end
    uses = []
    for at_start, first, at_end in zip(before, after_one, after, strict=True):
        uses.append({
            "h": _rms(at_start.output), "delta_h": _rms(at_end.output - at_start.output), "own_change": _rms(at_end.own),
            "own_per_input": _rms(first.own) / _rms(first.arriving), "bound": _rms(at_end.arriving) * _rms(at_end.own),
            "own_at_end": _rms(at_end.own) / _rms(at_end.arriving),
        })  # fmt: skip
    outputs, outputs_end = ([leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
                            for tree in (outputs, outputs_end))  # fmt: skip
    change = jax.tree.map(jnp.subtract, outputs_end, outputs)
    moved = [_rms(a - b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(initial), strict=True)]
    return uses, {"f": _rms(outputs), "delta_f": _rms(change)}, moved


def _median(values: jax.Array) -> jax.Array:
    """Of those that are finite."""
    return jnp.nanmedian(jnp.where(jnp.isfinite(values), values, jnp.nan))


def _rms(tree: Any) -> jax.Array:
    """Over all entries of an array, or of a tree of arrays."""
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves) / sum(leaf.size for leaf in leaves))
