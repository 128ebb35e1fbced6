"""Two scorings side by side: two models on the same data, or one before and after training. Pure but for reading.

The unit is the sample that both have. A part of what differs is the luck of the rollouts, for λ* rests on few of them:
two scorings of one model with two seeds say how large that part is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from hardsample.data.digests import ChangedError, is_old, match, same
from hardsample.errors import HardsampleError
from hardsample.files import RUN_FILE
from hardsample.metrics.intervals import Interval, accuracy_interval, mean_interval, normal_quantile, rank_correlation
from hardsample.metrics.strata import STRATA, UNFINISHED
from hardsample.scoring.output import OutputError, Scores
from hardsample.scoring.store import StoreError, StoreReader

logger = logging.getLogger(__name__)

SAME = {
    "mask_space": "mask space",
    "mask_kind": "mask kind",
    "ratios": "mask ratios",
    "num_masks": "number of masks K",
    "tau": "τ",
}
"""Settings in which two scorings must agree to measure the same thing, and how they are called."""
SAID = {
    "temperature": "temperature",
    "seed": "seed",
    "max_new_tokens": "max_new_tokens",
    "search": "search",
    "grader": "grader",
    "answer_boxes": "answer_boxes",
}
"""Settings that may differ, and are said where they do."""
MIN_CORRELATED = 4


class ComparisonError(HardsampleError, ValueError):
    """The scorings cannot be compared; says what differs."""


@dataclass(frozen=True)
class Move:
    """One sample in both scorings."""

    id: str
    ability: str | None
    first: str
    second: str
    """Strata."""
    first_threshold: float | None
    second_threshold: float | None

    @property
    def way(self) -> int:
        """1 if it became easier (a stratum towards easy), −1 if harder, 0 if it stayed."""
        one, other = STRATA.index(self.first), STRATA.index(self.second)
        return (other < one) - (other > one)

    @property
    def change(self) -> float:
        """λ* in the second minus λ* in the first; a sample that no ratio fails has 1."""
        return _height(self.second_threshold) - _height(self.first_threshold)


@dataclass(frozen=True)
class Moves:
    """What two scorings have in common, and what not."""

    first: Scores
    second: Scores
    samples: list[Move]
    """All that both have a stratum for, in the order of the first."""
    counts: list[list[int]]
    """Samples by stratum in the first (rows) and in the second (columns), in the order of STRATA."""
    agreement: Interval
    kappa: Interval
    """Cohen's κ."""
    easier: Interval
    harder: Interval
    correlation: Interval | None
    """Spearman's, of λ*; None if it cannot be had."""
    change: Interval
    """Mean of the changes of λ*."""
    left_out: int
    """Samples that only one of them has, or that have no stratum in one; those that are unfinished apart."""
    unfinished: int
    """Samples that both have and that are unfinished in one or both: what they would be there is not known."""
    differing: int
    """Samples of the same id that are not the same: their prompt, images, solution or grader differ."""
    notes: list[str]

    @property
    def moved(self) -> list[Move]:
        """The samples whose stratum differs."""
        return [one for one in self.samples if one.way]


