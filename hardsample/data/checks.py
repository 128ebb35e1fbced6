"""Which records' images a model's processor can take, found out from headers before any weights are loaded."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset
from PIL import Image

from hardsample.data.columns import BATCH_ROWS
from hardsample.data.images import DEFAULT_MAX_PIXELS, to_rgb
from hardsample.data.loading import Rejection

logger = logging.getLogger(__name__)

Header = tuple[int, int, str]
"""Width and height in pixels, and Pillow's mode."""


def check_images(
    dataset: Dataset, processor: Any, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[Dataset, list[Rejection]]:
    """Reject the records with an image that the processor refuses; it is asked once for each (width, height, mode).

    It is given a blank image of that size and mode, made RGB as `open_image` does. What only shows in the pixels
    themselves shows when the image is prepared.

    Args:
        dataset: `Loaded.dataset`, or a part of it.
        processor: a model's processor (its `image_processor` is asked), or an image processor; None where a server
            has it: then only `max_pixels` counts.
        max_pixels: width × height above which an image is refused, in pixels.

    Returns:
        The records that are left, and those rejected under their number in the file (`record_number`).
    """
    _say_once()
    prepare = getattr(processor, "image_processor", None) or processor
    verdicts: dict[Header, str | None] = {}
    rejected: list[Rejection] = []
    kept: list[int] = []
    # the images themselves stay on disk: the headers were read when the record was
    columns = dataset.select_columns(["record_number", "id", "image_headers"]).with_format("arrow")
    for index, row in enumerate(row for table in columns.iter(BATCH_ROWS) for row in table.to_pylist()):
        headers = [(header["width"], header["height"], header["mode"]) for header in row["image_headers"]]
        for header in headers:
            if header not in verdicts:
                verdicts[header] = _verdict(header, prepare, max_pixels)
        reason = next((verdicts[header] for header in headers if verdicts[header]), None)
        if reason is None:
            kept.append(index)
        else:
            rejected.append(Rejection(row["record_number"], row["id"], f"column 'images': {reason}"))
    logger.info("%d kinds of image tried with the processor, %d records rejected", len(verdicts), len(rejected))
    return (dataset.select(kept) if rejected else dataset), rejected


class _Once(logging.Filter):
    """Lets each sentence through once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this sentence is new."""
        sentence = record.getMessage()
        new = sentence not in self._said
        self._said.add(sentence)
        return new


def _say_once() -> None:
    """Keep transformers from repeating, for each rollout, what it says of one tiny image (its channels are clear)."""
    source = logging.getLogger("transformers.image_utils")
    if not any(isinstance(one, _Once) for one in source.filters):
        source.addFilter(_Once())


def _verdict(header: Header, prepare: Any, max_pixels: int) -> str | None:
    """Why an image of this size and mode cannot be taken; None: it can."""
    width, height, mode = header
    if width * height > max_pixels:
        return f"{width} × {height} = {width * height} pixels are more than the {max_pixels} allowed; shrink it"
    if prepare is None:
        return None
    blank = to_rgb(Image.new(mode, (width, height)))
    try:
        prepare(images=blank, return_tensors="pt")
    except Exception as error:  # noqa: BLE001 - processors raise what they like, and the record cannot be prepared
        reason = str(error) or type(error).__name__
        return f"the processor refuses an image of {width} × {height} pixels ({reason}); resize it"
    return None
