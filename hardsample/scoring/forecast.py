"""Forecast of the rollouts that remain in a run, from the ladders so far. Pure.

An exhaustive search, a record without an image and the blind level are known exactly. A lossless search moves through
positions (level, successes, failures); at each position the forecast counts, over all ladders, how often the next
rollout succeeds. Ladders in progress count as far as they went, so the ones that finish first, which are short, do not
bias the forecast. Where there are few counts the positions of a level are pooled, and where there are none the forecast
starts from the samples that passed the level before.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
from jaxtyping import Float

from hardsample.metrics.ladders import Ladder, SearchPosition
from hardsample.metrics.pism import PismConfig, max_rollouts
from hardsample.metrics.strata import level_passes, needed_successes

DRAWS, NUMBERS = 32, 2_000_000
"""Draws of the success rates behind a forecast and its bounds; most numbers in all draws, which may reduce them."""
BELIEF = 8.0
"""Weight, in rollouts, of the model of a whole level at one of its positions."""
HARDER, SPREAD = 0.3, 1.0
"""How much harder a level is than the one before, and the spread of that, in log odds of a success."""
BOUNDS = (0.05, 0.95)
"""Quantiles of the draws that bound a forecast."""
OPEN_SHARE = 0.85
"""Share of the open samples of an adaptive search that a round leaves open, until two rounds have shown it."""


@dataclass(frozen=True)
class Remaining:
    """Rollouts that remain to be made."""

    expected: float
    low: float
    high: float
    longest: float
    """Rollouts of the longest ladder, which run one after the other; 1 if all can run in parallel."""


class Forecast:
    """Follows all ladders of a run and forecasts their rollouts.

    Args:
        config: settings of the search.
        with_image: samples with an image.
        without: samples without one.

    Attributes:
        stored: rollouts made before this run.
        made: rollouts of this run.
    """

    def __init__(self, config: PismConfig, with_image: int, without: int) -> None:
        self.config, self.stored, self.made = config, 0, 0
        needed = needed_successes(config.num_masks, config.tau)
        levels, failures = len(config.ratios), config.num_masks - needed + 1
        self._level_models = _LevelModels(needed, failures)
        self._draws = max(4, min(DRAWS, NUMBERS // (levels * needed * failures)))
        self._positions = np.zeros((levels, needed, failures), dtype=np.int64)
        self._grade_counts = np.zeros((2, levels, needed, failures), dtype=np.int64)
        self._certain = without * max_rollouts(config, has_image=False)
        if config.search == "lossless":
            self._positions[0, 0, 0] = with_image
        else:
            self._certain += with_image * max_rollouts(config)
        if config.blind:
            self._certain += with_image * config.num_masks

    def resume(self, ladder: Ladder, stored: int) -> None:
        """Add the stored rollouts of a sample, which was counted as a new one.

        Args:
            ladder: of the sample, with the grades of the store.
            stored: number of these rollouts.
        """
        self.stored += stored
        new = Ladder(ladder.row, ladder.record, self.config)
        self.drop(new)
        self._certain += ladder.sure
        if (position := ladder.position) is not None:
            self._positions[position] += 1
        if new.position is None:
            return
        for level, grades in enumerate(ladder.grades):
            successes = failures = 0
            for grade in grades:
                passes = level_passes(successes, successes + failures, self.config.num_masks, self.config.tau)
                if grade is None or passes is not None:
                    break
                self._grade_counts[grade, level, successes, failures] += 1
                successes, failures = successes + grade, failures + 1 - grade

    def record_rollout(self, before: SearchPosition | None, after: SearchPosition | None, grade: int) -> None:
        """Record a rollout of this run.

        Args:
            before: the ladder's position before it; None if the rollout was certain to be made.
            after: its position now; None if its search is over.
            grade: of the rollout.
        """
        self.made += 1
        if before is None:
            self._certain -= 1
            return
        self._grade_counts[grade][before] += 1
        self._positions[before] -= 1
        if after is not None:
            self._positions[after] += 1

    def drop(self, ladder: Ladder) -> None:
        """Subtract a ladder's remaining rollouts."""
        self._certain -= ladder.sure
        if (position := ladder.position) is not None:
            self._positions[position] -= 1

    def remaining(self) -> Remaining:
        """Return the rollouts that remain."""
        if not self._positions.any():
            return Remaining(self._certain, self._certain, self._certain, 1.0 if self._certain else 0.0)
        ahead = rollouts_ahead(self._success_rates())
        totals = (ahead * self._positions).sum(axis=(1, 2, 3))
        # with few ladders chance matters too: the rollouts left in one vary by about as much as their mean
        chance = np.random.default_rng(1).standard_normal(self._draws)
        totals += chance * np.sqrt((ahead**2 * self._positions).sum(axis=(1, 2, 3)))
        totals = np.maximum(totals, self._positions.sum()) + self._certain
        low, expected, high = np.quantile(totals, (BOUNDS[0], 0.5, BOUNDS[1]))
        longest = ahead.mean(axis=0)[self._positions > 0].max()
        return Remaining(float(expected), float(low), float(high), float(longest))

    def _success_rates(self) -> Float[np.ndarray, "draws levels successes failures"]:
        """Draw success rates of the next rollout at each position."""
        rng = np.random.default_rng(0)  # the same draws each time, so that a forecast changes only with the counts
        _, levels, needed, limit = self._grade_counts.shape
        rates = np.empty((self._draws, levels, needed, limit))
        belief = np.zeros((self._draws, len(self._level_models.rates)))
        for level in range(levels):
            failed, succeeded = self._grade_counts[:, level]
            weights = belief + self._level_models.likelihood(succeeded, failed)
            weights = np.exp(weights - weights.max(axis=1, keepdims=True)).cumsum(axis=1)
            models = (weights < rng.random((self._draws, 1)) * weights[:, -1:]).sum(axis=1)
            mean_rates = self._level_models.rates[models]
            rates[:, level] = rng.beta(BELIEF * mean_rates + succeeded, BELIEF * (1 - mean_rates) + failed)
            belief = self._level_models.after[models]
        return rates.clip(1e-3, 1 - 1e-3)


