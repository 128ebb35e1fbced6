"""Open images: any reference in a record becomes an RGB image as a person would see it, or an ImageError.

A reference is a path, `{"bytes", "path"}` (the bytes take precedence), bytes, a data: URI or a PIL image. Images larger
than `max_pixels` are rejected from the header, before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image

from hardsample.data.png_exif import png_exif
from hardsample.data.records.defaults import DEFAULT_MAX_PIXELS
from hardsample.errors import HardsampleError

LEAST_BASE64_CHARS = 60
_BASE64_OF_IMAGES = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0", "SUkq", "TU0A")
"""How PNG, JPEG, GIF, WebP, BMP and TIFF begin in base64."""


class ImageRef(TypedDict):
    """An item of the `images` column: the bytes of the file, or its absolute path."""

    bytes: bytes | None
    path: str | None


class ImageError(HardsampleError, ValueError):
    """An image that cannot be used; the message names the value, the bound and the fix."""


def open_image(ref: Any, *, max_pixels: int = DEFAULT_MAX_PIXELS, root: str | Path | None = None) -> Image.Image:
    """Open an image as a person would see it: first frame, upright, white where transparent, 8-bit RGB.

    Args:
        ref: path, `{"bytes", "path"}`, bytes, data: URI or PIL image.
        max_pixels: width × height above which the image is rejected, in pixels.
        root: folder that relative paths resolve against and paths may not leave; None: paths are used unchanged.

    Returns:
        RGB image without metadata, so that no later code rotates it a second time.

    Raises:
        ImageError: missing, outside the root, too large, truncated or not an image.
    """
    with _opened(ref, max_pixels, root) as image, _explained(image, ref):
        before = _orientation(image) if image.format == "PNG" else None  # its file is still open
        image.load()  # Pillow turns a TIFF upright here
        turn = _TURNS.get(_orientation(image) if before is None else before)
        rgb = to_rgb(image if turn is None else image.transpose(turn))
    rgb.info = {}
    return rgb


def image_header(
    ref: Any, *, max_pixels: int = DEFAULT_MAX_PIXELS, root: str | Path | None = None
) -> tuple[int, int, str]:
    """Read width and height (pixels, once upright) and Pillow's mode from the header; nothing is decoded.

    Args:
        ref: as in `open_image`.
        max_pixels: width × height above which the image is rejected, in pixels.
        root: as in `open_image`.

    Returns:
        (width, height, mode).

    Raises:
        ImageError: missing, outside the root, too large or not an image.
    """
    with _opened(ref, max_pixels, root) as image:
        width, height = image.size
        # Pillow gives a TIFF's size upright already
        if image.format != "TIFF" and _orientation(image) >= 5:
            width, height = height, width
        return width, height, image.mode


def file_bytes(ref: Any, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[bytes, str]:
    """Return an image as a file that any program shows as `open_image` does, and the file's suffix.

    A PNG, JPEG or WebP that is upright, opaque, in 8-bit grey or RGB and of one frame stays as it is. Any other becomes
    a PNG of what `open_image` shows.

    Args:
        ref: as in `open_image`.
        max_pixels: as in `open_image`.

    Raises:
        ImageError: missing, too large, truncated or not an image.
    """
    ref = as_ref(ref)
    with _explained(None, ref):
        content = ref["bytes"] if ref["bytes"] is not None else Path(ref["path"] or "").read_bytes()
    with _opened(content, max_pixels, None) as image:
        suffix = _SUFFIXES.get(image.format or "")
        plain = image.mode in ("RGB", "L") and not image.has_transparency_data and getattr(image, "n_frames", 1) == 1
        if suffix and plain and _orientation(image) == 1:
            return content, suffix
    buffer = io.BytesIO()
    open_image(content, max_pixels=max_pixels).save(buffer, "PNG")
    return buffer.getvalue(), "png"


def as_ref(ref: Any, root: str | Path | None = None) -> ImageRef:
    """Convert any image reference to `{"bytes", "path"}`, with absolute paths and links resolved.

    Args:
        ref: path, file: or data: URI, bytes, a PIL image, base64 text under "bytes", or a mapping with "bytes", "path"
            or "url".
        root: folder that relative paths resolve against and paths may not leave; None: paths are used unchanged.

    Raises:
        ImageError: a URL, a path outside the root, a missing file, or text that is not base64.
    """
    if isinstance(ref, bytes | bytearray | memoryview):
        return {"bytes": bytes(ref), "path": None}
    if isinstance(ref, Mapping):
        content, name = ref.get("bytes"), ref.get("path")
        if content:
            return {"bytes": _base64(content) if isinstance(content, str) else bytes(content), "path": name}
        inner = next((ref[key] for key in ("path", "url", "image_url", "image") if ref.get(key)), None)
        if inner is None:
            raise ImageError("the image has neither bytes nor a path; give one of them")
        return as_ref(inner, root)
    if isinstance(ref, Image.Image):
        return {"bytes": _png(ref), "path": None}
    if not isinstance(ref, str | os.PathLike):
        raise ImageError(f"an image cannot be of type {type(ref).__name__}; give a path, bytes or a data: URI")
    text = os.fspath(ref)
    scheme = re.match(r"(data|https?|ftp|s3|gs|hf|file):", text, re.IGNORECASE)
    kind = scheme.group(1).lower() if scheme else "path"
    if kind == "data":
        return {"bytes": _data_uri(text), "path": None}
    if kind == "file":
        return {"bytes": None, "path": _resolve(unquote(text.split(":", 1)[1].removeprefix("//")), root)}
    if kind != "path":
        raise ImageError(f"{_short(text)!r} is a URL; download the image first and give its path")
    if (content := _bare_base64(text)) is not None:
        return {"bytes": content, "path": None}
    return {"bytes": None, "path": _resolve(text, root)}


def _bare_base64(text: str) -> bytes | None:
    """Return the bytes of an image given as base64 text; None for any other text."""
    if len(text) < LEAST_BASE64_CHARS or "." in text or not text.startswith(_BASE64_OF_IMAGES):
        return None
    return _base64(text)


def _png(image: Image.Image) -> bytes:
    """Encode an image from memory as PNG; modes that PNG does not support become RGB."""
    with _explained(image, image):
        image.load()
        kept = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else to_rgb(image)
        turn = _TURNS.get(_orientation(image))
        buffer = io.BytesIO()
        (kept if turn is None else kept.transpose(turn)).save(buffer, "PNG", exif=b"")
    return buffer.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB; transparent parts become white, numeric modes are scaled, not clipped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_grey(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if not image.has_transparency_data:
        return image.convert("RGB")
    overlay = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), overlay).convert("RGB")


def _to_grey(values: np.ndarray, mode: str) -> np.ndarray:
    """Scale numbers to uint8, shape (height, width).

    Integers: white is the maximum of the smallest depth of 8, 10, 12 and 16 bits that holds all values, since 16-bit
    files often hold a camera's 12 bits. Floats: white is 1 if all values are in 0-1, and 255 if all are in 0-255.
    Values outside these ranges are stretched from the smallest to the largest.
    """
    if mode == "F":
        values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    white = next((top for top in _WHITES[mode[0]] if high <= top), None) if low >= 0 else None
    if white is None:
        low, white = low, high
    else:
        low = 0.0
    scaled = (values.astype(np.float64) - low) * 255.0 / max(white - low, 1e-300)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


_WHITES: dict[str, tuple[float, ...]] = {"I": (255.0, 1023.0, 4095.0, 65535.0), "F": (1.0, 255.0)}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the transpose that turns the image upright."""


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 if none can be read (viewers ignore a broken one too)."""
    try:
        if image.format != "PNG" or getattr(image, "fp", None) is None:
            exif = image.getexif()
        elif block := png_exif(image.fp):  # type: ignore[attr-defined]
            exif = Image.Exif()
            exif.load(b"Exif\0\0" + block)
        else:
            return 1
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a broken EXIF block can raise almost anything, and the pixels are fine
        return 1


@contextmanager
def _opened(ref: Any, max_pixels: int, root: str | Path | None) -> Iterator[Image.Image]:
    """Yield the image with its header read and its size checked."""
    if isinstance(ref, Image.Image):
        _check_size(ref, max_pixels, ref)
        yield ref
        return
    ref = as_ref(ref, root)
    with _explained(None, ref):
        image = Image.open(io.BytesIO(ref["bytes"]) if ref["bytes"] is not None else ref["path"])
    with image:
        _check_size(image, max_pixels, ref)
        yield image


def _check_size(image: Image.Image, max_pixels: int, ref: Any) -> None:
    width, height = image.size
    if width * height < 1:
        raise ImageError(f"image {_name(ref)} has no pixels ({width} × {height}); replace it")
    if width * height > max_pixels:
        raise ImageError(
            f"image {_name(ref)} has {width} × {height} = {width * height} pixels, "
            f"more than the {max_pixels} allowed; shrink it or raise max_pixels"
        )


@contextmanager
def _explained(image: Image.Image | None, ref: Any) -> Iterator[None]:
    """Turn Pillow's errors into an ImageError that says what is wrong."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"image {_name(ref)} is not in a format that Pillow reads; make it a PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {_name(ref)} is too large to open safely ({error}); shrink it") from error
    except Exception as error:  # decoders can raise almost anything on broken bytes
        state = "cannot be opened" if image is None else f"({image.format}) cannot be decoded"
        raise ImageError(f"image {_name(ref)} {state} ({error or type(error).__name__}); replace it") from error


