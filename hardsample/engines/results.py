"""What comes back from any engine, and how a completion ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hardsample.answers import is_only_thinking

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


class EngineError(RuntimeError):
    """The model cannot be loaded or does not run; the message says what to do."""


@dataclass(frozen=True)
class Completion:
    """What came back: the text without special tokens, and the generated ids without end-of-sequence.

    A server tells no ids: the list is empty then. `finish` is one of `FINISHES`.
    """

    text: str
    tokens: list[int]
    finish: str = "stop"


@dataclass(frozen=True)
class Failure:
    """A rollout that cannot be made, with the reason; `of_record` says whether picture or prompt are to blame."""

    reason: str
    of_record: bool = True


def finish_state(text: str, ended: str = "stop", reasoning: bool = False) -> str:
    """How a completion ended.

    What broke it off comes first: a completion that was cut off while it was thinking is cut off.

    Args:
        text: the completion.
        ended: `stop` (end-of-sequence), `length` (the limit on tokens), `content_filter` or `tool_call`.
        reasoning: whether thinking came back beside the text.

    Returns:
        One of `FINISHES`.
    """
    if ended != "stop":
        return ended
    if not text.strip():
        return "reasoning_only" if reasoning else "empty"
    return "reasoning_only" if is_only_thinking(text) else "stop"


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
