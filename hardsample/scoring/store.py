"""Rollouts in SQLite: what is committed is never lost and never made again.

One table row is one graded rollout. A batch is one transaction, written through to the disk, so a kill at any time
loses at most the batch in flight. The folder keeps the settings that its rollouts were made with and a digest of every
sample, and cannot be resumed with others.
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
from hardsample.engines.features import VERSION, Features
from hardsample.errors import HardsampleError
from hardsample.files import ROLLOUTS_FILE
from hardsample.metrics.finishes import UNKNOWN, unanswered
from hardsample.scoring.adaptive.rounds import Rounds

SCHEMA = """
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
CREATE TABLE IF NOT EXISTS features (
    id TEXT NOT NULL, encoder TEXT NOT NULL, version INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (encoder, id)
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
        finish: how it ended, one of `metrics.finishes.FINISHES`; None if an older version stored it.
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
        balance: ρ̄; None if there is none, and then `reason` says why.
        profile: mean over tokens of log ρ of each layer; None where a layer has none.
        left_out: pairs of layer and token left out because the query sees no image or no text key.
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
        directory: the output folder; created if missing.
        name: of the file.

    Raises:
        StoreError: if another process is writing to the folder, or the file is not a store of hardsample.
    """

    def __init__(self, directory: str | Path, name: str = ROLLOUTS_FILE) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.directory / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"another process is scoring into {self.directory}: wait for it, or choose another --output"
            ) from error
        path = self.directory / name
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(SCHEMA)
            if not _has_finish(self._database):  # made by an older version: how its rollouts ended is unknown
                self._database.execute("ALTER TABLE rollouts ADD COLUMN finish TEXT")
        except sqlite3.DatabaseError as error:
            self.close()
            raise StoreError(f"{path} is not a store of hardsample ({error}): choose another --output") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release the folder."""
        self._database.close()
        self._lock.release()

    def settings(self) -> dict[str, object]:
        """Return the settings that the folder's rollouts were made with; empty in a new folder."""
        return {name: json.loads(value) for name, value in self._database.execute("SELECT name, value FROM settings")}

    def agree(
        self, settings: Mapping[str, object], upgrades: Mapping[str, tuple[object, object]] | None = None
    ) -> None:
        """Store the settings that change results, or check that they equal the folder's.

        Args:
            settings: name → JSON value, of everything that changes a rollout or the results.
            upgrades: name → (from, to), changes that are allowed when a folder is resumed.

        Raises:
            StoreError: if the folder was made with other settings; the message names each that differs.
        """
        wanted = {name: json.loads(json.dumps(value)) for name, value in settings.items()}
        stored = self.settings()
        upgraded = {
            name for name, (old, new) in (upgrades or {}).items() if stored.get(name) == old and wanted.get(name) == new
        }
        differing = [name for name in sorted({*stored, *wanted} - upgraded) if stored.get(name) != wanted.get(name)]
        if stored and differing:
            lines = [f"  {name}: {stored.get(name)!r} there, {wanted.get(name)!r} now" for name in differing]
            raise StoreError(
                f"{self.directory} was made with other settings:\n"
                + "\n".join(lines)
                + ".\nUse the same settings to resume it, or another --output."
            )
        rows = [(name, json.dumps(value)) for name, value in wanted.items()]
        with self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    def agree_on_samples(self, digests: Iterable[tuple[str, str]]) -> None:
        """Check that the samples of the folder are unchanged, and store the new ones.

        Args:
            digests: (id, digest of everything in it that changes a rollout or a grade) of every sample of this run.

        Raises:
            StoreError: if a sample that the folder holds has changed, or is not in this run.
        """
        given = dict(digests)
        stored = self.digests()
        if wrong := differences(stored, list(given.items()), self.directory):
            note = " (It was made by an older version of hardsample, which may have read them differently.)"
            raise StoreError(wrong + note * any(map(is_old, stored.values())))
        new = [(sample, digest) for sample, digest in given.items() if sample not in stored]
        missing = [sample for sample in stored if sample not in given]
        if missing:
            raise StoreError(
                f"{self.directory} holds {len(missing)} samples that this run does not have (the first: "
                f"{missing[0]!r}): use the same data and at least the same --limit, or another --output"
            )
        with self._transaction():
            self._database.executemany("INSERT INTO samples VALUES (?, ?)", new)

    def digests(self) -> dict[str, str]:
        """Return the digest of each sample in the folder."""
        return dict(self._database.execute("SELECT sample, digest FROM samples"))

    def renew_digests(self, digests: Mapping[str, str]) -> None:
        """Replace the digests of samples that are known to be unchanged by digests of the current kind."""
        with self._transaction():
            self._database.executemany(
                "UPDATE samples SET digest = ? WHERE sample = ?", [(new, sample) for sample, new in digests.items()]
            )

    def commit(
        self, rollouts: Iterable[Rollout], features: Mapping[str, Features] | None = None, encoder: str = ""
    ) -> None:
        """Write a batch's rollouts in one transaction; they are on the disk when this returns.

        Args:
            rollouts: of the batch.
            features: of samples that it shows features of, by id.
            encoder: see `commit_features`.
        """
        rows = [
            (r.sample, r.ratio, r.realization, r.completion, r.grade, json.dumps(r.tokens), r.finish) for r in rollouts
        ]
        with self._transaction():
            self._database.executemany(f"INSERT INTO rollouts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._insert_features(features or {}, encoder)

    def commit_features(self, features: Mapping[str, Features], encoder: str) -> None:
        """Write features in one transaction.

        Args:
            features: by id.
            encoder: of `encoder_name`: the model that they are of.
        """
        with self._transaction():
            self._insert_features(features, encoder)

    def _insert_features(self, features: Mapping[str, Features], encoder: str) -> None:
        rows = [(sample, encoder, VERSION, row.astype("<f2").tobytes()) for sample, row in features.items()]
        self._database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)

    def features(self, encoder: str) -> Iterator[tuple[str, bytes]]:
        """Yield id and features of the samples that have some of a model, float16 of this version."""
        query = "SELECT id, data FROM features WHERE encoder = ? AND version = ?"
        yield from self._database.execute(query, (encoder, VERSION))

    def grades(self, sample: str) -> list[tuple[float, int, int]]:
        """Return (ratio, realization, grade) of every rollout of a sample, in order."""
        query = "SELECT ratio, realization, grade FROM rollouts WHERE sample = ? ORDER BY ratio, realization"
        return self._database.execute(query, (sample,)).fetchall()

    def rounds(self) -> Rounds:
        """Return the rounds of an adaptive search."""
        return Rounds(self._database)

    def unanswered(self, sample: str) -> list[int]:
        """Return the realizations at λ = 0 of a sample that are not right and have no answer, in order."""
        query = "SELECT realization, finish, grade FROM rollouts WHERE sample = ? AND ratio = 0 ORDER BY realization"
        return [k for k, finish, grade in self._database.execute(query, (sample,)) if unanswered(finish, grade)]

    def finishes(self) -> dict[str, dict[str, int]]:
        """Count the rollouts by finish state: `unmasked`, those at λ = 0, and `all`; finish state → number."""
        counts: dict[str, dict[str, int]] = {"unmasked": {}, "all": {}}
        query = "SELECT ratio = 0, coalesce(finish, ?), count(*) FROM rollouts GROUP BY 1, 2 ORDER BY 3 DESC, 2"
        for unmasked, finish, number in self._database.execute(query, (UNKNOWN,)):
            for name in ("unmasked", "all") if unmasked else ("all",):
                counts[name][finish] = counts[name].get(finish, 0) + number
        return counts

    def rollouts(self, sample: str | None = None) -> Iterator[Rollout]:
        """Yield the rollouts of one sample, or of all, ordered by sample, ratio and realization."""
        query = f"SELECT {_COLUMNS} FROM rollouts"
        query, values = (query, ()) if sample is None else (query + " WHERE sample = ?", (sample,))
        for row in self._database.execute(query + " ORDER BY sample, ratio, realization", values):
            yield _rollout(row)

    def commit_attention(self, definition: str, rows: Iterable[Attention]) -> None:
        """Write the attention balances of a batch in one transaction.

        Args:
            definition: what the balances depend on besides the rollout (variant, layers, text, dtype).
            rows: of rollouts that have no balance by this definition yet.
        """
        values = [
            (definition, a.sample, a.ratio, a.realization, a.balance, json.dumps(a.profile), a.left_out, a.reason)
            for a in rows
        ]
        with self._transaction():
            self._database.executemany("INSERT INTO attention VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def attention(self, definition: str, sample: str) -> list[Attention]:
        """Return the attention balances of a sample's rollouts by one definition, in order."""
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
        """Return the number of completions at λ = 0 without an attention balance by a definition."""
        query = (
            "SELECT (SELECT count(*) FROM rollouts WHERE ratio = 0) - "
            "(SELECT count(*) FROM attention WHERE definition = ? AND ratio = 0)"
        )
        return int(self._database.execute(query, (definition,)).fetchone()[0])

    def variety(self, least: int = 5) -> dict[str, int]:
        """Return how many samples have only one distinct completion at λ = 0.

        Args:
            least: completions that a sample needs to count.

        Returns:
            `samples`: those that count; `alike`: those whose completions are all the same.
        """
        query = (
            "SELECT count(*), coalesce(sum(kinds = 1), 0) FROM (SELECT count(DISTINCT completion) AS kinds FROM "
            "rollouts WHERE ratio = 0 GROUP BY sample HAVING count(*) >= ?)"
        )
        samples, alike = self._database.execute(query, (least,)).fetchone()
        return {"samples": samples, "alike": alike}

    def count(self) -> int:
        """Return the number of rollouts in the folder."""
        return self._database.execute("SELECT count(*) FROM rollouts").fetchone()[0]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database)


class StoreReader:
    """Read-only access to the rollouts of a folder: nothing is locked, created or written; a context manager.

    Args:
        directory: the output folder.
        name: of the file.

    Raises:
        StoreError: if it holds no readable rollouts.
    """

    def __init__(self, directory: str | Path, name: str = ROLLOUTS_FILE) -> None:
        path = Path(directory) / name
        log = path.with_name(path.name + "-wal")
        # without a write-ahead log no process is writing, and the folder may be read-only
        options = "mode=ro" if log.exists() else "mode=ro&immutable=1"
        try:
            self._database = sqlite3.connect(f"file:{quote(str(path.resolve()))}?{options}", uri=True)
            self._database.execute("SELECT 1 FROM rollouts LIMIT 1")
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be read ({error})") from error

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def rollouts(self, sample: str) -> list[Rollout]:
        """Return the rollouts of one sample, ordered by ratio and realization."""
        columns = _COLUMNS if _has_finish(self._database) else _COLUMNS.replace("finish", "NULL")
        query = f"SELECT {columns} FROM rollouts WHERE sample = ? ORDER BY ratio, realization"
        return [_rollout(row) for row in self._database.execute(query, (sample,))]

    def settings(self) -> dict[str, object]:
        """Return the settings that the folder's rollouts were made with."""
        return {name: json.loads(value) for name, value in self._database.execute("SELECT name, value FROM settings")}

    def count(self) -> int:
        """Return the number of rollouts in the folder."""
        return int(self._database.execute("SELECT count(*) FROM rollouts").fetchone()[0])

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query."""
        yield from self._database.execute(query)

    def digests(self) -> dict[str, str]:
        """Return the digest of each sample, of everything in it that changes a rollout or a grade."""
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
