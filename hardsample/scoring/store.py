"""Rollouts in SQLite: what is committed is never lost and never asked again.

One table row is one graded rollout. A batch is one transaction, written through to the disk, so that a kill at any
moment costs at most the batch in flight. The folder remembers the settings that its rollouts were made with, and a
digest of every sample, and refuses to be continued with others.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from hardsample.data.digests import differences, is_old
from hardsample.errors import HardsampleError
from hardsample.files import ROLLOUTS_FILE
from hardsample.metrics.finishes import UNKNOWN, unanswered

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS samples (sample TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollouts (
    sample TEXT NOT NULL,
    ratio REAL NOT NULL,
    realization INTEGER NOT NULL,
    completion TEXT NOT NULL,
    grade INTEGER NOT NULL CHECK (grade IN (0, 1)),
    tokens TEXT NOT NULL,
    finish TEXT,
    PRIMARY KEY (sample, ratio, realization)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attention (
    definition TEXT NOT NULL,
    sample TEXT NOT NULL,
    ratio REAL NOT NULL,
    realization INTEGER NOT NULL,
    balance REAL,
    profile TEXT NOT NULL,
    left_out INTEGER NOT NULL,
    reason TEXT,
    PRIMARY KEY (definition, sample, ratio, realization)
) WITHOUT ROWID;
"""
_COLUMNS = "sample, ratio, realization, completion, grade, tokens, finish"


class StoreError(HardsampleError, ValueError):
    """The folder cannot be used as asked; the message names what differs and what to do."""


@dataclass(frozen=True)
class Rollout:
    """One graded completion of a sample.

    Attributes:
        sample: the sample's id.
        ratio: mask ratio λ, 0 … 1.
        realization: which independent mask at this ratio, 0 … K − 1.
        completion: the text without special tokens.
        grade: 0 or 1.
        tokens: the generated ids without end-of-sequence.
        finish: how it ended, one of `engines.results.FINISHES`; None if an older version stored it.
    """

    sample: str
    ratio: float
    realization: int
    completion: str
    grade: int
    tokens: list[int]
    finish: str | None = None


@dataclass(frozen=True)
class Attention:
    """The attention balance of one stored completion.

    Attributes:
        sample: the sample's id.
        ratio: mask ratio λ of the rollout.
        realization: its realization.
        balance: ρ̄; None if it has none, and then `reason` says why.
        profile: mean over tokens of log ρ of each layer; None where a layer has none.
        left_out: rows of a layer that saw no image or no text key and were left out.
        reason: why there is no balance.
    """

    sample: str
    ratio: float
    realization: int
    balance: float | None
    profile: list[float | None]
    left_out: int = 0
    reason: str | None = None


