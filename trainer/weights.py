"""Weights of a checkpoint whose parameters have other names in the file than in the model.

transformers saves several vision-language models (LLaVA and Qwen2.5-VL among them) under the names of their first
release. `from_pretrained` translates them; `Trainer`, when it resumes, does not: it warns of missing keys and continues
with the weights that the model happened to have.
"""

import json
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel, Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def load_renamed(trainer: Trainer, checkpoint: Path) -> bool:
    """Load a checkpoint's weights as `from_pretrained` does, if their names in the file are not the model's.

    Args:
        trainer: of the model.
        checkpoint: its folder.

    Returns:
        Whether they were loaded; False where the trainer's own way is right.

    Raises:
        RuntimeError: the checkpoint is of another model.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return False
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PreTrainedModel) or getattr(model, "hf_quantizer", None) is not None:
        return False
    if not _names(checkpoint) - set(model.state_dict()):
        return False
    saved = type(model).from_pretrained(checkpoint, dtype=model.dtype, attn_implementation="eager")
    model.load_state_dict(saved.state_dict())
    return True


def _names(checkpoint: Path) -> set[str]:
    index = checkpoint / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return set(json.loads(index.read_text())["weight_map"])
    if not (checkpoint / SAFE_WEIGHTS_NAME).is_file():
        return set()
    with safe_open(checkpoint / SAFE_WEIGHTS_NAME, framework="pt") as file:
        return set(file.keys())
