"""Finish states: how a completion ended, in words, and whether it counts as an answer to its sample."""

from collections.abc import Mapping

FINISHES = {
    "stop": "ended by themselves",
    "length": "cut off",
    "content_filter": "filtered or refused",
    "tool_call": "tool calls",
    "empty": "empty",
    "reasoning_only": "reasoning without an answer",
}
"""Finish state → description."""
UNKNOWN = "unknown"
"""Finish state of rollouts that an older version stored without one."""


def unanswered(finish: str | None, grade: int) -> bool:
    """Return whether a rollout says nothing about its sample: it has no answer and is not graded as right.

    Args:
        finish: one of `FINISHES`; None if it is unknown, which counts as an answer.
        grade: 0 or 1; a completion that was right before it was cut off counts as right.
    """
    return not grade and finish not in (None, "stop")


def shares_text(finishes: Mapping[str, int]) -> str:
    """Return the shares of finish states as text, such as `61 % ended by themselves, 39 % cut off`.

    Args:
        finishes: finish state, or `UNKNOWN`, → rollouts.
    """
    total = max(sum(finishes.values()), 1)
    names = FINISHES | {UNKNOWN: "unknown (stored by an older version)"}
    return ", ".join(
        f"{share(finishes[name] / total)} {description}" for name, description in names.items() if finishes.get(name)
    )


def share(value: float) -> str:
    """Format a share above 0 in per cent."""
    return f"{100 * value:.0f} %" if value >= 0.01 else "< 1 %"
