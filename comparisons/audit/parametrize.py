"""A user's network in a parametrization: what their weights start as, are multiplied with and learn at, derived on their graph.

    mine = comparisons.parametrize(model, "mup", optimizer=optax.adam(1e-3), base=64)
    params, apply = mine.model.build(1024, key);   tx = mine.optimizer(1024);   print(mine)

At the base width nothing changes; at another, powers of N/base multiply each weight's initial values, its updates, and where a
weight acts twice (a tied embedding), or queries meet keys, what comes out.  Multipliers that are in the network stay.  Adam's
gradients are held at the size that they have at the base width, for its ε; decay, decoupled, at the same rate for all.

Depth-μP and α = 1 are about residual branches, L of them in the graph: there powers of L/depth too.  A network that is right
with ``depth`` branches, two a block of a transformer, is so with L; factors of the depth of its own it has none.

Of which optimiser a weight's exponents are is asked of the optimiser: linear in the gradient (SGD), forgetting the scale of
every entry (Adam, sign, Lion), in units of the weights (LAMB, Adafactor).  One that takes a gradient as a matrix is named:
``rule="muon_keller"`` is the row of ``limits.exponents`` for its matrices, as of ``optax.contrib.muon(1e-3)``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comparisons.audit.measure import answers_of
from comparisons.audit.verdict import ENTRYWISE, LINEAR, WHOLE, kind_of, not_understood, power, quarter, score_exponent
from comparisons.statistics.power_law import exponent_of
from finite.networks.from_file import transformation
from finite.networks.own import Model, paths, require_model
from finite.networks.roles import SCORES, UNUSED, Role, branches, follow, roles_of, uses_of
from limits.exponents import algebra, regimes
from limits.exponents.algebra import ONE, OPTIMIZERS, Exponents, Power
from limits.exponents.parametrization import read_scaling

RELATIVE = "lamb"  # whose exponents those are of steps in units of the weights
IN_A_BRANCH = {  # a weight's role in a plain network → inside a branch, and as the branch's last weight
    "hidden": ("block_inner", "block"), "bias": ("norm_gain", "bias"), "norm_gain": ("norm_gain", "bias")}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What a leaf is multiplied by, powers of N/base and L/depth.

    role      whose exponents they are in the table, and under which optimiser's rule
    initial   its initial values
    rate      its learning rate
    gradient  its gradient, where the optimiser sees it: 1 over this
    size      its entries, where the optimiser's steps are in units of them; None elsewhere
    """

    role: str
    initial: Power
    rate: Power
    gradient: Power = ONE
    size: Power | None = None

    @property
    def unit(self) -> Power:
        """The weights over this are what the optimiser sees: decay is then as large as at the base width."""
        return self.rate if self.size is None else self.size

    @property
    def update(self) -> Power:
        return self.rate if self.size is None else self.rate * self.size


@dataclass(frozen=True)
class Parametrized:
    """The network and its optimiser, as functions of the width.

    model        builds scaled weights and an ``apply`` with multipliers
    optimizer    width → optax transformation, keyed by path
    changes      by path
    multipliers  by site: the power, and what it is of
    """

    model: Model
    optimizer: Callable[[int], Any]
    changes: Mapping[str, Change]
    multipliers: Mapping[str, tuple[Power, str]]

    def __str__(self) -> str:
        size = max(map(len, self.changes))
        lines = [f"{path:<{size}}  {c.role}: initial values × {_words(c.initial)}, learning rate × {_words(c.rate)}"
                 for path, c in self.changes.items()]  # fmt: skip
        return "\n".join([*lines, *(f"{name}: × {_words(by)}" for by, name in self.multipliers.values())])