class RoundForecast:
    """Forecasts the rollouts of an adaptive search, whose rounds follow from the grades.

    Args:
        stored: rollouts made before this run.
        budget: most rollouts; None without a bound.

    Attributes:
        stored: rollouts made before this run.
        made: rollouts of this run.
    """

    def __init__(self, stored: int, budget: int | None = None) -> None:
        self.stored, self.made, self._budget = stored, 0, budget
        self._left, self._open, self._share, self._over = 0, 0, OPEN_SHARE, False

    def begin_round(self, rollouts: int, samples: int) -> None:
        """Begin a round of so many rollouts, with so many samples whose label is not known well enough.

        Without rollouts the search is over.
        """
        if self._open:
            self._share = min(max(samples / self._open, 0.5), 0.97)
        self._left, self._open, self._over = rollouts, samples, not rollouts

    def record_rollout(self, before: SearchPosition | None, after: SearchPosition | None, grade: int) -> None:
        """Record a rollout of this run; its place in a ladder and its grade tell nothing of the rounds to come."""
        self.made += 1
        self._left -= 1

    def drop(self, ladder: Ladder) -> None:
        """Subtract the rollout of a sample that is rejected."""
        self._left -= 1

    def remaining(self) -> Remaining:
        """Return the rollouts that remain: as many as the budget has, or as if samples closed at the recent rate."""
        left = max(self._left, 0)
        if self._over:
            return Remaining(0.0, 0.0, 0.0, 0.0)
        later = self._open * self._share / (1 - self._share)
        rounds = 1 + log(max(self._open, 2)) / -log(self._share)
        if self._budget is not None:
            rest = max(self._budget - self.stored - self.made, left)
            return Remaining(rest, min(left + later / 2, rest), rest, rounds)
        return Remaining(left + later, left + later / 2, left + 2 * later, rounds)


