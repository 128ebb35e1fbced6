"""Many requests in flight at once, and how many.

The number in flight follows the server: one more for each full round of replies, a quarter fewer when it is overloaded
(429, 5xx, a time-out), once for a round.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Token = TypeVar("Token")
Landed = TypeVar("Landed")

FIRST_IN_FLIGHT = 8
LESS = 0.75


class Window:
    """Limit on the requests in flight: doubles with every round of replies until the first overload, then adds one.

    Args:
        most: never more than this.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size = most, float(min(FIRST_IN_FLIGHT, most))
        self._doubling, self._cut_at = True, float("-inf")

    @property
    def size(self) -> int:
        """Number of requests that may be in flight now, at least 1."""
        return int(self._size)

    def answered(self) -> None:
        """Grow the window after a reply."""
        self._size = min(self._most, self._size + (1.0 if self._doubling else 1.0 / self._size))

    def overloaded(self, sent_at: float, now: float) -> None:
        """Shrink the window after an overload of the server; those of one round count once.

        Args:
            sent_at: when the request was sent, in seconds of the monotonic clock.
            now: seconds of the same clock.
        """
        if sent_at >= self._cut_at:
            self._size, self._cut_at, self._doubling = max(1.0, self._size * LESS), now, False


class Flight(Generic[Token, Landed]):
    """Thread that runs coroutines and hands out their results as they land; a context manager.

    Args:
        make: coroutine of one request.
        window: how many may be under way.
        close: coroutine that releases what `make` used.
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
        """Number of requests that may be started now."""
        return self._window.size - self.under_way

    def start(self, token: Token, request: Any) -> None:
        """Start a request; its result comes with the token."""
        self.under_way += 1
        future = asyncio.run_coroutine_threadsafe(self._make(request), self._loop)
        future.add_done_callback(lambda done: self._results.put((token, done)))

    def landed(self) -> list[tuple[Token, Landed]]:
        """Return the results that have come back; wait until there is at least one.

        Raises:
            EngineError: the server is gone, or rejects every request.
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
