"""Strata that move during training: each sample's stratum by the evidence so far, the size of each, and the moves.

With p the posterior mean of a sample's success rate (SPEC.md, "Strata while training"): p < τ unsolved; p > 0.9 easy
(saturated); otherwise the PISM stratum of its current λ*, and `unscored` without a PISM score. Strata by CMAB stand in
balance_strata.py; `Labels` keeps those of all metrics that count.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from hardsample.metrics.strata import STRATA, Bounds, stratum
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.levels import NO_SCORE, Rows
from hardsample.trainer.selection.states import StateDict, load_into

NAMES = (*STRATA, "unscored")
"""Name of each code: 0 easy, 1 medium, 2 hard, 3 unsolved, 4 unscored (no PISM stratum)."""
EASY, MEDIUM, HARD, UNSOLVED, UNSCORED = range(len(NAMES))
SATURATED = 0.9
"""Posterior mean above which a sample is easy, whatever its λ*."""
CHUNK = 1 << 18
"""Samples that a pass over the whole dataset handles at a time, so that temporary arrays take only megabytes."""
STATE_VERSION = 1
CMAB = "_cmab"
"""Suffix of the names of CMAB strata in logs and states; PISM's have none."""


def chunks(size: int) -> Iterator[slice]:
    """Yield slices of at most `CHUNK` that cover 0 … size − 1."""
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


@lru_cache
def _pism_codes(ratios: tuple[float, ...], bounds: Bounds) -> Integer[np.ndarray, "levels"]:
    """Return the code of each λ*: of the ratios, of none failing, and last (index −1) of no score."""
    names = [stratum(ratio, index == 0, bounds) for index, ratio in enumerate(ratios)]
    codes = [STRATA.index(name) for name in (*names, stratum(None, False, bounds))]
    return np.array([*codes, UNSCORED], dtype=np.int8)


def stratify(
    alpha: Float[np.ndarray, "rows"],
    beta: Float[np.ndarray, "rows"],
    level: Integer[np.ndarray, "rows"],
    ratios: tuple[float, ...],
    config: EvidenceConfig,
) -> Integer[np.ndarray, "rows"]:
    """Return each sample's stratum.

    Args:
        alpha: α of the success rate's posterior Beta(α, β).
        beta: β.
        level: index of λ* in `ratios`; len(ratios) if none fails; −1 without a PISM score.
        ratios: Λ, mask ratios.
        config: τ and the bounds on λ*.

    Returns:
        Codes, int8, see `NAMES`. λ* = 0 is unsolved, as in PISM.
    """
    mean = alpha / (alpha + beta)
    codes = _pism_codes(tuple(ratios), config.bounds)[np.where(level == NO_SCORE, -1, level)]
    codes = np.where(mean > SATURATED, np.int8(EASY), codes)
    return np.where(mean < config.tau, np.int8(UNSOLVED), codes)


