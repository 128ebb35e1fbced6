"""The prompt stream of a training: batch after batch of rows, of one kind each, or in TRL's own order.

Rows with and without images are never drawn into one batch by a policy: several processors crash on such a batch. TRL's
own order mixes them as TRL does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from hardsample.trainer.selection.sampler import POOL, Batch, PromptSampler, Score, generator
from hardsample.trainer.selection.states import StateDict, StateError
from hardsample.trainer.selection.sumtree import Rows

STREAM_KIND = 1
"""Stream of `sampler.generator` that chooses the kind of a batch."""


class StockOrder:
    """The rows of TRL's `RepeatSampler`, by the number of the generation batch, as an uninterrupted run meets them.

    Args:
        size: samples in the dataset.
        prompts: of a generation batch, at most size.
        shuffle: whether every epoch is a new permutation.
        seed: of the permutations.
    """

    def __init__(self, size: int, prompts: int, shuffle: bool, seed: int) -> None:
        self.size, self.prompts, self.shuffle, self.seed = size, prompts, shuffle, seed
        self._epoch, self._order = -1, torch.arange(size)

    def rows(self, batch: int) -> Rows:
        """Return the prompts of a generation batch.

        Args:
            batch: its number, from 0; the epochs follow one another.
        """
        epoch, chunk = divmod(batch, self.size // self.prompts)
        if self.shuffle and epoch != self._epoch:
            if epoch < self._epoch or self._epoch < 0:
                self._epoch, self._generator = -1, torch.Generator().manual_seed(self.seed)
            for _ in range(epoch - self._epoch):
                self._order = torch.randperm(self.size, generator=self._generator)
            self._epoch = epoch
        return self._order[chunk * self.prompts : (chunk + 1) * self.prompts].numpy()

    def take(self, position: int, size: int) -> Rows:
        """Return some prompts in a row, from wherever a draw before ended.

        Args:
            position: prompts that came before, all batches laid end to end.
            size: how many, at least 1.
        """
        first, last = position // self.prompts, (position + size - 1) // self.prompts
        start = position % self.prompts
        return np.concatenate([self.rows(batch) for batch in range(first, last + 1)])[start : start + size]


class PromptStream:
    """Draws the generation batches of a training.

    Args:
        size: samples in the dataset, at least 1.
        seed: 0 … 2⁶⁴ − 2.
        exploration: share of draws that is uniform.
        kinds: (size,) kind of each row, 0 or 1 (such as with an image); None: all are of one kind.
        stock: TRL's own order, where the policy keeps it.
        fingerprint: of the dataset, for the saved state.

    Attributes:
        batch: number of the next draw: of the next generation batch, where a generation draws once.
        position: prompts drawn so far in TRL's own order.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        exploration: float,
        kinds: Bool[np.ndarray, "size"] | None = None,
        stock: StockOrder | None = None,
        fingerprint: str = "",
    ) -> None:
        self.stock, self.seed, self.batch, self.position = stock, seed, 0, 0
        split = [] if kinds is None else [np.flatnonzero(kinds), np.flatnonzero(~kinds)]
        self._rows: list[Rows | None] = [part for part in split if len(part)] if len(split) > 1 else [None]
        if len(self._rows) == 1:
            self._rows = [None]
        else:
            self._kind, self._place = np.zeros(size, dtype=np.int8), np.zeros(size, dtype=np.int32)
            for kind, part in enumerate(self._rows):
                self._kind[part], self._place[part] = kind, np.arange(len(part))  # type: ignore[arg-type]
        self.samplers = [
            PromptSampler(size if part is None else len(part), seed + kind, exploration, fingerprint)
            for kind, part in enumerate(self._rows)
        ]

    def set_weights(self, weights: Float[np.ndarray, "rows"], rows: Rows | None = None) -> None:
        """Replace weights, see `PromptSampler.set_weights`."""
        for kind, (sampler, part) in enumerate(zip(self.samplers, self._rows, strict=True)):
            if part is None:
                sampler.set_weights(weights, rows)
            elif rows is None:
                sampler.set_weights(weights[part])
            else:
                mine = self._kind[rows] == kind
                sampler.set_weights(weights[mine], self._place[rows[mine]])

    def next_batch(self, size: int, score: Score | None = None, pool: int = POOL, taken: Rows | None = None) -> Batch:
        """Draw the next batch, all of one kind: a kind is as likely as its share of single draws would be, of those by
        weight and of the uniform ones, so that a kind without weight is explored too.

        Args:
            size: prompts of a generation batch.
            score: for Thompson sampling, see `PromptSampler.next_batch`.
            pool: most candidates that are scored, likewise.
            taken: rows of the same generation, whose kind is kept, and which are not drawn again while there are
                others; TRL's own order continues whatever they are.
        """
        if self.stock is not None:
            batch = self.samplers[0].replay(self.stock.take(self.position, size))
            self.position += size
        else:
            several = len(self.samplers) > 1
            kind = int(self._kind[taken[0]]) if several and taken is not None else self._next_kind()
            sampler, part = self.samplers[kind], self._rows[kind]
            held = self._place[taken] if several and taken is not None else taken
            of_rows = score
            if score is not None and part is not None:
                of_rows = lambda places, rng: score(part[places], rng)  # noqa: E731
            drawn = sampler.next_batch(size, of_rows, pool, held)
            rows = drawn.rows if part is None else part[drawn.rows]
            batch = Batch(self.batch, rows, drawn.explored, drawn.note)
        self.batch += 1
        return batch

    def skip(self, batches: int) -> None:
        """Continue as if this many batches had been drawn, for a checkpoint without a saved state."""
        self.batch, self.position = batches, batches * (self.stock.prompts if self.stock is not None else 0)
        for sampler in self.samplers:
            sampler.step = batches

    def state_dict(self) -> StateDict:
        """Return the number of the next batch, the position, and the state of the sampler of each kind of rows."""
        samplers = [sampler.state_dict() for sampler in self.samplers]
        return {"batch": self.batch, "position": self.position, "samplers": samplers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            StateError: it is of other data, another number of kinds, or damaged.
        """
        saved: Sequence[Any] = state.get("samplers") or ()
        if len(saved) != len(self.samplers) or not isinstance(state.get("batch"), int):
            raise StateError(
                f"the saved prompt stream has {len(saved)} kinds of rows (with and without images), must have "
                f"{len(self.samplers)}: resume on the dataset that it was saved with"
            )
        for sampler, sampler_state in zip(self.samplers, saved, strict=True):
            sampler.load_state_dict(sampler_state)
        self.batch = state["batch"]
        before_positions = self.batch * (self.stock.prompts if self.stock is not None else 0)
        self.position = state.get("position", before_positions)

    def _next_kind(self) -> int:
        if len(self.samplers) == 1:
            return 0
        weights = np.array([sampler.tree.total for sampler in self.samplers])
        sizes = np.array([sampler.size for sampler in self.samplers], dtype=np.float64)
        shares = sizes = sizes / sizes.sum()
        if weights.sum():
            explored = self.samplers[0].exploration
            shares = (1 - explored) * weights / weights.sum() + explored * sizes
        return int(generator(self.seed, self.batch, STREAM_KIND).random() * shares.sum() >= shares[0])
