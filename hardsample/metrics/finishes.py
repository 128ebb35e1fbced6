"""How a completion ended, what that is called, and whether it says anything about its sample."""

from collections.abc import Mapping

FINISHES = {
    "stop": "ended by themselves",
    "length": "cut off",
    "content_filter": "filtered or refused",
    "tool_call": "tool calls",
    "empty": "empty",
    "reasoning_only": "reasoning without an answer",
}
"""How a completion ended, and what that is called."""
UNKNOWN = "unknown"
"""Of a rollout that was stored before finish states were."""


def unanswered(finish: str | None, grade: int) -> bool:
    """Whether a rollout says nothing about its sample: it came to no answer, and is not right either.

    Args:
        finish: one of `FINISHES`; None if it is not known, which counts as ended.
        grade: 0 or 1; what was right before it was cut off is right.
    """
    return not grade and finish not in (None, "stop")


def shares_text(finishes: Mapping[str, int]) -> str:
    """Shares of finish states in words, such as `61 % ended by themselves, 39 % cut off`.

    Args:
        finishes: finish state, or `UNKNOWN`, → rollouts.
    """
    total = max(sum(finishes.values()), 1)
    names = FINISHES | {UNKNOWN: "of an older version, not known"}
    return ", ".join(f"{share(finishes[name] / total)} {said}" for name, said in names.items() if finishes.get(name))


def share(value: float) -> str:
    """A share that is not 0, in per cent."""
    return f"{100 * value:.0f} %" if value >= 0.01 else "< 1 %"
