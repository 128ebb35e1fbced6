"""The ladders of many samples: which rollouts fill the next batch, and when a sample is done.

A lossless ladder has at most one rollout in flight, so a batch is filled from many samples. New samples are admitted
only when the ladders in progress do not fill a batch, so memory does not grow with the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hardsample.kernels.keys import ratio_units
from hardsample.metrics.pism import (
    BLIND_RATIO,
    PismConfig,
    blind_rollouts,
    counts,
    empty_grades,
    max_rollouts,
    next_rollouts,
)
from hardsample.metrics.strata import level_passes

SearchPosition = tuple[int, int, int]
"""State of a lossless search: its open level, and the successes and failures there."""


@dataclass(frozen=True)
class Counts:
    """Rollout counts of one finished sample."""

    successes: list[int] = field(metadata={"help": "rollouts graded 1, at each ratio"})
    attempts: list[int] = field(metadata={"help": "rollouts graded, at each ratio"})
    blind_successes: int | None = field(metadata={"help": "of the blind level; None without one"})
    blind_attempts: int | None = field(metadata={"help": "of the blind level; None without one"})


class Ladder:
    """One sample in progress: its grades, and the rollouts that are requested and not yet graded.

    Args:
        row: the sample's row in the dataset.
        record: the dataset's row.
        config: the settings of the search.
        graded: (ratio, realization, grade) of rollouts that the store already holds.
        unanswered: realizations at ratio 0 that are not right and have no answer.
    """

    def __init__(
        self,
        row: int,
        record: dict[str, Any],
        config: PismConfig,
        graded: Iterable[tuple[float, int, int]] = (),
        unanswered: Iterable[int] = (),
    ) -> None:
        self.row, self.record, self.config = row, record, config
        self.has_image = bool(record["images"])
        self.grades = empty_grades(config)
        self.blind: list[int | None] = [None] * config.num_masks
        self.rejected: str | None = None
        self.finished = False
        self._unanswered = set(unanswered)
        self._level = {ratio_units(ratio): index for index, ratio in enumerate(config.ratios)}
        self._asked: set[tuple[float, int]] = set()
        for ratio, realization, grade in graded:
            self._write(ratio, realization, grade)

    def ask(self) -> list[tuple[float, int]]:
        """Return (ratio, realization) of the rollouts to request now, without those already requested."""
        if self.rejected:
            return []
        wanted = [
            (self.config.ratios[i], k)
            for i, k in next_rollouts(self.grades, self.config, self.has_image, self.answered)
        ]
        wanted += [(BLIND_RATIO, k) for k in blind_rollouts(self.blind, self.config, self.has_image)]
        new = [rollout for rollout in wanted if rollout not in self._asked]
        self._asked.update(new)
        return new

    def record_grade(self, ratio: float, realization: int, grade: int, answered: bool = True) -> None:
        """Record the grade of a requested rollout, and whether it is right or has an answer at all."""
        self._asked.discard((ratio, realization))
        self._write(ratio, realization, grade)
        if not answered and not ratio_units(ratio):
            self._unanswered.add(realization)

    @property
    def idle(self) -> bool:
        """Whether no rollout is requested."""
        return not self._asked

    @property
    def unanswered(self) -> int:
        """Number of rollouts at ratio 0 that are not right and have no answer."""
        return len(self._unanswered)

    @property
    def answered(self) -> bool:
        """Whether any rollout at ratio 0 is right or has an answer."""
        return sum(grade is not None for grade in self.grades[0]) > len(self._unanswered)

    @property
    def position(self) -> SearchPosition | None:
        """State of the search; None if it is over, or if its rollouts do not depend on one another."""
        if not self.has_image or self.config.search != "lossless":
            return None
        for level, (successes, attempts) in enumerate(zip(*counts(self.grades, self.config), strict=True)):
            passes = level_passes(successes, attempts, self.config.num_masks, self.config.tau)
            if passes is None:
                return level, successes, attempts - successes
            if not passes:
                return None
        return None

    @property
    def sure(self) -> int:
        """Number of missing rollouts that are needed whatever the grades are."""
        blind = len(blind_rollouts(self.blind, self.config, self.has_image))
        if self.has_image and self.config.search == "lossless":
            return blind
        levels = range(len(self.config.ratios) if self.has_image else 1)
        return (
            blind
            + max_rollouts(self.config, self.has_image)
            - sum(grade is not None for level in levels for grade in self.grades[level])
        )

    def counts(self) -> Counts:
        """Return the counts of a finished sample."""
        successes, attempts = counts(self.grades, self.config)
        if not self.config.blind or not self.has_image:
            return Counts(successes, attempts, None, None)
        graded = [grade for grade in self.blind if grade is not None]
        return Counts(successes, attempts, sum(graded), len(graded))

    def _write(self, ratio: float, realization: int, grade: int) -> None:
        if ratio_units(ratio) == ratio_units(BLIND_RATIO):
            self.blind[realization] = grade
        else:
            self.grades[self._level[ratio_units(ratio)]][realization] = grade


@dataclass(frozen=True)
class Ask:
    """One rollout to make for a ladder."""

    ladder: Ladder
    ratio: float
    realization: int


class Queue:
    """Hands out batches of rollouts; every sample goes in once and comes out through `finish`.

    Args:
        ladders: the samples, made lazily and taken as batches need them.
        finish: called with each ladder when it is done or rejected.
    """

    def __init__(self, ladders: Iterator[Ladder], finish: Callable[[Ladder], None]) -> None:
        self._ladders, self._finish = ladders, finish
        self._waiting: deque[Ask] = deque()

    def take(self, size: int) -> list[Ask]:
        """Return up to `size` rollouts: of the ladders in progress first, then of new samples.

        Records with and without images never share a batch, since processors reject mixed batches.
        """
        self._waiting = deque(ask for ask in self._waiting if not ask.ladder.rejected)
        self.fills(size)
        batch: list[Ask] = []
        skipped: list[Ask] = []
        while self._waiting and len(batch) < size:
            ask = self._waiting.popleft()
            alike = not batch or ask.ladder.has_image == batch[0].ladder.has_image
            (batch if alike else skipped).append(ask)
        self._waiting.extendleft(reversed(skipped))
        return batch

    def fills(self, size: int) -> bool:
        """Return whether a batch of this size would be full now, without the rollouts in flight."""
        while len(self._waiting) < size and (ladder := next(self._ladders, None)) is not None:
            self.advance(ladder)
        return len(self._waiting) >= size

    def advance(self, ladder: Ladder) -> None:
        """Request a ladder's next rollouts, or finish it (once)."""
        self._waiting.extend(Ask(ladder, ratio, k) for ratio, k in ladder.ask())
        if (ladder.idle or ladder.rejected) and not ladder.finished:
            ladder.finished = True
            self._finish(ladder)
