"""What features say of every sample's success rate, met or not, learnt from the groups that training has rolled out.

Before each draw a predictor (`hardsample.prediction.predictor`) is fitted on the discounted counts of the samples with
evidence. It gives every sample a Beta prior; a sample's own evidence is added to that. How much the prior weighs, its
α + β, is what held-out predictions have been worth so far: where features say nothing it is the base rate's. A sample
with evidence gets the prediction that its own counts took no part in, so that nothing counts twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from hardsample.metrics.beta import PRIOR
from hardsample.prediction.predictor import Prediction, Predictor, Skill, fit, measure
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.sampler import POOL, draw_uniform, generator
from hardsample.trainer.selection.states import StateDict, StateError, load_into

MOST_REFERENCES = 4096
"""The samples with the most evidence that are fitted on."""
LEAST_COUNT = 0.5
"""Discounted rollouts below which a sample is no reference any more."""
WINDOW = 512
"""Groups that the logged skill is measured on: the last ones."""
FEWEST_MEASURED = 32
STREAM_FEATURES, STREAM_CANDIDATES = 5, 8
"""Streams of `sampler.generator`: for the samples whose features are read anew, and those whose are read first."""
STATE_VERSION = 1
READ = "read"
"""Of the saved state: the samples that have features, and these."""


class FeaturePrior:
    """Beta priors of all samples by their features.

    Args:
        features: (samples, columns) float16, kept as given; NaN where unknown.
        blocks: columns of each block of features, see `predictor.Inputs`.
        fingerprint: of the dataset and the features, for the saved state.
        reads: whether features come as training goes, by `replace`; the array that is given is then filled.

    Attributes:
        read: (samples,) which have features, if they come as training goes; None if all are there.
        predictor: as last fitted; None before the first fit.
        replaced: whether training replaced any features.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "samples columns"],
        blocks: Sequence[int],
        fingerprint: str = "",
        reads: bool = False,
    ) -> None:
        self.features, self.blocks, self.fingerprint = features, tuple(blocks), fingerprint
        self.read: Bool[np.ndarray, " samples"] | None = np.zeros(len(features), dtype=bool) if reads else None
        self.predictor: Predictor | None = None
        self.replaced = False
        self._references: Rows = np.empty(0, dtype=np.int64)
        self._measured = np.zeros((WINDOW, 4), dtype=np.float32)
        self._measurements = np.zeros(1, dtype=np.int64)

    def refit(self, rows: Rows, successes: Float[np.ndarray, " rows"], failures: Float[np.ndarray, " rows"]) -> None:
        """Fit the predictor anew.

        Args:
            rows: (rows,) samples with evidence, ascending.
            successes: (rows,) discounted to now.
            failures: (rows,) likewise.
        """
        tries = successes + failures
        known = tries >= LEAST_COUNT
        if self.read is not None:
            known &= self.read[rows]
        rows, successes, tries = rows[known], successes[known], tries[known]
        if len(rows) > MOST_REFERENCES:
            kept = np.sort(np.argsort(-tries, kind="stable")[:MOST_REFERENCES])
            rows, successes, tries = rows[kept], successes[kept], tries[kept]
        self._references = rows
        self.predictor = fit(self.features[rows], successes, tries, self.blocks)

    def of(self, rows: Rows | slice) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Return α and β of the prior of each sample; Beta(½, ½) before the first fit.

        Args:
            rows: samples, or a slice of them.
        """
        if isinstance(rows, slice):
            rows = np.arange(len(self.features))[rows]
        if self.predictor is None:
            return np.full(len(rows), PRIOR), np.full(len(rows), PRIOR)
        prediction = self.predictor.predict(self.features[rows])
        alpha, beta = prediction.alpha.copy(), prediction.beta.copy()
        if len(self._references):
            place = np.minimum(np.searchsorted(self._references, rows), len(self._references) - 1)
            fitted = self._references[place] == rows
            alpha[fitted] = self.predictor.held_out.alpha[place[fitted]]
            beta[fitted] = self.predictor.held_out.beta[place[fitted]]
        return alpha, beta

    def record(self, rows: Rows, successes: Float[np.ndarray, " rows"], attempts: Float[np.ndarray, " rows"]) -> None:
        """Remember what was predicted of some groups, and what then came; call it before they are learnt from."""
        graded = attempts > 0
        if self.read is not None:
            graded &= self.read[rows]
        if self.predictor is None or not self.predictor.skill.useful or not graded.any():
            return
        alpha, beta = self.of(rows[graded])
        pairs = np.stack([alpha, beta, successes[graded], attempts[graded]], axis=1)
        for pair in pairs:
            self._measured[self._measurements[0] % WINDOW] = pair
            self._measurements += 1

    def skill(self) -> Skill | None:
        """Return what the last predictions were worth against the groups that then came; None while there are few."""
        count = min(int(self._measurements[0]), WINDOW)
        if count < FEWEST_MEASURED:
            return None
        alpha, beta, wins, tries = self._measured[:count].T.astype(np.float64)
        return measure(Prediction(alpha, beta), wins, tries)

    def replace(self, rows: Rows, features: Float[np.ndarray, "rows columns"]) -> None:
        """Replace the features of some samples by those of the model as it is now, or add them.

        Args:
            rows: (rows,) samples.
            features: (rows, columns) the first columns; a row of NaN is left as it was. Kinds of samples stay.
        """
        if self.read is not None:
            self.read[rows] = True
        elif not self.replaced:  # the array that was given stays as it is
            self.features, self.replaced = np.array(self.features), True
        known = ~np.isnan(features).all(axis=1)
        self.features[rows[known], : features.shape[1]] = features[known]

    def state_dict(self) -> StateDict:
        """Return the measurements, and the features if training replaced any (not copied)."""
        state: StateDict = {"version": STATE_VERSION, "size": len(self.features), "fingerprint": self.fingerprint}
        state |= {"measured": self._measured, "measurements": self._measurements, "replaced": self.replaced}
        if self.read is not None:
            state |= {"reads": True, READ: {"rows": np.flatnonzero(self.read), "features": self.features[self.read]}}
        return state | ({"features": self.features} if self.replaced else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: the version, the dataset or its features differ.
        """
        if self.read is not None and READ in state and state.get("fingerprint") == self.fingerprint:
            rows = state[READ]["rows"]
            self.read[:] = False
            self.replace(rows, state[READ]["features"])
        elif state.get("replaced"):
            self.replace(np.empty(0, dtype=np.int64), self.features[:0, :1])
        saved, own = (str(part).rpartition("-") for part in (state.get("fingerprint"), self.fingerprint))
        if saved[0] == own[0] and saved[2] != own[2]:
            raise StateError(
                f"the checkpoint was saved with other features ({saved[2]}) than this run has ({own[2]}): resume with "
                "the features that it was saved with, or start a new run from its weights"
            )
        load_into(self.state_dict(), state, "feature prior")


