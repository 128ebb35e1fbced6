"""The folders: who is imported as what, from where, and in which direction."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def python(code: str, *search: Path, cwd: Path = REPO) -> str:
    """Run `code` as a user would who stands in `cwd` (so '' is first on sys.path) and return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, search))}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_real_package_named_kernels_stays_importable_from_the_repository_root(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("real = True\n")
    code = (
        "import importlib.util, kernels\n"
        "print(kernels.real, importlib.util.find_spec('hardsample.kernels.reference').origin)"
    )
    assert python(code, tmp_path) == f"True {REPO / 'kernels' / 'reference.py'}"


def test_transformers_imports_from_the_repository_root():
    code = (
        "from transformers import AutoModelForImageTextToText\n"
        "from transformers.integrations.hub_kernels import LayerRepository\n"
        "print(AutoModelForImageTextToText.__name__)"
    )
    assert python(code) == "AutoModelForImageTextToText"


def test_importing_hardsample_imports_nothing_heavy():
    code = "import sys, hardsample; print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    assert python(code) == "[]"


def test_kernels_has_no_init_and_trainer_has_one():
    assert not (REPO / "kernels" / "__init__.py").exists()
    assert not (REPO / "tests" / "__init__.py").exists()
    assert (REPO / "trainer" / "__init__.py").exists()


def test_every_folder_of_modules_is_packaged():
    folders = {path.parent.relative_to(REPO) for path in (REPO / "hardsample").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders} | {"hardsample.kernels", "hardsample.trainer"}
    assert found == set(PACKAGES), "name each folder of modules in pyproject.toml, [tool.setuptools] packages"


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
    ("kernels/example.py", "from hardsample.pism import verdict\n"),
    ("kernels/example.py", "from hardsample import pism\n"),
    ("kernels/example.py", "import hardsample.trainer\n"),
    ("kernels/example.py", "from ..pism import verdict\n"),
    ("kernels/example.py", "def late():\n    import hardsample.data\n"),
    ("hardsample/example.py", "import hardsample.trainer.grpo\n"),
    ("hardsample/example.py", "from hardsample import trainer\n"),
    ("hardsample/example.py", "from .trainer import config\n"),
    ("hardsample/engines/example.py", "from hardsample.trainer import config\n"),
    ("hardsample/example.py", "def late():\n    from hardsample.trainer import config\n"),
    ("hardsample/cli.py", "from hardsample.trainer import config\n"),
    ("hardsample/cli_training.py", "from hardsample.trainer import config\n"),
]
ALLOWED = [
    ("kernels/example.py", "import torch\nfrom .reference import mask\nfrom . import native\n"),
    ("hardsample/example.py", "from hardsample.kernels.reference import mask\nfrom hardsample import pism\n"),
    ("hardsample/cli.py", "def train():\n    from hardsample.trainer import config\n"),
    ("hardsample/cli_training.py", "def train():\n    from hardsample.trainer import config\n"),
    ("trainer/example.py", "from hardsample import data\nfrom hardsample.kernels import ops\n"),
]


@pytest.mark.parametrize(("path", "source"), FORBIDDEN)
def test_an_import_that_runs_upwards_is_refused(path, source):
    assert "TID25" in ruff(f"--stdin-filename={path}", "-", source=source)


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_an_import_that_runs_downwards_is_fine(path, source):
    assert ruff(f"--stdin-filename={path}", "-", source=source) == ""


def test_no_import_in_the_repository_runs_upwards():
    assert ruff("kernels", "hardsample", "trainer") == ""
