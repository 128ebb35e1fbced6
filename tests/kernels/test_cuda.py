"""The CUDA library: its kernels' own code, run on the host, against the reference; compiled for each kind of GPU.

On a machine with a GPU the real entry points are compared too; without one they have to say that there is none.
"""

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hardsample.kernels import native, reference, reference_attention
from hardsample.kernels.keys import KINDS, mask_key
from hardsample.kernels.ops import IMAGE, OTHER, TEXT, attention_with_mass, mask_pixels, plan_mass
from hardsample.kernels.variants import geometry_of, variant_table

CSRC = Path(__file__).resolve().parents[2] / "csrc"
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "masks.json").read_text(encoding="utf-8"))
NVCC = os.environ.get("NVCC") or shutil.which("nvcc")
BUILT = native._open("libhardsample_cuda")
INVALID_VALUE = 1

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the path")
needs_library = pytest.mark.skipif(isinstance(BUILT, str), reason=str(BUILT))


def driver():
    """Return whether calls could reach a device, even if PyTorch is built without CUDA."""
    try:
        return ctypes.CDLL("libcuda.so.1") is not None
    except OSError:
        return False


def gpu_test(function):
    """Mark a test that runs the real entry points."""
    reason = "no CUDA device here: the real entry points were not run"
    return pytest.mark.gpu(needs_library(pytest.mark.skipif(not torch.cuda.is_available(), reason=reason)(function)))


KERNELS = 16 + 3  # masking: three element sizes, units and layouts; attention: three dtypes


