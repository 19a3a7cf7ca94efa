"""How a command ends: after a mistake, an interruption, on a full disk, without its reader, without a device."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

import limits
from comparisons import command_line, files, results
from comparisons.convergence import study as convergence
from comparisons.coord_check import study as coord_check
from comparisons.landscape import study as landscape
from comparisons.optimum import study as optimum
from comparisons.transfer import study as transfer
from limits.exponents import tables as exponent_tables

ROOT = Path(__file__).resolve().parent.parent
MAINS = [module.main for module in (convergence, coord_check, landscape, transfer, optimum, exponent_tables)]


@dataclass(frozen=True)
class Options:
    """A command."""

    widths: int = 3


def ended(command, *arguments):
    """The status with which the command ends."""
    with pytest.raises(SystemExit) as end:
        command_line.run(Options, command, "prog", arguments)
    return end.value.code


def raising(fault):
    def command(options):
        raise fault

    return command


@pytest.mark.parametrize("main", MAINS)
def test_every_command_says_its_version(main, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"superconsistency {limits.__version__}\n"


@pytest.mark.parametrize("main", MAINS)
def test_help_says_the_default_that_adapts_in_words(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "default: None" not in told
    assert "default: )" not in told  # of an empty list


@pytest.mark.parametrize("main", MAINS)
def test_an_unknown_option_says_what_is_near(main, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--los", "mse"])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert ": did you mean --loss?; see python -m " in line
    with pytest.raises(SystemExit):
        main(["--bogus", "3"])  # near is what has the letters, not only the dashes
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "words", "line"),
    [
        (convergence.main, ["--steps", "1e3"], "--steps 1e3: wanted an integer"),
        (convergence.main, ["--richness", "x"], "--richness x: wanted a number"),
        (convergence.main, ["--batch-size", "many"], "--batch-size 'many': wanted what --help says"),
        (convergence.main, ["--widths", "8", "1.5"], "--widths '8', '1.5': wanted what --help says"),
        (convergence.main, ["--data", ""], "unknown data ''; known: gaussian"),
    ],
)
def test_a_value_that_cannot_be_is_named(main, words, line, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"{convergence.PROGRAM}: {line}")


def test_a_device_is_looked_for_first(monkeypatch, capsys):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    results.provenance.cache_clear()
    assert ended(raising(AssertionError())) == 2
    assert capsys.readouterr().err.startswith("prog: JAX finds no device with JAX_PLATFORMS=cuda")


def test_an_option_that_nothing_is_near(capsys):
    assert ended(raising(None), "--zzz") == 2
    assert capsys.readouterr().err == "prog: Unrecognized options: --zzz; see prog --help\n"


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (ValueError("no\nsense"), "no sense"),
        (MemoryError(), "MemoryError"),
        (ImportError("this needs X: pip install X"), "this needs X: pip install X"),
        (FileNotFoundError(2, "No such file", "a.npz"), "a.npz: No such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_mistake_is_one_line(fault, line, capsys):
    assert ended(raising(fault)) == 2
    assert capsys.readouterr().err == f"prog: {line}\n"


def test_after_a_full_disk_nothing_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(command_line.os, "_exit", lambda status: sys.exit(f"at once: {status}"))
    assert ended(raising(files.Unwritten("a.nc: cannot be written: No space left on device"))) == "at once: 2"
    assert capsys.readouterr().err == "prog: a.nc: cannot be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_results_are_printed_into_a_full_disk(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert ended(lambda options: print("a table")) == 2
    assert capsys.readouterr().err == "prog: No space left on device\n"


def test_a_reader_that_has_read_enough(monkeypatch, capsys):
    read = subprocess.Popen(["true"], stdin=subprocess.PIPE, text=True)
    read.wait()
    with read.stdin:
        monkeypatch.setattr(sys, "stdout", read.stdin)
        command_line.run(Options, lambda options: print("a table"), "prog", [])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'")])
def test_without_a_device_nothing_is_written(fault, tmp_path, monkeypatch):
    def devices():
        raise fault

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    results.provenance.cache_clear()
    with pytest.raises(files.Refused, match="JAX finds no device with JAX_PLATFORMS=cuda"):
        results.claim(tmp_path / "run", {}).__enter__()
    assert not (tmp_path / "run").exists()


def test_signals_are_as_they_were_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    command_line.run(Options, lambda options: None, "prog", [])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    woken = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(woken)
    assert woken == -1


ENDLESS = """
from dataclasses import make_dataclass

import jax
from comparisons import command_line

command_line.PATIENCE = 0.5
forever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x > 0, lambda x: x + 1 - x, x)).lower(1.0).compile()

def command(options):
    print("running", flush=True)
    forever(1.0).block_until_ready()

command_line.run(make_dataclass("Options", [("widths", int, 3)]), command, "prog", [])
"""


def test_a_computation_that_never_ends_is_ended():
    """In one call of XLA, during which Python's own handlers of signals do not run."""
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout.readline() == "running\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1] == "prog: interrupted; the same command goes on from here\n"
        assert process.returncode == 128 + signal.SIGTERM
    finally:
        process.kill()
