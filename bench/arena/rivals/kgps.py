"""KGPS: a Kalman filter on the logit of each prompt's success rate.

Zhu et al. 2026, Kalman Meets Curriculum: Efficient Dynamic Prompt Selection for Adaptive RL Finetuning, arXiv
2607.27610, after its abstract: its text was not at hand. Logit x of the success rate of a prompt:

    x ~ N(m, v);   v ← v + q with every generation, as the model changes;
    observed: z = logit p̂ with variance r = 1 / (n p̂ (1 − p̂)), p̂ = (s + ½) / (n + 1) of a group's s successes in n;
    K = v / (v + r),   m ← m + K (z − m),   v ← (1 − K) v.

The candidates with the highest E[p (1 − p)], p = σ(x), are rolled out: success rates near ½, and uncertain ones sooner
than those that are surely far from it. Ours are: q = 0.02, constant (the paper couples it to the size of the policy's
update, which a policy here does not see), the start m = 0, v = π²/3 (the variance of the logit of a uniform rate),
which is the largest v, and eight candidates for each prompt of a batch, as in MoPPS.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from hardsample.trainer import StatefulPolicy, Weights

PROCESS_NOISE, START_VARIANCE, CANDIDATES = 0.02, np.pi**2 / 3, 8
_NODES, _SHARES = np.polynomial.hermite_e.hermegauss(15)


def utility(mean: Float[np.ndarray, " rows"], variance: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Return E[p (1 − p)] for the logit of p normal with these means and variances, by quadrature."""
    rate = 1 / (1 + np.exp(-(mean[:, None] + np.sqrt(variance)[:, None] * _NODES)))
    return rate * (1 - rate) @ _SHARES / _SHARES.sum()


class KGPS(StatefulPolicy):
    """Keep mean and variance of each prompt's logit."""

    pooled = True

    def __init__(self, info):
        super().__init__(info)
        self.mean, self.variance = np.zeros(info.size), np.full(info.size, START_VARIANCE)

    @property
    def pool_size(self) -> int:
        """Candidates of a batch."""
        return CANDIDATES * self.info.prompts

    def weights(self, view, context):
        return Weights(utility(self.mean[view.rows], self.variance[view.rows]))

    def observe(self, rows, rewards, outcomes, step):
        graded = outcomes.attempts > 0
        touched, group = np.unique(rows[graded], return_inverse=True)
        won = np.bincount(group, outcomes.successes[graded], len(touched))
        tries = np.bincount(group, outcomes.attempts[graded], len(touched))
        self.variance = np.minimum(self.variance + PROCESS_NOISE, START_VARIANCE)
        rate = (won + 0.5) / (tries + 1)
        before = self.variance[touched]
        gain = before / (before + 1 / (tries * rate * (1 - rate)))
        self.mean[touched] += gain * (np.log(rate / (1 - rate)) - self.mean[touched])
        self.variance[touched] = (1 - gain) * before
