"""libhardsample.so: every level of the CPU gives the reference's bits and masses, and nothing bad gets in."""

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from hardsample.kernels import native, reference, reference_attention
from hardsample.kernels.keys import KINDS, mask_key
from hardsample.kernels.ops import IMAGE, OTHER, TEXT, plan_mass
from hardsample.kernels.variants import geometry_of, variant_table

REPO = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "masks.json").read_text(encoding="utf-8"))
REASON = native.why_not_cpu(torch.zeros(1))
LEVELS = range(native.cpu_level() + 1) if REASON is None else (0,)

needs_library = pytest.mark.skipif(REASON is not None, reason=str(REASON))

RATIOS = [0.0, 1e-5, 0.3, 0.5, 0.9, 1.0]
SIZES = [(1, 1), (1, 7), (15, 31), (19, 23), (64, 64), (45, 60), (2, 5000), (130, 128)]


def table(shape, layout, kind, sources, grid=None, patch=14, merge=2, frames=2):
    """Return the geometry, and a variant for each of RATIOS."""
    geometry = geometry_of(shape, layout, grid, patch, merge, frames)
    keys = [mask_key(seed, "native") for seed in range(len(RATIOS))]
    picks = [variant % sources for variant in range(len(RATIOS))]
    return list(geometry), variant_table(geometry, RATIOS, list(range(len(RATIOS))), keys, 1, kind, picks)


def fill_of(dtype, channels):
    return [7 + c for c in range(channels)] if dtype == torch.uint8 else [-1.79 + c / 7 for c in range(channels)]


def assert_equals_reference(images, variants, kind, layout, geometry, threads=(1, 2), shift=0):
    """Each level against the reference, into a poisoned buffer that starts `shift` elements after an aligned place."""
    fill = fill_of(images.dtype, geometry[2])
    wanted = torch.empty((len(variants), *images.shape[1:]), dtype=images.dtype)
    reference.mask_pixels(images, variants, fill, kind, layout, geometry, wanted)
    for level, count in product(LEVELS, threads):
        room = torch.full((wanted.numel() + shift + 8,), 99, dtype=images.dtype)
        out = room[shift : shift + wanted.numel()].view(wanted.shape)
        native.mask_pixels_cpu(images, variants, fill, kind, layout, geometry, out, level=level, threads=count)
        assert torch.equal(out, wanted), (native.LEVELS[level], count)
        assert (room[:shift] == 99).all() and (room[shift + wanted.numel() :] == 99).all()


@needs_library
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_masks_equal_the_reference_bit_for_bit(layout, kind, dtype):
    for (height, width), channels in product(SIZES, (1, 3)):
        shape = (height, width, channels) if layout == "hwc" else (channels, height, width)
        images = (torch.rand((2, *shape), generator=torch.Generator().manual_seed(height)) * 200 + 20).to(dtype)
        geometry, variants = table(shape, layout, kind, sources=2)
        assert_equals_reference(images, variants, kind, layout, geometry, shift=(height + width) % 4)


@needs_library
@pytest.mark.parametrize("channels", [2, 4, 5, 16])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_any_number_of_channels(layout, channels):
    shape = (21, 37, channels) if layout == "hwc" else (channels, 21, 37)
    for dtype in native.DTYPES:
        images = (torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
        geometry, variants = table(shape, layout, "pixel", sources=1)
        assert_equals_reference(images, variants, "pixel", layout, geometry)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("patch", "merge", "frames", "channels"), [(14, 2, 2, 3), (16, 2, 2, 3), (3, 1, 1, 1), (4, 3, 2, 2)]
)
def test_patches_equal_the_reference_bit_for_bit(patch, merge, frames, channels, kind):
    for dtype, (rows, columns) in product(native.DTYPES, ((1, 1), (2, 3), (4, 1))):
        grid = (1, rows * merge, columns * merge)
        shape = (grid[1] * grid[2], channels * frames * patch * patch)
        images = (torch.rand((1, *shape), generator=torch.Generator().manual_seed(rows)) * 200 + 20).to(dtype)
        geometry, variants = table(shape, "patches", kind, 1, grid, patch, merge, frames)
        assert_equals_reference(images, variants, kind, "patches", geometry, shift=1)


@needs_library
@pytest.mark.parametrize("case", GOLDEN["masks"], ids=lambda case: f"{case['kind']}-{case['id']}-{case['ratio']}")
def test_golden_masks(case):
    shape = (1, case["height"], case["width"])
    geometry = geometry_of(shape, "chw")
    key = mask_key(case["seed"], case["id"])
    variants = variant_table(
        geometry, [case["ratio"]], [case["realization"]], [key], case["image_index"], case["kind"], [0]
    )
    for level in LEVELS:
        out = torch.empty((1, *shape))
        native.mask_pixels_cpu(
            torch.zeros((1, *shape)), variants, [1.0], case["kind"], "chw", geometry, out, level=level
        )
        assert out.sum() == case["masked"]
        assert out.view(-1)[:32].int().tolist() == case["first_32"]


