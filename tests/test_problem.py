"""Problem and Trajectory: what they accept, and one clear line for what they do not."""

import re
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

import limits
from limits import OBSERVABLES, Problem, Trajectory, minibatches
from limits import theories as limit
from limits.deep import dmft
from limits.deep import infinite_depth as depth
from limits.deep import linear as deep_linear
from limits.exponents.parametrization import factors, gauge, interpolated, laziness, output_exponent, output_multiplier, scaling
from limits.kernel import ntk  # fmt: skip
from limits.losses import LOSSES
from limits.problem import _check_numbers
from limits.trajectory import measured_by_default
from limits.two_layer import linear as linear2
from limits.two_layer import linear_law as fluctuations
from limits.two_layer import meanfield

X, Y = np.ones((4, 3)), np.ones((4, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": np.ones(4)}, "wanted a matrix"),
        ({"inputs": np.ones((0, 3))}, "wanted a matrix"),
        ({"inputs": np.full((4, 3), np.nan)}, "12 values that are not finite"),
        ({"targets": np.ones((5, 2))}, "4 inputs but 5 targets"),
        ({"targets": np.full((4, 2), np.inf)}, "not finite"),
        ({"inputs": np.full((4, 3), -1e200)}, "inputs reach 1e\\+200: their squares are beyond float64"),
        ({"parametrization": "muP"}, "unknown parametrization 'muP'; known: alpha1, depth_mup"),
        ({"parametrization": "base=mup, hidden.rate=1"}, "unknown quantity of hidden 'rate'"),
        ({"parametrization": scaling("mup", "adam")}, "the exponents of mup are for adam, not for sgd"),
        ({"optimizer": "newton"}, "unknown optimizer 'newton'; known: sgd, adam"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum 0.9 must be 0: adam has betas and epsilon"),
        ({"betas": (0.9, 1.0)}, "beta 1 must be at least 0 and below 1"),
        ({"epsilon": 0.0}, "epsilon 0 must be positive"),
        ({"learning_rate": -0.1}, "learning rate -0.1 must be positive"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"richness": 0.0}, "richness 0 must be positive"),
        ({"richness": 1e-160}, "richness 1e-160 must be between 1e-15 and 1e15"),
        ({"num_steps": True}, "num steps True: wanted a whole number"),
        ({"inputs": X + 1j}, "inputs are complex: wanted real numbers"),
        ({"inputs": np.ma.masked_less(X, 0)}, "inputs are masked: wanted real numbers"),
        ({"inputs": "a"}, "inputs: wanted numbers, in a matrix"),
        ({"targets": [[1.0], [1.0, 2.0]]}, "targets: wanted numbers, in a matrix"),
        ({"inputs": [[1.0], [1.0, 2.0]]}, "inputs: wanted numbers, in a matrix"),
        ({"momentum": 1.0}, "momentum 1 must be"),
        ({"weight_decay": -1.0}, "weight decay -1"),
        ({"num_steps": -1}, "number of steps"),
        ({"measure_every": 0}, "measure_every"),
        ({"top_k": 0}, "top_k"),
        ({"augment": True}, "augment: only images are, and linear2 reads vectors"),
        ({"augment": True, "model": "gpt", "inputs": np.ones((4, 4)), "image_shape": (2, 2, 1)}, "and gpt reads tokens"),
        ({"augment": True, "model": "conv", "inputs": np.ones((4, 2))}, "2 inputs are no square image"),
        ({"batches": np.zeros((3, 2), int), "num_steps": 4}, "wanted \\(4, batch size\\)"),
        ({"batches": np.full((4, 2), 4), "num_steps": 4}, "from 0 to 3"),
        ({"batches": np.zeros((4, 2)), "num_steps": 4}, "from 0 to 3"),
    ],
)
def test_problem_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Problem(**({"inputs": X, "targets": Y} | options))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", None, "learning rate None: wanted a number"),
        ("learning_rate", "0.5", "learning rate '0.5': wanted a number"),
        ("num_steps", 2.5, "num steps 2.5: wanted a whole number"),
    ],
)
def test_numbers_are_numbers(name, value, message):
    """Where types are checked at run time, as here, no such problem can be made."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        _check_numbers(SimpleNamespace(**vars(Problem(X, Y)) | {name: value}))


def test_problem_reads():
    problem = Problem(inputs=X.astype(np.float32), targets=np.ones(4), num_steps=7, measure_every=3, momentum=0.5)
    assert problem.targets.shape == (4, 1)
    assert problem.inputs.dtype == np.float64
    assert problem.steps.tolist() == [0, 3, 6]
    assert problem.edge_of_stability == pytest.approx(2 * 1.5 / 0.5)


THEORIES = [
    (linear2, "linear2", "mup"), (deep_linear, "linear3", "mup"), (ntk, "mlp3", "ntp"), (meanfield, "mlp2", "mup"),
    (dmft, "mlp3", "mup"), (depth, "resmlp", "depth_mup"), (fluctuations, "linear2", "mup"),
]  # fmt: skip


@pytest.mark.parametrize(("theory", "model", "param"), THEORIES, ids=lambda given: getattr(given, "__name__", given))
def test_no_limit_with_augmentation(theory, model, param):
    problem = Problem(X, Y, model=model, parametrization=param, image_shape=(3, 1, 1), augment=True)
    asked = [getattr(theory, name) for name in ("solve", "predict") if hasattr(theory, name)]
    for ask in (limit.theory, limit.solve, limit.predict, *asked):
        with pytest.raises(ValueError, match="no limit is known with augmentation"):
            ask(problem)


def test_the_loss_decides_the_rate_of_sp():
    for given in ("sp", "base=sp"):
        problems = [Problem(X, Y / 2, given, model="mlp3", loss=loss) for loss in ("mse", "cross_entropy")]
        rates = [gauge(problem.scaling(), "multiplier")["hidden"].learning_rate.N for problem in problems]
        assert rates == [-1, Fraction(-1, 2)]


def test_no_step_needs_no_sample():
    problem = Problem(X, Y, num_steps=0, batches=minibatches(np.random.default_rng(0), len(X), 2, 0))
    assert problem.batches.shape == (0, 2)


def test_minibatches_go_through_the_samples():
    batches = minibatches(np.random.default_rng(0), num_samples=10, batch_size=3, num_steps=7)
    assert batches.shape == (7, 3)
    for epoch in (batches[:3], batches[3:6]):
        assert len(set(epoch.ravel())) == 9
    assert minibatches(np.random.default_rng(0), 10, 3, 0).shape == (0, 3)
    with pytest.raises(ValueError, match="from 1 to the 10 samples"):
        minibatches(np.random.default_rng(0), 10, 11, 1)


def test_parametrizations():
    """γ and η of the paper's table, and ε = γ/(γ0√N) in between."""
    mup, ntp = scaling("mup"), scaling("ntp")
    assert output_multiplier(mup, 2.0, 100) == pytest.approx(20)
    assert output_multiplier(ntp, 2.0, 100) == 2.0
    for width in (10, 10**6):
        for p in (mup, ntp, interpolated("1/5")):
            gamma = output_multiplier(p, 2.0, width)
            assert laziness(p, width) == pytest.approx(gamma / 2 / np.sqrt(width))
            numbers = factors(p, width, 2, richness=2.0)
            assert {role: n.learning_rate for role, n in numbers.items()} == pytest.approx(dict.fromkeys(numbers, gamma**2))
            assert numbers["readout"].multiplier == pytest.approx(1 / gamma / np.sqrt(width))
            assert numbers["hidden"].multiplier == pytest.approx(1 / np.sqrt(width))
    assert [laziness(p, np.inf) for p in (mup, ntp)] == [1.0, 0.0]
    with pytest.raises(ValueError, match="a limit exists for 0"):
        output_exponent(interpolated(0.6))


