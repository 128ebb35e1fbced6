"""Reward shapes of experiment (d), for the bundled questions: part of the credit for part of the answer, and for form.

Named in bench/experiments/d.yaml as bench.rewards.…; the working directory is looked in.
"""

import re
from collections.abc import Sequence
from typing import Any

from hardsample.grading.grader import completion_text

_PART = re.compile(r"[A-Za-z]+|[0-9]")


def parts(text: str) -> list[str]:
    """Return the words and digits of an answer, each a token of the demo model."""
    return _PART.findall(text.lower())


def partial_credit_reward(completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[float]:
    """Return the share of words and digits that are right and in their places, 0 to 1."""
    rewards = []
    for completion, wanted in zip(completions, solution, strict=True):
        given, right = parts(completion_text(completion)), parts(wanted)
        same = sum(word == expected for word, expected in zip(given, right, strict=False))
        rewards.append(same / max(len(given), len(right), 1))
    return rewards


def form_reward(completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 for an answer of the solution's form: as many words and digits, with spaces in the same places."""

    def form(text: str) -> str:
        return re.sub(r"[a-z]+", "a", re.sub(r"[0-9]", "0", text.strip().lower()))

    return [
        float(form(completion_text(completion)) == form(wanted))
        for completion, wanted in zip(completions, solution, strict=True)
    ]
