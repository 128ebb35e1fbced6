"""Progress of a run: work done, work expected, the rate, and the time left.

A bar on a terminal; in a log file occasional lines, fewer as the run gets longer.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from tqdm import tqdm

from hardsample.scoring.forecast import Forecast, Remaining, RoundForecast

WINDOW_SECONDS = 60.0
"""Shortest window that a rate is taken over, once the run is that long."""
WINDOW_SHARE = 0.25
"""Share of the time so far that a rate is taken over."""
NOTES = 200
"""Notes that are kept of a window, about."""
BAR_SECONDS = 0.5
LINE_SECONDS, LINE_SHARE = 30.0, 0.1
"""A log gets a line after this many seconds, and after this share of the time so far."""
EFFORT = 20
"""The next line waits at least this many times as long as making the last one took."""


class Pace:
    """The current speed of a run.

    Args:
        now: seconds on any clock, at the start.
    """

    def __init__(self, now: float) -> None:
        self.began = now
        self._notes: deque[tuple[float, int]] = deque([(now, 0)])

    def note(self, now: float, made: int) -> None:
        """Note how much has been made by now, without what the store held before."""
        window = max(WINDOW_SECONDS, WINDOW_SHARE * (now - self.began))
        if len(self._notes) > 2 and now - self._notes[-2][0] < window / NOTES:
            self._notes.pop()
        self._notes.append((now, made))
        while len(self._notes) > 2 and self._notes[1][0] <= now - window:
            self._notes.popleft()

    def rate(self) -> float | None:
        """Return the recent rate per second; None if nothing was made yet."""
        (then, before), (now, made) = self._notes[0], self._notes[-1]
        return (made - before) / (now - then) if made > before and now > then else None

    def step_seconds(self, under_way: int) -> float:
        """Return how long one rollout takes when this many are in flight, by Little's law."""
        now, made = self._notes[-1]
        then, before = next((note for note in reversed(self._notes) if made - note[1] >= 2 * under_way), self._notes[0])
        return under_way * (now - then) / (made - before) if made > before else 0.0

    def seconds_left(self, left: Remaining, under_way: int) -> tuple[float, float, float] | None:
        """Return the time left in seconds: (expected, low, high); None if nothing was made yet.

        The rollouts of the longest ladder run one after the other. If fewer parallel rollouts are no faster, as on a
        GPU or a server with spare capacity, the run takes as long as they do; the upper bound includes that.
        """
        rate = self.rate()
        if rate is None:
            return None
        alone = left.longest * self.step_seconds(under_way)
        return left.expected / rate, left.low / rate, max(left.high / rate, alone)


class Display:
    """A bar on a terminal, lines in a log.

    Args:
        name: of the work.
        shown: False shows nothing.
        clock: returns seconds.
        terminal: whether standard error is a terminal; detected if None.
        write: writes a line.
    """

    def __init__(
        self,
        name: str,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
        terminal: bool | None = None,
        write: Callable[[str], None] = lambda line: tqdm.write(line, file=sys.stderr),
    ) -> None:
        self._name, self._clock, self._write, self._shown = name, clock, write, shown
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(total=1, desc=name, bar_format="{desc}", leave=True) if shown and terminal else None
        self._began, self._effort = clock(), 0.0
        self._last = self._began - (BAR_SECONDS if terminal else 0.0)
        self._text = ""

    def update(self, line: Callable[[], tuple[float, float, str]], force: bool = False) -> None:
        """Show the progress if it is due.

        Args:
            line: returns (work done, total work, text).
            force: show it even if it is not due yet.
        """
        now = self._clock()
        wait = BAR_SECONDS if self._bar is not None else max(LINE_SECONDS, LINE_SHARE * (now - self._began))
        if not self._shown or (not force and now - self._last < max(wait, EFFORT * self._effort)):
            return
        done, total, text = line()
        self._last, self._effort = now, self._clock() - now
        if text == self._text:
            return
        self._text = text
        if self._bar is None:
            self._write(f"{self._name}: {done / max(total, 1):.0%}, {text}")
            return
        self._bar.total, self._bar.n = max(total, done, 1), done
        self._bar.bar_format = "{desc}: {percentage:3.0f}%|{bar:20}| " + text.replace("{", "{{").replace("}", "}}")
        self._bar.refresh()

    def close(self) -> None:
        """Keep what is shown, and stop updating it."""
        if self._bar is not None:
            self._bar.close()


