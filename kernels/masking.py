# mypy: allow-untyped-defs, allow-incomplete-defs
"""Pixel masking in Triton: one launch masks every variant on a CUDA device, bit-identical to the reference.

    out[v] = fill where pixel p of variant v is masked, images[source_v] elsewhere
    pixel      p = y · W + x is masked iff lane[p mod 8] < units_v, lanes of Philox4x32-7 at the counter
               (p // 8, image_index_v, realization_v, units_v)
    patch      the same of draw (y // 14) · ⌈W / 14⌉ + x // 14; a small first launch makes all draws
    rectangle  y_v <= y < y_v + height_v and x_v <= x < x_v + width_v

Masking writes far more than it computes, so the design optimizes stores: a program masks one block of pixels in all
channels and frames, each Philox call serves eight pixels in all of them, and adjacent threads write adjacent values, up
to 16 bytes each. Values are moved as bits, so one kernel serves all dtypes of a size.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .keys import PATCH_SIZE, ROUNDS
from .variants import COLUMNS

_ROUNDS = tl.constexpr(ROUNDS)
_CELL = tl.constexpr(PATCH_SIZE)
_COLUMNS = tl.constexpr(len(COLUMNS))
_IMAGE_INDEX = tl.constexpr(COLUMNS.index("image_index"))
_UNITS = tl.constexpr(COLUMNS.index("units"))
_SOURCE = tl.constexpr(COLUMNS.index("source"))
_TOP = tl.constexpr(COLUMNS.index("y"))


@triton.jit
def load_word(variant, column):
    """Load one column of a variant as uint32; the table holds bits as int32."""
    return tl.load(variant + column).to(tl.uint32, bitcast=True)


@triton.jit
def pair_below(word, units):
    """Compare two draws, the halves of a word, with `units`; return two bits."""
    return ((word & 0xFFFF) < units).to(tl.int32) | (((word >> 16) < units).to(tl.int32) << 1)


@triton.jit
def draw_eight(call, variant):
    """Return the draws 8 · call … 8 · call + 7 (call: uint32) as bits, the first lowest: 1 is masked."""
    key = load_word(variant, 0).to(tl.uint64) | (load_word(variant, 1).to(tl.uint64) << 32)
    units = load_word(variant, _UNITS)
    image_index, realization = load_word(variant, _IMAGE_INDEX), load_word(variant, _IMAGE_INDEX + 1)
    w0, w1, w2, w3 = tl.philox(key, call, image_index, realization, units, _ROUNDS)
    low = pair_below(w0, units) | (pair_below(w1, units) << 2)
    high = pair_below(w2, units) | (pair_below(w3, units) << 2)
    return low | (high << 4)


@triton.jit
def row_bits(y, x, inside, variant, cells, cells_x, KIND: tl.constexpr, STEP: tl.constexpr):
    """Return the STEP pixels of a row from (y, x) on as bits, the first lowest; for kinds `patch` and `rectangle`."""
    if KIND == "patch":
        row = cells + (y // _CELL).to(tl.int64) * cells_x
        bits = -tl.load(row + x // _CELL, mask=inside, other=0).to(tl.int32)
        if _CELL % STEP != 0:  # the pixels may lie in two cells
            last = tl.minimum((x + (STEP - 1)) // _CELL, (cells_x - 1).to(tl.uint32))
            own = (1 << (-(x % _CELL).to(tl.int32) + _CELL)) - 1
            bits = (bits & own) | (-tl.load(row + last, mask=inside, other=0).to(tl.int32) & ~own)
        bits &= (1 << STEP) - 1
    else:
        top, left = load_word(variant, _TOP), load_word(variant, _TOP + 1)
        bottom, right = top + load_word(variant, _TOP + 2), left + load_word(variant, _TOP + 3)
        start = tl.where(x < left, tl.minimum(left - x, STEP), 0).to(tl.int32)
        stop = tl.where(x < right, tl.minimum(right - x, STEP), 0).to(tl.int32)
        bits = tl.where((y >= top) & (y < bottom), (1 << stop) - (1 << start), 0)
    return bits


@triton.jit
def words_of(bits, word, CHANNELS: tl.constexpr, PACK: tl.constexpr, TYPE: tl.constexpr):
    """Return the mask bits of each word (1, n) of a group (groups,).

    Value i of word w belongs to pixel (w · PACK + i) // CHANNELS of the group.
    """
    WIDTH: tl.constexpr = TYPE.primitive_bitwidth // PACK
    words = tl.zeros([bits.shape[0], word.shape[1]], tl.uint32)
    for i in tl.static_range(PACK):
        on = (bits[:, None] >> ((word * PACK + i) // CHANNELS)) & 1
        words |= on.to(tl.uint32) * (((1 << WIDTH) - 1) << (WIDTH * i))
    return words.to(TYPE)


@triton.jit(do_not_specialize=["num_variants", "num_cells"])
def draw_cells(cells, table, num_variants, num_cells, GROUPS: tl.constexpr):
    """Store cells[v, d]: whether draw d of variant v is masked, for kind `patch`."""
    program = tl.program_id(0)
    v = (program % num_variants).to(tl.int64)
    call = (program // num_variants) * GROUPS + tl.arange(0, GROUPS)
    bits = draw_eight(call.to(tl.uint32), table + v * _COLUMNS)
    draw = call.to(tl.int64)[:, None] * 8 + tl.arange(0, 8)[None, :]
    masked = (bits[:, None] >> tl.arange(0, 8)[None, :]) & 1
    tl.store(cells + v * num_cells + draw, masked.to(tl.int8), mask=draw < num_cells)


@triton.jit(do_not_specialize=["num_variants", "plane", "pixels", "width", "num_cells", "cells_x"])
def mask_raster(
    out,
    images,
    table,
    cells,
    num_variants,
    plane,  # words of a channel (chw) or of an image (hwc), divided by ALIGN
    pixels,
    width,
    num_cells,
    cells_x,
    KIND: tl.constexpr,
    LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PACK: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Mask a block of GROUPS · 8 pixels of one variant in layout `hwc` or `chw`."""
    TYPE: tl.constexpr = out.dtype.element_ty
    program = tl.program_id(0)
    block, v = (program // num_variants).to(tl.int64), (program % num_variants).to(tl.int64)
    variant, fills = table + v * _COLUMNS, table + num_variants.to(tl.int64) * _COLUMNS
    source = load_word(variant, _SOURCE).to(tl.int64)
    plane = plane.to(tl.int64) * ALIGN  # tells the compiler the alignment of planes
    call = block.to(tl.uint32) * GROUPS + tl.arange(0, GROUPS).to(tl.uint32)
    if KIND == "pixel":
        bits = draw_eight(call, variant)
    else:
        cells += v * num_cells
        width = width.to(tl.uint32)
        first = call * 8
        inside = first.to(tl.int64) < pixels
        y = first // width
        x = first - y * width
        if WIDE:  # eight pixels lie in one row or two
            left = tl.minimum(width - x, 8).to(tl.int32)  # in the first row
            bits = row_bits(y, x, inside, variant, cells, cells_x, KIND, 8) & ((1 << left) - 1)
            inside &= first.to(tl.int64) + left < pixels
            bits |= row_bits(y + 1, tl.zeros_like(x), inside, variant, cells, cells_x, KIND, 8) << left
        else:
            pixel = first[:, None] + tl.arange(0, 8).to(tl.uint32)[None, :]
            inside = pixel.to(tl.int64) < pixels
            pixel_bits = row_bits(pixel // width, pixel % width, inside, variant, cells, cells_x, KIND, 1)
            bits = tl.sum(pixel_bits << tl.arange(0, 8)[None, :], 1)

    # A thread's share is whole vectors of four words: the pixels of one call, or of two where a word holds four values.
    UNIT: tl.constexpr = 16 if PACK == 4 else 8
    UNITS: tl.constexpr = GROUPS * 8 // UNIT
    if UNIT == 16:
        low, high = tl.split(tl.reshape(bits & 0xFF, [UNITS, 2]))
        bits = low | (high << 8)
    WORDS: tl.constexpr = UNIT // PACK * (1 if LAYOUT == "chw" else CHANNELS)  # of a share, in one plane
    if LAYOUT == "chw":
        masked = tl.reshape(words_of(bits, tl.arange(0, WORDS)[None, :], 1, PACK, TYPE), [UNITS * WORDS])
        offset = block * (UNITS * WORDS) + tl.arange(0, UNITS * WORDS)
        for c in tl.static_range(CHANNELS):
            fill = tl.load(fills + c).to(TYPE)
            value = tl.load(images + (source * CHANNELS + c) * plane + offset, mask=offset < plane)
            value = (value & ~masked) | (fill & masked)
            tl.store(out + (v * CHANNELS + c) * plane + offset, value, mask=offset < plane)
    else:
        for start in tl.static_range(0, WORDS, 4):
            word = start + tl.arange(0, 4)[None, :]
            masked = words_of(bits, word, CHANNELS, PACK, TYPE)
            fill = tl.load(fills + word % CHANNELS).to(TYPE)
            offset = block * (UNITS * WORDS) + (tl.arange(0, UNITS) * WORDS)[:, None] + word
            value = tl.load(images + source * plane + offset, mask=offset < plane)
            tl.store(out + v * plane + offset, (value & ~masked) | (fill & masked), mask=offset < plane)


@triton.jit(do_not_specialize=["num_variants", "blocks", "blocks_x", "num_cells", "cells_x"])
def mask_patches(
    out,
    images,
    table,
    cells,
    num_variants,
    blocks,
    blocks_x,
    num_cells,
    cells_x,
    KIND: tl.constexpr,
    CHANNELS: tl.constexpr,
    FRAMES: tl.constexpr,
    PATCH: tl.constexpr,
    MERGE: tl.constexpr,
    PACK: tl.constexpr,
    STEP: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    CALLS: tl.constexpr,
):
    """Mask a block of MERGE × MERGE consecutive patches of one variant in layout `patches`.

    Rows of a patch need not start at multiples of eight pixels. Groups of STEP = gcd(PATCH, 8) pixels never cross a
    Philox call; they find theirs among CALLS for each of the block's ROWS of pixels.
    """
    TYPE: tl.constexpr = out.dtype.element_ty
    SIDE: tl.constexpr = MERGE * PATCH
    AREA: tl.constexpr = PATCH * PATCH // PACK  # words of a patch
    SIZE: tl.constexpr = CHANNELS * FRAMES * AREA
    program = tl.program_id(0)
    block, v = (program // num_variants).to(tl.uint32), (program % num_variants).to(tl.int64)
    variant, fills = table + v * _COLUMNS, table + num_variants.to(tl.int64) * _COLUMNS
    source = load_word(variant, _SOURCE).to(tl.int64)
    blocks_x = blocks_x.to(tl.uint32)
    top, left, width = block // blocks_x * SIDE, block % blocks_x * SIDE, blocks_x * SIDE

    start = tl.arange(0, GROUPS).to(tl.uint32) * STEP  # first pixel of each group, counted patch by patch
    patch, pixel = start // (PATCH * PATCH), start % (PATCH * PATCH)
    y = (patch // MERGE) * PATCH + pixel // PATCH
    x = (patch % MERGE) * PATCH + pixel % PATCH
    if KIND != "pixel":
        inside = start < SIDE * SIDE
        bits = row_bits(top + y, left + x, inside, variant, cells + v * num_cells, cells_x, KIND, STEP)
    elif STEP == 8:
        bits = draw_eight(((top + y) * width + left + x) // 8, variant)
    else:
        i = tl.arange(0, ROWS * CALLS).to(tl.uint32)
        drawn = draw_eight(((top + i // CALLS) * width + left) // 8 + i % CALLS, variant)
        draw = ((top * width + left) % 8 + y * (width % 8)) % 8 + x
        at = tl.where(start < SIDE * SIDE, y * CALLS + draw // 8, 0)
        bits = tl.gather(drawn, at.to(tl.int32), 0) >> (draw % 8).to(tl.int32)

    WORDS: tl.constexpr = GROUPS * STEP // PACK
    masked = tl.reshape(words_of(bits, tl.arange(0, STEP // PACK)[None, :], 1, PACK, TYPE), [WORDS])
    word = tl.arange(0, WORDS)
    inside = word < MERGE * MERGE * AREA
    offset = (word // AREA) * SIZE + word % AREA
    block = block.to(tl.int64)
    images += (source * blocks + block) * (MERGE * MERGE * SIZE)
    out += (v * blocks + block) * (MERGE * MERGE * SIZE)
    for c in tl.static_range(CHANNELS):
        fill = tl.load(fills + c).to(TYPE)
        for t in tl.static_range(FRAMES):
            at = offset + (c * FRAMES + t) * AREA
            value = tl.load(images + at, mask=inside)
            tl.store(out + at, (value & ~masked) | (fill & masked), mask=inside)


class Launch(NamedTuple):
    """Compile-time constants for a kind, layout and value size, and the number of programs per variant."""

    kernel: Any
    constants: dict[str, Any]
    num_warps: int
    programs: int


def plan_launch(kind: str, layout: str, geometry: Sequence[int], item_size: int, pack: int) -> Launch:
    """Choose kernel, block sizes and warps.

    Args:
        kind: `pixel`, `patch` or `rectangle`.
        layout: `hwc`, `chw` or `patches`.
        geometry: see `hardsample.kernels.variants.Geometry`.
        item_size: bytes of a value: 1, 2 or 4.
        pack: values moved as one word, see `values_a_word`.
    """
    height, width, channels, patch, merge, frames = geometry
    if layout == "patches":
        side, step = patch * merge, gcd(patch, 8)
        constants = {
            "KIND": kind,
            "CHANNELS": channels,
            "FRAMES": frames,
            "PATCH": patch,
            "MERGE": merge,
            "PACK": pack,
            "STEP": step,
            "GROUPS": triton.next_power_of_2(side * side // step),
            "ROWS": triton.next_power_of_2(side),
            "CALLS": triton.next_power_of_2(triton.cdiv(8 - gcd(side, 8) + side, 8)),
        }
        return Launch(mask_patches, constants, 4, height * width // side**2)
    plane = height * width * (channels if layout == "hwc" else 1) // pack
    groups = 256 if item_size == 1 else 128  # 128 threads of 16 bytes each; of 2 × 16 bytes in fp32
    constants = {
        "KIND": kind,
        "LAYOUT": layout,
        "CHANNELS": channels,
        "PACK": pack,
        "WIDE": kind == "pixel" or width >= 8,
        "ALIGN": gcd(plane, 16),
        "GROUPS": groups,
    }
    return Launch(mask_raster, constants, 4, triton.cdiv(height * width, groups * 8))


def values_a_word(layout: str, geometry: Sequence[int], item_size: int, address: int = 0) -> int:
    """Return how many values can be moved as one word of at most 4 bytes; odd sizes and addresses allow fewer.

    Args:
        layout: `hwc`, `chw` or `patches`.
        geometry: see `hardsample.kernels.variants.Geometry`.
        item_size: bytes of a value.
        address: bitwise OR of the tensors' addresses.
    """
    height, width, channels, patch, *_ = geometry
    run = {"hwc": height * width * channels, "chw": height * width, "patches": patch}[layout]
    return gcd(4 // item_size, run, address // item_size)


CELL_GROUPS = 128
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def mask_pixels(
    images: Tensor,
    variants: Tensor,
    fill: Sequence[float],
    kind: str,
    layout: str,
    geometry: Sequence[int],
    out: Tensor,
) -> None:
    """Run the op `hardsample::mask_pixels` in Triton; the arguments are those of `reference.mask_pixels`."""
    height, width, *_ = geometry
    device, count, item_size = images.device, len(variants), images.element_size()
    pack = values_a_word(layout, geometry, item_size, images.data_ptr() | out.data_ptr())
    launch = plan_launch(kind, layout, geometry, item_size, pack)
    word = _WORDS[item_size * pack]
    fills = torch.tensor(fill, dtype=torch.float32).to(images.dtype)
    fills = fills.repeat(pack) if layout == "hwc" else fills.repeat_interleave(pack)
    table = torch.cat([variants.reshape(-1), fills.view(word).to(torch.int64)]).to(torch.int32)
    if device.type == "cuda":
        table = table.pin_memory()
    table = table.to(device, non_blocking=True)
    cells_x = triton.cdiv(width, PATCH_SIZE)
    num_cells = triton.cdiv(height, PATCH_SIZE) * cells_x if kind == "patch" else 0
    cells = torch.empty((count, num_cells), dtype=torch.int8, device=device)
    if layout == "patches":
        sizes = [launch.programs, width // (launch.constants["PATCH"] * launch.constants["MERGE"])]
    else:
        plane = out[0].numel() // (launch.constants["CHANNELS"] if layout == "chw" else 1) // pack
        sizes = [plane // launch.constants["ALIGN"], height * width, width]
    with torch.cuda.device_of(images):
        if kind == "patch":
            grid = (count * triton.cdiv(num_cells, CELL_GROUPS * 8),)
            draw_cells[grid](cells, table, count, num_cells, GROUPS=CELL_GROUPS, num_warps=4)
        launch.kernel[(count * launch.programs,)](
            *(out.view(-1).view(word), images.view(-1).view(word), table, cells, count, *sizes, num_cells, cells_x),
            **launch.constants,
            num_warps=launch.num_warps,
        )
