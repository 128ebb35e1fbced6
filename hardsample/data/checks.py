"""Check from image headers, before any weights are loaded, which records a model's processor accepts."""

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
    """Reject the records with an image that the processor refuses; try each (width, height, mode) once.

    The processor gets a blank image of that size and mode, converted to RGB as `open_image` does. A fault in the pixels
    themselves shows up only when the image is prepared.

    Args:
        dataset: `Loaded.dataset`, or a part of it.
        processor: a model's processor (its `image_processor` is used), or an image processor; None where a server
            prepares the images: then only `max_pixels` is checked.
        max_pixels: width × height above which an image is refused, in pixels.

    Returns:
        The remaining records, and the rejected ones under their number in the file (`record_number`).
    """
    _log_each_message_once()
    prepare = getattr(processor, "image_processor", None) or processor
    verdicts: dict[Header, str | None] = {}
    rejected: list[Rejection] = []
    kept: list[int] = []
    # the images stay on disk: their headers were read together with the records
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
    logger.info("processor tried with %d image sizes and modes; %d records rejected", len(verdicts), len(rejected))
    return (dataset.select(kept) if rejected else dataset), rejected


class _FirstTimeOnly(logging.Filter):
    """A log filter that drops a message it has let through before."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this message is new."""
        message = record.getMessage()
        is_new = message not in self._messages
        self._messages.add(message)
        return is_new


def _log_each_message_once() -> None:
    """Keep transformers from repeating its warning about a tiny image at every rollout (its channels are known)."""
    source = logging.getLogger("transformers.image_utils")
    if not any(isinstance(log_filter, _FirstTimeOnly) for log_filter in source.filters):
        source.addFilter(_FirstTimeOnly())


def _verdict(header: Header, prepare: Any, max_pixels: int) -> str | None:
    """Return why an image of this size and mode is refused, or None if it is accepted."""
    width, height, mode = header
    if width * height > max_pixels:
        return f"{width} × {height} = {width * height} pixels are more than the {max_pixels} allowed; shrink it"
    if prepare is None:
        return None
    blank = to_rgb(Image.new(mode, (width, height)))
    try:
        prepare(images=blank, return_tensors="pt")
    except Exception as error:  # noqa: BLE001 - a processor may raise anything, and the record cannot be prepared
        reason = str(error) or type(error).__name__
        return f"the processor refuses an image of {width} × {height} pixels ({reason}); resize it"
    return None
