"""Small files of records and images, as the tests of reading data want them."""

import io
import json

from PIL import Image


def png_bytes(colour=(255, 0, 0), size=(4, 3)) -> bytes:
    """Return a PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(root, *records, name="data.jsonl"):
    """Write records, or lines as they are, and return the file."""
    path = root / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def record(**columns):
    """Return a record that would be accepted, with other columns."""
    return {"problem": "Q", "solution": "5", **columns}