class RunProgress:
    """The progress of a scoring run; a context manager.

    Args:
        forecast: of its rollouts.
        samples: number of samples.
        display: where it is shown.
        clock: returns seconds.
    """

    def __init__(
        self,
        forecast: Forecast | RoundForecast,
        samples: int,
        display: Display,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.forecast, self.samples, self.finished = forecast, samples, 0
        self._display, self._clock = display, clock
        self._pace, self._under_way, self._more = Pace(clock()), 1, ""

    def __enter__(self) -> RunProgress:
        self._display.update(self.line)
        return self

    def __exit__(self, *_: object) -> None:
        self._display.update(self.line, force=True)
        self._display.close()

    def update(self, under_way: int, more: str = "") -> None:
        """Show the progress of the run.

        Args:
            under_way: rollouts in flight.
            more: added at the end of the line.
        """
        self._pace.note(self._clock(), self.forecast.made)
        self._under_way, self._more = max(under_way, 1), more
        self._display.update(self.line)

    def line(self) -> tuple[float, float, str]:
        """Return (rollouts done, rollouts in total, text)."""
        done, left = self.forecast.stored + self.forecast.made, self.forecast.remaining()
        total = done + left.expected
        made = f"{done:,}/{'≈' if left.high > left.low else ''}{total:,.0f} rollouts"
        before = [f"{self.forecast.stored:,} of them from before"] if self.forecast.stored else []
        parts = [made, *before, f"{self.finished:,}/{self.samples:,} samples"]
        parts += describe_pace(self._pace, left, self._under_way, self._clock())
        return done, total, ", ".join([*parts, *([self._more] if self._more else [])])


class CountProgress:
    """The progress of work whose amount is known; a context manager.

    Args:
        total: amount of work.
        unit: its unit, in the plural.
        display: where it is shown.
        clock: returns seconds.
    """

    def __init__(self, total: int, unit: str, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.unit, self.made = total, unit, 0
        self._display, self._clock, self._pace = display, clock, Pace(clock())

    def __enter__(self) -> CountProgress:
        self._display.update(self.line)
        return self

    def __exit__(self, *_: object) -> None:
        self._display.update(self.line, force=True)
        self._display.close()

    def update(self, made: int) -> None:
        """Count more finished work, and show the progress."""
        self.made += made
        self._pace.note(self._clock(), self.made)
        self._display.update(self.line)

    def line(self) -> tuple[float, float, str]:
        """Return (done, total, text)."""
        rest = float(max(self.total - self.made, 0))
        parts = [f"{self.made:,}/{self.total:,} {self.unit}"]
        parts += describe_pace(self._pace, Remaining(rest, rest, rest, 1.0), 1, self._clock())
        return self.made, self.total, ", ".join(parts)


def describe_pace(pace: Pace, left: Remaining, under_way: int, now: float) -> list[str]:
    """Return rate, time so far and time left, as text."""
    parts, rate = [], pace.rate()
    if rate is not None:
        parts.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
    parts.append(f"{format_seconds(now - pace.began)} so far")
    seconds = pace.seconds_left(left, under_way)
    return [*parts, describe_time_left(*seconds)] if seconds is not None and left.expected else parts


def describe_time_left(expected: float, low: float, high: float) -> str:
    """Return the time left as text: a range if it is uncertain."""
    if high > 1.5 * low:
        first, last = format_seconds(low), format_seconds(high)
        return f"{first} to {last} left" if first != last else f"{first} left"
    return f"{format_seconds(expected)} left"


def format_seconds(seconds: float) -> str:
    """Format seconds, to two figures."""
    for size, small, names in ((86400, 3600, "d h"), (3600, 60, "h min")):
        if seconds >= size:
            large, rest = divmod(round(seconds / small), size // small)
            large_unit, small_unit = names.split()
            return f"{large} {large_unit} {rest} {small_unit}" if rest else f"{large} {large_unit}"
    if seconds >= 90:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds)} s"
