"""Reward of ms-swift: 1 for an answer that hardsample grades as right, else 0. Registered as `hardsample`.

Written by `hardsample export`; hardsample must be installed where the trainer runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hardsample.grading.grader import Grader, completion_text

try:
    from swift.rewards import ORM, orms  # since ms-swift 4
except ImportError:
    from swift.plugin import ORM, orms

GRADER = Grader()


class HardsampleReward(ORM):
    """Grades each completion by the column `grading` of its record."""

    def __call__(self, completions: Sequence[Any], grading: Sequence[str], **columns: Any) -> list[float]:
        """Return 1.0 for each right completion, 0.0 for each wrong one."""
        texts = [completion_text(completion) for completion in completions]
        records = [json.loads(text) for text in grading]
        return [float(right) for right in GRADER.grade_many(list(zip(texts, records, strict=True)))]


orms["hardsample"] = HardsampleReward
