"""A scored folder as columns, the records of the samples that are shown, and aggregates of the columns.

Completions are never read here, only counts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from hardsample.data.digests import ChangedError
from hardsample.data.formats import Record
from hardsample.data.loading import unchecked
from hardsample.evaluation.evaluate import GROUPS
from hardsample.files import RUN_FILE
from hardsample.kernels.keys import mask_key
from hardsample.metrics.intervals import Interval, accuracy_interval
from hardsample.metrics.strata import LABELS, STRATA
from hardsample.scoring.matching import moved_ids
from hardsample.scoring.output import IN_MEMORY, OutputError, Scores

MOST_GROUPS = 16
"""Groups that are shown one by one; the rest are summed up."""
NO_IMAGE = "no image"
NAMELESS = "—"
MOVED = "The data changed since it was scored, and its ids are line numbers: records were found by their content."


@dataclass(frozen=True)
class Source:
    """The samples as they are in the data."""

    records: dict[str, Record] = field(default_factory=dict)
    """By id, of the samples that are shown; empty if the data is missing, and then `missing` says why."""
    root: Path | None = None
    """Folder that their image paths are relative to."""
    names: list[str] = field(default_factory=list)
    """Data set of each sample; empty if the records do not have it."""
    missing: str = ""
    note: str = ""
    """How the records were found, if that is worth a note."""


@dataclass(frozen=True)
class Scored:
    """The columns of a finished run, one entry per sample, and the records of some samples."""

    scores: Scores
    ids: list[str]
    strata: list[str | None]
    abilities: list[str]
    thresholds: list[float | None]
    successes: Int[ndarray, "sample ratio"]
    attempts: Int[ndarray, "sample ratio"]
    rollouts: list[int]
    balances: list[float | None]
    cmab: list[str | None]
    solved_blind: list[bool | None]
    drawn: list[int]
    """Rows of the samples that are shown, stratum by stratum."""
    source: Source

    @property
    def run(self) -> dict[str, Any]:
        """run.json."""
        return self.scores.run

    @property
    def served(self) -> bool:
        """Whether a server generated the rollouts; its attention cannot be read."""
        return "server" in self.run["backends"]

    @property
    def exhaustive(self) -> bool:
        """Whether every level of every sample with an image is full, so that there are accuracy curves."""
        return self.run["settings"]["search"] == "exhaustive" and len(self.scores.config().ratios) > 1


@dataclass(frozen=True)
class Group:
    """Counts of a group of samples by stratum."""

    name: str
    counts: dict[str | None, int]

    @property
    def total(self) -> int:
        """Number of samples in the group."""
        return sum(self.counts.values())


def gather(directory: Path, each: int, seed: int, data: str | None = None, image_root: str | None = None) -> Scored:
    """Read the columns of a finished run, and look up the records of some of its samples.

    Args:
        directory: of the run.
        each: samples of each stratum that are shown.
        seed: of their random draw.
        data: current location of the data, if not the one in run.json.
        image_root: current location of its images, likewise.

    Raises:
        OutputError: there is no finished run.
    """
    scores = Scores(directory)
    if scores.run.get("status") != "done" or not len(scores):
        raise OutputError(
            f"the run in {directory} is not finished ({RUN_FILE} says so): run its command again to finish it"
        )
    column = {name: scores.table.data.column(name) for name in scores.table.column_names if name != "attention_profile"}
    counts = [column[name].combine_chunks().flatten().to_numpy() for name in ("successes", "attempts")]
    successes, attempts = (count.astype(np.int64).reshape(len(scores), -1) for count in counts)
    ids, strata = column["id"].to_pylist(), column["pism_stratum"].to_pylist()
    rows = drawn(ids, strata, each, seed)
    return Scored(
        scores,
        ids,
        strata,
        [ability or NAMELESS for ability in column["ability"].to_pylist()],
        column["failure_threshold"].to_pylist(),
        successes,
        attempts,
        column["rollouts"].to_pylist(),
        column["attention_balance"].to_pylist(),
        column["cmab_stratum"].to_pylist(),
        column["solved_blind"].to_pylist(),
        rows,
        _source(scores, ids, {ids[row] for row in rows}, data, image_root),
    )


def drawn(ids: Sequence[str], strata: Sequence[str | None], each: int, seed: int) -> list[int]:
    """Draw the same number of samples from each stratum, independently of their order in the data.

    Args:
        ids: of all samples.
        strata: of each; None is a stratum of its own.
        each: samples per stratum.
        seed: of the draw.

    Returns:
        Rows, stratum by stratum.
    """
    rows_of: dict[str | None, list[int]] = defaultdict(list)
    for row, name in enumerate(strata):
        rows_of[name].append(row)
    rows = []
    for name in (*LABELS, None):
        order = sorted(rows_of[name], key=lambda row: mask_key(seed, ids[row], b"report-gallery"))
        rows += sorted(order[:each])
    return rows


def _source(scores: Scores, ids: list[str], wanted: set[str], data: str | None, image_root: str | None) -> Source:
    """Read the records in one pass, without opening their images, which would dominate the run time."""
    run, settings = scores.run, scores.run["settings"]
    if data is None and run["data"] == IN_MEMORY:
        return Source(missing="the run scored a Dataset from memory: save it and give it with --data.")
    root = image_root or (None if data else run["image_root"])

    def open_records() -> tuple[Iterator[Record], Path | None]:
        return unchecked(
            data or run["data"],
            image_root=root,
            grader=settings["grader"],
            limit=settings["limit"],
            options_template=scores.options_template,
        )

    try:
        records, names, folder = _read(open_records, wanted)
        scored_as = moved_ids(scores, records, folder, open_records)
        if scored_as is not None:
            records, names, folder = _read(open_records, wanted, scored_as)
    except ChangedError as error:
        return Source(missing=f"{error}.")
    except (ValueError, OSError) as error:
        return Source(missing=f"{error}. If it has moved, give its location with --data.")
    gone = wanted - records.keys()
    change = f"{run['data']} has changed: {len(gone)} samples are missing, such as {min(gone)!r}." if gone else ""
    if gone and scored_as is None:
        return Source(missing=change)
    note = "" if scored_as is None else f"{MOVED} {change}".strip()
    return Source(records, folder, [names.get(sample, NAMELESS) for sample in ids] if names else [], note=note)


def _read(
    open_records: Callable[[], tuple[Iterator[Record], Path | None]],
    wanted: set[str],
    scored_as: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, Record], dict[str, str], Path | None]:
    """Return the wanted records and the data set names of all records, by the ids that they were scored under."""
    records: dict[str, Record] = {}
    names: dict[str, str] = {}
    unread, folder = open_records()
    for record in unread:
        sample = record.id if scored_as is None else scored_as.get(record.id)
        if sample is None:
            continue
        if sample in wanted:
            records[sample] = record
        name = next((record.extra[key] for key in GROUPS["source"] if record.extra.get(key) is not None), None)
        if name is not None:
            names[sample] = str(name)
    return records, names, folder


def grouped(names: Sequence[str], strata: Sequence[str | None]) -> list[Group]:
    """Count strata by group: the largest groups one by one, sorted by name, the others summed up in the last.

    Args:
        names: of each sample's group.
        strata: of each sample.
    """
    counts = Counter(zip(names, strata, strict=True))
    sizes = Counter(names).most_common()
    columns: list[str | None] = [*LABELS, None]
    groups = [
        Group(name, {column: counts[name, column] for column in columns}) for name, _ in sorted(sizes[:MOST_GROUPS])
    ]
    rest = [name for name, _ in sizes[MOST_GROUPS:]]
    if rest:
        groups.append(
            Group(f"{len(rest)} more", {column: sum(counts[name, column] for name in rest) for column in columns})
        )
    return groups


def curves(scored: Scored) -> dict[str, list[Interval]]:
    """Return accuracy P_c(λ) of each stratum at each ratio, with intervals; for an exhaustive run."""
    intervals = {}
    for name in ("all", *STRATA):
        kept = STRATA if name == "all" else (name,)
        rows = np.asarray([stratum in kept for stratum in scored.strata])
        if rows.any():
            wins, tries = scored.successes[rows], scored.attempts[rows]
            intervals[name] = [accuracy_interval(wins[:, i], tries[:, i]) for i in range(wins.shape[1])]
    return intervals


def passing(scored: Scored, most: int = 5) -> dict[str, list[Interval]]:
    """Return the share of samples that still pass at each ratio (λ* is above it): of all, and of the largest abilities.

    Args:
        scored: the run.
        most: abilities.
    """
    ratios = np.asarray(scored.scores.config().ratios)
    kept = np.asarray([stratum in STRATA for stratum in scored.strata])
    top = np.asarray([np.inf if threshold is None else threshold for threshold in scored.thresholds])
    passed = top[:, None] > ratios + 1e-9
    names = np.asarray(scored.abilities)
    common = [name for name, _ in Counter(scored.abilities).most_common(most)]
    groups = {"all": kept} | {name: kept & (names == name) for name in common if len(set(scored.abilities)) > 1}
    intervals = {}
    for name, rows in groups.items():
        if rows.any():
            attempts = [1] * int(rows.sum())
            intervals[name] = [accuracy_interval(passed[rows, i], attempts) for i in range(len(ratios))]
    return intervals


def crossed(first: Sequence[str | None], second: Sequence[str | None]) -> list[list[int]]:
    """Count the samples in each stratum of one column and each of another, in the order of STRATA.

    Args:
        first: rows.
        second: columns.
    """
    counts = Counter(zip(first, second, strict=True))
    return [[counts[row, column] for column in STRATA] for row in STRATA]


def heat(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the shade of each cell of a table, 0 … 9, by its share of the row."""
    return [[round(9 * count / max(sum(row), 1)) for count in row] for row in rows]
