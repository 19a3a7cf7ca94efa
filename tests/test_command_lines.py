"""Two hundred command lines at random: each is understood, or refused in one line with status 2.

Options and their values are drawn from the fields of the commands' dataclasses, their own types among values that no one
should give.  `--dry-run` goes through all that is checked before anything is computed.
"""

import random
import types
from dataclasses import fields
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from comparisons.convergence import study as convergence
from comparisons.coord_check import study as coord_check
from comparisons.landscape import study as landscape
from comparisons.transfer import study as transfer
from limits.command.arguments import choices

COMMANDS = (convergence, coord_check, landscape, transfer)
SMALL = {"steps": "4", "samples": "8", "seeds": "2"}
HOSTILE = ["0", "-1", "nan", "inf", "1e400", "99999999999999999999", "", " ", "µP", "--", "1,2", "None", "a" * 300]
WORDS = {
    "data": ["gaussian", "digits", "probe", "patches10", "plays", "absent.npz", "absent.txt", "absent/", "~"],
    "model": ["linear2", "linear3", "linear0", "linear", "mlp2", "mlp", "resmlp", "conv", "convnet", "vit", "gpt", "mlp-1"],
    "param": ["mup", "ntp", "sp", "mean_field", "depth_mup", "alpha1", "base=mup", "base=mup, readout.multiplier=-3/4",
              "base=x", "hidden=1", "absent.toml", "="],
    "observables": ["loss", "hessian_eigenvalues", "sharpness", "gradient_noise"],
    "cluster": ["slurm", "absent.json", "tcp://127.0.0.1:1"],
}  # fmt: skip


def values(rng, kind, name):
    """The words behind an option of this type."""
    if rng.random() < 0.15:
        return [rng.choice(HOSTILE)]
    kind = choices(kind)
    origin = get_origin(kind)
    if origin is Annotated:
        return values(rng, get_args(kind)[0], name)
    if origin is Literal:
        return [str(rng.choice(get_args(kind)))]
    if origin in (Union, types.UnionType):
        return values(rng, rng.choice(get_args(kind)), name)
    if origin is tuple:
        return [word for _ in range(rng.randrange(4)) for word in values(rng, get_args(kind)[0], name)]
    if kind is int:
        return [str(rng.choice([1, 2, 3, 4, 8, 16, 0, -3]))]
    if kind is float:
        return [repr(rng.choice([0.1, 0.5, 1.0, 7.0, 0.0, -1.0, 1e-300, 1e300]))]
    if kind is type(None):
        return ["None"]
    return [rng.choice(WORDS.get(name, ["x", "a b", "é"]))]


def command_line(rng, module, out):
    hints = get_type_hints(module.Options, include_extras=True)
    own = {field.name: hints[field.name] for field in fields(module.Options) if field.name not in ("out", "dry_run")}
    words = ["--dry-run", "--out", str(out)]
    for name, value in SMALL.items():
        words += [f"--{name}", value]
    for name in rng.sample(sorted(own), rng.randrange(1, 6)):
        option = name.replace("_", "-")
        given = [f"--{option}", *values(rng, own[name], name)]
        words += [rng.choice([f"--{option}", f"--no-{option}"])] if own[name] is bool else given
    return words


def ended(module, words):
    """The status with which the command ends; any other exception goes through."""
    try:
        module.main(words)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))])
@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_five_command_lines(module, seed, tmp_path, capsys):
    rng = random.Random(f"{module.__name__} {seed}")
    for number in range(5):
        words = command_line(rng, module, tmp_path / str(number))
        status, complaint = ended(module, words), capsys.readouterr().err
        assert status in (0, 2), words
        assert not status or (complaint.startswith(f"{module.PROGRAM}: ") and complaint.count("\n") == 1), (words, complaint)
        assert not (tmp_path / str(number)).exists(), words
