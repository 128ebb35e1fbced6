"""The evidence about each sample so far: discounted successes, attention balance, and λ* (see levels.py).

Arrays over the whole dataset, 38 bytes a sample with λ*, no object a sample. A count is worth half after
`half_life_steps`; the discount is applied when a sample is touched or looked at, from the step its counts are of, so
that a step costs only the samples it touches. Nothing here draws a random number: ranks that observe the same hold
the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Integer

from hardsample.errors import ConfigError
from hardsample.metrics.beta import PRIOR
from hardsample.metrics.cmab import parse_bounds
from hardsample.metrics.options import PismConfig
from hardsample.metrics.strata import STRATA, UNFINISHED, Bounds, StrataError, check_tau
from hardsample.settings import check_types, declared
from hardsample.trainer.selection.levels import STORED_WEIGHT, Levels, Rows, check_rows
from hardsample.trainer.selection.prior import FeaturePrior
from hardsample.trainer.selection.states import StateDict, load_into, split_arrays

BALANCE_RATE = 0.25
"""Weight of a new attention balance in the moving average."""
STATE_VERSION = 1


@dataclass
class EvidenceConfig:
    """How rewards become evidence, and evidence strata."""

    half_life_steps: float = field(
        default=100.0, metadata={"help": "steps after which a rollout counts half, above 0; inf: never less"}
    )
    success_threshold: float = field(
        default=0.5, metadata={"help": "a completion counts as a success if its reward is at least this, reward units"}
    )
    reward_tolerance: float = field(
        default=1e-6,
        metadata={"help": "a group has zero variance if its rewards spread by at most this, reward units, 0 or above"},
    )
    tau: float = declared(PismConfig, "tau")
    hard_max: float = declared(PismConfig, "hard_max")
    easy_min: float = declared(PismConfig, "easy_min")
    cmab_bounds: str | None = field(
        default=None,
        metadata={
            "help": "stratify_by cmab, both: bounds on ρ̄ as easy_below,hard_min,hard_max,easy_above, or quantiles of "
            "the samples that have one now, such as quantile:0.1,0.3,0.7,0.9, taken anew every restratify_steps "
            "(default: those of the scores, else 0.1,0.4,1.6,1.9)"
        },
    )

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self, EvidenceConfig)
        if not self.half_life_steps > 0:
            raise ConfigError(
                f"half_life_steps is {self.half_life_steps}, must be above 0: choose a number such as 100, or inf"
            )
        if not np.isfinite(self.success_threshold):
            raise ConfigError(f"success_threshold is {self.success_threshold}, must be finite: choose one, such as 0.5")
        if not 0 <= self.reward_tolerance < np.inf:
            raise ConfigError(f"reward_tolerance is {self.reward_tolerance}, must be 0 or above: choose one, as 1e-6")
        check_tau(self.tau)
        _ = self.bounds
        if self.cmab_bounds is not None:
            try:
                parse_bounds(self.cmab_bounds, [1.0])
            except StrataError as error:
                raise ConfigError(f"cmab_bounds: {error}") from error

    @property
    def bounds(self) -> Bounds:
        """The bounds on λ* between strata."""
        return Bounds(self.hard_max, self.easy_min)


@dataclass(frozen=True)
class Outcomes:
    """Successes and spread of some groups, one entry a group."""

    successes: Integer[np.ndarray, "groups"]
    attempts: Integer[np.ndarray, "groups"]
    """Completions with a reward (NaN is no reward)."""
    spread: Bool[np.ndarray, "groups"]
    """Whether the rewards spread; False where fewer than two completions have a reward."""


def outcomes(rewards: Float[np.ndarray, "groups G"], success_threshold: float, tolerance: float) -> Outcomes:
    """Count successes, and find the groups whose rewards spread: max − min > tolerance, whatever their mean.

    Args:
        rewards: (groups, G), of any scale; NaN where no reward function applied to a completion.
        success_threshold: smallest reward of a success.
        tolerance: largest max − min of a zero-variance group, reward units.

    Returns:
        The outcomes.

    Raises:
        ValueError: rewards are not two-dimensional.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 2:
        raise ValueError(f"rewards have shape {rewards.shape}, must be (groups, num_generations): reshape them")
    graded = ~np.isnan(rewards)
    high = np.where(graded, rewards, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(graded, rewards, np.inf).min(axis=1, initial=np.inf)
    differs = high > low
    with np.errstate(invalid="ignore"):  # inf − inf, where all rewards are the same infinity: they do not differ
        spread = differs & ~(high - low <= tolerance)
    return Outcomes((rewards >= success_threshold).sum(axis=1), graded.sum(axis=1), spread)


class Evidence:
    """The arrays, and how observations change them.

    Args:
        size: samples in the dataset, at least 1.
        config: settings.
        ratios: Λ of the scores, mask ratios, ascending from 0.
        fingerprint: of the dataset, so that a state is not loaded onto other data.

    Attributes:
        successes: (size,) float32, discounted rollouts graded as successes.
        failures: (size,) float32, likewise.
        last_step: (size,) int32, step of the last group; −1 if none. Counts are of max(last_step, 0).
        balance: (size,) float32, moving average of the attention balance ρ̄; NaN until seen.
        levels: λ* and the masked probes.
        prior: by the features of the samples; None: Beta(½, ½) for all.
    """

    ARRAYS = ("successes", "failures", "last_step", "balance")

    def __init__(
        self,
        size: int,
        config: EvidenceConfig | None = None,
        ratios: tuple[float, ...] = PismConfig().ratios,
        fingerprint: str = "",
    ) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, must be at least 1: give a dataset with samples")
        self.config = config or EvidenceConfig()
        self.levels = Levels(size, ratios, self.config.tau)
        self.fingerprint = fingerprint
        self.successes = np.zeros(size, dtype=np.float32)
        self.failures = np.zeros(size, dtype=np.float32)
        self.last_step = np.full(size, -1, dtype=np.int32)
        self.balance = np.full(size, np.nan, dtype=np.float32)
        self.prior: FeaturePrior | None = None

    def __len__(self) -> int:
        return len(self.successes)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays, _ = split_arrays(self.state_dict())
        return sum(array.nbytes for array in arrays.values())

    def seed(self, rows: Rows, table: pa.Table, balances: bool = False) -> None:
        """Load stored scores, as of step 0, before anything is observed.

        Of n rollouts at ratio 0 each counts min(1, 4 / n); λ* is the table's. A sample without a stratum (no image)
        keeps its counts and has no λ*, nor has one whose stratum is predicted without rollouts. A sample none of whose
        rollouts reached an answer (`unfinished`) has neither:
        that they were cut off is no evidence of failure.

        Args:
            rows: (table rows,) the dataset row of each row of the table, unique.
            table: scores.parquet; columns successes, attempts, failure_threshold, stratum and unanswered (if it is
                there) are read.
            balances: whether to read attention_balance, too, as one observation of the moving average.

        Raises:
            ValueError: a λ* is not among `ratios`, or the numbers of rows and scores differ.
        """
        rows = np.asarray(rows, dtype=np.int64)
        check_rows(rows, len(self))
        if len(rows) != table.num_rows:
            raise ValueError(f"{len(rows)} rows for {table.num_rows} scores, must be one for each: pair them")
        wins, tries = (
            pc.list_element(table[name], 0).to_numpy().astype(np.float64) for name in ("successes", "attempts")
        )
        tries = np.where(_without_answers(table, tries), 0, tries)
        weight = STORED_WEIGHT / np.maximum(tries, STORED_WEIGHT)
        self.successes[rows] = wins * weight
        self.failures[rows] = (tries - wins) * weight
        scored = pc.is_in(table["pism_stratum"], pa.array(STRATA)).to_numpy()
        if "stratum_source" in table.column_names:  # what was predicted was not observed
            scored &= ~pc.fill_null(pc.equal(table["stratum_source"], "predicted"), False).to_numpy()
        self.levels.seed(rows, table["failure_threshold"].to_numpy(), scored)
        if balances and "attention_balance" in table.column_names:
            self.observe_balance(rows, table["attention_balance"].to_numpy())

    def observe(self, rows: Rows, rewards: Float[np.ndarray, "groups G"], step: int) -> Outcomes:
        """Add the groups of a step; a group without any reward leaves its sample unchanged.

        A sample of λ* = 0 leaves that level when its rollouts say that it passes, see `Levels.observe_unmasked`.

        Args:
            rows: (groups,) the sample of each group; a sample may be repeated.
            rewards: (groups, G), see `outcomes`.
            step: of training, from 0, not before the last one of any of these samples.

        Returns:
            The outcomes of the groups.

        Raises:
            ValueError: shapes do not match, a row is out of range, or the step lies before an observed one.
        """
        rows = np.asarray(rows, dtype=np.int64)
        check_rows(rows, len(self))
        result = outcomes(rewards, self.config.success_threshold, self.config.reward_tolerance)
        if len(result.attempts) != len(rows):
            raise ValueError(f"{len(result.attempts)} groups of rewards, must be one for each of {len(rows)} rows")
        if self.prior is not None:
            self.prior.record(rows, result.successes, result.attempts)
        touched, group_of = np.unique(rows[result.attempts > 0], return_inverse=True)
        if not len(touched):
            return result
        wins = result.successes[result.attempts > 0]
        tries = result.attempts[result.attempts > 0]
        keep = self._discount(touched, step)
        gained = np.bincount(group_of, weights=wins)
        lost = np.bincount(group_of, weights=tries - wins)
        self.successes[touched] = self.successes[touched] * keep + gained
        self.failures[touched] = self.failures[touched] * keep + lost
        self.last_step[touched] = step
        self.levels.observe_unmasked(touched, self.successes[touched], self.failures[touched])
        return result

    def observe_balance(self, rows: Rows, balances: Float[np.ndarray, "rows"]) -> None:
        """Update the moving average: balance ← balance + ¼ (mean of the sample's new values − balance).

        Args:
            rows: (rows,) the sample of each value; a sample may be repeated.
            balances: (rows,) ρ̄; NaN is ignored.
        """
        rows, balances = np.asarray(rows, dtype=np.int64), np.asarray(balances, dtype=np.float64)
        check_rows(rows, len(self))
        known = ~np.isnan(balances)
        touched, index = np.unique(rows[known], return_inverse=True)
        mean = np.bincount(index, weights=balances[known]) / np.maximum(np.bincount(index), 1)
        old = np.where(np.isnan(self.balance[touched]), mean, self.balance[touched])
        self.balance[touched] = old + BALANCE_RATE * (mean - old)

    def posterior(self, rows: Rows | slice, step: int) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
        """Return the posterior Beta(α, β) of each sample's success rate at a step, discounted to it.

            α = α₀ + s · 2^(−Δ / half-life),  β = β₀ + f · 2^(−Δ / half-life),  Δ = step − max(last step, 0)

        with α₀ = β₀ = ½, or the sample's prior by its features.

        Args:
            rows: samples, or a slice of them.
            step: not before the last one of any of these samples.

        Returns:
            (α, β), float64.
        """
        keep = self._discount(rows, step)
        alpha, beta = (PRIOR, PRIOR) if self.prior is None else self.prior.of(rows)
        return alpha + self.successes[rows] * keep, beta + self.failures[rows] * keep

    def refit_prior(self, step: int) -> None:
        """Learn anew what features say of the success rate, from all counts, discounted to a step."""
        if self.prior is None:
            return
        rows = np.flatnonzero(self.successes + self.failures > 0)
        keep = self._discount(rows, step)
        self.prior.refit(rows, self.successes[rows] * keep, self.failures[rows] * keep)

    def state_dict(self) -> StateDict:
        """Return the arrays (not copied), the state of `levels`, and what a saved state is checked by."""
        identity = {"version": STATE_VERSION, "size": len(self), "fingerprint": self.fingerprint}
        return identity | {name: getattr(self, name) for name in self.ARRAYS} | {"levels": self.levels.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: the version, the dataset or its size, the ratios, or the shape of an array differs.
        """
        load_into(self.state_dict(), state, "evidence")

    def _discount(self, rows: Rows | slice, step: int) -> Float[np.ndarray, "rows"]:
        elapsed = step - np.maximum(self.last_step[rows], 0)
        if elapsed.size and elapsed.min() < 0:
            raise ValueError(f"step {step} lies {-elapsed.min()} before a step that was observed: steps only grow")
        return np.exp2(elapsed / -self.config.half_life_steps)


def _without_answers(table: pa.Table, tries: Float[np.ndarray, "rows"]) -> Bool[np.ndarray, "rows"]:
    """Return which samples have no rollout at ratio 0 that reached an answer; tables of older versions do not say."""
    unfinished = pc.fill_null(pc.equal(table["pism_stratum"], UNFINISHED), False).to_numpy()
    if "unanswered" not in table.column_names:
        return unfinished
    return unfinished | (pc.fill_null(table["unanswered"], 0).to_numpy() >= np.maximum(tries, 1))
