"""Images small enough for the page, as WebP in data: URIs, plain and under the masks of a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hardsample.engines.masking import MaskDraw, mask_images
from hardsample.kernels.keys import mask_key
from hardsample.report.parts.document import Thumbnail

SIDES = (256, 192, 128, 96)
"""Longest sides in pixels to try until an image is small enough."""
MOST_IMAGES = 3
_QUALITY = 70


def small_images(images: Sequence[Image.Image], count: int, most_bytes: int) -> Iterator[Thumbnail]:
    """Yield the images of a record as thumbnails.

    Args:
        images: the first images of the record.
        count: number of images of the record.
        most_bytes: target size of each.
    """
    for index, image in enumerate(images):
        yield packed(image, "the image" if count == 1 else f"image {index + 1} of {count}", most_bytes)


def masked_images(
    image: Image.Image,
    sample: str,
    ratios: Sequence[float],
    threshold: float | None,
    settings: Mapping[str, Any],
    most_bytes: int,
) -> Iterator[Thumbnail]:
    """Yield the first image of a record under the masks of realization 0, drawn on its original pixels.

    Args:
        image: mode RGB.
        sample: id of the record, which the masks depend on.
        ratios: to show.
        threshold: λ*, which is highlighted.
        settings: `seed` and `mask_kind` of run.json.
        most_bytes: target size of each.
    """
    key = mask_key(settings["seed"], sample)
    pixels = torch.from_numpy(np.array(image))
    for ratio in ratios:
        (masked,) = mask_images([pixels], [MaskDraw(ratio, 0, key)], kind=settings["mask_kind"])
        yield packed(Image.fromarray(masked.numpy()), f"λ {ratio:g}", most_bytes, ratio == threshold)


def shown_ratios(ratios: Sequence[float], threshold: float | None, most: int = 5) -> list[float]:
    """Return the mask ratios to show: some evenly spaced ones, and λ*.

    Args:
        ratios: Λ.
        threshold: λ*.
        most: number of ratios, apart from λ*.
    """
    count = min(most, len(ratios))
    even = {ratios[round(index * (len(ratios) - 1) / max(count - 1, 1))] for index in range(count)}
    return sorted(even | ({threshold} if threshold is not None else set()))


def packed(image: Image.Image, caption: str, most_bytes: int, marked: bool = False) -> Thumbnail:
    """Return an image of at most 256 pixels a side, smaller if it would not fit.

    Args:
        image: mode RGB.
        caption: below it.
        most_bytes: before base64; the smallest size is used even if it needs more.
        marked: whether to highlight it.
    """
    small = image
    for side in SIDES:
        scale = min(1.0, side / max(small.size))
        width, height = (max(1, round(scale * length)) for length in small.size)
        small = small.resize((width, height), reducing_gap=2.0)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=_QUALITY)
        if file.tell() <= most_bytes:
            break
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Thumbnail(uri, caption, *small.size, marked)
