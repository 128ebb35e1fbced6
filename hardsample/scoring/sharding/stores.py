"""Merge the rollouts of several folders into one store, row by row and in order, in bounded memory."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hardsample.scoring.store import SCHEMA, StoreError, StoreReader

TABLES = {
    "settings": ("name",),
    "samples": ("sample",),
    "rollouts": ("sample", "ratio", "realization"),
    "attention": ("definition", "sample", "ratio", "realization"),
    "features": ("encoder", "id"),
}
"""Tables of a store, and the columns of their primary keys."""
BATCH = 10_000


def count_rollouts(folders: Sequence[Path]) -> int:
    """Return the number of rollouts in all folders."""
    total = 0
    for folder in folders:
        with StoreReader(folder) as store:
            total += store.count()
    return total


def merge_stores(folders: Sequence[Path], path: Path, advance: Callable[[int], None]) -> None:
    """Write the rows of several stores into a new one.

    Args:
        folders: of the stores, whose settings are equal.
        path: of the new file; what is there is replaced.
        advance: called with the number of rollouts written since the last call.

    Raises:
        StoreError: a sample is in two of them; or one cannot be read.
    """
    path.unlink(missing_ok=True)
    readers = [StoreReader(folder) for folder in folders]
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;\n{SCHEMA}")
            database.execute("BEGIN")
            for table, keys in TABLES.items():
                names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
                _merge_table(database, readers, table, names, keys, advance)
            database.execute("COMMIT")
    except sqlite3.IntegrityError as error:
        raise StoreError(f"a sample is in two of the folders in {folders[0].parent} ({error})") from error
    finally:
        for reader in readers:
            reader.close()


def _merge_table(
    database: sqlite3.Connection,
    readers: Sequence[StoreReader],
    table: str,
    names: Sequence[str],
    keys: Sequence[str],
    advance: Callable[[int], None],
) -> None:
    places = [names.index(name) for name in keys]
    query = f"SELECT {', '.join(names)} FROM {table} ORDER BY {', '.join(keys)}"
    sources = [reader.rows(query) for reader in (readers[:1] if table == "settings" else readers)]
    rows = heapq.merge(*sources, key=lambda row: tuple(row[place] for place in places))
    insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    counted = table == "rollouts"
    for batch in _batches(rows):
        database.executemany(insert, batch)
        if counted:
            advance(len(batch))


def _batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    batch: list[tuple[Any, ...]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def lost_row(old: Path, new: Path) -> tuple[str, str] | None:
    """Return the table and the sample of a row that one store has and another has not; None if there is none.

    Args:
        old: file of the first.
        new: file of the second.
    """
    with closing(sqlite3.connect(f"file:{quote(str(new.resolve()))}?mode=ro", uri=True)) as database:
        database.execute("ATTACH ? AS old", (str(old),))
        for table in ("rollouts", "attention", "features"):
            keys = TABLES[table]
            same = " AND ".join(f"n.{key} = o.{key}" for key in keys)
            sample = "id" if table == "features" else "sample"
            query = (
                f"SELECT o.{sample} FROM old.{table} AS o WHERE NOT EXISTS (SELECT 1 FROM main.{table} AS n WHERE "
                f"{same}) LIMIT 1"
            )
            found = database.execute(query).fetchone()
            if found is not None:
                return table, str(found[0])
    return None
