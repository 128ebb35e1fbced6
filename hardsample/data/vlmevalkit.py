"""Read VLMEvalKit's benchmark TSVs and write its prediction files.

A row has `index`, `question`, `answer` and its image, in base64 (`image`, one or a list) or as a path (`image_path`);
the options are in columns `A`, `B`, …; a `hint` goes before the question. A short text in `image` is the index of the
row that has the image. Rows are read one at a time, so files may be of any size.

In tables that `hardsample export` wrote, `hardsample_id` is the record's id (an index is a number), and a row with a
`grader` has its question as it was asked.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from datasets import Features, Value

from hardsample.data.records.conversation import RecordError
from hardsample.data.records.solutions import read_literal
from hardsample.errors import HardsampleError

MOST_REFERENCE_CHARS = 64
"""Longer texts in `image` are images, shorter ones the index of another row: VLMEvalKit's own limit."""
MOST_FIELD_CHARS = 1 << 28
"""A longer field comes from a quote that is never closed."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ID_COLUMN = "hardsample_id"
ASKS_FOR_YES_OR_NO = "Answer yes or no."
_PLACEHOLDER = re.compile(r"<image ?(\d{0,3})>")
_YES_NO = ("Yes", "No")

Row = dict[str, str]


class TableError(HardsampleError, ValueError):
    """The file is not a VLMEvalKit table; the message names it and the fix."""


def table_features(path: Path) -> Features:
    """Return the columns that records may keep, all of them text.

    Raises:
        TableError: the first line has no column `question`.
    """
    header = _header(path)
    return Features(
        {
            name: Value("string")
            for name in [*header, "original_id", "original_options"]
            if name not in ("image", ID_COLUMN)
        }
    )


def read_table(path: Path) -> Iterator[dict[str, Any] | RecordError]:
    """Yield the records of a TSV in the form that `formats` reads, with an error in place of an unreadable row.

    Args:
        path: the TSV.
    """
    images = _Images(path)
    for row in _rows(path):
        if isinstance(row, RecordError):
            yield row
            continue
        try:
            yield table_record(row, images)
        except RecordError as error:
            yield RecordError(str(error), _row_id(row))


def write_predictions(
    table: str | Path, target: str | Path, completion: Callable[[str], str | None]
) -> tuple[int, int]:
    """Write VLMEvalKit's prediction file: the table's columns without `image`, and `prediction`.

    Args:
        table: the TSV that was evaluated.
        target: file to write; a .tsv, which VLMEvalKit's loader reads without extra packages.
        completion: returns a sample's completion by its id, or None.

    Returns:
        The number of rows written, and of rows left out because they have no completion.

    Raises:
        TableError: the target is not a .tsv or is the table itself, or no row has a completion.
    """
    table, target = Path(table), Path(target)
    check_target(table, target)
    names = [name for name in _header(table) if name not in ("image", "prediction")]
    written: set[str] = set()
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".new")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([*names, "prediction"])
        for count, row in enumerate(_rows(table), start=1):
            sample = _row_id(row) or str(count - 1) if isinstance(row, dict) else ""
            text = completion(sample) if sample and sample not in written else None
            if isinstance(row, dict) and text is not None:
                writer.writerow([*(row[name] for name in names), text])
                written.add(sample)  # a second row with the same index was rejected
    if not written:
        partial.unlink()
        raise TableError(f"no row of {str(table)!r} has a completion: give the data that was evaluated")
    os.replace(partial, target)
    return len(written), count - len(written)


def check_target(table: str | Path, target: str | Path) -> None:
    """Check that predictions can be written: the data is a TSV, the target is another file that ends in .tsv.

    Raises:
        TableError: one of these does not hold.
    """
    table, target = Path(table), Path(target)
    if table.suffix.lower() != ".tsv" or not table.is_file():
        raise TableError(
            f"predictions need a VLMEvalKit .tsv as data, and {str(table)!r} is not one: omit --predictions"
        )
    if target.suffix.lower() != ".tsv":
        raise TableError(f"{str(target)!r} ends in {target.suffix!r}: name the prediction file MODEL_DATASET.tsv")
    if target.exists() and target.samefile(table):
        raise TableError(f"{str(target)!r} is the data itself: name another file")


def as_list(text: str) -> list[str]:
    """Return the items of a field that may hold a list (JSON or a Python literal), else the text as one item."""
    value = read_literal(text, MOST_FIELD_CHARS) if text.endswith("]") else None
    return [str(item) for item in value] if isinstance(value, list) else [text]


def table_record(row: Row, decode: Callable[[str], str]) -> dict[str, Any]:
    """Return the record of a row in the form that `formats` reads.

    Args:
        row: text of each column.
        decode: returns the base64 text of an image, of what the column `image` holds.

    Raises:
        RecordError: the options have a gap, or the image is not there.
    """
    options = _options(row)
    record: dict[str, Any] = {
        name: value or None for name, value in row.items() if name not in (*LETTERS, "image", ID_COLUMN)
    }
    for name in ("id", "options"):
        if record.get(name) is not None:
            record[f"original_{name}"] = record.pop(name)
    record["id"] = _row_id(row)
    record.setdefault("ability", record.get("category"))
    image = row.get("image", "")
    images: list[Any] = [{"bytes": decode(item)} for item in as_list(image)] if image and image != "nan" else []
    if images:
        record["image"] = images
    elif record.get("image_path") is not None:
        images = record["image_path"] = as_list(row["image_path"])
    has_options = bool(options) or row.get("choices", "") not in ("", "nan", "[]")  # MathVista's are in its question
    yes_no = row.get("answer", "").strip().capitalize() in _YES_NO and not has_options
    inferred = yes_no and bool(row.get("grader"))  # written by hardsample: `formats` reads yes and no as it did before
    question = _question(row)
    if yes_no and question and not inferred:
        question = f"{question}\n{ASKS_FOR_YES_OR_NO}"
    record["question"], *options = _mentions([question, *options], len(images))
    if options or (yes_no and not inferred):
        record["options"] = options or list(_YES_NO)
    return record


def _row_id(row: Row) -> str | None:
    return row.get(ID_COLUMN) or row.get("index") or None


def _question(row: Row) -> str:
    """Return hint and question; the options are added below later, as for all formats."""
    question = row.get("question", "")
    hint = row.get("hint", "")
    return f"Hint: {hint}\n{question}" if question.strip() and hint and hint != "nan" else question.strip() and question


def _mentions(texts: list[str], images: int) -> list[str]:
    """Turn placeholders into mentions unless they name each image exactly once; then the images go first."""
    numbers = {match.group(1) for text in texts for match in _PLACEHOLDER.finditer(text)}
    if not numbers or numbers == {str(number) for number in range(1, images + 1)}:
        return texts

    def mention(match: re.Match[str]) -> str:
        return f"(image {match.group(1)})" if match.group(1) else "(image)"

    return [_PLACEHOLDER.sub(mention, text) for text in texts]


def _options(row: Row) -> list[str]:
    letters = [letter for letter in LETTERS if row.get(letter, "") not in ("", "nan")]
    if letters and letters != list(LETTERS[: len(letters)]):
        missing = next(letter for letter in LETTERS if letter not in letters)
        raise RecordError(f"column {missing!r} is empty, {letters[-1]!r} is not: give the options from A without a gap")
    return [row[letter] for letter in letters]


class _Images:
    """The base64 image of a field: its own, or that of the row it names, looked up by its offset in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[str, int] | None = None

    def __call__(self, value: str) -> str:
        if len(value) > MOST_REFERENCE_CHARS:
            return value
        if self._offsets is None:
            self._offsets = _row_offsets(self._path)
        offset = self._offsets.get(value)
        if offset is None:
            raise RecordError(f"column 'image' holds {value!r}, which is not a row's index: give base64 or an index")
        row = next(_rows(self._path, offset))
        image = row.get("image", "") if isinstance(row, dict) else ""
        if len(image) <= MOST_REFERENCE_CHARS:
            raise RecordError(f"column 'image' names row {value!r}, which has no image of its own: name one that has")
        return as_list(image)[0]


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        _, names = next(_fields(file), (0, []))
    if isinstance(names, RecordError) or "question" not in names or len(set(names)) < len(names):
        columns = ", ".join(names[:20]) if isinstance(names, list) else str(names)
        raise TableError(
            f"{str(path)!r}: the first line must name the columns, each once, including 'question', as in VLMEvalKit; "
            f"it has {columns[:300] or 'none'}"
        )
    return names


