"""Adaptive search: the next rollouts where they tell most about the strata, until these are known well enough.

Rollouts are planned in rounds. A round is a function of the grades of all earlier rounds, the settings, the ids and the
features, so neither the batch size nor the engine changes what is asked. In a round a sample gets at most one rollout
(the first references of a small budget: two), at the level whose grade is expected to lower the entropy of its label
most,

    gain(i) = H(label) − Σ_g P(grade g at level i) · H(label | grade g),

under the posterior over ladder types (`ladder_model`). A sample is closed when a label has the probability asked for,
or when no level tells anything more: the label of a full search is random itself for a sample at a border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from hardsample.kernels.keys import mask_key
from hardsample.metrics.options import PismConfig
from hardsample.metrics.strata import STRATA
from hardsample.prediction.ladder_model import Population, fit_population, in_chunks, ladder_types
from hardsample.prediction.predictor import COUNT_NOISE
from hardsample.prediction.ridge import fit_ridge

BUDGET_ROUNDS = 12
"""Rounds that a budget is spread over, at least."""
ENOUGH_FOR_ALL = 2
"""Rollouts a sample that a budget needs, for every sample to be asked in the first round; the shapes of ladders are
learnt from the other rounds."""
LEAST_GAIN = 0.01
"""Expected entropy, in nats, that a rollout must save."""
MOST_FITTED = 4_096
"""Samples with rollouts that the population is fitted on, and as many without."""
FEWEST_FITTED = 64
"""Samples with rollouts from which on features are used."""
LEAST_SIGNIFICANCE = 3.0
"""Standard errors by which a held-out score must correlate with its target, to be used."""
INTERVAL = (0.1, 0.9)
"""Quantiles that bound λ*."""
GROUP = 8
"""Rollouts of the group whose signal is predicted."""
_TIE = 4
"""Decimals of a gain; gains that agree in them are ordered by id."""


@dataclass(frozen=True, eq=False)
class Round:
    """Rollouts of one round; the realization of each is the number of its sample's earlier ones at that level."""

    rows: Int[np.ndarray, " rollouts"]
    levels: Int[np.ndarray, " rollouts"]
    open: int
    """Samples with an image whose label is not known well enough yet."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of every sample."""

    labels: Float[np.ndarray, "samples 4"]
    """Probability that a full search with fresh masks gives each stratum, in the order of `STRATA`."""
    thresholds: Int[np.ndarray, "samples 3"]
    """Level of λ*: lower end of the 80 % interval, median, upper end; the number of levels where no ratio fails."""
    success_rate: Float[np.ndarray, " samples"]
    """Expected, at λ = 0."""
    signal: Float[np.ndarray, " samples"]
    """Probability that `GROUP` rollouts at λ = 0 have both successes and failures."""

    @cached_property
    def strata(self) -> list[str]:
        """The most probable stratum of each sample."""
        return [STRATA[label] for label in self.labels.argmax(axis=1)]