class FeatureReading:
    """Which samples have their features read, and when.

    Args:
        prior: that learns from them; None: no features are read.
        candidates: new samples before each generation, if features come as training goes.
        every: steps after which features are read anew from the model as it is then; 0: never.
        seed: of the training.

    Attributes:
        refreshed: step of the last reading anew.
    """

    def __init__(self, prior: FeaturePrior | None, candidates: float, every: int, seed: int) -> None:
        self.prior, self.candidates, self.every, self.seed = prior, math.ceil(candidates), every, seed
        self.refreshed = 0

    def due(self, step: int) -> bool:
        """Return whether features are to be read before the next draw."""
        new = self.prior is not None and self.prior.read is not None and not self.prior.read.all()
        return new or self._again(step)

    def _again(self, step: int) -> bool:
        return self.prior is not None and self.every > 0 and step - self.refreshed >= self.every

    def choose(self, step: int, batch: int) -> Rows:
        """Choose the samples whose features are read: new ones, and when it is time up to `POOL` known ones; all at
        random.

        Args:
            step: optimizer steps done.
            batch: number of the generation.
        """
        assert self.prior is not None, "features are due where there are some"
        size, read = len(self.prior.features), self.prior.read
        new = again = np.empty(0, dtype=np.int64)
        if read is not None:
            known = np.flatnonzero(read)
            wanted = min(self.candidates, size - len(known))
            new = draw_uniform(wanted, size, known, generator(self.seed, batch, STREAM_CANDIDATES))
        if self._again(step):
            self.refreshed = step
            again = draw_uniform(min(POOL, size), size, again, generator(self.seed, step, STREAM_FEATURES))
            again = again if read is None else again[read[again]]
        return np.sort(np.concatenate([new, again]))
