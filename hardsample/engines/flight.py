"""Many requests in flight at once: how many, when a failed one is tried again, and when the server counts as gone.

The number in flight follows the server: one more for each full round of replies, a quarter fewer when it is overloaded
(429, 5xx, a time-out), once for a round. Waits between tries grow at random, up to half a minute, and are no shorter
than the server's Retry-After.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hardsample.engines.results import EngineError

Token = TypeVar("Token")
Landed = TypeVar("Landed")

FIRST_IN_FLIGHT = 8
LESS = 0.75
LONGEST_WAIT_S = 30.0
SHORTEST_WAIT_S = 0.25
MOST_FAILED_IN_A_ROW = 20
"""After so many requests that failed for good, none between them answered, it is the server and not the records."""


class Window:
    """How many requests may be in flight: doubles with every round of replies until the first overload, then adds one.

    Args:
        most: never more than this.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size = most, float(min(FIRST_IN_FLIGHT, most))
        self._doubling, self._cut_at = True, float("-inf")

    @property
    def size(self) -> int:
        """Requests that may be in flight now, at least 1."""
        return int(self._size)

    def answered(self) -> None:
        """A reply came."""
        self._size = min(self._most, self._size + (1.0 if self._doubling else 1.0 / self._size))

    def overloaded(self, sent_at: float, now: float) -> None:
        """The server was overloaded by a request that was sent at this time; those of one round count once."""
        if sent_at >= self._cut_at:
            self._size, self._cut_at, self._doubling = max(1.0, self._size * LESS), now, False


@dataclass(frozen=True)
class Setback:
    """One try that failed in a way that may pass."""

    reason: str
    overload: bool
    """Whether fewer requests in flight would help."""
    wait_s: float | None = None
    """What the server asked to wait."""
    counts: bool = True
    """Whether it may be the request's own fault; too many requests are not."""
    lost: bool = False
    """Whether the server may be gone."""
    said: str = ""
    """The server's own words."""


class SetbackError(Exception):
    """Carries a setback out of a try."""

    def __init__(self, setback: Setback) -> None:
        super().__init__(setback.reason)
        self.setback = setback


