"""The folders: who is imported as what, from where, and in which direction."""

import ast
import os
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
ROOMS = "kernels grading demo metrics prediction data attention engines scoring evaluation exporting".split()
ROOMS += "trainer report cli".split()
"""From low to high: a room imports only rooms before it."""
MODULES = {
    ".".join(("hardsample", *within, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for folder, within in (
        (REPO / "hardsample", ()),
        (REPO / "kernels", ("kernels",)),
        (REPO / "trainer", ("trainer",)),
    )
    for path in folder.rglob("*.py")
}
MOST_MODULES, MOST_LEVELS = 12, 8


def python(code: str, *search: Path, cwd: Path = REPO) -> str:
    """Run `code` as a user would who stands in `cwd` (so '' is first on sys.path) and return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, search))}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported(name: str) -> tuple[set[str], set[str]]:
    """Modules of ours that a module imports: at its top, and anywhere in it."""
    top, anywhere = set(), set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, at_top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = f"{package}.{child.module or ''}".rstrip(".") if child.level else child.module or ""
                names = [full if (full := f"{base}.{alias.name}") in MODULES else base for alias in child.names]
            for found in names:
                if found in MODULES and found != name:
                    anywhere.add(found)
                    if at_top:
                        top.add(found)
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            checked = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            visit(child, at_top and not lazy and not checked)

    visit(ast.parse(MODULES[name].read_text()), True)
    return top, anywhere


def room(name: str) -> str | None:
    """The room of a module; None for what lies beside the rooms."""
    second = name.split(".")[1:2]
    return second[0] if second and second[0] in ROOMS else None


def test_a_real_package_named_kernels_stays_importable_from_the_repository_root(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("real = True\n")
    code = (
        "import importlib.util, kernels\n"
        "print(kernels.real, importlib.util.find_spec('hardsample.kernels.reference').origin)"
    )
    assert python(code, tmp_path) == f"True {REPO / 'kernels' / 'reference.py'}"


def test_a_checkout_on_the_path_has_its_own_kernels_and_trainer_and_nothing_else_of_the_repository(tmp_path):
    checkout = tmp_path / "checkout"
    for folder in ("kernels", "trainer", "hardsample", "tests"):
        (checkout / folder).mkdir(parents=True)
    for name in ("hardsample/__init__.py", "trainer/__init__.py", "kernels/keys.py"):
        (checkout / name).write_bytes((REPO / name).read_bytes())
    (checkout / "setup.py").write_text("raise AssertionError\n")
    code = (
        "import hardsample.kernels.keys, hardsample.trainer\n"
        "from importlib.util import find_spec\n"
        "print(hardsample.kernels.keys.__file__, hardsample.trainer.__file__)\n"
        "print([find_spec('hardsample.' + name) for name in ('setup', 'tests', 'bench')])"
    )
    found = python(code, checkout, cwd=tmp_path).splitlines()
    assert found == [f"{checkout}/kernels/keys.py {checkout}/trainer/__init__.py", "[None, None, None]"]


def test_transformers_imports_from_the_repository_root():
    code = (
        "from transformers import AutoModelForImageTextToText\n"
        "from transformers.integrations.hub_kernels import LayerRepository\n"
        "print(AutoModelForImageTextToText.__name__)"
    )
    assert python(code) == "AutoModelForImageTextToText"


def test_importing_hardsample_imports_nothing_heavy():
    heavy = {"torch", "transformers", "numpy", "scipy", "datasets"}
    code = f"import sys, hardsample; print(sorted({heavy} & set(sys.modules)))"
    assert python(code) == "[]"


def test_hardsample_offers_what_a_script_needs():
    code = (
        "import hardsample\n"
        "print(all(callable(getattr(hardsample, name)) and name in dir(hardsample) for name in hardsample.__all__))\n"
        "print(hardsample.no_such_name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == "True"
    assert "AttributeError: module 'hardsample' has no attribute 'no_such_name'" in done.stderr


def test_kernels_has_no_init_and_trainer_has_one():
    assert not (REPO / "kernels" / "__init__.py").exists()
    assert not list((REPO / "tests").rglob("__init__.py"))
    assert (REPO / "trainer" / "__init__.py").exists()


def test_every_folder_of_modules_is_packaged():
    folders = {path.parent.relative_to(REPO) for path in (REPO / "hardsample").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders} | {"hardsample.kernels"}
    found |= {
        ".".join(("hardsample", *path.parent.relative_to(REPO).parts)) for path in (REPO / "trainer").rglob("*.py")
    }
    assert found == set(PACKAGES), "name each folder of modules in pyproject.toml, [tool.setuptools] packages"


def test_a_folder_holds_at_most_a_dozen_modules():
    sizes = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_MODULES} == {}


def test_every_room_has_its_sentence():
    missing = [
        name
        for name, path in MODULES.items()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert missing == []


def test_rooms_import_downwards_on_few_levels():
    below = defaultdict(set)
    for name in MODULES:
        for other in imported(name)[1]:
            if room(name) and room(other) and room(name) != room(other):
                below[room(name)].add(room(other))
    climbs = {(high, low) for low in below for high in below[low] if ROOMS.index(high) > ROOMS.index(low)}
    assert climbs == set()
    levels: dict[str, int] = {}
    for name in ROOMS:
        levels[name] = 1 + max((levels[low] for low in below[name]), default=0)
    assert max(levels.values()) <= MOST_LEVELS, levels


def test_no_import_circle():
    edges = {name: imported(name)[0] for name in MODULES}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for other in edges[name]:
                walk(other, (*path, name))
            done.add(name)

    for name in MODULES:
        walk(name, ())


def ruff(*arguments: str, source: str | None = None) -> str:
    """What ruff, with the repository's own settings, says about imports; empty if it is content."""
    pytest.importorskip("ruff", reason="the layer rule is ruff's, and ruff is not installed")
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--select=TID",
        "--output-format=concise",
        "--quiet",
    ]
    done = subprocess.run([*command, *arguments], cwd=REPO, input=source, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


FORBIDDEN = [
    ("kernels/example.py", "from hardsample.metrics.pism import verdict\n"),
    ("kernels/example.py", "from hardsample import metrics\n"),
    ("kernels/example.py", "import hardsample.trainer\n"),
    ("kernels/example.py", "from ..metrics.pism import verdict\n"),
    ("kernels/example.py", "def late():\n    import hardsample.data\n"),
    ("hardsample/example.py", "import hardsample.trainer.grpo\n"),
    ("hardsample/example.py", "from hardsample.scoring import score\n"),
    ("hardsample/cli/example.py", "from hardsample.trainer import config\n"),
    ("hardsample/cli/example.py", "import torch\n"),
    ("trainer/selection/example.py", "from hardsample.report import page\n"),
]
FORBIDDEN += [
    (f"{'' if low == 'trainer' else 'hardsample/'}{low}/example.py", source)
    for place, low in enumerate(ROOMS)
    for high in ROOMS[place + 1 :]
    if low != "kernels"
    for source in (f"from hardsample.{high} import x\n", f"def late():\n    import hardsample.{high}.x\n")
]
ALLOWED = [
    ("kernels/example.py", "import torch\nfrom .reference import mask\nfrom . import native\n"),
    ("hardsample/engines/example.py", "from hardsample.kernels.reference import mask\nfrom hardsample import data\n"),
    ("hardsample/cli/example.py", "def train():\n    from hardsample.trainer import config\n"),
    ("trainer/example.py", "from hardsample import data\nfrom hardsample.kernels import ops\n"),
    ("trainer/selection/example.py", "from hardsample.metrics import beta\n"),
]


@pytest.mark.parametrize(("path", "source"), FORBIDDEN)
def test_an_import_that_runs_upwards_is_refused(path, source):
    assert "TID25" in ruff(f"--stdin-filename={path}", "-", source=source)


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_an_import_that_runs_downwards_is_fine(path, source):
    assert ruff(f"--stdin-filename={path}", "-", source=source) == ""


def test_no_import_in_the_repository_runs_upwards():
    assert ruff("kernels", "hardsample", "trainer") == ""
