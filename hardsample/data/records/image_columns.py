"""Which columns of a record hold its images, and which look as if they did. Pure: nothing is read from disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hardsample.data.records.conversation import RecordError

IMAGE_COLUMNS = ("decoded_image", "images", "image", "image_paths", "image_path")
"""The usual names, in the order of preference; others are told by `_NAME` and by what they hold."""
OTHER_MEDIA = ("videos", "video", "video_path", "video_paths", "audios", "audio", "audio_path", "audio_paths")

_NAME = re.compile(
    r"(?:decoded|question|query|input|main|source|raw)?(?:image|img|picture|photo|figure)s?"
    r"(?:path|file|filename|name|url|uri|src|bytes|data)?s?|filename|filepath"
)
_SAYS_IMAGE = re.compile(r"(?:\w*_)?(?:image|img)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:image|img)_?(\d{1,2})")
_FILE = re.compile(r"[^\n]{1,4000}\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|heic)(?:\?[^\s]*)?", re.IGNORECASE)
_SPEAKS = re.compile(
    r"[<\[({]image\b|\b(?:the|this|these|following|above|below|given|attached|shown)\s+(?:images?|pictures?|photos?|figure)\b"
    r"(?!\s+of\s+[a-z]\b)|图中|如图|图片|下图|上图",
    re.IGNORECASE,
)


def find_images(raw: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...], bool]:
    """The record's images in order, the columns that they are from, and whether one column holds just one, no list.

    Raises:
        RecordError: the record has a video or a sound.
    """
    for name in OTHER_MEDIA:
        if holds(raw.get(name)):
            raise RecordError(f"column {name!r} holds {str(raw[name])[:80]!r}: videos and sounds are not read")
    for name in IMAGE_COLUMNS:
        if holds(value := raw.get(name)):
            return as_list(value), (name,), not isinstance(value, list | tuple)
    for name, value in raw.items():
        if _NAME.fullmatch(_joined(name)) and (looks_like_image(value) or (_SAYS_IMAGE.match(name) and _texts(value))):
            return as_list(value), (name,), not isinstance(value, list | tuple)
    numbered = sorted(
        (int(match.group(1)), name)
        for name, value in raw.items()
        if (match := _NUMBERED.fullmatch(str(name).lower())) and holds(value)
    )
    images = [image for _, name in numbered for image in as_list(raw[name])]
    return images, tuple(name for _, name in numbered), False


def empty_image_columns(raw: Mapping[str, Any]) -> set[str]:
    """Columns for images that hold none; they need not travel along."""
    return {
        name
        for name, value in raw.items()
        if (name in IMAGE_COLUMNS or _NUMBERED.fullmatch(str(name).lower())) and not as_list(value)
    }


def unread_image(extra: Mapping[str, Any], question: str) -> str | None:
    """Where a record without images seems to have one: a column that looks like one, or the question that speaks of it.

    Args:
        extra: the columns that are not read.
        question: what the user's turns say.

    Returns:
        "column 'NAME'", "question", or None.
    """
    for name, value in extra.items():
        known = re.search(
            r"image|img|pic|photo|screen|diagram|chart|figure|media|files?\b|jpe?g|png", str(name), re.IGNORECASE
        )
        if looks_like_image(value) and (known or not isinstance(value, str)):
            return f"column {name!r}"
    return "question" if _SPEAKS.search(question) else None


def looks_like_image(value: Any) -> bool:
    """Whether a value refers to an image: a file's name, a data: URI, bytes or a mapping that holds one of them."""
    if isinstance(value, list | tuple):
        return any(looks_like_image(item) for item in value)
    if isinstance(value, str):
        return (
            value.startswith(("data:image/", "http://", "https://", "file://"))
            or _FILE.fullmatch(value.strip()) is not None
        )
    if isinstance(value, Mapping):
        held = value.get("bytes") or value.get("path") or value.get("url")
        return bool(held) and (not isinstance(held, str) or looks_like_image(held) or bool(value.get("bytes")))
    return isinstance(value, bytes | bytearray) or hasattr(value, "getexif")


def holds(value: Any) -> bool:
    """Whether a column holds anything that could be an image."""
    return any(item is not None and item != "" and not _empty_ref(item) for item in as_list(value))


def as_list(value: Any) -> list[Any]:
    """The column's images; an absent one is an empty list."""
    if value is None or (isinstance(value, str) and not value.strip()) or _empty_ref(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _texts(value: Any) -> bool:
    """Whether a value is text or a list of texts: paths and addresses without a known suffix."""
    return holds(value) and all(isinstance(item, str) for item in as_list(value))


def _joined(name: Any) -> str:
    return str(name).lower().replace("_", "").replace("-", "")


def _empty_ref(value: Any) -> bool:
    return isinstance(value, Mapping) and all(part is None for part in value.values())