@needs_library
def test_many_variants_are_more_than_one_task():
    images = torch.rand(1, 3, 40, 130)
    geometry = geometry_of(images.shape[1:], "chw")
    count = 50
    variants = variant_table(geometry, [0.5] * count, list(range(count)), [(1, 2)] * count, 0, "pixel", [0] * count)
    assert_equals_reference(images, variants, "pixel", "chw", list(geometry))


@needs_library
def test_the_floor_writes_every_copy():
    for size in (1, 63, 64, 1000, 40001):
        image = torch.randint(0, 255, (size,), dtype=torch.uint8)
        for threads in (1, 2):
            out = torch.zeros((19, size), dtype=torch.uint8)
            native.broadcast_cpu(image, out, threads=threads)
            assert (out == image).all()


MASSES = {
    # name: batch, heads, kv heads, queries, keys, dim, causal, offset, mask, rows
    "grouped heads": (1, 14, 2, 60, 60, 128, True, 0, None, (40, 60)),
    "one head": (1, 1, 1, 30, 30, 64, True, 0, None, (0, 30)),
    "head dim 16": (1, 4, 2, 40, 40, 16, True, 0, None, (7, 33)),
    "head dim 40": (2, 4, 4, 40, 40, 40, False, 0, None, (0, 40)),
    "head dim 80": (1, 4, 1, 33, 70, 80, True, 37, None, (0, 33)),
    "head dim 256": (1, 2, 1, 20, 20, 256, True, 0, None, (0, 20)),
    "head dim 7": (1, 2, 1, 20, 20, 7, True, 0, None, (3, 19)),
    "left padding": (3, 4, 2, 50, 50, 32, False, 0, "left", (20, 50)),
    "a mask a head": (2, 6, 2, 50, 50, 32, False, 0, "heads", (20, 50)),
    "a sliding window": (1, 4, 2, 90, 90, 32, False, 0, "window", (10, 90)),
    "a mask and causal": (1, 4, 2, 50, 50, 32, True, 0, "heads", (0, 50)),
    "one query": (2, 4, 2, 1, 200, 64, False, 0, None, (0, 1)),
    "one key": (1, 4, 2, 1, 1, 64, True, 0, None, (0, 1)),
    "queries before the first key": (1, 4, 2, 20, 20, 32, True, -5, None, (0, 20)),
    "more rows than a block": (1, 14, 1, 150, 150, 32, True, 0, None, (0, 150)),
    "no rows": (1, 4, 2, 10, 10, 32, True, 0, None, (4, 4)),
}


def mass_call(name, dtype):
    """Return the arguments of an attention-mass call; k is a transposed view."""
    batch, heads, kv_heads, queries, keys, dim, causal, offset, kind, rows = MASSES[name]
    generator = torch.Generator().manual_seed(dim)
    q = torch.randn((batch, heads, queries, dim), generator=generator).to(dtype)
    k = torch.randn((batch, keys, kv_heads, dim), generator=generator).to(dtype).transpose(1, 2)
    kinds = torch.randint(0, 3, (batch, keys), generator=generator).sort(1).values.to(torch.int8)
    mask = None
    if kind:
        key, row = torch.arange(keys), torch.arange(queries)[:, None]
        mask = (key <= row)[None, None]
        if kind == "left":
            mask = mask & (key >= torch.tensor([0, 9, 30])[:, None, None, None])
        elif kind == "window":
            mask = mask & (key > row - 11)
        else:
            mask = mask & (torch.rand((batch, heads, queries, keys), generator=generator) > 0.4)
    scale = dim**-0.5
    _, _, lse = reference_attention.attention(q, k, k, kinds, mask, causal, offset, scale, 0, 0)
    plan = plan_mass(kinds)
    return (q, k, lse.float(), plan.columns, plan.counts, mask, causal, offset, scale, *rows)


@needs_library
@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
@pytest.mark.parametrize("name", MASSES)
def test_masses_equal_the_reference(name, dtype):
    arguments = mass_call(name, dtype)
    wanted = reference_attention.attention_mass(*arguments)
    for level, threads in product(LEVELS, (1, 2)):
        masses = native.attention_mass_cpu(*arguments, level=level, threads=threads)
        assert masses.shape == wanted.shape
        assert not wanted.numel() or (masses - wanted).abs().max() <= 1e-6, native.LEVELS[level]


@needs_library
@pytest.mark.parametrize("lse", [0.0, float("nan"), float("-inf"), float("inf")])
def test_a_row_that_sees_no_key_has_no_mass_whatever_its_lse(lse):
    q = k = torch.randn(1, 2, 40, 32, generator=torch.Generator().manual_seed(0))
    kinds = torch.tensor([[IMAGE] * 10 + [TEXT] * 20 + [OTHER] * 10], dtype=torch.int8)
    plan = plan_mass(kinds)
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    mask[:, :, 7] = False
    total = torch.zeros(1, 2, 40)
    total[:, :, 7] = lse
    for level in LEVELS:
        masses = native.attention_mass_cpu(
            q, k, total, plan.columns, plan.counts, mask, False, 0, 0.1, 0, 40, level=level
        )
        assert masses.isfinite().all() and (masses[:, :, 7] == 0).all() and masses[:, :, 8].sum() > 0


