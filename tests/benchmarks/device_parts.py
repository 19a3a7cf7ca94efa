"""The parts of ``device.py``, each a function of a report, a size ("tiny" or "full") and the folder of results.

A row is a number with its unit, or a fault; they go out one by one, so that what was found before a fault or the end of the
time is kept.
"""

import contextlib
import ctypes
import gzip
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import lanczos
import numpy as np
import optax
import pytest
import quickly
import xarray as xr
from jax.flatten_util import ravel_pytree

from comparisons.convergence import study as convergence
from finite import Numerics
from finite.curvature import operators as curvature
from finite.curvature.lanczos import extremes
from finite.curvature.observers import program_of
from finite.data.patches import patches10
from finite.networks import by_role
from finite.networks.build import build
from finite.networks.conv import activated, convolution, of_images, pooled, read_out
from finite.training.side_by_side import footprint, plan
from finite.training.train import train
from limits import Problem, minibatches
from limits.losses import LOSSES
from limits.machine import computing
from limits.trajectory import measured_by_default

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def end_with_parent():
    """This process is killed when the one that has started it is gone, if the system knows how: Linux's PR_SET_PDEATHSIG."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class OutOfTime(Exception):
    """What is left does not fit."""


class Report:
    """Where a part says what it has found, and how long it may still take."""

    def __init__(self, until, stream, tiny=False):
        self.until, self.stream, self.share = until, stream, 0.2 if tiny else 1.0  # of what things take that are not

    def left(self):
        return self.until - time.time()

    def row(self, what, value, unit=""):
        value = value if isinstance(value, str) else float(value)
        print(json.dumps({"what": what, "value": value, "unit": unit}), file=self.stream, flush=True)

    def fault(self, what, said):
        line = " ".join(str(said).split())[:300]
        print(json.dumps({"what": what, "fault": line}), file=self.stream, flush=True)

    @contextlib.contextmanager
    def attempt(self, what, seconds=3.0):
        """Something that takes about so long.  Where it fails, it says so, and the rest goes on."""
        if self.left() < self.share * seconds:
            raise OutOfTime(what)
        try:
            yield
        except OutOfTime:
            raise
        except Exception as fault:
            traceback.print_exc()
            self.fault(what, f"{type(fault).__name__}: {fault}")

    def extras(self, things, longest=15.0):
        """[(what, function)] that need not be: one after the other, while there is time for one as long as the longest yet."""
        for i, (what, measure) in enumerate(things):
            if self.left() < 1.3 * longest:
                return self.row("left out for lack of time", "; ".join(name for name, _ in things[i:]))
            started = time.time()
            with self.attempt(what):
                measure()
            longest = max(longest, time.time() - started)


def seconds(function, repeats=5):
    """Median of one call whose result is ready, after one that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


