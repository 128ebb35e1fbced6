"""Reading a server's reply: a completion and how it ended, or an error, which some send with status 200.

Pure: JSON in. Understood are OpenAI's chat completions and what vLLM, SGLang, Mistral, OpenRouter and others made of
them: reasoning beside the text (`reasoning_content`, `reasoning`), content as a list of parts, refusals, tool calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hardsample.engines.results import Completion, finish_state
from hardsample.errors import HardsampleError

ENDED = {
    "length": ("length", "max_tokens", "model_length", "max_output_tokens"),
    "content_filter": ("content_filter", "content-filter", "safety", "recitation", "sensitive", "refusal"),
    "tool_call": ("tool_calls", "tool_call", "tool_use", "function_call"),
}
"""How a completion ended → what servers call it; all else is `stop`."""
BROKEN_OFF = ("abort", "error", "network_error", "cancelled")
"""Finish reasons of a generation that failed on the server: it is no completion."""
REASONING = ("reasoning_content", "reasoning", "thinking")
_WORDS = (
    (401, ("api_key", "authentication", "unauthorized", "permission", "forbidden")),
    (404, ("not_found", "notfound")),
    (429, ("rate_limit", "ratelimit", "too_many", "toomany", "resource_exhausted")),
    (503, ("overloaded", "unavailable", "capacity")),
    (400, ("invalid", "badrequest", "bad_request", "context_length", "validation", "unprocessable", "content_")),
)
"""HTTP status → words in an error's code or type, for errors without a number."""


class UnreadableError(HardsampleError, ValueError):
    """The reply is not a chat completion."""


@dataclass(frozen=True)
class Problem:
    """An error in place of a completion."""

    code: int
    """HTTP status; that of an error with status 200 is the one it should have had, 500 where it has none."""
    message: str
    """The server's error message."""
    body: bool = False
    """Whether the error came with status 200."""
    wait_s: float | None = None

    @property
    def reason(self) -> str:
        """Short reason, the same for all errors of a kind."""
        return f"the server answers 200 with an error ({self.code})" if self.body else f"the server answers {self.code}"


def read_reply(reply: Any, max_new_tokens: int | None) -> Completion | Problem:
    """Read the body of a reply with status 200.

    Args:
        reply: JSON.
        max_new_tokens: the limit that was sent, None without one: compared with the number of tokens where a server
            does not report how a completion ended.

    Raises:
        UnreadableError: it is neither a completion nor an error.
    """
    if not isinstance(reply, Mapping):
        raise UnreadableError("no object")
    problem = _problem(reply)
    if problem is not None:
        return problem
    try:
        choice = reply["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text, thought = _content(message.get("content"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnreadableError(f"no message: {error!r}") from error
    if ended in BROKEN_OFF:
        return Problem(500, f"the completion was broken off: {ended}", body=True)
    thought = thought or any(_has_text(message.get(name)) for name in REASONING)
    finish = finish_state(text, _ended(reply, message, ended, text, max_new_tokens), thought)
    return Completion(text, [], finish, first_logprobs=_first_logprobs(choice))


def error_message(body: Any) -> str:
    """Return the message in the body of an error; empty if there is none."""
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body
    return body if isinstance(body, str) else json.dumps(body, default=str) if body else ""


def _first_logprobs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the log-probabilities of the likeliest first tokens, descending; none if the server sent none."""
    try:
        top = choice["logprobs"]["content"][0]["top_logprobs"]
        values = sorted((float(token["logprob"]) for token in top), reverse=True)
    except (KeyError, IndexError, TypeError, ValueError):
        return ()
    return tuple(value for value in values if value <= 0)


def _problem(reply: Mapping[str, Any]) -> Problem | None:
    error = reply.get("error")
    choices = reply.get("choices")
    if not error and isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        error = choices[0].get("error")
    if not error and (reply.get("object") == "error" or (choices is None and {"message", "detail"} & reply.keys())):
        error = reply
    return Problem(_code(error), error_message(error), body=True) if error else None


def _code(error: Any) -> int:
    if not isinstance(error, Mapping):
        return 500
    given = [error.get(name) for name in ("code", "status", "status_code", "type")]
    for value in map(str, given):
        if re.fullmatch(r"[45]\d\d", value):
            return int(value)
    words = " ".join(value for value in given if isinstance(value, str)).lower()
    return next((code for code, signs in _WORDS if any(sign in words for sign in signs)), 500)


def _content(content: Any) -> tuple[str, bool]:
    """Return the text of a message's content, and whether there is thinking among its parts."""
    if content is None:
        return "", False
    if isinstance(content, str):
        return content, False
    if not isinstance(content, list):
        raise TypeError(f"content of type {type(content).__name__}")
    texts, thought = [], False
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") in ("thinking", "reasoning", "redacted_thinking"):
            thought = True
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
    return "".join(texts), thought


def _ended(reply: Mapping[str, Any], message: Mapping[str, Any], reason: Any, text: str, limit: int | None) -> str:
    for ended, names in ENDED.items():
        if reason in names:
            return ended
    if not text.strip():
        if message.get("tool_calls") or message.get("function_call"):
            return "tool_call"
        if message.get("refusal"):
            return "content_filter"
    usage = reply.get("usage")
    made = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    reached = limit is not None and isinstance(made, int) and made >= limit
    return "length" if reason is None and reached else "stop"


def _has_text(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)
