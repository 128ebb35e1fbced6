"""Reward of EasyR1: 1 for an answer that hardsample grades as right, else 0.

Written by `hardsample export`; hardsample must be installed where the trainer runs, and `data.answer_key` be `grading`.
"""

from __future__ import annotations

import json
from typing import Any

from hardsample.grading.grader import Grader

REWARD_NAME = "hardsample"
REWARD_TYPE = "batch"
GRADER = Grader()


def compute_score(reward_inputs: Any, **options: Any) -> Any:
    """Return the scores of completions.

    Args:
        reward_inputs: list of {"response", "ground_truth"}, or one such mapping (`reward_type: sequential`).
        options: ignored.

    Returns:
        A list of {"overall", "accuracy"}, or one such mapping.
    """
    inputs = [reward_inputs] if isinstance(reward_inputs, dict) else reward_inputs
    pairs = [(item["response"], json.loads(item["ground_truth"])) for item in inputs]
    scores = [{"overall": float(right), "accuracy": float(right)} for right in GRADER.grade_many(pairs)]
    return scores[0] if isinstance(reward_inputs, dict) else scores
