"""The first moments of a command and what surrounds it: each a process of its own, in which JAX is a harmful
stand-in (of `limits.exponents`, SymPy).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreground import FOREGROUND

import limits.command.start  # noqa: F401  (registers how to spell)

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("limits.exponents", "comparisons.convergence", "comparisons.coord_check", "comparisons.landscape",
            "comparisons.transfer", "comparisons.audit", "comparisons.optimum", "paper_figures.figure_1_1")  # fmt: skip
HEAVY = {"jax", "jaxlib", "scipy", "sympy", "pandas", "xarray", "matplotlib", "h5py", "optax", "diffrax"}
MODULES = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
finally:
    print(*sys.modules)
"""


def start(module, folder, harm, **environment):
    """`python -m module` where `import jax`, or of the derivation `import sympy`, does that."""
    victim = folder / ("sympy" if module == COMMANDS[0] else "jax")
    victim.mkdir()
    (victim / "__init__.py").write_text(harm)
    return python(module, folder, **environment)


def python(module, folder, **environment):
    """`python -m module` in which the folder's modules come first."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **environment}
    words = [sys.executable, "-c", FOREGROUND, "-m", module]
    return subprocess.run(words, cwd=folder, env=found, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("module", "number"), [*((module, 2) for module in COMMANDS), (COMMANDS[0], 15)])
def test_interrupted_while_it_imports(module, number, tmp_path):
    done = start(module, tmp_path, f"import os; os.kill(os.getpid(), {number})")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"python -m {module}: interrupted\n")


@pytest.mark.parametrize("module", COMMANDS)
def test_a_setting_that_a_library_refuses(module, tmp_path):
    done = start(module, tmp_path, "raise ValueError('invalid truth value')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"python -m {module}: invalid truth value\n")


def test_a_reader_that_has_read_enough(tmp_path):
    done = start(COMMANDS[0], tmp_path, "raise BrokenPipeError(32, 'Broken pipe')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("words", ["--help", "--los mse"], ids=["help", "mistyped"])
@pytest.mark.parametrize("module", [*COMMANDS, "comparisons landscape"])
def test_options_are_read_before_what_takes_seconds_is_imported(module, words):
    command = [sys.executable, "-c", MODULES, *module.split(), *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, words.split()[0] in done.stdout + done.stderr) == (0 if words == "--help" else 2, True)
    imported = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert {"limits", "tyro"} <= imported
    assert not HEAVY & imported


def test_of_limits_that_is_imported_what_is_used():
    code = ("import limits, sys; assert 'predict' in dir(limits); limits.Problem; light = set(sys.modules); limits.solve; "
            "print(*({'jax', 'scipy', 'sympy', 'diffrax'} & light), 'jax' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_our_own_faults_keep_their_traceback(tmp_path):
    done = start(COMMANDS[0], tmp_path, "1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_terminal_that_knows_no_greek(tmp_path):
    done = start(COMMANDS[0], tmp_path, "print('η0 × γ²'); raise SystemExit", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "eta0 x gamma2\n", "")


def test_spelling():
    assert "μP: N^(−1/2), Δ é ✗ 漢".encode("ascii", "spelled") == b"muP: N^(-1/2), delta e no ?"
    assert "µ² × η".encode("latin-1", "spelled") == "µ² × eta".encode("latin-1")


def test_no_screen_is_asked_for(tmp_path):
    harm = "import matplotlib.backends, os; print(os.environ.get('MPLBACKEND')); raise SystemExit"
    assert start(COMMANDS[1], tmp_path, harm, MPLBACKEND="nonsense").stdout == "None\n"


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("others", ["def hit(): ...", None], ids=["another", "removed"])
def test_another_distribution_is_in_the_place_of_limits(module, others, tmp_path):
    (tmp_path / "limits").mkdir()
    for room in ("finite", "comparisons", "paper_figures", "limits/exponents", "limits/command", "limits/rows.py"):
        (tmp_path / room).symlink_to(ROOT / room)
    if others:
        (tmp_path / "limits" / "__init__.py").write_text(others)
    found = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-m", module], cwd=tmp_path, env=found, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "`limits` is another distribution's here" in done.stderr
    if module != "limits.exponents":  # which is where the other one's file should be
        assert f" ({tmp_path / 'limits' / '__init__.py' if others else 'removed'})" in done.stderr
    assert "pip uninstall limits" in done.stderr
    assert "pip install --force-reinstall" in done.stderr
