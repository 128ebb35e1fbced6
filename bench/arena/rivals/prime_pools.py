"""Difficulty pools of prime-rl (PrimeIntellect, https://github.com/PrimeIntellect-ai/prime-rl).

The mean reward of a prompt's last group puts it into a pool, which has a weight:

    hard: mean ≤ 0.25, 0.2;   normal: mean ≤ 0.75, or not met yet, 1;   easy: mean < 1, 0.2;   solved: mean = 1, 0.

In the program's defaults of 2026 a prompt of mean 1 is in the easy pool; here it is not drawn again. Unlike there, a
prompt is not drawn twice into a batch.
"""

from __future__ import annotations

import numpy as np

from hardsample.trainer import StatefulPolicy, Weights

THRESHOLDS, WEIGHTS = (0.25, 0.75), (0.2, 1.0, 0.2)
NOT_MET = 0.5
"""A mean reward that lies in the normal pool."""


class PrimePools(StatefulPolicy):
    """Keep the mean reward of each prompt's last group."""

    def __init__(self, info):
        super().__init__(info)
        self.mean = np.full(info.size, NOT_MET)

    def weights(self, view, context):
        mean = self.mean[view.rows]
        pool = np.searchsorted(THRESHOLDS, mean)  # a mean at a threshold belongs to the harder pool
        return Weights(np.where(mean >= 1, 0.0, np.array(WEIGHTS)[pool]))

    def observe(self, rows, rewards, outcomes, step):
        graded = outcomes.attempts > 0
        self.mean[rows[graded]] = np.nanmean(rewards[graded], axis=1)
