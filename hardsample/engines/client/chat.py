"""Chat completions of one model on an OpenAI-compatible server, for rollouts and for the judge.

Every request goes through the one retry policy, and every reply through the one reader. The key is read from
OPENAI_API_KEY and goes to the client alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from hardsample.engines.client.flight import Flight, Window
from hardsample.engines.client.replies import Problem, UnreadableError, error_message, read_reply
from hardsample.engines.client.retry import Patience, Refusal, RefusedError, Setback, SetbackError, retry_after
from hardsample.engines.client.server_url import KEY_VARIABLE, checked_url, key_notice, server_key, without_key
from hardsample.engines.results import Completion, EngineError

Result = TypeVar("Result")

PROBE_SECONDS = 5.0
_OVERLOADED = (408, 409, 429)
_NOT_IMPLEMENTED = 501
_FOR_FEATURES = {"logprobs", "top_logprobs"}
"""Optional settings whose absence shows in the reply: who asked says what is lost."""


class ServerSetupError(EngineError):
    """No request can succeed: the package is missing, or the server rejects the key or does not know the model."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        """HTTP status; None if the server sent none."""


class ChatClient:
    """Client for chat completions; each is tried until it succeeds or has failed for good.

    Args:
        url: such as http://localhost:8000/v1.
        model: its name there.
        url_option: what an error calls the URL, such as --base-url.
        request_timeout: seconds that one reply may take.
        retries: tries after the first, while the server answers other requests.
        server_timeout: seconds to wait for a server that answers nothing.
        concurrency: the most requests in flight.
        notice: called with a sentence when something did not go as planned.

    Attributes:
        rejected_settings: optional settings that the server does not take, no longer sent.
        tokens: as the server counted them, of all completions.

    Raises:
        ServerSetupError: the openai package is missing.
        ConfigError: the URL is not valid, or holds a secret.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        url_option: str,
        request_timeout: float,
        retries: int,
        server_timeout: float,
        concurrency: int,
        notice: Callable[[str], None],
    ) -> None:
        self.url = checked_url(url, url_option)
        try:
            import openai
        except ImportError as error:
            raise ServerSetupError("a server needs the openai package: pip install 'hardsample[openai]'") from error
        self._openai = openai
        self.model, self._url_option, self._notice = model, url_option, notice
        self._request_timeout, self._concurrency = request_timeout, concurrency
        if sentence := key_notice():
            notice(sentence)
        self.rejected_settings: set[str] = set()
        self._length = "max_tokens"
        self.tokens = {"prompt": 0, "completion": 0}
        self.patience = Patience(retries, server_timeout, self._answers, notice, Window(concurrency))

    @property
    def retried(self) -> int:
        """Number of tries after the first."""
        return sum(self.patience.tried_again.values())

    def flight(self, make: Callable[[Any], Coroutine[Any, Any, Result]]) -> Flight[Any, Result]:
        """Open a context in which requests are started and their results come back.

        Args:
            make: coroutine of one request, which may call `complete`.
        """
        self._client = self._openai.AsyncOpenAI(
            base_url=self.url, api_key=server_key(), timeout=self._request_timeout, max_retries=0
        )
        self.patience.begin(Window(self._concurrency))
        return Flight(make, self.patience.window, self._client.close)

    async def complete(
        self, messages: Any, required: Mapping[str, Any], optional: Mapping[str, Any], max_new_tokens: int | None = None
    ) -> Completion | Refusal:
        """Ask for one completion, within a flight.

        Args:
            messages: as the interface takes them.
            required: settings that are always sent, such as the temperature.
            optional: settings that are no longer sent once the server rejects them by name.
            max_new_tokens: longest completion; None leaves it to the server.

        Returns:
            The completion, or why there is none.

        Raises:
            ServerSetupError: no request can succeed.
            ServerGoneError: the server is gone, or rejects every request.
        """
        return await self.patience.insist(lambda: self._ask(messages, required, optional, max_new_tokens))

    async def _ask(
        self, messages: Any, required: Mapping[str, Any], optional: Mapping[str, Any], max_new_tokens: int | None
    ) -> Completion:
        """Try once.

        Raises:
            SetbackError: another try may help.
            RefusedError: no other try can help.
            ServerSetupError: no request can succeed.
        """
        api, length = self._openai, self._length
        given = {name: value for name, value in optional.items() if name not in self.rejected_settings}
        limit = {} if max_new_tokens is None else {length: max_new_tokens}
        try:
            reply = await self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, extra_body={**required, **given, **limit}
            )
            result = self._read(json.loads(reply.http_response.content), max_new_tokens)
        except api.APIStatusError as error:
            message = error_message(error.body) or str(error)
            result = Problem(error.status_code, message, wait_s=retry_after(error.response.headers))
        except api.APITimeoutError:
            raise SetbackError(Setback("no reply in time", True)) from None
        except (api.APIError, json.JSONDecodeError, UnicodeDecodeError, UnreadableError) as error:
            lost = isinstance(error, api.APIConnectionError)
            reason = "no connection" if lost else "a reply that cannot be read"
            raise SetbackError(Setback(reason, False, lost=lost)) from None
        if isinstance(result, Completion):
            return result
        if await self._may_pass_without(result, given, length):
            return await self._ask(messages, required, optional, max_new_tokens)
        raise RefusedError(result.reason, without_key(result.message))

    async def _may_pass_without(self, problem: Problem, given: Mapping[str, Any], length: str) -> bool:
        """Return whether the request may succeed without the settings that the error names; else raise as `_ask`."""
        code, reason = problem.code, problem.reason
        if code in (401, 403):
            raise ServerSetupError(f"{reason}: check {KEY_VARIABLE}", code)
        if code == 404:
            raise ServerSetupError(await self._who_is_there(reason), code)
        if code in _OVERLOADED or code >= 500:
            words = without_key(problem.message) if problem.body else ""
            raise SetbackError(Setback(reason, True, problem.wait_s, counts=code != 429, message=words))
        return self.adapt(given, length, problem.message)

    def adapt(self, given: Mapping[str, Any], length: str, message: str) -> bool:
        """Stop sending the optional settings that a server's error names.

        Args:
            given: optional settings that the request was sent with.
            length: the name under which the longest completion was sent.
            message: the error's.

        Returns:
            Whether the request may succeed when it is sent again.
        """
        if length == "max_tokens" and "max_completion_tokens" in message:
            self._length = "max_completion_tokens"
            return True
        named = {name for name in given if re.search(rf"\b{name}\b", message)}
        for name in sorted(named - self.rejected_settings - _FOR_FEATURES):
            lost = "its rollouts cannot be repeated" if name == "seed" else "it stays as the server has it"
            self._notice(f"the server does not take {name}: {lost}")
        self.rejected_settings |= named
        return bool(named)

    def _read(self, reply: Any, max_new_tokens: int | None) -> Completion | Problem:
        """Read a reply with status 200, and count its tokens."""
        result = read_reply(reply, max_new_tokens)
        usage = reply.get("usage")
        for name in self.tokens:
            counted = usage.get(f"{name}_tokens") if isinstance(usage, Mapping) else None
            self.tokens[name] += counted if isinstance(counted, int) else 0
        return result

    async def _answers(self) -> bool:
        """Return whether the server answers with anything but an error of its own; a missing list of models counts."""
        try:
            await self._client.models.list(timeout=PROBE_SECONDS)
        except self._openai.APIStatusError as error:
            return error.status_code < 500 or error.status_code == _NOT_IMPLEMENTED
        except (self._openai.APIError, json.JSONDecodeError, AttributeError):
            return False
        return True

    async def _who_is_there(self, reason: str) -> str:
        names: list[str] = []
        with suppress(self._openai.APIError, json.JSONDecodeError, AttributeError, TypeError):
            names = [model.id async for model in self._client.models.list(timeout=PROBE_SECONDS)]
        there = (
            f"it has {', '.join(map(repr, names[:5]))}" if names else f"is the end of {self._url_option} right (/v1)?"
        )
        return f"{reason} for the model {self.model!r}: {there}"