def _rows(path: Path, offset: int | None = None) -> Iterator[Row | RecordError]:
    """Yield the rows, from a byte offset if one is given."""
    names = _header(path)
    with path.open("rb") as file:
        file.seek(offset or 0)
        for _, fields in islice(_fields(file), 1 if offset is None else 0, None):
            if isinstance(fields, RecordError):
                yield fields
            elif len(fields) != len(names):
                index = fields[names.index("index")] if "index" in names[: len(fields)] else None
                yield RecordError(
                    f"the row has {len(fields)} fields, the first line {len(names)}: fix tabs and quotes", index or None
                )
            else:
                yield dict(zip(names, fields, strict=True))


def _row_offsets(path: Path) -> dict[str, int]:
    """Return the byte offset of each index's row; the first row of an index counts, later ones are rejected."""
    names = _header(path)
    offsets: dict[str, int] = {}
    if "index" in names:
        column = names.index("index")
        with path.open("rb") as file:
            for offset, fields in islice(_fields(file), 1, None):
                if isinstance(fields, list) and len(fields) == len(names):
                    offsets.setdefault(fields[column], offset)
    return offsets


def _fields(file: IO[bytes]) -> Iterator[tuple[int, list[str] | RecordError]]:
    """Yield each row's byte offset and its fields, quoted as pandas and Excel do."""
    csv.field_size_limit(max(csv.field_size_limit(), MOST_FIELD_CHARS))
    end = file.tell()

    def lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            text = line.removeprefix(codecs.BOM_UTF8) if end == 0 else line
            end += len(line)
            yield text.decode(errors="surrogateescape")

    reader = csv.reader(lines(), delimiter="\t")
    while True:
        offset = end
        try:
            fields = next(reader)
            for field in fields:
                field.encode()
        except StopIteration:
            return
        except csv.Error as error:
            yield offset, RecordError(f"the row that ends in line {reader.line_num} cannot be split: {error}")
        except UnicodeEncodeError:
            yield offset, RecordError(f"the row that ends in line {reader.line_num} is not UTF-8: write the file again")
        else:
            if fields:
                yield offset, fields
