"""Read the gold of a record (text, list, message or mapping) as a list of accepted answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hardsample.data.records.conversation import RecordError
from hardsample.data.records.solutions import read_literal, solution_text

ANSWER_KEYS = ("content", "value", "answer", "text", "solution", "ground_truth", "target")
"""Keys of the answer in a mapping: a message, a verifier's mapping, an annotator's answer."""

BOX_KEYS = ("bbox_2d", "bbox", "box", "boxes", "bounding_box", "coordinates", "x1")
MOST_LITERAL_CHARS = 100_000
_MARKED = re.compile(r"(?:^|\n)\s*####\s*(\S[^\n]{0,200})\s*$")
"""GSM8K's gold: its reasoning, then the answer after four hashes."""
_ANSWER_IS = re.compile(
    r"(?:^|[.!?\n]\s*)(?:so|thus|therefore|hence)?,?\s*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*:?|:)\s*"
    r"(?![^\n]*(?:\\boxed|<answer>))(\S[^\n]{0,100}?)[.。]?\s*$",
    re.IGNORECASE,
)
"""A gold that ends with a sentence such as "The answer is 5", as completions do."""


def accepted_answers(value: Any, column: str) -> list[str]:
    """Return all accepted answers of a gold in order, without duplicates.

    A list of texts is a list of accepted answers, and so is a list of annotators' `{"answer": …}`; either may also be
    written as text, in JSON or as a Python literal. Of a list of messages the last assistant's text counts. A list of
    numbers or boxes is one answer: `[3, 1, 4]` is one answer, `[14]` is 14.

    Args:
        value: the gold of the record; not empty.
        column: its column, for messages.

    Raises:
        RecordError: a mapping or a list that is not an answer.
    """
    if isinstance(value, str):
        answers = _of_text(value)
    elif isinstance(value, Mapping):
        answers = [_of_mapping(value, column)]
    elif isinstance(value, list | tuple):
        answers = _of_list(list(value), column)
    else:
        answers = [solution_text(value)]
    accepted = list(dict.fromkeys(answer for answer in answers if answer.strip()))
    if not accepted:
        raise RecordError(f"column {column!r} holds {_short(value)}, which has no text; give the gold answer")
    return accepted


def _of_text(value: str) -> list[str]:
    """Return the answers of a text: the items of a list written as text, else the text itself."""
    if marked := _MARKED.search(value) or _ANSWER_IS.search(value):
        return [marked.group(1).strip()]
    parsed = read_literal(value.strip(), MOST_LITERAL_CHARS)
    if isinstance(parsed, Mapping) and ("role" in parsed or "from" in parsed):
        parsed = [parsed]
    if not isinstance(parsed, list) or not parsed:
        return [value]
    try:
        answers = _of_list(parsed, "")
    except RecordError:
        return [value]
    return [value] if len(answers) == 1 and _is_numbers(parsed) and len(parsed) > 1 else answers


def _of_list(items: list[Any], column: str) -> list[str]:
    present = [item for item in items if item is not None]
    if present and all(isinstance(item, Mapping) for item in present):
        if any("role" in item or "from" in item for item in present):
            replies = [
                item for item in present if (item.get("role") or item.get("from")) in ("assistant", "gpt", "model")
            ]
            return [_of_mapping((replies or present)[-1], column)]
        if all(item.get("type") == "text" for item in present):
            return ["".join(str(item.get("text") or "") for item in present)]
        if all(_is_box(item) for item in present):
            return [solution_text(items)]
        return [_of_mapping(item, column) for item in present]
    if present and all(isinstance(item, str) for item in present):
        return present
    if len(present) == 1 and isinstance(present[0], int | float):
        return [solution_text(present[0])]
    if present and all(isinstance(item, str | int | float) for item in present) and not _is_numbers(present):
        return [solution_text(item) for item in present]
    if _is_numbers(present):
        return [solution_text(items)]
    raise RecordError(f"column {column!r} holds {_short(items)}, which is not an answer; give text, or a list of texts")


def _of_mapping(value: Mapping[str, Any], column: str) -> str:
    """Return the text of a message or of a mapping with an answer; boxes as JSON."""
    if _is_box(value):
        return solution_text(value)
    inside = next((value[key] for key in ANSWER_KEYS if value.get(key) not in (None, "", [])), None)
    if isinstance(inside, list) and all(isinstance(block, Mapping) for block in inside):
        inside = "".join(str(block.get("text") or "") for block in inside)
    if isinstance(inside, str | int | float) and inside != "":
        return solution_text(inside)
    raise RecordError(
        f"column {column!r} holds the mapping {_short(value)}, which is not an answer; give text, or a box as bbox_2d"
    )


def _is_numbers(items: list[Any]) -> bool:
    """Return whether items are numbers or lists of numbers: coordinates, boxes, counts."""
    return bool(items) and all(
        (isinstance(item, int | float) and not isinstance(item, bool))
        or (isinstance(item, list | tuple) and _is_numbers(list(item)))
        for item in items
    )


def _is_box(value: Mapping[str, Any]) -> bool:
    numbers = next((value[key] for key in BOX_KEYS if value.get(key) is not None), None)
    if isinstance(numbers, list | tuple):
        return _is_numbers(list(numbers))
    return isinstance(numbers, int | float)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "…"
