"""Training on what the scores say: `DifficultyAwareGRPOTrainer`, a drop-in replacement for TRL's `GRPOTrainer`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardsample.trainer.callbacks import DifficultyCallback
    from hardsample.trainer.config import DifficultyAwareGRPOConfig
    from hardsample.trainer.grpo import DifficultyAwareGRPOTrainer

__all__ = ["DifficultyAwareGRPOConfig", "DifficultyAwareGRPOTrainer", "DifficultyCallback"]

_HOMES = {
    "DifficultyAwareGRPOConfig": "config",
    "DifficultyAwareGRPOTrainer": "grpo",
    "DifficultyCallback": "callbacks",
}


def __getattr__(name: str) -> Any:  # the parts that are arrays only load without TRL
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