class Strata:
    """The stratum of every sample as last computed, and the moves since the beginning.

    Args:
        evidence: what they are computed from.
        step: that the evidence is discounted to.

    Attributes:
        codes: (samples,) int8, see `NAMES`.
        counts: (5,) samples in each stratum.
        moves: (5, 5) moves from (row) one stratum to (column) another.
    """

    def __init__(self, evidence: Evidence, step: int = 0) -> None:
        self.evidence = evidence
        self.codes = np.full(len(evidence), UNSCORED, dtype=np.int8)
        self.moves = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
        self.refresh(step)
        self.moves[...] = 0

    def refresh(self, step: int, rows: Rows | None = None) -> Integer[np.ndarray, "5 5"]:
        """Recompute the strata.

        Args:
            step: that the evidence is discounted to.
            rows: samples, possibly repeated; all if None.

        Returns:
            (5, 5) moves of this call, also added to `moves`.
        """
        moves = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
        for part in chunks(len(self.codes)) if rows is None else (np.unique(rows),):
            new = self._stratify(part, step)
            pairs = self.codes[part].astype(np.int64) * len(NAMES) + new
            moves += np.bincount(pairs, minlength=moves.size).reshape(moves.shape)
            self.codes[part] = new
        np.fill_diagonal(moves, 0)
        if rows is None:
            self.counts = np.bincount(self.codes, minlength=len(NAMES))
        else:
            self.counts = self.counts + moves.sum(axis=0) - moves.sum(axis=1)
        self.moves += moves
        return moves

    def state_dict(self) -> StateDict:
        """Return the arrays (not copied), and what a saved state is checked by."""
        identity = {"version": STATE_VERSION, "size": len(self.codes), "fingerprint": self.evidence.fingerprint}
        return identity | {"codes": self.codes, "moves": self.moves}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: the version, the dataset, its size, or the shape of an array differs.
        """
        load_into(self.state_dict(), state, "strata")
        self.counts = np.bincount(self.codes, minlength=len(NAMES))

    def _stratify(self, rows: Rows | slice, step: int) -> Integer[np.ndarray, "rows"]:
        """Return the strata of some samples by the evidence as it is."""
        alpha, beta = self.evidence.posterior(rows, step)
        levels = self.evidence.levels
        return stratify(alpha, beta, levels.level[rows], levels.ratios, self.evidence.config)


@dataclass(frozen=True)
class Restratified:
    """The result of a reweighting of all samples."""

    step: int
    counts: dict[str, int]
    """Samples in each stratum."""
    moves: dict[str, int]
    """Moves since the last reweighting, by `from->to`; only those that happened."""
    cmab_counts: dict[str, int] = field(default_factory=dict)
    """The same by CMAB; empty unless these strata count."""
    cmab_moves: dict[str, int] = field(default_factory=dict)


class Labels:
    """Keeps the strata of both metrics, the moves since all samples were last reweighted, and the strata drawn last.

    Args:
        pism: strata.
        cmab: strata, if they count.

    Attributes:
        of: the strata by their suffix.
        moves: (5, 5) of each, since the last reweighting.
    """

    def __init__(self, pism: Strata, cmab: Strata | None) -> None:
        self.pism, self.cmab = pism, cmab
        self.of: dict[str, Strata] = {"": pism} if cmab is None else {"": pism, CMAB: cmab}
        self.moves = {suffix: np.zeros_like(strata.moves) for suffix, strata in self.of.items()}
        self._drawn: list[dict[str, np.ndarray]] = []

    def refresh(self, step: int, rows: Rows | None = None) -> None:
        """Recompute the strata of some samples, see `Strata.refresh`."""
        for suffix, strata in self.of.items():
            self.moves[suffix] += strata.refresh(step, rows)

    def restratified(self, step: int) -> Restratified:
        """Return counts and moves, and begin to count moves anew."""
        counts = [counts_of(strata) for strata in self.of.values()]
        named = [_named(moves) for moves in self.moves.values()]
        for moves in self.moves.values():
            moves[...] = 0
        return Restratified(step, *(part for of_metric in zip(counts, named, strict=True) for part in of_metric))

    def cells(self) -> Integer[np.ndarray, "5 5"] | None:
        """Return the number of samples in each PISM (row) and CMAB (column) stratum; None without CMAB's."""
        if self.cmab is None:
            return None
        codes = self.pism.codes * np.int8(len(NAMES)) + self.cmab.codes
        return np.bincount(codes, minlength=len(NAMES) ** 2).reshape(len(NAMES), len(NAMES))

    def draw(self, rows: Rows, further: bool = False) -> None:
        """Remember the strata of a batch, or of further draws of the same generation, before it moves them."""
        drawn = {suffix: strata.codes[rows] for suffix, strata in self.of.items()}
        self._drawn = [*(self._drawn if further else []), drawn]

    def redraw(self, rows: Rows) -> None:
        """Remember the strata of other rows in place of those of the last draw."""
        self._drawn.pop()
        self.draw(rows, further=True)

    def metrics(self) -> dict[str, float]:
        """Return for the logs which shares of the last generation's draws and of the data each stratum holds."""
        metrics = {}
        for suffix, strata in self.of.items():
            codes = np.concatenate([drawn[suffix] for drawn in self._drawn])
            drawn = np.bincount(codes, minlength=len(NAMES)) / len(codes)
            for name, share, held in zip(NAMES, drawn, strata.counts / len(strata.codes), strict=True):
                if name == NAMES[UNSCORED] and not share and not held:
                    continue
                metrics[f"draws{suffix}/{name}"], metrics[f"data{suffix}/{name}"] = float(share), float(held)
        return metrics

    def summary(self) -> str:
        """Return in a line a metric how many samples each stratum holds, and how many moves there were."""
        return "\n".join(
            f"  {title:15} {', '.join(f'{count:,} {name}' for name, count in counts_of(strata).items())}; "
            f"{int(strata.moves.sum()):,} moves during training"
            for title, strata in zip(("strata now", "by CMAB now"), self.of.values(), strict=False)
        )

    def state_dict(self) -> StateDict:
        """Return the moves (not copied); the strata are parts of their own."""
        return {f"moves{suffix}": moves for suffix, moves in self.moves.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for suffix in self.moves:
            self.moves[suffix] = np.array(state[f"moves{suffix}"])


def counts_of(strata: Strata) -> dict[str, int]:
    """Return the number of samples in each stratum, by name."""
    return dict(zip(NAMES, strata.counts.tolist(), strict=True))


def _named(moves: Integer[np.ndarray, "5 5"]) -> dict[str, int]:
    return {f"{NAMES[old]}->{NAMES[new]}": int(moves[old, new]) for old, new in np.argwhere(moves).tolist()}
