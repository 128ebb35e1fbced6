"""The success rate of samples that nobody rolled out, from features of a prefill and the counts of other samples.

A Bayesian linear model on standardised features and random Fourier features of them (a small Gaussian process with a
linear and a squared-exponential kernel), for two targets: the success rate p, and p(1 − p), which says how mixed a
group will be. Each sample's leave-one-out scores u, v are known in closed form; a link fitted on them by maximum
likelihood turns scores into a Beta distribution of the success rate:

    s ~ BetaBinomial(n, μφ, (1−μ)φ),   logit μ = a + b·u + c·v,   log φ = d + e·u + f·v

So what a prediction is worth is measured on samples that it was not fitted on: where features say nothing, φ and μ are
those of the base rate. No training loop; pure functions of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hardsample.metrics.beta import spread_probability
from hardsample.prediction.ridge import Ridge, fit_ridge

COUNT_NOISE = 3.0
"""Variance of one rollout over the variance that no number of rollouts takes away."""
FEWEST = 24
"""Fewer samples with rollouts than this give the base rate."""
MOST_REFERENCES = 16_384
"""More samples than this are not used: the fit's memory and time stay bounded."""
_LOG_PHI = (-3.0, 6.0)
_PENALTY = np.array([0.0, 0.1, 0.1, 0.0, 1.0, 1.0])
"""Of the link's parameters, in squared nats: slopes of the concentration start from nothing."""


@dataclass(frozen=True)
class Prediction:
    """Beta distributions of success rates, one entry a sample."""

    alpha: Float[np.ndarray, " samples"]
    beta: Float[np.ndarray, " samples"]

    @property
    def mean(self) -> Float[np.ndarray, " samples"]:
        """The success rate expected."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def variance(self) -> Float[np.ndarray, " samples"]:
        """Variance of the success rate."""
        return self.mean * (1 - self.mean) / (self.alpha + self.beta + 1)

    def signal(self, num_generations: int) -> Float[np.ndarray, " samples"]:
        """Return the chance that a group of G rollouts has both successes and failures."""
        return spread_probability(self.alpha, self.beta, num_generations)


@dataclass(frozen=True)
class Skill:
    """What held-out predictions were worth."""

    samples: int
    """That they were measured on."""
    pearson: float
    """Correlation of predicted and observed success rates; NaN if either does not vary."""
    auroc: float
    """Chance that a group with both outcomes was ranked above one without; NaN if all or none has both."""
    calibration_error: float
    """ECE of the success rate, ten equal groups by prediction."""
    gain: float
    """Nats a sample by which the predictions beat the base rate, less what the link's parameters gain by chance."""
    gain_error: float = 0.0
    """Standard error of the gain."""

    @property
    def useful(self) -> bool:
        """Whether features are worth more than the base rate: the gain is above 0 by more than its standard error."""
        return self.gain > self.gain_error


class Predictor:
    """A fitted predictor; made by `fit`.

    Attributes:
        skill: of leave-one-out predictions.
        held_out: leave-one-out predictions of the samples that it was fitted on, in their order.
    """

    def __init__(self, ridge: Ridge | None, link: Link, skill: Skill, held_out: Prediction) -> None:
        self.ridge, self.link, self.skill, self.held_out = ridge, link, skill, held_out

    def predict(self, features: Float[np.ndarray, "samples columns"]) -> Prediction:
        """Predict the success rates of samples.

        Args:
            features: (samples, columns) as the predictor was fitted on.

        Returns:
            A Beta distribution for each; the base rate's for all if the features are worth nothing.
        """
        return self.link(self.scores(features))

    def scores(self, features: Float[np.ndarray, "samples columns"]) -> Float[np.ndarray, "samples 2"]:
        """Return what the linear model says of p and of p(1 − p), before the link."""
        return np.zeros((len(features), 2)) if self.ridge is None else self.ridge.scores(features)