# card ---------------------------------------------------------------------------------------------------------------------

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")  # of the option jax_default_matmul_precision
PRODUCTS, COMPARED = 8, 64
PACKAGES = ("jax", "jaxlib", "numpy", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cublas", "nvidia-cudnn-cu13")
LARGE = {"tiny": 256, "full": 8192}  # rows of matrices that show the peak


def card(report, size, out):
    device, n = jax.devices()[0], LARGE[size]
    report.row("platform", device.platform)
    report.row("device", f"{len(jax.local_devices())} × {device.device_kind}, python {platform.python_version()}")
    report.row("driver", _driver())
    report.row("versions", ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))))
    stats = device.memory_stats() or {}
    report.row("memory that JAX may use", stats.get("bytes_limit", 0) / GIB, "GiB")
    for option in PRECISIONS:
        with report.attempt(f"product of float32, precision {option}"):
            what = f"product of float32 matrices, {n} × {n}, jax_default_matmul_precision {option}"
            _say_peak(report, what, n, option)
    with report.attempt("memory"):
        report.row("memory, read and written", bandwidth({"tiny": 2**16, "full": 2**28}[size]) / 1e9, "GB/s")
    more = [(f"product of bfloat16 matrices, {n} × {n}", n, "default", jnp.bfloat16),
            (f"product of float64 matrices, {n // 2} × {n // 2}", n // 2, "highest", jnp.float64)]  # fmt: skip
    more = [(one[0], partial(_say_peak, report, *one)) for one in more]
    report.extras([("small programs", partial(_say_small_programs, report)), *more], longest=5)


def _say_peak(report, what, n, option, dtype=jnp.float32):
    with jax.enable_x64(dtype == jnp.float64):
        rate, error = peak(n, option, dtype)
    report.row(what, rate / 1e12, "TFLOP/s")
    report.row("    its relative error", error)


def _say_small_programs(report):
    for name, found in small_programs().items():
        report.row(name, 1e6 * found, "µs")


def _driver():
    if not shutil.which("nvidia-smi"):
        return "no nvidia-smi"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()


def _version(name):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)


def peak(n, option, dtype=jnp.float32):
    """(operations per second of products of random matrices, |ab − exact|/|exact|): says what format they had."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((n, n), np.float32) / np.float32(n**0.5), dtype) for _ in range(2))
    with jax.default_matmul_precision(option):
        product = jax.jit(lambda a, b, turns: jax.lax.fori_loop(0, turns, lambda _, b: a @ b, b))
        took = seconds(lambda: product(a, b, PRODUCTS)) / PRODUCTS
        found = np.float64(product(a, b, 1))[:COMPARED]
    exact = np.float64(a)[:COMPARED] @ np.float64(b)
    return 2 * n**3 / took, np.linalg.norm(found - exact) / np.linalg.norm(exact)


def bandwidth(numbers):
    return 2 * 4 * numbers / seconds(partial(jax.jit(lambda x: x + 1), np.ones(numbers, np.float32)))


def small_programs(turns=1000):
    """Seconds of a call, and of a turn of a loop, that compute next to nothing; its length compiled in, or an argument."""
    x = jnp.ones(8)
    loop = jax.jit(lambda x, turns: jax.lax.fori_loop(0, turns, lambda _, x: jnp.cos(x), x))
    known = jax.jit(lambda x: jax.lax.fori_loop(0, turns, lambda _, x: jnp.cos(x), x))
    return {"a call of a small program": seconds(partial(jax.jit(jnp.cos), x), 20),
            "a turn of a loop of known length": seconds(partial(known, x)) / turns,
            "a turn of a loop of any length": seconds(partial(loop, x, jnp.asarray(turns))) / turns}  # fmt: skip


# conv ---------------------------------------------------------------------------------------------------------------------

NETWORKS, BATCH, SAMPLES = 8, 128, 256
OBSERVED = ("loss", "hessian_eigenvalues")


def photographs(samples=SAMPLES, batch=BATCH, model="conv", **changes):
    """SimpleConvNet on embedded photographs, cross-entropy, μP, curvature of the largest eigenvalue."""
    inputs, targets = patches10(samples).train("cross_entropy")
    batches = minibatches(np.random.default_rng(1), samples, batch, changes.get("num_steps", 1))
    given = {"parametrization": "mup", "model": model, "loss": "cross_entropy", "learning_rate": 0.1, "top_k": 1}
    return Problem(inputs, targets, batches=batches, **given | changes)


def operations(width, batch):
    """Of products, in one step of SimpleConvNet: forward, and back to weights and to signals; no way back to the images."""
    first = 2 * batch * 16 * 16 * 27 * width
    second = 2 * batch * 2 * 2 * 9 * width * width
    readout = 2 * batch * width * 10
    return 2 * first + 3 * (second + readout)


STEPS = {"tiny": (2, 8, 4), "full": (20, SAMPLES, BATCH)}  # between two measurements; samples, and of a batch


def measured_seldom(size):
    """The problem of which steps and measurements are timed."""
    steps, samples, batch = STEPS[size]
    return photographs(samples, batch, num_steps=8 * steps, measure_every=8 * steps)


def conv(report, size, out):
    widths = {"tiny": (8,), "full": (1024, 256, 64)}[size]
    (steps, _, batch), problem = STEPS[size], measured_seldom(size)
    report.row("device", jax.devices()[0].device_kind)
    peaks = {option: peak(LARGE[size], option)[0] for option in PRECISIONS[:2]}
    for option, found in peaks.items():
        report.row(f"peak, {option}", found / 1e12, "TFLOP/s")
    timing = Timing(report, problem, steps, batch, peaks)
    for width in widths:
        report.row(f"N = {width}: operations in one step of one network", operations(width, batch) / 1e9, "GFLOP")
        for networks in (NETWORKS, 1):
            with report.attempt(f"N = {width}, steps", 5):
                timing.training(width, networks > 1, curved=networks > 1 and width == widths[0])
            with report.attempt(f"N = {width}, plain loop", 5):
                timing.loop(width, networks=networks, profiled=networks > 1 and width == widths[0])
    report.extras(timing.more(widths, (512, 128) if size == "full" else ()))


class Timing:
    """Steps of SimpleConvNet, timed in several ways; each says its number when it has it."""

    def __init__(self, report, problem, steps, batch, peaks):
        self.report, self.problem, self.steps, self.batch, self.peaks = report, problem, steps, batch, peaks

    def step(self, what, width, took, option="float32"):
        self.report.row(f"{what}: one step of one", 1e3 * took, "ms")
        part = 100 * operations(width, self.batch) / took / self.peaks[option]
        self.report.row(f"    of the {option} peak", part, "%")

    def training(self, width, vectorized, curved=False):
        """As the package trains."""
        what = f"N = {width}, {NETWORKS} networks {'in a batch' if vectorized else 'one after the other'}"
        took = of_steps(self.problem, width, self.steps, vectorized)
        self.step(what, width, took)
        if curved:
            self.measurement(width, vectorized, took)

    def measurement(self, width, vectorized=True, step=None):
        step = of_steps(self.problem, width, self.steps, vectorized) if step is None else step
        took, products = of_measurement(self.problem, width, self.steps, vectorized, step)
        self.report.row(f"N = {width}: one measurement of one", 1e3 * took, "ms")
        self.report.row("    products in it", products)

    def loop(self, width, name="package", option="float32", networks=NETWORKS, profiled=False):
        """A loop written by hand."""
        what = f"N = {width}, a plain loop, {name}, {option}, {networks} at once"
        with tempfile.TemporaryDirectory() as folder:
            took = of_loop(self.problem, width, self.steps, name, option, networks, folder if profiled else None)
            self.step(what, width, took, "float32" if option == "float32" else "tensorfloat32")
            spent = kernels(Path(folder))
        for name, spent_there in sorted(spent.items(), key=lambda one: -one[1])[:MOST]:
            shown = f"{1e3 * spent_there / self.steps / networks:.4g} ms, {spent_there / sum(spent.values()):.0%}"
            self.report.row(f"    {name}"[:80], shown)

    def products(self, width):
        what = f"N = {width}, {NETWORKS} at once: its products alone"
        self.report.row(what, 1e3 * of_products(width, self.batch, self.steps), "ms")

    def more(self, widths, others):
        """[(what, function)] beyond the least, the most telling first."""
        first, *rest = widths
        yet = [("products alone", partial(self.products, first))]
        cases = [("package", "tensorfloat32", NETWORKS), *[(name, "float32", NETWORKS) for name in CONVOLUTIONS][1:]]
        yet += [(f"{name}, {option}, {networks} at once", partial(self.loop, first, name, option, networks))
                for name, option, networks in cases]  # fmt: skip
        yet += [(f"measurement at N = {width}", partial(self.measurement, width)) for width in rest]
        return yet + [(f"N = {width}", partial(self.training, width, True)) for width in others]


MOST = 12  # operations of a profile


def kernels(folder):
    """Seconds of each operation in a trace: of the accelerator's own events, where it has any."""
    events = [event for path in folder.rglob("*.trace.json.gz")
              for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]  # fmt: skip
    places = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
    devices = {pid for pid, name in places.items() if "/device:" in name} or set(places)
    spent = {}
    for event in events:
        operation = event.get("args", {}).get("hlo_op", "while")
        if event.get("ph") == "X" and event["pid"] in devices and not operation.startswith("while"):
            name = f"{operation} {event['name']}" if event["name"] != operation else operation
            spent[name] = spent.get(name, 0.0) + 1e-6 * event["dur"]
    return spent


def _trained(problem, network, keys, *, observables=None, initial=None, progress=None, **numerics):
    told = {"observables": observables, "numerics": Numerics(**numerics), "progress": progress}
    return train(problem, network, keys, initial=initial, **told)


def of_steps(problem, width, steps, vectorized):
    """Seconds of a step of one network.

    ``train`` says when a measurement, here of the loss only, is ready: between two lie the steps and one measurement.  Twice
    as many steps tell them apart, with the same programs.
    """
    short, long = (_gap(problem, width, every, vectorized, ["loss"])[0] for every in (steps, 2 * steps))
    return (long - short) / steps / NETWORKS


def of_measurement(problem, width, steps, vectorized, step):
    """(seconds of a measurement of one network, its products), as many at once as ``train`` plans."""
    gap, got = _gap(problem, width, steps, vectorized, list(OBSERVED), memory=None)
    products = np.mean([one.products["hessian_eigenvalues"] for one in got])
    return gap / _together(problem, width, vectorized) - steps * step, products


def _gap(problem, width, every, vectorized, observables, memory=1e18):
    """(seconds from one measurement to the next, the trajectories)"""
    network, keys, times = build(problem, width), jax.random.split(jax.random.key(0), NETWORKS), []
    options = {"vectorized": vectorized, "rtol": 1e-2, "progress": lambda _: times.append(time.perf_counter())}
    got = _trained(replace(problem, measure_every=every), network, keys, observables=observables, memory=memory, **options)
    return np.median(np.diff(times)[1:] if len(times) > 3 else np.diff(times)), got


def _together(problem, width, vectorized=True):
    """How many of the networks ``train`` has side by side."""
    return len(_plan(problem, width, NETWORKS, vectorized=vectorized).rows()[0])


def xla(x, kernel, stride):
    """XLA's own convolution, channels last."""
    kernel = kernel.reshape(3, 3, x.shape[-1], -1)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) / 3


