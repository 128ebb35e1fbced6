"""The rounds of an adaptive search: planned from the grades, stored, then handed out in batches of any size.

A round is in the store before its first rollout is asked, and the next is planned when all of its rollouts are graded.
So a run that was killed asks what is missing of the stored rounds, and plans on as an undisturbed one. Samples are rows
of arrays; only rollouts in flight are objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from datasets import Dataset
from jaxtyping import Bool

from hardsample.engines.features import encoder_name
from hardsample.kernels.keys import ratio_units
from hardsample.metrics.ladders import Ask, Ladder
from hardsample.metrics.options import budget_rollouts
from hardsample.metrics.pism import counts, max_rollouts
from hardsample.prediction.adaptive import AdaptiveSearch
from hardsample.scoring.adaptive.posterior import use_features
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.forecast import RoundForecast
from hardsample.scoring.progress import RunProgress
from hardsample.scoring.store import Store

Rollout = tuple[int, int, int]
"""Row of the sample, level, realization."""


class RoundQueue:
    """Hands out the rollouts of an adaptive search; the interface is `metrics.ladders.Queue`'s.

    Args:
        dataset: the records.
        has_image: whether each has an image.
        store: of the folder, with the rounds and rollouts so far.
        config: settings of the job.
        reject: called with the ladder of a sample that turns out bad, once.
        bar: shows how far the run is.

    Attributes:
        search: the counts of all samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        has_image: Sequence[bool],
        store: Store,
        config: ScoringConfig,
        reject: Callable[[Ladder], None],
        bar: RunProgress,
    ) -> None:
        self._dataset, self._store, self._config, self._reject, self._bar = dataset, store, config, reject, bar
        self._rounds = store.rounds()
        self._ids: list[str] = list(dataset["id"])
        budget = None
        if config.budget is not None:
            budget = budget_rollouts(config.budget, sum(max_rollouts(config, image) for image in has_image))
        self.search = AdaptiveSearch(config, self._ids, has_image, config.seed, budget)
        self._level = {ratio_units(ratio): index for index, ratio in enumerate(config.ratios)}
        self._rejected: set[int] = set()
        self._row = {sample: row for row, sample in enumerate(self._ids)}
        self._load()
        self._waiting = self._unmade()
        self._in_flight, self._over, self._all_known = 0, False, False
        assert isinstance(bar.forecast, RoundForecast)
        self._forecast = bar.forecast
        if self._waiting:
            self._forecast.begin_round(len(self._waiting), len(self._waiting))

    def _load(self) -> None:
        """Count what the store holds."""
        for sample, ratio, successes, attempts in self._rounds.level_counts():
            if (row := self._row.get(sample)) is not None:
                level = self._level[ratio_units(ratio)]
                self.search.successes[row, level], self.search.attempts[row, level] = successes, attempts

    def _unmade(self) -> deque[Rollout]:
        """Return the rollouts of stored rounds that are not made."""
        unmade = [
            (self._row[sample], self._level[ratio_units(ratio)], realization)
            for sample, ratio, realization in self._rounds.unmade()
            if sample in self._row
        ]
        return self._ordered(unmade)

    def _ordered(self, rollouts: list[Rollout]) -> deque[Rollout]:
        """Order a round: records with images first, which share no batch with the others, then by row."""
        return deque(sorted(rollouts, key=lambda rollout: (not self.search.has_image[rollout[0]], rollout)))

    def take(self, size: int) -> list[Ask]:
        """Return up to `size` rollouts of the round; none while it is not graded and nothing of it is left."""
        self.fills(size)
        batch: list[Ask] = []
        while self._waiting and len(batch) < size:
            row, level, realization = self._waiting[0]
            if batch and batch[0].ladder.has_image != self.search.has_image[row]:
                break
            self._waiting.popleft()
            if row not in self._rejected:
                ladder = Ladder(row, self._dataset[row], self._config)
                batch.append(Ask(ladder, self._config.ratios[level], realization))
        self._in_flight += len(batch)
        return batch

    def fills(self, size: int) -> bool:
        """Return whether a batch of this size would be full now."""
        if not self._waiting and not self._in_flight and not self._over:
            self._begin_round()
        return len(self._waiting) >= size

    def advance(self, ladder: Ladder) -> None:
        """Take the result of the rollout that the ladder was made for."""
        self._in_flight -= 1
        if not ladder.rejected:
            self.search.add(ladder.row, *counts(ladder.grades, self._config))
        elif ladder.row not in self._rejected:
            self._rejected.add(ladder.row)
            self.search.drop(ladder.row)
            self._reject(ladder)

    def _begin_round(self) -> None:
        if not self._all_known:
            encoder = encoder_name(self._store.settings())
            self._all_known = use_features(self.search, self._ids, self._dataset["ability"], self._store, encoder)
        planned = self.search.plan()
        attempts = self.search.attempts
        rollouts = [
            (int(row), int(level), int(attempts[row, level]))
            for row, level in zip(planned.rows, planned.levels, strict=True)
        ]
        self._over = not rollouts
        self._rounds.commit((self._ids[row], self._config.ratios[level], k) for row, level, k in rollouts)
        self._waiting = self._ordered(rollouts)
        self._bar.finished = len(self._ids) - planned.open
        self._forecast.begin_round(len(rollouts), planned.open)

    def ladders(self) -> StoredLadders:
        """Return the samples that were not rejected."""
        rows = np.setdiff1d(np.arange(len(self._ids)), list(self._rejected))
        columns = self._dataset["ability"], self._dataset["record_number"]
        return StoredLadders(rows, self._ids, *columns, self.search.has_image, self._store, self._config)


class StoredLadders(Sequence[Ladder]):
    """The samples of a run as ladders, each read from the store when it is asked for.

    Args:
        rows: of the samples, ascending.
        ids: of all rows.
        abilities: of all rows.
        numbers: of the records of all rows.
        has_image: whether each row has an image.
        store: with the rollouts.
        config: settings of the search.
    """

    def __init__(
        self,
        rows: np.ndarray,
        ids: Sequence[str],
        abilities: Sequence[str | None],
        numbers: Sequence[int],
        has_image: Bool[np.ndarray, " samples"],
        store: Store,
        config: ScoringConfig,
    ) -> None:
        self._rows, self._ids, self._abilities, self._numbers = rows, ids, abilities, numbers
        self._has_image = has_image
        self._store, self._config = store, config

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Ladder:  # type: ignore[override]  # slices are not asked for
        row = int(self._rows[index])
        sample = self._ids[row]
        record = {
            "id": sample,
            "ability": self._abilities[row],
            "record_number": self._numbers[row],
            "images": [sample] if self._has_image[row] else [],
        }
        return Ladder(row, record, self._config, self._store.grades(sample), self._store.unanswered(sample))

    def __iter__(self) -> Iterator[Ladder]:
        return (self[index] for index in range(len(self)))