def test_exponents_of_a_problem():
    assert Problem(X, Y, "mup").scaling("residual")["block"] == scaling("mup", "sgd", "residual")["block"]
    assert Problem(X, Y, "ntp", "adam").scaling("plain", 3) == scaling("ntp", "adam")
    given = interpolated(0.25)
    assert Problem(X, Y, given).scaling("plain", 7) is given
    with pytest.raises(ValueError, match="are for a plain network, not a residual one"):
        Problem(X, Y, given).scaling("residual")
    with pytest.raises(ValueError, match="depth_mup is about residual blocks"):
        Problem(X, Y, "depth_mup").scaling()


def test_trajectory_reads_by_name():
    values = {"loss": np.array([1.0, np.inf]), "hessian_eigenvalues": np.array([[3.0, 2.0], [4.0, np.nan]])}
    trajectory = Trajectory(np.array([0, 5]), values)
    assert trajectory["sharpness"].tolist() == [3.0, 4.0]
    assert set(trajectory) == {"loss", "hessian_eigenvalues", "sharpness"}
    assert trajectory.diverged.tolist() == [False, True]
    assert (trajectory.error("sharpness") == 0).all()
    with pytest.raises(KeyError, match=r"^no hessian_min here: it was not measured; there are loss, hessian_eig"):
        trajectory["hessian_min"]
    with pytest.raises(KeyError, match=r"^unknown observable 'sharpnes'; known: loss, sharpness, "):
        trajectory["sharpnes"]
    with pytest.raises(ValueError, match="unknown observable 'sharpnes'"):
        Trajectory(np.array([0]), {"sharpnes": np.zeros(1)})
    with pytest.raises(ValueError, match="does not fit"):
        Trajectory(np.array([0]), {"loss": np.zeros(2)})


def test_axes_of_observables():
    axes = {name: observable.axis.name for name, observable in OBSERVABLES.items() if observable.axis}
    ranks = dict.fromkeys(("hessian_eigenvalues", "gauss_newton_eigenvalues", "ntk_eigenvalues"), "rank")
    assert axes == ranks | {"residual_eigenvalues": "edge", "density_nodes": "node", "density_weights": "node"}
    assert {name for name, observable in OBSERVABLES.items() if observable.ranked} == {*ranks, "residual_eigenvalues"}
    assert not {"density_nodes", "density_weights"} & set(measured_by_default())


def test_every_observable_is_described():
    for observable in OBSERVABLES.values():
        assert observable.symbol.startswith("$")
        assert observable.label
        assert observable.definition
    assert all(loss in OBSERVABLES["loss"].definition for loss in LOSSES)


def test_a_problem_and_a_trajectory_are_told_in_a_line():
    batches = np.zeros((4, 2), int)
    problem = Problem(np.ones((6, 3)), np.ones((6, 1)), "ntp", num_steps=4, batches=batches, richness=2.0)
    assert repr(problem) == ("Problem(inputs (6, 3), targets (6, 1), batches (4, 2), parametrization='ntp', richness=2.0, "
                             "num_steps=4)")  # fmt: skip
    assert "parametrization='ntp'" in repr(replace(problem, parametrization=problem.scaling()))
    limit = Trajectory(np.arange(2), {"loss": np.ones(2), "hessian_eigenvalues": np.ones((2, 3))})
    assert repr(limit) == "Trajectory(2 steps: loss (2,), hessian_eigenvalues (2, 3))"


def test_the_package_shows_its_interface():
    shown = [name for name in dir(limits) if not name.startswith("__")]
    assert shown == sorted(limits.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", limits.__version__)
