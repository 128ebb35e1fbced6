"""VADE: variance-aware sampling by Thompson draws of the information gain, with a prior that decays on two scales.

Hu et al. 2025, VADE: Variance-Aware Dynamic Sampling via Online Sample-Level Difficulty Estimation for Multimodal RL,
arXiv 2511.18902. Each prompt has a Beta(α, β) of its success rate; the prompts with the highest

    p (1 − p)²,   p ~ Beta(α, β),

are rolled out. Old evidence decays on two scales: with every generation the counts of all prompts, as the model
changes, and with every group the prompt's own, as it was just trained on:

    α ← 1 + d_all (α − 1);   α ← 1 + d_own (α − 1) + s, where it has a group with s successes;   β likewise.

Objective and the two scales are the paper's as its abstract and others cite them. Its text was not at hand: the form of
the decay and d_all = 0.99, d_own = 0.5 are ours.
"""

from __future__ import annotations

import numpy as np

from hardsample.trainer import StatefulPolicy, Weights

DECAY_ALL, DECAY_OWN = 0.99, 0.5


class VADE(StatefulPolicy):
    """Keep the decayed successes and failures of each prompt, which are α − 1 and β − 1."""

    pooled = True

    def __init__(self, info):
        super().__init__(info)
        self.successes, self.failures = np.zeros(info.size), np.zeros(info.size)

    def weights(self, view, context):
        rate = context.rng.beta(1 + self.successes[view.rows], 1 + self.failures[view.rows])
        return Weights(rate * (1 - rate) ** 2)

    def observe(self, rows, rewards, outcomes, step):
        graded = outcomes.attempts > 0
        touched, group = np.unique(rows[graded], return_inverse=True)
        lost = outcomes.attempts - outcomes.successes
        for counts, new in ((self.successes, outcomes.successes), (self.failures, lost)):
            counts *= DECAY_ALL
            counts[touched] = DECAY_OWN * counts[touched] + np.bincount(group, new[graded], len(touched))
