"""The choice of the samples of a generation batch: seeded weighted draws in time sublinear in the dataset's size.

The random numbers of a batch come from Philox keyed by (seed, step), so that a batch depends on the weights and
its step alone: all ranks draw the same, and a resumed run draws what an uninterrupted one does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from hardsample.trainer.selection.states import StateDict, StateError, load_into
from hardsample.trainer.selection.sumtree import Rows, SumTree

POOL = 4096
"""Most candidates of a Thompson draw."""
STATE_VERSION = 1


def generator(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """Return the random generator of a step.

    Args:
        seed: 0 … 2⁶⁴ − 1.
        step: 0 … 2⁶⁴ − 1.
        stream: one for each use, so that they are independent; 0 is the sampler's.

    Returns:
        A generator on Philox4x64, key (seed, step), its counter starting at stream · 2¹⁹².
    """
    key, counter = np.array([seed, step], dtype=np.uint64), np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def prompt_order(prompts: Rows, num_generations: int, repeats: int = 1) -> Rows:
    """Lay out a generation batch as TRL's loaders do: each prompt G times in a row, and the whole batch repeated.

    Args:
        prompts: (prompts,) rows of the batch.
        num_generations: G, completions a prompt.
        repeats: steps_per_generation × num_iterations, how often TRL's loader gives the batch.

    Returns:
        (repeats · prompts · G,) rows.
    """
    return np.tile(np.repeat(prompts, num_generations), repeats)


def draw_uniform(size: int, among: int, taken: Rows, rng: np.random.Generator) -> Rows:
    """Draw uniformly without replacement. O(size + taken), unless nearly all rows are asked for.

    Args:
        size: how many, at most among − len(taken).
        among: rows are 0 … among − 1.
        taken: (taken,) rows that must not be drawn, unique.
        rng: source of the draws.

    Returns:
        (size,) rows in the order drawn.
    """
    if 2 * (size + len(taken)) > among:
        return rng.permutation(np.setdiff1d(np.arange(among), taken))[:size]
    rows = taken
    while missing := size - (len(rows) - len(taken)):
        candidates = np.concatenate([rows, rng.integers(among, size=missing)])
        rows = candidates[np.sort(np.unique(candidates, return_index=True)[1])]
    return rows[len(taken) :]


@dataclass(frozen=True)
class Batch:
    """The prompts of one generation batch."""

    step: int
    """Which batch it is, from 0."""
    rows: Rows
    """(prompts,) in order, without repeats unless the dataset is smaller than the batch."""
    explored: Bool[np.ndarray, "prompts"]
    """Which of them were drawn uniformly instead of by weight."""
    note: str | None = None
    """What had to be widened; None if nothing."""


Score = Callable[[Rows, np.random.Generator], Float[np.ndarray, "rows"]]


class PromptSampler:
    """Draws generation batches. A coin flip decides for each prompt of a batch whether it is drawn uniformly
    (`exploration`) or by weight; those by weight are drawn first, the others from what is left.

    Args:
        size: samples in the dataset, at least 1.
        seed: 0 … 2⁶⁴ − 1.
        exploration: share of draws that is uniform, 0 … 1.
        fingerprint: of the dataset, for the saved state.

    Attributes:
        tree: the weights; all 1 at first.
        step: the next batch.
    """

    def __init__(self, size: int, seed: int, exploration: float, fingerprint: str = "") -> None:
        if size < 1:
            raise ValueError(f"size is {size}, must be at least 1: give a dataset with samples")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}, must lie in 0 to 2**64 - 1: choose one, such as 0")
        if not 0 <= exploration <= 1:
            raise ValueError(f"exploration is {exploration}, must be a share from 0 to 1: choose one, such as 0.05")
        self.size, self.seed, self.exploration, self.fingerprint = size, seed, exploration, fingerprint
        self.step = 0
        self.tree = SumTree(size)
        self.tree.set(np.ones(size, dtype=np.float32))

    def set_weights(self, weights: Float[np.ndarray, "rows"], rows: Rows | None = None) -> None:
        """Replace weights.

        Args:
            weights: (rows,) finite, 0 or above; held in float32.
            rows: (rows,) which samples, a sample repeated only with the same weight; all if None.

        Raises:
            ValueError: the number of weights is wrong, or one is negative or not finite.
        """
        weights = np.asarray(weights, dtype=np.float32)
        wanted = self.size if rows is None else len(rows)
        if weights.shape != (wanted,):
            raise ValueError(f"weights have shape {weights.shape}, must be ({wanted},): give one for each sample")
        if weights.size and not (weights.min() >= 0 and weights.max() < np.inf):
            raise ValueError("a weight is negative or not finite, must be 0 or above: fix the policy")
        self.tree.set(weights, rows)

    def next_batch(self, size: int, score: Score | None = None, pool: int = POOL, taken: Rows | None = None) -> Batch:
        """Draw the next batch.

        Args:
            size: prompts of a generation batch, at least 1.
            score: for Thompson sampling: gives a drawn score, 0 or above, to each of a uniform pool of candidates, of
                whom the best are taken; weights play no part.
            pool: most candidates (more only if the batch is larger).
            taken: rows that are not drawn, unless fewer than `size` others are left.

        Returns:
            The batch. It is always full: where too few samples have weight the rest is drawn uniformly, and where the
            dataset is smaller than the batch, all of it is taken as often as it fits.
        """
        rng = generator(self.seed, self.step)
        notes: list[str] = []
        taken = np.empty(0, dtype=np.int64) if taken is None else np.unique(taken)
        if self.size - len(taken) < size:
            taken = taken[:0]
        passes, part = (size - 1) // self.size, (size - 1) % self.size + 1
        if passes:
            notes.append(f"the dataset holds {self.size} samples, the batch {size} prompts: samples repeat in it")
        whole = [rng.permutation(self.size) for _ in range(passes)]
        explored = rng.random(part) < self.exploration
        wanted = part - int(explored.sum())
        chosen = self._by_weight(wanted, taken, rng) if score is None else self._best(wanted, score, pool, taken, rng)
        if len(chosen) < wanted:
            notes.append(
                f"{wanted} draws of the batch go by weight, {len(chosen) or 'no'} samples have any: the other draws "
                "were uniform"
            )
            explored[np.flatnonzero(~explored)[len(chosen) :]] = True
        rows = np.empty(part, dtype=np.int64)
        rows[~explored] = chosen
        rows[explored] = draw_uniform(part - len(chosen), self.size, np.concatenate([taken, chosen]), rng)
        explored = np.concatenate([np.ones(size - part, dtype=bool), explored])
        return self._count(np.concatenate([*whole, rows]), explored, "; ".join(notes) or None)

    def replay(self, rows: Rows) -> Batch:
        """Take a batch that another sampler chose (TRL's own, under the uniform policy) as the next batch.

        Args:
            rows: (prompts,) its prompts.

        Returns:
            The batch; nothing in it is explored.
        """
        rows = np.asarray(rows, dtype=np.int64)
        return self._count(rows, np.zeros(len(rows), dtype=bool), None)

    def state_dict(self) -> StateDict:
        """Return the weights (not copied), seed and step, and what a saved state is checked by."""
        return self._checked_state() | {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, its seed included.

        Raises:
            StateError: the version, the dataset, its size, or the shape of an array differs, or a counter is missing.
        """
        if not all(isinstance(state.get(name), int) for name in ("seed", "step")):
            raise StateError("the saved sampler lacks its seed or step: its file is damaged, take another checkpoint")
        load_into(self._checked_state(), state, "sampler")
        self.tree.set(self.tree.weights)
        self.seed, self.step = state["seed"], state["step"]

    def _checked_state(self) -> StateDict:
        """Return what a saved state must agree with: all but seed and step, which are loaded unchecked."""
        identity = {"version": STATE_VERSION, "size": self.size, "fingerprint": self.fingerprint}
        return identity | {"weights": self.tree.weights}

    def _by_weight(self, size: int, taken: Rows, rng: np.random.Generator) -> Rows:
        """Draw in proportion to the weights, which those of `taken` lose meanwhile."""
        held = self.tree.weights[taken]
        self.tree.set(np.zeros(len(taken), dtype=np.float32), taken)
        try:
            return self.tree.draw(size, rng)
        finally:
            self.tree.set(held, taken)

    def _best(self, size: int, score: Score, pool: int, taken: Rows, rng: np.random.Generator) -> Rows:
        """Return the candidates of the highest scores above 0, best first."""
        if not size:
            return np.empty(0, dtype=np.int64)
        candidates = draw_uniform(min(self.size - len(taken), max(pool, size)), self.size, taken, rng)
        scores = score(candidates, rng)
        if not (scores.min() >= 0 and scores.max() < np.inf):
            raise ValueError("a score is negative or not finite, must be 0 or above: fix the policy")
        best = np.argsort(-scores, kind="stable")[:size]
        return candidates[best[scores[best] > 0]]

    def _count(self, rows: Rows, explored: Bool[np.ndarray, "prompts"], note: str | None) -> Batch:
        batch = Batch(self.step, rows, explored, note)
        self.step += 1
        return batch