@needs_library
@pytest.mark.parametrize(
    "change",
    [
        {"units": 65537},
        {"rectangle": (3, 3, 4, 4)},
        {"geometry": [0, 4, 3, 0, 0, 0]},
        {"geometry": [4, 4, 0, 0, 0, 0]},
        {"geometry": [2**17, 2**17, 3, 0, 0, 0]},
        {"level": 3},
        {"level": -1},
        {"threads": -1},
    ],
)
def test_bad_masking_arguments_are_refused(change):
    variants = torch.tensor([[1, 2, 0, 0, change.get("units", 9), 0, *change.get("rectangle", (0, 0, 2, 2))]])
    geometry = change.get("geometry", [4, 4, 3, 0, 0, 0])
    settings = {name: change[name] for name in ("level", "threads") if name in change}
    image = torch.zeros(1, 3, 4, 4)
    fill = [0.0] * geometry[2]
    with pytest.raises(native.NativeError, match="an argument is out of range"):
        native.mask_pixels_cpu(image, variants, fill, "rectangle", "chw", geometry, image.clone(), **settings)


@needs_library
@pytest.mark.parametrize(
    "change",
    [
        {"columns": torch.tensor([[0, 5, 1, 2]], dtype=torch.int32)},
        {"counts": torch.tensor([[3, 2]], dtype=torch.int32)},
        {"counts": torch.tensor([[-1, 2]], dtype=torch.int32)},
        {"q": torch.zeros(1, 3, 4, 8)},
        {"row_stop": 5},
    ],
)
def test_bad_attention_arguments_are_refused(change):
    q = torch.zeros(1, 2, 4, 8)
    call = {
        "q": q,
        "k": q,
        "lse": torch.zeros(1, 3, 4),
        "columns": torch.arange(4, dtype=torch.int32)[None],
        "counts": torch.tensor([[1, 2]], dtype=torch.int32),
        "mask": None,
        "causal": True,
        "query_offset": 0,
        "scale": 1.0,
        "row_start": 0,
        "row_stop": 4,
    }
    with pytest.raises(native.NativeError, match="an argument is out of range"):
        native.attention_mass_cpu(**call | change)


@needs_library
def test_too_many_channels_name_another_backend():
    image = torch.zeros(1, 17, 4, 4)
    with pytest.raises(native.NativeError, match="use backend reference"):
        native.mask_pixels_cpu(
            image, torch.zeros(1, 10), [0.0] * 17, "pixel", "chw", [4, 4, 17, 0, 0, 0], image.clone()
        )


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_masks_after_its_parent_used_threads():
    code = (
        "import os, torch\n"
        "from hardsample.kernels import native\n"
        "image, out = torch.rand(1, 3, 200, 200), torch.empty(40, 3, 200, 200)\n"
        "variants = torch.tensor([[1, 2, 0, k, 30000, 0, 0, 0, 0, 0] for k in range(40)])\n"
        "call = (image, variants, [0.0] * 3, 'pixel', 'chw', [200, 200, 3, 0, 0, 0], out)\n"
        "native.mask_pixels_cpu(*call, threads=2)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    native.mask_pixels_cpu(*call)\n"
        "    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr


@needs_library
def test_a_library_of_another_abi_or_without_a_function_is_not_used(tmp_path, monkeypatch):
    source = tmp_path / "other.cpp"
    source.write_text('extern "C" int hs_abi() { return VERSION; }\n')
    for version, message in ((native.ABI + 1, "has ABI 2, this is 1: build it again"), (native.ABI, "cannot be used")):
        folder = tmp_path / str(version)
        folder.mkdir()
        library = folder / "libhardsample.so"
        subprocess.run(["g++", "-shared", "-fPIC", f"-DVERSION={version}", source, "-o", library], check=True)
        monkeypatch.setattr(native, "__file__", str(folder / "native.py"))
        native._open.cache_clear()
        assert message in (native.why_not_cpu(torch.zeros(1)) or "")
    native._open.cache_clear()


def test_the_table_of_argument_types_names_every_function_of_the_header():
    header = (REPO / "csrc" / "hardsample.h").read_text()
    declared = set(re.findall(r"^HS_API (?:const char \*|int )(\w+)\(", header, re.MULTILINE))
    assert declared == {*native._CPU, *native._CUDA}
    assert f"#define HS_ABI {native.ABI}\n" in header
    for name, types in {**native._CPU, **native._CUDA}.items():
        arguments = re.search(rf"{name}\(([^)]*)\)", header).group(1)
        count = 0 if arguments.strip() in ("", "void") else arguments.count(",") + 1
        assert count == len(types), name
