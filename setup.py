"""Builds the two native libraries; everything else about the package is in pyproject.toml.

Both have a plain C ABI and are opened by ctypes, so building them needs neither torch nor Python headers. A library
whose sources are absent or that this machine cannot build is left out with a message, and the package then runs on
PyTorch and Triton; HARDSAMPLE_REQUIRE_NATIVE=1 makes leaving one out an error. CXX and NVCC name other compilers.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")  # relative: setuptools runs this file from its own folder, and refuses absolute sources

# x86-64-v2 is the baseline; bodies for AVX2 and AVX-512 carry target attributes and are chosen at run time.
CXX_FLAGS = "-O3 -std=c++17 -fopenmp -fvisibility=hidden -march=x86-64-v2 -fPIC -shared -Wall -Wextra".split()
# Code for every generation from Ampere on (the tensor-core products need compute capability 8.0), and PTX for later
# ones; `all-major` would add Turing, where they do not compile. compute_100 asks for CUDA 12.8 or newer.
NVCC_FLAGS = "-O3 -std=c++17 -cudart static -shared --threads 0".split()
NVCC_FLAGS += [f"-gencode=arch=compute_{cc},code=sm_{cc}" for cc in (80, 90, 100)]
NVCC_FLAGS += ["-gencode=arch=compute_100,code=compute_100"]
# The host runs the kernels too, to show that they are right, and reads 16-byte words as what they hold.
NVCC_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-fno-strict-aliasing"]

# One line each: does the compiler work here with our flags, and are OpenMP and the CUDA headers there?
CXX_PROBE = "#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n"
CUDA_PROBE = "#include <cuda_runtime.h>\n__global__ void probe() {}\n"


def cxx_compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++")) + CXX_FLAGS


def cuda_compiler() -> list[str]:
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or f"{toolkit}/bin/nvcc"
    return shlex.split(nvcc) + NVCC_FLAGS


COMPILERS = {".cpp": cxx_compiler, ".cu": cuda_compiler}


def why_not(suffix: str, probe: str) -> str | None:
    """Say why the sources csrc/*{suffix} cannot be built here; None if they can."""
    if not any(CSRC.glob(f"*{suffix}")):
        return f"there is no {CSRC}/*{suffix}"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"it is built on Linux x86_64 only, and this is {platform.system()} {platform.machine()}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe{suffix}")
        source.write_text(probe)
        command = [*COMPILERS[suffix](), str(source), "-o", f"{folder}/probe.so"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return f"there is no working {command[0]} ({error.strerror})"
    if done.returncode != 0:
        complaint = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        return f"{command[0]} cannot build a one-line program ({complaint[0]})"
    return None


def extensions() -> list[Extension]:
    found = []
    for name, suffix, probe in (("libhardsample", ".cpp", CXX_PROBE), ("libhardsample_cuda", ".cu", CUDA_PROBE)):
        reason = why_not(suffix, probe)
        if reason is None:
            sources = sorted(map(str, CSRC.glob(f"*{suffix}")))
            headers = sorted(map(str, CSRC.glob("*.h")))
            found.append(Extension(f"hardsample.kernels.{name}", sources, depends=headers))
        elif os.environ.get("HARDSAMPLE_REQUIRE_NATIVE") == "1":
            sys.exit(f"hardsample: {name} cannot be built: {reason}; HARDSAMPLE_REQUIRE_NATIVE=1 asks for it")
        else:
            print(f"hardsample: leaving out {name}: {reason}", file=sys.stderr)
    return found


class BuildNative(build_ext):
    """Compiles each extension with one command, to a plain shared library beside native.py."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [*COMPILERS[Path(ext.sources[0]).suffix](), *ext.sources, "-o", str(target)]
        print(shlex.join(command), flush=True)
        subprocess.run(command, check=True)


class PlatformWheel(bdist_wheel):
    """py3-none-<platform> with native libraries: they do not depend on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return ("py3", "none", tag[2]) if self.distribution.has_ext_modules() else tag


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel})
