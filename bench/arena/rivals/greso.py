"""GRESO: skip, before rolling out, a prompt whose last groups had zero variance.

Zheng et al. 2025, Act Only When It Pays: Efficient Reinforcement Learning for LLM Reasoning via Selective Rollouts,
arXiv 2506.02177. Each epoch walks over all prompts in random order; a prompt is rolled out with probability

    max(p^k, 0.01),   p = p_easy if its last group was all right, p_hard if all wrong,

with k the number of its last groups in a row that had zero variance (0: always rolled out). After every generation
p_easy falls by 0.01 if the share of all-right groups is at its target or above, else it rises by 0.01; likewise p_hard
with all-wrong groups. The targets share 25 % as 1 : 2, and both p stay from 0.05 to 0.95. The method includes refill
(`dynamic_sampling`). As in the authors' program, p moves from the second epoch on: a training that meets every prompt
at most once does not differ from refill alone.

The floor of 0.01 and the split 1 : 2 are second-hand, not checked against the paper's text. Here the coins of an epoch
are tossed when it begins, and compared with the probabilities as they are at each draw.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer

from hardsample.trainer import StatefulPolicy, Weights

TARGET_EASY, TARGET_HARD = 0.25 / 3, 0.25 * 2 / 3
START, STEP, LEAST, MOST, LEAST_CHANCE = 0.5, 0.01, 0.05, 0.95, 0.01


class GRESO(StatefulPolicy):
    """Keep of each prompt its zero-variance groups in a row, and whether it was met in this epoch."""

    def __init__(self, info):
        super().__init__(info)
        self.in_a_row = np.zeros(info.size, dtype=np.int32)
        self.easy, self.met = np.zeros(info.size, dtype=bool), np.zeros(info.size, dtype=bool)
        self.p_easy = self.p_hard = START
        self.epoch = 0
        self.coins = self._toss()

    def _toss(self) -> Float[np.ndarray, " samples"]:
        rng = np.random.default_rng([self.info.seed, self.epoch])
        return rng.random(self.info.size, dtype=np.float32)

    def chance(self, rows: Integer[np.ndarray, " rows"] | slice) -> Float[np.ndarray, " rows"]:
        """Return the probability that each sample is rolled out when the epoch comes to it."""
        p = np.where(self.easy[rows], self.p_easy, self.p_hard)
        return np.maximum(p ** self.in_a_row[rows], LEAST_CHANCE)

    def rolled_out(self, rows: Integer[np.ndarray, " rows"] | slice) -> Bool[np.ndarray, " rows"]:
        """Return which samples are still to be rolled out in this epoch."""
        return ~self.met[rows] & (self.coins[rows] < self.chance(rows))

    def weights(self, view, context):
        return Weights(self.rolled_out(view.rows).astype(np.float64))

    def observe(self, rows, rewards, outcomes, step):
        self.met[rows] = True
        graded = outcomes.attempts > 0
        rows, zero = rows[graded], ~outcomes.spread[graded]
        right = 2 * outcomes.successes[graded] >= outcomes.attempts[graded]
        self.in_a_row[rows] = np.where(zero, self.in_a_row[rows] + 1, 0)
        self.easy[rows] = right
        if self.epoch and len(rows):
            self.p_easy = _moved(self.p_easy, (zero & right).mean(), TARGET_EASY)
            self.p_hard = _moved(self.p_hard, (zero & ~right).mean(), TARGET_HARD)
        if self.rolled_out(slice(None)).sum() < self.info.prompts:
            self.epoch += 1
            self.met[:], self.coins = False, self._toss()


def _moved(p: float, share: float, target: float) -> float:
    return float(np.clip(p + (-STEP if share >= target else STEP), LEAST, MOST))