class _LevelModels:
    """Models of the samples at a level: their success rates are p ~ Beta(a, b), for a grid of means and widths.

    Attributes:
        rates: (models, successes, failures) of the next rollout at a position, (a + s) / (a + b + s + f).
        after: (models, models) log weight of each model at the next level for the samples that pass under a model: they
            are better, p ~ Beta(a + needed, b + f), and a level is a little harder than the one before.
    """

    def __init__(self, needed: int, limit: int) -> None:
        means, widths = np.linspace(-5, 5, 21), np.log([0.3, 1.0, 3.0, 10.0, 30.0])
        logit, width = (grid.ravel() for grid in np.meshgrid(means, widths, indexing="ij"))
        mean = 1 / (1 + np.exp(-logit))
        a, b = mean * np.exp(width), (1 - mean) * np.exp(width)
        s, f = np.mgrid[:needed, :limit]
        total = (a + b)[:, None, None]
        self.rates = ((a[:, None, None] + s) / (total + s + f)).clip(1e-6, 1 - 1e-6)
        self._logs = np.log(self.rates), np.log1p(-self.rates)
        # how a level is passed: the share of samples that pass it after f failures
        share = np.zeros((len(a), needed + 1, limit))
        share[:, 0, 0] = 1
        for i in range(needed):
            for j in range(limit):
                share[:, i + 1, j] += share[:, i, j] * self.rates[:, i, j]
                if j + 1 < limit:
                    share[:, i, j + 1] += share[:, i, j] * (1 - self.rates[:, i, j])
        passed = share[:, needed] / share[:, needed].sum(axis=1, keepdims=True)
        better, number = a[:, None] + needed, (a + b)[:, None] + needed + np.arange(limit)
        first = (passed * better / number).sum(axis=1)
        second = (passed * better * (better + 1) / (number * (number + 1))).sum(axis=1)
        next_width = np.log((first * (1 - first) / (second - first**2)).clip(1.001) - 1)
        next_logit = np.log(first / (1 - first)) - HARDER
        away = (logit - next_logit[:, None]) ** 2 / SPREAD**2 + (width - next_width[:, None]) ** 2
        self.after = -away / 2

    def likelihood(self, succeeded: np.ndarray, failed: np.ndarray) -> np.ndarray:
        """Return (models,) log likelihood of the counts at the positions of a level under each model."""
        return (self._logs[0] * succeeded + self._logs[1] * failed).sum(axis=(1, 2))


def rollouts_ahead(
    rates: Float[np.ndarray, "draws levels successes failures"],
) -> Float[np.ndarray, "draws levels successes failures"]:
    """Return the expected rollouts from each position to the end of the search.

    E(i, s, f) = 1 + p E(i, s+1, f) + (1 − p) E(i, s, f+1), where a passed level leads to E(i+1, 0, 0) and a failed
    level to 0.

    Args:
        rates: p, the success rate of the next rollout at a position.
    """
    _, levels, needed, limit = rates.shape
    cost, passing = np.empty_like(rates), np.empty_like(rates)
    for s in reversed(range(needed)):
        for f in reversed(range(limit)):
            p = rates[:, :, s, f]
            cost_up, passing_up = (0.0, 1.0) if s + 1 == needed else (cost[:, :, s + 1, f], passing[:, :, s + 1, f])
            cost_on, passing_on = (0.0, 0.0) if f + 1 == limit else (cost[:, :, s, f + 1], passing[:, :, s, f + 1])
            cost[:, :, s, f] = 1 + p * cost_up + (1 - p) * cost_on
            passing[:, :, s, f] = p * passing_up + (1 - p) * passing_on
    for level in reversed(range(levels - 1)):
        cost[:, level] += passing[:, level] * cost[:, level + 1, :1, :1]
    return cost