@dataclass(frozen=True)
class Link:
    """From the scores u and v to a Beta distribution; see the module."""

    parameters: Float[np.ndarray, " 6"]
    centre: Float[np.ndarray, " 2"]
    scale: Float[np.ndarray, " 2"]

    def __call__(self, scores: Float[np.ndarray, "samples 2"]) -> Prediction:
        return Prediction(*self.beta(self.parameters, self.terms(scores)))

    def terms(self, scores: Float[np.ndarray, "samples 2"]) -> Float[np.ndarray, "samples 3"]:
        """Return 1, u and v, standardised."""
        standard = np.clip((scores - self.centre) / self.scale, -6, 6)
        return np.concatenate([np.ones((len(scores), 1)), standard], axis=1)

    @staticmethod
    def beta(
        parameters: Float[np.ndarray, " 6"], terms: Float[np.ndarray, "samples 3"]
    ) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, " samples"]]:
        """Return α and β."""
        mean = np.clip(1 / (1 + np.exp(-np.clip(terms @ parameters[:3], -30, 30))), 1e-6, 1 - 1e-6)
        phi = np.exp(np.clip(terms @ parameters[3:], *_LOG_PHI))
        return mean * phi, (1 - mean) * phi


def fit(
    features: Float[np.ndarray, "samples columns"],
    successes: Float[np.ndarray, " samples"],
    attempts: Float[np.ndarray, " samples"],
    blocks: Sequence[int] | None = None,
    seed: int = 0,
) -> Predictor:
    """Fit a predictor on samples that were rolled out.

    Args:
        features: (samples, columns), NaN where unknown.
        successes: (samples,) rollouts graded 1, discounted counts allowed.
        attempts: (samples,) rollouts, above 0.
        blocks: columns of each block, see `Inputs`; one block by default.
        seed: of the random Fourier features.

    Returns:
        The predictor. With fewer than `FEWEST` samples, or if its held-out gain is not above the gain's standard error,
        it predicts the base rate for all samples (`skill.useful` is False).

    Raises:
        ValueError: shapes differ, or counts are impossible.
    """
    features = np.asarray(features)
    wins, tries = np.asarray(successes, dtype=np.float64), np.asarray(attempts, dtype=np.float64)
    if features.ndim != 2 or wins.shape != (len(features),) or tries.shape != wins.shape:
        raise ValueError(
            f"features {features.shape}, successes {wins.shape}, attempts {tries.shape}: shapes must agree"
        )
    if len(wins) > MOST_REFERENCES:
        raise ValueError(f"{len(wins)} samples to fit on, must be at most {MOST_REFERENCES}: draw some of them")
    if not ((wins >= 0) & (wins <= tries) & (tries > 0)).all():
        raise ValueError("some successes are negative or more than the attempts, or attempts are 0: give counts")
    if len(wins) < FEWEST:
        return _base_rate(wins, tries)
    rate = wins / tries
    mixed = wins * (tries - wins) / (tries * np.maximum(tries - 1, 0.5))
    ridge = fit_ridge(features, np.stack([rate, mixed], axis=1), 1 + COUNT_NOISE / tries, blocks, seed)
    if ridge is None:
        return _base_rate(wins, tries)
    link = _fit_link(ridge.held_out, wins, tries)
    predicted = link(ridge.held_out)
    base = _base_rate(wins, tries)
    free = len(link.parameters) - 2
    gains = _log_likelihoods(predicted, wins, tries) - _log_likelihoods(base.held_out, wins, tries)
    skill = measure(predicted, wins, tries, gains - free / len(wins))
    if not skill.useful:
        return Predictor(None, base.link, skill, base.held_out)
    return Predictor(ridge, link, skill, predicted)


