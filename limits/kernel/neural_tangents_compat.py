"""Import neural-tangents 0.6.5 (December 2023) on a present-day JAX, without TensorFlow.

    nt = load()          # the module neural_tangents; stax is nt.stax

Why it is needed.  The last release of neural-tangents
  1. takes names that JAX has since moved or dropped (``jax.core.Jaxpr``, ``jax.util.safe_map``, …);
  2. imports TensorFlow (2+ GB) for one optional function, ``neural_tangents.experimental.empirical_ntk_fn_tf``;
  3. calls private parts of JAX's reverse mode in its "structured derivatives" empirical NTK
     (implementation 3, and 0 = AUTO, which tries all three);
  4. in ``predict``, passes SciPy an argument that it dropped, and decomposes in an evaluation context that no longer
     takes traced kernels.

What is done about it.
  * 1 and 2: the old names exist only *while* neural_tangents is being imported; afterwards ``jax`` is as it was.
  * 3: five private helpers of ``neural_tangents._src.empirical`` are replaced by short ones that use public JAX
    (``jax.linearize``, ``jax.make_jaxpr``, ``jax.linear_transpose``).
  * 4: two small replacements.

The code of neural_tangents is neither copied nor changed on disk.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import itertools
import math
import sys
import types

import jax
import jax.core
import jax.extend.core as jex_core
import jax.numpy as jnp
import scipy.linalg
from jax.interpreters import ad

VERSION = "0.6.5"
INSTALL = f"pip install --no-deps neural-tangents=={VERSION} frozendict"


def load() -> types.ModuleType:
    """The module ``neural_tangents``, imported and mended on the first call.

    Raises ImportError, in one line, where it is absent, of another version, or lacks what it imports.
    """
    require()
    if "neural_tangents" in sys.modules:
        return sys.modules["neural_tangents"]
    _module_for_import("neural_tangents.experimental", empirical_ntk_fn_tf=_no_tensorflow,
                       get_apply_fn_and_params=_no_tensorflow)  # fmt: skip
    try:
        with _old_names():
            nt = importlib.import_module("neural_tangents")
            empirical = importlib.import_module("neural_tangents._src.empirical")
            predict = importlib.import_module("neural_tangents._src.predict")
        _mend_empirical(empirical)
        _mend_predict(predict, nt.predict)
    except Exception as broken:  # whatever another package raises
        _forget()
        why = str(broken).partition("\n")[0] or type(broken).__name__
        raise ImportError(f"the kernel limit needs neural-tangents, which cannot be imported ({why}): {INSTALL}") from None
    except BaseException:
        _forget()
        raise
    return nt


def _forget():
    """What of it has been imported."""
    for name in [m for m in sys.modules if m.split(".")[0] == "neural_tangents"]:
        del sys.modules[name]


def require() -> None:
    """Raises ImportError, in one line with the command that mends it, where neural-tangents is absent or of another version."""
    try:
        version = importlib.metadata.version("neural-tangents")
        importlib.metadata.version("frozendict")
    except importlib.metadata.PackageNotFoundError as absent:
        raise ImportError(f"the kernel limit needs {absent.name}, which is not installed: {INSTALL}") from None
    if version != VERSION:
        raise ImportError(f"the kernel limit needs neural-tangents {VERSION}, found {version}: {INSTALL}")


# 1 and 2: the import ------------------------------------------------------------------------------------------------


def _safe_map(f, *args):
    return [f(*xs) for xs in zip(*args, strict=True)]


def _safe_zip(*args):
    return list(zip(*args, strict=True))


def _module(name, **names) -> types.ModuleType:
    module = types.ModuleType(name, doc=f"stand-in for {name} ({__name__})")
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    vars(module).update(names)
    return module


def _module_for_import(name, **names):
    sys.modules[name] = _module(name, **names)


def _no_tensorflow(*_, **__):
    raise NotImplementedError("neural_tangents.experimental needs TensorFlow and tf2jax and is left out here")


@contextlib.contextmanager
def _old_names():
    """Let ``jax`` have, for a moment, the names that neural_tangents imports."""
    lent = [(jax.core, n, getattr(jex_core, n)) for n in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")]
    # only ever a key of nt's table of rules: no JAX since 2023 emits it
    lent += [(ad, "zeros_like_p", jex_core.Primitive("zeros_like"))]
    # ``vars`` and not ``hasattr``: the names that JAX removed answer through its module's __getattr__
    lent = [(module, name, value) for module, name, value in lent if name not in vars(module)]
    kept = sys.modules.get("jax.util")  # absent from JAX 0.8 on, and without safe_map in 0.7
    _module_for_import("jax.util", safe_map=_safe_map, safe_zip=_safe_zip)
    for module, name, value in lent:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, _ in lent:
            delattr(module, name)
        del sys.modules["jax.util"]
        if kept is not None:
            sys.modules["jax.util"] = kept


# 3: structured derivatives, by public JAX ---------------------------------------------------------------------------


def _mend_empirical(empirical):
    for f in (_get_primals_out_and_pullback, _eqn_vjp_fn, _read_primal, _write_cotangent, _get_flops):
        if not hasattr(empirical, f.__name__):
            raise ImportError(f"{f.__name__} is not in this neural_tangents; mended is {VERSION}: {INSTALL}")
        setattr(empirical, f.__name__, f)
    # the one private part left in nt's backward pass: it only names a profiler scope
    public = {name: value for name, value in vars(ad).items() if not name.startswith("__")}
    no_scope = types.SimpleNamespace(transform_name_stack=lambda _: contextlib.nullcontext())
    empirical.ad = _module("jax.interpreters.ad", **{**public, "source_info_util": no_scope})
    # applied there to the leaves of pytrees, some of them abstract, which JAX is about to refuse
    of_leaves = {"dtype": lambda leaf: leaf.dtype, "size": lambda leaf: math.prod(leaf.shape)}
    empirical.jnp = _module("jax.numpy", **{**vars(jnp), **of_leaves})


def _is_linear(v, linear):
    return not isinstance(v, jex_core.Literal) and v in linear


def _value(v, env):
    return v.val if isinstance(v, jex_core.Literal) else env[v]


def _bind(eqn, values) -> list:
    """The outputs of one equation; ``split`` as slices, for nt wants one output each."""
    if eqn.primitive.name == "split":
        axis, sizes = eqn.params["axis"], eqn.params["sizes"]
        ends = itertools.accumulate(sizes)
        return [jax.lax.slice_in_dim(values[0], e - s, e, axis=axis) for s, e in zip(sizes, ends, strict=True)]
    out = eqn.primitive.bind(*values, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _evaluate(eqn, env):
    outputs = _bind(eqn, [_value(v, env) for v in eqn.invars])
    env.update(zip(eqn.outvars, outputs, strict=True))


def _run(closed, args):
    variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    env = dict(zip(variables, [*closed.consts, *args], strict=True))
    for eqn in closed.jaxpr.eqns:
        _evaluate(eqn, env)
    return [_value(v, env) for v in closed.jaxpr.outvars]


def _without_splits(closed, args):
    if not any(eqn.primitive.name == "split" for eqn in closed.jaxpr.eqns):
        return closed
    return jax.make_jaxpr(lambda *a: _run(closed, a))(*args)


def _linear_jaxpr(f_jvp, primals_in):
    """``(jaxpr, consts)`` of the linear ``f_jvp``, less all that its inputs do not reach.

    neural_tangents walks the equations backwards and holds every variable that is neither a constant nor a literal
    for a linear one, so what is computed from the residuals alone has to be computed first.  What it reads of a
    jaxpr are four lists, so a plain namespace serves: the Jaxpr class itself changed in JAX 0.12.
    """
    args = jax.tree_util.tree_leaves(primals_in)
    closed = _without_splits(jax.make_jaxpr(f_jvp)(*primals_in), args)
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    linear, eqns = set(jaxpr.invars), []
    for eqn in jaxpr.eqns:
        if any(_is_linear(v, linear) for v in eqn.invars):
            linear.update(eqn.outvars)
            eqns.append(eqn)
        else:
            _evaluate(eqn, env)
    lists = {"invars": list(jaxpr.invars), "outvars": list(jaxpr.outvars), "constvars": list(env), "eqns": eqns}
    return types.SimpleNamespace(**lists), list(env.values())


def _get_primals_out_and_pullback(fn, mode, _j_rules, _s_rules, _fwd, *primals_in):
    """As nt's own, but linearized through the public API."""
    from neural_tangents._src import empirical

    with jax.disable_jit():  # flattens nested jits, as nt's own version does
        primals_out, f_jvp = jax.linearize(fn, *primals_in)
        jaxpr, consts = _linear_jaxpr(f_jvp, primals_in)
    in_tree = jax.tree_util.tree_structure(primals_in)

    def pullback(*cotangents):
        out = empirical._backward_pass(
            jaxpr, mode=mode, consts=consts,
            primals_in=[ad.UndefinedPrimal(v.aval) for v in jaxpr.invars],
            cotangents_in=tuple(jax.tree_util.tree_leaves(cotangents)),
            _j_rules=_j_rules, _s_rules=_s_rules, _fwd=_fwd)  # fmt: skip
        return jax.tree_util.tree_unflatten(in_tree, out)

    return primals_out, pullback


