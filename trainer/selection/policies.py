"""Policies: from the evidence of some samples to the weights by which their prompts are drawn.

A policy is a pure function of a view of the samples and of the state of training, or an object with a state of its own
(plugins/stateful.py). One that is not built in is named by its import path or by `register_policy`. Samples of weight 0
are still drawn by the exploration share of every batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from hardsample.errors import ConfigError
from hardsample.metrics.beta import spread_probability
from hardsample.settings import check_types
from hardsample.trainer.plugins.registry import POLICIES, find_policy
from hardsample.trainer.selection.evidence import Evidence
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.strata import EASY, HARD, NAMES, Strata, chunks
from hardsample.trainer.selection.widening import STRATIFY_BY, label_weights

ESTIMATES = ("mean", "thompson")
FEATURES_SHARPNESS = 8.0
"""Exponent of the policy `signal` where features give every sample a prior."""
LEAST_CHANCE = 1e-4
"""Least chance of signal that is sharpened."""
CURRICULUM_WIDTH = 0.5
"""Standard deviation of the curriculum's window, in strata."""


@dataclass
class PolicyConfig:
    """Which samples are drawn."""

    policy: str | None = field(
        default=None,
        metadata={
            "help": "uniform (as TRL), strata (a weight a stratum), signal (chance that a group's rewards differ), "
            "target (success rate near a moving target), curriculum (easy to hard), or the import path of your own, "
            "my_module:MyPolicy (default: signal with scores or features, strata with stratify_by, else uniform)"
        },
    )
    stratify_by: str = field(
        default="pism",
        metadata={
            "help": "strata, curriculum: whose strata count: pism, cmab (by the attention balance, which is then read "
            "inline: attention_balance is on) or both (the mean of the two strata's weights)"
        },
    )
    exploration: float = field(
        default=0.05, metadata={"help": "share of prompts drawn uniformly, so that none is forgotten, 0 to 1"}
    )
    easy_weight: float = field(default=0.0, metadata={"help": "strata: weight of an easy sample, 0 or above"})
    medium_weight: float = field(default=1.0, metadata={"help": "strata: weight of a medium sample, 0 or above"})
    hard_weight: float = field(default=1.0, metadata={"help": "strata: weight of a hard sample, 0 or above"})
    unsolved_weight: float = field(default=0.0, metadata={"help": "strata: weight of an unsolved sample, 0 or above"})
    unscored_weight: float = field(
        default=1.0,
        metadata={
            "help": "strata, curriculum: weight of a sample without PISM score (no image, not scored), by cmab "
            "without attention balance, whose success rate is at neither end, 0 or above"
        },
    )
    signal_estimate: str | None = field(
        default=None,
        metadata={
            "help": "signal: thompson (take the best by posterior draws) or mean (draw by the posterior mean) "
            "(default: mean with features, thompson without)"
        },
    )
    signal_sharpness: float | None = field(
        default=None,
        metadata={
            "help": "signal: exponent on the chance that rewards differ, above 0; larger focuses more (default: 8 with "
            "features and estimate mean, else 1)"
        },
    )
    target_start: float = field(default=0.7, metadata={"help": "target: success rate aimed at first, 0 to 1"})
    target_end: float = field(default=0.4, metadata={"help": "target: success rate aimed at in the end, 0 to 1"})
    target_width: float = field(
        default=0.15, metadata={"help": "target: standard deviation around the target, in success rate, above 0"}
    )
    unsolved_from: float = field(
        default=0.5,
        metadata={
            "help": "curriculum: share of training after which unsolved samples are released, fully at its end, 0 to 1"
        },
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self, PolicyConfig)
        if self.policy is not None:
            find_policy(self.policy)
        if self.stratify_by not in STRATIFY_BY:
            raise ConfigError(f"stratify_by is {self.stratify_by!r}, must be one of {', '.join(STRATIFY_BY)}")
        if self.signal_estimate not in (None, *ESTIMATES):
            raise ConfigError(f"signal_estimate is {self.signal_estimate!r}, must be one of {', '.join(ESTIMATES)}")
        for name in ("exploration", "target_start", "target_end", "unsolved_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, must lie in 0 to 1: choose one")
        for name in ("signal_sharpness", "target_width"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ConfigError(f"{name} is {value}, must be above 0 and finite: choose one, such as 1")
        for weight, name in zip(self.stratum_weights, NAMES, strict=True):
            if not 0 <= weight < np.inf:
                raise ConfigError(f"{name}_weight is {weight}, must be 0 or above and finite: choose one, such as 1")
        if not sum(self.stratum_weights):
            raise ConfigError("the weights of all strata are 0, must be above 0 for one: set medium_weight to 1")

    @property
    def stratum_weights(self) -> tuple[float, ...]:
        """Weights in the order of `strata.NAMES`."""
        return self.easy_weight, self.medium_weight, self.hard_weight, self.unsolved_weight, self.unscored_weight

    @property
    def stock_order(self) -> bool:
        """Whether TRL's own sampler gives the order (`PromptSampler.replay` follows it)."""
        return self.policy == "uniform" or (self.policy is None and self.stratify_by == "pism")

    @property
    def pooled(self) -> bool:
        """Whether batches are the best of a pool (`PromptSampler.next_batch`'s score) instead of drawn by weight."""
        return self.policy == "signal" and self.signal_estimate in (None, "thompson")

    def named(self, informed: bool) -> "PolicyConfig":
        """Return this config with the default policy filled in, by what was measured (docs/arena.md).

        Args:
            informed: whether scores or features tell samples apart before training.
        """
        if self.policy is not None:
            return self
        usual = "strata" if self.stratify_by != "pism" else "signal" if informed else "uniform"
        return replace(self, policy=usual)

    def resolved(self, features: bool) -> "PolicyConfig":
        """Return this config with the defaults of the policy `signal` filled in.

        Measured on seeds that were for choosing (docs/few-rollouts.md): with features nearly all samples are told apart
        from the start, and draws by the mean, sharpened, find more signal than Thompson's.

        Args:
            features: whether features give every sample a prior.
        """
        estimate = self.signal_estimate or ("mean" if features else "thompson")
        usual = FEATURES_SHARPNESS if features and estimate == "mean" else 1.0
        sharpness = self.signal_sharpness or usual
        return replace(self.named(features), signal_estimate=estimate, signal_sharpness=sharpness)


@dataclass(frozen=True)
class View:
    """What a policy sees of some samples: arrays of one entry a sample."""

    alpha: Float[np.ndarray, "rows"]
    """α of the posterior Beta(α, β) of the success rate, at this step."""
    beta: Float[np.ndarray, "rows"]
    stratum: Integer[np.ndarray, "rows"]
    """Code of the PISM stratum, see `strata.NAMES`."""
    level: Integer[np.ndarray, "rows"]
    """Index of λ* among the ratios; their number if none fails; −1 without a PISM score."""
    balance: Float[np.ndarray, "rows"]
    """Attention balance ρ̄; NaN if none was read."""
    last_step: Integer[np.ndarray, "rows"]
    """Step of the last group; −1 if none."""
    rows: Rows
    """Which samples these are, as rows of the dataset."""
    cmab_stratum: Integer[np.ndarray, "rows"] | None = None
    """Code of the CMAB stratum, likewise; None if `stratify_by` is pism."""

    @property
    def mean(self) -> Float[np.ndarray, "rows"]:
        """Posterior mean of the success rate."""
        return self.alpha / (self.alpha + self.beta)


@dataclass(frozen=True)
class Context:
    """The state of training that all samples share."""

    config: PolicyConfig
    step: int
    total_steps: int
    """Of the whole training, in the unit of `step`."""
    num_generations: int
    """G, completions of a group."""
    batch: int
    """Prompts of a generation batch."""
    counts: tuple[int, ...]
    """Samples in each PISM stratum of the whole dataset, in the order of `strata.NAMES`."""
    rng: np.random.Generator | None = None
    """For Thompson sampling; None: posterior means."""
    cells: Integer[np.ndarray, "5 5"] | None = None
    """Samples in each PISM (row) and CMAB (column) stratum; None if `stratify_by` is pism."""

    @property
    def progress(self) -> float:
        """Share of training that is done, 0 … 1."""
        return min(max(self.step / max(self.total_steps, 1), 0.0), 1.0)


@dataclass(frozen=True)
class Weights:
    """The weights that a policy gives."""

    values: Float[np.ndarray, "rows"]
    """(rows,) 0 or above."""
    note: str | None = None
    """What had to be widened; the same for all samples of a context."""


Policy = Callable[[View, Context], Weights]


def uniform(view: View, context: Context) -> Weights:
    """Give every sample weight 1."""
    return Weights(np.ones(len(view.alpha)))


def by_stratum(view: View, context: Context) -> Weights:
    """Give each sample the weight of its stratum or strata, widened where those with weight hold too few samples."""
    values, _, note = _by_label(context.config.stratum_weights, view, context)
    return Weights(values, note)


def signal(view: View, context: Context) -> Weights:
    """Weight by the chance that the next group has both successes and failures, to the power of `signal_sharpness`.

    Mean: 1 − E[p^G] − E[(1−p)^G] over the posterior; Thompson: 1 − p^G − (1−p)^G with p drawn from it.
    """
    size, sharpness = context.num_generations, context.config.signal_sharpness or 1.0
    if context.rng is None:
        chance = spread_probability(view.alpha, view.beta, size)
        if sharpness > 1:  # where nothing has succeeded yet all chances are tiny, and their powers must not be 0
            chance = np.maximum(chance, LEAST_CHANCE)
    else:
        rate = context.rng.beta(view.alpha, view.beta)
        chance = np.maximum(1 - rate**size - (1 - rate) ** size, 0)
    return Weights(chance**sharpness)


def target(view: View, context: Context) -> Weights:
    """Weight by how near the success rate is to the target m, which moves linearly from start to end.

        E[exp(−(p − m)² / 2w²)] ≈ w / √(w² + v) · exp(−(μ − m)² / 2(w² + v))

    with μ and v the posterior's mean and variance: exact for a normal posterior. So an uncertain sample counts less
    than one that is surely near, and more than one that is surely far.
    """
    config = context.config
    aim = config.target_start + (config.target_end - config.target_start) * context.progress
    mean = view.mean
    spread = config.target_width**2 + mean * (1 - mean) / (view.alpha + view.beta + 1)
    return Weights(config.target_width / np.sqrt(spread) * np.exp(-((mean - aim) ** 2) / (2 * spread)))


def curriculum(view: View, context: Context) -> Weights:
    """Move a window from easy (0) over medium (1) to hard (2) during training, and release unsolved samples late.

        easy, medium, hard: exp(−(stratum − 2t)² / 2w²);   unsolved: max(0, t − t₀) / (1 − t₀)

    with t the progress, w = ½ and t₀ = `unsolved_from`. An unscored sample is placed at 2(1 − p), by its
    posterior mean, times `unscored_weight`. Widened where all of these hold too few samples, see widening.py.
    """
    config, progress = context.config, context.progress

    def window(position: Float[np.ndarray, "rows"]) -> Float[np.ndarray, "rows"]:
        return np.exp(-((position - HARD * progress) ** 2) / (2 * CURRICULUM_WIDTH**2))

    release = 1.0 if progress >= 1 else max(0.0, progress - config.unsolved_from) / (1 - config.unsolved_from or 1)
    opening = (*window(np.arange(EASY, HARD + 1.0)), release, config.unscored_weight)
    values, unscored, note = _by_label(opening, view, context)
    return Weights(np.where(unscored, values * window(HARD * (1 - view.mean)), values), note)


def _by_label(
    weights: tuple[float, ...], view: View, context: Context
) -> tuple[Float[np.ndarray, "rows"], Bool[np.ndarray, "rows"], str | None]:
    by = context.config.stratify_by
    return label_weights(weights, by, view.stratum, view.cmab_stratum, context.counts, context.cells, context.batch)


POLICIES.update(uniform=uniform, strata=by_stratum, signal=signal, target=target, curriculum=curriculum)


def view(evidence: Evidence, strata: Strata, rows: Rows | slice, step: int, cmab: Strata | None = None) -> View:
    """Return what a policy sees of some samples.

    Args:
        evidence: of all samples.
        strata: of all samples, as last refreshed.
        rows: samples, or a slice of them.
        step: that the evidence is discounted to.
        cmab: the CMAB strata of all samples, likewise, if they count.

    Returns:
        The view.
    """
    alpha, beta = evidence.posterior(rows, step)
    return View(
        alpha,
        beta,
        strata.codes[rows],
        evidence.levels.level[rows],
        evidence.balance[rows],
        evidence.last_step[rows],
        np.arange(len(evidence))[rows] if isinstance(rows, slice) else rows,
        None if cmab is None else cmab.codes[rows],
    )


def weigh(
    evidence: Evidence,
    strata: Strata,
    context: Context,
    rows: Rows | None = None,
    policy: Policy | None = None,
    cmab: Strata | None = None,
) -> Weights:
    """Weight samples by the policy of the context.

    Args:
        evidence: of all samples.
        strata: of all samples, as last refreshed.
        context: the state of training.
        rows: (rows,) samples; all, a chunk at a time, if None.
        policy: the function to ask; None: the one that the context's config names.
        cmab: the CMAB strata of all samples, if they count.

    Returns:
        Weights in float32, for `PromptSampler.set_weights`.

    Raises:
        ConfigError: the policy gives no weights, too few or too many, or one that is negative or not finite.
    """
    policy = policy or find_policy(context.config.policy or "uniform")
    if rows is not None:
        seen = view(evidence, strata, rows, context.step, cmab)
        return _checked(policy(seen, context), seen.rows, context)
    values, note = np.empty(len(evidence), dtype=np.float32), None
    for part in chunks(len(evidence)):
        seen = view(evidence, strata, part, context.step, cmab)
        weights = _checked(policy(seen, context), seen.rows, context)
        values[part], note = weights.values, weights.note
    return Weights(values, note)


def _checked(given: Any, rows: Rows, context: Context) -> Weights:
    """Return what a policy gave as weights in float32; a bare array is taken, too.

    Raises:
        ConfigError: it is none, or a weight is negative or not finite.
    """
    weights = given if isinstance(given, Weights) else Weights(given)
    policy, fix = f"policy {context.config.policy!r}", "one number for each of view.rows"
    try:
        values = np.asarray(weights.values)
        if values.dtype.kind not in "biuf":
            raise ValueError
    except ValueError as error:  # no numbers, or a ragged list
        raise ConfigError(f"{policy} gave {given!r:.60}, must be Weights: return Weights(values), {fix}") from error
    if values.shape != rows.shape:
        raise ConfigError(f"{policy} gave weights of shape {values.shape}, must be {rows.shape}: return {fix}")
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    bad = ~((single >= 0) & (single < np.inf))
    if bad.any():
        first = int(bad.argmax())
        raise ConfigError(
            f"{policy} gave row {rows[first]} the weight {values[first]}, must be finite and 0 or above: fix the "
            "policy, for instance by np.clip, and np.nan_to_num for view.balance, which is NaN until seen"
        )
    return Weights(single, weights.note)
