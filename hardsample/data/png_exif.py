"""Find the EXIF block of a PNG anywhere in the file from the chunk headers, without decoding pixels.

Without decoding the whole file, Pillow only finds EXIF before the pixels. Camera tools and ImageMagick also write it
after them, or as hexadecimal text ("Raw profile type exif" or APP1).
"""

from __future__ import annotations

import struct
import zlib
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 1 << 20
"""A longer block is not read, nor is a text that decompresses to more."""
_PROFILES = (b"raw profile type exif", b"raw profile type app1")


def png_exif(file: IO[bytes]) -> bytes | None:
    """Return the EXIF block of a PNG; the file's position is restored.

    Args:
        file: the open file.

    Returns:
        The block, starting with its byte order, or None. An eXIf chunk takes precedence over a profile.
    """
    position = file.tell()
    try:
        file.seek(0)
        return _search(file) if file.read(8) == SIGNATURE else None
    finally:
        file.seek(position)


def _search(file: IO[bytes]) -> bytes | None:
    profile: bytes | None = None
    while len(head := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            break
        if size > MOST_BYTES or name not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            file.seek(size + 4, 1)
            continue
        body = file.read(size)
        file.seek(4, 1)
        if name == b"eXIf":
            return _bare(body)
        profile = profile or _profile(name, body)
    return profile


def _profile(name: bytes, body: bytes) -> bytes | None:
    """Decode a block that ImageMagick wrote as text: a line with the kind, one with the length, then hexadecimal."""
    keyword, _, rest = body.partition(b"\0")
    if keyword.lower() not in _PROFILES:
        return None
    try:
        if name == b"zTXt":
            rest = zlib.decompressobj().decompress(rest[1:], MOST_BYTES)
        elif name == b"iTXt":
            packed, rest = rest[:1] == b"\x01", rest[2:].split(b"\0", 2)[-1]
            rest = zlib.decompressobj().decompress(rest, MOST_BYTES) if packed else rest
        lines = rest.decode("latin-1").strip().split("\n")
        return _bare(bytes.fromhex("".join(lines[2:])))
    except (zlib.error, ValueError, IndexError):
        return None


def _bare(block: bytes) -> bytes | None:
    """Return the block without its prefix."""
    return block.removeprefix(b"Exif\0\0") or None