def _eqn_vjp_fn(eqn, cts_in, *invals):
    """Transpose one equation in the inputs that are not known."""
    if eqn is None:
        return (cts_in,)
    if isinstance(cts_in, ad.Zero):
        return [ad.Zero(v.aval) for v in eqn.invars]
    unknown = [i for i, v in enumerate(invals) if ad.is_undefined_primal(v)]

    def f(*xs):
        values = list(invals)
        for i, x in zip(unknown, xs, strict=True):
            values[i] = x
        out = eqn.primitive.bind(*values, **eqn.params)
        return out[0] if eqn.primitive.multiple_results else out

    shapes = [jax.ShapeDtypeStruct(invals[i].aval.shape, invals[i].aval.dtype) for i in unknown]
    cts_out = [None] * len(invals)
    for i, ct in zip(unknown, jax.linear_transpose(f, *shapes)(cts_in), strict=True):
        cts_out[i] = ct
    return cts_out


def _read_primal(env, v):
    """As nt's own, less the dynamic shapes that JAX gave up."""
    if isinstance(v, jex_core.Literal):
        return v.val
    return env[v] if v in env else ad.UndefinedPrimal(v.aval)


def _write_cotangent(prim, ct_env, v, ct):
    """As nt's own, less a debugging check on JAX internals."""
    if ct is None or isinstance(v, jex_core.Literal) or isinstance(ct, ad.Zero):
        return
    ct_env[v] = ad.add_tangents(ct_env[v], ct) if v in ct_env else ct


