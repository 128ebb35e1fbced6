"""What supervised fine-tuning imitates: the record's reasoning, else the model's own right answer, else the bare one.

Pure, but for the grader. The kinds are counted, since they decide what the fine-tuning means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from hardsample.grading.grader import Grader
from hardsample.kernels.keys import mask_key

REASONING_COLUMNS = ("reasoning", "rationale", "cot", "chain_of_thought", "thinking", "response", "explanation")
REASONING, OWN, BARE = "reasoning", "own rollout", "bare answer"


def completion_dataset(
    data: Dataset, rollouts: Mapping[str, Sequence[str]], seed: int, column: str | None = None
) -> tuple[Dataset, dict[str, int]]:
    """Make the prompt-completion dataset that TRL's `SFTTrainer` trains on.

    Args:
        data: with the canonical columns.
        rollouts: sample → its right completions under the whole image (rejection sampling).
        seed: which of them is taken.
        column: of the reasoning; default the first of `REASONING_COLUMNS` that there is.

    Returns:
        Columns prompt, completion and images (none if no sample has one), and how many targets are of which kind.
    """
    columns = [column] if column else [name for name in REASONING_COLUMNS if name in data.column_names]
    graded = ("solution", "answers", "grader", "options", "box_format")
    named = [name for name in (*graded, *columns) if name in data.column_names]
    counts: Counter[str] = Counter()
    texts = []
    with Grader() as grader:
        for sample, record in zip(data["id"], data.select_columns(named), strict=True):
            text, kind = target(sample, record, rollouts.get(sample, ()), columns, seed, grader)
            texts.append(text)
            counts[kind] += 1
    completions = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    made = data.select_columns(["prompt", "images"]).add_column("completion", completions)
    if not any(len(images) for images in data.with_format("arrow")["images"][:].to_pylist()):
        made = made.remove_columns("images")
    return made, dict(counts)


def target(
    sample: str,
    record: Mapping[str, Any],
    rollouts: Sequence[str],
    columns: Sequence[str],
    seed: int,
    grader: Grader,
) -> tuple[str, str]:
    """Choose the text that a sample's fine-tuning imitates.

    Args:
        sample: its id.
        record: its solution, what its grader needs, and its reasoning.
        rollouts: its right completions.
        columns: where reasoning may stand, the first choice first.
        seed: of the choice among several right completions.
        grader: tells whether the reasoning ends in the right answer; if not, the answer is written after it.

    Returns:
        The text and its kind.
    """
    solution = str(record["solution"])
    for name in columns:
        reasoning = record.get(name)
        if isinstance(reasoning, str) and reasoning.strip():
            text = reasoning.strip()
            return (text if grader.grade(text, record) else f"{text}\n{solution}"), REASONING
    distinct = sorted(set(rollouts))
    if distinct:
        return distinct[mask_key(seed, sample, b"sft-target")[0] % len(distinct)], OWN
    return solution, BARE