class AdaptiveSearch:
    """Counts of all samples, and what to ask next; arrays only.

    Args:
        config: settings of the search.
        ids: of the samples.
        has_image: whether each has an image; one without has a success rate at λ = 0 and no stratum.
        seed: of the run, for the order of samples that are alike.
        budget: most rollouts; None for no bound.

    Attributes:
        successes: (samples, levels) rollouts graded 1.
        attempts: (samples, levels) rollouts graded.
    """

    def __init__(
        self,
        config: PismConfig,
        ids: Sequence[str],
        has_image: Sequence[bool],
        seed: int,
        budget: int | None = None,
    ) -> None:
        self.config, self.budget = config, budget
        self.has_image = np.array(has_image, dtype=bool)
        keys = (mask_key(seed, sample, b"adaptive") for sample in ids)
        self._rank = np.argsort(np.argsort(np.array([low | high << 32 for low, high in keys], dtype=np.uint64)))
        self.successes = np.zeros((len(ids), len(config.ratios)), dtype=np.int32)
        self.attempts = np.zeros_like(self.successes)
        self._dropped = np.zeros(len(ids), dtype=bool)
        self._features: Float[np.ndarray, "samples columns"] | None = None
        self._blocks: Sequence[int] = ()

    def use_features(self, features: Float[np.ndarray, "samples columns"], blocks: Sequence[int]) -> None:
        """Learn from features too.

        Args:
            features: float16, NaN where unknown; a row of NaN for a sample without any.
            blocks: columns of each block, see `ridge.Inputs`.
        """
        self._features, self._blocks = features, blocks

    def add(self, row: int, successes: Sequence[int], attempts: Sequence[int]) -> None:
        """Count graded rollouts of a sample, at each level."""
        self.successes[row] += np.asarray(successes, dtype=np.int32)
        self.attempts[row] += np.asarray(attempts, dtype=np.int32)

    def drop(self, row: int) -> None:
        """Leave a sample out from now on."""
        self._dropped[row] = True

    @property
    def spent(self) -> int:
        """Number of graded rollouts."""
        return int(self.attempts.sum())

    def plan(self) -> Round:
        """Return the next round; without rollouts if the search is over."""
        size = len(self.attempts)
        if self.budget is not None:
            size = min(max(1, -(-self.budget // BUDGET_ROUNDS)), self.budget - self.spent)
        pictured = np.flatnonzero(self.has_image & ~self._dropped)
        if not self.attempts.any():
            return self._first_round(size, pictured)
        gains, levels, probabilities = self._gains(pictured)
        is_open = (probabilities < self.config.confidence) & (gains > LEAST_GAIN)
        rows, levels, gains = pictured[is_open], levels[is_open], gains[is_open]
        if size <= 0:
            return Round(rows[:0], levels[:0], len(rows))
        chosen = np.lexsort((self._rank[rows], -np.round(gains, _TIE)))[:size]
        blank = self._imageless(size - len(chosen))
        levels = np.concatenate([levels[chosen], np.zeros_like(blank)])
        return _by_row(np.concatenate([rows[chosen], blank]), levels, len(rows))

    def _first_round(self, size: int, pictured: Int[np.ndarray, " rows"]) -> Round:
        """Ask all samples once at λ = 0 if the budget has enough, else references twice."""
        if asks_all_first(self.budget, len(self.attempts)):
            blank = self._imageless(len(self.attempts))
            rows = np.concatenate([pictured, blank])
            return _by_row(rows, np.zeros_like(rows), len(pictured))
        references = pictured[np.argsort(self._rank[pictured])]
        middle = len(self.config.ratios) // 2
        rows = np.repeat(references, 2)[:size]
        levels = np.where(np.arange(len(rows)) % 2, middle, 0)
        blank = self._imageless(size - len(rows))
        return _by_row(np.concatenate([rows, blank]), np.concatenate([levels, np.zeros_like(blank)]), len(pictured))

    def _imageless(self, most: int) -> Int[np.ndarray, " rows"]:
        """Return samples without an image that have less than K rollouts."""
        rows = np.flatnonzero(~self.has_image & ~self._dropped & (self.attempts[:, 0] < self.config.num_masks))
        return rows[np.argsort(self._rank[rows])][: max(most, 0)]

    def _gains(
        self, rows: Int[np.ndarray, " rows"]
    ) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Return each sample's largest gain of a rollout, its level, and the probability of the likeliest label."""
        population, scores = self._fit()
        levels = len(self.config.ratios)
        types = population.types
        solving = (types.rates[:, :, None] * types.labels[:, None, :]).reshape(len(types.rates), -1).astype(np.float32)

        def gains(part: slice) -> tuple[np.ndarray, ...]:
            chunk = rows[part]
            weights = self._posterior(population, scores, chunk)
            labels = weights @ types.labels.astype(np.float32)
            solved = (weights @ solving).reshape(len(chunk), levels, len(STRATA))
            failed = labels[:, None, :] - solved
            after = _mass_entropy(solved) + _mass_entropy(failed)
            gain = _mass_entropy(labels)[:, None] - after
            gain[self.attempts[chunk] >= self.config.num_masks] = 0
            best = np.round(gain, _TIE).argmax(axis=1)
            return gain[np.arange(len(chunk)), best], best, labels.max(axis=1)

        gain, level, probability = in_chunks(len(rows), gains)
        return gain, level, probability

    def estimate(self, config: PismConfig | None = None, rows: Int[np.ndarray, " rows"] | None = None) -> Estimate:
        """Return what is known of the samples.

        Args:
            config: other bounds or another τ to label with; the ratios and K are the run's.
            rows: the samples; all by default.
        """
        population, scores = self._fit()
        types = ladder_types(config or self.config)
        rows = np.arange(len(self.attempts)) if rows is None else rows
        unmasked = types.rates[:, 0]
        rates = np.stack([unmasked, 1 - unmasked**GROUP - (1 - unmasked) ** GROUP], axis=1).astype(np.float32)

        def estimates(part: slice) -> tuple[np.ndarray, ...]:
            weights = self._posterior(population, scores, rows[part])
            cumulated = np.cumsum(weights @ types.thresholds.astype(np.float32), axis=1)
            levels = [(cumulated < share - 1e-6).sum(axis=1) for share in (INTERVAL[0], 0.5, INTERVAL[1])]
            return weights @ types.labels.astype(np.float32), np.stack(levels, axis=1), weights @ rates

        labels, thresholds, expected = in_chunks(len(rows), estimates)
        thresholds = np.minimum(thresholds, len(self.config.ratios))
        return Estimate(labels, thresholds, expected[:, 0], expected[:, 1])

    def _posterior(
        self, population: Population, scores: Float[np.ndarray, "samples scores"] | None, rows: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows types"]:
        return population.posterior(self.successes[rows], self.attempts[rows], None if scores is None else scores[rows])

    def _fit(self) -> tuple[Population, Float[np.ndarray, "samples scores"] | None]:
        """Fit the population to all counts, and scores from features if they say something."""
        types = ladder_types(self.config)
        there = self.has_image & ~self._dropped
        told = there & self.attempts.any(axis=1)
        fitted = self._some(told)
        if not len(fitted):
            return Population.unknown(types), None
        population = fit_population(types, self.successes[fitted], self.attempts[fitted])
        scores = self._scores(population, fitted) if len(fitted) >= FEWEST_FITTED else None
        if scores is None:
            return population, None
        others = self._some(there & ~told)
        rows = np.concatenate([fitted, others])
        stand_for = np.repeat(
            [told.sum() / len(fitted), (there & ~told).sum() / max(len(others), 1)], [len(fitted), len(others)]
        )
        return fit_population(types, self.successes[rows], self.attempts[rows], scores[rows], stand_for), scores

    def _scores(
        self, population: Population, rows: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "samples scores"] | None:
        """Predict success rates at λ = 0 and over all ratios from features, each sample's without its own counts.

        Args:
            population: fitted to the counts alone, so that features do not confirm themselves.
            rows: samples with rollouts to learn from.

        Returns:
            Scores of all samples, NaN without features; None if features say nothing.
        """
        if self._features is None:
            return None
        known = np.isfinite(self._features).any(axis=1)
        rows = rows[known[rows]]
        if len(rows) < FEWEST_FITTED:
            return None
        targets = self._targets(population, rows)
        tries = self.attempts[rows].sum(axis=1)
        ridge = fit_ridge(self._features[rows], targets, 1 + COUNT_NOISE / tries, self._blocks)
        if ridge is None:
            return None
        useful = _correlations(ridge.held_out, targets) * np.sqrt(len(rows)) > LEAST_SIGNIFICANCE
        if not useful.any():
            return None
        scores = ridge.scores(self._features)
        scores[rows], scores[~known] = ridge.held_out, np.nan
        return scores[:, useful]

    def _targets(self, population: Population, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows 2"]:
        rates = population.types.rates
        both = np.stack([rates[:, 0], rates.mean(axis=1)], axis=1).astype(np.float32)
        (means,) = in_chunks(len(rows), lambda part: (self._posterior(population, None, rows[part]) @ both,))
        return means.astype(np.float64)

    def _some(self, among: Bool[np.ndarray, " samples"]) -> Int[np.ndarray, " rows"]:
        """Return at most `MOST_FITTED` of the samples, always the same, ascending."""
        rows = np.flatnonzero(among)
        return rows if len(rows) <= MOST_FITTED else np.sort(rows[np.argsort(self._rank[rows])[:MOST_FITTED]])


def asks_all_first(budget: int | None, samples: int) -> bool:
    """Return whether the first round asks every sample at λ = 0, whose prefill shows its features."""
    return budget is None or budget >= ENOUGH_FOR_ALL * samples


def _by_row(rows: Int[np.ndarray, " rollouts"], levels: Int[np.ndarray, " rollouts"], is_open: int) -> Round:
    order = np.lexsort((levels, rows))
    return Round(rows[order], levels[order], is_open)


def _mass_entropy(mass: Float[np.ndarray, "*samples labels"]) -> Float[np.ndarray, "*samples"]:
    """Return Σ m · H(p / m) for masses p whose sum is m: m log m − Σ p log p."""
    mass = np.maximum(mass, 1e-30)
    total = mass.sum(axis=-1)
    return total * np.log(total) - (mass * np.log(mass)).sum(axis=-1)


def _correlations(
    first: Float[np.ndarray, "samples columns"], second: Float[np.ndarray, "samples columns"]
) -> Float[np.ndarray, " columns"]:
    """Return the correlation of each column; 0 where one does not vary."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return np.where(spread > 1e-12, (first * second).sum(axis=0) / np.maximum(spread, 1e-12), 0.0)
