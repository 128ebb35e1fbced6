"""VLMEvalKit's layouts: a benchmark's TSV in, and its prediction file out.

A row has `index`, `question`, `answer` and its image, in base64 (`image`, one or a list of them) or as a path
(`image_path`); options stand in columns `A`, `B`, …; `hint` may precede the question. A short text in `image` is the
index of the row whose image is meant. Rows are read one at a time, whatever the file's size.
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
"""Longer texts in `image` are images, shorter ones the index of another row; that is VLMEvalKit's own bound."""
MOST_FIELD_CHARS = 1 << 28
"""A longer field is a quote that is never closed."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ASKS_FOR_YES_OR_NO = "Answer yes or no."
_PLACE = re.compile(r"<image ?(\d{0,3})>")
_YES_NO = ("Yes", "No")

Row = dict[str, str]


class TableError(HardsampleError, ValueError):
    """The file is no table of VLMEvalKit's; the message names it and the fix."""


def table_features(path: Path) -> Features:
    """The columns that records may bring along, all of them text.

    Raises:
        TableError: the first line names no question.
    """
    header = _header(path)
    return Features({name: Value("string") for name in [*header, "original_id", "original_options"] if name != "image"})


def read_table(path: Path) -> Iterator[dict[str, Any] | RecordError]:
    """Yield the records of a TSV as `formats` takes them, an error in place of a row that cannot be read.

    Args:
        path: of the TSV.
    """
    images = _Images(path)
    for row in _rows(path):
        if isinstance(row, RecordError):
            yield row
            continue
        try:
            yield _record(row, images)
        except RecordError as error:
            yield RecordError(str(error), row.get("index") or None)


def write_predictions(
    table: str | Path, target: str | Path, completion: Callable[[str], str | None]
) -> tuple[int, int]:
    """Writes VLMEvalKit's prediction file: the table's columns without `image`, and `prediction`.

    Args:
        table: the TSV that was evaluated.
        target: file to write; a .tsv, which VLMEvalKit's loader reads and nothing more need be installed for.
        completion: gives a sample's completion by its id, None where there is none.

    Returns:
        Rows written, and rows of the table that have no completion and are left out.

    Raises:
        TableError: the target is no .tsv or the table itself, or no row has a completion.
    """
    table, target = Path(table), Path(target)
    check_target(table, target)
    names = [name for name in _header(table) if name not in ("image", "prediction")]
    seen: set[str] = set()
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".new")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([*names, "prediction"])
        for count, row in enumerate(_rows(table), start=1):
            sample = row.get("index") or str(count - 1) if isinstance(row, dict) else ""
            text = completion(sample) if sample and sample not in seen else None
            if isinstance(row, dict) and text is not None:
                writer.writerow([*(row[name] for name in names), text])
                seen.add(sample)  # a second row of the same index was rejected
    if not seen:
        partial.unlink()
        raise TableError(f"no row of {str(table)!r} has a completion: give the data that was evaluated")
    os.replace(partial, target)
    return len(seen), count - len(seen)


def check_target(table: str | Path, target: str | Path) -> None:
    """Refuses predictions of what is no TSV, into what is no .tsv, or over the table itself.

    Raises:
        TableError: one of these.
    """
    table, target = Path(table), Path(target)
    if table.suffix.lower() != ".tsv" or not table.is_file():
        raise TableError(f"predictions need VLMEvalKit's .tsv as data, {str(table)!r} is none: leave --predictions out")
    if target.suffix.lower() != ".tsv":
        raise TableError(f"{str(target)!r} ends in {target.suffix!r}: name the prediction file MODEL_DATASET.tsv")
    if target.exists() and target.samefile(table):
        raise TableError(f"{str(target)!r} is the data itself: name another file")


def as_list(text: str) -> list[str]:
    """The items of a field that may hold a list, in JSON or as Python prints it; the text alone where it holds none."""
    value = read_literal(text, MOST_FIELD_CHARS) if text.endswith("]") else None
    return [str(item) for item in value] if isinstance(value, list) else [text]


