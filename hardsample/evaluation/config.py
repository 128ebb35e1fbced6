"""The settings of an evaluation, which is a scoring job of one mask ratio, 0."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from hardsample.errors import ConfigError
from hardsample.scoring.config import RolloutConfig, ScoringConfig
from hardsample.settings import setting


@dataclass(frozen=True)
class EvaluationConfig(RolloutConfig):
    """Settings of `hardsample.evaluation.evaluate.evaluate`.

    Raises:
        ConfigError: names the field, its value, the bound and the fix.
    """

    temperature: float = setting(0.0, "sampling temperature T, 0 (greedy) or above", min=0.0, group="Generation")
    rollouts: int = setting(
        1, "rollouts of each sample; more than 1 needs a temperature above 0", min=1, group="Evaluation"
    )
    strata: str | Path | None = setting(None, "folder of a scoring run of these samples: accuracy by its strata")

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if self.rollouts > 1 and not self.temperature:
            raise ConfigError(
                f"rollouts is {self.rollouts} at temperature 0, where all rollouts of a sample are the same: set "
                "rollouts to 1, or a temperature such as 0.7"
            )

    def scoring(self) -> ScoringConfig:
        """Return the scoring job that the evaluation is."""
        shared = {known.name: getattr(self, known.name) for known in fields(RolloutConfig)}
        return ScoringConfig(**shared, ratios=(0.0,), num_masks=self.rollouts, search="exhaustive", features=False)


def evaluation_config(**settings: object) -> EvaluationConfig:
    """Make the settings of an evaluation.

    Args:
        settings: fields of `EvaluationConfig`.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    unknown = settings.keys() - {known.name for known in fields(EvaluationConfig)}
    if unknown:
        raise ConfigError(f"{min(unknown)} is not a setting of an evaluation: leave it out")
    return EvaluationConfig(**settings)  # type: ignore[arg-type]
