"""Merge sorted parquet files by record number, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

WINDOW = 65_536
"""Rows that are merged at a time."""


class _Rows:
    """The rows of a file, in order, as many at a time as are asked for."""

    def __init__(self, path: Path) -> None:
        self.file = pq.ParquetFile(path)
        self._batches = self.file.iter_batches(WINDOW)
        self._left: pa.Table | None = None

    def take(self, count: int) -> pa.Table:
        """Return the next rows."""
        schema = self.file.schema_arrow
        parts, missing = [schema.empty_table()], count
        while missing:
            if self._left is None or not len(self._left):
                self._left = pa.Table.from_batches([next(self._batches)])
            parts.append(self._left.slice(0, missing))
            self._left = self._left.slice(len(parts[-1]))
            missing -= len(parts[-1])
        return pa.concat_tables(parts)


def merge_tables(
    paths: Sequence[Path], numbers: Sequence[Int[np.ndarray, " rows"]], path: Path, schema: pa.Schema
) -> int:
    """Write the rows of several files into one, in the order of their numbers.

    Args:
        paths: of the files, of one schema.
        numbers: of each file's rows, ascending.
        path: of the result.
        schema: of the result, with its metadata.

    Returns:
        Rows of the result.
    """
    files = [_Rows(part) for part in paths]
    everything = np.concatenate([np.empty(0, dtype=np.int64), *numbers])
    owners = np.repeat(np.arange(len(files)), [len(own) for own in numbers])[np.argsort(everything, kind="stable")]
    done = np.zeros(len(files), dtype=np.int64)
    with pq.ParquetWriter(path.with_suffix(".new"), schema) as writer:
        for start in range(0, len(owners), WINDOW):
            counts = np.bincount(owners[start : start + WINDOW], minlength=len(files))
            rows = pa.concat_tables([file.take(int(count)) for file, count in zip(files, counts, strict=True)])
            window = [own[begin : begin + count] for own, begin, count in zip(numbers, done, counts, strict=True)]
            order = np.argsort(np.concatenate(window), kind="stable")
            writer.write_table(rows.take(pa.array(order)).replace_schema_metadata(schema.metadata))
            done += counts
    path.with_suffix(".new").replace(path)
    return len(owners)
