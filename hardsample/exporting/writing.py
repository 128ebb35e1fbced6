"""Write rows as JSON lines, parquet or TSV, few at a time, into a folder that is there whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from hardsample.errors import HardsampleError
from hardsample.exporting.checking import cells
from hardsample.exporting.tables import columns
from hardsample.files import DATASET_INFO_FILE, EXPORT_FILE, REJECTED_FILE, REWARD_FILE

IMAGES_FOLDER = "images"
BATCH_ROWS, BATCH_BYTES = 256, 16 << 20
"""A parquet file's row group ends after so many rows, or so many bytes of images."""

_TEXT, _NUMBER = Value("string"), Value("float64")
DIFFICULTY = {
    "pism_stratum": _TEXT,
    "failure_threshold": _NUMBER,
    "success_rate": _NUMBER,
    "cmab_stratum": _TEXT,
    "attention_balance": _NUMBER,
}
_COMMON = {"id": _TEXT, "images": List(Image()), "ability": _TEXT, "grader": _TEXT, "options": _TEXT}
_COMMON |= {"box_format": _TEXT}
_MESSAGES = List({"role": _TEXT, "content": _TEXT})
_BLOCKS = List({"role": _TEXT, "content": List({"type": _TEXT, "text": _TEXT})})
FEATURES: dict[str, dict[str, Any]] = {
    "easyr1": {"problem": _TEXT, "answer": _TEXT, "grading": _TEXT},
    "verl": {
        "data_source": _TEXT,
        "prompt": _MESSAGES,
        "reward_model": {"style": _TEXT, "ground_truth": _TEXT},
        "extra_info": {"index": Value("int64"), "id": _TEXT, "grading": _TEXT},
    },
    "prime-rl": {"prompt": _BLOCKS, "answer": _TEXT, "info": _TEXT},
}
"""Types of the columns of each parquet format, beside those that all have."""


_OURS = re.compile(
    rf"images|train\.(?:jsonl|parquet)|hardsample_\w+\.(?:tsv|py)|pyproject\.toml|{re.escape(EXPORT_FILE)}"
    rf"|{re.escape(REJECTED_FILE)}|{re.escape(REWARD_FILE)}|{re.escape(DATASET_INFO_FILE)}"
)
"""Names of what an export writes."""


class FolderError(HardsampleError, ValueError):
    """A folder that cannot be replaced; the message names it and the fix."""


class RowFile(Protocol):
    """A file that takes rows."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row."""

    def close(self) -> None:
        """Write what is left."""


class JsonLines:
    """A file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Parquet:
    """A parquet file with the types of a format, written in row groups; its images are of the type `Image`."""

    def __init__(self, path: Path, format_name: str, difficulty: list[str]) -> None:
        features = Features(_COMMON | FEATURES[format_name] | {name: DIFFICULTY[name] for name in difficulty})
        self._schema = features.arrow_schema
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row, when its group is full."""
        self._rows.append(row)
        self._bytes += sum(len(image["bytes"]) for image in row["images"])
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last group and close the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


class Table:
    """A TSV as VLMEvalKit reads it."""

    def __init__(self, path: Path, kind: str, difficulty: list[str]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        self._names = columns(kind, difficulty)
        self._writer.writerow(self._names)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        texts = cells(row)
        self._writer.writerow([texts.get(name, "") for name in self._names])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def image_name(content: bytes, suffix: str) -> str:
    """Return the name of an image's file: a digest of its bytes, so that no id or path of the data is part of it."""
    return f"{hashlib.blake2b(content, digest_size=12).hexdigest()}.{suffix}"


def image_file(folder: Path) -> Callable[[bytes, str], str]:
    """Return a function that writes an image under FOLDER/images, once, and returns its path from the folder."""
    (folder / IMAGES_FOLDER).mkdir()

    def write(content: bytes, suffix: str) -> str:
        name = f"{IMAGES_FOLDER}/{image_name(content, suffix)}"
        if not (folder / name).exists():
            (folder / name).write_bytes(content)
        return name

    return write


@contextmanager
def replacing(target: Path, marker: str) -> Iterator[Path]:
    """Give a new folder to fill, which takes the place of `target` when all went well.

    What others have put there since, such as the checkpoints of a training, moves to the new folder.

    Args:
        target: the folder.
        marker: a file that a folder of ours has; an existing folder without it is not replaced.

    Raises:
        FolderError: the target is there and not ours.
    """
    fresh, old = (target.with_name(f".{target.name}.hardsample.{end}") for end in ("new", "old"))
    _put_away(old, target)  # left by an export that was stopped
    if target.exists() and not (target / marker).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise FolderError(f"{target} exists and no `hardsample export` of this kind made it: name another --output")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if target.exists():
        target.replace(old)
    fresh.replace(target)
    _put_away(old, target)


def _put_away(old: Path, target: Path) -> None:
    """Remove the folder that `target` replaces, if there is one, but move to `target` what no export wrote."""
    if not old.exists():
        return
    if not target.exists():
        old.replace(target)
        return
    for entry in old.iterdir():
        if not _OURS.fullmatch(entry.name):
            if (target / entry.name).exists():
                raise FolderError(f"{entry} is left from an export that was stopped: move it to another place")
            entry.replace(target / entry.name)
    shutil.rmtree(old)
