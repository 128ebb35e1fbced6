"""A `GRPOTrainer` that knows the dataset row of every sample in its batches.

With no option of ours switched on, loader, sampler and batches are TRL's own, and the rows follow from TRL's order.
Else the loader carries row numbers, which become samples just before `_prepare_inputs`: by then all earlier rollouts
have been rewarded, and what a subclass or a wrapper does in `_prepare_inputs` is done to samples.
"""

from collections.abc import Sequence
from typing import Any

from accelerate.logging import get_logger
from trl import GRPOTrainer

from hardsample.trainer.data.rows import Places, RowNumbers, read_rows
from hardsample.trainer.difficulty import Difficulty
from hardsample.trainer.selection.sampler import prompt_order
from hardsample.trainer.selection.sumtree import Rows
from hardsample.trainer.setup import Setup

logger = get_logger(__name__)

_ORDER_HOOKS = ("get_train_dataloader", "_get_train_sampler", "_get_dataloader")
"""Where a subclass can change which samples are trained on."""


class RowBatches(GRPOTrainer):
    """See the module. A subclass chooses the rows in `_choose`, and sets `difficulty` and `_setup`."""

    # Of the class, since a trainer may be made without __init__.
    train_dataset: Any
    difficulty: Difficulty | None = None
    _setup: Setup | None = None
    _resumes = False
    _in_stock_order = False
    """Whether TRL's own loader gives the batches, in TRL's own order."""
    _chosen = False
    """Whether rows are chosen for a generation that has not begun."""
    _rows: Rows | None = None
    """Of the prompts of the generation under way, on all ranks; None before the first."""
    _read_samples: dict[int, dict[str, Any]] | None = None
    """By row, of this rank's share of them; None if they have not been read."""

    def _choose(self) -> None:
        """Choose the rows of the next generation."""
        raise NotImplementedError

    def _begin(self, resumes: bool) -> None:
        """Begin a training.

        Args:
            resumes: whether it resumes a checkpoint.
        """
        self._resumes = resumes
        self._chosen, self._rows, self._read_samples = False, None, None
        self._in_stock_order = self._stock_loader() and self._own_order()
        if self._stock_loader() and not self._in_stock_order:
            logger.warning(
                "Samples are trained on in an order of your own (%s is overridden, or train_dataset was replaced): no "
                "evidence of them is gathered.",
                " or ".join(_ORDER_HOOKS),
            )

    def get_train_dataloader(self) -> Any:
        if self._stock_loader():
            return super().get_train_dataloader()
        dataset = self.train_dataset
        self.train_dataset = RowNumbers(len(dataset))
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = dataset

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        if self._setup is None or self._setup.policy.stock_order:
            return super()._get_train_sampler(dataset)
        prompts = self._setup.shape.prompts
        generations = max(self._setup.size // prompts, 1)
        repeats = self.num_iterations * self.args.steps_per_generation
        return Places(generations * prompts * self.num_generations * repeats)

    def _stock_loader(self) -> bool:
        """Return whether TRL's own loader gives the batches: no option of ours is switched on.

        Not on resuming: there TRL's order starts from the beginning, and ours is that of the uninterrupted run.
        """
        if self._setup is None:
            return True
        idle = self._setup.policy.stock_order and not self._setup.options.switched_on
        return idle and not (self._resumes and self._own_order())

    def _own_order(self) -> bool:
        """Return whether this class decides the order of the samples, and not a subclass or a wrapper."""
        same = all(_function(self, name) is getattr(RowBatches, name) for name in _ORDER_HOOKS)
        return same and self._setup is not None and self.train_dataset is self._setup.given

    def _prepare_context_parallel_inputs(self, model: Any, inputs: Any) -> Any:
        # what Trainer calls last before `_prepare_inputs`
        return super()._prepare_context_parallel_inputs(model, self._samples(inputs))

    def _samples(self, batch: Any) -> Any:
        """Replace row numbers by samples, after a new choice if a generation is due; return other batches unchanged."""
        if self.difficulty is None or not (isinstance(batch, list) and batch and isinstance(batch[0], int)):
            return batch
        if self._generation_due() and not self._chosen:
            self._choose()
        if self._rows is None:  # amid a generation whose checkpoint does not say which rows: they are not read
            return batch
        rows = prompt_order(self._rows, self.num_generations)
        share = len(rows) // self.accelerator.num_processes
        mine = rows[self.accelerator.process_index * share :][:share].tolist()
        if self._read_samples is None:
            unique = list(dict.fromkeys(mine))
            self._read_samples = dict(zip(unique, self._read(unique), strict=True))
        return read_rows(self._read_samples, mine)

    def _read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        assert self._setup is not None, "rows are read where there are some"
        return read_rows(self._setup.data, rows, self.args.dataloader_num_workers)

    def _phase(self) -> int:
        """Return how many micro-steps ago the buffer was generated; 0 if a new generation is due."""
        return self._step % (self.args.steps_per_generation * self.num_iterations)

    def _generation_due(self) -> bool:
        return not self._phase() or self._buffered_inputs is None


def _function(trainer: Any, name: str) -> Any:
    """Return the function that a call of a trainer's method runs, which may be a wrapper set on the instance."""
    method = getattr(trainer, name)
    return getattr(method, "__func__", method)
