"""Compare two scorings: of two models on the same data, or of one model before and after training.

The unit is the sample that both have. Part of the difference is sampling noise, since λ* rests on few rollouts: two
scorings of one model with different seeds show how large that part is.
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

MUST_MATCH = {
    "mask_space": "mask space",
    "mask_kind": "mask kind",
    "ratios": "mask ratios",
    "num_masks": "number of masks K",
    "tau": "τ",
}
"""Settings in which two scorings must agree, and their names."""
MAY_DIFFER = {
    "temperature": "temperature",
    "seed": "seed",
    "max_new_tokens": "max_new_tokens",
    "search": "search",
    "grader": "grader",
    "answer_boxes": "answer_boxes",
}
"""Settings that may differ; a note says so if they do."""
MIN_CORRELATED = 4


class ComparisonError(HardsampleError, ValueError):
    """The scorings cannot be compared; the message says what differs."""


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
        """1 if it became easier (a stratum closer to easy), −1 if harder, 0 if it stayed."""
        first, second = STRATA.index(self.first), STRATA.index(self.second)
        return (second < first) - (second > first)

    @property
    def change(self) -> float:
        """λ* in the second minus λ* in the first; λ* counts as 1 if no ratio fails."""
        return _height(self.second_threshold) - _height(self.first_threshold)


@dataclass(frozen=True)
class Moves:
    """The comparison of two scorings."""

    first: Scores
    second: Scores
    samples: list[Move]
    """All samples with a stratum in both, in the order of the first."""
    counts: list[list[int]]
    """Samples by stratum in the first (rows) and in the second (columns), in the order of STRATA."""
    agreement: Interval
    kappa: Interval
    """Cohen's κ."""
    easier: Interval
    harder: Interval
    correlation: Interval | None
    """Spearman's rank correlation of λ*; None if it is undefined."""
    change: Interval
    """Mean change of λ*."""
    left_out: int
    """Samples in only one of them, or without a stratum in one; unfinished ones not counted."""
    unfinished: int
    """Samples in both that are unfinished in one or both: their stratum is unknown."""
    differing: int
    """Samples with the same id but a different prompt, images, solution or grader."""
    notes: list[str]

    @property
    def moved(self) -> list[Move]:
        """The samples whose stratum differs."""
        return [move for move in self.samples if move.way]


