"""The strata of all metrics that count: PISM's always, CMAB's where `stratify_by` asks for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Integer

from hardsample.trainer.selection.balance_strata import BalanceStrata
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.states import StateDict
from hardsample.trainer.selection.strata import NAMES, UNSCORED, Strata

CMAB = "_cmab"
"""Suffix of the names of CMAB strata in logs and states; PISM's have none."""


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

    def __init__(self, pism: Strata, cmab: BalanceStrata | None) -> None:
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
