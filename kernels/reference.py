"""Pixel masking in plain PyTorch: the definition that every other backend must match bit for bit.

Random bits come from Philox4x32 with 7 rounds, a counter-based generator: a mask is a function of (seed, sample id,
image index, realization, ratio) and of nothing else, so it does not depend on batch size, order, device or backend.
The key is the BLAKE2b digest of seed and id. The counter words are

    (draw // 8, image index, realization, round(λ · 65536)),

the four output words are eight 16-bit lanes, low half first, and draw d is below the ratio iff

    lane[d mod 8] < round(λ · 65536), compared as unsigned 32-bit integers: 0 masks nothing, 65536 everything.

Kinds: `pixel` makes one draw for each pixel, in raster order y · W + x of the masked space whatever the tensor's
layout; `patch` one for each square of 14 × 14 pixels; `rectangle` masks one rectangle (see `mask_rectangle`).

All arithmetic is on int64 tensors that hold 32-bit values.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .keys import _LOW32, FULL_RATIO, KINDS, PATCH_SIZE, RECTANGLE_DRAW, Key, philox, ratio_units

_BLOCK = 32768  # calls at a time: temporaries stay in the cache, and torch starts no thread for so few


def check_mask(height: int, width: int, realization: int, image_index: int, kind: str) -> None:
    """Check the inputs of the counter, so that no word wraps silently.

    Args:
        height: pixels of the masked space.
        width: pixels.
        realization: k.
        image_index: index of the image in its record.
        kind: mask kind.

    Raises:
        ValueError: names the value and its bounds.
    """
    if kind not in KINDS:
        raise ValueError(f"mask kind is {kind!r}, must be one of {', '.join(KINDS)}")
    if height < 1 or width < 1 or height * width >= RECTANGLE_DRAW // 8 * 8:
        raise ValueError(f"image is {width} x {height} pixels, must be at least 1 x 1 and under 2**32 pixels in all")
    for name, value in (("realization", realization), ("image_index", image_index)):
        if not 0 <= value <= _LOW32:
            raise ValueError(f"{name} is {value}, must be in 0 … 2**32 - 1")


def mask_rectangle(
    height: int, width: int, ratio: float | Fraction, realization: int, key: Key, image_index: int = 0
) -> tuple[int, int, int, int]:
    """Return the rectangle of kind `rectangle`, computed in integers only.

    With u = round(λ·65536) and the four Philox words r0 … r3 of draw 2³²−1:

        area   A = (u·H·W + 32768) >> 16, the pixel count nearest to λ·H·W; A = 0 gives (0, 0, 0, 0)
        shapes s = ⌈√A⌉; wide ones have the heights ⌈A/W⌉ … min(s, H), tall ones the widths ⌈A/H⌉ … min(s, W);
               for a given side a the other side is b = (2A + a) // 2a, nearest to A/a, which always fits
        choice i = (r0·n) >> 32 of the n shapes, the wide ones first, each group in ascending order
        offset y = (r1·(H−h+1)) >> 32, x = (r2·(W−w+1)) >> 32

    So the listed shapes are equally likely, images and their transposes are treated alike, the area is as near to A
    as the drawn side allows (|h·w − A| ≤ a/2 ≤ s/2), and u = 65536 always covers the whole image.

    Args:
        height: H, pixels of the masked space.
        width: W, pixels.
        ratio: λ, 0 … 1.
        realization: k, 0 … 2³²−1.
        key: see `mask_key`.
        image_index: index of the image in its record.

    Returns:
        (y, x, h, w): top row, left column, height and width of the masked rectangle, pixels.
    """
    units = ratio_units(ratio)
    area = (units * height * width + FULL_RATIO // 2) // FULL_RATIO
    if area == 0:
        return 0, 0, 0, 0
    r0, r1, r2, _ = philox((RECTANGLE_DRAW // 8, image_index, realization, units), key)
    side = isqrt(area - 1) + 1
    heights = range(-(-area // width), min(side, height) + 1)
    widths = range(-(-area // height), min(side, width) + 1)
    choice = (int(r0) * (len(heights) + len(widths))) >> 32
    if choice < len(heights):
        h = heights[choice]
        w = (2 * area + h) // (2 * h)
    else:
        w = widths[choice - len(heights)]
        h = (2 * area + w) // (2 * w)
    return (int(r1) * (height - h + 1)) >> 32, (int(r2) * (width - w + 1)) >> 32, h, w


def pixel_mask(
    height: int,
    width: int,
    ratio: float | Fraction,
    realization: int,
    key: Key,
    image_index: int = 0,
    kind: str = "pixel",
    device: torch.device | str | None = None,
) -> Bool[Tensor, "height width"]:
    """Draw one mask.

    Args:
        height: H, pixels of the masked space (at least 1).
        width: W, pixels (at least 1).
        ratio: λ, share of masked pixels, 0 … 1.
        realization: k, 0 … 2³²−1.
        key: see `mask_key`.
        image_index: index of the image in its record, 0 … 2³²−1.
        kind: `pixel`, `patch` (cells of 14 × 14 pixels in raster order, cut at the right and lower edge) or
            `rectangle`.
        device: of the mask; the CPU by default.

    Returns:
        True where the image takes the fill value, shape (height, width).

    Raises:
        ValueError: a size, the ratio, a counter word or the kind is out of range.
    """
    check_mask(height, width, realization, image_index, kind)
    units = ratio_units(ratio)
    if units in (0, FULL_RATIO):
        return torch.full((height, width), units > 0, dtype=torch.bool, device=device)
    if kind == "rectangle":
        y, x, h, w = mask_rectangle(height, width, ratio, realization, key, image_index)
        mask = torch.zeros((height, width), dtype=torch.bool, device=device)
        mask[y : y + h, x : x + w] = True
        return mask
    if kind == "pixel":
        return _draws_below(height * width, units, realization, key, image_index, device).view(height, width)
    rows, columns = -(-height // PATCH_SIZE), -(-width // PATCH_SIZE)  # ceiling division
    cells = _draws_below(rows * columns, units, realization, key, image_index, device).view(rows, columns)
    pixels = cells.repeat_interleave(PATCH_SIZE, 0).repeat_interleave(PATCH_SIZE, 1)
    return pixels[:height, :width].contiguous()


def mask_pixels(
    images: Tensor,
    variants: Tensor,
    fill: Sequence[float],
    kind: str,
    layout: str,
    geometry: Sequence[int],
    out: Tensor,
) -> None:
    """Mask each variant of a checked call: the definition of the op `hardsample::mask_pixels`.

    Args:
        images: (1 or more, *image), contiguous; layouts as in `hardsample.kernels.ops.mask_pixels`.
        variants: the table of `hardsample.kernels.variants.variant_table`, int64 (variants, 10), on the CPU.
        fill: one value per channel.
        kind: `pixel`, `patch` or `rectangle`.
        layout: `hwc`, `chw` or `patches`.
        geometry: height, width, channels, patch size, merge size, frames (the last three are 0 except for `patches`).
        out: (variants, *image), contiguous; written.
    """
    height, width, *_ = geometry
    image_shape, fill_shape, mask_shape, mask_order = _views(layout, geometry)
    fills = torch.tensor(fill, dtype=torch.float32, device=images.device).to(images.dtype).view(fill_shape)
    for row, (key0, key1, image_index, realization, units, source, *_) in enumerate(variants.tolist()):
        ratio = Fraction(units, FULL_RATIO)
        mask = pixel_mask(height, width, ratio, realization, (key0, key1), image_index, kind, images.device)
        mask = mask.view(mask_shape).permute(mask_order)
        torch.where(mask, fills, images[source].view(image_shape), out=out[row].view(image_shape))


def _views(
    layout: str, geometry: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the shapes in which image, fill and mask broadcast, and the order of the mask's dimensions."""
    height, width, channels, patch, merge, frames = geometry
    if layout == "hwc":
        return (height, width, channels), (channels,), (height, width, 1), (0, 1, 2)
    if layout == "chw":
        return (channels, height, width), (channels, 1, 1), (1, height, width), (0, 1, 2)
    blocks_y, blocks_x = height // (patch * merge), width // (patch * merge)
    return (
        (blocks_y, blocks_x, merge, merge, channels, frames, patch, patch),
        (channels, 1, 1, 1),
        (blocks_y, merge, patch, blocks_x, merge, patch, 1, 1),
        (0, 3, 1, 4, 6, 7, 2, 5),
    )


def _draws_below(
    draws: int, units: int, realization: int, key: Key, image_index: int, device: torch.device | str | None
) -> Bool[Tensor, " draws"]:
    """Make the draws 0 … draws−1 and return for each whether its 16-bit lane is below `units`."""
    calls = -(-draws // 8)
    below = torch.empty((calls, 8), dtype=torch.bool, device=device)
    for start in range(0, calls, _BLOCK):
        block = below[start : start + _BLOCK]
        counter: Int64[Tensor, " calls"] = torch.arange(start, start + len(block), dtype=torch.int64, device=device)
        for i, word in enumerate(philox((counter, image_index, realization, units), key)):
            block[:, 2 * i] = (word & 0xFFFF) < units
            block[:, 2 * i + 1] = (word >> 16) < units
    return below.view(-1)[:draws]
