"""The failure threshold λ* of each sample during training: stored scores set it, masked probes move it.

Arrays over the whole dataset, 22 bytes a sample at ten ratios. A level counts as failed when the posterior probability
that its accuracy is under τ passes one half.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from hardsample.kernels.keys import ratio_units
from hardsample.metrics.beta import PRIOR, beta_cdf
from hardsample.trainer.selection.states import StateDict, load_into

STORED_WEIGHT = 4.0
"""Most that a stored score counts for, in rollouts: it was made at another temperature."""
PROBE_CAP = 255
NO_SCORE = -1
"""λ* of a sample without a PISM score, in `Levels.level`."""

Rows = Integer[np.ndarray, "rows"]


class Levels:
    """The arrays, and how probes change them.

    Args:
        size: samples in the dataset.
        ratios: Λ of the scores, mask ratios, ascending from 0, at most 127.
        tau: τ, above 0 to 1.

    Attributes:
        probe_successes: (size, ratios) uint8, masked probes graded as successes.
        probe_attempts: (size, ratios) uint8, masked probes.
        scored_level: (size,) int8, index of λ* in `ratios` by the scores; len(ratios) if none fails; −1 if not scored.
        level: (size,) int8, the same, now.
    """

    ARRAYS = ("probe_successes", "probe_attempts", "scored_level", "level")

    def __init__(self, size: int, ratios: tuple[float, ...], tau: float) -> None:
        self.ratios, self.tau = tuple(ratios), tau
        self.probe_successes = np.zeros((size, len(self.ratios)), dtype=np.uint8)
        self.probe_attempts = np.zeros((size, len(self.ratios)), dtype=np.uint8)
        self.scored_level = np.full(size, NO_SCORE, dtype=np.int8)
        self.level = np.full(size, NO_SCORE, dtype=np.int8)

    def seed(self, rows: Rows, failure_thresholds: Float[np.ndarray, "rows"], scored: Bool[np.ndarray, "rows"]) -> None:
        """Load λ* from scores.

        Args:
            rows: (rows,) samples, unique.
            failure_thresholds: (rows,) λ*; NaN if no ratio fails.
            scored: (rows,) whether the sample has a PISM score at all.

        Raises:
            ValueError: a λ* is not among `ratios`.
        """
        units = {ratio_units(ratio): index for index, ratio in enumerate(self.ratios)}
        levels = np.full(len(rows), len(self.ratios), dtype=np.int8)
        for value in np.unique(failure_thresholds[~np.isnan(failure_thresholds)]):
            if ratio_units(float(value)) not in units:
                raise ValueError(f"a failure threshold is {value}, must be one of {self.ratios}: use those of run.json")
            levels[failure_thresholds == value] = units[ratio_units(float(value))]
        self.level[rows] = self.scored_level[rows] = np.where(scored, levels, NO_SCORE)

    def next_probe(self, rows: Rows) -> Integer[np.ndarray, "rows"]:
        """Return the level to probe of each sample next: λ* or the level below, whichever has fewer probes (λ* first).

        Args:
            rows: (rows,) samples.

        Returns:
            Indices into `ratios`, from 1: λ* = 0 is probed at the first level above it, none at the last. −1 for a
            sample without a PISM score.
        """
        last = len(self.ratios) - 1
        level = self.level[rows].astype(np.int64)
        at = np.minimum(np.maximum(level, 1), last)
        below = np.where((level > 1) & (level <= last), at - 1, at)
        chosen = np.where(self.probe_attempts[rows, below] < self.probe_attempts[rows, at], below, at)
        return np.where((level == NO_SCORE) | (last == 0), NO_SCORE, chosen)

    def observe(
        self,
        rows: Rows,
        levels: Integer[np.ndarray, "rows"],
        successes: Integer[np.ndarray, "rows"],
        attempts: Integer[np.ndarray, "rows"],
    ) -> None:
        """Add masked probes and move λ*.

        When a level's attempts would pass 255, successes and attempts are both halved until they fit, successes
        rounded to the nearest, halves up: the posterior keeps its mean (to 1/255) and forgets some of its weight.

        Args:
            rows: (rows,) samples with a PISM score; a sample may be repeated.
            levels: (rows,) indices into `ratios`, from 1.
            successes: (rows,) probes graded as successes.
            attempts: (rows,) probes graded.

        Raises:
            ValueError: a row or level is out of range, a sample has no PISM score, or counts are impossible.
        """
        rows, levels = np.asarray(rows, dtype=np.int64), np.asarray(levels, dtype=np.int64)
        wins, tries = np.asarray(successes, dtype=np.int64), np.asarray(attempts, dtype=np.int64)
        if not len(rows) == len(levels) == len(wins) == len(tries):
            raise ValueError(f"{len(rows)} rows, {len(levels)} levels, {len(wins)} and {len(tries)} counts: pair them")
        if not len(rows):
            return
        check_rows(rows, len(self.level))
        if levels.min() < 1 or levels.max() >= len(self.ratios):
            raise ValueError(f"levels reach from {levels.min()} to {levels.max()}, must be 1 to {len(self.ratios) - 1}")
        if (wins < 0).any() or (wins > tries).any():
            raise ValueError("a probe has more successes than attempts, or fewer than none: count graded probes")
        if (self.level[rows] == NO_SCORE).any():
            raise ValueError("a probed sample has no PISM score, so no λ* to move: probe where next_probe is above 0")
        cells, cell_of = np.unique(rows * len(self.ratios) + levels, return_inverse=True)
        row, level = cells // len(self.ratios), cells % len(self.ratios)
        won = self.probe_successes[row, level] + np.bincount(cell_of, weights=wins).astype(np.int64)
        tried = self.probe_attempts[row, level] + np.bincount(cell_of, weights=tries).astype(np.int64)
        while (full := tried > PROBE_CAP).any():
            half = tried // 2
            won = np.where(full, (2 * won * half + tried) // np.maximum(2 * tried, 1), won)
            tried = np.where(full, half, tried)
        self.probe_successes[row, level], self.probe_attempts[row, level] = won, tried
        self._move(np.unique(rows), zero_passes=False)

    def observe_unmasked(
        self, rows: Rows, successes: Float[np.ndarray, "rows"], failures: Float[np.ndarray, "rows"]
    ) -> None:
        """Move samples of λ* = 0 off that level when their rollouts say that it passes: training itself probes ratio 0.

        Args:
            rows: (rows,) samples, unique, with or without a PISM score.
            successes: (rows,) discounted rollouts graded as successes, stored ones included.
            failures: (rows,) likewise.
        """
        stuck = (self.level[rows] == 0) & (successes >= 1)
        passes = beta_cdf(self.tau, PRIOR + successes[stuck], PRIOR + failures[stuck]) <= 0.5
        self._move(rows[stuck][passes], zero_passes=True)

    def failure(self, rows: Rows, levels: Integer[np.ndarray, "rows"]) -> Float[np.ndarray, "rows"]:
        """Return the posterior probability that a sample's accuracy at a level is under τ.

        P(q < τ) for q ~ Beta(½ + s, ½ + f), with s and f the masked probes at the level and what the scores say of it:
        one success at a level under the stored λ*, four failures at that λ*, nothing above.

        Args:
            rows: (rows,) samples.
            levels: (rows,) indices into `ratios`; at ratio 0 only the scores count, since no probe is masked at 0.

        Returns:
            (rows,) probabilities.
        """
        scored, wins = self.scored_level[rows], self.probe_successes[rows, levels].astype(np.float64)
        losses = self.probe_attempts[rows, levels] - wins + STORED_WEIGHT * (levels == scored)
        return beta_cdf(self.tau, PRIOR + wins + (levels < scored), PRIOR + losses)

    def state_dict(self) -> StateDict:
        """Return the arrays (not copied) and the ratios that they are of."""
        return {"ratios": list(self.ratios)} | {name: getattr(self, name) for name in self.ARRAYS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: the ratios or the shape of an array differ.
        """
        load_into(self.state_dict(), state, "levels")

    def _move(self, rows: Rows, zero_passes: bool) -> None:
        """Set λ* to the first level below it that failed, else to the first level from it on that has not passed.

        A level failed if P(q < τ) > ½, and only if it was probed. It passed if P(q < τ) ≤ ½ and a probe succeeded: of
        a level never probed, or probed once without success, the prior alone would say that it passes.
        """
        if not len(rows):
            return
        sample, level = np.nonzero(self.probe_attempts[rows])
        under = self.failure(rows[sample], level) > 0.5
        failed, passed = np.zeros((2, len(rows), len(self.ratios)), dtype=bool)
        failed[sample, level] = under
        passed[sample, level] = ~under & (self.probe_successes[rows[sample], level] > 0)
        passed[:, 0] = zero_passes
        ends = np.where(np.arange(len(self.ratios)) < self.level[rows, None], failed, ~passed)
        self.level[rows] = np.where(ends.any(axis=1), ends.argmax(axis=1), len(self.ratios))


def check_rows(rows: Rows, size: int) -> None:
    """Check rows: a negative row would count from the end.

    Raises:
        ValueError: a row is out of range.
    """
    if len(rows) and not (rows.min() >= 0 and rows.max() < size):
        raise ValueError(f"rows reach from {rows.min()} to {rows.max()}, must be 0 to {size - 1}: use dataset rows")