CONVOLUTIONS = {"package": (convolution, partial(activated, activation="relu")),
                "XLA": (xla, lambda x, pooling: pooled(jax.nn.relu(x), pooling))}  # fmt: skip


def forward(name, image, params, inputs):
    """SimpleConvNet with that convolution."""
    convolve, activate = CONVOLUTIONS[name]
    x = activate(convolve(of_images(inputs, image), params["input"], 2), "max")
    return read_out(activate(convolve(x, params["hidden"], 4), "max"), params["readout"]).output


def of_loop(problem, width, steps, name, option, networks, trace=None):
    """Seconds of a step of one network in a loop written by hand: the network, a gradient, optax's SGD."""
    network, keys = build(problem, width), jax.random.split(jax.random.key(0), networks)
    params = jax.jit(jax.vmap(lambda key: by_role(network.numbers("multiplier"), network.init(key))))(keys)
    optimizer, data = optax.sgd(0.1), tuple(jnp.asarray(array, jnp.float32) for array in (problem.inputs, problem.targets))
    batches = jnp.asarray(problem.batches)

    def step(t, now, data, batches):
        x, y = (array[batches[t]] for array in data)
        gradient = jax.grad(lambda p: LOSSES[problem.loss].mean(forward(name, problem.image, p, x), y))(now[0])
        updates, state = optimizer.update(gradient, now[1], now[0])
        return optax.apply_updates(now[0], updates), state

    def trained(params, data, batches):
        return jax.lax.fori_loop(0, steps, lambda t, now: step(t, now, data, batches), (params, optimizer.init(params)))[0]

    with jax.default_matmul_precision(option):
        run = jax.jit(jax.vmap(trained, (0, None, None)) if networks > 1 else
                      lambda p, *rest: trained(jax.tree.map(lambda leaf: leaf[0], p), *rest))  # fmt: skip
        took = seconds(lambda: run(params, data, batches), 3) / steps / networks
        if trace:
            with jax.profiler.trace(trace):
                jax.block_until_ready(run(params, data, batches))
        return took