class Store:
    """The rollouts of one output folder; a context manager that holds the folder for one process.

    Args:
        directory: the output folder; made if it is not there.

    Raises:
        StoreError: if another process is writing to the folder, or the file is not a store of ours.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.directory / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"another process is scoring into {self.directory}: wait for it, or choose another --output"
            ) from error
        path = self.directory / ROLLOUTS_FILE
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
            if not _has_finish(self._database):  # of an older version: how its rollouts ended is not known
                self._database.execute("ALTER TABLE rollouts ADD COLUMN finish TEXT")
        except sqlite3.DatabaseError as error:
            self.close()
            raise StoreError(f"{path} is no store of hardsample ({error}): choose another --output") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of the folder."""
        self._database.close()
        self._lock.release()

    def settings(self) -> dict[str, object]:
        """The settings that the folder's rollouts were made with; empty in a new folder."""
        return {name: json.loads(value) for name, value in self._database.execute("SELECT name, value FROM settings")}

    def agree(
        self, settings: Mapping[str, object], upgrades: Mapping[str, tuple[object, object]] | None = None
    ) -> None:
        """Remember the settings that change results, or check that they are those of the folder.

        Args:
            settings: name → JSON value, of everything that changes a rollout or what is made of them.
            upgrades: name → (from, to), the changes that a folder may see when it is continued.

        Raises:
            StoreError: if the folder was made with others; names each that differs.
        """
        wanted = {name: json.loads(json.dumps(value)) for name, value in settings.items()}
        held = self.settings()
        upgraded = {
            name for name, (old, new) in (upgrades or {}).items() if held.get(name) == old and wanted.get(name) == new
        }
        differing = [name for name in sorted({*held, *wanted} - upgraded) if held.get(name) != wanted.get(name)]
        if held and differing:
            lines = [f"  {name}: {held.get(name)!r} there, {wanted.get(name)!r} now" for name in differing]
            raise StoreError(
                f"{self.directory} was made with other settings:\n"
                + "\n".join(lines)
                + "\nUse the same settings to continue it, or another --output."
            )
        rows = [(name, json.dumps(value)) for name, value in wanted.items()]
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    def agree_on_samples(self, digests: Iterable[tuple[str, str]]) -> None:
        """Check that the samples of the folder are unchanged, and remember the new ones.

        Args:
            digests: (id, digest of everything in the sample that changes a rollout or a grade), every sample of this
            run.

        Raises:
            StoreError: if a sample that the folder holds has changed, or is not in this run.
        """
        given = dict(digests)
        held = self.digests()
        if wrong := differences(held, list(given.items()), self.directory):
            older = " (It was made by an older hardsample, which may have read them otherwise.)"
            raise StoreError(wrong + older * any(map(is_old, held.values())))
        new = [(sample, digest) for sample, digest in given.items() if sample not in held]
        held = {sample: digest for sample, digest in held.items() if sample not in given}
        if held:
            raise StoreError(
                f"{self.directory} holds {len(held)} samples that this run does not have (the first: "
                f"{next(iter(held))!r}): use the same data and at least the same --limit, or another --output"
            )
        with self._transaction():
            self._database.executemany("INSERT INTO samples VALUES (?, ?)", new)

    def digests(self) -> dict[str, str]:
        """The digest of each sample that the folder knows."""
        return dict(self._database.execute("SELECT sample, digest FROM samples"))

    def renew_digests(self, digests: Mapping[str, str]) -> None:
        """Replace the digests of samples that are known to be unchanged by those of today's kind."""
        with self._transaction():
            self._database.executemany(
                "UPDATE samples SET digest = ? WHERE sample = ?", [(new, sample) for sample, new in digests.items()]
            )

    def commit(self, rollouts: Iterable[Rollout]) -> None:
        """Write a batch's rollouts in one transaction; when this returns they are on the disk."""
        rows = [
            (r.sample, r.ratio, r.realization, r.completion, r.grade, json.dumps(r.tokens), r.finish) for r in rollouts
        ]
        with self._transaction():
            self._database.executemany(f"INSERT INTO rollouts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def grades(self, sample: str) -> list[tuple[float, int, int]]:
        """(ratio, realization, grade) of every rollout of a sample, in order."""
        query = "SELECT ratio, realization, grade FROM rollouts WHERE sample = ? ORDER BY ratio, realization"
        return self._database.execute(query, (sample,)).fetchall()

    def unanswered(self, sample: str) -> list[int]:
        """Realizations of a sample's rollouts at λ = 0 that are not right and came to no answer, in order."""
        query = "SELECT realization, finish, grade FROM rollouts WHERE sample = ? AND ratio = 0 ORDER BY realization"
        return [k for k, finish, grade in self._database.execute(query, (sample,)) if unanswered(finish, grade)]

    def finishes(self) -> dict[str, dict[str, int]]:
        """How many rollouts ended in which way: `unmasked`, those at λ = 0, and `all`; finish state → number."""
        counts: dict[str, dict[str, int]] = {"unmasked": {}, "all": {}}
        query = "SELECT ratio = 0, coalesce(finish, ?), count(*) FROM rollouts GROUP BY 1, 2 ORDER BY 3 DESC, 2"
        for unmasked, finish, number in self._database.execute(query, (UNKNOWN,)):
            for name in ("unmasked", "all") if unmasked else ("all",):
                counts[name][finish] = counts[name].get(finish, 0) + number
        return counts

    def rollouts(self, sample: str | None = None) -> Iterator[Rollout]:
        """The rollouts of one sample, or of all, ordered by sample, ratio and realization."""
        query = f"SELECT {_COLUMNS} FROM rollouts"
        query, values = (query, ()) if sample is None else (query + " WHERE sample = ?", (sample,))
        for row in self._database.execute(query + " ORDER BY sample, ratio, realization", values):
            yield _rollout(row)

    def commit_attention(self, definition: str, rows: Iterable[Attention]) -> None:
        """Write the attention balances of a batch in one transaction.

        Args:
            definition: what the balances depend on beside the rollout (variant, layers, text, dtype).
            rows: of rollouts that have none by this definition yet.
        """
        values = [
            (definition, a.sample, a.ratio, a.realization, a.balance, json.dumps(a.profile), a.left_out, a.reason)
            for a in rows
        ]
        with self._transaction():
            self._database.executemany("INSERT INTO attention VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def attention(self, definition: str, sample: str) -> list[Attention]:
        """The attention balances of a sample's rollouts by one definition, in order."""
        query = (
            "SELECT sample, ratio, realization, balance, profile, left_out, reason FROM attention "
            "WHERE definition = ? AND sample = ? ORDER BY ratio, realization"
        )
        rows = self._database.execute(query, (definition, sample))
        return [
            Attention(name, ratio, realization, balance, json.loads(profile), left_out, reason)
            for name, ratio, realization, balance, profile, left_out, reason in rows
        ]

    def count_unattended(self, definition: str) -> int:
        """How many completions at λ = 0 have no attention balance by a definition."""
        query = (
            "SELECT (SELECT count(*) FROM rollouts WHERE ratio = 0) - "
            "(SELECT count(*) FROM attention WHERE definition = ? AND ratio = 0)"
        )
        return int(self._database.execute(query, (definition,)).fetchone()[0])

    def variety(self, least: int = 5) -> dict[str, int]:
        """How often the completions of a sample at λ = 0 differ at all.

        Args:
            least: completions that a sample must have to count.

        Returns:
            `samples` that count, and how many of them are `alike`: all their completions are the same.
        """
        query = (
            "SELECT count(*), coalesce(sum(kinds = 1), 0) FROM (SELECT count(DISTINCT completion) AS kinds FROM "
            "rollouts WHERE ratio = 0 GROUP BY sample HAVING count(*) >= ?)"
        )
        samples, alike = self._database.execute(query, (least,)).fetchone()
        return {"samples": samples, "alike": alike}

    def count(self) -> int:
        """How many rollouts the folder holds."""
        return self._database.execute("SELECT count(*) FROM rollouts").fetchone()[0]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database)


class StoreReader:
    """The rollouts of a folder, to be read only: nothing is locked, made or written; a context manager.

    Args:
        directory: the output folder.

    Raises:
        StoreError: if it holds no rollouts that can be read.
    """

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / ROLLOUTS_FILE
        log = path.with_name(path.name + "-wal")
        # without a write-ahead log nobody is writing, and a folder may then be one that cannot be written to
        how = "mode=ro" if log.exists() else "mode=ro&immutable=1"
        try:
            self._database = sqlite3.connect(f"file:{quote(str(path.resolve()))}?{how}", uri=True)
            self._database.execute("SELECT 1 FROM rollouts LIMIT 1")
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be read ({error})") from error

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def rollouts(self, sample: str) -> list[Rollout]:
        """The rollouts of one sample, ordered by ratio and realization."""
        columns = _COLUMNS if _has_finish(self._database) else _COLUMNS.replace("finish", "NULL")
        query = f"SELECT {columns} FROM rollouts WHERE sample = ? ORDER BY ratio, realization"
        return [_rollout(row) for row in self._database.execute(query, (sample,))]

    def digests(self) -> dict[str, str]:
        """The digest of each sample: of all in it that changes a rollout or a grade."""
        return dict(self._database.execute("SELECT sample, digest FROM samples"))


def _has_finish(database: sqlite3.Connection) -> bool:
    return any(row[1] == "finish" for row in database.execute("PRAGMA table_info(rollouts)"))


def _rollout(row: tuple[Any, ...]) -> Rollout:
    sample, ratio, realization, completion, grade, tokens, finish = row
    return Rollout(sample, ratio, realization, completion, grade, json.loads(tokens), finish)


class _Transaction:
    """BEGIN … COMMIT, or ROLLBACK when the body raises."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")
