"""What a person sees of a run that is under way: work done, work expected, the rate, and how long it still takes.

On a terminal a bar; in a log file a line now and then, ever fewer as the run gets longer.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from tqdm import tqdm

from hardsample.scoring.forecast import Forecast, Left

WINDOW_SECONDS = 60.0
"""The least that a rate is taken over, once there is that much."""
WINDOW_SHARE = 0.25
"""Of the time so far that a rate is taken over."""
NOTES = 200
"""How many are kept of a window, about."""
BAR_SECONDS = 0.5
LINE_SECONDS, LINE_SHARE = 30.0, 0.1
"""A log gets a line after so many seconds, and after so much of the time so far."""
EFFORT = 20
"""Times as long as making the line takes nothing is made."""


class Pace:
    """How fast a run is now.

    Args:
        now: seconds on any clock, at the beginning.
    """

    def __init__(self, now: float) -> None:
        self.began = now
        self._notes: deque[tuple[float, int]] = deque([(now, 0)])

    def note(self, now: float, made: int) -> None:
        """Takes in how much has been made by now; what the store held before does not count."""
        window = max(WINDOW_SECONDS, WINDOW_SHARE * (now - self.began))
        if len(self._notes) > 2 and now - self._notes[-2][0] < window / NOTES:
            self._notes.pop()
        self._notes.append((now, made))
        while len(self._notes) > 2 and self._notes[1][0] <= now - window:
            self._notes.popleft()

    def rate(self) -> float | None:
        """Made per second of late; None before anything was."""
        (then, before), (now, made) = self._notes[0], self._notes[-1]
        return (made - before) / (now - then) if made > before and now > then else None

    def step_seconds(self, under_way: int) -> float:
        """How long one takes from its beginning to its end, where so many are under way at a time: by Little's law."""
        now, made = self._notes[-1]
        then, before = next((note for note in reversed(self._notes) if made - note[1] >= 2 * under_way), self._notes[0])
        return under_way * (now - then) / (made - before) if made > before else 0.0

    def seconds_left(self, left: Left, under_way: int) -> tuple[float, float, float] | None:
        """How long it still takes: (expected, low, high); None before the first is made.

        The rollouts of the longest ladder follow one another. Where fewer side by side are no faster, as on a GPU or a
        server that is not busy, it takes as long as they do: that is in the upper bound.
        """
        rate = self.rate()
        if rate is None:
            return None
        alone = left.longest * self.step_seconds(under_way)
        return left.expected / rate, left.low / rate, max(left.high / rate, alone)


class Display:
    """A bar on a terminal, lines in a log.

    Args:
        name: what is done.
        shown: False shows nothing.
        clock: gives seconds.
        terminal: whether standard error is one; asked if None.
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
        """Shows how far the run is, if it is time to.

        Args:
            line: gives (work done, work in all, what is said of it).
            force: show it whether it is time or not.
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
        """Leaves what is shown as it is."""
        if self._bar is not None:
            self._bar.close()


class RunProgress:
    """The progress of a scoring run; a context manager.

    Args:
        forecast: of its rollouts.
        samples: how many there are.
        display: where it is shown.
        clock: gives seconds.
    """

    def __init__(
        self, forecast: Forecast, samples: int, display: Display, clock: Callable[[], float] = time.monotonic
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
        """Shows how far the run is.

        Args:
            under_way: rollouts that are made side by side.
            more: said at the end of the line.
        """
        self._pace.note(self._clock(), self.forecast.made)
        self._under_way, self._more = max(under_way, 1), more
        self._display.update(self.line)

    def line(self) -> tuple[float, float, str]:
        """(rollouts there are, rollouts in all, what is said)."""
        there, left = self.forecast.stored + self.forecast.made, self.forecast.left()
        total = there + left.expected
        made = f"{there:,}/{'≈' if left.high > left.low else ''}{total:,.0f} rollouts"
        before = [f"{self.forecast.stored:,} of them from before"] if self.forecast.stored else []
        parts = [made, *before, f"{self.finished:,}/{self.samples:,} samples"]
        parts += said_pace(self._pace, left, self._under_way, self._clock())
        return there, total, ", ".join([*parts, *([self._more] if self._more else [])])


class CountProgress:
    """The progress of work whose amount is known; a context manager.

    Args:
        total: how many are to be made.
        unit: what they are called, in the plural.
        display: where it is shown.
        clock: gives seconds.
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
        """Takes in so many more, and shows how far the work is."""
        self.made += made
        self._pace.note(self._clock(), self.made)
        self._display.update(self.line)

    def line(self) -> tuple[float, float, str]:
        """(made, to be made in all, what is said)."""
        rest = float(max(self.total - self.made, 0))
        parts = [f"{self.made:,}/{self.total:,} {self.unit}"]
        parts += said_pace(self._pace, Left(rest, rest, rest, 1.0), 1, self._clock())
        return self.made, self.total, ", ".join(parts)


def said_pace(pace: Pace, left: Left, under_way: int, now: float) -> list[str]:
    """Rate, time so far and time left, in words."""
    parts, rate = [], pace.rate()
    if rate is not None:
        parts.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
    parts.append(f"{span(now - pace.began)} so far")
    seconds = pace.seconds_left(left, under_way)
    return [*parts, said_left(*seconds)] if seconds is not None and left.expected else parts


def said_left(expected: float, low: float, high: float) -> str:
    """How long it still takes, in words: a range where little is known."""
    if high > 1.5 * low:
        first, last = span(low), span(high)
        return f"{first} to {last} left" if first != last else f"{first} left"
    return f"{span(expected)} left"


def span(seconds: float) -> str:
    """Seconds in words, to two figures."""
    for size, small, names in ((86400, 3600, "d h"), (3600, 60, "h min")):
        if seconds >= size:
            large, rest = divmod(round(seconds / small), size // small)
            one, other = names.split()
            return f"{large} {one} {rest} {other}" if rest else f"{large} {one}"
    if seconds >= 90:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds)} s"
