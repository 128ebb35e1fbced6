"""How many rollouts a run has left, told from the ladders so far. Pure.

An exhaustive search, a record without an image and the blind level are known exactly. A lossless search walks over
places (level, successes, failures); at each place it is counted, over all ladders, how often the next rollout succeeds.
Ladders under way count as far as they went, so those that finish first, which are the short ones, do not make all look
short. Where little has been seen the places of the level count together, and before that what passed the level before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hardsample.metrics.ladders import Ladder, SearchPosition
from hardsample.metrics.pism import PismConfig, max_rollouts
from hardsample.metrics.strata import level_passes, needed_successes

DRAWS, NUMBERS = 32, 2_000_000
"""Guesses of the success rates that an expectation and its bounds are made of; fewer where they are of more numbers."""
BELIEF = 8.0
"""Rollouts that a model of a whole level counts for at one of its places."""
HARDER, SPREAD = 0.3, 1.0
"""By how much a level is harder than that before, and how much that may differ, in log odds of a success."""
BOUNDS = (0.05, 0.95)
"""Quantiles of the guesses."""


@dataclass(frozen=True)
class Left:
    """Rollouts that are still to be made."""

    expected: float
    low: float
    high: float
    longest: float
    """Of the longest ladder, whose rollouts follow one another; 1 where all can be made side by side."""


class Forecast:
    """Follows all ladders of a run.

    Args:
        config: settings of the search.
        with_image: samples with an image.
        without: samples without one.

    Attributes:
        stored: rollouts that were there before this run.
        made: rollouts of this run.
    """

    def __init__(self, config: PismConfig, with_image: int, without: int) -> None:
        self.config, self.stored, self.made = config, 0, 0
        needed = needed_successes(config.num_masks, config.tau)
        levels, failures = len(config.ratios), config.num_masks - needed + 1
        self._kinds = _Kinds(needed, failures)
        self._draws = max(4, min(DRAWS, NUMBERS // (levels * needed * failures)))
        self._at = np.zeros((levels, needed, failures), dtype=np.int64)
        self._seen = np.zeros((2, levels, needed, failures), dtype=np.int64)
        self._sure = without * max_rollouts(config, has_image=False)
        if config.search == "lossless":
            self._at[0, 0, 0] = with_image
        else:
            self._sure += with_image * max_rollouts(config)
        if config.blind:
            self._sure += with_image * config.num_masks

    def resume(self, ladder: Ladder, stored: int) -> None:
        """Take in what the store holds of a sample, which was counted as a new one.

        Args:
            ladder: of the sample, with the grades of the store.
            stored: how many rollouts these are.
        """
        self.stored += stored
        new = Ladder(ladder.row, ladder.record, self.config)
        self.drop(new)
        self._sure += ladder.sure
        if (position := ladder.position) is not None:
            self._at[position] += 1
        if new.position is None:
            return
        for level, grades in enumerate(ladder.grades):
            successes = failures = 0
            for grade in grades:
                passes = level_passes(successes, successes + failures, self.config.num_masks, self.config.tau)
                if grade is None or passes is not None:
                    break
                self._seen[grade, level, successes, failures] += 1
                successes, failures = successes + grade, failures + 1 - grade

    def record_rollout(self, before: SearchPosition | None, after: SearchPosition | None, grade: int) -> None:
        """Take in a rollout of this run.

        Args:
            before: the ladder's place before it; None if the rollout was sure to be made.
            after: its place now; None if its search is over.
            grade: of the rollout.
        """
        self.made += 1
        if before is None:
            self._sure -= 1
            return
        self._seen[grade][before] += 1
        self._at[before] -= 1
        if after is not None:
            self._at[after] += 1

    def drop(self, ladder: Ladder) -> None:
        """Leave out what a ladder still had before it."""
        self._sure -= ladder.sure
        if (position := ladder.position) is not None:
            self._at[position] -= 1

    def left(self) -> Left:
        """Return what is still to be made."""
        if not self._at.any():
            return Left(self._sure, self._sure, self._sure, 1.0 if self._sure else 0.0)
        ahead = rollouts_ahead(self._success_rates())
        totals = (ahead * self._at).sum(axis=(1, 2, 3))
        # of so few ladders chance counts too: what one has left varies by about as much as it is
        chance = np.random.default_rng(1).standard_normal(self._draws)
        totals += chance * np.sqrt((ahead**2 * self._at).sum(axis=(1, 2, 3)))
        totals = np.maximum(totals, self._at.sum()) + self._sure
        low, expected, high = np.quantile(totals, (BOUNDS[0], 0.5, BOUNDS[1]))
        longest = ahead.mean(axis=0)[self._at > 0].max()
        return Left(float(expected), float(low), float(high), float(longest))

    def _success_rates(self) -> Float[np.ndarray, "draws levels successes failures"]:
        """Return guesses of how often the next rollout at each place succeeds."""
        rng = np.random.default_rng(0)  # the same guesses each time: an estimate moves by what is seen only
        _, levels, needed, limit = self._seen.shape
        rates = np.empty((self._draws, levels, needed, limit))
        belief = np.zeros((self._draws, len(self._kinds.rates)))
        for level in range(levels):
            failed, succeeded = self._seen[:, level]
            weights = belief + self._kinds.likelihood(succeeded, failed)
            weights = np.exp(weights - weights.max(axis=1, keepdims=True)).cumsum(axis=1)
            kinds = (weights < rng.random((self._draws, 1)) * weights[:, -1:]).sum(axis=1)
            model = self._kinds.rates[kinds]
            rates[:, level] = rng.beta(BELIEF * model + succeeded, BELIEF * (1 - model) + failed)
            belief = self._kinds.after[kinds]
        return rates.clip(1e-3, 1 - 1e-3)


class _Kinds:
    """What samples at a level may be like: their success rates p ~ Beta(a, b), for a grid of means and widths.

    Attributes:
        rates: (kinds, successes, failures) of the next rollout at a place, (a + s) / (a + b + s + f).
        after: (kinds, kinds) log of how likely the samples that pass are of another kind at the next level: those that
            pass are better than all were, p ~ Beta(a + needed, b + f), and a level is a little harder than that before.
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
        # how a level is passed: the share of samples that get there by f failures
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
        """(kinds,) log of how well what was seen at the places of a level fits each."""
        return (self._logs[0] * succeeded + self._logs[1] * failed).sum(axis=(1, 2))


def rollouts_ahead(
    rates: Float[np.ndarray, "draws levels successes failures"],
) -> Float[np.ndarray, "draws levels successes failures"]:
    """Return expected rollouts from each place to the end of the search.

    E(i, s, f) = 1 + p E(i, s+1, f) + (1 − p) E(i, s, f+1), where a level that is passed leads to E(i+1, 0, 0) and one
    that is failed to 0.

    Args:
        rates: p, how often the next rollout at a place succeeds.
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