def parametrize(
    model: Model, param: str = "mup", *, optimizer: Any, base: int = 64, depth: int = 1, rule: str | None = None
) -> Parametrized:
    """``optimizer`` is the optax transformation that is right at the base width, and with ``depth`` residual branches; of a
    function of the width (or of width and params) the one that it makes there.

    rule   of ``limits.exponents``, for leaves whose gradient the optimiser takes as a matrix

    Raises ValueError, in one line, as an audit does, for such an optimiser without a rule, for a weight that no table has, and
    for a parametrization of residual branches where there are none.
    """
    require_model(model)
    if base < 1 or depth < 1:
        raise ValueError(f"base {base}, depth {depth}: wanted at least 1")
    widths = (base, 2 * base, 4 * base)
    drawn = [[model.at(width, jax.random.key(seed)) for seed in range(2)] for width in widths]
    optimizer = transformation(optimizer, base, drawn[0][0][0])
    rules = {path: _rule_of(path, answer, rule) for path, answer in answers_of(model, optimizer, base).items()}
    stds = _exponents_of_stds(widths, [[params for params, _ in networks] for networks in drawn])
    roles = roles_of([uses_of(apply, params, model.batch[0]) for (params, apply), _ in (drawn[0], drawn[-1])], widths[::2])
    table = _Table(param, model.loss_name, branches([role.use for role in roles]))
    changes: dict[str, Change] = {}
    multipliers: dict[str, tuple[Power, str]] = {}
    starts: dict[str, Power] = {}
    for role in roles:
        path, m = role.use.path, Power(N=quarter(role.multiplier))
        if role.use.operation == UNUSED:
            changes[path] = Change("never read", ONE, ONE)
            continue
        if remark := not_understood(role):
            raise ValueError(f"nothing is derived for {remark}")
        if role.use.operation == SCORES:
            by = Power(N=quarter(score_exponent(role, table.plain, table.loss))) / m
            _multiplied(multipliers, role.use.site, f"scores of {path}", by)
            continue
        named, wanted, gradient = table.shifted(role, rules[path], m)
        zero = role.name == "constant" or not np.isfinite(stds[path])  # what starts as zeros stays so
        if path in changes:  # acts once more: only what comes out is its own
            if role.name != "constant":
                _multiplied(multipliers, role.use.site, f"{path}, as {role.name}", wanted.init_std / starts[path])
            continue
        measured = wanted.init_std if zero else Power(N=quarter(stds[path]))
        forgets, relative = OPTIMIZERS[rules[path]].forgets_scale(), OPTIMIZERS[rules[path]].relative
        changes[path] = Change(f"{named}, {rules[path]}", wanted.init_std / measured, wanted.learning_rate,
                               gradient if forgets else ONE, wanted.init_std if relative else None)  # fmt: skip
        starts[path] = wanted.init_std

    def ratios(width):
        return width / base, table.branches / depth

    scaled = _scaled(model, ratios, changes, multipliers), _optimizer(optimizer, ratios, changes)
    return Parametrized(*scaled, changes, multipliers)


def _rule_of(path: str, answer: Mapping[str, float], rule: str | None) -> str:
    """Whose exponents a leaf takes; of one that never moves, whichever."""
    kind = kind_of(answer["entrywise"], answer["growth"])
    if answer["relative"] > 0.5:
        return RELATIVE
    if kind == WHOLE and answer["update_of_large"] != 0:
        if rule is None:
            fault = "its optimiser is neither linear in the gradient nor forgets the scale of every entry"
            raise ValueError(f'{path}: {fault}: name its row of limits.exponents, rule="muon_keller", say')
        return rule
    return LINEAR if kind == LINEAR else ENTRYWISE


def _exponents_of_stds(widths, networks) -> dict[str, float]:
    """By path, of trees of every width; not a number where values are zeros."""
    sizes = [np.array([[jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in jax.tree.leaves(params)] for params in drawn])
             for drawn in networks]  # fmt: skip
    of_leaf = zip(*(rows.T for rows in sizes), strict=True)
    return {path: exponent_of(widths, values)[0] for path, values in zip(paths(networks[0][0]), of_leaf, strict=True)}