def of_products(width, batch, steps):
    """Seconds of the products of a step of one network, of a batch of networks, and nothing else."""
    shapes = [(batch * 256, 27, width), (batch * 4, 9 * width, width)]
    keys = jax.random.split(jax.random.key(0), 4)
    pairs = [
        (jax.random.normal(keys[2 * i], (NETWORKS, rows, m)), jax.random.normal(keys[2 * i + 1], (NETWORKS, m, n)) / m)
        for i, (rows, m, n) in enumerate(shapes)
    ]

    def turn(_, weights):
        new = []
        for i, ((x, _), w) in enumerate(zip(pairs, weights, strict=True)):
            y = x @ w
            more = jnp.sum(jax.lax.optimization_barrier(y @ jnp.swapaxes(w, 1, 2))) if i else 0.0
            new.append(1e-3 * jnp.swapaxes(x, 1, 2) @ y / len(x) + 1e-20 * more)
        return new

    with jax.default_matmul_precision("highest"):
        loop = jax.jit(lambda weights: jax.lax.fori_loop(0, steps, turn, weights))
        return seconds(lambda: loop([w for _, w in pairs]), 3) / steps / NETWORKS


# main ---------------------------------------------------------------------------------------------------------------------


def main(report, size, out):
    """The main job in a process of its own, before this one takes the device's memory."""
    tiny = ["--widths", "4", "6", "8", "--seeds", "2", "--steps", "4", "--top-k", "1"] if size == "tiny" else []
    with tempfile.TemporaryDirectory() as folder, report.attempt("main job"):
        words = ["comparisons.convergence", "--model", "linear2", "--param", "mup", *tiny]
        took, _ = command(report, words, Path(folder), cold=not tiny)
        report.row("the main job, from the command to the pictures", took, "s")
        with xr.open_dataset(Path(folder) / "trajectories.nc") as dataset:
            for width in dataset.width.values:
                report.row(f"    N = {width}, compilation included", float(dataset.seconds.sel(width=width)), "s")
        rates = json.loads((Path(folder) / "rates.json").read_text())
        loss = [rate for rate in rates if rate["observable"] == "loss" and rate["exponent"] is not None]
        for rate in loss[-2:]:
            low, high = rate["interval"]
            found = f"{rate['exponent']:+.3f} [{low:+.3f}, {high:+.3f}]"
            report.row(f"    exponent of the loss, {rate['kind']}, step {rate['step']}", found)
    report.row("device", jax.devices()[0].device_kind)
    jax.config.update("jax_enable_compilation_cache", size == "tiny")  # compilation is part of the result
    widths, others = {"tiny": ((8,), ()), "full": ((4096, 65536), (16384, 8192, 32768))}[size]
    options = convergence.Options(seeds=2 if size == "tiny" else 8, steps=4 if size == "tiny" else 20)
    problem = convergence.prepare(options).problem
    for width in widths:
        with report.attempt(f"N = {width}", 10):
            _say_width(report, problem, width, options)
    report.extras([(f"N = {width}", partial(_say_width, report, problem, width, options)) for width in others])


