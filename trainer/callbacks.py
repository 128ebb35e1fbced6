"""The event of ours that a Trainer callback may hear."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hardsample.trainer.difficulty import Difficulty, Restratified


class DifficultyCallback(TrainerCallback):
    """Base of callbacks that want to hear when all samples were weighed anew.

    Any callback with a method `on_restratify` hears it; this base says what it gets.
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
        """Hears that all samples were weighed anew.

        Args:
            args: of the trainer.
            state: of the trainer.
            control: of the trainer.
            restratified: samples in each stratum, and the moves since the last time.
            difficulty: evidence, strata and stream, to look at.
            kwargs: what later versions add.
        """
