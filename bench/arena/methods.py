"""What chooses the prompts: each method is one line, the options of the trainer that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One line of the table of methods."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of `DifficultyAwareGRPOConfig`."""
    features: str | None = None
    """What it reads of each question of the pool beforehand: `prefill`, or `statistics` of text and image alone."""
    scores: bool = False
    """Whether it is given what 8 rollouts of every question showed: 8 rollouts a question, counted."""
    oracle: bool = False
    """Whether it draws only questions that had both outcomes in 8 rollouts before training, which are not counted."""


SHARP = {"policy": "signal", "signal_estimate": "mean", "signal_sharpness": 8.0}
"""The policy `signal` as it is with features by default."""

METHODS = {
    "uniform": Method(),
    "oracle": Method(oracle=True),
    "signal": Method({"policy": "signal"}),
    "signal-scores": Method({"policy": "signal"}, scores=True),
    "predictor": Method({"policy": "signal"}, features="prefill"),
    "predictor-mean": Method(
        {"policy": "signal", "signal_estimate": "mean", "signal_sharpness": 3.0}, features="prefill"
    ),
    "predictor-sharp": Method(SHARP, features="prefill"),
    "statistics-sharp": Method(SHARP, features="statistics"),
}
