"""A gold as records hold it (text, list, message, mapping) → the answers that are accepted, as texts. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hardsample.data.records.conversation import RecordError
from hardsample.data.records.solutions import read_literal, solution_text

ANSWER_KEYS = ("content", "value", "answer", "text", "solution", "ground_truth", "target")
"""Where a mapping that stands for an answer holds it: a message, a verifier's mapping, an annotator's answer."""

BOX_KEYS = ("bbox_2d", "bbox", "box", "boxes", "bounding_box", "coordinates", "x1")
MOST_LITERAL_CHARS = 100_000
_MARKED = re.compile(r"(?:^|\n)\s*####\s*(\S[^\n]{0,200})\s*$")
"""GSM8K's gold: its reasoning, then the answer behind four hashes."""
_ANSWER_IS = re.compile(
    r"(?:^|[.!?\n]\s*)(?:so|thus|therefore|hence)?,?\s*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*:?|:)\s*"
    r"(?![^\n]*(?:\\boxed|<answer>))(\S[^\n]{0,100}?)[.。]?\s*$",
    re.IGNORECASE,
)
"""A gold that ends by saying what the answer is, as completions do."""


def accepted_answers(value: Any, column: str) -> list[str]:
    """Read a gold: every answer that is accepted, duplicates removed, the first one first.

    A list of texts is a list of accepted answers, and so is a list of annotators' `{"answer": …}`; also as the text of
    such a list, in JSON or as Python prints it. Of messages the last assistant's text counts. Numbers and boxes stay
    what they are: `[3, 1, 4]` is one answer, `[14]` is 14.

    Args:
        value: what the record holds, not absent.
        column: where, for the message.

    Raises:
        RecordError: a mapping or a list that is no answer.
    """
    if isinstance(value, str):
        answers = _of_text(value)
    elif isinstance(value, Mapping):
        answers = [_of_mapping(value, column)]
    elif isinstance(value, list | tuple):
        answers = _of_list(list(value), column)
    else:
        answers = [solution_text(value)]
    held = list(dict.fromkeys(answer for answer in answers if answer.strip()))
    if not held:
        raise RecordError(f"column {column!r} holds {_short(value)}, which has no text; give the gold answer")
    return held


def _of_text(value: str) -> list[str]:
    """A text, or the answers of the list that it writes out; any other text is the answer itself."""
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
    held = [item for item in items if item is not None]
    if held and all(isinstance(item, Mapping) for item in held):
        if any("role" in item or "from" in item for item in held):
            said = [item for item in held if (item.get("role") or item.get("from")) in ("assistant", "gpt", "model")]
            return [_of_mapping((said or held)[-1], column)]
        if all(item.get("type") == "text" for item in held):
            return ["".join(str(item.get("text") or "") for item in held)]
        if all(_is_box(item) for item in held):
            return [solution_text(items)]
        return [_of_mapping(item, column) for item in held]
    if held and all(isinstance(item, str) for item in held):
        return held
    if len(held) == 1 and isinstance(held[0], int | float):
        return [solution_text(held[0])]
    if held and all(isinstance(item, str | int | float) for item in held) and not _is_numbers(held):
        return [solution_text(item) for item in held]
    if _is_numbers(held):
        return [solution_text(items)]
    raise RecordError(f"column {column!r} holds {_short(items)}, which is no answer; give a text, or a list of texts")


def _of_mapping(value: Mapping[str, Any], column: str) -> str:
    """The text of a message or of a mapping that holds an answer; boxes as JSON."""
    if _is_box(value):
        return solution_text(value)
    inside = next((value[key] for key in ANSWER_KEYS if value.get(key) not in (None, "", [])), None)
    if isinstance(inside, list) and all(isinstance(block, Mapping) for block in inside):
        inside = "".join(str(block.get("text") or "") for block in inside)
    if isinstance(inside, str | int | float) and inside != "":
        return solution_text(inside)
    raise RecordError(
        f"column {column!r} holds the mapping {_short(value)}, which is no answer; give its text, or a box as bbox_2d"
    )


def _is_numbers(items: list[Any]) -> bool:
    """Numbers, or lists of them: coordinates, boxes, counts."""
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
