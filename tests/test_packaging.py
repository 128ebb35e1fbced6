"""What the built packages hold, with a compiler and without one. Nothing here needs a network."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
IGNORED = [line.rstrip("/") for line in (REPO / ".gitignore").read_text().splitlines() if line and line[0] != "#"]
SOURCES = {"hardsample": "hardsample", "hardsample/kernels": "kernels", "hardsample/trainer": "trainer"}
NO_COMPILER = {"CXX": "no-such-compiler", "NVCC": "no-such-compiler"}
LIBRARY = """
#include <omp.h>
extern "C" __attribute__((visibility("default"))) int answer() { return omp_get_max_threads() > 0 ? 42 : 0; }
"""

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or platform.system() != "Linux" or platform.machine() != "x86_64",
    reason="libhardsample is built by g++ on Linux x86-64, and this is something else",
)


def checkout(folder: Path) -> Path:
    """A copy of the repository as it is committed, so that no test builds in the user's own."""
    return Path(shutil.copytree(REPO, folder / "checkout", ignore=shutil.ignore_patterns(".git", *IGNORED)))


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name != "HARDSAMPLE_REQUIRE_NATIVE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=base | environment, capture_output=True, text=True)


def built(done: subprocess.CompletedProcess[str], folder: Path, pattern: str) -> Path:
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def dist(made_once) -> Path:
    """A source archive, and a wheel made from it without a compiler."""
    pytest.importorskip("build", reason="'build' makes the packages, and is not installed")

    def build(folder: Path) -> None:
        done = run("-m", "build", "--no-isolation", "--outdir", str(folder), cwd=checkout(folder), **NO_COMPILER)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "hardsample: leaving out libhardsample" in done.stdout + done.stderr

    return made_once("dist", build)


def test_the_wheel_holds_every_module_and_the_data_of_demo_and_report(dist):
    (wheel,) = dist.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"hardsample/py.typed"}
    for package, source in SOURCES.items():
        expected |= {f"{package}/{path.relative_to(REPO / source)}" for path in (REPO / source).rglob("*.py")}
    folders = (REPO / "hardsample" / name for name in ("demo", "report"))
    data = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    data = (path for path in data if path.suffix not in (".pyc", ".toml"))
    expected |= {str(path.relative_to(REPO)) for path in data}
    assert {"hardsample/kernels/reference.py", "hardsample/trainer/__init__.py"} <= expected
    assert names == expected


def test_the_wheel_is_found_without_the_repository(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import importlib.util, hardsample, hardsample.trainer\n"
        "print(list(hardsample.__path__), importlib.util.find_spec('hardsample.kernels.reference').origin)"
    )
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    package = tmp_path / "site" / "hardsample"
    assert done.stdout.strip() == f"{[str(package)]} {package / 'kernels' / 'reference.py'}"


def test_the_source_archive_can_build_and_test_itself(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    needed = [
        "setup.py",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "hardsample/ruff.toml",
        "trainer/ruff.toml",
        "tests/test_packaging.py",
    ]
    sources = [str(path.relative_to(REPO)) for path in (REPO / "csrc").glob("*.*") if path.suffix != ".so"]
    assert {*needed, *sources} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_what_was_installed_without_a_compiler_runs_on_the_reference(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import torch\n"
        "from hardsample.kernels import ops\n"
        "masked = ops.mask_pixels(torch.ones(8, 8, 3, dtype=torch.uint8), [1.0], [0], [(0, 0)])\n"
        "q, kinds = torch.ones(1, 2, 4, 8), torch.tensor([[1, 1, 2, 0]], dtype=torch.int8)\n"
        "image = ops.attention_with_mass(q, q, q, kinds).image\n"
        "print(ops.chosen(q), masked.sum().item(), image.mul(100).round().tolist())\n"
    )
    done = run("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    chosen = "{'mask_pixels': 'reference', 'attention_with_mass': 'sdpa+reference'}"
    assert done.stdout.strip() == f"{chosen} 0 [[50.0, 50.0, 50.0, 50.0]]"


@needs_compiler
def test_a_native_library_lands_beside_native_py(tmp_path):
    pytest.importorskip("build", reason="'build' makes the packages, and is not installed")
    source = checkout(tmp_path)
    shutil.rmtree(source / "csrc", ignore_errors=True)
    (source / "csrc").mkdir()
    (source / "csrc" / "tiny.cpp").write_text(LIBRARY)

    done = run("setup.py", "--quiet", "build_ext", "--inplace", cwd=source, NVCC="no-such-compiler")
    inplace = built(done, source / "kernels", "*.so")
    assert inplace.name == "libhardsample.so"
    assert ctypes.CDLL(str(inplace)).answer() == 42

    done = run("-m", "build", "--no-isolation", "--wheel", cwd=source, NVCC="no-such-compiler")
    wheel = built(done, source / "dist", "*.whl")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    library = zipfile.ZipFile(wheel).extract("hardsample/kernels/libhardsample.so", tmp_path)
    assert ctypes.CDLL(library).answer() == 42


def test_a_missing_compiler_is_an_error_only_where_native_code_is_required(tmp_path):
    source = checkout(tmp_path)
    (source / "csrc").mkdir(exist_ok=True)
    (source / "csrc" / "tiny.cpp").write_text(LIBRARY)
    done = run("setup.py", "--version", cwd=source, **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "leaving out libhardsample:" in done.stderr
    done = run("setup.py", "--version", cwd=source, HARDSAMPLE_REQUIRE_NATIVE="1", **NO_COMPILER)
    assert done.returncode != 0
    assert "libhardsample cannot be built" in done.stderr
    assert "HARDSAMPLE_REQUIRE_NATIVE=1" in done.stderr
