"""Parts of any vision-language model of transformers: its language model, and the id of its image tokens."""

from typing import Any

import torch
from transformers import PreTrainedModel


def text_model(model: torch.nn.Module) -> PreTrainedModel | None:
    """Return the language model inside a vision-language model; None if it has no config of its own."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return next((model for model in models if model.config is config), None)


def image_token(config: Any) -> int | None:
    """Return the id of image tokens; None if the config names none."""
    candidates = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((token for token in candidates if token is not None), None)
