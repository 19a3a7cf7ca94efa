"""What a job takes: the count of its work and its memory against what XLA says of the compiled programs; no seconds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comparisons import estimate
from comparisons.convergence import study as convergence
from comparisons.coord_check import study as coord_check
from comparisons.landscape import study as landscape
from comparisons.transfer import study as transfer
from finite.curvature import operators as curvature
from finite.curvature.observers import OBSERVERS, Observer
from finite.networks.build import build
from limits import Problem, machine, theories
from limits.machine import two_digits
from limits.trajectory import OBSERVABLES, Observable

P, COMMANDS = 64, {
    "convergence": (convergence, ["--widths", "8", "16", "32"], "8 cells"),
    "landscape": (landscape, ["--model", "mlp2", "--data", "digits", "--widths", "8", "16"], "5 cells"),  # no limit in μP
    "transfer": (transfer, ["--widths", "8", "16", "--seeds", "3"], "178 cells"),  # 4 sizes × (14 rates × 3 + 2 followed) + 2
    "coord_check": (coord_check, ["--widths", "8", "16", "32", "--optimizer", "sgd"], "3 cells"),
}  # fmt: skip


def network_of(model, inputs, width, **options):
    problem = Problem(np.ones((P, inputs)), np.eye(2)[np.arange(P) % 2], model=model, num_steps=10, measure_every=5, **options)
    return problem, build(problem, width)


def compiled(function, *arguments):
    """The program for arguments of these shapes."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), arguments)
    return jax.jit(function).lower(*shapes).compile()


def test_a_perceptron_costs_its_weights_twice():
    _, network = network_of("mlp3", 10, 32)
    assert estimate.forward_pass(network.architecture, 10).products == 2 * (10 * 32 + 32 * 32 + 32 * 2)


def test_blocks_that_are_one_loop_count_each():
    one, three = (network_of("resmlp", 10, 32, depth=depth)[1].architecture for depth in (1, 3))
    more = estimate.forward_pass(three, 10).products - estimate.forward_pass(one, 10).products
    assert more == 2 * 2 * 32 * 32


@pytest.mark.parametrize(("model", "inputs", "width"), [("mlp3", 128, 256), ("conv", 64, 16)])
def test_gradients_and_products_are_what_xla_counts(model, inputs, width):
    """Within a factor of 1.7: the first layer has no gradient in its inputs, and XLA leaves out what a frame of zeros adds."""
    problem, network = network_of(model, inputs, width)
    apply, weights = network.architecture.apply, jax.eval_shape(network.architecture.init, jax.random.key(0))
    forward = P * estimate.forward_pass(network.architecture, inputs).products

    def gradient(w, x, y):
        return jax.grad(lambda w: curvature.loss(apply, w, x, y))(w)

    def product(w, v, x, y):
        return curvature.hessian(apply, w, x, y)(v)

    data = problem.inputs, problem.targets
    for times, program in ((estimate.GRADIENT, compiled(gradient, weights, *data)),
                           (estimate.GRADIENT + estimate.PRODUCT, compiled(product, weights, weights, *data))):  # fmt: skip
        assert 1 / 1.7 < times * forward / program.cost_analysis()["flops"] < 1.7


def test_the_memory_of_a_full_batch_is_what_xla_allocates():
    """Within a factor of three: P rows of every layer, there and back."""
    problem = Problem(np.ones((2000, 64)), np.ones((2000, 1)), model="mlp3", num_steps=1)
    network = build(problem, 256)
    apply, weights = network.architecture.apply, jax.eval_shape(network.architecture.init, jax.random.key(0))
    program = compiled(jax.grad(lambda w, x, y: curvature.loss(apply, w, x, y)), weights, problem.inputs, problem.targets)
    taken = program.memory_analysis().temp_size_in_bytes
    assert taken / 3 < estimate.bytes_of(estimate.Networks(problem, 256, 1)) < 3 * taken + 12 * problem.inputs.size


