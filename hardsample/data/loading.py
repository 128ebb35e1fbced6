"""Load data of any known format as one checked `datasets.Dataset`, in bounded memory, without decoding images."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, Features, IterableDataset, Json

from hardsample.data.columns import FEATURES, ArrowFile, holds_json, infer_features
from hardsample.data.containers import Source, limited, open_source
from hardsample.data.formats import Record, absent, canonical, extra_name, known_formats
from hardsample.data.gold_check import gold_problems
from hardsample.data.images import DEFAULT_MAX_PIXELS, ImageError, ImageRef, as_ref, image_header
from hardsample.data.records.conversation import RecordError
from hardsample.data.records.defaults import DEFAULT_TEMPLATE, GRADERS, check_template
from hardsample.errors import ConfigError, DataError
from hardsample.grading.grader import Grader

__all__ = ["DataError", "Loaded", "NoRecordsError", "Rejection", "load", "unchecked"]

logger = logging.getLogger(__name__)

Data: TypeAlias = str | Path | Dataset | IterableDataset | Iterable[Mapping[str, Any]]
"""Data that can be loaded: a name, or records in memory that can be iterated over more than once."""

CHECKED_AT_ONCE, CHECKED_BYTES = 256, 16 << 20
"""Records whose golds are graded together: their number, and the bytes of their images."""

Header = dict[str, int | str]
"""An image's header: `width` and `height` in pixels, once upright, and Pillow's `mode`."""


@dataclass(frozen=True)
class Rejection:
    """A rejected record: its number in the file (from 0), its id if it has one, and the reason."""

    number: int
    id: str | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return the rejection as one line of rejected.jsonl."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A dataset of canonical records, the rejected records, and the format that was recognised.

    Columns: `record_number` (the number in the file, from 0), `id`, `prompt`, `images`, `solution`, `answers` (all
    accepted answers, null if there is only one), `ability`, `grader`, `options`, `box_format`, `image_headers` (each
    image's width, height and mode), and every other column under its own name. `warnings` are sentences about likely
    mistakes, such as records without the image that their question mentions.
    """

    dataset: Dataset
    rejected: list[Rejection]
    format: str
    source: str
    warnings: list[str] = field(default_factory=list)


class NoRecordsError(DataError):
    """All records were rejected; `rejected` says why, record by record."""

    def __init__(self, message: str, rejected: list[Rejection]) -> None:
        super().__init__(message)
        self.rejected = rejected


@dataclass
class _Pass:
    """Counts collected in one pass over the records."""

    rejected: list[Rejection] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    columns: dict[str, None] = field(default_factory=dict)
    extra_columns: set[str] = field(default_factory=set)
    ids: dict[str, int] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    """Where records without images seem to have one."""
    indices: Counter[str] = field(default_factory=Counter)
    """Golds that are option numbers: "all"; "zero"; and "count", equal to the number of options."""


