"""Images of a training dataset, decoded by the code that scoring decodes them with.

`datasets` returns images as their files hold them: transparent, 16-bit, of floats. What a processor makes of those is
not what was scored, so a trainer's dataset returns images as scoring saw them: upright, on white, 8-bit RGB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from datasets import Dataset, List
from datasets import Image as Feature
from PIL import Image

from hardsample.data.images import ImageError, image_header, open_image

ANY_SIZE = sys.maxsize
"""Pixels: how large an image may be is decided where data is loaded."""
COLUMNS = ("images", "image")
"""Where TRL looks for images: a list of them, or one."""


class UnreadableImageError(ImageError):
    """An image of a dataset that cannot be decoded."""

    def __init__(self, message: str, ref: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.ref = ref
        """Its bytes and path as the dataset holds them; None if the error comes from another process."""


@dataclass
class RgbImage(Feature):
    """A column of images that are read as scoring reads them."""

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Image.Image:
        """Decode one image.

        Args:
            value: its bytes and path.
            token_per_repo_id: as for `datasets.Image`, which opens what is neither in the dataset nor on this machine.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        if not isinstance(value, dict):
            return value
        try:
            if not _lies_here(value):
                return open_image(super().decode_example(value, token_per_repo_id), max_pixels=ANY_SIZE)
            return open_image(value, max_pixels=ANY_SIZE)
        except (ImageError, OSError) as error:
            raise UnreadableImageError(str(error), value) from error


def undecoded(data: Dataset, column: str) -> Dataset:
    """Return a dataset whose images come as bytes and path."""
    feature = data.features[column]
    kind = List(Feature(decode=False)) if isinstance(feature, List) else Feature(decode=False)
    inner = feature.feature if isinstance(feature, List) else feature
    return (data.cast_column(column, kind) if isinstance(inner, Feature) else data).with_format(None)


def check_headers(data: Any) -> None:
    """Read the header of every image before a training begins; `load` has done so for data that it returned.

    Args:
        data: the training dataset.

    Raises:
        ImageError: a header cannot be read; names the sample and its file.
    """
    if not isinstance(data, Dataset) or "image_headers" in data.column_names:
        return
    for row, refs in _stored(data):
        for ref in refs:
            try:
                if _lies_here(ref):
                    image_header(ref, max_pixels=ANY_SIZE)
            except ImageError as error:
                raise ImageError(f"{name_of(data, row)}: {error}") from error


def name_of(data: Dataset, row: int) -> str:
    """Name a row by its number (that of its record, if known) and its id."""
    naming = data.select_columns([name for name in ("id", "record_number") if name in data.column_names])
    record = naming.with_format(None)[row] if naming.column_names else {}
    number = record.get("record_number", row)
    return f"record {number} (id {record['id']!r}) of the dataset" if "id" in record else f"row {row} of the dataset"


@contextmanager
def samples_named(*datasets: Any) -> Iterator[None]:
    """Name the sample of an image that cannot be decoded while the block runs.

    Args:
        datasets: where it may be from.

    Raises:
        ImageError: names the sample, and the file if it is one.
    """
    try:
        yield
    except UnreadableImageError as error:
        for data in datasets:
            name = _sample_with(data, error.ref) if isinstance(data, Dataset) and error.ref else None
            if name:
                raise ImageError(f"{name}: {error}") from error
        raise


def names_samples(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a trainer's method name the sample of an image that it cannot decode."""

    @wraps(method)
    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        with samples_named(self.train_dataset, getattr(self, "eval_dataset", None)):
            return method(self, *args, **kwargs)

    return named


def _sample_with(data: Dataset, ref: dict[str, Any]) -> str | None:
    return next((name_of(data, row) for row, refs in _stored(data) if ref in refs), None)


def _stored(data: Dataset) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield each row and its images, as bytes and path."""
    column = next((name for name in COLUMNS if name in data.column_names), None)
    if column is None:
        return
    for row, record in enumerate(undecoded(data.select_columns([column]), column)):
        value = record[column]
        refs = value if isinstance(value, list) else [value]
        yield row, [ref for ref in refs if isinstance(ref, dict) and {"bytes", "path"} <= set(ref)]


def _lies_here(ref: dict[str, Any]) -> bool:
    """Return whether an image is in the dataset or on this machine, not in an archive or at a URL."""
    return ref["bytes"] is not None or "://" not in str(ref["path"]) or Path(ref["path"]).exists()
