"""The rounds of an adaptive search in SQLite, beside the rollouts: what each asks is written before it is asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER NOT NULL,
    sample TEXT NOT NULL,
    ratio REAL NOT NULL,
    realization INTEGER NOT NULL,
    PRIMARY KEY (sample, ratio, realization)
) WITHOUT ROWID;
"""


class Rounds:
    """The rounds of a folder.

    Args:
        database: of the folder's store, which holds the rollouts.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.executescript(_SCHEMA)

    def commit(self, rollouts: Iterable[tuple[str, float, int]]) -> None:
        """Write which (sample, ratio, realization) the next round asks, in one transaction."""
        number = self.count()
        self._database.execute("BEGIN IMMEDIATE")
        try:
            rows = ((number, *rollout) for rollout in rollouts)
            self._database.executemany("INSERT INTO rounds VALUES (?, ?, ?, ?)", rows)
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def count(self) -> int:
        """Return the number of rounds so far."""
        return int(self._database.execute("SELECT coalesce(max(round) + 1, 0) FROM rounds").fetchone()[0])

    def unmade(self) -> list[tuple[str, float, int]]:
        """Return (sample, ratio, realization) of what was asked and is not made, in order."""
        query = (
            "SELECT sample, ratio, realization FROM rounds WHERE NOT EXISTS (SELECT 1 FROM rollouts AS made WHERE "
            "(made.sample, made.ratio, made.realization) = (rounds.sample, rounds.ratio, rounds.realization)) "
            "ORDER BY sample, ratio, realization"
        )
        return self._database.execute(query).fetchall()

    def level_counts(self) -> Iterator[tuple[str, float, int, int]]:
        """Yield (sample, ratio, successes, rollouts) of every level that has rollouts."""
        query = "SELECT sample, ratio, sum(grade), count(*) FROM rollouts GROUP BY sample, ratio"
        yield from self._database.execute(query)