def _say_width(report, problem, width, options):
    first, again = of_width(problem, width, options)
    report.row(f"N = {width}, {options.seeds} networks, {options.steps} steps, all observables", again, "s")
    report.row("    compilation apart", first - again, "s")


def command(report, words, folder, cold):
    """(seconds, standard output) of ``python -m``; cold: nothing compiled is taken from before."""
    env = os.environ | ({"JAX_ENABLE_COMPILATION_CACHE": "false"} if cold else {})
    started = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, "-m", *words, "--out", str(folder)], cwd=ROOT, env=env, capture_output=True,
                              text=True, timeout=max(report.left() - 2, 1), preexec_fn=end_with_parent)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OutOfTime(words[0]) from None
    if done.returncode:
        sys.stderr.write(done.stderr)
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"status {done.returncode}: {lines[-1]}")
    return time.perf_counter() - started, done.stdout


def of_width(problem, width, options):
    """(seconds the first time, and again) of one width as the main job has it."""
    network, keys = build(problem, width), jax.random.split(jax.random.key(width), options.seeds)
    given = {"observables": measured_by_default(), "rtol": convergence.tolerance(replace(options, widths=(width,)))}
    times = []
    for _ in range(2):
        start = time.perf_counter()
        _trained(problem, network, keys, **given)
        times.append(time.perf_counter() - start)
    return times


# lanczos ------------------------------------------------------------------------------------------------------------------


def eigenvalues(report, size, out):
    report.row("device", jax.devices()[0].device_kind)
    sizes = {"tiny": [((16, 16, 16, 4), 8, 64, lanczos.RTOL)],
             "full": [((3072, 512, 512, 10), 512, 64, lanczos.RTOL),
                      ((3072, 8576, 8576, 10), 512, 96, 1e-2)]}[size]  # fmt: skip
    for widths, samples, most, rtol in sizes:
        count = sum(a * b + b for a, b in itertools.pairwise(widths))
        name = f"{count / 1e6:.3g} million parameters"
        with report.attempt(name, 8), computing("float32"):
            runs = lanczos.candidates(*lanczos.network(widths, samples), most, rtol)
            product = _timed(runs["loop"]) / lanczos.LOOP
            report.row(f"{name}: one Hessian-vector product, {samples} samples", 1e3 * product, "ms")
            values, products = runs["ours"]()
            ours = _timed(runs["ours"])
            report.row(f"    of the top {lanczos.TOP} eigenvalues to {rtol:g}: products", products)
            report.row("    whole", 1e3 * ours, "ms")
            report.row("    over products × one product", ours / (products * product))
            if missing := int(np.isnan(values).sum()):
                report.fault(name, f"{missing} of {len(values)} eigenvalues not converged after {products} products")


def _timed(function, repeats=3):
    """Median, after one call that compiles."""
    function()
    times = [time.perf_counter()]
    for _ in range(repeats):
        function()
        times.append(time.perf_counter())
    return float(np.median(np.diff(times)))


# checks -------------------------------------------------------------------------------------------------------------------

TOLERANCES = {"float64": 1e-8, "float32": 2e-3}  # relative, to the largest number of an observable
TESTS = ("tests/test_train.py", "tests/test_lanczos.py", "tests/test_finite_curvature.py")
CHOSEN = ("not neural_tangents and (loop_written_out or dense_matrices or chunks_change or side_by_side or batched_lanczos"
          " or float32_is_close"
          " or divergence or explicit_initial or exact_zeros or taken_in_parts or augmented_training"
          " or test_lanczos or test_finite_curvature)")  # fmt: skip
FEW = "taken_in_parts"


