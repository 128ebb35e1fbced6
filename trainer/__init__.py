"""Training on what the scores say: `DifficultyAwareGRPOTrainer`, a drop-in replacement for TRL's `GRPOTrainer`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardsample.trainer.callbacks import DifficultyCallback
    from hardsample.trainer.config import DifficultyAwareGRPOConfig
    from hardsample.trainer.grpo import DifficultyAwareGRPOTrainer
    from hardsample.trainer.plugins.registry import register_policy
    from hardsample.trainer.plugins.stateful import PolicyInfo, StatefulPolicy
    from hardsample.trainer.selection.policies import Context, View, Weights

__all__ = [
    "Context",
    "DifficultyAwareGRPOConfig",
    "DifficultyAwareGRPOTrainer",
    "DifficultyCallback",
    "PolicyInfo",
    "StatefulPolicy",
    "View",
    "Weights",
    "register_policy",
]

_HOMES = {
    "DifficultyAwareGRPOConfig": "config",
    "DifficultyAwareGRPOTrainer": "grpo",
    "DifficultyCallback": "callbacks",
    "Context": "selection.policies",
    "View": "selection.policies",
    "Weights": "selection.policies",
    "register_policy": "plugins.registry",
    "PolicyInfo": "plugins.stateful",
    "StatefulPolicy": "plugins.stateful",
}


def __getattr__(name: str) -> Any:  # the parts that are arrays only load without TRL
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
