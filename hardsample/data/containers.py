"""Read records one at a time from a file, a saved dataset, the Hub or memory.

A record that cannot be read is yielded as a `RecordError`, and reading continues with the next one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from hardsample.data.columns import decode_json, holds_json
from hardsample.data.json_items import CHUNK, JsonItems, Row, holds_lines, parse_line
from hardsample.data.records.conversation import RecordError
from hardsample.data.shards import find_splits
from hardsample.data.vlmevalkit import TableError, read_table, table_features
from hardsample.errors import DataError

logger = logging.getLogger(__name__)

DEMO_NAMES = ("demo", "demo:pool", "demo:wide", "demo:test", "demo:pretrain")
TABLE_BATCH = 32


@dataclass(frozen=True)
class Source:
    """A source of records. `rows` may be called again; `features` are the column types, if the file has them.

    `root` is the folder that relative image paths resolve against; None for records in memory.
    """

    name: str
    rows: Callable[[], Iterator[Row]]
    root: Path | None
    features: Features | None = None


def open_source(data: Any, limit: int | None = None) -> Source:
    """Return the source that `data` names or is.

    Args:
        data: .jsonl, .json, .parquet or .tsv file, folder from save_to_disk or of such files (`folder:split`), Hub id
            (`owner/name`, `owner/name:split`, `owner/name:config/split`), `demo` (`demo:pool`, `demo:test`,
            `demo:wide`, `demo:pretrain`), a Dataset, an IterableDataset, or a list of records.
        limit: how many records will be read; no more questions of the demo are generated.

    Raises:
        DataError: the name does not exist, its type is unknown, or a split must be chosen.
    """
    if not isinstance(data, str | Path):
        return _from_memory(data)
    name = str(data)
    if name in DEMO_NAMES:
        from hardsample.demo import load_split

        return _from_dataset(load_split(name, limit), name, None)
    path = Path(data)
    folder, split = split_name(name)
    if path.is_dir():
        return _from_folder(path, "")
    if path.is_file():
        return _from_file(path)
    if split and Path(folder).is_dir():
        return _from_folder(Path(folder), split)
    if path.suffix not in _READERS and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:([\w.-]+/)?[\w.-]+)?", name):
        return _from_hub(folder, split)
    raise DataError(f"{name!r} does not exist; give a file ({_SUFFIXES}), a save_to_disk folder, a Hub id or demo")


def split_name(name: str) -> tuple[str, str]:
    """Split `folder:split` into its parts; the second is empty if no split is named."""
    folder, colon, split = name.rpartition(":")
    return (folder, split) if colon and folder and "\\" not in split else (name, "")


def absolute_name(name: str) -> str:
    """Return the name of data with an absolute path, valid from any working directory.

    Args:
        name: as for `open_source`.
    """
    folder, split = split_name(name)
    if Path(name).exists():
        return str(Path(name).resolve())
    return f"{Path(folder).resolve()}:{split}" if split and Path(folder).exists() else name


def _from_memory(data: Any) -> Source:
    """Return a source for records in memory, or a stream that can be iterated over again."""
    if isinstance(data, datasets.Dataset):
        return _from_dataset(data, "a Dataset in memory", None)
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        return _from_memory(_only_split(data, f"the {type(data).__name__}", "data[{!r}]"))
    if isinstance(data, datasets.IterableDataset):
        undecoded = data.decode(False) if data.features is not None else data
        return Source("an IterableDataset", lambda: map(_record, undecoded), None, data.features)
    if isinstance(data, Sequence) and not isinstance(data, bytes | bytearray):
        return Source("a list in memory", lambda: map(_record, data), None)
    frame = hasattr(data, "to_pandas") or hasattr(data, "iterrows")  # its items are columns
    if isinstance(data, Iterable) and not (isinstance(data, Mapping) or frame) and iter(data) is not iter(data):
        return Source(f"a {type(data).__name__} in memory", lambda: map(_record, data), None)
    kind = type(data).__name__
    problem = "can only be iterated over once" if isinstance(data, Iterator) else "is not a collection of records"
    raise DataError(
        f"a {kind} {problem}: give a datasets.Dataset (Dataset.from_list, from_pandas, from_generator), an "
        "IterableDataset, a list of records, or the name of a file"
    )


def _record(value: Any) -> Row:
    """Return an item of a list or stream as a record."""
    if isinstance(value, Mapping):
        return dict(value)
    return RecordError(f"the item is a {type(value).__name__}; give a mapping of column to value")


def _from_file(path: Path) -> Source:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{str(path)!r} ends in {path.suffix!r}; known are {_SUFFIXES}")
    return reader(path)


def _from_folder(path: Path, split: str) -> Source:
    """Return a source for a folder from save_to_disk, or for one of data files."""
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, datasets.DatasetDict):
            loaded = loaded[split] if split in loaded else _only_split(loaded, f"folder {str(path)!r}", f"{path}/{{}}")
        return _from_dataset(loaded, str(path.resolve()), path)
    splits = find_splits(path)
    names = [name for name in splits if split in ("", name)]
    if len(names) == 1:
        return _from_files(splits[names[0]], path)
    if splits:
        listed = ", ".join(f"{path}:{name}" for name in splits)
        which = f"has no split {split!r}" if split else "has several splits"
        raise DataError(f"folder {str(path)!r} {which}; choose one: {listed}")
    raise DataError(f"folder {str(path)!r} is not from save_to_disk and has no data files ({_SUFFIXES}); give another")


def _from_files(paths: list[Path], root: Path) -> Source:
    """Return a source for the files of one split in order; relative image paths start at the folder."""
    sources = [_from_file(path) for path in paths]
    same = all(source.features == sources[0].features for source in sources)
    name = str(paths[0].resolve()) if len(paths) == 1 else f"{root.resolve()} ({len(paths)} files)"

    def rows() -> Iterator[Row]:
        for source in sources:
            yield from source.rows()

    return Source(name, rows, root, sources[0].features if same else None)


def _from_hub(repository: str, split: str) -> Source:
    config, _, part = split.rpartition("/")
    name = f"{repository}:{split}" if split else repository
    try:
        loaded = datasets.load_dataset(repository, *([config] if config else []), split=part or None)
    except (OSError, ValueError, RuntimeError) as error:
        fix = f"; name its configuration: {repository}:CONFIG/SPLIT" if "onfig name" in str(error) else ""
        raise DataError(f"{name!r} is not a local file, and loading it from the Hub failed: {error}{fix}") from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _only_split(loaded, f"Hub dataset {repository!r}", repository + ":{}")
    return _from_dataset(loaded, f"Hub dataset {name}", Path(datasets.config.HF_CACHE_HOME))


def _only_split(splits: Mapping[str, Any], name: str, pattern: str) -> Any:
    """Return the only split, or raise an error that says how to choose one."""
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise DataError(f"{name} has several splits; choose one: {', '.join(pattern.format(split) for split in splits)}")


def _from_dataset(dataset: datasets.Dataset, name: str, root: Path | None) -> Source:
    def rows() -> Iterator[Row]:
        for table in dataset.with_format("arrow").iter(TABLE_BATCH):
            yield from _table_rows(table, dataset.features)

    return Source(name, rows, root, dataset.features)


def _from_parquet(path: Path) -> Source:
    def opened() -> pq.ParquetFile:
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=CHUNK)

    try:
        with opened() as file:
            schema = file.schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        if _is_pointer(path):
            raise DataError(f"{str(path)!r} is a git-lfs pointer, not the file itself: run git lfs pull") from error
        raise DataError(f"{str(path)!r} is not a parquet file ({error}); write it again") from error
    features = _features(schema)

    def rows() -> Iterator[Row]:
        with opened() as file:
            try:
                for batch in file.iter_batches(TABLE_BATCH):
                    yield from _table_rows(batch, features)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{str(path)!r} is damaged ({error}); write it again") from error

    return Source(str(path.resolve()), rows, path.parent, features)


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


def _features(schema: pa.Schema) -> Features | None:
    try:
        return Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a type that datasets does not have
        logger.info("column types are inferred: %s", error)
        return None


def _table_rows(table: pa.Table | pa.RecordBatch, features: Features | None) -> Iterator[Row]:
    packed = {name: feature for name, feature in (features or {}).items() if holds_json(feature)}
    for row in table.to_pylist():
        yield row | {name: decode_json(row[name], feature) for name, feature in packed.items()}


def _from_jsonl(path: Path) -> Source:
    def rows() -> Iterator[Row]:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield parse_line(line, number)

    return Source(str(path.resolve()), rows, path.parent)


def _from_tsv(path: Path) -> Source:
    try:
        features = table_features(path)
    except TableError as error:
        raise DataError(str(error)) from error
    return Source(str(path.resolve()), lambda: read_table(path), path.parent, features)


def _from_json(path: Path) -> Source:
    if holds_lines(path):
        return _from_jsonl(path)

    def rows() -> Iterator[Row]:
        with path.open(encoding="utf-8-sig") as file:
            yield from JsonItems(file.read, str(path)).rows()

    return Source(str(path.resolve()), rows, path.parent)


def limited(source: Source, limit: int | None) -> Iterator[tuple[int, Row]]:
    """Yield the first `limit` records with their numbers, from 0."""
    return islice(enumerate(source.rows()), limit)


_READERS: dict[str, Callable[[Path], Source]] = {
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".parquet": _from_parquet,
    ".tsv": _from_tsv,
}
_SUFFIXES = ", ".join(_READERS)
