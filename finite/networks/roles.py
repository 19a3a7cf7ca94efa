"""What each weight of a network does, read off the program of its ``apply``: no names, no hooks, no reference shapes.

The weights are followed through ``jax.make_jaxpr(apply)``, through what moves them and through constant factors, into jitted
functions, custom derivatives, checkpoints, scans and branches, to where they *act* (``Use``):

    product      W x (dot_general): the contracted axes are the fan-in; what comes out is the pre-activation
    convolution  the same at every place: the channels of a group times the window
    embedding    rows that are looked up (gather), or put beside activations (concatenate)
    bias, gain   added to what arrives, multiplied with it
    scores       no weight: two activations, queries and keys, contracted over an axis

Constant factors make each one's *multiplier*: those on W and on the product (with its bias), and those on what arrives where
that is no product itself.  A factor on queries or keys is that of the scores if these have none, or if it is the 1/√d of
a head, which is no fan-in of theirs.  An operation on a weight that is none of these is named.

A *residual branch* ends where it is added to what it began from: h + f(h).  What is added to it later acts on the stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from finite.networks.own import Model, paths, require_model, theirs

MOVES = {"reshape", "transpose", "tile", "convert_element_type", "squeeze", "broadcast_in_dim", "copy", "copy_p", "expand_dims",
         "stop_gradient", "reduce_precision", "sharding_constraint", "rev", "neg"}  # fmt: skip
PARTS = {"slice", "dynamic_slice", "split"}  # of an array
STILL = {"mul", "add", "sub", "select_n", "pad", "gather", "concatenate"}  # with constants they leave a weight what it is
MIXES = MOVES | PARTS | {"mul", "div", "add", "sub", "max", "min", "clamp", "concatenate", "pad", "select_n",
                         "dynamic_update_slice"}  # queries stay queries  # fmt: skip
PRODUCT, CONVOLUTION, EMBEDDING, BIAS, GAIN, SCORES, UNUSED = (
    "product", "convolution", "embedding", "bias", "gain", "scores", "unused")  # fmt: skip
UNDERSTOOD = PRODUCT, CONVOLUTION, EMBEDDING, BIAS, GAIN, SCORES, UNUSED
ACTIVATIONS = "activations"  # the path of scores of what is not known to be queries and keys
OUTSIDE = -1  # the source of what a scan is given


@dataclass(frozen=True)
class Use:
    """A weight where it acts.

    path            of the leaf; of scores those of queries and keys
    operation       one of ``UNDERSTOOD``, or the name of a primitive that is not
    fan_in          terms that are summed for an entry of the output; 1 of embeddings, biases and gains
    fan_out         entries of the output that an entry of the input goes to
    copies          steps of the scans that it is in, or axes that it is batched over
    multiplier      of all constant factors
    site            where in the program
    branch          the site where its residual branch is added to the stream; "" outside of branches
    last            whether its output is that of the branch
    repeats         steps of the scans that it is in
    """

    path: str
    operation: str
    fan_in: int = 1
    fan_out: int = 1
    copies: int = 1
    multiplier: float = 1.0
    site: str = ""
    branch: str = ""
    last: bool = False
    repeats: int = 1

    @property
    def understood(self) -> bool:
        return self.operation in UNDERSTOOD and self.path != ACTIVATIONS


def branches(uses: Sequence[Use]) -> int:
    """How many residual branches there are, one for every step of a scan: a transformer's block has two."""
    return sum({use.branch: use.repeats for use in uses if use.branch}.values())


class Signal(NamedTuple):
    """What a use makes: its output, of that (W − W_0) x, and what arrived, x.  Of scores: they, keys, queries."""

    output: Any
    own: Any
    arriving: Any


def follow(
    apply: Callable, params: Any, inputs: Any, initial: Any = None, factors: Mapping[str, float] | None = None
) -> tuple[Any, list[Use], list[Signal | None]]:
    """(outputs, uses, their signals) of ``apply(params, inputs)``; traceable, and compiled as dear as ``apply``.

    initial   W_0, like the params: what ``Signal.own`` is the change from; without it there are no signals
    factors   by site: what acts there is multiplied by it.  The same function otherwise, derivatives included
    """
    leaves, tree = jax.tree.flatten(params)
    starts = [None] * len(leaves) if initial is None else jax.tree.leaves(initial)
    flat, inputs_tree = jax.tree.flatten(inputs)
    outputs_tree = []

    def of_leaves(leaves, flat):
        outputs, structure = jax.tree.flatten(apply(tree.unflatten(leaves), inputs_tree.unflatten(flat)))
        outputs_tree[:] = [structure]
        return outputs

    with theirs("apply(params, inputs)"):
        closed = jax.make_jaxpr(of_leaves)(leaves, flat)
    walk = _Walk(factors, initial is not None)
    weights = [
        _Value(leaf, _Weight(path, leaf.size, start)) for leaf, path, start in zip(leaves, paths(params), starts, strict=True)
    ]
    outputs = walk.run(closed.jaxpr, closed.consts, [*weights, *map(_Value, flat)])
    acting = {act.use.path for act in walk.acts}
    for value in weights:
        if value.weight.path not in acting:
            walk.add(value, UNUSED)
    uses, signals = walk.finished(walk.signals)
    return outputs_tree[0].unflatten([value.data for value in outputs]), uses, signals


def uses_of(apply: Callable, params: Any, inputs: Any) -> list[Use]:
    """The uses alone: nothing is computed.  Raises ValueError where ``apply`` reads no leaf of its params."""
    uses = []
    jax.eval_shape(lambda params, inputs: uses.append(follow(apply, params, inputs)[1]), params, inputs)
    if all(use.operation in (UNUSED, SCORES) for use in uses[0]):
        raise ValueError("apply(params, inputs) reads none of its params: it closes over others")
    return uses[0]


# Two widths: powers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """A use, with its sizes as powers of the width: log-ratios over two widths.

    tied    the other operations of the same leaf
    """

    use: Use
    fan_in: float
    fan_out: float
    multiplier: float
    tied: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The role in the tables of ``limits.exponents``; None of scores and of what is not understood."""
        operation, wide_in, wide_out = self.use.operation, grows(self.fan_in), grows(self.fan_out)
        if operation in (PRODUCT, CONVOLUTION):
            return {(0, 1): "input", (1, 1): "hidden", (1, 0): "readout", (0, 0): "constant"}.get((wide_in, wide_out))
        named = {EMBEDDING: "embedding", BIAS: "bias", GAIN: "norm_gain"}
        return named.get(operation) and {1: named[operation], 0: "constant"}.get(wide_out)

    def __str__(self) -> str:
        sizes = f"fan-in {_size(self.use.fan_in, self.fan_in)}, fan-out {_size(self.use.fan_out, self.fan_out)}"
        words = [f"{self.use.path}: {self.use.operation}", sizes, f"copies {self.use.copies}" if self.use.copies > 1 else ""]
        tied = f"tied with its {' and '.join(self.tied)}" if self.tied else ""
        return ", ".join(filter(None, [*words, tied])) + ("" if self.use.understood else " (not understood)")


def roles(model: Model, widths: Sequence[int] = (64, 128)) -> list[Role]:
    """What each weight of the model does.  Raises ValueError, in one line, as ``roles_of`` and ``Model.at`` do.

    >>> def build(width, key):
    ...     first, second = jax.random.normal(key, (3, width)), jnp.zeros((width, 1))
    ...     return {"first": first, "second": second}, lambda p, x: jnp.tanh(x @ p["first"]) @ p["second"] / width
    >>> for role in roles(Model(build, "mse", (jnp.ones((4, 3)), jnp.ones((4, 1))))):
    ...     print(role)
    first: product, fan-in 3, fan-out N^1
    second: product, fan-in N^1, fan-out 1
    """
    require_model(model)
    built = [model.at(width, jax.random.key(0)) for width in widths]
    return roles_of([uses_of(apply, params, model.batch[0]) for params, apply in built], widths)


def roles_of(uses: Sequence[Sequence[Use]], widths: Sequence[int]) -> list[Role]:
    """Of the uses at several widths, those of the first; scores over axes that do not grow are left out.

    Raises ValueError where the widths change no shape, or more than shapes, or no fan is a multiple of the width.
    """
    same = {tuple((use.path, use.operation, use.site) for use in of_width) for of_width in uses}
    if len(same) > 1:
        raise ValueError(f"widths {widths[0]} and {widths[-1]} make programs that differ in more than their shapes")
    pairs = list(zip(uses[0], uses[-1], strict=True))
    if all((a.fan_in, a.fan_out) == (b.fan_in, b.fan_out) for a, b in pairs):
        raise ValueError(f"widths {widths[0]} and {widths[-1]} make weights of the same shapes: the width changes nothing")

    def power(small, large):
        return log(large / small) / log(widths[-1] / widths[0]) if small > 0 < large else float("nan")

    operations: dict[str, dict[str, None]] = {}
    for use in uses[0]:
        operations.setdefault(use.path, {})[use.operation] = None  # (the paths of scores are pairs)
    all_roles = [
        Role(
            a, power(a.fan_in, b.fan_in), power(a.fan_out, b.fan_out), power(abs(a.multiplier), abs(b.multiplier)),
            tuple(o for o in operations[a.path] if o not in (a.operation, SCORES)),
        )
        for a, b in pairs
    ]  # fmt: skip
    weights = [role for role in all_roles if role.use.operation != SCORES]
    if all(grows(power) != 1 for role in weights for power in (role.fan_in, role.fan_out)):
        power, path = max((power, role.use.path) for role in weights for power in (role.fan_in, role.fan_out))
        told = f"no fan of a weight grows as the width N, {path}'s as N^{power:.2f}"
        raise ValueError(f"{told}: does build(width, key) read the width as it is?")
    return [role for role in all_roles if role.use.operation != SCORES or grows(role.fan_in)]


def grows(power: float) -> int | None:
    """Whether a size is of the first power of the width, or the same at all; None where it is neither (1024 + N, say)."""
    if power == 0:
        return 0
    return 1 if abs(power - 1) < 0.2 else None  # 8N/3 may be rounded to a multiple of 64


def _size(number, power):
    return {0: str(number), 1: "N^1"}.get(grows(power), f"N^{power:.2f}")


# The walk -------------------------------------------------------------------------------------------------------------


class _Weight(NamedTuple):
    """A leaf, moved and multiplied: its path, its entries (of a scan, of one step), the same of W_0, the constant factors."""

    path: str
    size: int
    initial: Any
    factor: float = 1.0


class _Value(NamedTuple):
    """An array of the program, and what it is.

    uses      of which it is the output, times constants: further constants are theirs
    factor    pending constants of what is no use's output
    sources   uses that it is a mixture of: whose queries or keys it is
    history   uses that it comes from, without those of branches that were added to it; before 0, what a scan begins with
    ends      of these the last ones: what they make is this, times constants
    derived   of weights alone, by what is not understood: a weight itself, which is no activation
    """

    data: Any
    weight: _Weight | None = None
    uses: tuple[int, ...] = ()
    factor: float = 1.0
    sources: frozenset[int] = frozenset()
    history: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    derived: bool = False

    @property
    def constant(self) -> bool:
        return self.weight is None and not isinstance(self.data, jax.core.Tracer)

    @property
    def number(self) -> float | None:
        """Of a constant that is one number, everywhere the same."""
        if not self.constant or not jnp.issubdtype(jnp.result_type(self.data), jnp.number):
            return None
        values = np.asarray(self.data).ravel()
        return float(values[0]) if values.size and (values == values[0]).all() else None


@dataclass
class _Act:
    use: Use
    signal: Signal | None
    factors: list[float] = field(default_factory=list)
    operands: frozenset[int] = frozenset()
    arriving: float = 1.0  # of a gain, pending constants on what arrived
    elsewhere: bool = False  # whether what it makes is met by more than constants and a sum
    as_gain: tuple[Use, Signal] | None = None  # what it was before its units were summed


