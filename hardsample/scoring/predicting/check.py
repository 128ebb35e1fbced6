"""Predicted against measured: what predictions were worth on samples that were rolled out afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from hardsample.errors import NothingToScoreError
from hardsample.prediction.predictor import auroc, calibration_error
from hardsample.scoring.output import Scores
from hardsample.scoring.predicting.predictions import PREDICTED, Predictions
from hardsample.scoring.score import score

GROUPS = 5


@dataclass(frozen=True)
class Group:
    """Samples of neighbouring predictions."""

    samples: int
    predicted: float
    """Mean predicted success rate."""
    measured: float
    """Mean measured success rate."""


@dataclass(frozen=True)
class Check:
    """Predictions against rollouts that were made afterwards."""

    samples: int
    rollouts: int
    groups: list[Group]
    """Equal groups by predicted success rate, lowest first."""
    pearson: float
    """Correlation of predicted and measured success rates; NaN if either does not vary."""
    auroc: float
    """Chance that a group with both outcomes was ranked above one without; NaN if all or none has both."""
    calibration_error: float
    """ECE of the success rate over `groups`."""


def roll_out(
    predictions: Predictions,
    data: Dataset,
    model: str,
    output: Path,
    *,
    samples: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Scores:
    """Roll out a random draw of the predicted samples at λ = 0, a group each; resumes where it was stopped.

    Args:
        predictions: of the data; the temperature and the size of a group are theirs.
        data: the records, with the canonical columns.
        model: as scored.
        output: folder of the rollouts.
        samples: how many; all if fewer were predicted.
        seed: of the draw and of the rollouts.
        progress: show a bar.
    """
    pairs = zip(predictions.table["id"], predictions.table["source"], strict=True)
    known = np.array([sample for sample, source in pairs if source == PREDICTED])
    drawn = set(np.random.default_rng(seed).permutation(known)[:samples].tolist())
    records = data.select([row for row, sample in enumerate(data["id"]) if sample in drawn])
    return score(
        records,
        model,
        output,
        progress=progress,
        ratios=(0.0,),
        num_masks=int(predictions.about["num_generations"]),
        search="exhaustive",
        temperature=float(predictions.about["temperature"]),
        seed=seed,
        features=False,
    )


def check(predictions: Predictions, scores: Scores) -> Check:
    """Compare predictions with a scoring that makes all its rollouts at λ = 0 (`search="exhaustive"`).

    Samples that were already measured when the predictions were made are left out.

    Args:
        predictions: made without these rollouts.
        scores: of some of the same samples.

    Raises:
        NothingToScoreError: no predicted sample was scored.
    """
    predicted = {
        sample: (mean, signal)
        for sample, mean, signal, source in zip(
            *(predictions.table[name] for name in ("id", "predicted_success_rate", "predicted_signal", "source")),
            strict=True,
        )
        if source == PREDICTED
    }
    counts = {
        sample: (successes[0], attempts[0])
        for sample, successes, attempts in zip(
            *(scores.table[name] for name in ("id", "successes", "attempts")), strict=True
        )
        if sample in predicted and attempts[0]
    }
    if not counts:
        raise NothingToScoreError(f"{scores.directory} has scored no sample that {predictions.directory} predicts")
    mean, signal = np.array([predicted[sample] for sample in counts]).T
    wins, tries = np.array(list(counts.values())).T
    rate = wins / tries
    parts = np.array_split(np.argsort(mean, kind="stable"), min(GROUPS, len(mean)))
    varies = len(rate) > 1 and rate.std() > 0 and mean.std() > 0
    return Check(
        samples=len(rate),
        rollouts=int(tries.sum()),
        groups=[Group(len(part), float(mean[part].mean()), float(rate[part].mean())) for part in parts],
        pearson=float(np.corrcoef(mean, rate)[0, 1]) if varies else math.nan,
        auroc=auroc((wins > 0) & (wins < tries), signal),
        calibration_error=calibration_error(mean, rate, len(parts)),
    )
