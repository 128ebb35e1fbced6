"""What a trainer saves beside TRL's checkpoint, and how it resumes from it: evidence, generation buffer, phase."""

from pathlib import Path

import numpy as np
from accelerate.logging import get_logger

from hardsample.trainer import checkpoints
from hardsample.trainer.balances import Balances
from hardsample.trainer.data.batches import RowBatches
from hardsample.trainer.difficulty import Difficulty

logger = get_logger(__name__)


def save(trainer: RowBatches, difficulty: Difficulty, balances: Balances | None, checkpoint: Path) -> None:
    """Write the folder `difficulty/` of a checkpoint, each rank its part.

    Args:
        trainer: between two micro-steps.
        difficulty: its state.
        balances: its attention balances that are not observed yet, if it reads any.
        checkpoint: folder of the checkpoint; made if need be.
    """
    folder = checkpoint / checkpoints.FOLDER
    if trainer.args.should_save:
        checkpoints.save_shared(folder, difficulty.state_dict())
    header = {
        **_layout(trainer),
        "step": trainer._step,
        "rows": None if trainer._rows is None else trainer._rows.tolist(),
        "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
        "balances": balances.state_dict() if balances is not None else None,
    }
    buffer = trainer._buffered_inputs if trainer._phase() else None
    checkpoints.save_rank(folder, trainer.accelerator.process_index, buffer, header)


def load(trainer: RowBatches, difficulty: Difficulty, balances: Balances | None, checkpoint: Path) -> None:
    """Load what `save` wrote; where another trainer saved the checkpoint, skip the batches that it has drawn.

    Args:
        trainer: whose weights, optimizer and step are those of the checkpoint already.
        difficulty: its state, new.
        balances: of attention, if it reads any.
        checkpoint: folder of the checkpoint.

    Raises:
        StateError: the state is damaged, of another version, or of a training that this one is not.
    """
    folder = checkpoint / checkpoints.FOLDER
    if not folder.is_dir():
        steps_each = trainer.args.steps_per_generation * trainer.num_iterations
        generations = -(-trainer.state.global_step * trainer.args.gradient_accumulation_steps // steps_each)
        difficulty.stream.skip(generations)
        logger.warning(
            "%s has no folder %s/: another trainer saved it. Training continues from its weights, with new evidence.",
            folder.parent,
            folder.name,
        )
        return
    difficulty.load_state_dict(checkpoints.load_shared(folder))
    rank = trainer.accelerator.process_index
    header, same_layout = checkpoints.load_own(folder, rank, _layout(trainer))
    if same_layout:
        trainer._buffered_inputs = checkpoints.load_buffer(folder, rank, trainer.args.device)
        trainer._step = header["step"]
        trainer._rows = None if header["rows"] is None else np.array(header["rows"], dtype=np.int64)
    for name, values in header["metrics"].items():
        trainer._metrics["train"][name] = list(values)
    if balances is not None and header["balances"] is not None:
        balances.load_state_dict(header["balances"])


def _layout(trainer: RowBatches) -> dict[str, int]:
    """Return what an unfinished generation depends on."""
    return {
        "processes": trainer.accelerator.num_processes,
        "generate_every": trainer.args.steps_per_generation * trainer.num_iterations,
        "steps_per_generation": trainer.args.steps_per_generation,
        "per_device_train_batch_size": trainer.args.per_device_train_batch_size,
        "num_generations": trainer.num_generations,
    }
