"""Reward of verl: 1 for an answer that hardsample grades as right, else 0.

Written by `hardsample export`; hardsample must be installed where the trainer runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hardsample.grading.grader import Grader

GRADER = Grader()


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any], **options: Any
) -> float:
    """Return 1.0 for a right completion, 0.0 for a wrong one.

    Args:
        data_source: ignored.
        solution_str: what the model wrote.
        ground_truth: ignored: a gold without its grader and options.
        extra_info: of the record; its `grading` says how to grade.
        options: ignored.
    """
    return float(GRADER.grade(solution_str, json.loads(extra_info["grading"])))