def measure(
    prediction: Prediction,
    successes: Float[np.ndarray, " samples"],
    attempts: Float[np.ndarray, " samples"],
    gains: Float[np.ndarray, " samples"] | None = None,
) -> Skill:
    """Measure predictions against what then came.

    Args:
        prediction: made without the counts.
        successes: (samples,) rollouts graded 1.
        attempts: (samples,) rollouts, above 0.
        gains: (samples,) nats over the base rate; by default over the base rate of these counts.

    Returns:
        The skill.
    """
    wins, tries = np.asarray(successes, dtype=np.float64), np.asarray(attempts, dtype=np.float64)
    if not len(wins):
        return Skill(0, float("nan"), float("nan"), float("nan"), 0.0)
    rate, mean = wins / tries, prediction.mean
    if gains is None:
        base = _base_rate(wins, tries).held_out
        gains = _log_likelihoods(prediction, wins, tries) - _log_likelihoods(base, wins, tries)
    varies = len(rate) > 1 and rate.std() > 1e-9 and mean.std() > 1e-9
    size = max(round(float(np.median(tries))), 2)
    return Skill(
        samples=len(rate),
        pearson=float(np.corrcoef(mean, rate)[0, 1]) if varies else float("nan"),
        auroc=auroc((wins > 0) & (wins < tries), prediction.signal(size)),
        calibration_error=calibration_error(mean, rate),
        gain=float(gains.mean()),
        gain_error=float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0,
    )


def auroc(positive: np.ndarray, score: Float[np.ndarray, " samples"]) -> float:
    """Return the chance that a positive has the larger score, ties counting half; NaN without both kinds."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    if not 0 < count < len(positive):
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def calibration_error(
    predicted: Float[np.ndarray, " samples"], observed: Float[np.ndarray, " samples"], groups: int = 10
) -> float:
    """Return the expected calibration error: the mean |predicted − observed| over equal groups by prediction."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, groups) if len(part)]
    return float(sum(abs(predicted[part].mean() - observed[part].mean()) * len(part) for part in parts) / len(order))


def _fit_link(
    scores: Float[np.ndarray, "samples 2"], wins: Float[np.ndarray, " samples"], tries: Float[np.ndarray, " samples"]
) -> Link:
    """Fit the link by penalised maximum likelihood."""
    from scipy.optimize import minimize
    from scipy.special import betaln, digamma

    link = Link(np.zeros(6), scores.mean(0), np.maximum(scores.std(0), 1e-9))
    terms = link.terms(scores)
    rate = np.clip(wins.sum() / tries.sum(), 0.01, 0.99)
    start = np.array([np.log(rate / (1 - rate)), 0.0, 0.0, 0.0, 0.0, 0.0])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        alpha, beta = Link.beta(parameters, terms)
        phi = alpha + beta
        likelihood = betaln(wins + alpha, tries - wins + beta) - betaln(alpha, beta)
        common = digamma(phi) - digamma(tries + phi)
        by_alpha = digamma(wins + alpha) - digamma(alpha) + common
        by_beta = digamma(tries - wins + beta) - digamma(beta) + common
        by_mean = (by_alpha - by_beta) * alpha * beta / phi
        logs = terms @ parameters[3:]
        by_phi = (by_alpha * alpha + by_beta * beta) * ((logs > _LOG_PHI[0]) & (logs < _LOG_PHI[1]))
        gradient = np.concatenate([terms.T @ by_mean, terms.T @ by_phi])
        penalty = _PENALTY * parameters
        return float(-likelihood.sum() + penalty @ parameters / 2), penalty - gradient

    found = minimize(loss, start, jac=True, method="L-BFGS-B")
    return Link(found.x, link.centre, link.scale)


def _base_rate(wins: Float[np.ndarray, " samples"], tries: Float[np.ndarray, " samples"]) -> Predictor:
    """Return the predictor that gives every sample the same Beta distribution, Beta(½, ½) without any counts."""
    if len(wins):
        link = _fit_link(np.zeros((len(wins), 2)), wins, tries)
    else:
        link = Link(np.zeros(6), np.zeros(2), np.ones(2))
    held_out = link(np.zeros((len(wins), 2)))
    skill = Skill(len(wins), float("nan"), float("nan"), float("nan"), 0.0)
    return Predictor(None, link, skill, held_out)


def _log_likelihoods(
    prediction: Prediction, wins: Float[np.ndarray, " samples"], tries: Float[np.ndarray, " samples"]
) -> Float[np.ndarray, " samples"]:
    from scipy.special import betaln

    alpha, beta = prediction.alpha, prediction.beta
    return betaln(wins + alpha, tries - wins + beta) - betaln(alpha, beta)
