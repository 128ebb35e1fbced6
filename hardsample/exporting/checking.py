"""Check a row before it is written: hardsample's own reader must read the record that was scored from it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hardsample.data.formats import canonical
from hardsample.data.records.conversation import RecordError
from hardsample.data.records.option_text import chosen
from hardsample.data.vlmevalkit import table_record
from hardsample.exporting.prompts import same_prompt
from hardsample.exporting.rows import Row, Sample


def difference(sample: Sample, row: Row, is_table: bool = False) -> str | None:
    """Return how the record that hardsample reads from a row differs from the one that was scored, or None.

    What is peculiar to the record follows after a colon.

    Args:
        sample: the record, and its images as they are in the row.
        row: of any format.
        is_table: the row is one of a VLMEvalKit table.
    """
    record, number = sample.record, sample.record["record_number"]
    try:
        raw = table_record(cells(row), str) if is_table else row
        read = canonical(raw, number, None, sample.template)
    except RecordError as error:
        return f"the record cannot be read back: {error}"
    images = [{"bytes": text} for text in sample.images] if is_table else list(sample.images)
    if read.id != record["id"]:
        return f"its id is read back otherwise: {read.id[:80]!r}"
    if not same_prompt(read.prompt, record["prompt"]):
        return "its question is read back with another text"
    if read.images != images:
        return "its images are read back in another order"
    back = _graded_by(read.grader, read.solution, read.answers, read.options, read.box_format)
    if back != _graded_by(*(record[name] for name in ("grader", "solution", "answers", "options", "box_format"))):
        return f"its answer would be graded differently: {read.grader}, {read.solution[:80]!r}"
    return None


def _graded_by(
    grader: str, solution: str, answers: list[str] | None, options: list[str] | None, box_format: str | None
) -> tuple[Any, ...]:
    """Return what grades depend on: of a choice the options that are right, in whatever words the gold gives them."""
    choice = chosen(answers or [solution], options, allow_index=False) if grader == "choice" and options else None
    gold = (solution, answers) if choice is None else sorted(choice.indices)
    return grader, gold, options, box_format


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row as a table holds it: texts, empty where a value is missing."""
    return {
        name: "" if value is None else value if isinstance(value, str) else json.dumps(value)
        for name, value in row.items()
    }