def _get_flops(f, optimize, *args, **kwargs):
    """As nt's own; ``cost_analysis`` used to return a list of one."""
    lowered = jax.jit(f).lower(*args, **kwargs)
    analysis = (lowered.compile() if optimize else lowered).cost_analysis()
    return (analysis[0] if isinstance(analysis, list | tuple) else analysis)["flops"]


# 4: nt.predict ------------------------------------------------------------------------------------------------------


def _mend_predict(predict, public):
    # max_learning_rate, the only user of ``sp`` there, names an argument that SciPy renamed
    predict.sp = types.SimpleNamespace(linalg=types.SimpleNamespace(eigvalsh=_eigvalsh))
    predict.gradient_descent_mse = _for_tracers(predict.gradient_descent_mse)
    public.gradient_descent_mse = predict.gradient_descent_mse


def _eigvalsh(a, eigvals):
    return scipy.linalg.eigvalsh(a, subset_by_index=eigvals)


def _for_tracers(f):
    """``f``, also under ``vmap``, ``jit`` and ``grad`` over the train-train kernel.

    nt decomposes that kernel in ``jax.core.eval_context()``, which today refuses tracers; a traced kernel goes to a
    twin of ``f`` whose ``eval_context`` does nothing.
    """
    own_core = types.SimpleNamespace(eval_context=contextlib.nullcontext)
    own_jax = _module("jax", **{**vars(jax), "core": own_core})
    twin = types.FunctionType(
        f.__code__, {**f.__globals__, "jax": own_jax}, f.__name__, f.__defaults__, f.__closure__)  # fmt: skip

    @functools.wraps(f)
    def wrapper(k_train_train, *args, **kwargs):
        leaves = jax.tree_util.tree_leaves(k_train_train)
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (twin if traced else f)(k_train_train, *args, **kwargs)

    return wrapper