def checks(report, size, out):
    """Weights are drawn once, on the CPU: drawn on two devices they differ in a last digit of float32, as erf_inv does."""
    report.row("device", jax.devices()[0].device_kind)
    two, images = _cases()
    for case in ((*two, "float64"), (*(two if size == "tiny" else images), "float32")):
        with report.attempt(f"{case[0]}, {case[-1]}", 5):
            _compare(report, *case)
    with report.attempt("curvature"):
        _agrees(report, "Hessian, Gauss-Newton and residual products, float64, against dense ones", *products_of_dense(), 1e-9)
    with report.attempt("side by side"):
        _agrees(report, "seeds in chunks of two, float64, against one by one", *in_chunks(), 1e-8)
    if (devices := len(jax.local_devices())) == 1:
        report.row("seeds over several devices", "there is one: not tried")
    else:
        with report.attempt("sharding"):
            _agrees(report, f"seeds over {devices} devices, float64, against one by one", *sharded(), 1e-8)
    with report.attempt("lanczos"):
        _agrees(report, "lanczos on a dense matrix, float64, against LAPACK", *lanczos_of_dense(), 1e-9)
    more = ((*images, "float64"), (*two, "float32")) if size == "full" else ()
    report.extras([(f"{one[0]}, {one[-1]}", partial(_compare, report, *one)) for one in more])
    with report.attempt("tests"):
        _run_tests(report, FEW if size == "tiny" else CHOSEN)


def _compare(report, name, problem, width, precision):
    what = f"{name}, {precision}: device against CPU"
    _agrees(report, what, *against_cpu(problem, width, precision), TOLERANCES[precision])


def _cases():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(12, 5)), rng.normal(size=(12, 2))
    common = {"num_steps": 8, "measure_every": 4, "learning_rate": 0.3}
    yield "two tanh layers, MSE", Problem(inputs, targets, model="mlp3", activation="tanh", top_k=1, **common), 6
    yield "SimpleConvNet, cross-entropy", photographs(16, 8, num_steps=4, measure_every=2), 8


def against_cpu(problem, width, precision):
    """All observables of two networks: as a batch on the device, one after the other on this machine's CPU."""
    network, keys = build(problem, width), jax.random.split(jax.random.key(0), 2)
    given = {"precision": precision, "rtol": 1e-9 if precision == "float64" else 1e-4, "max_matvecs": 48}
    given["observables"] = ["loss", "hessian_eigenvalues", "directional_sharpness"]
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        elsewhere = jax.device_put(keys, cpu)
        given["initial"] = jax.device_get(jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(network.init, elsewhere)))
        there = _trained(problem, network, elsewhere, vectorized=False, **given)
    return _flat(_trained(problem, network, keys, vectorized=True, **given)), _flat(there)


def _flat(trajectories):
    """{observable: numbers of all networks}"""
    return {name: np.stack([one[name] for one in trajectories]) for name in trajectories[0].observables}


def _agrees(report, what, found, wanted, tolerance):
    worst, name = max((_deviation(found[name], wanted[name]), name) for name in wanted)
    report.row(what, f"{worst:.1e} (tolerance {tolerance:.0e}, worst: {name})")
    if not worst <= tolerance:
        report.fault(what, f"{name} deviates by {worst:.1e}, more than {tolerance:.0e}")


def _deviation(found, wanted):
    return float(np.nan_to_num(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)), nan=np.inf))


def lanczos_of_dense(n=48, top=5):
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (rotation * rng.normal(size=n)) @ rotation.T
    with computing("float64"):
        there = jnp.asarray(matrix)
        run = jax.jit(lambda m, v: extremes(lambda v: m @ v, v, top=top, bottom=1, rtol=1e-12, max_matvecs=n).values)
        found = np.asarray(run(there, jnp.ones(n)))
    exact = np.linalg.eigvalsh(matrix)
    return {"values": found}, {"values": np.r_[exact[::-1][:top], exact[0]]}


