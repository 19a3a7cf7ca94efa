"""What this package does beside what others offer for the same: one table in one run, then how the cost of everything grows.

    PYTHONPATH=.:tests/benchmarks python tests/benchmarks/peers.py [--size small|full] [--only hessian ...] [--repeats 3]

hessian   ten largest Hessian eigenvalues to 1e-3 (``lanczos.py``): SciPy, matfree on the same products, curvlinops, PyHessian
dmft      the limit of a deep linear network: the fixed point of its equations, straightforward (``deep_linear.py``)
ntk       all of the empirical NTK of a perceptron: neural-tangents, each of its ways
step      training a SimpleConvNet: a plain loop around a jitted step, with XLA's convolution (``training.py``)
growth    exponents of seconds against width, samples, inputs and steps (``growth.py``), at full size only

Medians of calls in turns, after one that compiles; what takes longer than ``PATIENCE`` is called once.  ``error`` is the
largest difference from a more exact result, relative to its largest entry.  Who is not installed is left out, and named.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import deep_linear as fixed
import growth
import jax
import jax.numpy as jnp
import lanczos
import numpy as np
import training

from finite.curvature import operators as curvature
from finite.data.patches import patches10
from finite.data.synthetic import gaussian
from finite.networks.build import build
from finite.training.train import train
from limits import Problem
from limits.deep import linear
from limits.kernel import neural_tangents_compat
from limits.machine import computing

PATIENCE = 20  # seconds


class Rows(NamedTuple):
    """``methods``: by name what prepares the call that is timed, ours first; ``exact`` is what they look for, if they agree."""

    title: str
    methods: dict[str, Callable[[], Callable[[], object]]]
    exact: np.ndarray | None = None


def hessian(small: bool) -> Rows:
    widths, samples = lanczos.SIZES["small" if small else "full"]
    data, product = lanczos.network(widths, samples)
    tight = jax.jit(lambda d, v: lanczos.extremes(lambda v: product(d, v), v, top=lanczos.TOP, rtol=1e-6, max_matvecs=150))
    exact = np.asarray(tight(data, lanczos.random_start(jax.random.key(2), data[0])).values)
    runs = lanczos.candidates(data, product, 100)

    def of(name):
        runs[name]()  # what it needs is there, or an ImportError
        return lambda: runs[name]()[0]

    methods = {name: lambda name=name: of(name) for name in ("ours", "scipy eigsh", "matfree")}
    methods |= {"curvlinops eigsh": lambda: curvlinops(data), "PyHessian": lambda: pyhessian(data)}
    return Rows(f"{lanczos.TOP} eigenvalues of H, MLP {'-'.join(map(str, widths))}, {samples} samples", methods, exact)


def in_torch(data):
    """The same network and samples, the loss that is 2/C of ours, and C/2."""
    import torch

    params, *samples = jax.device_get(data)
    layers = []
    for layer in params:
        linear_map = torch.nn.Linear(*layer["w"].shape)
        with torch.no_grad():
            linear_map.weight.copy_(torch.tensor(layer["w"].T))
            linear_map.bias.copy_(torch.tensor(layer["b"]))
        layers += [linear_map, torch.nn.Tanh()]
    x, y = map(torch.tensor, samples)
    return torch.nn.Sequential(*layers[:-1]), torch.nn.MSELoss(), (x, y), y.shape[1] / 2


def curvlinops(data):
    import curvlinops
    import scipy.sparse.linalg

    model, loss, samples, factor = in_torch(data)
    operator = curvlinops.HessianLinearOperator(model, loss, list(model.parameters()), [samples]).to_scipy()

    def call():
        found = scipy.sparse.linalg.eigsh(operator, lanczos.TOP, which="LA", tol=lanczos.RTOL, return_eigenvectors=False)
        return factor * np.sort(found)[::-1]

    return call


def pyhessian(data):
    import pyhessian

    model, loss, samples, factor = in_torch(data)

    def call():
        found = pyhessian.hessian(model, loss, data=samples, cuda=False).eigenvalues(tol=lanczos.RTOL, top_n=lanczos.TOP)[0]
        return factor * np.sort(found)[::-1]

    return call


def dmft(small: bool) -> Rows:
    steps, samples, depth = (8, 3, 2) if small else (100, 10, 2)
    problem = fixed.a_problem(steps, samples)
    exact = linear.solve(problem, depth=depth, hessian=False)["loss"]

    def iterated():
        with computing("float64"):
            for iterate in fixed.fixed_point(problem, depth=depth, damping=0.8):
                loss = np.sum((np.asarray(iterate.f) - problem.targets) ** 2, (1, 2)) / (2 * samples)
                if np.abs(loss - exact).max() <= 1e-3 * exact[0]:
                    return loss

    ours = lambda: linear.solve(problem, depth=depth, hessian=False)["loss"]  # noqa: E731
    title = f"loss curve of an infinite linear network, L = {depth}, T = {steps}, P = {samples}"
    return Rows(title, {"ours": lambda: ours, "fixed point to 1e-3 of L(0)": lambda: iterated}, exact)


def ntk(small: bool) -> Rows:
    width, samples, outputs = (16, 6, 2) if small else (512, 64, 10)
    problem = Problem(*gaussian(0, samples, 64, outputs), model="mlp3", activation="tanh")
    network = build(problem, width)
    params, inputs = network.init(jax.random.key(0)), jnp.asarray(problem.inputs, jnp.float32)
    with computing("float64"):
        exact = np.asarray(curvature.dense_ntk(network, *jax.tree.map(lambda x: jnp.asarray(x, float), (params, inputs))))

    def ready(function, *given):
        compiled = jax.jit(function)
        return lambda: np.asarray(compiled(*given))

    def theirs(way):
        nt = neural_tangents_compat.load()
        kernel = nt.empirical_ntk_fn(network.apply, trace_axes=(), implementation=nt.NtkImplementation[way])

        def matrix(x, params):
            return kernel(x, None, params).transpose(0, 2, 1, 3).reshape(exact.shape) / samples

        return ready(matrix, inputs, params)

    ways = "JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES"
    methods = {"ours": lambda: ready(lambda *given: curvature.dense_ntk(network, *given), params, inputs)}
    methods |= {f"nt {way.lower().replace('_', ' ')}": lambda way=way: theirs(way) for way in ways}
    return Rows(f"NTK, {samples * outputs} rows, mlp3 tanh, N = {width}", methods, exact)


def step(small: bool) -> Rows:
    width, samples, steps = (4, 8, 2) if small else (64, 128, 32)
    inputs, targets = patches10(samples).train("cross_entropy")
    options = {"model": "conv", "activation": "relu", "loss": "cross_entropy", "learning_rate": 0.1}
    problem = Problem(inputs, targets, num_steps=steps, measure_every=steps, top_k=1, **options)
    network, keys = build(problem, width), jax.random.split(jax.random.key(0), 1)
    ours = lambda: train(problem, network, keys, observables=["loss"])  # noqa: E731
    methods = {"ours": lambda: ours, "a jitted step in a plain loop": lambda: training.by_hand(problem, network)}
    return Rows(f"{steps} steps of SimpleConvNet, N = {width}, batch {samples}", methods)


ROWS = {"hessian": hessian, "dmft": dmft, "ntk": ntk, "step": step}


def timed(calls: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, object]]:
    """(median seconds, what was found) of each, in turns."""
    times, found = {name: [] for name in calls}, {}
    for turn in range(1 + repeats):
        for name, call in calls.items():
            if turn and max(times[name]) > PATIENCE:
                continue
            start = time.perf_counter()
            found[name] = call()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(of[1:] or of)) for name, of in times.items()}, found


def compare(rows: Rows, repeats: int) -> None:
    calls, absent = {}, []
    for name, prepare in rows.methods.items():
        try:
            calls[name] = prepare()
        except ImportError as reason:
            absent.append(f"  {name:<34}not installed: {reason.name}")
    seconds, found = timed(calls, repeats)
    print(f"{rows.title}\n  {'':<34}{'seconds':>10}{'× ours':>9}{'error':>10}")
    for name, of in seconds.items():
        error = "–" if rows.exact is None else f"{np.max(np.abs(found[name] - rows.exact)) / np.max(np.abs(rows.exact)):.0e}"
        print(f"  {name:<34}{of:>10.3g}{of / seconds['ours']:>9.2f}{error:>10}")
    print(*absent, "", sep="\n", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "growth"], default=[*ROWS, "growth"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for name in (name for name in given.only if name in ROWS):
        compare(ROWS[name](given.size == "small"), given.repeats)
    if "growth" in given.only and given.size == "full":
        growth.table(growth.ROWS_OF_ALL, given.repeats)


if __name__ == "__main__":
    main()
