"""A user's network in a parametrization: what their weights start as, are multiplied with and learn at, derived on their graph.

    mine = comparisons.parametrize(model, "mup", optimizer=optax.adam(1e-3), base=64)
    params, apply = mine.model.build(1024, key);   tx = mine.optimizer(1024);   print(mine)

At the base width nothing changes; at another, powers of N/base multiply each weight's initial values, its updates, and where a
weight acts twice (a tied embedding), or queries meet keys, what comes out.  Multipliers that are in the network stay.  Adam's
gradients are held at the size that they have at the base width, for its ε; decay, decoupled, at the same rate for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comparisons.audit.measure import measure
from comparisons.audit.verdict import ENTRYWISE, LINEAR, WHOLE, Findings, power, requirements, score_exponent
from finite.networks.own import Model, paths
from finite.networks.roles import SCORES, follow
from limits.exponents.algebra import Power


@dataclass(frozen=True)
class Change:
    """Powers of N/base that a leaf takes: its initial values, its updates; and of its gradient, for the optimiser's sake."""

    initial: float
    update: float
    gradient: float


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
    multipliers: Mapping[str, tuple[float, str]]

    def __str__(self) -> str:
        size = max(map(len, self.changes))
        lines = [f"{path:<{size}}  initial values × {power(c.initial)}, learning rate × {power(c.update)}"
                 for path, c in self.changes.items()]  # fmt: skip
        return "\n".join([*lines, *(f"{name}: × {power(by)}" for by, name in self.multipliers.values())])


def parametrize(model: Model, param: str = "mup", *, optimizer: Any, base: int = 64) -> Parametrized:
    """``optimizer`` is the optax transformation that is right at the base width.

    Raises ValueError, in one line, as an audit does, for an optimiser that is neither linear in the gradient nor forgets the
    scale of every entry, and for a weight that no table has.
    """
    widths = (base, 2 * base, 4 * base)
    findings = Findings(measure(model, optimizer, widths, seeds=2, steps=1), param, model.loss_name)
    if findings.remarks:
        raise ValueError(f"nothing is derived for {findings.remarks[0]}")
    changes: dict[str, Change] = {}
    multipliers: dict[str, tuple[float, str]] = {}
    for role in findings.measured.roles:
        path, site = role.use.path, role.use.site
        if role.use.operation == SCORES:
            _multiplied(multipliers, site, f"scores of {path}", score_exponent(role, param, findings.loss) - role.multiplier)
            continue
        kind = findings.kind(path)
        if kind == WHOLE:
            raise ValueError(f"{path}: its optimiser is neither linear in the gradient nor forgets the scale of every entry")
        wanted, linear = requirements(param, kind, findings.loss)[0][role.name], 2 if kind == LINEAR else 1
        std, drawn = findings.fitted("std", path)[0], np.isfinite(wanted.std)
        std = std if np.isfinite(std) else wanted.std - role.multiplier  # zeros stay zeros
        if path in changes:  # acts once more: only what comes out is its own
            stored = std + changes[path].initial if drawn else 0.0
            _multiplied(multipliers, site, f"{path}, as {role.name}", wanted.std - stored - role.multiplier if drawn else 0.0)
            continue
        initial = wanted.std - role.multiplier - std if drawn else 0.0
        gradient = wanted.gradient + role.multiplier if kind == ENTRYWISE else 0.0
        changes[path] = Change(_quarter(initial), wanted.rate - linear * role.multiplier, gradient)
    return Parametrized(_scaled(model, base, changes, multipliers), _optimizer(optimizer, base, changes), changes, multipliers)


def _multiplied(multipliers, site, name, by) -> None:
    if abs(by := _quarter(by)) > 0:
        multipliers[site] = by, name


def _quarter(exponent: float) -> float:
    """The next multiple of 1/4: what is measured of initial values scatters."""
    return round(4 * exponent) / 4


def _scaled(model: Model, base: int, changes: Mapping[str, Change], multipliers) -> Model:
    def build(width, key):
        params, apply = model.at(width, key)
        leaves, tree = jax.tree.flatten(params)
        ratio = width / base
        scaled = [leaf * jnp.asarray(Power(N=changes[path].initial)(ratio), leaf.dtype)
                  for leaf, path in zip(leaves, paths(params), strict=True)]  # fmt: skip
        factors = {site: Power(N=by)(ratio) for site, (by, _) in multipliers.items()}
        through = (lambda params, inputs: follow(apply, params, inputs, factors=factors)[0]) if factors else apply
        return tree.unflatten(scaled), through

    return replace(model, build=build)


def _optimizer(optimizer: Any, base: int, changes: Mapping[str, Change]) -> Callable[[int], Any]:
    """width → the transformation between powers of gradients and of updates; decay sees weights that undo the latter's."""

    def at(width):
        import optax

        def times(tree, exponent):
            factors = [Power(N=exponent(changes[path]))(width / base) for path in paths(tree)]
            return jax.tree.map(lambda leaf, factor: leaf * jnp.asarray(factor, leaf.dtype), tree,
                                jax.tree.structure(tree).unflatten(factors))  # fmt: skip

        def update(gradient, state, params=None):
            seen = None if params is None else times(params, lambda c: -c.update)
            updates, state = optimizer.update(times(gradient, lambda c: -c.gradient), state, seen)
            return times(updates, lambda c: c.update), state

        return optax.GradientTransformation(optimizer.init, update)

    return at
