"""Turn a scored record into the row of each format. Pure: images are what the writer put in their place.

All rows hold what hardsample's own reader needs to grade as before: `grader`, `options`, `box_format`. Several accepted
answers are one JSON text in the place of the gold. Nested values are JSON text, and what is missing is an empty text:
trainers stack columns to arrays, and `datasets` guesses types of JSON from its first records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hardsample.exporting.prompts import alternates, is_one_question, marked_turns

Row = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A scored record.

    Attributes:
        record: canonical.
        images: in the place of its images, in order: names of files, or `{"bytes", "path"}`.
        difficulty: its difficulty columns.
        grading: what a grader reads of it, see `grading_of`.
        template: how options are written below a question, for the formats that keep the two apart.
    """

    record: Mapping[str, Any]
    images: Sequence[Any]
    difficulty: Mapping[str, Any]
    grading: Mapping[str, Any]
    template: str = ""


def grading_of(gradable: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a grader reads of a record: the argument of `Grader.grade`, without what is missing.

    Args:
        gradable: a canonical record, for boxes with `answer_format` and `image_size`.
    """
    names = ("solution", "answers", "grader", "options", "box_format", "answer_format", "image_size")
    return {name: gradable[name] for name in names if gradable.get(name) is not None}


def ms_swift(sample: Sample) -> Row:
    """Return the row of ms-swift: messages, images as paths, the gold in `solution`."""
    record = sample.record
    return {
        "id": record["id"],
        "messages": marked_turns(record["prompt"]),
        "images": list(sample.images),
        "solution": gold_text(record),
        "grading": _json(sample.grading),
        **_columns(sample),
    }


def llamafactory(sample: Sample) -> Row:
    """Return the row of LLaMA-Factory: messages that end with the gold as the assistant's turn."""
    record = sample.record
    return {
        "id": record["id"],
        "messages": [*marked_turns(record["prompt"]), {"role": "assistant", "content": record["solution"]}],
        "images": list(sample.images),
        "answers": _json(record["answers"]) if record["answers"] else "",
        **_columns(sample),
    }


def easyr1(sample: Sample) -> Row:
    """Return the row of EasyR1: one question, images as bytes, `grading` for the reward file."""
    record = sample.record
    return {
        "id": record["id"],
        "problem": marked_turns(record["prompt"])[0]["content"],
        "images": list(sample.images),
        "answer": gold_text(record),
        "grading": _json(sample.grading),
        **_columns(sample),
    }


def verl(sample: Sample) -> Row:
    """Return the row of verl: messages, images as bytes, the gold in `reward_model`, `grading` in `extra_info`."""
    record = sample.record
    return {
        "id": record["id"],
        "data_source": "hardsample",
        "prompt": marked_turns(record["prompt"]),
        "images": list(sample.images),
        "reward_model": {"style": "rule", "ground_truth": gold_text(record)},
        "extra_info": {"index": record["record_number"], "id": record["id"], "grading": _json(sample.grading)},
        **_columns(sample),
    }


def prime_rl(sample: Sample) -> Row:
    """Return the row of the verifiers environment for prime-rl: blocks, images as bytes, `grading` in `info`."""
    record = sample.record
    return {
        "id": record["id"],
        "prompt": [
            {
                "role": turn["role"],
                "content": [{"type": block["type"], "text": block["text"]} for block in turn["content"]],
            }
            for turn in record["prompt"]
        ],
        "images": list(sample.images),
        "answer": gold_text(record),
        "info": _json(sample.grading),
        **_columns(sample),
    }


def one_question_only(record: Mapping[str, Any]) -> str | None:
    """Return why a record does not fit a format that holds one question, or None."""
    if is_one_question(record["prompt"]):
        return None
    return "the format holds one question, and the prompt has a system turn or several turns"


def taking_turns_only(record: Mapping[str, Any]) -> str | None:
    """Return why a record does not fit a format in which user and assistant take turns, or None."""
    return None if alternates(record["prompt"]) else "in the format user and assistant take turns, here they do not"


def fits(record: Mapping[str, Any]) -> str | None:
    """Return None: the format holds any record."""
    return None


def gold_text(record: Mapping[str, Any]) -> str:
    """Return the gold: the solution, or several accepted answers as a JSON list."""
    return _json(record["answers"]) if record["answers"] else record["solution"]


def _columns(sample: Sample) -> Row:
    """Return the columns that all formats have: what grades the record, and how hard it is."""
    record = sample.record
    return {
        "ability": record["ability"] or "",
        "grader": record["grader"],
        "options": _json(record["options"]) if record["options"] else "",
        "box_format": record["box_format"] or "",
        **sample.difficulty,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
