"""A scored folder as columns, the records of the samples that are shown, and what the columns add up to.

Completions are never read here: these are counts only.
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
"""Groups that are shown one by one; the rest are added up."""
NO_IMAGE = "no image"
NAMELESS = "—"
MOVED = "The data moved since it was scored, and its ids are line numbers: its records were found by their content."


@dataclass(frozen=True)
class Source:
    """What the data says of the samples."""

    records: dict[str, Record] = field(default_factory=dict)
    """By id, of the samples that are shown; empty if the data is not to be had, and then `missing` says why."""
    root: Path | None = None
    """Where the paths of their images start from."""
    names: list[str] = field(default_factory=list)
    """Which data set each sample is from; empty if the records do not say."""
    missing: str = ""
    note: str = ""
    """How the records were found, where that has to be said."""


@dataclass(frozen=True)
class Scored:
    """The columns of a finished run, one entry a sample, and the records of some of them."""

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
        """Whether a server generated, whose attention cannot be read."""
        return "server" in self.run["backends"]

    @property
    def exhaustive(self) -> bool:
        """Whether every level of every sample with an image is full, so that there are curves."""
        return self.run["settings"]["search"] == "exhaustive" and len(self.scores.config().ratios) > 1


@dataclass(frozen=True)
class Group:
    """Samples that have something in common, by stratum."""

    name: str
    counts: dict[str | None, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


def gather(directory: Path, each: int, seed: int, data: str | None = None, image_root: str | None = None) -> Scored:
    """Reads the columns of a finished run, and finds the records of some of its samples again.

    Args:
        directory: of the run.
        each: samples of each stratum that are shown.
        seed: of their draw.
        data: where the data is now, if not where run.json says.
        image_root: where its images are now, likewise.

    Raises:
        OutputError: there is no finished run.
    """
    scores = Scores(directory)
    if scores.run.get("status") != "done" or not len(scores):
        raise OutputError(f"the run in {directory} is not finished ({RUN_FILE} says so): let it come to its end")
    column = {name: scores.table.data.column(name) for name in scores.table.column_names if name != "attention_profile"}
    counts = [column[name].combine_chunks().flatten().to_numpy() for name in ("successes", "attempts")]
    successes, attempts = (one.astype(np.int64).reshape(len(scores), -1) for one in counts)
    ids, strata = column["id"].to_pylist(), column["pism_stratum"].to_pylist()
    rows = drawn(ids, strata, each, seed)
    return Scored(
        scores,
        ids,
        strata,
        [one or NAMELESS for one in column["ability"].to_pylist()],
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
    """Draws as many samples of each stratum, whatever their order in the data.

    Args:
        ids: of all samples.
        strata: of each; None is a stratum of its own.
        each: how many.
        seed: of the draw.

    Returns:
        Rows, stratum by stratum.
    """
    places: dict[str | None, list[int]] = defaultdict(list)
    for row, name in enumerate(strata):
        places[name].append(row)
    found = []
    for name in (*LABELS, None):
        order = sorted(places[name], key=lambda row: mask_key(seed, ids[row], b"report-gallery"))
        found += sorted(order[:each])
    return found


def _source(scores: Scores, ids: list[str], wanted: set[str], data: str | None, image_root: str | None) -> Source:
    """One pass over the data; its images are not touched, which would take longer than all the rest."""
    run, settings = scores.run, scores.run["settings"]
    if data is None and run["data"] == IN_MEMORY:
        return Source(missing="the run scored a Dataset from memory: save it and name it by --data.")
    root = image_root or (None if data else run["image_root"])

    def opened() -> tuple[Iterator[Record], Path | None]:
        return unchecked(
            data or run["data"],
            image_root=root,
            grader=settings["grader"],
            limit=settings["limit"],
            options_template=scores.options_template,
        )

    try:
        records, names, folder = _read(opened, wanted)
        scored_as = moved_ids(scores, records, folder, opened)
        if scored_as is not None:
            records, names, folder = _read(opened, wanted, scored_as)
    except ChangedError as error:
        return Source(missing=f"{error}.")
    except (ValueError, OSError) as error:
        return Source(missing=f"{error}. If it has moved, name it by --data.")
    gone = wanted - records.keys()
    said = f"{run['data']} has changed: {len(gone)} samples are gone, such as {min(gone)!r}." if gone else ""
    if gone and scored_as is None:
        return Source(missing=said)
    note = "" if scored_as is None else f"{MOVED} {said}".strip()
    return Source(records, folder, [names.get(one, NAMELESS) for one in ids] if names else [], note=note)


def _read(
    opened: Callable[[], tuple[Iterator[Record], Path | None]],
    wanted: set[str],
    scored_as: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, Record], dict[str, str], Path | None]:
    """The records that are wanted, and the data set of all that say theirs, by the ids that they were scored under."""
    records: dict[str, Record] = {}
    names: dict[str, str] = {}
    found, folder = opened()
    for record in found:
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
    """Strata by group, the largest groups one by one, by name, the others added up in the last.

    Args:
        names: of each sample's group.
        strata: of each sample.
    """
    counts = Counter(zip(names, strata, strict=True))
    sizes = Counter(names).most_common()
    columns: list[str | None] = [*LABELS, None]
    made = [Group(name, {one: counts[name, one] for one in columns}) for name, _ in sorted(sizes[:MOST_GROUPS])]
    rest = [name for name, _ in sizes[MOST_GROUPS:]]
    if rest:
        made.append(Group(f"{len(rest)} more", {one: sum(counts[name, one] for name in rest) for one in columns}))
    return made


def curves(scored: Scored) -> dict[str, list[Interval]]:
    """Accuracy P_c(λ) of each stratum at each ratio, with intervals; of an exhaustive run."""
    found = {}
    for name in ("all", *STRATA):
        kept = STRATA if name == "all" else (name,)
        rows = np.asarray([one in kept for one in scored.strata])
        if rows.any():
            wins, tries = scored.successes[rows], scored.attempts[rows]
            found[name] = [accuracy_interval(wins[:, i], tries[:, i]) for i in range(wins.shape[1])]
    return found


def passing(scored: Scored, most: int = 5) -> dict[str, list[Interval]]:
    """Share of the samples that still pass at each ratio (λ* lies above it): of all, and of the largest abilities.

    Args:
        scored: the run.
        most: abilities.
    """
    ratios = np.asarray(scored.scores.config().ratios)
    kept = np.asarray([one in STRATA for one in scored.strata])
    top = np.asarray([np.inf if one is None else one for one in scored.thresholds])
    passed = top[:, None] > ratios + 1e-9
    names = np.asarray(scored.abilities)
    common = [name for name, _ in Counter(scored.abilities).most_common(most)]
    groups = {"all": kept} | {name: kept & (names == name) for name in common if len(set(scored.abilities)) > 1}
    found = {}
    for name, rows in groups.items():
        if rows.any():
            ones = [1] * int(rows.sum())
            found[name] = [accuracy_interval(passed[rows, i], ones) for i in range(len(ratios))]
    return found


def crossed(first: Sequence[str | None], second: Sequence[str | None]) -> list[list[int]]:
    """How many samples are in each stratum of one column and each of another, in the order of STRATA; no others.

    Args:
        first: rows.
        second: columns.
    """
    counts = Counter(zip(first, second, strict=True))
    return [[counts[row, column] for column in STRATA] for row in STRATA]


def heat(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """How dark each cell of a table is, 0 … 9, by its share of the row."""
    return [[round(9 * count / max(sum(row), 1)) for count in row] for row in rows]
