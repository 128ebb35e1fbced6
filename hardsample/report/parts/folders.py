"""The kind of a folder, from the files in it."""

from __future__ import annotations

from pathlib import Path

from hardsample.files import (
    EVALUATION_FILE,
    EXPERIMENT_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SCORES_FILE,
    TRAINER_STATE_FILE,
    TRAINING_FILE,
)
from hardsample.scoring.output import OutputError


def kind_of(directory: Path) -> str:
    """Return what a folder holds.

    Args:
        directory: output folder of a hardsample command.

    Returns:
        `experiment`, `evaluation`, `scores` or `training`.

    Raises:
        OutputError: it is none of them, or not finished; the message says which files were looked for.
    """
    if not directory.is_dir():
        raise OutputError(f"{directory} is not a folder: give the output folder of a hardsample command")
    if (directory / EXPERIMENT_FILE).exists():
        if not (directory / RESULTS_FILE).exists():
            raise OutputError(
                f"the experiment in {directory} has no {RESULTS_FILE} yet: let `hardsample experiment` finish"
            )
        return "experiment"
    if (directory / RUN_FILE).exists() or (directory / SCORES_FILE).exists():
        return "evaluation" if (directory / EVALUATION_FILE).exists() else "scores"
    if (directory / TRAINING_FILE).exists() or any(directory.glob(f"checkpoint-*/{TRAINER_STATE_FILE}")):
        return "training"
    raise OutputError(
        f"{directory} holds no results: looked for {RUN_FILE} and {SCORES_FILE} (hardsample score), "
        f"{EVALUATION_FILE} (evaluate), {TRAINING_FILE} or checkpoint-*/{TRAINER_STATE_FILE} (train), {RESULTS_FILE} "
        f"and {EXPERIMENT_FILE} (experiment)"
    )
