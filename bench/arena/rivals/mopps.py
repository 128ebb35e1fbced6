"""MoPPS: model predictive prompt selection, by Thompson draws from a Beta posterior of each success rate.

Qu et al. 2025, Can Prompt Difficulty be Online Predicted for Accelerating RL Finetuning of Reasoning Models?, arXiv
2507.04632. After a group of n completions with s successes the prompt's posterior is

    α ← λ α + (1 − λ) α₀ + s,   β ← λ β + (1 − λ) β₀ + n − s;   α₀ = β₀ = 1,

and unchanged where there was no group. Of a random set of candidates, those are rolled out whose draw p ~ Beta(α, β) is
nearest to γ* = ½. The decay λ is 0.5 as in the authors' runs on images (Geometry3K), and there are eight candidates for
each prompt of a batch: their ratio, not their number, is kept.
"""

from __future__ import annotations

import numpy as np

from hardsample.trainer import StatefulPolicy, Weights

TARGET, DECAY, PRIOR, CANDIDATES = 0.5, 0.5, 1.0, 8


class MoPPS(StatefulPolicy):
    """Keep α and β of each prompt."""

    pooled = True

    def __init__(self, info):
        super().__init__(info)
        self.alpha, self.beta = np.full(info.size, PRIOR), np.full(info.size, PRIOR)

    @property
    def pool_size(self) -> int:
        """Candidates of a batch."""
        return CANDIDATES * self.info.prompts

    def weights(self, view, context):
        rate = context.rng.beta(self.alpha[view.rows], self.beta[view.rows])
        return Weights(1 - np.abs(rate - TARGET))

    def observe(self, rows, rewards, outcomes, step):
        graded = outcomes.attempts > 0
        touched, group = np.unique(rows[graded], return_inverse=True)
        won = np.bincount(group, outcomes.successes[graded], len(touched))
        lost = np.bincount(group, (outcomes.attempts - outcomes.successes)[graded], len(touched))
        self.alpha[touched] = DECAY * self.alpha[touched] + (1 - DECAY) * PRIOR + won
        self.beta[touched] = DECAY * self.beta[touched] + (1 - DECAY) * PRIOR + lost
