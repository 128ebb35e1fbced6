"""Features of some rows as training goes, shared among the ranks: of text and images alone, or of one prefill each by
the model as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from jaxtyping import Float16
from trl.data_utils import prepare_multimodal_messages
from trl.models import unwrap_model_for_generation

from hardsample.engines.features import STATISTICS as STATISTIC_COLUMNS
from hardsample.engines.features import WIDTH
from hardsample.engines.prefill import Shown, prefill_features, sample_features
from hardsample.engines.transformers import TransformersEngine
from hardsample.scoring.config import ScoringConfig
from hardsample.trainer.config import STATISTICS
from hardsample.trainer.data.rows import images_of
from hardsample.trainer.selection.sumtree import Rows

BATCH = 64


def read_features_of(trainer: Any, rows: Rows, kind: str | None) -> Float16[np.ndarray, "rows columns"]:
    """Read the features of rows.

    Args:
        trainer: of the training, between two steps.
        rows: (rows,) of its dataset, the same on all ranks.
        kind: `statistics`; anything else: of a prefill.

    Returns:
        (rows, columns) float16 on all ranks; NaN where a row could not be read.
    """
    return statistics_rows(trainer, rows) if kind == STATISTICS else prefill_rows(trainer, rows)


def statistics_rows(trainer: Any, rows: Rows) -> Float16[np.ndarray, "rows 9"]:
    """Read the numbers of text and images of rows, see `engines.features.STATISTICS`.

    Args:
        trainer: whose dataset it is.
        rows: (rows,) of it, the same on all ranks.

    Returns:
        (rows, 9) float16 on all ranks.
    """
    accelerator = trainer.accelerator
    share = np.arange(len(rows))[accelerator.process_index :: accelerator.num_processes]
    mine: dict[int, np.ndarray] = {}
    for start in range(0, len(share), BATCH):
        chunk = share[start : start + BATCH]
        for index, sample in zip(chunk.tolist(), trainer._read(rows[chunk].tolist()), strict=True):
            record = _record(sample)
            first = np.asarray(record["images"][0]) if record["images"] else None
            mine[index] = sample_features(record, first, Shown())[STATISTIC_COLUMNS]
    return _gathered(mine, len(rows), len(STATISTIC_COLUMNS))


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
    return _gathered(mine, len(rows), WIDTH)


def _gathered(mine: dict[int, np.ndarray], size: int, width: int) -> Float16[np.ndarray, "rows columns"]:
    """Return the features that all ranks have read; NaN where none could."""
    gathered = np.full((size, width), np.nan, dtype=np.float16)
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
