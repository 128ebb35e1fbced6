"""DOTS: difficulty-targeted online data selection, by attention to reference prompts that are rolled out anew.

Sun et al. 2025, Improving Data Efficiency for LLM Reinforcement Fine-tuning Through Difficulty-targeted Online Data
Selection and Rollout Replay, arXiv 2506.05316. Every few steps K = 256 random references are rolled out, which gives
their difficulty d = 1 − success rate (they are counted, and not trained on). The others' is predicted by attention from
their frozen features z to those of the references, and prompts are drawn without replacement in proportion to a
softmax:

    d_q = Σ_r a_qr d_r,   a_q = softmax over r of z_q · z_r / √columns;   draw by softmax of −|d_q − ½| / τ,  τ = 10⁻³.

In the authors' runs 256 references serve 1,024 prompts of training, two batches of 512. Both ratios are kept, so the
smaller the batch, the more steps until the references are new, and a prompt is not drawn again within 512 prompts: else
a temperature this low gives small batches the same few prompts until then. `DOTS64` has 64 references, anew for every
256 prompts, no prompt twice within 128.

Left out: the adapter and the calibration, which the authors train beforehand on other models' rollouts (here the
features are only standardised), and the rollout replay.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from hardsample.errors import ConfigError
from hardsample.trainer import StatefulPolicy, Weights

TARGET, TEMPERATURE, PROMPTS_PER_REFERENCE, BATCHES = 0.5, 1e-3, 4, 2
_CHUNK = 8192


def standardized(features: Float[np.ndarray, "samples columns"]) -> Float[np.ndarray, "samples known"]:
    """Return the columns that vary, each with mean 0 and variance 1; unknown values are 0."""
    values = np.ma.masked_invalid(features.astype(np.float32))
    scale = values.std(axis=0).filled(0)
    kept = scale > 1e-6
    return ((values - values.mean(axis=0))[:, kept] / scale[kept]).filled(0)


def attended(
    queries: Float[np.ndarray, "samples columns"],
    keys: Float[np.ndarray, "references columns"],
    values: Float[np.ndarray, " references"],
) -> Float[np.ndarray, " samples"]:
    """Return Σ_r a_qr values_r of each query, a_q = softmax over r of q · key_r / √columns."""
    result = np.empty(len(queries))
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ keys.T / np.sqrt(max(keys.shape[1], 1))
        attention = np.exp(scores - scores.max(axis=1, keepdims=True))
        result[start : start + _CHUNK] = attention @ values / attention.sum(axis=1)
    return result


class DOTS(StatefulPolicy):
    """Keep the predicted difficulty of each prompt, the groups trained on since, and what was drawn lately."""

    size = 256
    pooled = True

    def __init__(self, info):
        super().__init__(info)
        if info.features is None:
            raise ConfigError("DOTS predicts from features, and there are none: give features, a folder")
        self._features = standardized(info.features)
        self.difficulty = np.full(info.size, TARGET)
        self.met = np.zeros(info.size, dtype=bool)
        self.since = -1  # no references yet

    @property
    def pool_size(self) -> int:
        """All prompts are candidates."""
        return self.info.size

    def weights(self, view, context):
        # Where each has exponential(1) / weight, the smallest are a draw without replacement. Ranks, because weights
        # this sharp are 0 in float32 for most prompts.
        waiting = np.log(context.rng.exponential(size=len(view.rows)))
        waiting += np.abs(self.difficulty[view.rows] - TARGET) / TEMPERATURE
        places = np.empty(len(waiting))
        places[np.argsort(-waiting)] = np.arange(1, len(waiting) + 1)
        return Weights(np.where(self.met[view.rows], 0, places))

    def observe(self, rows, rewards, outcomes, step):
        batch = PROMPTS_PER_REFERENCE * self.size // BATCHES
        begun = self.since // batch
        self.since += len(rows)
        self.met[rows] = True
        if self.since // batch > begun or (~self.met).sum() < self.info.prompts:
            self.met[:] = False

    def references(self, context):
        if 0 <= self.since < PROMPTS_PER_REFERENCE * self.size:
            return np.empty(0, dtype=np.int64)
        return context.rng.permutation(self.info.size)[: self.size]

    def observe_references(self, rows, rewards, outcomes, step):
        graded = outcomes.attempts > 0
        self.since = 0
        self.met[:] = False
        if graded.any():
            difficulty = 1 - outcomes.successes[graded] / outcomes.attempts[graded]
            self.difficulty = attended(self._features, self._features[rows[graded]], difficulty)


class DOTS64(DOTS):
    """With 64 references."""

    size = 64