@dataclass
class Patience:
    """When to try again, and when to give up.

    Attributes:
        retries: tries after the first, of a request that fails while the server answers others.
        server_timeout: how long a server that answers nothing is waited for, in seconds.
        answers: whether the server answers at all, asked when in doubt.
        notice: is told when the server goes and comes.
    """

    retries: int
    server_timeout: float
    answers: Callable[[], Awaitable[bool]]
    notice: Callable[[str], None]
    window: Window
    tried_again: dict[str, int] = field(default_factory=dict)
    """Tries after the first, by reason of the one before."""
    sent: int = 0
    refusal: str = ""
    """Why the last request that failed for good did."""
    _answered_at: float = field(default_factory=time.monotonic)
    _failed_in_a_row: int = 0
    _closed_until: float = 0.0
    _gone_since: float | None = None

    async def insist(self, attempt: Callable[[], Awaitable[Landed]]) -> Landed | str:
        """Tries until it succeeds, or has failed for good.

        Args:
            attempt: one try; raises `SetbackError` where another one may help.

        Returns:
            What the try gave, or why it is given up.

        Raises:
            EngineError: the server is gone for longer than `server_timeout`, or refuses everything.
        """
        tries = 0
        while True:
            await asyncio.sleep(self._closed_until - time.monotonic())
            sent_at = time.monotonic()
            self.sent += 1
            try:
                result = await attempt()
            except SetbackError as error:
                setback = error.setback
            else:
                self._answered()
                return result
            now, tries = time.monotonic(), tries + setback.counts
            if setback.overload:
                self.window.overloaded(sent_at, now)
            if setback.wait_s:
                if setback.wait_s > self.server_timeout:
                    raise EngineError(
                        f"{setback.reason} and asks to wait {setback.wait_s:.0f} s, more than "
                        f"{self.server_timeout:.0f}: give the same command later, or a longer --server-timeout"
                    )
                self._closed_until = max(self._closed_until, now + setback.wait_s)
            there = True
            if self._answered_at < sent_at and (setback.lost or tries > self.retries):
                there = await self._there(setback.reason)
            if tries > self.retries and there:
                said = f": {setback.said}" if setback.said else ""
                self.refused(setback.reason + said)
                return f"{setback.reason}, {tries} times{said}"
            if not setback.counts and now - self._answered_at > self.server_timeout:
                raise self._gone(setback.reason)
            self.tried_again[setback.reason] = self.tried_again.get(setback.reason, 0) + 1
            longest = min(LONGEST_WAIT_S, self.server_timeout / 4, SHORTEST_WAIT_S * 2 ** min(tries, 10))
            await asyncio.sleep(max(setback.wait_s or 0.0, random.uniform(longest / 2, longest)))

    def refused(self, reason: str) -> None:
        """A request failed for good.

        Raises:
            EngineError: it is one of many in a row.
        """
        self.refusal = reason
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MOST_FAILED_IN_A_ROW:
            raise EngineError(f"the server answers none of {MOST_FAILED_IN_A_ROW} requests in a row: {reason}")

    def _answered(self) -> None:
        now = time.monotonic()
        if self._gone_since is not None:
            self.notice(f"the server answers again, after {now - self._gone_since:.0f} s")
        self._gone_since, self._answered_at, self._failed_in_a_row = None, now, 0
        self.window.answered()

    async def _there(self, reason: str) -> bool:
        """Whether a server that answered nothing for a while is there; one that is not is waited for."""
        if await self.answers():
            return True
        if self._gone_since is None:
            self._gone_since = self._answered_at
            self.notice(f"the server does not answer ({reason}): waiting for it, up to {self.server_timeout:.0f} s")
        if time.monotonic() - self._answered_at > self.server_timeout:
            raise self._gone(reason)
        return False

    def _gone(self, reason: str) -> EngineError:
        return EngineError(
            f"the server answered nothing for {self.server_timeout:.0f} s ({reason}): see that it runs, then give "
            "the same command; what came back is kept"
        )


class Flight(Generic[Token, Landed]):
    """Runs coroutines in a thread of their own and hands out their results as they land; a context manager.

    Args:
        make: coroutine of one request.
        window: how many may be under way.
        close: coroutine that lets go of what `make` used.
    """

    def __init__(
        self,
        make: Callable[[Any], Coroutine[Any, Any, Landed]],
        window: Window,
        close: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._make, self._window, self._close = make, window, close
        self._results: queue.SimpleQueue[tuple[Token, Future[Landed]]] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._error: BaseException | None = None
        self.under_way = 0

    def __enter__(self) -> Flight[Token, Landed]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        if self._close is not None:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def room(self) -> int:
        """How many more may be started now."""
        return self._window.size - self.under_way

    def start(self, token: Token, request: Any) -> None:
        """Start a request; its result comes with the token."""
        self.under_way += 1
        future = asyncio.run_coroutine_threadsafe(self._make(request), self._loop)
        future.add_done_callback(lambda done: self._results.put((token, done)))

    def landed(self) -> list[tuple[Token, Landed]]:
        """The results that are there, at least one: waits for it.

        Raises:
            EngineError: the server is gone, or refuses everything.
        """
        if self._error is not None:
            raise self._error
        ended = [self._results.get()]
        while not self._results.empty():
            ended.append(self._results.get())
        self.under_way -= len(ended)
        landed = []
        for token, future in ended:
            error = future.exception()
            if error is None:
                landed.append((token, future.result()))
            self._error = self._error or error
        if self._error is not None and not landed:
            raise self._error
        return landed  # an error waits for the next call: what came back beside it is kept


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
