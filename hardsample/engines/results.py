"""What comes back from any engine."""

from __future__ import annotations

from dataclasses import dataclass


class EngineError(RuntimeError):
    """The model cannot be loaded or does not run; the message says what to do."""


@dataclass(frozen=True)
class Completion:
    """What came back: the text without special tokens, and the generated ids without end-of-sequence.

    A server tells no ids: the list is empty then.
    """

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Failure:
    """A rollout that cannot be made, with the reason; `of_record` says whether picture or prompt are to blame."""

    reason: str
    of_record: bool = True