def compare_scores(first: str | Path, second: str | Path) -> Moves:
    """Compare two finished scoring runs sample by sample.

    Args:
        first: a folder, such as before training.
        second: another folder, such as after it.

    Raises:
        OutputError: a folder holds no finished run.
        ComparisonError: they measured different things, or have fewer than two samples in common.
    """
    runs = Scores(first), Scores(second)
    for scores in runs:
        if scores.run.get("status") != "done":
            raise OutputError(f"the run in {scores.directory} is not finished ({RUN_FILE} says so)")
    notes = check_alike(*runs)
    rows = [_columns(runs[0]), _columns(runs[1], runs[0])]
    differing, names = _matched(*runs, list(rows[1]), notes)
    rows[1] = dict(zip(names, rows[1].values(), strict=True))
    common = [
        Move(sample, rows[0][sample][2], first_stratum, second_stratum, threshold, rows[1][sample][1])
        for sample, (first_stratum, threshold, _) in rows[0].items()
        if sample in rows[1]
        and sample not in differing
        and first_stratum in STRATA
        and (second_stratum := rows[1][sample][0]) in STRATA
    ]
    in_both = (rows[0].keys() & rows[1].keys()) - differing
    unfinished = [
        {sample for sample, (label, *_) in side.items() if label == UNFINISHED and sample in in_both} for side in rows
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
        notes.append(f"{len(differing):,} samples have the same id but different content: left out")
    if any(unfinished):
        sides = " and ".join(
            f"{len(own):,} in the {side}" for own, side in zip(unfinished, ("first", "second"), strict=True) if own
        )
        notes.append(
            f"samples without an answer at λ = 0 are unfinished, {sides}: left out; score with more --max-new-tokens"
        )
    return Moves(
        *runs,
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
    """Reject scorings that measured different things.

    Args:
        first: a scoring.
        second: another scoring.

    Returns:
        Notes on what else differs.

    Raises:
        ComparisonError: they differ in a setting of `MUST_MATCH`, or are evaluations, which mask nothing.
    """
    settings: tuple[Mapping[str, Any], ...] = first.run["settings"], second.run["settings"]
    for name, title in MUST_MATCH.items():
        values = [side[name] for side in settings]
        if values[0] != values[1]:
            raise ComparisonError(
                f"{first.directory} was scored with {title} {_text(values[0])}, {second.directory} with "
                f"{_text(values[1])}: these are different measurements; score both with the same settings"
            )
    if len(settings[0]["ratios"]) < 2:
        raise ComparisonError(
            f"{first.directory} and {second.directory} mask nothing, so no sample has a λ* to compare: make them with "
            "`hardsample evaluate`, and `hardsample compare` gives the differences in accuracy"
        )
    notes = [
        f"{title}: {_text(settings[0].get(name))} in the first, {_text(settings[1].get(name))} in the second"
        for name, title in MAY_DIFFER.items()
        if settings[0].get(name) != settings[1].get(name)
    ]
    if first.config().bounds != second.config().bounds:
        notes.append("the bounds of the strata differ: the bounds of the first are used for both")
    if first.run["model"] == second.run["model"] and settings[0]["seed"] == settings[1]["seed"]:
        notes.append("both have the same model name and seed")
    return notes


def kappa(counts: Sequence[Sequence[int]]) -> Interval:
    """Return Cohen's κ and its 95 % interval, by the variance of Fleiss, Cohen and Everitt (1969).

        κ = (p_o − p_e) / (1 − p_e),   p_o = Σ_i p_ii,   p_e = Σ_i p_i· p_·i

    Args:
        counts: a square table.

    Returns:
        The interval; its value is NaN if both sides put all samples in one class.

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


def write_moved(moves: Moves, path: Path) -> Path:
    """Write the samples whose stratum differs, one JSON object per line, the largest change of λ* first.

    Args:
        moves: the comparison.
        path: of the .jsonl file.

    Raises:
        OutputError: it cannot be written there.
    """
    lines = [
        json.dumps(
            {
                "id": move.id,
                "ability": move.ability,
                "moved": "easier" if move.way > 0 else "harder",
                "first": move.first,
                "second": move.second,
                "first_failure_threshold": move.first_threshold,
                "second_failure_threshold": move.second_threshold,
            },
            ensure_ascii=False,
        )
        for move in furthest(moves.moved)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text("".join(line + "\n" for line in lines))
        return path.with_suffix(".new").replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): give another --output") from error


def furthest(moves: Sequence[Move]) -> list[Move]:
    """Sort moves by the size of the change of λ*, the largest first."""
    return sorted(moves, key=lambda move: (-abs(move.change), move.id))


def by_ability(moves: Sequence[Move]) -> dict[str, tuple[int, Interval, Interval]]:
    """Return samples, share that became easier, and share that became harder, of each ability."""
    groups: dict[str, list[Move]] = {}
    for move in moves:
        groups.setdefault(move.ability or "—", []).append(move)
    return {
        name: (len(own), _share([move.way > 0 for move in own]), _share([move.way < 0 for move in own]))
        for name, own in sorted(groups.items())
    }


def _columns(scores: Scores, bounds_of: Scores | None = None) -> dict[str, tuple[str | None, float | None, str | None]]:
    """Return stratum, λ* and ability by id; the stratum by another run's bounds if these differ."""
    column = scores.table.data.column
    strata = column("pism_stratum").to_pylist()
    if bounds_of is not None and bounds_of.config().bounds != scores.config().bounds:
        strata = [label.stratum for label in scores.labels(bounds_of.config().bounds)]
    columns = (column(name).to_pylist() for name in ("failure_threshold", "ability"))
    return dict(zip(column("id").to_pylist(), zip(strata, *columns, strict=True), strict=True))


def _matched(first: Scores, second: Scores, ids: Sequence[str], notes: list[str]) -> tuple[set[str], list[str]]:
    """Return the ids whose content differs, and the first scoring's id of each of the second's samples."""
    first_digests, digests = _digests(first), _digests(second)
    kinds = [is_old(next(iter(side.values()))) for side in (first_digests, digests) if side]
    if len(kinds) < 2 or kinds[0] != kinds[1]:
        logger.warning(
            "%s and %s hold no digests of their samples that can be compared (an older version of hardsample made one "
            "of them), so samples with the same id are taken to be the same.",
            first.directory,
            second.directory,
        )
        return set(), list(ids)
    try:
        joined = match(first_digests, ids, [digests.get(sample, "") for sample in ids], first.directory)
    except ChangedError:
        changed = {sample for sample in ids if not same(first_digests.get(sample, ""), digests.get(sample, ""))}
        return changed, list(ids)
    if not joined.note:
        return set(), list(ids)
    notes.append(joined.note)
    return set(), [
        name if name is not None else f"{sample} of {second.directory}"
        for name, sample in zip(joined.samples, ids, strict=True)
    ]


def _digests(scores: Scores) -> dict[str, str]:
    """Return id → digest of a folder's samples; for an old folder, the digests of its store."""
    if "digest" in scores.table.column_names and any(scores.table["digest"]):
        return dict(zip(scores.table["id"], scores.table["digest"], strict=True))
    try:
        with StoreReader(scores.directory) as store:
            return store.digests()
    except StoreError:
        return {}


def _sides(moves: Sequence[Move]) -> tuple[list[str], list[str]]:
    return [move.first for move in moves], [move.second for move in moves]


def _height(threshold: float | None) -> float:
    return 1.0 if threshold is None else threshold


def _share(flags: Sequence[bool]) -> Interval:
    return accuracy_interval([int(flag) for flag in flags], [1] * len(flags))


def _correlation(moves: Sequence[Move]) -> Interval | None:
    if len(moves) < MIN_CORRELATED:
        return None
    correlation = rank_correlation(
        [_height(move.first_threshold) for move in moves], [_height(move.second_threshold) for move in moves]
    )
    return None if np.isnan(correlation.value) else correlation


def _text(value: Any) -> str:
    return ", ".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)
