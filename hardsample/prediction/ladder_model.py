"""Which ladders samples of a pool have: a grid of types, their weights in the pool, and what counts say of one sample.

A sample's success rates along the mask ratios are one of T types (a, c, w): a on the whole image, falling by half at
mask ratio c, over a width w,

    q(λ) = a · S((c − λ)/w) / S(c/w),    S(x) = 1 / (1 + e^(−x)).

Each type says exactly how probable each label of a full search with fresh masks is: a level passes with the chance
that Binomial(K, q) reaches the successes that τ asks for, λ* is the first level that does not. The weights of the types
come from all counts of the pool by expectation maximisation; where to stop a ladder depends on its own grades only, so
the likelihood of early-stopped counts is that of independent rollouts. Scores from features are a noisy measurement of
the type, whose noise and slope are fitted beside the weights: if they say nothing the slope is 0. The noise has heavy
tails (Student's t), and the factor has the exponent κ under which scores predict the counts best, so that flaws of the
grid and of the noise model make nobody sure.

    P(type | counts, score) ∝ π(type) · t_ν(score | A·θ(type) + b, Σ)^κ · Π_i q_i^s_i (1 − q_i)^(n_i − s_i)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from hardsample.metrics.options import PismConfig
from hardsample.metrics.strata import STRATA, needed_successes, stratum

UNSOLVABLE = 0.002
"""Success rate of the type that stands for samples that are never solved."""
UNMASKED = (0.01, 0.03, 0.06, 0.1, 0.16, 0.25, 0.37, 0.52, 0.7, 0.86, 0.97)
"""Success rates at λ = 0 of the other types, dense where τ decides."""
HALF = tuple(round(-0.1 + 0.1 * step, 1) for step in range(13))
"""Mask ratios at which the success rate has halved, about."""
WIDTHS = (0.03, 0.1, 0.25)
ROUNDS = 20
"""Steps of expectation maximisation."""
PRIOR_SAMPLES, PRIOR_UNSOLVABLE = 8.0, 0.25
"""Weight of the prior over types, in samples, and its share of the unsolvable type."""
CHUNK = 8_192
_FLOOR = 1e-4
"""Success rates stay this far from 0 and 1: a grader, too, errs."""
_TAIL = 4.0
"""ν, degrees of freedom of a score's noise."""
_EXPONENTS = np.linspace(0, 1, 11)
"""Candidates for κ."""
_SPREAD_FLOOR = 0.05
"""Smallest standard deviation of a score around what its type says, in standard deviations of the score."""


@dataclass(frozen=True, eq=False)
class Types:
    """The grid of types, and what a full search with fresh masks says of each."""

    rates: Float[np.ndarray, "types levels"]
    """Success rates at each mask ratio."""
    labels: Float[np.ndarray, "types 4"]
    """Probabilities of the strata, in the order of `STRATA`."""
    thresholds: Float[np.ndarray, "types levels+1"]
    """Probabilities that λ* is each mask ratio; the last that no ratio fails."""
    coordinates: Float[np.ndarray, "types 3"]
    """1, log odds of the success rate at λ = 0 (bounded), mean success rate over the mask ratios."""
    prior: Float[np.ndarray, " types"]
    """Weights before any counts."""


def ladder_types(config: PismConfig) -> Types:
    """Return the types for the ratios, K, τ and bounds of a search."""
    return _types(config.ratios, config.num_masks, config.tau, config.hard_max, config.easy_min)


@lru_cache(maxsize=8)
def _types(ratios: tuple[float, ...], num_masks: int, tau: float, hard_max: float, easy_min: float) -> Types:
    a, c, w = (grid.ravel()[:, None] for grid in np.meshgrid(UNMASKED, HALF, WIDTHS, indexing="ij"))
    falling = _logistic((c - np.array(ratios)) / w) / _logistic(c / w)
    rates = np.concatenate([np.full((1, len(ratios)), UNSOLVABLE), np.clip(a * falling, _FLOOR, 1 - _FLOOR)])
    thresholds = threshold_probabilities(rates, num_masks, tau)
    labels = np.zeros((len(rates), len(STRATA)))
    bounds = PismConfig(ratios=ratios, hard_max=hard_max, easy_min=easy_min).bounds
    for level, threshold in enumerate((*ratios, None)):
        labels[:, STRATA.index(stratum(threshold, level == 0, bounds))] += thresholds[:, level]
    bounded = (rates[:, 0] + 0.02) / 1.04
    coordinates = np.stack([np.ones(len(rates)), np.log(bounded / (1 - bounded)), rates.mean(1)], axis=1)
    prior = np.full(len(rates), (1 - PRIOR_UNSOLVABLE) / (len(rates) - 1))
    prior[0] = PRIOR_UNSOLVABLE
    return Types(rates, labels, thresholds, coordinates, prior)


