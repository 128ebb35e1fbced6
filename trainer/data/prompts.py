"""Leave out overlong prompts before a training: TRL no longer has `max_prompt_length`."""

from typing import Any

from datasets import Dataset
from tqdm import tqdm
from trl.data_utils import prepare_multimodal_messages

from hardsample.errors import ConfigError

BATCH = 16


def keep_short(data: Dataset, processor: Any, limit: int) -> tuple[Dataset, list[dict[str, Any]]]:
    """Leave out samples whose prompt, image tokens included, is longer than a limit.

    Args:
        data: with `id`, `prompt` and `images`.
        processor: of the model.
        limit: tokens, at least 1.

    Returns:
        (data, dropped): the rest, and id and length of each that was left out.

    Raises:
        ValueError: the limit is below 1.
    """
    if limit < 1:
        raise ConfigError(f"max_prompt_length is {limit}, must be at least 1 token: choose one, such as 2048")
    keep, dropped = [], []
    with tqdm(total=len(data), desc="prompt lengths", unit="sample", delay=2) as bar:
        for start in range(0, len(data), BATCH):
            rows = range(start, min(start + BATCH, len(data)))
            for row, length in zip(rows, _lengths([data[row] for row in rows], processor), strict=True):
                if length <= limit:
                    keep.append(row)
                else:
                    dropped.append({"id": data[row]["id"], "tokens": length})
            bar.update(len(rows))
    return data.select(keep), dropped


def _lengths(records: list[dict[str, Any]], processor: Any) -> list[int]:
    """Return the length of each prompt in tokens; each is tokenized alone, since not all can share a batch."""
    lengths = []
    for record in records:
        prompt = prepare_multimodal_messages(record["prompt"], images=record["images"])
        tokenized = processor.apply_chat_template(
            conversation=[prompt], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        lengths.append(len(tokenized["input_ids"][0]))
    return lengths