class _Walk:
    """Evaluates a program, equation by equation; ``acts`` are what weights did in it."""

    def __init__(self, factors: Mapping[str, float] | None, signals: bool, prefix: str = ""):
        self.factors, self.signals, self.prefix, self.places, self.acts = factors, signals, prefix, 0, []

    def run(self, jaxpr, consts, values: Sequence[_Value]) -> list[_Value]:
        env = dict(zip(jaxpr.constvars, map(_Value, consts), strict=True)) | dict(zip(jaxpr.invars, values, strict=True))

        def read(var):
            return _Value(var.val) if isinstance(var, Literal) else env[var]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self.step(eqn, [read(var) for var in eqn.invars]), strict=True))
        return [read(var) for var in jaxpr.outvars]

    def step(self, eqn, ins: list[_Value]) -> list[_Value]:
        name, weights = eqn.primitive.name, [i for i, value in enumerate(ins) if value.weight]
        if not self.passes_on(eqn, ins):
            self.met(ins)
        if name == "scan":
            return self.scan(eqn, ins)
        if name == "cond":
            return self.cond(eqn, ins)
        inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
        read_there = [var.aval.shape for var in getattr(inner, "jaxpr", inner).invars] if inner else []
        if read_there != [var.aval.shape for var in eqn.invars]:  # of two entries at a time, as a reduction's, or of parts
            inner = None
        # where derivatives are taken of what is followed, those that are custom stay, unless a weight is inside
        kept = name.startswith("custom_") and self.factors is not None and not weights
        if inner is not None and not kept:
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), ins)
        return self.on_weights(eqn, ins, weights) if weights else self.on_activations(eqn, ins)

    def passes_on(self, eqn, ins) -> bool:
        """Whether the result is still one operand's, moved, times a constant or summed; or a program inside is run as this."""
        name = eqn.primitive.name
        inside = name not in ("scan", "cond") and any(key in eqn.params for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"))
        summed = name == "reduce_sum" and self.of_units(eqn, ins[0]) is not None
        return inside or summed or name in MOVES or _constant_factor(name, ins)[1] is not None

    def met(self, ins) -> None:
        """A gain whose output goes elsewhere too is one, though its units are summed, as by the mean of a normalisation."""
        for act in (self.acts[index] for value in ins for index in value.ends):
            act.elsewhere = True
            if act.as_gain:
                (act.use, act.signal), act.as_gain = act.as_gain, None
                act.factors.clear()

    def on_activations(self, eqn, ins):
        name, results = eqn.primitive.name, _bind(eqn, [value.data for value in ins])
        if all(value.constant for value in ins):
            return [_Value(result) for result in results]
        place, number = _constant_factor(name, ins)
        if number is not None:
            value = ins[place]
            for index in value.uses:
                self.acts[index].factors.append(number)
            return [value._replace(data=results[0], factor=value.factor * (1 if value.uses else number))]
        derived = any(value.derived for value in ins)
        if name == "dot_general" and not derived and not any(value.constant for value in ins):
            return [self.scores(eqn, ins, results[0])]
        if name == "reduce_sum" and (gain := self.of_units(eqn, ins[0])) is not None:
            return [self.summed(eqn, ins[0], results[0], gain)]
        if name in MOVES:
            return [ins[0]._replace(data=results[0])]
        sources = frozenset().union(*(value.sources for value in ins)) if name in MIXES else frozenset()
        factor = ins[0].factor if name in PARTS else 1.0
        history, ends = self.added(*ins) if name in ("add", "add_any") else (_histories(ins), frozenset())
        derived = derived and all(value.derived or value.constant for value in ins)
        return [_Value(result, None, (), factor, sources, history, ends, derived) for result in results]

    def of_units(self, eqn, value) -> int | None:
        """The gain, if any, whose units are summed."""
        gains = [i for i in value.ends & value.history if self.acts[i].use.operation == GAIN and not self.acts[i].elsewhere]
        last = eqn.params["axes"] == (value.data.ndim - 1,)
        return gains[0] if gains and last and self.acts[gains[0]].use.fan_out == value.data.shape[-1] > 1 else None

    def summed(self, eqn, value, result, gain):
        """That is a product with one output."""
        act = self.acts[gain]
        act.as_gain = act.use, act.signal
        act.use = replace(act.use, operation=PRODUCT, fan_in=act.use.fan_out, fan_out=1,
                          multiplier=act.use.multiplier * value.factor)  # fmt: skip
        if act.signal.own is not None:
            own = _bind(eqn, [act.signal.own])[0] * (value.factor / act.arriving)
            act.signal = Signal(result, own, act.signal.arriving)
        return _Value(result, uses=(gain,), sources=frozenset([gain]), history=value.history)

    def added(self, a, b):
        """(history, ends) of a + b: where one is a branch of the other, of that stream, and what the branch ends with."""
        for stream, branch in ((a, b), (b, a)):
            inside = {index for index in branch.history - stream.history if index >= 0}  # before 0 nobody acts
            if stream.history and stream.history < branch.history and inside:
                site = self.site()
                for index in inside:
                    act = self.acts[index]
                    act.use = replace(act.use, branch=site, last=index in branch.ends)
                return stream.history, branch.ends
        return a.history | b.history, frozenset()

    def scores(self, eqn, ins, result):
        (axes, _), _ = eqn.params["dimension_numbers"]
        known = ins[0].sources and ins[1].sources
        operands = (ins[0].sources | ins[1].sources) - {OUTSIDE} if known else frozenset()
        made_by = [self.acts[index].use for index in sorted(operands)]
        path = " · ".join(dict.fromkeys(use.path for use in made_by if use.operation != BIAS)) or SCORES
        path = path if known else ACTIVATIONS
        use = Use(path, SCORES, fan_in=_prod(ins[0], axes), multiplier=ins[0].factor * ins[1].factor)
        return self.record(use, Signal(result, ins[1].data, ins[0].data), result, _histories(ins), operands)

    def on_weights(self, eqn, ins, weights):
        name, place = eqn.primitive.name, weights[0]
        value, others = ins[place], [other for i, other in enumerate(ins) if i != place]
        factor, number = _constant_factor(name, ins)
        if number is not None and factor == place:
            return [self.moved(eqn, ins, place, number)[0]]
        still = all(other.constant for other in others) or name in PARTS
        if len(weights) == 1 and (name in MOVES or (still and name in PARTS | STILL)):
            return self.moved(eqn, ins, place, 1.0)
        alone = len(weights) == 1 and not any(other.derived for other in others)
        kind = _kind(eqn, place, value) if alone else None
        if kind is None:
            first = len(self.acts)
            for index in weights:
                self.add(ins[index], name)
            history = _histories(ins) | frozenset(range(first, len(self.acts)))
            derived = all(value.weight or value.derived or value.constant for value in ins)
            return [_Value(result, history=history, derived=derived) for result in _bind(eqn, [other.data for other in ins])]
        operation, fans = kind
        site = self.site()
        data = self.multiplied(value.data, site)
        arriving = others[0]
        result = _bind(eqn, [data if i == place else other.data for i, other in enumerate(ins)])[0]
        own = None
        if value.weight.initial is not None:
            own = self.multiplied(value.data - value.weight.initial, site)
            if operation != BIAS and name != "concatenate":
                own = _bind(eqn, [own if i == place else v.data for i, v in enumerate(ins)])[0]
        use = Use(value.weight.path, operation, **fans, multiplier=value.weight.factor, site=site)
        if operation in (PRODUCT, CONVOLUTION):
            use = replace(use, multiplier=use.multiplier * self.pending(arriving))
            return [self.record(use, Signal(result, own, arriving.data), result, arriving.history)]
        if name == "concatenate":
            made = self.record(use, Signal(data, own, jnp.ones(())), result, _histories(others))
            return [made._replace(sources=made.sources.union(*(other.sources for other in others)))]
        if operation == EMBEDDING:
            return [self.record(use, Signal(result, own, jnp.ones(())), result, arriving.history)]
        if operation == GAIN:
            made = self.record(use, Signal(result, own, arriving.data), result, arriving.history)
            self.acts[-1].arriving = arriving.factor
            return [made._replace(uses=(), factor=arriving.factor, sources=arriving.sources)]
        branch = next((act.branch for act in (self.acts[end].use for end in arriving.ends) if act.branch), "")
        use = replace(use, branch=branch, last=bool(branch))  # h + f(h) + bias
        made = self.record(use, Signal(data, own, jnp.ones(())), result, arriving.history)
        history = arriving.history if branch else made.history
        arriving = arriving._replace(data=result, history=history, ends=arriving.ends | made.ends)
        if not arriving.uses:
            return [arriving]
        return [arriving._replace(uses=(*arriving.uses, *made.uses), sources=arriving.sources | made.sources)]

    def pending(self, arriving: _Value) -> float:
        """Constants on what arrives that are nobody's: a mixture of values that a weight meets directly are no scores."""
        if not arriving.uses:
            return arriving.factor
        last = self.acts[arriving.uses[0]]
        if last.use.operation != SCORES:
            return 1.0
        number = prod(last.factors)
        last.factors.clear()
        return number

    def moved(self, eqn, ins, place, number):
        """The weight after what moves it; of W_0 the same."""
        value = ins[place]
        results, starts = (
            [None] * len(eqn.outvars) if data is None else
            _bind(eqn, [data if i == place else other.data for i, other in enumerate(ins)])
            for data in (value.data, value.weight.initial)
        )  # fmt: skip
        tag = value.weight
        return [_Value(a, tag._replace(initial=b, factor=tag.factor * number)) for a, b in zip(results, starts, strict=True)]

    def record(self, use: Use, signal: Signal, result, history, operands=frozenset()) -> _Value:
        if not use.site:
            use = replace(use, site=self.site())
            if use.operation == SCORES:
                result = self.multiplied(result, use.site)
                signal = signal._replace(output=result)
        self.acts.append(_Act(use, signal, operands=operands))
        index = len(self.acts) - 1
        alone = frozenset([index])
        sources = alone if use.operation != SCORES else frozenset()
        return _Value(result, uses=(index,), sources=sources, history=history | alone, ends=alone)

    def add(self, value: _Value, operation: str) -> None:
        """A weight that does nothing known."""
        nothing, use = jnp.zeros(()), Use(value.weight.path, operation, fan_out=value.weight.size, site=self.site())
        self.acts.append(_Act(use, Signal(nothing, nothing, nothing)))

    def site(self) -> str:
        self.places += 1
        return f"{self.prefix}{self.places - 1}"

    def multiplied(self, data, site):
        factor = (self.factors or {}).get(site)  # 1 too: the same program at every width
        return data if factor is None else data * jnp.asarray(factor, data.dtype)

    def finished(self, signals: bool = True) -> tuple[list[Use], list[Signal | None]]:
        """The uses with all their constants, and what they made; without it nothing more is computed."""
        for scores in self.acts:
            if scores.use.operation == SCORES:
                none, d = not scores.factors and scores.use.multiplier == 1.0, scores.use.fan_in
                for act in (self.acts[index] for index in scores.operands if self.acts[index].factors):
                    if not none and (act.use.fan_in == d or not np.isclose(d * act.factors[-1] ** 2, 1)):
                        continue
                    number = act.factors.pop()
                    times = 1.0 if act.use.operation == BIAS else number
                    scores.use = replace(scores.use, multiplier=scores.use.multiplier * times)
        uses = [replace(act.use, multiplier=act.use.multiplier * prod(act.factors)) for act in self.acts]
        if not signals:
            return uses, [None] * len(uses)
        signals = [
            act.signal._replace(output=act.signal.output * prod(act.factors), own=act.signal.own * prod(act.factors))
            for act in self.acts
        ]
        return uses, signals

    def scan(self, eqn, ins):
        """As a scan, whose steps' signals are stacked: the walk is compiled once, however deep."""
        p, inner = eqn.params, eqn.params["jaxpr"].jaxpr
        last = _of_whole(eqn.invars, inner.invars)
        first = last - _of_whole(eqn.outvars, inner.outvars)
        consts, carry, sliced = ins[:first], ins[first:last], ins[last:]
        for value in carry:
            if value.weight:
                self.add(value, "scan's carry")
        prefix, inside, histories = f"{self.site()}.", [], []
        rows = [(value.data, value.weight.initial if value.weight else None) for value in sliced]

        def body(carried, row):
            walk = _Walk(self.factors, self.signals, prefix)
            tagged = [_within(value, data, start, data.size) for value, (data, start) in zip(sliced, row, strict=True)]
            held = [_within(value, value.data, value.weight and value.weight.initial) for value in consts]
            outs = walk.run(inner, p["jaxpr"].consts, _begun([*held, *map(_Value, carried), *tagged]))
            uses, signals = walk.finished(self.signals)
            inside[:], histories[:] = uses, [value.history for value in outs]
            data = [value.data for value in outs]
            return data[: len(carry)], (data[len(carry) :], signals)

        carried, (stacked, signals) = jax.lax.scan(
            body, [jnp.asarray(value.data) for value in carry], rows, p["length"], p["reverse"], p["unroll"])  # fmt: skip
        outer = [self.outer(history, ins) for history in histories]
        for use, signal in zip(inside, signals, strict=True):
            use = replace(use, copies=use.copies * p["length"], repeats=use.repeats * p["length"])
            self.acts.append(_Act(use, signal))
        return [_Value(data, history=history) for data, history in zip((*carried, *stacked), outer, strict=True)]

    def outer(self, history, begun):
        """A history inside, of what is found next, as one here; ``begun``: with which values."""
        passed = (begun[-1 - index].history if index < 0 else frozenset([len(self.acts) + index]) for index in history)
        return frozenset().union(*passed)

    def cond(self, eqn, ins):
        """As a switch: every branch makes zeros in place of what the others make."""
        branches, (index, *operands) = eqn.params["branches"], ins
        site, inside, histories = self.site(), {}, {}

        def branch(which):
            def taken(data):
                walk = _Walk(self.factors, self.signals, f"{site}.{which}.")
                tagged = [_within(value, *given) for value, given in zip(operands, data, strict=True)]
                outs = walk.run(branches[which].jaxpr, branches[which].consts, _begun(tagged))
                inside[which], signals = walk.finished(self.signals)
                histories[which] = [value.history for value in outs]
                return [value.data for value in outs], signals

            return taken

        data = [(value.data, value.weight.initial if value.weight else None) for value in operands]
        made = [jax.eval_shape(branch(i), data)[1] for i in range(len(branches))]
        nothing = jax.tree.map(lambda signal: jnp.zeros(signal.shape, signal.dtype), made)

        def padded(which):
            def with_zeros(data):
                outs, signals = branch(which)(data)
                return outs, [signals if i == which else nothing[i] for i in range(len(branches))]

            return with_zeros

        outs, signals = jax.lax.switch(index.data, [padded(i) for i in range(len(branches))], data)
        outer = [frozenset()] * len(outs)
        for which, made in enumerate(signals):
            outer = [before | self.outer(history, operands) for before, history in zip(outer, histories[which], strict=True)]
            self.acts += [_Act(use, signal) for use, signal in zip(inside[which], made, strict=True)]
        return [_Value(result, history=history) for result, history in zip(outs, outer, strict=True)]


def _histories(values) -> frozenset[int]:
    return frozenset().union(*(value.history for value in values))


def _of_whole(outside, inside):
    """How many variables of a scan are the same inside; what comes after them is sliced, or stacked: it has an axis less."""
    return sum(outer.aval.ndim == inner.aval.ndim for outer, inner in zip(outside, inside, strict=True))


def _within(value, data, initial, size=None) -> _Value:
    """As a program inside sees it, which numbers its uses anew; of a weight its W_0, and entries if these are others."""
    weight = value.weight and value.weight._replace(initial=initial, size=size or value.weight.size)
    sources = frozenset([OUTSIDE] if value.sources else [])
    return value._replace(data=data, weight=weight, uses=(), sources=sources, ends=frozenset())


def _begun(values) -> list[_Value]:
    """As a program inside sees them: each of a history of its own, -1 of the first."""
    return [value._replace(history=frozenset([-1 - place])) for place, value in enumerate(values)]


def _bind(eqn, data) -> list:
    """The equation's results; of constants constants, while tracing too."""
    bind_params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bind_params if isinstance(bind_params, tuple) else ((), bind_params)  # JAX before and after 0.10
    if any(isinstance(value, jax.core.Tracer) for value in data):
        results = eqn.primitive.bind(*functions, *data, **params)
    else:
        with jax.ensure_compile_time_eval():
            results = eqn.primitive.bind(*functions, *data, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _constant_factor(name, ins) -> tuple[int, float | None]:
    """(which operand is multiplied, by what): None where it is no multiplication by one number."""
    if name == "mul":
        for place, other in ((0, 1), (1, 0)):
            if not ins[place].constant and (number := ins[other].number) is not None:
                return place, number
    if name == "div" and not ins[0].constant and ins[1].number:
        return 0, 1.0 / ins[1].number
    return 0, None


def _kind(eqn, place, value) -> tuple[str, dict[str, int]] | None:
    """(operation, its fans) of a weight as the operand ``place``; None: not understood."""
    name, shape = eqn.primitive.name, value.data.shape
    if name == "dot_general":
        contracted, batched = (axes[place] for axes in eqn.params["dimension_numbers"])
        fan_in, copies = (prod(shape[axis] for axis in axes) for axes in (contracted, batched))
        return PRODUCT, {"fan_in": fan_in, "fan_out": prod(shape) // (fan_in * copies), "copies": copies}
    if name == "conv_general_dilated" and place == 1:
        fan_out = shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        return CONVOLUTION, {"fan_in": prod(shape) // fan_out, "fan_out": fan_out}
    if name == "gather" and place == 0:
        return EMBEDDING, {"fan_out": prod(eqn.params["slice_sizes"])}
    if name == "concatenate":
        return EMBEDDING, {"fan_out": value.weight.size}
    if name in ("add", "sub", "add_any"):
        return BIAS, {"fan_out": value.weight.size}
    return (GAIN, {"fan_out": value.weight.size}) if name == "mul" else None


def _prod(value, axes):
    return prod(value.data.shape[axis] for axis in axes)
