"""What comes back from any engine, and how a completion ended."""

from __future__ import annotations

from dataclasses import dataclass

from hardsample.errors import HardsampleError
from hardsample.grading.parsing.answers import is_only_thinking


class EngineError(HardsampleError, RuntimeError):
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
    """A rollout that cannot be made, with the reason; `of_record` says whether image or prompt are to blame."""

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
