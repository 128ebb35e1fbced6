"""A checked masking call as numbers: the variant table and the geometry that every backend reads."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from .keys import Key, ratio_units
from .reference import check_mask, mask_rectangle

LAYOUTS = ("hwc", "chw", "patches")
COLUMNS = ("key0", "key1", "image_index", "realization", "units", "source", "y", "x", "height", "width")
"""Columns of the variant table: the Philox key, two counter words, round(λ · 65536), the row of the image stack, and
the rectangle (zeros for the other kinds). In C it is `hs_variant`."""


class Geometry(NamedTuple):
    """The masked space of one image and how its values lie in memory; patch, merge and frames for `patches` only."""

    height: int
    width: int
    channels: int
    patch: int = 0
    merge: int = 0
    frames: int = 0


def geometry_of(
    shape: Sequence[int],
    layout: str,
    grid_thw: Sequence[int] | None = None,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
) -> Geometry:
    """Return the masked space of one image of this shape; the arguments are those of `ops.mask_pixels`.

    Raises:
        ValueError: the layout is unknown, or the patches do not match the grid; the message names the value.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, must be one of {', '.join(LAYOUTS)}")
    if layout == "hwc":
        return Geometry(shape[0], shape[1], shape[2])
    if layout == "chw":
        return Geometry(shape[1], shape[2], shape[0])
    rows, features = shape
    if grid_thw is None or len(grid_thw) != 3 or grid_thw[0] != 1 or grid_thw[1] * grid_thw[2] != rows:
        raise ValueError(
            f"grid_thw is {grid_thw}, must be (1, gh, gw) of one still image with gh · gw = {rows} patches"
        )
    if grid_thw[1] % merge_size or grid_thw[2] % merge_size:
        raise ValueError(f"grid_thw is {grid_thw}, must have sides that are multiples of merge_size {merge_size}")
    channels, rest = divmod(features, temporal_patch_size * patch_size**2)
    if rest or not channels:
        raise ValueError(
            f"a patch has {features} values, must be channels · {temporal_patch_size} · {patch_size}²: "
            "pass the processor's patch_size and temporal_patch_size"
        )
    return Geometry(
        grid_thw[1] * patch_size, grid_thw[2] * patch_size, channels, patch_size, merge_size, temporal_patch_size
    )


def variant_table(
    geometry: Geometry,
    ratios: Sequence[float | Fraction],
    realizations: Sequence[int],
    keys: Sequence[Key],
    image_index: int | Sequence[int],
    kind: str,
    sources: Sequence[int],
) -> Int64[Tensor, "variants 10"]:
    """Check every variant and write one row each, in the order of `COLUMNS`.

    Args:
        geometry: of the images.
        ratios: λ of each variant, 0 … 1.
        realizations: k of each variant, 0 … 2³²−1.
        keys: Philox key of each variant.
        image_index: index of the image in its record, for all variants or for each.
        kind: `pixel`, `patch` or `rectangle`.
        sources: which image of the stack each variant masks.

    Returns:
        int64 (variants, 10), on the CPU.

    Raises:
        ValueError: lengths differ, or a value is out of range; the message names it.
    """
    count = len(ratios)
    if not len(realizations) == len(keys) == count:
        raise ValueError(
            f"{count} ratios, {len(realizations)} realizations, {len(keys)} keys: give one of each per variant"
        )
    indices = [image_index] * count if isinstance(image_index, int) else list(image_index)
    if len(indices) != count:
        raise ValueError(
            f"image_index has {len(indices)} entries for {count} variants: give one number, or one per variant"
        )
    rows = []
    for ratio, realization, key, index, source in zip(ratios, realizations, keys, indices, sources, strict=True):
        check_mask(geometry.height, geometry.width, realization, index, kind)
        rectangle = (0, 0, 0, 0)
        if kind == "rectangle":
            rectangle = mask_rectangle(geometry.height, geometry.width, ratio, realization, key, index)
        rows.append((*key, index, realization, ratio_units(ratio), source, *rectangle))
    return torch.tensor(rows, dtype=torch.int64).view(count, len(COLUMNS))


def fill_values(fill: float | Sequence[float], channels: int, dtype: torch.dtype) -> list[float]:
    """Return one fill value per channel, checked against the images' dtype.

    Raises:
        ValueError: their number is wrong, or they are not integers in 0 … 255 for integer images.
    """
    values = [float(fill)] * channels if isinstance(fill, (int, float)) else [float(value) for value in fill]
    if len(values) != channels:
        raise ValueError(f"fill has {len(values)} values for {channels} channels: give one number, or one per channel")
    if not dtype.is_floating_point and not all(0 <= value <= 255 and value == int(value) for value in values):
        raise ValueError(f"fill is {values}, must be integers in 0 … 255 for {dtype} images")
    return values
