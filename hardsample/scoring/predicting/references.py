"""The samples of a scored folder that a predictor is fitted on: their features, and their counts at λ = 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float16, Int

from hardsample.engines.features import BLOCKS
from hardsample.errors import NothingToScoreError
from hardsample.metrics.strata import UNFINISHED
from hardsample.prediction.categories import category_features
from hardsample.prediction.predictor import MOST_REFERENCES, Predictor, Skill, fit
from hardsample.scoring.features.files import read_features
from hardsample.scoring.output import Scores

GROUPS = 10
"""Of the calibration error."""


@dataclass(frozen=True)
class References:
    """Samples with features and rollouts at λ = 0; `unfinished` samples are left out."""

    ids: list[str]
    abilities: list[str | None]
    features: Float16[np.ndarray, "samples 256"]
    successes: Int[np.ndarray, " samples"]
    attempts: Int[np.ndarray, " samples"]
    drawn: Int[np.ndarray, " fitted"]
    """Rows that the predictor is fitted on: all, or a random draw of as many as it takes."""


def read_references(scores: Scores) -> References:
    """Return the references of a scored folder.

    Raises:
        OutputError: the folder has no features, or those of another version.
        NothingToScoreError: no sample has features and rollouts.
    """
    known, matrix = read_features(scores.directory)
    row_of = {sample: row for row, sample in enumerate(known)}
    columns = ("id", "ability", "successes", "attempts", "pism_stratum")
    samples = [
        (row_of[sample], sample, ability, successes[0], attempts[0])
        for sample, ability, successes, attempts, stratum in zip(*(scores.table[name] for name in columns), strict=True)
        if sample in row_of and stratum != UNFINISHED and attempts and attempts[0]
    ]
    if not samples:
        raise NothingToScoreError(
            f"no sample of {scores.directory} has both features and finished rollouts at λ = 0: score more samples, or "
            f"run `hardsample features {scores.directory}`"
        )
    rows, ids, abilities, successes, attempts = map(list, zip(*samples, strict=True))
    drawn = np.arange(len(ids))
    if len(ids) > MOST_REFERENCES:
        drawn = np.sort(np.random.default_rng(0).choice(len(ids), MOST_REFERENCES, replace=False))
    return References(ids, abilities, matrix[rows], np.array(successes), np.array(attempts), drawn)


def with_abilities(
    features: Float16[np.ndarray, "samples 256"], abilities: Sequence[str | None]
) -> tuple[Float16[np.ndarray, "samples columns"], list[int]]:
    """Return features with a column for each frequent ability, and the sizes of their blocks."""
    kinds = category_features({"ability": abilities})
    return np.concatenate([features, kinds], axis=1), [*BLOCKS, *([kinds.shape[1]] if kinds.shape[1] else [])]


def fit_references(
    references: References, features: Float16[np.ndarray, "samples columns"], blocks: Sequence[int]
) -> Predictor:
    """Fit the predictor on the references that were drawn; `features` are those of all references."""
    drawn = references.drawn
    return fit(features[drawn], references.successes[drawn], references.attempts[drawn], blocks)


def held_out_skill(predictor: Predictor, references: References, search: str) -> Skill:
    """Return what held-out predictions were worth, as far as the counts of a search can tell.

    A search that stops at a success leaves rates that are too high on average (1 of 1, 1 of 2, …), and no group to see
    both outcomes in. The likelihood of such counts is that of any others, so fit and gain stand. The calibration error
    compares each group's mean prediction with the mean of the Beta distribution that fits its counts best, and the
    AUROC is not known.

    Args:
        predictor: fitted on the references.
        references: with their counts.
        search: that made the counts.
    """
    if search == "exhaustive":
        return predictor.skill
    successes, attempts = references.successes[references.drawn], references.attempts[references.drawn]
    mean = predictor.held_out.mean
    error = 0.0
    for part in np.array_split(np.argsort(mean, kind="stable"), min(GROUPS, len(mean))):
        rate = fit(np.zeros((len(part), 1)), successes[part], attempts[part]).held_out.mean[0]
        error += abs(mean[part].mean() - rate) * len(part) / len(mean)
    return replace(predictor.skill, auroc=float("nan"), calibration_error=float(error))
