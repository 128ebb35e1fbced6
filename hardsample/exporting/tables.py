"""Turn a scored record into rows of VLMEvalKit's tables, choice questions apart from open ones. Pure.

VLMEvalKit takes a table with the columns A and B as choice questions, all of it, and writes the options below each
question itself; hence two tables, and options taken out of the question where hardsample had put them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hardsample.data.records.defaults import NO_TEMPLATE
from hardsample.data.records.option_text import LETTERS, chosen, lists_options, option_lines
from hardsample.data.vlmevalkit import ID_COLUMN
from hardsample.exporting.prompts import images_first, is_one_question, question_text
from hardsample.exporting.rows import Row, Sample, gold_text

CHOICE, OPEN = "mcq", "openended"
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}
"""What pandas, with which VLMEvalKit reads its tables, takes for a missing value."""


def columns(table: str, difficulty: list[str]) -> list[str]:
    """Return the columns of a table."""
    names = ["index", ID_COLUMN, "question", *(LETTERS if table == CHOICE else ()), "answer", "image", "image_path"]
    return [*names, "category", "grader", "box_format", *(("choices",) if table == OPEN else ()), *difficulty]


def table_rows(sample: Sample) -> list[tuple[str, Row]]:
    """Return the rows that may hold a sample and their tables, the better one first.

    The image is base64 text, or a list of such texts; `index` is the record's number, a file's name in VLMEvalKit.
    """
    record = sample.record
    number = record["record_number"]
    texts = list(sample.images)
    names = [f"{number}.jpg"] if len(texts) == 1 else [f"{number}_{place}.jpg" for place in range(len(texts))]
    row = {
        "index": str(number),
        ID_COLUMN: record["id"],
        "image": texts[0] if len(texts) == 1 else json.dumps(texts),
        "image_path": names[0] if len(names) == 1 else json.dumps(names),
        "category": record["ability"] or "",
        "grader": record["grader"],
        "box_format": record["box_format"] or "",
        **sample.difficulty,
    }
    question = question_text(record["prompt"])
    rows = [(OPEN, row | {"question": question, "answer": gold_text(record), "choices": ""})]
    if record["options"]:
        choices = json.dumps(record["options"], ensure_ascii=False)
        rows.append((OPEN, row | {"question": question, "answer": gold_text(record), "choices": choices}))
    if record["grader"] == "choice" and record["options"]:
        choice = chosen(record["answers"] or [record["solution"]], record["options"], allow_index=False)
        letters = dict(zip(LETTERS, record["options"], strict=False))
        if choice is not None:
            answer = LETTERS[min(choice.indices)]
            asked = without_options(question, record["options"], sample.template)
            rows.insert(0, (CHOICE, row | letters | {"question": asked, "answer": answer}))
    return rows


def fits_table(record: Mapping[str, Any]) -> str | None:
    """Return why a record does not fit VLMEvalKit's tables, or None."""
    if not is_one_question(record["prompt"]):
        return "the format holds one question, and the prompt has a system turn or several turns"
    if not record["images"]:
        return "VLMEvalKit leaves out rows without an image"
    if not images_first(record["prompt"]):
        return "VLMEvalKit shows images before the question, and here text comes before one"
    options = record["options"] or []
    if record["grader"] == "choice":
        choice = chosen(record["answers"] or [record["solution"]], options, allow_index=False) if options else None
        if choice is not None and len(choice.indices) > 1:
            return "several options are right together, and a choice question of VLMEvalKit has one"
    if MISSING & {text.strip() for text in (*options, gold_text(record), question_text(record["prompt"]))}:
        return "VLMEvalKit's reader takes a text of it, such as None or NA, for a missing value"
    return None


def lists_twice(sample: Sample) -> bool:
    """Return whether VLMEvalKit will list options that the question itself lists too."""
    options = sample.record["options"]
    question = question_text(sample.record["prompt"])
    return bool(options) and lists_options(without_options(question, options, sample.template), options)


def without_options(question: str, options: list[str], template: str) -> str:
    """Return a question without the lines that hardsample had appended to list its options."""
    if template == NO_TEMPLATE:
        return question
    lines = [option_lines("", options, template, several) for several in (False, True)]
    return next(
        (question.removesuffix(f"\n{text}") for text in lines if question.endswith(f"\n{text}") and text), question
    )