def products_of_dense():
    """Of a small network, on the device, against dense matrices from plain differentiation on a CPU."""
    _, problem, _ = next(_cases())
    device, cpu = jax.local_devices()[0], jax.local_devices(backend="cpu")[0]
    network = build(problem, 4)
    with jax.default_device(cpu):
        drawn = jax.device_get(network.init(jax.random.key(0)))

    def both(device):
        with computing("float64"), jax.default_device(device):
            params = jax.tree.map(lambda leaf: jnp.asarray(np.float64(leaf)), drawn)
            x, y = jnp.asarray(problem.inputs), jnp.asarray(problem.targets)
            yield network.apply, params, x, y

    found, wanted = {}, {}
    for apply, params, x, y in both(device):
        flat, unravel = ravel_pytree(params)
        v = unravel(jnp.cos(jnp.arange(flat.size)))
        operators = {"hessian": curvature.hessian(apply, params, x, y), "residual": curvature.residual(apply, params, x, y),
                     "gauss_newton": curvature.gauss_newton(apply, params, x)}  # fmt: skip
        found = {name: np.asarray(ravel_pytree(operator(v))[0]) for name, operator in operators.items()}
    for apply, params, x, y in both(cpu):
        flat, unravel = ravel_pytree(params)
        v, of = np.cos(np.arange(flat.size)), lambda flat: apply(unravel(flat), x)  # noqa: B023
        hessian = np.asarray(jax.hessian(lambda flat: jnp.sum((of(flat) - y) ** 2) / (2 * len(x)))(flat))  # noqa: B023
        jacobian = np.asarray(jax.jacfwd(lambda flat: of(flat).ravel())(flat))  # noqa: B023
        gauss_newton = jacobian.T @ jacobian / len(x)
        wanted = {"hessian": hessian @ v, "gauss_newton": gauss_newton @ v, "residual": (hessian - gauss_newton) @ v}
    return found, wanted


def in_chunks():
    """Five seeds of which two fit at once, the last chunk filled up; and alone."""
    _, problem, width = next(_cases())
    network, keys = build(problem, width), jax.random.split(jax.random.key(0), 5)
    program = program_of(problem, network.architecture, ("loss",), Numerics(vectorized=True))
    with computing("float64"):
        memory = 2.5 * sum(footprint(problem, network, program, problem.num_samples))
    given = {"precision": "float64", "observables": ["loss"]}
    chunked = _trained(problem, network, keys, vectorized=True, memory=memory, **given)
    return _flat(chunked), _flat([_trained(problem, network, keys[i : i + 1], vectorized=False, **given)[0] for i in range(5)])


def sharded():
    _, problem, width = next(_cases())
    devices = len(jax.local_devices())
    network, keys = build(problem, width), jax.random.split(jax.random.key(0), 2 * devices)
    given = {"precision": "float64", "observables": ["loss"]}
    alone = [_trained(problem, network, keys[i : i + 1], vectorized=False, **given)[0] for i in range(len(keys))]
    return _flat(_trained(problem, network, keys, vectorized=True, **given)), _flat(alone)