def compare_scores(first: str | Path, second: str | Path) -> Moves:
    """Compares two finished scoring runs sample by sample.

    Args:
        first: folder of the one, such as before training.
        second: folder of the other, such as after it.

    Raises:
        OutputError: a folder holds no finished run.
        ComparisonError: they measured different things, or have no two samples in common.
    """
    one, other = Scores(first), Scores(second)
    for scores in (one, other):
        if scores.run.get("status") != "done":
            raise OutputError(f"the run in {scores.directory} is not finished ({RUN_FILE} says so)")
    notes = check_alike(one, other)
    rows = [_columns(one), _columns(other, one)]
    differing, names = _matched(one, other, list(rows[1]), notes)
    rows[1] = dict(zip(names, rows[1].values(), strict=True))
    common = [
        Move(sample, rows[0][sample][2], first_stratum, second_stratum, threshold, rows[1][sample][1])
        for sample, (first_stratum, threshold, _) in rows[0].items()
        if sample in rows[1]
        and sample not in differing
        and first_stratum in STRATA
        and (second_stratum := rows[1][sample][0]) in STRATA
    ]
    unfinished = [
        {one for one, (label, *_) in side.items() if label == UNFINISHED and one in rows[0].keys() & rows[1].keys()}
        - differing
        for side in rows
    ]
    either = unfinished[0] | unfinished[1]
    if len(common) < 2:
        raise ComparisonError(
            f"{first} and {second} have {len(common)} scored samples in common, must be two or more: score both on the "
            "same data"
        )
    counts = np.zeros((len(STRATA), len(STRATA)), dtype=int)
    np.add.at(counts, tuple([STRATA.index(side) for side in sides] for sides in _sides(common)), 1)
    if differing:
        notes.append(f"{len(differing):,} samples are named alike and are not the same: left out")
    if any(unfinished):
        sides = " and ".join(
            f"{len(own):,} in the {side}" for own, side in zip(unfinished, ("first", "second"), strict=True) if own
        )
        notes.append(
            f"samples without an answer at λ = 0 are unfinished, {sides}: left out; give more --max-new-tokens"
        )
    return Moves(
        one,
        other,
        common,
        counts.tolist(),
        _share([move.way == 0 for move in common]),
        kappa(counts.tolist()),
        _share([move.way > 0 for move in common]),
        _share([move.way < 0 for move in common]),
        _correlation(common),
        mean_interval([move.change for move in common]),
        len(rows[0].keys() | rows[1].keys()) - len(common) - len(differing) - len(either),
        len(either),
        len(differing),
        notes,
    )


def check_alike(first: Scores, second: Scores) -> list[str]:
    """Refuses scorings that measured different things.

    Args:
        first: the one.
        second: the other.

    Returns:
        What else differs, and is to be said.

    Raises:
        ComparisonError: they differ in a setting of `SAME`, or mask nothing.
    """
    settings: tuple[Mapping[str, Any], ...] = first.run["settings"], second.run["settings"]
    for name, called in SAME.items():
        one, other = (found[name] for found in settings)
        if one != other:
            raise ComparisonError(
                f"{first.directory} was scored with {called} {_text(one)}, {second.directory} with {_text(other)}: "
                "these are different measurements; score both alike"
            )
    if len(settings[0]["ratios"]) < 2:
        raise ComparisonError(
            f"{first.directory} and {second.directory} mask nothing, so no sample has a λ* to compare: make them with "
            "`hardsample evaluate`, and `hardsample compare` gives the differences in accuracy"
        )
    notes = [
        f"{called}: {_text(settings[0].get(name))} in the first, {_text(settings[1].get(name))} in the second"
        for name, called in SAID.items()
        if settings[0].get(name) != settings[1].get(name)
    ]
    if first.config().bounds != second.config().bounds:
        notes.append("the bounds of the strata differ: those of the first are taken for both")
    if first.run["model"] == second.run["model"] and settings[0]["seed"] == settings[1]["seed"]:
        notes.append("model and seed are the same in both, by name")
    return notes


def kappa(counts: Sequence[Sequence[int]]) -> Interval:
    """Gives Cohen's κ and its 95 % interval, by the variance of Fleiss, Cohen and Everitt (1969).

        κ = (p_o − p_e) / (1 − p_e),   p_o = Σ_i p_ii,   p_e = Σ_i p_i· p_·i

    Args:
        counts: a square table.

    Returns:
        The interval, not a number where both sides put all samples in one class.

    Raises:
        ValueError: the table is empty.
    """
    table = np.asarray(counts, dtype=float)
    total = int(table.sum())
    if not total:
        raise ValueError("the table is empty, must hold at least one sample: give some")
    shares = table / total
    rows, columns = shares.sum(1), shares.sum(0)
    observed, expected = float(np.trace(shares)), float(rows @ columns)
    if expected == 1:
        return Interval(float("nan"), -1.0, 1.0, total)
    value = (observed - expected) / (1 - expected)
    diagonal = np.diag(shares) @ ((1 - expected) - (rows + columns) * (1 - observed)) ** 2
    mixed = (columns[:, None] + rows[None, :]) ** 2
    beside = (1 - observed) ** 2 * float((shares * mixed).sum() - np.diag(shares) @ np.diag(mixed))
    variance = diagonal + beside - (observed * expected - 2 * expected + observed) ** 2
    half = normal_quantile() * sqrt(max(float(variance), 0.0) / total) / (1 - expected) ** 2
    return Interval(value, max(-1.0, value - half), min(1.0, value + half), total)