def _record(row: Row, decode: _Images) -> dict[str, Any]:
    options = _options(row)
    record: dict[str, Any] = {name: value or None for name, value in row.items() if name not in (*LETTERS, "image")}
    for name in ("id", "options"):
        if record.get(name) is not None:
            record[f"original_{name}"] = record.pop(name)
    record["id"] = row.get("index") or None
    record.setdefault("ability", record.get("category"))
    image = row.get("image", "")
    images: list[Any] = [{"bytes": decode(item)} for item in as_list(image)] if image and image != "nan" else []
    if images:
        record["image"] = images
    elif record.get("image_path") is not None:
        images = record["image_path"] = as_list(row["image_path"])
    given = bool(options) or row.get("choices", "") not in ("", "nan", "[]")  # MathVista's, written in its question
    yes_no = row.get("answer", "").strip().capitalize() in _YES_NO and not given
    question = _question(row)
    if yes_no and question:
        question = f"{question}\n{ASKS_FOR_YES_OR_NO}"
    record["question"], *options = _mentions([question, *options], len(images))
    if options or yes_no:
        record["options"] = options or list(_YES_NO)
    return record


def _question(row: Row) -> str:
    """Hint and question; the options are written below it where all formats' are."""
    question = row.get("question", "")
    hint = row.get("hint", "")
    return f"Hint: {hint}\n{question}" if question.strip() and hint and hint != "nan" else question.strip() and question


def _mentions(texts: list[str], images: int) -> list[str]:
    """Texts whose places name each image once, or else only mention them, and the images go first."""
    places = {found.group(1) for text in texts for found in _PLACE.finditer(text)}
    if not places or places == {str(number) for number in range(1, images + 1)}:
        return texts
    return [
        _PLACE.sub(lambda found: f"(image {found.group(1)})" if found.group(1) else "(image)", text) for text in texts
    ]


def _options(row: Row) -> list[str]:
    held = [letter for letter in LETTERS if row.get(letter, "") not in ("", "nan")]
    if held and held != list(LETTERS[: len(held)]):
        missing = next(letter for letter in LETTERS if letter not in held)
        raise RecordError(f"column {missing!r} is empty, {held[-1]!r} is not: give the options from A without a gap")
    return [row[letter] for letter in held]


class _Images:
    """Base64 of a field: its own, or that of the row it names, which is found by its place in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] | None = None

    def __call__(self, value: str) -> str:
        if len(value) > MOST_REFERENCE_CHARS:
            return value
        if self._places is None:
            self._places = _places(self._path)
        place = self._places.get(value)
        if place is None:
            raise RecordError(f"column 'image' holds {value!r}, which is no row's index: give base64, or such an index")
        row = next(_rows(self._path, place))
        held = row.get("image", "") if isinstance(row, dict) else ""
        if len(held) <= MOST_REFERENCE_CHARS:
            raise RecordError(f"column 'image' names row {value!r}, which has no image of its own: name one that has")
        return as_list(held)[0]


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        _, names = next(_fields(file), (0, []))
    if isinstance(names, RecordError) or "question" not in names or len(set(names)) < len(names):
        found = ", ".join(names[:20]) if isinstance(names, list) else str(names)
        raise TableError(
            f"{str(path)!r}: its first line must name the columns, each once and 'question' among them, as VLMEvalKit "
            f"does; found are {found[:300] or 'none'}"
        )
    return names


def _rows(path: Path, place: int | None = None) -> Iterator[Row | RecordError]:
    """The rows, or those from a place on."""
    names = _header(path)
    with path.open("rb") as file:
        file.seek(place or 0)
        for _, fields in islice(_fields(file), 1 if place is None else 0, None):
            if isinstance(fields, RecordError):
                yield fields
            elif len(fields) != len(names):
                index = fields[names.index("index")] if "index" in names[: len(fields)] else None
                yield RecordError(
                    f"the row has {len(fields)} fields, the first line {len(names)}: fix tabs and quotes", index or None
                )
            else:
                yield dict(zip(names, fields, strict=True))


def _places(path: Path) -> dict[str, int]:
    """Where each index's row begins, in bytes; the first row of an index counts, a later one is rejected."""
    names = _header(path)
    places: dict[str, int] = {}
    if "index" in names:
        column = names.index("index")
        with path.open("rb") as file:
            for place, fields in islice(_fields(file), 1, None):
                if isinstance(fields, list) and len(fields) == len(names):
                    places.setdefault(fields[column], place)
    return places


def _fields(file: IO[bytes]) -> Iterator[tuple[int, list[str] | RecordError]]:
    """Splits rows into fields, quoted as pandas and Excel do, and says where in the file each row begins, in bytes."""
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
        place = end
        try:
            fields = next(reader)
            for field in fields:
                field.encode()
        except StopIteration:
            return
        except csv.Error as error:
            yield place, RecordError(f"the row that ends in line {reader.line_num} cannot be split: {error}")
        except UnicodeEncodeError:
            yield place, RecordError(f"the row that ends in line {reader.line_num} is not UTF-8: write the file anew")
        else:
            if fields:
                yield place, fields
