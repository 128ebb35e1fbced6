"""A verifiers environment for prime-rl: the questions of train.parquet, graded as hardsample grades them.

Written by `hardsample export`; hardsample must be installed where the environment runs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardsample.grading.grader import Grader, completion_text

DATA = Path(__file__).with_name("train.parquet")
GRADER = Grader()


def load_environment(data: str | None = None, **options: Any) -> Any:
    """Return the environment.

    Args:
        data: the parquet file; default: the one beside this module.
        options: passed on to `verifiers.SingleTurnEnv`.
    """
    import verifiers
    from datasets import Image, List, load_dataset

    rows = load_dataset("parquet", data_files=str(data or DATA), split="train")
    rows = rows.cast_column("images", List(Image(decode=False)))
    spare = [name for name in rows.column_names if name not in ("answer", "info")]
    dataset = rows.map(
        lambda row: {"prompt": messages(row["prompt"], row["images"])}, remove_columns=spare, writer_batch_size=32
    )
    rubric = verifiers.Rubric(funcs=[correct_answer])
    return verifiers.SingleTurnEnv(dataset=dataset, rubric=rubric, **options)


def correct_answer(completion: Any, info: Any, **state: Any) -> float:
    """Return 1.0 for a right completion, 0.0 for a wrong one."""
    grading = json.loads(info) if isinstance(info, str) else info
    return float(GRADER.grade(completion_text(completion), grading))


def messages(prompt: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a prompt in the form of OpenAI's API, with its images as data: URIs."""
    rest = iter(images)
    return [{"role": turn["role"], "content": [_block(block, rest) for block in turn["content"]]} for turn in prompt]


def _block(block: Mapping[str, Any], images: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text", "text": block["text"]}
    image = next(images)
    kind = Path(image["path"]).suffix.removeprefix(".").replace("jpg", "jpeg")
    text = base64.b64encode(image["bytes"]).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{text}"}}