def write_moved(found: Moves, path: Path) -> Path:
    """Writes the samples whose stratum differs, one JSON object a line, those that moved furthest first.

    Args:
        found: the comparison.
        path: of the .jsonl file.

    Raises:
        OutputError: it cannot be written there.
    """
    lines = [
        json.dumps(
            {
                "id": one.id,
                "ability": one.ability,
                "moved": "easier" if one.way > 0 else "harder",
                "first": one.first,
                "second": one.second,
                "first_failure_threshold": one.first_threshold,
                "second_failure_threshold": one.second_threshold,
            },
            ensure_ascii=False,
        )
        for one in furthest(found.moved)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text("".join(line + "\n" for line in lines))
        return path.with_suffix(".new").replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give another --output") from error


def furthest(moves: Sequence[Move]) -> list[Move]:
    """Moves in order, the largest change of λ* first."""
    return sorted(moves, key=lambda one: (-abs(one.change), one.id))


def by_ability(moves: Sequence[Move]) -> dict[str, tuple[int, Interval, Interval]]:
    """Samples, share that became easier, and share that became harder, of each ability."""
    groups: dict[str, list[Move]] = {}
    for one in moves:
        groups.setdefault(one.ability or "—", []).append(one)
    return {
        name: (len(own), _share([one.way > 0 for one in own]), _share([one.way < 0 for one in own]))
        for name, own in sorted(groups.items())
    }


def _columns(scores: Scores, bounds_of: Scores | None = None) -> dict[str, tuple[str | None, float | None, str | None]]:
    """Stratum, λ* and ability by id; the stratum by another run's bounds, if it has others."""
    column = scores.table.data.column
    strata = column("pism_stratum").to_pylist()
    if bounds_of is not None and bounds_of.config().bounds != scores.config().bounds:
        strata = [label.stratum for label in scores.labels(bounds_of.config().bounds)]
    others = (column(name).to_pylist() for name in ("failure_threshold", "ability"))
    return dict(zip(column("id").to_pylist(), zip(strata, *others, strict=True), strict=True))


def _matched(first: Scores, second: Scores, ids: Sequence[str], notes: list[str]) -> tuple[set[str], list[str]]:
    """Samples of the same id that are not the same; and the ids in the first of the second's samples."""
    known, others = _digests(first), _digests(second)
    if not known or not others or is_old(next(iter(known.values()))) != is_old(next(iter(others.values()))):
        logger.warning(
            "%s and %s hold no digests of their samples that could be compared (an older hardsample made one of them), "
            "so samples of one id are taken for the same.",
            first.directory,
            second.directory,
        )
        return set(), list(ids)
    try:
        joined = match(known, ids, [others.get(sample, "") for sample in ids], first.directory)
    except ChangedError:
        return {sample for sample in ids if not same(known.get(sample, ""), others.get(sample, ""))}, list(ids)
    if not joined.note:
        return set(), list(ids)
    notes.append(joined.note)
    return set(), [
        name if name is not None else f"{sample} of {second.directory}"
        for name, sample in zip(joined.samples, ids, strict=True)
    ]


def _digests(scores: Scores) -> dict[str, str]:
    """Id → digest of a folder's samples; of an old folder those of its store."""
    if "digest" in scores.table.column_names and any(scores.table["digest"]):
        return dict(zip(scores.table["id"], scores.table["digest"], strict=True))
    try:
        with StoreReader(scores.directory) as store:
            return store.digests()
    except StoreError:
        return {}


def _sides(moves: Sequence[Move]) -> tuple[list[str], list[str]]:
    return [one.first for one in moves], [one.second for one in moves]


def _height(threshold: float | None) -> float:
    return 1.0 if threshold is None else threshold


def _share(flags: Sequence[bool]) -> Interval:
    return accuracy_interval([int(one) for one in flags], [1] * len(flags))


def _correlation(moves: Sequence[Move]) -> Interval | None:
    if len(moves) < MIN_CORRELATED:
        return None
    found = rank_correlation(
        [_height(one.first_threshold) for one in moves], [_height(one.second_threshold) for one in moves]
    )
    return None if np.isnan(found.value) else found


def _text(value: Any) -> str:
    return ", ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
