"""Top eigenvalues of a network's Hessian: our Lanczos against scipy's and matfree's, on the same products.

    python tests/benchmarks/lanczos.py [--size small|full] [--repeats 3]

One run, interleaved, medians: only ratios within one table mean something.  ``ratio`` is wall time over (products ×
one product inside a jitted loop), the price of everything that is not a product; ``error`` the worst relative error
against a run to 1e-6.  full: MLP 3072-512-512-10, tanh, 512 samples, 1.84 million parameters, about 2 minutes.
"""

import argparse
import time
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from finite.curvature.lanczos import extremes, random_start

SIZES = {"small": ((64, 64, 64, 10), 64), "full": ((3072, 512, 512, 10), 512)}
TOP, RTOL, LOOP = 10, 1e-3, 20


def network(widths, samples):
    """Parameters and Hessian-vector product (forward over reverse) of 1/(2P) Σ |f − y|²."""
    keys = jax.random.split(jax.random.key(0), len(widths) + 1)
    params = [
        {"w": jax.random.normal(k, (a, b)) / a**0.5, "b": jnp.zeros(b)}
        for k, a, b in zip(keys, widths, widths[1:], strict=False)
    ]
    decay = jnp.arange(1, widths[0] + 1) ** -0.5  # principal components decay, as in images
    x = jax.random.normal(keys[-2], (samples, widths[0])) * decay * (widths[0] / (decay**2).sum()) ** 0.5
    y = jax.nn.one_hot(jax.random.randint(keys[-1], samples, 0, widths[-1]), widths[-1])

    def loss(params, x, y):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return ((x @ params[-1]["w"] + params[-1]["b"] - y) ** 2).sum() / (2 * len(x))

    def hvp(data, v):
        params, x, y = data
        return jax.jvp(lambda p: jax.grad(loss)(p, x, y), (params,), (v,))[1]

    return (params, x, y), hvp


def candidates(data, hvp, max_matvecs, rtol=RTOL):
    """name -> function that returns (eigenvalues, products); compiled once, the data are arguments.

    Ours are NaN where they have not converged after ``max_matvecs`` products.
    """
    params = data[0]
    start = random_start(jax.random.key(1), params)
    flat, unravel = ravel_pytree(start)

    @jax.jit
    def loop(data, v):
        def body(_, v):
            w = hvp(data, v)
            length = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(w)))
            return jax.tree.map(lambda x: x / length, w)

        return jax.lax.fori_loop(0, LOOP, body, v)

    @jax.jit
    def ours(data, v):
        found = extremes(lambda v: hvp(data, v), v, top=TOP, rtol=rtol, max_matvecs=max_matvecs)
        return found.values, found.matvecs, found.converged

    @jax.jit
    def flat_hvp(data, v):
        return ravel_pytree(hvp(data, unravel(v)))[0]

    def run_loop():
        jax.block_until_ready(loop(data, start))
        return None, LOOP

    def run_ours():
        values, matvecs, converged = jax.device_get(ours(data, start))
        return np.where(converged, values, np.nan), int(matvecs)

    def run_scipy():
        calls = []

        def matvec(v):
            calls.append(0)
            return np.asarray(flat_hvp(data, v.astype(np.float32)))

        operator = scipy.sparse.linalg.LinearOperator((flat.size, flat.size), matvec, dtype=np.float32)
        values = scipy.sparse.linalg.eigsh(
            operator, TOP, which="LA", tol=rtol, v0=np.asarray(flat), return_eigenvectors=False
        )
        return np.sort(values)[::-1], len(calls)

    def matfree_of(num):
        import matfree.decomp  # where it is: ``device.py`` does without
        import matfree.eig

        solver = matfree.eig.eigh_partial(matfree.decomp.tridiag_sym(num, reortho="full"))
        return jax.jit(lambda data, v: solver(lambda v: flat_hvp(data, v), v)[0])

    @cache
    def enough():  # matfree has no stopping test: it is told how many are enough
        products = run_ours()[1]
        return products, matfree_of(products)

    def run_matfree():
        products, solver = enough()
        return np.sort(np.asarray(solver(data, flat)))[::-1][:TOP], products

    return {"loop": run_loop, "ours": run_ours, "scipy eigsh": run_scipy, "matfree": run_matfree}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-matvecs", type=int, default=100)
    args = parser.parse_args()

    widths, samples = SIZES[args.size]
    data, hvp = network(widths, samples)
    reference = jax.jit(lambda d, v: extremes(lambda v: hvp(d, v), v, top=TOP, rtol=1e-6, max_matvecs=150))
    exact = np.asarray(reference(data, random_start(jax.random.key(2), data[0])).values)

    runs = candidates(data, hvp, args.max_matvecs)
    for run in runs.values():
        run()  # compile
    times, results = {name: [] for name in runs}, {}
    for _ in range(args.repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            results[name] = run()
            times[name].append(time.perf_counter() - begin)

    wall = {name: float(np.median(t)) for name, t in times.items()}
    product = wall.pop("loop") / LOOP
    print(f"MLP {'-'.join(map(str, widths))}, {samples} samples, top {TOP} to {RTOL:g}; {jax.devices()[0]}, float32")
    print(f"one product in a jitted loop: {1e3 * product:.2f} ms; medians of {args.repeats}")
    print(f"{'method':<14}{'products':>9}{'wall [s]':>10}{'ratio':>7}{'error':>10}")
    for name, seconds in wall.items():
        values, products = results[name]
        error = np.max(np.abs(values / exact - 1))
        print(f"{name:<14}{products:>9}{seconds:>10.3f}{seconds / (products * product):>7.2f}{error:>10.1e}")


if __name__ == "__main__":
    main()