def _run_tests(report, chosen):
    """The package's own tests of training, Lanczos and curvature, in this process, on this device."""
    os.environ["SUPERCONSISTENCY_UNCHECKED"] = "1"  # shapes and types are checked where beartype is
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what is installed there is not ours to load
    os.chdir(ROOT)
    passed, left_out = [], []

    class Watch:
        longest = 10.0  # seconds of a test

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_setup(self, item):
            if report.left() < 1.3 * self.longest:
                left_out.append(item.nodeid)
                pytest.skip("no time left")

        def pytest_runtest_logreport(self, report):
            self.longest = max(self.longest, report.duration)
            note(report)

    def note(one):
        if one.failed:
            said = str(one.longrepr).strip().splitlines() or ["failed"]
            report.fault(one.nodeid, next((line[1:].strip() for line in said if line.startswith("E ")), said[-1]))
        elif one.passed and one.when == "call":
            passed.append(one.nodeid)
            if len(passed) % 5 == 0:
                report.row("    so far", len(passed))

    words = ["-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "-q", "-k", chosen, *TESTS]
    with contextlib.redirect_stdout(sys.stderr):
        status = pytest.main(words, plugins=[Watch()])
    report.row("tests in process that passed", len(passed))
    if left_out and not passed:
        raise OutOfTime("tests")
    if left_out:
        report.row("left out for lack of time", f"{len(left_out)} tests")
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        report.fault("tests", f"pytest ended with {status!r}")


# memory -------------------------------------------------------------------------------------------------------------------


def memory(report, size, out):
    """Ascending, so that the largest use so far is that of the run just made."""
    report.row("device", jax.devices()[0].device_kind)
    problem, widths = measured_seldom(size), {"tiny": (8,), "full": (256, 1024)}[size]  # compiled already where it was timed
    report.row("limit", _limit() / GIB, "GiB")
    for width in widths:
        networks = _together(problem, width)
        with report.attempt(f"N = {width}, {networks} networks", 8):
            bytes_ = networks * _bytes(problem, width)
            report.row(f"N = {width}, {networks} networks with curvature: planned", bytes_ / GIB, "GiB")
            _train_some(problem, width, networks, OBSERVED)
            report.row("    used at most so far", _used() / GIB, "GiB")
    most = {"tiny": widths[-1], "full": 2**20}[size]
    report.extras([one for observed in (OBSERVED, ("loss",)) for one in _widest(report, problem, widths[-1], most, observed)])


def _program(problem, network, observed, vectorized=True):
    return program_of(problem, network.architecture, observed, Numerics(rtol=1e-2, vectorized=vectorized))


def _plan(problem, width, networks, observed=OBSERVED, vectorized=True):
    network = build(problem, width)
    return plan(problem, network, _program(problem, network, observed, vectorized), networks, problem.num_samples, None)


def _bytes(problem, width, observed=OBSERVED):
    network = build(problem, width)
    return sum(footprint(problem, network, _program(problem, network, observed), problem.num_samples))


def _train_some(problem, width, networks, observed):
    """Whatever the plan says of it."""
    keys = jax.random.split(jax.random.key(0), networks)
    given = {"observables": list(observed), "rtol": 1e-2, "vectorized": True, "memory": 1e18}
    return _trained(problem, build(problem, width), keys, **given)


def _limit():
    stats = jax.devices()[0].memory_stats()
    return stats["bytes_limit"] if stats else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _used():
    """At most so far, by the device; by this process where the device does not tell."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _widest(report, problem, width, most, observed):
    """[(what, function)]: the largest width, by doubling, that is planned to fit, to be tried; and twice as many."""
    what, planned = " and ".join(observed), 0
    with contextlib.suppress(MemoryError):
        while width <= most:
            _plan(problem, width, 1, observed)
            planned, width = width, 2 * width
    report.row(f"largest width of one network that is planned to fit, {what}", planned)
    tried = (planned, 2 * planned) if planned else (width,)
    return [(f"N = {w}, {what}", partial(_fits, report, problem, w, observed, w == planned)) for w in tried]


def _fits(report, problem, width, observed, planned):
    what, bytes_ = f"N = {width}, {' and '.join(observed)}", _bytes(problem, width, observed) / GIB
    try:
        _train_some(problem, width, 1, observed)
    except Exception as fault:
        if planned or ("RESOURCE_EXHAUSTED" not in str(fault) and not isinstance(fault, MemoryError)):
            raise
        report.row(f"{what}: does not fit, planned", bytes_, "GiB")
    else:
        report.row(f"{what}: fits, planned {bytes_:.3g} GiB, used at most so far", _used() / GIB, "GiB")


# figure -------------------------------------------------------------------------------------------------------------------

PAPER_STEPS = 50 * 391  # epochs of batches of 128 of CIFAR-10's 50 000


def figure(report, size, out):
    """``comparisons.landscape`` with figure 1's settings: sharpness and loss against step, μP above NTP."""
    steps, every = {"tiny": (4, 2), "full": (PAPER_STEPS // 10 // 17 * 17, PAPER_STEPS // 10 // 17)}[size]
    sizes = {"tiny": ["--model", "linear2", "--widths", "4", "8", "--samples", "16", "--observables", "loss"],
             "full": ["--widths", "64", "256", "--samples", "10000", "--curvature-samples", "1000"]}[size]  # fmt: skip
    words = ["comparisons.landscape", *sizes, "--steps", str(steps), "--measure-every", str(every), "--no-limit"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            with report.attempt("landscape"):
                took, _ = command(report, words, Path(folder), False)
                report.row(f"figure 1's rows of {steps} steps", took, "s")
                shutil.copy(Path(folder) / "landscape.png", out / "figure.png")
                for late in json.loads((Path(folder) / "landscape.json").read_text()):
                    said = "values {values}, ratio {ratio:.3g}, exponent {exponent:+.2f} {interval}, {verdict}"
                    found = said.format_map(late)
                    what = f"{late['parametrization']}, late {late['observable']}"
                    report.row(f"    {what} at N = {late['sizes']}", found)
        except OutOfTime:
            done = sorted(path.stem for path in (Path(folder) / "cells").glob("*.nc"))
            report.row("    finished", " ".join(done) or "nothing")
            raise


PARTS = {"card": card, "conv": conv, "main": main, "lanczos": eigenvalues, "checks": checks, "memory": memory, "figure": figure}


# Where no number is a user's, compiling goes first: on a CPU; and without Triton's products, where 59 s were 92 (H200).
FLAGS = {"tiny": quickly.FLAGS} | dict.fromkeys(("checks", "figure"), "--xla_gpu_enable_triton_gemm=false")


def run(name: str, until: float, size: str, out: Path, stream) -> None:
    """One part, its rows to ``stream``.  Raises OutOfTime where something was left out, and what the part raises."""
    os.environ.setdefault("XLA_FLAGS", FLAGS.get(size, FLAGS.get(name, "")))
    PARTS[name](Report(until, stream, size == "tiny"), size, out)
