"""Weights of a checkpoint whose parameters have other names in the file than in the model.

transformers saves several vision-language models (LLaVA and Qwen2.5-VL among them) under the names of their first
release. `from_pretrained` translates them; `Trainer`, when it resumes, does not: it warns of missing keys and trains on
with the weights that the model happened to have.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def renamed(model: Any, checkpoint: Path) -> bool:
    """Says whether a checkpoint of a model of transformers has names that the model does not.

    Args:
        model: unwrapped.
        checkpoint: its folder.
    """
    if not isinstance(model, PreTrainedModel) or getattr(model, "hf_quantizer", None) is not None:
        return False
    return bool(_names(checkpoint) - set(model.state_dict()))


def load_renamed(model: PreTrainedModel, checkpoint: Path) -> None:
    """Loads the weights of a checkpoint into a model as `from_pretrained` does, names translated.

    Args:
        model: unwrapped.
        checkpoint: its folder.

    Raises:
        RuntimeError: the checkpoint is of another model.
    """
    saved = type(model).from_pretrained(checkpoint, dtype=model.dtype, attn_implementation="eager")
    model.load_state_dict(saved.state_dict())


def _names(checkpoint: Path) -> set[str]:
    index = checkpoint / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return set(json.loads(index.read_text())["weight_map"])
    if not (checkpoint / SAFE_WEIGHTS_NAME).is_file():
        return set()
    with safe_open(checkpoint / SAFE_WEIGHTS_NAME, framework="pt") as file:
        return set(file.keys())
