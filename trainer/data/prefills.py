"""Features of some rows from the model as it is now: one prefill each, shared among the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from jaxtyping import Float16
from trl.data_utils import prepare_multimodal_messages
from trl.models import unwrap_model_for_generation

from hardsample.engines.features import WIDTH
from hardsample.engines.prefill import prefill_features
from hardsample.engines.transformers import TransformersEngine
from hardsample.scoring.config import ScoringConfig
from hardsample.trainer.data.rows import images_of
from hardsample.trainer.selection.sumtree import Rows

BATCH = 64


def prefill_rows(trainer: Any, rows: Rows) -> Float16[np.ndarray, "rows 256"]:
    """Read the features of rows from a trainer's model; random states and the model's settings stay as they were.

    Args:
        trainer: of the training, between two steps.
        rows: (rows,) of its dataset, the same on all ranks.

    Returns:
        (rows, WIDTH) float16 on all ranks; NaN where a row could not be read.
    """
    accelerator, kinds = trainer.accelerator, trainer._setup.kinds
    # Sharded weights are gathered in every forward, so all ranks run the same modules equally often.
    kind_of = np.zeros(len(rows), dtype=bool) if kinds is None else kinds[rows]
    parts = [part for part in (np.flatnonzero(kind_of), np.flatnonzero(~kind_of)) if len(part)]
    world, rank = accelerator.num_processes, accelerator.process_index
    shares = [np.resize(part, -(-len(part) // world) * world)[rank::world] for part in parts]
    chunks = [share[start : start + BATCH] for share in shares for start in range(0, len(share), BATCH)]
    mine: dict[int, np.ndarray] = {}
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    gathers = trainer.args.ds3_gather_for_generation
    unwrapped = unwrap_model_for_generation(trainer.model_wrapped, accelerator, gather_deepspeed3_params=gathers)
    with torch.random.fork_rng(devices=cuda), unwrapped as model:
        settings, training = model.generation_config, model.training
        model.eval()
        try:
            engine = TransformersEngine(model, trainer.processing_class, ScoringConfig(batch_size=BATCH))
            for chunk in chunks:
                samples = trainer._read(rows[chunk].tolist())
                results = prefill_features(engine, [_record(sample) for sample in samples])
                mine |= {
                    index: features
                    for index, features in zip(chunk.tolist(), results, strict=True)
                    if isinstance(features, np.ndarray)
                }
        finally:
            model.generation_config = settings
            model.train(training)
    gathered = np.full((len(rows), WIDTH), np.nan, dtype=np.float16)
    for of_rank in gather_object([mine]):
        for index, features in of_rank.items():
            gathered[index] = features
    return gathered


def _record(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the trainer's dataset as engines take it."""
    images = images_of(sample)
    prompt = prepare_multimodal_messages(sample["prompt"], images=images)
    turns = [
        {
            "role": turn["role"],
            "content": [{"type": block["type"], "text": block.get("text")} for block in turn["content"]],
        }
        for turn in prompt
    ]
    return {"id": str(sample.get("id", "")), "prompt": turns, "images": images, "options": sample.get("options")}