def threshold_probabilities(
    rates: Float[np.ndarray, "types levels"], num_masks: int, tau: float
) -> Float[np.ndarray, "types levels+1"]:
    """Return how probable each λ* is after a full search: the first level that fails, or none (last column)."""
    from scipy.stats import binom

    passing = binom.sf(needed_successes(num_masks, tau) - 1, num_masks, rates)
    reached = np.cumprod(np.concatenate([np.ones((len(rates), 1)), passing], axis=1), axis=1)
    return reached * np.concatenate([1 - passing, np.ones((len(rates), 1))], axis=1)


@dataclass(frozen=True, eq=False)
class ScoreModel:
    """Scores of a type: around its coordinates times a slope, with Student's t as noise."""

    slope: Float[np.ndarray, "3 scores"]
    covariance: Float[np.ndarray, "scores scores"]
    exponent: float = 1.0
    """κ."""

    def log_density(
        self, types: Types, scores: Float[np.ndarray, "samples scores"]
    ) -> Float[np.ndarray, "samples types"]:
        """Return κ times the log density of the scores under each type, up to a constant; 0 where a score is NaN."""
        tails = np.log1p(self.distance(types, scores) / np.float32(_TAIL))
        return np.nan_to_num(tails, nan=0.0) * np.float32(-self.exponent * (_TAIL + scores.shape[1]) / 2)

    def distance(self, types: Types, scores: Float[np.ndarray, "samples scores"]) -> Float[np.ndarray, "samples types"]:
        """Return the squared Mahalanobis distance of the scores from what each type says."""
        root = np.linalg.inv(np.linalg.cholesky(self.covariance))
        seen = (scores @ root.T).astype(np.float32)
        means = (types.coordinates @ self.slope @ root.T).astype(np.float32)
        return np.maximum((seen**2).sum(1)[:, None] - 2 * seen @ means.T + (means**2).sum(1), 0)


@dataclass(frozen=True, eq=False)
class Population:
    """Weights of the types in a pool, and what scores say of a type."""

    types: Types
    weights: Float[np.ndarray, " types"]
    score_model: ScoreModel | None = None

    @classmethod
    def unknown(cls, types: Types) -> Population:
        """Return what is believed of a pool before any rollout."""
        return cls(types, types.prior)

    def posterior(
        self,
        successes: Int[np.ndarray, "samples levels"],
        attempts: Int[np.ndarray, "samples levels"],
        scores: Float[np.ndarray, "samples scores"] | None = None,
    ) -> Float[np.ndarray, "samples types"]:
        """Return the probability of each type for each sample, float32; call it in chunks, see `in_chunks`."""
        log_weights = log_likelihood(self.types, successes, attempts)
        log_weights += np.log(self.weights).astype(np.float32)
        if scores is not None and self.score_model is not None:
            log_weights += self.score_model.log_density(self.types, scores)
        return _normalised(log_weights)


def fit_population(
    types: Types,
    successes: Int[np.ndarray, "samples levels"],
    attempts: Int[np.ndarray, "samples levels"],
    scores: Float[np.ndarray, "samples scores"] | None = None,
    counts_as: Float[np.ndarray, " samples"] | None = None,
) -> Population:
    """Fit the weights of the types, and the model of the scores, to the counts of a pool.

    Args:
        types: the grid.
        successes: rollouts graded 1 at each ratio.
        attempts: rollouts graded; samples without any are told by their scores alone.
        scores: from features, not fitted on the sample's own counts; NaN rows where there are none.
        counts_as: how many samples each stands for; one by default.

    Returns:
        The population. Samples without scores and counts change nothing.
    """
    told = np.asarray(attempts).sum(axis=1) > 0
    known = np.zeros(len(told), dtype=bool) if scores is None else np.isfinite(scores).all(axis=1)
    used = told | known
    likelihood = log_likelihood(types, successes[used], attempts[used])
    shares = np.ones(int(used.sum())) if counts_as is None else counts_as[used]
    shares = shares.astype(np.float32)
    told = told[used]
    seen = np.zeros((len(told), 0)) if scores is None else scores[used]
    both = told & known[used]  # the slope is learnt from samples with counts: the others would only agree with it
    weights, score_model = types.prior, None
    for _ in range(ROUNDS):
        logs = likelihood + np.log(weights).astype(np.float32)
        if score_model is not None:
            logs += score_model.log_density(types, seen)
        posterior = _normalised(logs)
        total = shares @ posterior if score_model is not None else shares[told] @ posterior[told]
        weights = total + PRIOR_SAMPLES * types.prior
        weights /= weights.sum()
        if both.any():
            score_model = _fit_scores(types, posterior[both], seen[both], shares[both], score_model)
    if score_model is not None:
        score_model = _best_exponent(types, weights, score_model, seen[both], likelihood[both], shares[both])
    return Population(types, weights, score_model)