def test_the_whole_is_its_parts():
    """Steps, measurements, networks and cells add up."""
    problem, _ = network_of("mlp3", 10, 8)
    plain = estimate.of_one(estimate.Networks(problem, 8, 1))
    assert plain.calls == 10  # one gradient a step
    curved = estimate.of_one(estimate.Networks(problem, 8, 1, ("loss", "hessian_eigenvalues")))
    assert curved.calls - plain.calls == 3 * estimate.PRODUCTS  # one Lanczos run at each of three measurements
    once, twice = (estimate.estimated([estimate.Networks(problem, 8, 1)] * n) for n in (1, 2))
    assert (once.cells, twice.cells, once.bytes) == (1, 2, twice.bytes)
    assert once.seconds < twice.seconds
    assert estimate.estimated([], parts=2) == estimate.Estimate(2, 2 * estimate.COMPILING, 0)


def test_an_observer_that_is_added_is_counted(monkeypatch):
    """By what its row says: here seven products at each of three measurements."""
    problem, _ = network_of("mlp3", 10, 8)
    monkeypatch.setitem(OBSERVABLES, "norms", Observable("norms", "", "", "", in_limits=False))
    row = Observer("norms", ("norms",), lambda at: iter(()), products=lambda program, network: 7)
    monkeypatch.setitem(OBSERVERS, "norms", row)
    plain, more = (estimate.of_one(estimate.Networks(problem, 8, 1, names)) for names in (("loss",), ("loss", "norms")))
    assert more.calls - plain.calls == 3 * 7


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_says_what_the_job_takes_and_writes_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module, arguments, cells = COMMANDS[command]
    module.main([*arguments, "--dry-run"])
    said = capsys.readouterr()
    takes, *others = said.out.splitlines()
    assert takes.startswith(f"{cells}, about ")
    assert takes.endswith(" GiB")
    assert others == [line for line in others if command == "landscape" and line.startswith("no limit is drawn ")]
    assert said.err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("threshold", ["LONG", "LARGE"])
def test_a_long_or_large_job_says_so_first(threshold, monkeypatch, capsys):
    problem, _ = network_of("mlp3", 10, 8)
    takes = estimate.estimated([estimate.Networks(problem, 8, 1)])
    estimate.warn(takes, "program")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(estimate, threshold, 0.0)
    estimate.warn(takes, "program")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("program: 1 cell, about ")
    assert said.err.count("\n") == 1


def test_workers_share_a_machine_or_have_one_each():
    """Here what is compiled and what is small is spread, each worker has its own networks; elsewhere all is spread."""
    problem, _ = network_of("mlp3", 10, 2048)
    job = [estimate.Networks(problem, width, 1) for width in (1024, 2048)]
    alone, here, apart = (estimate.estimated(job, *more) for more in ((), (2,), (2, True)))
    assert (alone.cells, here.cells, apart.cells) == (2, 2, 2)
    assert alone.seconds / 2 < here.seconds < alone.seconds
    assert apart.seconds == pytest.approx(alone.seconds / 2)
    assert (here.bytes, apart.bytes) == (2 * alone.bytes, alone.bytes)
    assert estimate.estimated(job[:1], 8) == estimate.estimated(job[:1])  # one cell has one worker
    assert estimate.estimated([], 2) == estimate.Estimate(0, 0, 0)


def test_numbers_have_two_digits_and_no_power_of_ten():
    assert [two_digits(value) for value in (0.0123, 1.26, 61234.0, 0.0)] == ["0.012", "1.3", "61 000", "0"]


def test_limits_that_are_sampled_are_counted_and_others_are_not():
    sampled, exact = (estimate.Limit(network_of(model, 10, 8)[0]) for model in ("mlp3", "linear2"))
    assert estimate.estimated([exact]).bytes == 0
    longer = replace(sampled, problem=replace(sampled.problem, num_steps=1000))
    assert 2**20 < estimate.bytes_of(sampled) < estimate.bytes_of(longer)
    assert 0 < estimate.of_one(sampled).products < estimate.of_one(longer).products
    minutes = theories.work(longer.problem)[0] / machine.RATE / 60  # as refusals have it
    assert estimate.seconds(estimate.of_one(longer)) / 60 == pytest.approx(minutes)
