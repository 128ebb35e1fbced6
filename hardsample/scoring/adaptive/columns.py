"""The columns of scores.parquet that an adaptive search fills, of one sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hardsample.metrics.pism import PismConfig, verdict
from hardsample.metrics.strata import STRATA, UNFINISHED, Verdict

if TYPE_CHECKING:
    from hardsample.metrics.ladders import Ladder
    from hardsample.prediction.adaptive import Estimate

SOURCES = ("measured", "adaptive", "predicted")
"""Values of `stratum_source`."""
Columns = tuple[str | None, float | None, list[float] | None, float | None, float | None, float | None, float | None]
"""`stratum_source`, `stratum_probability`, `probabilities`, both ends of λ*, `predicted_success_rate`,
`predicted_signal`."""


def adaptive_counts(table: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return what run.json counts of an adaptive search: strata by source, mean probability, expected strata.

    Args:
        table: columns of scores.parquet.
    """
    stated = [value for value in table["stratum_probability"] if value is not None]
    known = [row for row in table["probabilities"] if row is not None]
    return {
        "sources": {name: table["stratum_source"].count(name) for name in SOURCES},
        "mean_probability": round(sum(stated) / max(len(stated), 1), 4),
        "expected_strata": {name: round(sum(row[i] for row in known), 1) for i, name in enumerate(STRATA)},
    }


def labelled(ladder: Ladder, config: PismConfig, estimate: Estimate | None) -> tuple[Verdict, Columns]:
    """Return λ* and stratum of a sample, and its columns.

    Args:
        ladder: with all grades of the sample.
        config: settings of the search.
        estimate: of an adaptive search, by row; None of the others, whose grades decide.
    """
    if estimate is None:
        own = verdict(ladder.grades, config, ladder.has_image, ladder.answered)
        return own, ("measured" if ladder.has_image else None, None, None, None, None, None, None)
    row, counted = ladder.row, ladder.counts()
    rollouts = sum(counted.attempts)
    if not ladder.has_image:
        return Verdict(None, None, rollouts, True), (None,) * 7
    if ladder.unanswered and not ladder.answered and not any(counted.successes):
        return Verdict(None, UNFINISHED, rollouts, True), ("adaptive", *(None,) * 6)
    low, middle, high = ((*config.ratios, None)[level] for level in estimate.thresholds[row])
    probabilities = estimate.labels[row].tolist()
    return Verdict(middle, estimate.strata[row], rollouts, True), (
        "adaptive" if rollouts else "predicted",
        max(probabilities),
        probabilities,
        low,
        high,
        float(estimate.success_rate[row]),
        float(estimate.signal[row]),
    )
