"""Which records' pictures a model's processor can take, found out from headers before any weights are loaded."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset
from PIL import Image

from hardsample.containers import TABLE_BATCH
from hardsample.data import Rejection
from hardsample.images import DEFAULT_MAX_PIXELS, ImageError, image_header, to_rgb

logger = logging.getLogger(__name__)

Header = tuple[int, int, str]
"""Width and height in pixels, and Pillow's mode."""


def check_images(
    dataset: Dataset, processor: Any, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[Dataset, list[Rejection]]:
    """Set aside the records with a picture that the processor refuses; it is asked once for each (width, height, mode).

    It is given a blank picture of that size and mode, made RGB as `open_image` does. What only shows in the pixels
    themselves shows when the picture is prepared.

    Args:
        dataset: `Loaded.dataset`, or a part of it.
        processor: a model's processor (its `image_processor` is asked), or an image processor.
        max_pixels: width × height above which a picture is refused, in pixels.

    Returns:
        The records that are left, and those set aside under their number in the file (`record_number`).
    """
    prepare = getattr(processor, "image_processor", None) or processor
    verdicts: dict[Header, str | None] = {}
    rejected: list[Rejection] = []
    kept: list[int] = []
    columns = dataset.select_columns(["record_number", "id", "images"]).with_format("arrow")
    for index, row in enumerate(row for table in columns.iter(TABLE_BATCH) for row in table.to_pylist()):
        reasons = (_refusal(ref, prepare, verdicts, max_pixels) for ref in row["images"])
        reason = next((text for text in reasons if text), None)
        if reason is None:
            kept.append(index)
        else:
            rejected.append(Rejection(row["record_number"], row["id"], f"column 'images': {reason}"))
    logger.info("%d kinds of picture tried with the processor, %d records set aside", len(verdicts), len(rejected))
    return (dataset.select(kept) if rejected else dataset), rejected


def _refusal(ref: Any, prepare: Any, verdicts: dict[Header, str | None], max_pixels: int) -> str | None:
    try:
        header = image_header(ref, max_pixels=max_pixels)
    except ImageError as error:
        return str(error)
    if header not in verdicts:
        verdicts[header] = _verdict(header, prepare)
    return verdicts[header]


def _verdict(header: Header, prepare: Any) -> str | None:
    """Why the processor refuses a picture of this size and mode; None: it takes it."""
    width, height, mode = header
    blank = to_rgb(Image.new(mode, (width, height)))
    try:
        prepare(images=blank, return_tensors="pt")
    except Exception as error:  # noqa: BLE001 - processors raise what they like, and the record cannot be prepared
        reason = str(error) or type(error).__name__
        return f"the processor refuses a picture of {width} × {height} pixels ({reason}); resize it"
    return None
