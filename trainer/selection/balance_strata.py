"""CMAB strata that move during training: each sample's stratum by its attention balance so far.

With p the posterior mean of a sample's success rate, and ρ̄ the moving average of the balances of its right completions,
which training reads in the forward of the loss (Evidence.balance), the first that holds:

    p < τ                            unsolved
    p > 0.9                          easy (saturated)
    no ρ̄, and by the scores unsolved
    without a success since          unsolved
    no ρ̄                             unscored
    hard_min ≤ ρ̄ ≤ hard_max          hard
    easy_below ≤ ρ̄ ≤ easy_above      medium
    otherwise                        easy

The first two rules are those of the PISM strata (strata.py), so that both metrics agree on the ends; the others are
`balance_stratum`'s. Bounds are four numbers, or quantiles of ρ̄ over all samples that have one now: taken when the first
sample gets one, and anew at each pass over all samples.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Integer

from hardsample.metrics.cmab import parse_bounds
from hardsample.metrics.options import BalanceBounds
from hardsample.trainer.selection.evidence import Evidence
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.states import StateDict
from hardsample.trainer.selection.strata import EASY, HARD, MEDIUM, SATURATED, UNSCORED, UNSOLVED, Strata


def stratify_balance(
    alpha: Float[np.ndarray, "rows"],
    beta: Float[np.ndarray, "rows"],
    balance: Float[np.ndarray, "rows"],
    unsolved: Bool[np.ndarray, "rows"],
    bounds: Float[np.ndarray, "4"],
    tau: float,
) -> Integer[np.ndarray, "rows"]:
    """Return each sample's CMAB stratum.

    Args:
        alpha: α of the success rate's posterior Beta(α, β).
        beta: β.
        balance: ρ̄; NaN without one.
        unsolved: whether the sample is unsolved by its scores and has not succeeded since.
        bounds: easy_below, hard_min, hard_max, easy_above.
        tau: τ, success rate below which a sample is unsolved.

    Returns:
        Codes, int8, see `strata.NAMES`.
    """
    mean, (easy_below, hard_min, hard_max, easy_above) = alpha / (alpha + beta), bounds
    codes = np.where((balance >= easy_below) & (balance <= easy_above), np.int8(MEDIUM), np.int8(EASY))
    codes = np.where((balance >= hard_min) & (balance <= hard_max), np.int8(HARD), codes)
    codes = np.where(np.isnan(balance), np.where(unsolved, np.int8(UNSOLVED), np.int8(UNSCORED)), codes)
    codes = np.where(mean > SATURATED, np.int8(EASY), codes)
    return np.where(mean < tau, np.int8(UNSOLVED), codes)


def unsolved_by_scores(size: int, rows: Rows, table: pa.Table) -> Bool[np.ndarray, "size"]:
    """Return which samples have rollouts at λ = 0 in their scores and the CMAB stratum `unsolved`.

    Args:
        size: samples in the dataset.
        rows: (table rows,) the dataset row of each row of the table.
        table: scores.parquet.
    """
    unsolved = np.zeros(size, dtype=bool)
    if "cmab_stratum" in table.column_names:
        tries = pc.list_element(table["attempts"], 0).to_numpy()
        unsolved[rows] = pc.fill_null(pc.equal(table["cmab_stratum"], "unsolved"), False).to_numpy() & (tries > 0)
    return unsolved


def has_balances(table: pa.Table) -> bool:
    """Return whether a scores.parquet holds the attention balance of any sample."""
    name = "attention_balance"
    return name in table.column_names and table[name].null_count < len(table)


class BalanceStrata(Strata):
    """The CMAB stratum of every sample as last computed, and the moves since the beginning; see `Strata`.

    Args:
        evidence: what they are computed from.
        bounds: on ρ̄, where `spec` gives none.
        spec: bounds as `hardsample stratify --cmab-bounds` takes them; may be quantiles.
        unsolved: (samples,) see `unsolved_by_scores`; None without scores.
        step: that the evidence is discounted to.

    Attributes:
        bounds: (4,) now; those given until there are quantiles.
    """

    def __init__(
        self,
        evidence: Evidence,
        bounds: BalanceBounds = BalanceBounds(),
        spec: str | None = None,
        unsolved: Bool[np.ndarray, "samples"] | None = None,
        step: int = 0,
    ) -> None:
        self._quantiles = spec if spec is not None and spec.startswith("quantile") else None
        if spec is not None and self._quantiles is None:
            bounds = parse_bounds(spec)
        self._spec, self._taken = spec, np.zeros(1, dtype=bool)
        self.bounds = np.array([bounds.easy_below, bounds.hard_min, bounds.hard_max, bounds.easy_above])
        self._unsolved = np.zeros(len(evidence), dtype=bool) if unsolved is None else unsolved
        super().__init__(evidence, step)

    def refresh(self, step: int, rows: Rows | None = None) -> Integer[np.ndarray, "5 5"]:
        if self._quantiles is not None and (rows is None or not self._taken[0]):
            known = self.evidence.balance[~np.isnan(self.evidence.balance)]
            if len(known):
                bounds = parse_bounds(self._quantiles, known.tolist())
                self.bounds[:] = bounds.easy_below, bounds.hard_min, bounds.hard_max, bounds.easy_above
                self._taken[0] = True
        return super().refresh(step, rows)

    def state_dict(self) -> StateDict:
        """Return the arrays (not copied), the bounds, and what a saved state is checked by."""
        own = {"bounds": self.bounds, "taken": self._taken, "unsolved": self._unsolved, "cmab_bounds": self._spec}
        return super().state_dict() | own

    def _stratify(self, rows: Rows | slice, step: int) -> Integer[np.ndarray, "rows"]:
        alpha, beta = self.evidence.posterior(rows, step)
        unsolved = self._unsolved[rows] & (self.evidence.successes[rows] == 0)
        balance = self.evidence.balance[rows].astype(np.float64)
        return stratify_balance(alpha, beta, balance, unsolved, self.bounds, self.evidence.config.tau)
