"""VCRL: variance-based curriculum, with a bank of prompts whose groups had much variance.

Jiang et al. 2025, VCRL: Variance-based Curriculum Reinforcement Learning for Large Language Models, arXiv 2509.19803. A
group with k successes in G completions has

    p = σ² / σ²_max,   σ² = k (G − k) / (G (G − 1)),   σ²_max the same at k = ⌊G/2⌋;

groups with p < κ are replaced by prompts of the bank, whose priority P is a moving average with momentum, P ← μ P + (1
− μ) p. Here as weights of the draws: with probability ℓ, the share of groups with p < κ of late, a draw is from the
bank (P ≥ κ) in proportion to P, else it is uniform over all prompts. Together with refill (`dynamic_sampling`).

Left out, as a policy cannot do it: groups with 0 < p < κ are trained on (refill replaces those of p = 0), and the bank
gives prompts to roll out anew, not stored rollouts. The paper's text was not at hand: κ = 0.3, μ = 0.9 and the average
of ℓ over some ten generations are ours.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer

from hardsample.trainer import StatefulPolicy, Weights

THRESHOLD, MOMENTUM = 0.3, 0.9


def relative_variance(
    successes: Integer[np.ndarray, " groups"], attempts: Integer[np.ndarray, " groups"]
) -> Float[np.ndarray, " groups"]:
    """Return σ² / σ²_max of groups with some successes of some attempts; 0 for a group of one."""
    most = (attempts // 2) * (attempts - attempts // 2)
    return successes * (attempts - successes) / np.maximum(most, 1)


class VCRL(StatefulPolicy):
    """Keep the priority of each prompt (−1: not met yet), and the share of groups with little variance."""

    def __init__(self, info):
        super().__init__(info)
        self.priority = np.full(info.size, -1.0)
        self.lacking = 0.0

    def weights(self, view, context):
        bank = np.where(self.priority >= THRESHOLD, self.priority, 0.0)
        total = bank.sum()
        lacking = self.lacking if total else 0.0
        return Weights((1 - lacking) / self.info.size + lacking * bank[view.rows] / max(total, 1e-12))

    def observe(self, rows, rewards, outcomes, step):
        graded = outcomes.attempts > 0
        if not graded.any():
            return
        rows, share = rows[graded], relative_variance(outcomes.successes[graded], outcomes.attempts[graded])
        old = self.priority[rows]
        self.priority[rows] = np.where(old < 0, share, MOMENTUM * old + (1 - MOMENTUM) * share)
        self.lacking = MOMENTUM * self.lacking + (1 - MOMENTUM) * float((share < THRESHOLD).mean())