def _fit_scores(
    types: Types,
    posterior: Float[np.ndarray, "samples types"],
    scores: Float[np.ndarray, "samples scores"],
    shares: Float[np.ndarray, " samples"],
    last: ScoreModel | None,
) -> ScoreModel | None:
    """Regress scores on the coordinates of types, by least squares weighted with the posterior and against outliers."""
    total = float(shares.sum())
    if total <= 2 * types.coordinates.shape[1]:
        return None
    if last is not None:
        posterior = posterior * ((_TAIL + scores.shape[1]) / (_TAIL + last.distance(types, scores)))
    posterior = posterior * shares[:, None]
    weight = posterior.sum(axis=0)
    seen = posterior @ types.coordinates
    gram = types.coordinates.T @ (weight[:, None] * types.coordinates)
    gram += np.diag([1e-6, 1.0, 1.0])  # the slope starts from 0
    slope = np.linalg.solve(gram, seen.T @ scores)
    means = types.coordinates @ slope
    second = (scores * posterior.sum(axis=1)[:, None]).T @ scores
    cross = (seen.T @ scores).T @ slope
    covariance = (second - cross - cross.T + means.T @ (weight[:, None] * means)) / total
    floor = _SPREAD_FLOOR**2 * np.maximum(scores.var(axis=0), 1e-12)
    return ScoreModel(slope, covariance + np.diag(floor))


def _best_exponent(
    types: Types,
    weights: Float[np.ndarray, " types"],
    score_model: ScoreModel,
    scores: Float[np.ndarray, "samples scores"],
    likelihood: Float[np.ndarray, "samples types"],
    shares: Float[np.ndarray, " samples"],
) -> ScoreModel:
    """Choose the exponent under which the scores alone predict the counts best; 0 leaves them out."""
    density = score_model.log_density(types, scores)
    counted = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    fits = []
    for exponent in _EXPONENTS:
        predicted = _normalised(np.log(weights).astype(np.float32) + np.float32(exponent) * density)
        fits.append(float(shares @ np.log(np.maximum((predicted * counted).sum(axis=1), 1e-30))))
    return replace(score_model, exponent=float(_EXPONENTS[int(np.argmax(fits))]))


def log_likelihood(
    types: Types, successes: Int[np.ndarray, "samples levels"], attempts: Int[np.ndarray, "samples levels"]
) -> Float[np.ndarray, "samples types"]:
    """Return the log likelihood of counts under each type, float32, without the binomial coefficients."""
    wins = np.asarray(successes, dtype=np.float32)
    losses = np.asarray(attempts, dtype=np.float32) - wins
    return wins @ np.log(types.rates).T.astype(np.float32) + losses @ np.log1p(-types.rates).T.astype(np.float32)


def in_chunks(
    samples: int, function: Callable[[slice], tuple[np.ndarray, ...]], size: int = CHUNK
) -> tuple[np.ndarray, ...]:
    """Apply a function to slices of the samples and join what it returns, so that no (samples, types) array is held."""
    parts = [function(part) for part in _slices(samples, size)]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _slices(samples: int, size: int) -> Iterator[slice]:
    for start in range(0, max(samples, 1), size):
        yield slice(start, min(start + size, samples))


def _normalised(log_weights: Float[np.ndarray, "samples types"]) -> Float[np.ndarray, "samples types"]:
    log_weights -= log_weights.max(axis=1, keepdims=True)
    np.exp(log_weights, out=log_weights)
    log_weights /= log_weights.sum(axis=1, keepdims=True)
    return log_weights


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