class _Table:
    """The exponents of every role on a graph of so many residual branches.

    plain   the parametrization of what is no branch: of one that is about branches, μP
    """

    def __init__(self, param: str, loss: str, branches: int):
        self.param, self.plain, self.loss, self.branches = param, param, loss, branches
        try:
            read_scaling(param, None, "plain", loss=loss)
        except ValueError:
            read_scaling(param, None, "residual", loss=loss)  # or that is the mistake
            self.plain = "mup"
            if not branches:
                raise ValueError(f"{param} is about residual branches, h + f(h): apply has none") from None

    def shifted(self, role: Role, rule: str, multiplier: Power) -> tuple[str, Exponents, Power]:
        """(its role, the exponents of a stored weight that the network has this multiplier of, its gradients to an ε)."""
        of_role, wanted, epsilon = self._row(role, rule)
        if OPTIMIZERS[rule].whole and of_role.vector:
            raise ValueError(f"{role.use.path}: nothing is derived for a {role.use.operation} that moves as a matrix")
        theta = multiplier / wanted.multiplier
        return of_role.name, algebra.shifted(wanted, theta, of_role, OPTIMIZERS[rule]), epsilon * theta

    def _row(self, role, rule):
        if self.param == self.plain or not role.use.branch:
            if role.name == "constant":  # nothing of it grows
                return algebra.Role(role.name, ONE, ONE, vector=True), Exponents(), ONE
            of_stream = _rows(self.param, rule, "residual", self.loss).get(role.name) if self.param != self.plain else None
            if of_stream and of_stream[0].copies == ONE:
                return of_stream
            rows, name = _rows(self.plain, rule, "plain", self.loss), role.name
        else:
            rows, name = _rows(self.param, rule, "residual", self.loss), IN_A_BRANCH.get(role.name, ("", ""))[role.use.last]
        if name not in rows:
            where = "inside a residual branch" if role.use.branch else "in a network"
            raise ValueError(f"{role.use.path}: {self.param} says nothing about a weight that is {role.name} {where}")
        return rows[name]


@cache
def _rows(param: str, rule: str, kind: str, loss: str) -> Mapping[str, tuple[algebra.Role, Exponents, Power]]:
    """By role: it, its exponents, and the size that its ε is compared with."""
    scaling = read_scaling(param, rule, kind, loss=loss)
    case = regimes.case(scaling, loss=loss, block_size=2)
    sizes = {layer.split()[0]: size for layer, size in regimes.predicted(case)["epsilon"].items()}
    return {name: (case.roles[name], e, sizes[name]) for name, e in case.exponents.items()}


def _multiplied(multipliers, site, name, by) -> None:
    if by != ONE:
        multipliers[site] = by, name


def _words(by: Power) -> str:
    """"N^-1 L^-1/2"."""
    return power(float(by.N)) + (f" L^{by.L}" if by.L else "")


def _scaled(model: Model, ratios: Callable, changes: Mapping[str, Change], multipliers) -> Model:
    def build(width, key):
        params, apply = model.at(width, key)
        by = ratios(width)
        scaled = _times(params, lambda path: changes[path].initial(*by))
        factors = {site: factor(*by) for site, (factor, _) in multipliers.items()}
        # jitted, so that inputs and weights are no constants to what follows them, wherever it is called
        through = jax.jit(lambda params, inputs: follow(apply, params, inputs, factors=factors)[0]) if factors else apply
        return scaled, through

    return replace(model, build=build)


def _optimizer(optimizer: Any, ratios: Callable, changes: Mapping[str, Change]) -> Callable[[int], Any]:
    """width → the transformation between powers of gradients and of updates; decay sees weights that undo the latter's."""

    def at(width):
        import optax

        by = ratios(width)

        def update(gradient, state, params=None):
            seen = None if params is None else _times(params, lambda path: 1 / changes[path].unit(*by))
            updates, state = optimizer.update(_times(gradient, lambda path: 1 / changes[path].gradient(*by)), state, seen)
            return _times(updates, lambda path: changes[path].update(*by)), state

        return optax.GradientTransformation(optimizer.init, update)

    return at


def _times(tree: Any, factor: Callable[[str], float]) -> Any:
    """Every leaf times what is of its path."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([leaf * jnp.asarray(factor(path), leaf.dtype)
                                for leaf, path in zip(leaves, paths(tree), strict=True)])  # fmt: skip
