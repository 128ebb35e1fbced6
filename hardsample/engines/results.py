"""The results of any engine: batches that are ready for the model, completions and how they ended, failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hardsample.errors import HardsampleError
from hardsample.grading.parsing.answers import is_only_thinking

if TYPE_CHECKING:
    from hardsample.engines.features import Features
    from hardsample.engines.protocol import Request


class EngineError(HardsampleError, RuntimeError):
    """The model cannot be loaded or does not run; the message says what to do."""


@dataclass(frozen=True)
class Completion:
    """A completion: the text without special tokens, and the generated ids without end-of-sequence.

    A server sends no ids: the list is empty then. `finish` is one of `FINISHES`. `features` are of the prompt's
    prefill, where the engine was asked for them. `first_logprobs` are the log-probabilities of the likeliest first
    tokens, where a server was asked for them.
    """

    text: str
    tokens: list[int]
    finish: str = "stop"
    features: Features | None = field(default=None, compare=False, repr=False)
    first_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A rollout that cannot be made, with the reason; `of_record` tells whether its image or prompt is the cause."""

    reason: str
    of_record: bool = True


@dataclass(frozen=True)
class Prepared:
    """A batch ready for the model."""

    requests: list[Request]
    inputs: dict[str, Any] | None
    """The processor's output for the requests that are not in `failures`; None if none is left."""
    failures: dict[int, Failure]
    """Row of `requests` → why this one is not in `inputs`."""


def finish_state(text: str, ended: str = "stop", reasoning: bool = False) -> str:
    """Return how a completion ended.

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