def _resolve(text: str, root: str | Path | None) -> str:
    """Return the absolute path of an existing file, links resolved, checked to be inside the root if one is given."""
    folder = os.path.realpath(root or "")
    try:
        path = os.path.realpath(os.path.join(folder, text))
        if root is not None and os.path.commonpath((folder, path)) != folder:
            raise ImageError(f"{text!r} is outside {folder}; move the image there or set --image-root")
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        fix = "fix the path" if root is None else "fix the path or set --image-root"
        raise ImageError(f"file {text!r} does not exist under {folder}; {fix}") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, a symlink loop, a null byte
        raise ImageError(f"{_short(text)!r} is not a usable path ({error}); fix it") from error
    if not stat.S_ISREG(mode):
        raise ImageError(f"{text!r} is not a file; give the path of an image")
    return path


def _data_uri(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise ImageError(f"data: URI {_short(text)!r} has no comma; write data:image/png;base64,…")
    decode: Callable[[str], bytes] = _base64 if head.lower().endswith(";base64") else unquote_to_bytes
    return decode(body)


def _base64(text: str) -> bytes:
    packed = "".join(text.split())
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{_short(text)!r} is not base64 ({error}); encode the file again") from error


def _name(ref: Any) -> str:
    if isinstance(ref, Mapping):
        return repr(ref["path"]) if ref.get("path") else f"of {len(ref['bytes'] or b'')} bytes"
    return f"of mode {ref.mode}" if isinstance(ref, Image.Image) else repr(_short(str(ref)))


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