@needs_nvcc
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_without_spills(capability, tmp_path):
    flags = ["-O3", "-std=c++17", f"-arch=sm_{capability}", "-cubin", "-Xptxas=-v"]
    command = [NVCC, *flags, *map(str, sorted(CSRC.glob("*.cu")))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    report = done.stdout + done.stderr
    if "Unsupported gpu architecture" in report:
        pytest.skip(f"this nvcc does not know sm_{capability}")
    assert done.returncode == 0, report
    assert "warning" not in report
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert stacks == [("0", "0", "0")] * KERNELS


# -- masks ---------------------------------------------------------------------------------------------------------

DTYPES = [torch.uint8, torch.float32, torch.float16, torch.bfloat16]
RATIOS = [0.0, 0.3, 1.0, 0.5, 1 / 65536, 0.9]


def random_image(*shape, dtype):
    """Return random values that no fill has."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.rand(shape, generator=generator) * 100 + 100).to(dtype)


def masked(run, images, kind, layout, sources, out=None, **patches):
    """Mask some variants of a stack of images with a backend's function."""
    geometry = geometry_of(images.shape[1:], layout, **patches)
    count = len(sources)
    table = variant_table(
        geometry,
        [RATIOS[i % len(RATIOS)] for i in range(count)],
        [7 * i for i in range(count)],
        [mask_key(i % 5, "x") for i in range(count)],
        [i % 3 for i in range(count)],
        kind,
        sources,
    )
    fill = [float(i + 1) for i in range(geometry.channels)]
    if out is None:
        out = torch.full((count, *images.shape[1:]), 77).to(images.dtype)
    run(images, table, fill, kind, layout, list(geometry), out)
    return out


def assert_masks_agree(images, kind, layout, sources, **patches):
    """Compare the emulated kernel with the reference."""
    expected = masked(reference.mask_pixels, images, kind, layout, sources, **patches)
    result = masked(native.emulate_mask_pixels, images, kind, layout, sources, **patches)
    assert torch.equal(result, expected), (tuple(images.shape), patches)


# One pixel, one line or column, odd sizes, sizes of which every address is a multiple of 16 bytes, several tiles.
SIZES = [(1, 1), (1, 9), (17, 1), (5, 7), (13, 40), (16, 24), (64, 80), (75, 129)]


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_emulated_masks_equal_the_reference(dtype, layout, kind):
    for height, width in SIZES:
        for channels, count, sources in (
            (1, 1, [0, 0]),
            (3, 1, [0] * 6),
            (4, 2, [0, 1]),
            (7, 3, [2, 0, 1]),
            (16, 1, [0]),
        ):
            shape = (height, width, channels) if layout == "hwc" else (channels, height, width)
            assert_masks_agree(random_image(count, *shape, dtype=dtype), kind, layout, sources)


# Patch size, merge size, frames, grid: Qwen's two, lines longer than a mask word, fewer than a unit, one pixel.
PATCHES = [
    (14, 2, 2, (1, 4, 6)),
    (16, 2, 2, (1, 2, 4)),
    (14, 2, 1, (1, 4, 4)),
    (14, 1, 3, (1, 3, 5)),
    (4, 1, 2, (1, 9, 11)),
    (3, 3, 1, (1, 6, 9)),
    (40, 2, 1, (1, 2, 2)),
    (70, 1, 2, (1, 1, 2)),
    (1, 1, 1, (1, 3, 50)),
]


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("patch", "merge", "frames", "grid"), PATCHES)
def test_emulated_masks_of_patches_equal_the_reference(patch, merge, frames, grid, dtype, kind):
    sizes = {"grid_thw": grid, "patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}
    for channels in (1, 3, 5):
        images = random_image(2, grid[1] * grid[2], channels * frames * patch**2, dtype=dtype)
        assert_masks_agree(images, kind, "patches", [0, 0, 1, 1, 0], **sizes)


@needs_library
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_blocks_take_several_variants_where_there_are_many(layout):
    shape = (5, 3, 2) if layout == "hwc" else (2, 5, 3)
    sources = [i * 7 // 10 % 3 for i in range(4099)]
    assert_masks_agree(random_image(3, *shape, dtype=torch.uint8), "pixel", layout, sources)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize(("skip_image", "skip_out"), [(1, 0), (0, 1), (1, 1), (4, 8)])
def test_images_may_begin_anywhere_in_memory(skip_image, skip_out, layout, dtype):
    shape = (1, 16, 24, 3) if layout == "hwc" else (1, 3, 16, 24)
    images = random_image(16 * 24 * 3 + skip_image, dtype=dtype)[skip_image:].view(shape)
    buffer = torch.full((4 * images.numel() + skip_out + 1,), 77).to(dtype)
    out = buffer[skip_out:-1].view(4, *shape[1:])
    masked(native.emulate_mask_pixels, images, "pixel", layout, [0] * 4, out=out)
    assert torch.equal(out, masked(reference.mask_pixels, images, "pixel", layout, [0] * 4))
    assert (buffer[:skip_out] == 77).all() and buffer[-1] == 77


@needs_library
@pytest.mark.parametrize("entry", GOLDEN["masks"], ids=lambda entry: f"{entry['kind']}-{entry['ratio']}")
def test_emulated_masks_are_the_golden_ones(entry):
    height, width = entry["height"], entry["width"]
    image = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    geometry = geometry_of(image.shape[1:], "chw")
    variant = [entry["ratio"]], [entry["realization"]], [tuple(entry["key"])], entry["image_index"]
    out = torch.full_like(image, 9)
    table = variant_table(geometry, *variant, entry["kind"], [0])
    native.emulate_mask_pixels(image, table, [1.0], entry["kind"], "chw", list(geometry), out)
    assert out.flatten()[:32].tolist() == entry["first_32"]
    assert hashlib.sha256(out.numpy().tobytes()).hexdigest() == entry["sha256"]


@gpu_test
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["hwc", "chw", "patches"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_on_the_gpu_equal_the_reference(dtype, layout, kind):
    if layout == "patches":
        cases = [(random_image(4 * 6, 1176, dtype=dtype), {"grid_thw": (1, 4, 6)})]
    else:
        shapes = [(75, 129, 3), (64, 80, 3), (640, 480, 3), (13, 40, 7)]
        cases = [(random_image(*(size if layout == "hwc" else size[::-1]), dtype=dtype), {}) for size in shapes]
    count = 70
    variants = {
        "ratios": [RATIOS[i % len(RATIOS)] for i in range(count)],
        "realizations": list(range(count)),
        "keys": [mask_key(i % 5, "x") for i in range(count)],
    }
    for image, sizes in cases:
        settings = variants | sizes | {"kind": kind, "layout": layout, "fill": 7.0}
        result = mask_pixels(image.cuda(), **settings, backend="cuda")
        assert torch.equal(result.cpu(), mask_pixels(image, **settings, backend="reference"))


# -- attention mass ------------------------------------------------------------------------------------------------

RELATIVE, ABSOLUTE = 2e-3, 2e-5  # 16-bit inputs: relative from masses of 1e-2 on, absolute below
FP32 = 1e-6  # absolute; the reference itself, run in fp32, is off by 1.5e-6 in one of the cases

# B, H, H_kv, Tq, Tk, D and what else a case has: mask (see `make_mask`), causal, offset, rows, kinds, views.
CASES = {
    **{f"dim {dim}": ((2, 4, 2, 33, 53, dim), {"causal": True}) for dim in (7, 16, 40, 64, 80, 128, 136, 256)},
    "one head, rows of one block and a bit": ((1, 1, 1, 130, 140, 32), {"causal": True}),
    "one kv head, several blocks": ((2, 7, 1, 70, 150, 64), {"causal": True, "offset": 80}),
    "several tiles of each set": ((1, 2, 2, 20, 500, 64), {}),
    "left padding": ((3, 4, 2, 40, 40, 64), {"mask": "padded"}),
    "an image block that sees itself": ((2, 4, 4, 45, 45, 64), {"mask": "image block"}),
    "sliding window": ((2, 4, 2, 90, 90, 64), {"mask": "window"}),
    "a mask for each head": ((2, 6, 3, 21, 60, 40), {"mask": "heads"}),
    "a mask and causal": ((2, 6, 3, 31, 60, 40), {"mask": "heads", "causal": True, "offset": 20}),
    "a mask that is a view": ((2, 4, 2, 21, 60, 64), {"mask": "transposed"}),
    "one query": ((2, 7, 1, 1, 90, 128), {}),
    "one query that sees the first key alone": ((3, 7, 1, 1, 90, 64), {"causal": True}),
    "one query at the end": ((2, 8, 2, 1, 90, 64), {"causal": True, "offset": 89}),
    "more queries than keys": ((1, 2, 1, 60, 20, 64), {"causal": True}),
    "first rows see nothing": ((1, 2, 1, 60, 60, 64), {"causal": True, "offset": -30}),
    "a range of rows": ((2, 6, 2, 50, 50, 64), {"causal": True, "rows": (13, 38)}),
    "a range of rows with a mask": ((2, 6, 2, 50, 50, 64), {"mask": "padded", "rows": (13, 38)}),
    "no image": ((2, 2, 1, 30, 40, 64), {"causal": True, "kinds": (OTHER, TEXT)}),
    "only other keys": ((2, 2, 1, 30, 40, 64), {"causal": True, "kinds": (OTHER,)}),
    "views of one projection": ((2, 4, 4, 30, 40, 64), {"causal": True, "views": True}),
    "rows that start anywhere": ((2, 4, 2, 30, 40, 33), {"causal": True, "views": True}),
}


def make_mask(name, kinds, heads, queries):
    """Return a four-dimensional bool mask, or None."""
    batch, keys = kinds.shape
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    if name == "padded":  # the first rows of padded samples see no key
        padding = torch.arange(batch)[:, None, None, None] * 7
        return (j <= i) & (j >= padding) & torch.ones(batch, 1, 1, 1, dtype=torch.bool)
    if name == "image block":
        image = kinds == IMAGE
        return ((j <= i) | (image[:, :, None] & image[:, None, :]))[:, None]
    if name == "window":
        return ((j <= i) & (j > i - 9))[None, None].expand(batch, heads, queries, keys)
    if name is None:
        return None
    generator = torch.Generator().manual_seed(1)
    if name == "transposed":
        return torch.rand(batch, 1, keys, queries, generator=generator).transpose(2, 3) > 0.4
    return torch.rand(1, heads, queries, keys, generator=generator) > 0.4


def make_case(name, dtype):
    """Return q, k and the other arguments of attention_mass, and the reference's masses in float64."""
    (batch, heads, kv_heads, queries, keys, dim), extra = CASES[name]
    generator = torch.Generator().manual_seed(0)

    def tensor(count, length):
        if extra.get("views"):
            return torch.randn(batch, length, count, dim, generator=generator).to(dtype).transpose(1, 2)
        return torch.randn(batch, count, length, dim, generator=generator).to(dtype)

    q, k = tensor(heads, queries), tensor(kv_heads, keys)
    choice = torch.tensor(extra.get("kinds", (OTHER, IMAGE, TEXT)), dtype=torch.int8)
    kinds = choice[torch.randint(len(choice), (batch, keys), generator=generator)]
    mask = make_mask(extra.get("mask"), kinds, heads, queries)
    settings = mask, extra.get("causal", False), extra.get("offset", 0), dim**-0.5
    rows = extra.get("rows", (0, queries))
    lse = reference_attention.attention(q.double(), k.double(), k.double(), kinds, *settings, 0, queries)[2].float()
    plan = plan_mass(kinds)
    arguments = [lse, plan.columns, plan.counts, *settings, *rows]
    return q, k, arguments, reference_attention.attention_mass(q.double(), k.double(), *arguments).nan_to_num()


def assert_masses_agree(result, expected, dtype):
    """Compare within the tolerance of the dtype."""
    assert result.dtype == torch.float32 and result.shape == expected.shape
    bound = torch.full_like(expected, FP32)
    if dtype != torch.float32:
        bound = torch.where(expected >= 1e-2, expected * RELATIVE, ABSOLUTE)
    error = (result.cpu().double() - expected).abs()
    assert (error <= bound).all(), float((error - bound).max())


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_emulated_masses_agree_with_the_reference(name, dtype):
    q, k, arguments, expected = make_case(name, dtype)
    assert_masses_agree(native.emulate_attention_mass(q, k, *arguments), expected, dtype)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lse", [0.0, float("nan"), float("-inf"), float("inf"), -1e30])
@pytest.mark.parametrize("name", ["left padding", "first rows see nothing"])
def test_rows_that_see_no_key_have_mass_0_whatever_their_lse(name, lse, dtype):
    q, k, arguments, expected = make_case(name, dtype)
    blind = arguments[0].isneginf()
    assert blind.any()
    arguments[0] = arguments[0].masked_fill(blind, lse)
    result = native.emulate_attention_mass(q, k, *arguments)
    assert (result[blind] == 0).all()
    assert_masses_agree(result, expected, dtype)


@needs_library
def test_sums_of_many_keys_are_those_of_softmax():
    """The two sets hold all keys, so the masses of a row add up to 1; scores are large."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 9, 64, generator=generator) * 3, torch.randn(1, 1, 700, 64, generator=generator) * 3
    lse = torch.logsumexp(q.double() @ k.double().transpose(-1, -2), -1)
    columns, counts = torch.arange(700, dtype=torch.int32)[None], torch.tensor([[300, 400]], dtype=torch.int32)
    mass = native.emulate_attention_mass(q, k, lse, columns, counts, None, False, 0, 1.0, 0, 9)
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 2, 9), rtol=0, atol=1e-4)


@gpu_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_masses_on_the_gpu_agree_with_the_reference(name, dtype):
    q, k, arguments, expected = make_case(name, dtype)
    on_device = [value.cuda() if isinstance(value, torch.Tensor) else value for value in arguments]
    result = native.attention_mass_cuda(q.cuda(), k.cuda(), *on_device)
    torch.cuda.synchronize()
    assert_masses_agree(result, expected, dtype)


@gpu_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_with_mass_takes_the_cuda_backend(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 300, 64, generator=generator).to(dtype).cuda() for heads in (8, 2, 2))
    kinds = torch.randint(3, (2, 300), generator=generator).to(torch.int8).cuda()
    result = attention_with_mass(q, k, v, kinds, causal=True, backend="sdpa+cuda")
    expected = attention_with_mass(q, k, v, kinds, causal=True, backend="sdpa+reference")
    torch.testing.assert_close(result.image, expected.image, rtol=2e-3, atol=2e-5)
    torch.testing.assert_close(result.text, expected.text, rtol=2e-3, atol=2e-5)


# -- errors --------------------------------------------------------------------------------------------------------


def mask_call(**changes):
    """Return the C arguments of a small masking call, and the tensors they point into."""
    images = torch.zeros(1, 4, 4, 3)
    table = variant_table(geometry_of((4, 4, 3), "hwc"), [0.5], [0], [(0, 0)], 0, "pixel", [0]).to(torch.uint32)
    out = torch.empty(1, 4, 4, 3)
    names = ("out", "images", "variants", "num_variants", "fill", "geometry", "dtype", "kind", "layout")
    values = native._mask_arguments(images, table, [0.0] * 3, "pixel", "hwc", [4, 4, 3, 0, 0, 0], out)
    arguments = dict(zip(names, values, strict=True)) | changes
    return list(arguments.values()), (images, table, out)


MASS_NAMES = (
    *("mass", "q", "k", "lse", "columns", "counts", "mask", "q_strides", "k_strides", "mask_strides", "batch", "heads"),
    *("kv_heads", "queries", "keys", "dim", "dtype", "causal", "query_offset", "scale", "row_start", "row_stop"),
)


def mass_call(**changes):
    """Return the C arguments of a small attention-mass call, and the tensors they point into."""
    q, k, lse = torch.zeros(1, 2, 3, 16), torch.zeros(1, 1, 4, 16), torch.zeros(1, 2, 3)
    columns, counts = torch.arange(4, dtype=torch.int32)[None], torch.tensor([[2, 1]], dtype=torch.int32)
    call = native._MassCall(q, k, lse, columns, counts, None, False, 0, 1.0, 0, 3)
    arguments = dict(zip(MASS_NAMES, call.arguments, strict=True)) | changes
    return list(arguments.values()), call


def geometry(*values):
    return (ctypes.c_int64 * 6)(*values)


WRONG_MASKS = [
    {"dtype": 4},
    {"kind": 3},
    {"layout": -1},
    {"num_variants": -1},
    {"out": None},
    {"images": None},
    {"fill": None},
    {"geometry": geometry(0, 4, 3, 0, 0, 0)},
    {"geometry": geometry(4, 4, 17, 0, 0, 0)},
    {"geometry": geometry(2**20, 2**20, 3, 0, 0, 0)},
    {"geometry": geometry(4, 4, 3, 0, 1, 1), "layout": 2},
    {"geometry": geometry(4, 4, 3, 2, 1, 0), "layout": 2},
    {"geometry": geometry(4, 4, 3, 3, 1, 1), "layout": 2},
    {"geometry": geometry(4, 4, 3, 2, 4, 1), "layout": 2},
    {"geometry": geometry(500, 500, 3, 500, 1, 2), "layout": 2},
]
WRONG_MASSES = [
    {"dtype": 0},
    {"dtype": 4},
    {"q": None},
    {"k": None},
    {"mass": None},
    {"q_strides": None},
    {"kv_heads": 0},
    {"heads": 3, "kv_heads": 2},
    {"batch": -1},
    {"dim": 0},
    {"keys": 2**31},
    {"row_start": -1},
    {"row_start": 2, "row_stop": 1},
    {"row_stop": 4},
]


@needs_library
@pytest.mark.parametrize("changes", WRONG_MASKS, ids=lambda changes: "-".join(changes))
def test_masking_refuses_bad_arguments(changes):
    arguments, _tensors = mask_call(**changes)
    assert BUILT.hs_cuda_emulate_mask_pixels(*arguments) == INVALID_VALUE
    assert BUILT.hs_cuda_mask_pixels(*arguments, None) == INVALID_VALUE


@needs_library
@pytest.mark.parametrize("changes", WRONG_MASSES, ids=lambda changes: "-".join(changes))
def test_attention_mass_refuses_bad_arguments(changes):
    arguments, _call = mass_call(**changes)
    assert BUILT.hs_cuda_emulate_attention_mass(*arguments) == INVALID_VALUE
    assert BUILT.hs_cuda_attention_mass(*arguments, None) == INVALID_VALUE


@needs_library
def test_no_work_needs_no_device():
    arguments, _tensors = mask_call(num_variants=0, out=None, variants=None)
    assert BUILT.hs_cuda_mask_pixels(*arguments, None) == 0
    for changes in ({"row_stop": 0}, {"batch": 0}, {"heads": 0}):
        arguments, _call = mass_call(**changes)
        assert BUILT.hs_cuda_attention_mass(*arguments, None) == 0


@needs_library
def test_errors_carry_cudas_message():
    with pytest.raises(native.NativeError, match=r"libhardsample_cuda: invalid argument \(CUDA error 1\)"):
        native._check_cuda(BUILT, INVALID_VALUE)


@needs_library
@pytest.mark.skipif(driver(), reason="there is a CUDA driver here, and these calls have host pointers")
def test_calls_without_a_device_say_so():
    mask_arguments, _tensors = mask_call()
    mass_arguments, _call = mass_call()
    for code in (
        BUILT.hs_cuda_mask_pixels(*mask_arguments, None),
        BUILT.hs_cuda_attention_mass(*mass_arguments, None),
    ):
        assert code > 0
        with pytest.raises(native.NativeError, match=rf"libhardsample_cuda: .*(driver|device).*\(CUDA error {code}\)"):
            native._check_cuda(BUILT, code)
