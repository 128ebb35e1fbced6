"""When a request to a server is tried again, and when the server counts as gone: one policy for rollouts and judge.

Waits between tries grow at random, up to half a minute, and are no shorter than the server's Retry-After, which all
requests obey. A request has so many tries while the server answers others; a server that answers nothing is waited for
and uses up none of them.

The policy is ours and not tenacity's: tenacity decides for one call, while most of what counts here is shared by all
requests (the pause that one 429 asks for, whether the server answers others, the number in flight that an overload
cuts, failures in a row), so that a library would only replace the loop in `Patience.insist`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeVar

from hardsample.engines.client.flight import Window
from hardsample.engines.results import EngineError

Reply = TypeVar("Reply")

LONGEST_WAIT_S = 30.0
SHORTEST_WAIT_S = 0.25
MAX_FAILURES_IN_A_ROW = 20
"""After so many requests that failed for good, none between them answered, it is the server and not the records."""


class ServerGoneError(EngineError):
    """The server answers nothing, or rejects every request: no single request is to blame.

    Args:
        reason: what it does.
        advice: what to do.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}: {advice}" if advice else reason)
        self.reason = reason


@dataclass(frozen=True)
class Setback:
    """One try that failed in a way that may pass."""

    reason: str
    overload: bool
    """Whether fewer requests in flight would help."""
    wait_s: float | None = None
    """Seconds that the server asked to wait."""
    counts: bool = True
    """Whether it may be the request's own fault; an answer of too many requests (429) is not."""
    lost: bool = False
    """Whether the server may be gone."""
    message: str = ""
    """The server's error message."""


class SetbackError(Exception):
    """A try failed in a way that may pass; carries the setback."""

    def __init__(self, setback: Setback) -> None:
        super().__init__(setback.reason)
        self.setback = setback


class RefusedError(Exception):
    """The server rejects this request, and will again; carries the reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, message)


@dataclass(frozen=True)
class Refusal:
    """Why a request failed for good."""

    reason: str
    """Short reason, the same for all failures of a kind, such as `the server answers 500`."""
    message: str = ""
    """The server's error message, without the key."""
    tries: int = 1
    of_request: bool = True
    """Whether the request is to blame: the server rejected it, and did not merely fail."""

    def __str__(self) -> str:
        times = f", {self.tries} times" if not self.of_request else ""
        return f"{self.reason}{times}" + (f": {self.message}" if self.message else "")


@dataclass
class Patience:
    """The retry policy, with the state of the server as far as it is known.

    Attributes:
        retries: tries after the first, of a request that fails while the server answers others.
        server_timeout: seconds to wait for a server that answers nothing.
        answers: whether the server answers at all, asked when in doubt.
        notice: called with a sentence when the server stops and resumes answering.
        window: how many requests may be in flight.
    """

    retries: int
    server_timeout: float
    answers: Callable[[], Awaitable[bool]]
    notice: Callable[[str], None]
    window: Window
    tried_again: dict[str, int] = field(default_factory=dict)
    """Number of tries after the first, by the reason for which the one before failed."""
    sent: int = 0
    """Number of tries in all."""
    refusal: str = ""
    """Reason of the last request that failed for good."""
    _answered_at: float = field(default_factory=time.monotonic)
    _failed_in_a_row: int = 0
    _closed_until: float = 0.0
    _gone_since: float | None = None

    def begin(self, window: Window) -> None:
        """Start a round of requests: how long the server has been silent counts from now.

        Args:
            window: of the round.
        """
        self.window, self._answered_at, self._gone_since = window, time.monotonic(), None

    async def insist(self, attempt: Callable[[], Awaitable[Reply]]) -> Reply | Refusal:
        """Try until it succeeds, or has failed for good.

        Args:
            attempt: one try; raises `SetbackError` where another one may help, `RefusedError` where none does.

        Returns:
            The reply, or why there is none.

        Raises:
            ServerGoneError: the server is gone for longer than `server_timeout`, or rejects every request.
        """
        tries = 0
        while True:
            await asyncio.sleep(self._closed_until - time.monotonic())
            sent_at = time.monotonic()
            self.sent += 1
            try:
                reply = await attempt()
            except SetbackError as error:
                setback = error.setback
            except RefusedError as error:
                return self._failed(error.refusal)
            else:
                self._answered()
                return reply
            now, tries = time.monotonic(), tries + setback.counts
            if setback.overload:
                self.window.overloaded(sent_at, now)
            if setback.wait_s:
                self._pause(setback.reason, setback.wait_s, now)
            there = True
            if self._answered_at < sent_at and (setback.lost or tries > self.retries):
                there = await self._there(setback.reason)
            if tries > self.retries and there:
                return self._failed(Refusal(setback.reason, setback.message, tries, of_request=False))
            if not setback.counts and now - self._answered_at > self.server_timeout:
                raise self._gone(setback.reason)
            self.tried_again[setback.reason] = self.tried_again.get(setback.reason, 0) + 1
            longest = min(LONGEST_WAIT_S, self.server_timeout / 4, SHORTEST_WAIT_S * 2 ** min(tries, 10))
            await asyncio.sleep(max(setback.wait_s or 0.0, random.uniform(longest / 2, longest)))

    def _failed(self, refusal: Refusal) -> Refusal:
        """Count a request that failed for good.

        Raises:
            ServerGoneError: it is one of many in a row.
        """
        self.refusal = f"{refusal.reason}: {refusal.message}" if refusal.message else refusal.reason
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise ServerGoneError(
                f"the server answers none of {MAX_FAILURES_IN_A_ROW} requests in a row: {self.refusal}"
            )
        return refusal

    def _pause(self, reason: str, wait_s: float, now: float) -> None:
        """Hold all requests back for as long as the server asks.

        Raises:
            ServerGoneError: that is longer than `server_timeout`.
        """
        if wait_s > self.server_timeout:
            raise ServerGoneError(
                f"{reason} and asks to wait {wait_s:.0f} s, more than {self.server_timeout:.0f}",
                "give the same command later, or a longer --server-timeout",
            )
        self._closed_until = max(self._closed_until, now + wait_s)

    def _answered(self) -> None:
        now = time.monotonic()
        if self._gone_since is not None:
            self.notice(f"the server answers again, after {now - self._gone_since:.0f} s")
        self._gone_since, self._answered_at, self._failed_in_a_row = None, now, 0
        self.window.answered()

    async def _there(self, reason: str) -> bool:
        """Return whether a server that answered nothing for a while is there; report once that it is waited for."""
        if await self.answers():
            return True
        if self._gone_since is None:
            self._gone_since = self._answered_at
            self.notice(f"the server does not answer ({reason}): waiting for it, up to {self.server_timeout:.0f} s")
        if time.monotonic() - self._answered_at > self.server_timeout:
            raise self._gone(reason)
        return False

    def _gone(self, reason: str) -> ServerGoneError:
        return ServerGoneError(
            f"the server answered nothing for {self.server_timeout:.0f} s ({reason})",
            "see that it runs, then give the same command; what came back is kept",
        )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply asks to wait; None if it does not.

    It reads `retry-after-ms`, and Retry-After as a number of seconds or a date.
    """
    with suppress(ValueError, KeyError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
