"""Settings of a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from hardsample.errors import ConfigError
from hardsample.scoring.config import FeaturesConfig
from hardsample.settings import check_settings, field_of, setting


def _as_for_features(name: str) -> Any:
    """Declare a setting as `FeaturesConfig` does."""
    source = field_of(FeaturesConfig, name)
    return field(default=source.default, metadata=source.metadata)


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `hardsample.scoring.predicting.predict.predict`.

    Raises:
        ConfigError: names the field, its value, the bound and the fix.
    """

    num_generations: int = setting(
        8, "G, rollouts of the group whose chance of both outcomes is predicted, 2 or more", min=2, group="Prediction"
    )
    batch_size: int = setting(64, "prompts in one forward; halved when memory runs out", min=1, group="Model")
    device: str | None = _as_for_features("device")
    dtype: str | None = setting(
        None,
        "dtype of the weights (default: that of the scored samples' features)",
        choices=field_of(FeaturesConfig, "dtype").metadata["choices"],
    )
    attn_implementation: str | None = _as_for_features("attn_implementation")
    trust_remote_code: bool = _as_for_features("trust_remote_code")
    limit: int | None = _as_for_features("limit")
    image_root: str | None = _as_for_features("image_root")
    grader: str | None = _as_for_features("grader")
    max_pixels: int = _as_for_features("max_pixels")
    engine: str | None = _as_for_features("engine")
    base_url: str | None = _as_for_features("base_url")
    concurrency: int = _as_for_features("concurrency")
    request_timeout: float = _as_for_features("request_timeout")
    retries: int = _as_for_features("retries")
    server_timeout: float = _as_for_features("server_timeout")

    def __post_init__(self) -> None:
        """Check every field; what goes with which engine is checked when the engine is known."""
        check_settings(self)
        if self.num_generations > 1024:
            raise ConfigError(f"num_generations is {self.num_generations}, must be at most 1024: choose one, such as 8")

    def features(self, **changes: Any) -> FeaturesConfig:
        """Return the settings of the prefills, with some replaced."""
        own = {known.name: getattr(self, known.name) for known in fields(self) if known.name != "num_generations"}
        return FeaturesConfig(**own | changes)
