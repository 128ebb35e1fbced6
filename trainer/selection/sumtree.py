"""Weighted draws in time sublinear in the number of weights: a tree of partial sums.

A draw goes down the tree, and a changed weight is summed up along its branch only.
"""

import numpy as np
from jaxtyping import Float, Integer

FAN_OUT = 32
"""Children of a node: each level of a draw reads one row of so many numbers."""
_NODES = 1 << 14
"""Nodes summed up at a time, so that little memory is needed beside the tree's."""

Rows = Integer[np.ndarray, "rows"]


class SumTree:
    """Weights under partial sums.

    Args:
        size: number of weights, at least 1; all are 0 at first.

    Attributes:
        levels: from the leaves (float32) up to one row of sums (float64); each is (nodes, FAN_OUT), zero-padded.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.levels: list[np.ndarray] = [np.zeros((-(-size // FAN_OUT), FAN_OUT), dtype=np.float32)]
        while len(self.levels[-1]) > 1:
            self.levels.append(np.zeros((-(-len(self.levels[-1]) // FAN_OUT), FAN_OUT)))

    @property
    def weights(self) -> Float[np.ndarray, "size"]:
        """The weights: a view of the leaves."""
        return self.levels[0].reshape(-1)[: self.size]

    @property
    def total(self) -> float:
        """Sum of all weights; 0 only if all are."""
        return float(self.levels[-1].sum(dtype=np.float64))

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return sum(level.nbytes for level in self.levels)

    def set(self, weights: Float[np.ndarray, "rows"], rows: Rows | None = None) -> None:
        """Set weights, and recompute every sum above them from its children: rounding errors do not accumulate.

        Args:
            weights: (rows,) 0 or above.
            rows: (rows,) which ones; all if None. O(rows · log size).
        """
        if rows is None:
            self.weights[...] = weights
            nodes = np.arange(len(self.levels[0]))
        else:
            self.weights[rows] = weights
            nodes = np.unique(rows // FAN_OUT)
        for below, level in zip(self.levels, self.levels[1:], strict=False):
            flat = level.reshape(-1)
            for start in range(0, len(nodes), _NODES):
                part = nodes[start : start + _NODES]
                flat[part] = below[part].astype(np.float64).sum(axis=1)
            nodes = np.unique(nodes // FAN_OUT)

    def find(self, points: Float[np.ndarray, "draws"]) -> Rows:
        """Find the sample in whose weight each point falls, the weights laid end to end. O(draws · log size).

        Args:
            points: (draws,) from 0 to below `total`, which is above 0.

        Returns:
            (draws,) rows; none of weight 0.
        """
        node, rest, draws = np.zeros(len(points), dtype=np.int64), np.array(points), np.arange(len(points))
        for level in reversed(self.levels):
            ends = np.cumsum(level[node], axis=1, dtype=np.float64)
            rest = np.minimum(rest, np.nextafter(ends[:, -1], 0))  # a sum and its children may differ by a rounding
            child = (ends <= rest[:, None]).sum(axis=1)
            rest = rest - np.where(child > 0, ends[draws, child - 1], 0.0)
            node = node * FAN_OUT + child
        return node

    def draw(self, size: int, rng: np.random.Generator) -> Rows:
        """Draw without replacement, one after another, each in proportion to the remaining weights.

        A round draws with replacement and ignores repeats, which is the same; drawn samples then have weight 0 in
        the rounds that follow, so that a few heavy weights do not hold them up.

        Args:
            size: how many.
            rng: source of the draws.

        Returns:
            (size,) rows in the order drawn; fewer if fewer have weight.
        """
        drawn = np.empty(0, dtype=np.int64)
        held: list[tuple[np.ndarray, np.ndarray]] = []
        try:
            while len(drawn) < size and self.total > 0:
                candidates = self.find(rng.random(size - len(drawn)) * self.total)
                new = candidates[np.sort(np.unique(candidates, return_index=True)[1])]
                drawn = np.concatenate([drawn, new])
                if len(drawn) < size:
                    held.append((new, self.weights[new]))
                    self.set(np.zeros(len(new), dtype=np.float32), new)
        finally:
            for new, weights in held:
                self.set(weights, new)
        return drawn