def load(
    data: Data,
    *,
    image_root: str | Path | None = None,
    grader: str | None = None,
    limit: int | None = None,
    strict: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    cache_dir: str | Path | None = None,
    options_template: str = DEFAULT_TEMPLATE,
) -> Loaded:
    """Read data of any known format into one dataset and reject the records that cannot be used.

    Nothing is cached between calls: the dataset is in a temporary folder that is removed when this process ends.

    Args:
        data: .jsonl, .json, .parquet or .tsv file, folder from save_to_disk or of such files (`folder:split`), Hub id
            (`owner/name`, `owner/name:split`, `owner/name:config/split`), a Dataset, an IterableDataset or a list of
            records, or `demo`, `demo:pool`, `demo:wide`, `demo:test`, `demo:pretrain`.
        image_root: folder that image paths resolve against and may not leave, links resolved first. Default: the file's
            own folder; for records in memory the working directory, and absolute paths are used unchanged.
        grader: one of `solutions.GRADERS`, for records that fit more than one grader.
        limit: read only the first `limit` records.
        strict: stop at the first record that would be rejected.
        max_pixels: width × height above which an image is rejected, in pixels.
        cache_dir: parent of the temporary folder. Default: the system's folder for temporary files.
        options_template: how to list options below a question that does not list them: the line with {option} is
            repeated for each option, {letter} is A, B, …; "none" leaves the question unchanged.

    Raises:
        DataError: the data cannot be read, or with `strict` a record would be rejected.
        NoRecordsError: all records were rejected.
        ConfigError: an argument is out of range.
    """
    if grader is not None and grader not in GRADERS:
        raise ConfigError(f"grader {grader!r} is unknown; use one of {', '.join(GRADERS)}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    check_template(options_template)
    if image_root is not None and not Path(image_root).is_dir():
        raise DataError(f"image root {str(image_root)!r} is not a folder; fix --image-root")
    source = open_source(data, limit)
    root = source.root if image_root is None else Path(image_root)
    root = root.resolve() if root is not None else None
    folder = _scratch(cache_dir)
    totals, check = _Pass(), _image_checker(root, max_pixels)
    reading = _Reading(source, grader, limit, strict, options_template)
    features = Features(FEATURES | _extra_features(reading))
    with ArrowFile(folder / "data.arrow", features) as file, Grader() as judge:
        for batch in _batches(_checked(reading, totals, check), 1 if strict else CHECKED_AT_ONCE):
            for row, problem in zip(batch, gold_problems([row for row, _ in batch], judge), strict=True):
                _take(*row, problem, strict, totals, file)
    if not totals.formats:
        raise NoRecordsError(_all_rejected_message(source, totals), totals.rejected)
    totals.rejected.sort(key=lambda rejection: rejection.number)
    dataset = Dataset.from_file(str(folder / "data.arrow"))
    unused = [name for name in features if name not in FEATURES and name not in totals.extra_columns]
    dataset = dataset.remove_columns(unused)
    name = totals.formats.most_common(1)[0][0]
    counts = ", ".join(f"{format_name} {count}" for format_name, count in totals.formats.most_common())
    logger.info("%s: format %s (%s), %d records rejected", source.name, name, counts, len(totals.rejected))
    sentences = _warnings(totals)
    for sentence in sentences:
        logger.warning("%s: %s", source.name, sentence)
    return Loaded(dataset, totals.rejected, name, source.name, sentences)


def unchecked(
    data: Data,
    *,
    image_root: str | Path | None = None,
    grader: str | None = None,
    limit: int | None = None,
    options_template: str = DEFAULT_TEMPLATE,
) -> tuple[Iterator[Record], Path | None]:
    """Read data of any known format one record at a time, as `load` does, but without checking images and golds.

    Args:
        data: as for `load`.
        image_root: as for `load`.
        grader: as for `load`.
        limit: as for `load`.
        options_template: as for `load`.

    Returns:
        The records of a known format, the first of each id; and the folder that their image paths start from.

    Raises:
        DataError: the data cannot be read.
    """
    source = open_source(data, limit)
    totals = _Pass()
    records = _records(_Reading(source, grader, limit, False, options_template), totals)
    unique = (record for number, record in records if _duplicate(record, number, totals) is None)
    return unique, source.root if image_root is None else Path(image_root)


@dataclass(frozen=True)
class _Reading:
    """A source and the options it is read with."""

    source: Source
    grader: str | None
    limit: int | None
    strict: bool
    options_template: str


_Row = tuple[dict[str, Any], Record]


def _records(reading: _Reading, totals: _Pass) -> Iterator[tuple[int, Record]]:
    """Yield the records of a known format with their numbers; reject the others."""
    for number, raw in limited(reading.source, reading.limit):
        record_id = None
        try:
            if isinstance(raw, RecordError):
                record_id = raw.record_id
                raise raw
            totals.columns.update(dict.fromkeys(raw))
            record_id = _id_text(raw.get("id"))
            yield number, canonical(raw, number, reading.grader, reading.options_template)
        except RecordError as error:
            _reject(Rejection(number, record_id, str(error)), reading.strict, totals)


def _checked(reading: _Reading, totals: _Pass, check: Callable[[Any], tuple[ImageRef, Header]]) -> Iterator[_Row]:
    """Yield the records whose ids are new and whose images can be opened, as rows; reject the others."""
    for number, record in _records(reading, totals):
        problem = _duplicate(record, number, totals)
        checked: list[tuple[ImageRef, Header]] = []
        if problem is None:
            try:
                checked = [check(ref) for ref in record.images]
            except ImageError as error:
                problem = f"column {record.image_column!r}: {error}"
        if problem is None:
            yield _row(record, number, checked), record
        else:
            _reject(Rejection(number, record.id, problem), reading.strict, totals)


def _batches(rows: Iterator[_Row], most: int) -> Iterator[list[_Row]]:
    """Yield rows in lists, limited by the number of rows and by the bytes of their images."""
    batch: list[_Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(image["bytes"] or b"") for image in row[0]["images"])
        if len(batch) >= most or size >= CHECKED_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _take(
    row: dict[str, Any], record: Record, problem: str | None, strict: bool, totals: _Pass, file: ArrowFile
) -> None:
    """Write a record, or reject it for its gold."""
    if record.gold_index is not None:
        number, count = record.gold_index
        totals.indices.update({"all": 1, "zero": number == 0, "count": number == count})
    if problem is not None:
        _reject(Rejection(row["record_number"], record.id, f"column 'solution': {problem}"), strict, totals)
        return
    totals.formats[record.format] += 1
    totals.extra_columns |= record.extra.keys()
    totals.unread.update([record.unread] if record.unread else [])
    file.add(row)


def _warnings(totals: _Pass) -> list[str]:
    """Return a sentence for each kind of likely mistake."""
    total = totals.formats.total()
    sentences = [
        f"{count} of {total} records have no image, though their {where} "
        + (
            "mentions one: name the column that holds it 'image'"
            if where == "question"
            else "looks like one: name it 'image'"
        )
        for where, count in totals.unread.most_common(3)
    ]
    if totals.indices["count"] and not totals.indices["zero"]:
        sentences.append(
            f"{totals.indices['all']} golds are option numbers; none is 0 and {totals.indices['count']} equal the "
            "number of options: they seem to count from 1, but are read as counting from 0; give letters, or subtract 1"
        )
    return sentences


def _reject(rejection: Rejection, strict: bool, totals: _Pass) -> None:
    if strict:
        raise DataError(f"record {rejection.number} (id {rejection.id!r}): {rejection.reason}")
    totals.rejected.append(rejection)


def _duplicate(record: Record, number: int, totals: _Pass) -> str | None:
    first = totals.ids.setdefault(record.id, number)
    return None if first == number else f"column 'id': record {first} has the id {record.id!r} too; give each its own"


def _image_checker(root: Path | None, max_pixels: int) -> Callable[[Any], tuple[ImageRef, Header]]:
    """Return a function that resolves a reference and reads the image's header, once per path, logging warnings."""

    def check(ref: Any) -> tuple[ImageRef, Header]:
        resolved = as_ref(ref, root)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            width, height, mode = image_header(resolved, max_pixels=max_pixels)
        for message in dict.fromkeys(str(warning.message).strip() for warning in caught):
            logger.warning("image %s: %s", resolved["path"] or f"of {len(resolved['bytes'] or b'')} bytes", message)
        return resolved, {"width": width, "height": height, "mode": mode}

    cached = lru_cache(maxsize=2**16)(check)
    return lambda ref: cached(ref) if isinstance(ref, str) and len(ref) < 4096 else check(ref)


def _row(record: Record, number: int, images: list[tuple[ImageRef, Header]]) -> dict[str, Any]:
    return record.extra | {
        "record_number": number,
        "id": record.id,
        "prompt": record.prompt,
        "images": [ref for ref, _ in images],
        "solution": record.solution,
        "answers": record.answers,
        "ability": record.ability,
        "grader": record.grader,
        "options": record.options,
        "box_format": record.box_format,
        "image_headers": [header for _, header in images],
    }


def _extra_features(reading: _Reading) -> Features:
    """Return the types of the extra columns: the file's own, or inferred by a first pass over JSON."""
    typed = reading.source.features
    if typed is not None:
        return Features({extra_name(name, typed): Json() if holds_json(typed[name]) else typed[name] for name in typed})
    records = _records(replace(reading, strict=False), _Pass())
    return infer_features(record.extra for _, record in records)


def _id_text(value: Any) -> str | None:
    return None if absent(value) else str(value)


def _all_rejected_message(source: Source, totals: _Pass) -> str:
    if not totals.rejected:
        return f"{source.name} has no records"
    first = totals.rejected[0]
    return (
        f"{source.name}: all {len(totals.rejected)} records were rejected. Record {first.number}: {first.reason}. "
        f"Columns: {', '.join(totals.columns) or 'none'}. Known formats: {known_formats()}"
    )


def _scratch(cache_dir: str | Path | None) -> Path:
    """Create a folder that is removed when this process ends (not when a fork of it does)."""
    if cache_dir is not None:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hardsample-", dir=cache_dir))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder
