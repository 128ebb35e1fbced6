"""Compile every Triton configuration that the launchers choose, without a GPU, and read registers and spills.

    python bench/compile.py                      write bench/results/compile.md and compile.json
    python bench/compile.py --check [PART ...]   compile all (or those whose name contains a PART), check the limits
    python bench/compile.py --check-table        check what was written: limits, and that nothing shipped is missing

A configuration's name is "kernel, form, dtype, head dim, arch", as in the table. compile.json is a list of {kernel,
form, dtype, arch, head_dim, block_m, block_n, warps, stages, registers, spill_bytes, shared_bytes, shipped}: what is
not shipped is there for comparison. Spilled bytes are those of the stack frame, as cuobjdump gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton's default changes between versions

import triton
from attention_forms import FORMS, attention_form
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hardsample.kernels import attention, masking
from hardsample.kernels.keys import KINDS
from hardsample.kernels.tiles import Tiles, fused_tiles, mass_tiles
from hardsample.kernels.variants import LAYOUTS

RESULTS = Path(__file__).parent / "results"
ARCHS = (80, 90, 100)
HEAD_DIMS = (16, 32, 64, 80, 128, 256)
FLOATS = {"bfloat16": ("bf16", 2), "float16": ("fp16", 2), "float32": ("fp32", 4)}
WORDS = {1: "i8", 2: "i16", 4: "i32"}
SIZES = {1: "8-bit", 2: "16-bit", 4: "32-bit"}

LIMITS = {80: 16, 90: 0, 100: 0}
"""Spilled bytes that `attention_with_mass` may have at head dim 128 in bfloat16, by architecture."""
LIMIT_TILES = (128, 64, 8)
"""Its rows, keys and warps."""


@dataclass(frozen=True)
class Configuration:
    """One compilation.

    Attributes:
        kernel: name.
        form: kind and layout of masks; causal, mask or both of attention; what differs in those not shipped.
        dtype: of the values.
        head_dim: of attention, else None.
        arch: 90 for sm_90.
        tiles: of attention, else None.
        jit: the kernel.
        constants: its compile-time constants and options.
        values: Triton's name for the type of values.
        shipped: whether a launcher chooses it.
    """

    kernel: str
    form: str
    dtype: str
    head_dim: int | None
    arch: int
    tiles: Tiles | None
    jit: Any
    constants: dict[str, Any]
    values: str
    shipped: bool = True

    @property
    def name(self) -> str:
        """Kernel, form, dtype, head dim, architecture."""
        dim = [] if self.head_dim is None else [f"head dim {self.head_dim}"]
        return ", ".join([self.kernel, self.form, self.dtype, *dim, f"sm_{self.arch}"])

    def row(self) -> dict[str, Any]:
        """Compile it and return its row of compile.json."""
        registers, spilled, shared = compile_one(self.jit, self.constants, self.values, self.arch)
        return {
            **self.key(),
            "registers": registers,
            "spill_bytes": spilled,
            "shared_bytes": shared,
            "shipped": self.shipped,
        }

    def key(self) -> dict[str, Any]:
        """Return the fields that are known before it is compiled."""
        return {
            "kernel": self.kernel,
            "form": self.form,
            "dtype": self.dtype,
            "arch": f"sm_{self.arch}",
            "head_dim": self.head_dim,
            "block_m": self.tiles and self.tiles.block_m,
            "block_n": self.tiles and self.tiles.block_n,
            "warps": self.constants["num_warps"],
            "stages": self.constants.get("num_stages"),
        }


def configurations() -> Iterator[Configuration]:
    """Yield the shipped configurations, then those for comparison."""
    for arch in ARCHS:
        yield from attention_configurations(arch)
        yield from mask_configurations(arch)
        yield from compared_configurations(arch)


def attention_configurations(arch: int) -> Iterator[Configuration]:
    """Yield both attention kernels for every dtype, class of head dim and form."""
    capability = (arch // 10, arch % 10)
    for (dtype, (values, size)), dim in product(FLOATS.items(), HEAD_DIMS):
        for causal, masked in product((True, False), repeat=2):
            form = " and ".join(["causal"] * causal + ["mask"] * masked) or "all keys"
            tiles = fused_tiles(size, dim, masked, capability)
            constants = attention.fused_constants(tiles, dim, causal, masked)
            kernel = attention.attention_with_mass
            yield Configuration("attention_with_mass", form, dtype, dim, arch, tiles, kernel, constants, values)
            tiles = mass_tiles(size, dim, masked, capability)
            constants = attention.mass_constants(tiles, dim, causal, masked)
            kernel = attention.mass_of_columns
            yield Configuration("mass_of_columns", form, dtype, dim, arch, tiles, kernel, constants, values)
    for block in sorted({fused_tiles(size, dim, False, capability).block_n for size in (2, 4) for dim in HEAD_DIMS}):
        constants = {"BLOCK_N": block, "num_warps": 1}
        form = f"tiles of {block}"
        yield Configuration("mark_tiles", form, "int8", None, arch, None, attention.mark_tiles, constants, "i8")


def mask_configurations(arch: int) -> Iterator[Configuration]:
    """Yield every kind, layout and size of values; row sizes are aligned, odd, and narrower than eight pixels."""
    images = {"": (1008, 1008, 3, 0, 0, 0), ", odd size": (1009, 1007, 3, 0, 0, 0), ", narrow": (4096, 4, 3, 0, 0, 0)}
    grids = {", patch 14": (1008, 1008, 3, 14, 2, 2), ", patch 16": (1024, 1024, 3, 16, 2, 2)}
    for kind, layout, size in product(KINDS, LAYOUTS, SIZES):
        for class_, geometry in (grids if layout == "patches" else images).items():
            pack = masking.values_a_word(layout, geometry, size)
            launch = masking.plan_launch(kind, layout, geometry, size, pack)
            constants = {**launch.constants, "num_warps": launch.num_warps}
            kernel, values = launch.kernel, WORDS[size * pack]
            name, form = kernel.__name__, f"{kind} {layout}{class_}"
            yield Configuration(name, form, SIZES[size], None, arch, None, kernel, constants, values)
    constants = {"GROUPS": masking.CELL_GROUPS, "num_warps": 4}
    yield Configuration("draw_cells", "patch", "8-bit", None, arch, None, masking.draw_cells, constants, "i8")


def compared_configurations(arch: int) -> Iterator[Configuration]:
    """Yield what is not shipped: the fused kernel without masses, and other ways to sum them."""
    for dim, (causal, masked) in product((64, 128), ((True, False), (False, False), (False, True))):
        tiles = fused_tiles(2, dim, masked, (arch // 10, 0))
        constants = attention.fused_constants(tiles, dim, causal, masked, mass=False)
        form = f"{'causal' if causal else 'mask' if masked else 'all keys'}, without mass"
        kernel = attention.attention_with_mass
        yield Configuration(kernel.__name__, form, "bfloat16", dim, arch, tiles, kernel, constants, "bf16", False)
    tiles = fused_tiles(2, 128, False, (arch // 10, 0))
    for form in FORMS:
        constants = {"FORM": form, "DIM": 128, "BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n}
        constants |= {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, "enable_fp_fusion": True}
        form = f"causal, {form}"
        yield Configuration(
            "attention_form", form, "bfloat16", 128, arch, tiles, attention_form, constants, "bf16", False
        )


POINTERS = {
    **dict.fromkeys(("mass", "lse"), "fp32"),
    **dict.fromkeys(("table", "columns", "counts", "marks"), "i32"),
    **dict.fromkeys(("kinds", "padded", "cells", "mask"), "i8"),
    **dict.fromkeys(("out", "images", "output", "q", "k", "v")),  # the type of values
}
STRIDES = ("_batch", "_head", "_row", "_key")


def compile_one(kernel: Any, constants: dict[str, Any], values: str, arch: int) -> tuple[int, int, int]:
    """Compile as a launch does: pointers and strides are multiples of 16, a mask's keys lie next to each other.

    Returns:
        Registers of a thread, bytes spilled, bytes of shared memory of a program.
    """
    options = {name: constants[name] for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in constants}
    constants = {name: value for name, value in constants.items() if name not in options}
    if "mask" in kernel.arg_names:
        constants |= {"mask_key": 1} if constants["MASK"] else {"mask": None}
    signature, aligned = {}, []
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            signature[name] = f"*{POINTERS[name] or values}"
            aligned.append(name)
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
            aligned += [name] * name.endswith(STRIDES)
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared


def broken_limits(rows: list[dict[str, Any]]) -> list[str]:
    """Return the limits that shipped rows of `attention_with_mass` at head dim 128 in bfloat16 break."""
    broken = []
    for row in rows:
        if (row["kernel"], row["head_dim"], row["dtype"]) != ("attention_with_mass", 128, "bfloat16"):
            continue
        if not row["shipped"]:
            continue
        where = f"{row['kernel']}, {row['form']}, {row['arch']}"
        limit = LIMITS[int(row["arch"].removeprefix("sm_"))]
        if row["spill_bytes"] > limit:
            broken.append(f"{where}: spills {row['spill_bytes']} bytes, may spill {limit}")
        tiles = (row["block_m"], row["block_n"], row["warps"])
        if tiles != LIMIT_TILES:
            broken.append(f"{where}: rows, keys and warps are {tiles}, must be {LIMIT_TILES}")
    return broken


def compile_all(chosen: list[Configuration]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows, and what failed."""
    rows, failed = [], []
    for number, configuration in enumerate(chosen, 1):
        try:
            rows.append(configuration.row())
        except Exception as error:  # noqa: BLE001 (a compiler can fail in any way; all failures are reported)
            failed.append(f"{configuration.name}: {type(error).__name__}: {error}")
        if sys.stderr.isatty():
            print(f"\r{number} of {len(chosen)}", end="", file=sys.stderr, flush=True)
    return rows, failed


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the tables of compile.md."""
    archs = [f"sm_{arch}" for arch in ARCHS]
    lines = [
        "# What the Triton kernels compile to",
        "",
        f"`python bench/compile.py`, triton {triton.__version__}, no GPU. Registers of a thread / spilled bytes / KiB "
        "of shared memory of a program; all rows are in compile.json.",
        "",
        "Attention at head dim 128 in bfloat16, tiles of rows × keys, warps, pipeline stages:",
        "",
        *table([row for row in rows if row["head_dim"] == 128 and row["dtype"] == "bfloat16"], archs, tiles=True),
        "",
        "The same kernels at other head dims and dtypes, the form that takes most:",
        "",
        *table(worst(row for row in rows if row["head_dim"] and row["shipped"]), archs, tiles=True),
        "",
        "Masks; an odd size cannot be moved in words of four bytes:",
        "",
        *table([row for row in rows if not row["head_dim"]], archs, tiles=False),
    ]
    return "\n".join(lines) + "\n"


def worst(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the row with the most spilled bytes, then registers, for each kernel, dtype, head dim and architecture."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("kernel", "dtype", "head_dim", "arch"))
        if key not in groups or cost(row) > cost(groups[key]):
            groups[key] = {**row, "form": f"{row['dtype']}, head dim {row['head_dim']}"}
    return list(groups.values())


def cost(row: dict[str, Any]) -> tuple[int, int]:
    """Return a key to compare rows by."""
    return row["spill_bytes"], row["registers"]


def table(rows: list[dict[str, Any]], archs: list[str], tiles: bool) -> list[str]:
    """Return one line for each kernel, form and dtype, with the architectures side by side."""
    lines = [f"| kernel | form | {' | '.join(archs)} |", "|---|---|" + "---|" * len(archs)]
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        kernel = row["kernel"] if row["shipped"] else f"{row['kernel']} (not shipped)"
        form = row["form"] if tiles else f"{row['form']}, {row['dtype']}"
        cell = f"{row['registers']} / {row['spill_bytes']} / {row['shared_bytes'] / 1024:.0f}"
        if tiles:
            cell += f" ({row['block_m']} × {row['block_n']}, {row['warps']}, {row['stages']})"
        cells.setdefault((kernel, form, row["dtype"]), {})[row["arch"]] = cell
    for (kernel, form, _), cell_by_arch in cells.items():
        lines.append(f"| {kernel} | {form} | {' | '.join(cell_by_arch.get(arch, '') for arch in archs)} |")
    return lines


def stale(rows: list[dict[str, Any]]) -> list[str]:
    """Return the shipped configurations that the table lacks or lists with other tiles."""
    known = {json.dumps({name: row[name] for name in next(configurations()).key()}) for row in rows}
    shipped = [configuration for configuration in configurations() if configuration.shipped]
    lacking = [configuration.name for configuration in shipped if json.dumps(configuration.key()) not in known]
    return [f"{name}: not in compile.json as it is now; run python bench/compile.py" for name in lacking]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="*", metavar="PART", help="compile and check the limits, write nothing")
    parser.add_argument("--check-table", action="store_true", help="check compile.json instead, compile nothing")
    arguments = parser.parse_args()
    if arguments.check_table:
        rows = json.loads((RESULTS / "compile.json").read_text(encoding="utf-8"))
        finish(rows, stale(rows))
    parts = arguments.check
    chosen = list(configurations())
    if parts:
        chosen = [configuration for configuration in chosen if any(part in configuration.name for part in parts)]
        if not chosen:
            sys.exit(f"no name contains {' or '.join(map(repr, parts))}; one is {next(configurations()).name!r}")
    rows, failed = compile_all(chosen)
    if parts is None:
        RESULTS.mkdir(exist_ok=True)
        text = ",\n".join(json.dumps(row) for row in rows)
        (RESULTS / "compile.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
        (RESULTS / "compile.md").write_text(markdown(rows), encoding="utf-8")
    finish(rows, failed)


def finish(rows: list[dict[str, Any]], failed: list[str]) -> None:
    """End the program, with a message and exit code 1 if anything failed or a limit is broken."""
    failed += broken_limits(rows)
    if failed:
        sys.exit("\n".join(failed))
    print(f"{len(rows)} configurations compile, {sum(row['spill_bytes'] > 0 for row in rows)} of them spill")
    sys.exit()


if __name__ == "__main__":
    main()
