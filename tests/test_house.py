"""The order of the house: who imports whom, what lies at the top, what never is on disk, which versions are let in."""

import ast
import re
import shutil
import subprocess
import tomllib
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import limits
from finite.data.named import DATA
from limits.activations import ACTIVATIONS
from limits.losses import LOSSES
from limits.models import MODELS, POOLINGS
from limits.optimizers import OPTIMIZERS

HERE = Path(__file__).resolve().parent.parent
ROOMS = ("limits", "finite", "comparisons", "paper_figures")  # each imports only itself and what stands before it
FILES = [path for room in ROOMS for path in sorted((HERE / room).rglob("*.py"))]
PYPROJECT = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))


def named(path):
    """limits/problem.py as limits.problem, limits/__init__.py as limits."""
    parts = path.relative_to(HERE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {named(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(tree):
    """Every module that a file imports, lazily or not; of ``from a import b`` a.b, if that is one of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_the_rooms_before_it(module):
    own = ROOMS.index(module.partition(".")[0])
    later = {*ROOMS[own + 1 :], "tests"}
    assert not later & {name.partition(".")[0] for name in imported(MODULES[module])}


APART = {"limits": ("two_layer", "deep", "kernel"),
         "comparisons": ("convergence", "transfer", "landscape", "coord_check", "audit", "optimum")}  # fmt: skip


@pytest.mark.parametrize(("room", "subject"), [(room, subject) for room in APART for subject in APART[room]])
def test_theories_and_questions_stand_apart(room, subject):
    """Each knows itself and what stands on the floor of the room, never another; what they share goes there."""
    others = tuple(f"{room}.{other}." for other in APART[room] if other != subject)
    own = [module for module in MODULES if module.startswith(f"{room}.{subject}.")]
    assert own
    assert not {module: name for module in own for name in imported(MODULES[module]) if f"{name}.".startswith(others)}


def test_no_question_is_asked_by_what_questions_share():
    questions = tuple(f"comparisons.{question}." for question in APART["comparisons"])
    shared = [module for module in MODULES if module.startswith("comparisons") and not f"{module}.".startswith(questions)]
    assert not {module: name for module in shared for name in imported(MODULES[module]) if f"{name}.".startswith(questions)}


def circle(graph):
    """Modules each of which imports the next, and the last the first; None if there are none such."""
    done, above = set(), []

    def visit(module):
        if module in above:
            return above[above.index(module) :]
        if module in done:
            return None
        above.append(module)
        found = next(filter(None, map(visit, graph[module])), None)
        above.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, graph)), None)


def test_no_circle_of_imports():
    graph = {module: [name for name in imported(tree) if name in MODULES] for module, tree in MODULES.items()}
    assert circle(graph) is None
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]


MOST = 14  # files of a folder, its __init__.py apart: more are not seen at a glance


def test_folders_are_seen_at_a_glance(tracked):
    files = [name for name in tracked if name.startswith(ROOMS) and not name.endswith(("__init__.py", ".md", ".png"))]
    folders = Counter(name.rpartition("/")[0] for name in files)
    assert not {folder: count for folder, count in folders.items() if count > MOST}


def test_decompositions_have_their_guard():
    """Those of a batch may wait for each other for ever: ``limits.machine`` has them one at a time."""
    bare = {f"jnp.linalg.{name}" for name in ("eigh", "eigvalsh", "inv")}
    users = {module for module, tree in MODULES.items()
             for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) in bare}  # fmt: skip
    assert users == {"limits.machine"}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_pickled(module):
    """Configurations and results never hold a Python pickle, and none is ever read."""
    tree = MODULES[module]
    assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve"} & {name.partition(".")[0] for name in imported(tree)}
    keywords = [k for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords]
    assert all(ast.literal_eval(k.value) is False for k in keywords if k.arg == "allow_pickle")


def test_limits_is_ours():
    assert Path(limits.__file__).resolve() == HERE / "limits" / "__init__.py"


@pytest.fixture(scope="module")
def tracked():
    """The paths that git tracks."""
    if not shutil.which("git") or not (HERE / ".git").exists():
        pytest.skip("no git checkout: cannot tell our files from others")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HERE, capture_output=True, check=True, text=True)
    return [name for name in listed.stdout.split("\0") if name]


def test_the_top_level_is_what_it_should_be(tracked):
    top = {name.partition("/")[0] for name in tracked}
    ours = {"pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE",
            "limits", "finite", "comparisons", "tests", "paper_figures"}  # fmt: skip
    assert {name for name in top if not name.startswith(".")} == ours


def test_no_pickle_and_no_lock_file_is_tracked(tracked):
    assert not [name for name in tracked if name.endswith((".pkl", ".pickle", "uv.lock"))]


POWER_OF_A_SIZE = re.compile(r"\b(width|depth|N|L)\b\)?\s*\*\*|sqrt\([^)]*\b(width|depth)\b|\*\*\s*\(?-?(0?\.5|1 ?/ ?2)\b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_powers_of_width_and_depth_have_one_home(path):
    """Only ``limits.exponents.algebra.Power`` makes numbers of them, and ``limits.exponents.parametrization``: γ and ε."""
    code = ast.unparse(_without_strings(ast.parse(path.read_text(encoding="utf-8"))))
    found = [line for line in code.splitlines() if POWER_OF_A_SIZE.search(line)]
    allowed = {"limits/exponents/parametrization.py": 2, "limits/exponents/algebra.py": 2,
               "limits/two_layer/linear.py": 1}  # the degrees of freedom of a chi-square law  # fmt: skip
    assert len(found) <= allowed.get(str(path.relative_to(HERE)), 0), found


def _without_strings(tree):
    """Docstrings and texts speak of powers; code must not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
        elif isinstance(node, ast.JoinedStr):
            node.values = []
    return tree


HOMES = ("limits/activations.py", "limits/exponents/algebra.py", "limits/losses.py", "limits/models.py", "limits/optimizers.py",
         "limits/kernel/analytic.py", "finite/data/named.py", "finite/networks/build.py",
         "finite/training/descent.py")  # fmt: skip
ELSEWHERE = [path for path in FILES if str(path.relative_to(HERE)) not in HOMES]
TABLES = (ACTIVATIONS, DATA, LOSSES, MODELS, OPTIMIZERS, POOLINGS)


def texts(nodes):
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(HERE)))
def test_what_a_row_knows_is_asked_of_the_row(path):
    """No ``== "relu"``, no ``case "adam"`` and no tuple, list or set of names outside the rows' own files."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set().union(*TABLES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            assert not names & texts(ast.walk(node)), ast.unparse(node)
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            assert all(len(texts(node.elts) & set(table)) < 2 for table in TABLES), ast.unparse(node)


def requirements(lines):
    return [Requirement(line) for line in lines if isinstance(line, str)]


DIRECT = requirements(chain(PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"].values()))
PINNED = requirements(PYPROJECT["tool"]["uv"]["constraint-dependencies"])
PYTHONS = [{"python_full_version": f"{v}.0", "python_version": v, "sys_platform": "linux"}
           for v in ("3.11", "3.12", "3.13")]  # fmt: skip


@pytest.mark.parametrize("python", PYTHONS, ids=lambda env: env["python_version"])
@pytest.mark.parametrize("wanted", DIRECT, ids=lambda r: r.name)
def test_each_dependency_is_pinned_once_within_its_range(wanted, python):
    pins = [pin for pin in PINNED if pin.name == wanted.name and (not pin.marker or pin.marker.evaluate(python))]
    (version,) = (specifier for pin in pins for specifier in pin.specifier)
    assert version.operator == "=="
    assert wanted.specifier.contains(version.version)


def test_versions_let_in():
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"
    allowed = {r.name: str(r.specifier) for r in DIRECT}
    assert allowed["jax"] == "<0.13,>=0.10"
    assert allowed["numpy"] == ">=2"
    assert allowed["neural-tangents"] == "==0.6.5"
    assert PYPROJECT["tool"]["uv"]["exclude-dependencies"] == ["tensorflow", "tf2jax"]


def test_pins_have_no_addresses_and_no_tensorflow():
    assert not [pin for pin in PINNED if pin.url]
    assert not {"tensorflow", "tf2jax"} & {pin.name for pin in PINNED}


def test_one_version_everywhere():
    """That of the package is the one that is built, cited and described last."""
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "limits.__version__"}
    assert f"\nversion: {limits.__version__}\n" in (HERE / "CITATION.cff").read_text(encoding="utf-8")
    described = re.findall(r"^## (\S+)", (HERE / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert described[0] == limits.__version__
