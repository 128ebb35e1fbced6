"""Find the columns that hold a record's images, and columns that seem to. Pure: nothing is read from disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hardsample.data.records.conversation import RecordError

IMAGE_COLUMNS = ("decoded_image", "images", "image", "image_paths", "image_path")
"""The usual names, in order of preference; others are recognised by `_NAME` and by their values."""
OTHER_MEDIA = ("videos", "video", "video_path", "video_paths", "audios", "audio", "audio_path", "audio_paths")

_NAME = re.compile(
    r"(?:decoded|question|query|input|main|source|raw)?(?:image|img|picture|photo|figure)s?"
    r"(?:path|file|filename|name|url|uri|src|bytes|data)?s?|filename|filepath"
)
_IMAGE_NAME = re.compile(r"(?:\w*_)?(?:image|img)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:image|img)_?(\d{1,2})")
_FILE = re.compile(r"[^\n]{1,4000}\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|heic)(?:\?[^\s]*)?", re.IGNORECASE)
_MENTIONS_IMAGE = re.compile(
    r"[<\[({]image\b|\b(?:the|this|these|following|above|below|given|attached|shown)\s+(?:images?|pictures?|photos?|figure)\b"
    r"(?!\s+of\s+[a-z]\b)|图中|如图|图片|下图|上图",
    re.IGNORECASE,
)


def find_images(raw: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...], bool]:
    """Return the images in order, their columns, and whether the column holds a single image, not a list.

    Raises:
        RecordError: the record has video or audio.
    """
    for name in OTHER_MEDIA:
        if holds(raw.get(name)):
            raise RecordError(f"column {name!r} holds {str(raw[name])[:80]!r}: video and audio are not supported")
    for name in IMAGE_COLUMNS:
        if holds(value := raw.get(name)):
            return as_list(value), (name,), not isinstance(value, list | tuple)
    for name, value in raw.items():
        if not _NAME.fullmatch(_joined(name)):
            continue
        if looks_like_image(value) or (_IMAGE_NAME.match(name) and _are_texts(value)):
            return as_list(value), (name,), not isinstance(value, list | tuple)
    numbered = sorted(
        (int(match.group(1)), name)
        for name, value in raw.items()
        if (match := _NUMBERED.fullmatch(str(name).lower())) and holds(value)
    )
    images = [image for _, name in numbered for image in as_list(raw[name])]
    return images, tuple(name for _, name in numbered), False


def empty_image_columns(raw: Mapping[str, Any]) -> set[str]:
    """Return the image columns that hold no image; they need not be kept."""
    return {
        name
        for name, value in raw.items()
        if (name in IMAGE_COLUMNS or _NUMBERED.fullmatch(str(name).lower())) and not as_list(value)
    }


def unread_image(extra: Mapping[str, Any], question: str) -> str | None:
    """Return where a record without images seems to have one: in a column, or because the question mentions an image.

    Args:
        extra: the columns that are not read.
        question: the text of the user's turns.

    Returns:
        "column 'NAME'", "question", or None.
    """
    for name, value in extra.items():
        known = re.search(
            r"image|img|pic|photo|screen|diagram|chart|figure|media|files?\b|jpe?g|png", str(name), re.IGNORECASE
        )
        if looks_like_image(value) and (known or not isinstance(value, str)):
            return f"column {name!r}"
    return "question" if _MENTIONS_IMAGE.search(question) else None


def looks_like_image(value: Any) -> bool:
    """Return whether a value refers to an image: a file name, a data: URI, bytes, or a mapping with one of these."""
    if isinstance(value, list | tuple):
        return any(looks_like_image(item) for item in value)
    if isinstance(value, str):
        return (
            value.startswith(("data:image/", "http://", "https://", "file://"))
            or _FILE.fullmatch(value.strip()) is not None
        )
    if isinstance(value, Mapping):
        content = value.get("bytes") or value.get("path") or value.get("url")
        return bool(content) and (not isinstance(content, str) or looks_like_image(content) or bool(value.get("bytes")))
    return isinstance(value, bytes | bytearray) or hasattr(value, "getexif")


def holds(value: Any) -> bool:
    """Return whether a column holds anything that could be an image."""
    return any(item is not None and item != "" and not _empty_ref(item) for item in as_list(value))


def as_list(value: Any) -> list[Any]:
    """Return the column's images as a list; an empty column gives an empty list."""
    if value is None or (isinstance(value, str) and not value.strip()) or _empty_ref(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _are_texts(value: Any) -> bool:
    """Return whether a value is a text or a list of texts: paths and URLs without a known suffix."""
    return holds(value) and all(isinstance(item, str) for item in as_list(value))


def _joined(name: Any) -> str:
    return str(name).lower().replace("_", "").replace("-", "")


def _empty_ref(value: Any) -> bool:
    return isinstance(value, Mapping) and all(part is None for part in value.values())
