"""The event that hardsample adds to those of Trainer callbacks."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hardsample.trainer.difficulty import Difficulty, Restratified


class DifficultyCallback(TrainerCallback):
    """Base of callbacks that are called when all samples were reweighted.

    Any callback with a method `on_restratify` is called; this base documents its arguments.
    """

    def on_restratify(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        restratified: Restratified,
        difficulty: Difficulty,
        **kwargs: Any,
    ) -> None:
        """Called after all samples were reweighted.

        Args:
            args: of the trainer.
            state: of the trainer.
            control: of the trainer.
            restratified: samples in each stratum, and the moves since the last time.
            difficulty: evidence, strata and stream, to look at.
            kwargs: what later versions add.
        """
