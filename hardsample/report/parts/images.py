"""Images small enough for the page: WebP in data: URIs, and the masks that a run really put on them."""

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
"""Longest sides in pixels that are tried, until an image is small enough."""
MOST_IMAGES = 3
_QUALITY = 70


def small_images(images: Sequence[Image.Image], count: int, most_bytes: int) -> Iterator[Thumbnail]:
    """Images of a record, small.

    Args:
        images: the first of them.
        count: how many it has.
        most_bytes: of each, as far as that can be had.
    """
    for place, image in enumerate(images):
        yield packed(image, "the image" if count == 1 else f"image {place + 1} of {count}", most_bytes)


def masked_images(
    image: Image.Image,
    sample: str,
    ratios: Sequence[float],
    threshold: float | None,
    settings: Mapping[str, Any],
    most_bytes: int,
) -> Iterator[Thumbnail]:
    """The first image of a record under the masks of realization 0, in its own pixels.

    Args:
        image: mode RGB.
        sample: id of the record, which the masks depend on.
        ratios: to show.
        threshold: λ*, which is marked.
        settings: of run.json: `seed`, `kind`.
        most_bytes: of each, as far as that can be had.
    """
    key = mask_key(settings["seed"], sample)
    pixels = torch.from_numpy(np.array(image))
    for ratio in ratios:
        (masked,) = mask_images([pixels], [MaskDraw(ratio, 0, key)], kind=settings["mask_kind"])
        yield packed(Image.fromarray(masked.numpy()), f"λ {ratio:g}", most_bytes, ratio == threshold)


def shown_ratios(ratios: Sequence[float], threshold: float | None, most: int = 5) -> list[float]:
    """Which mask ratios to show: some that lie evenly, and λ*.

    Args:
        ratios: Λ.
        threshold: λ*.
        most: without λ*.
    """
    count = min(most, len(ratios))
    even = {ratios[round(place * (len(ratios) - 1) / max(count - 1, 1))] for place in range(count)}
    return sorted(even | ({threshold} if threshold is not None else set()))


def packed(image: Image.Image, caption: str, most_bytes: int, marked: bool = False) -> Thumbnail:
    """An image of at most 256 pixels a side, smaller where it would not fit.

    Args:
        image: mode RGB.
        caption: below it.
        most_bytes: before base64; the smallest size is taken whatever it needs.
        marked: whether it is set off.
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
