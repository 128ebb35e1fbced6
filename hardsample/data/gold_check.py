"""Detect golds that no answer can satisfy, by grading each gold, and each of its options, as an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardsample.data.records.option_text import LETTERS, chosen
from hardsample.grading.grader import Grader

_YES_NO = {"yes", "no"}


def gold_problems(records: Sequence[Mapping[str, Any]], grader: Grader) -> list[str | None]:
    """Grade every record's gold as an answer, `<answer>gold</answer>`, and each of its options.

    A gold passes if one of its accepted answers is graded right and, of the options, exactly those that it means: by
    letter and by text. Options that are themselves letters are graded by their text only.

    Args:
        records: canonical records: `solution`, `answers`, `grader`, `options`, `box_format`.
        grader: the grader to use; many records per call are cheaper.

    Returns:
        For each record why no answer can satisfy its gold, or None.
    """
    questions = [_questions(record) for record in records]
    verdicts = iter(
        grader.grade_many(
            [
                (f"<answer>{answer}</answer>", gold)
                for golds, options in questions
                for answer, gold in (*golds, *((text, gold) for text, _, gold in options))
            ]
        )
    )
    return [
        _problem(record, [next(verdicts) for _ in golds], [(index, next(verdicts)) for _, index, _ in options])
        for record, (golds, options) in zip(records, questions, strict=True)
    ]


_Golds = list[tuple[str, dict[str, Any]]]
_Options = list[tuple[str, int, dict[str, Any]]]


def _questions(record: Mapping[str, Any]) -> tuple[_Golds, _Options]:
    """Return what to grade: each accepted answer against itself, each option (letter and text) against the gold."""
    fields = {name: record[name] for name in ("grader", "options")}
    if record["grader"] in ("grounding", "detection"):
        fields["box_format"] = record["box_format"] or "pixels"
    golds = [(answer, fields | {"solution": answer}) for answer in record["answers"] or [record["solution"]]]
    options = record["options"] or []
    if record["grader"] != "choice" or not options:
        return golds, []
    gold = fields | {"solution": record["solution"], "answers": record["answers"]}
    plain = [option.strip().casefold() for option in options]
    answers = []
    for index, option in enumerate(options[: len(LETTERS)]):
        letter = LETTERS[index]
        if letter.casefold() not in plain and set(plain) != _YES_NO:
            answers.append((letter, index, gold))
        if option.strip():
            answers.append((option, index, gold))
    return golds, answers


def _problem(record: Mapping[str, Any], golds: list[bool], options: list[tuple[int, bool]]) -> str | None:
    """Return why no answer can satisfy a gold, given the verdicts on its golds and on its options by index."""
    solution = record["solution"]
    if not any(golds):
        return (
            f"the solution {solution[:120]!r} is graded wrong by its own grader ({record['grader']}), so no answer can "
            "be right; correct it, or name another grader"
        )
    if not options:
        return None
    texts = record["options"]
    choice = chosen(record["answers"] or [solution], texts, allow_index=False)
    right = {index for index, is_right in options if is_right}
    listed = ", ".join(f"{LETTERS[index]}. {text}" for index, text in enumerate(texts))[:200]
    if choice is not None and len(choice.indices) > 1:
        wrong = sorted(right)
    elif choice is None and len(right) == 1:
        return None  # the gold is an option in other notation
    elif choice is None and not right:
        return (
            f"the solution {solution[:120]!r} is not one of the {len(texts)} options ({listed}); give the letter, the "
            "text, or the index (from 0)"
        )
    else:
        meant = choice.indices if choice is not None else frozenset()
        if not right & meant:
            return f"option {solution[:120]!r} is graded wrong, by its letter and by its text; the options are {listed}"
        wrong = sorted(right - meant)
    if not wrong:
        return None
    named = ", ".join(f"{LETTERS[index]}. {texts[index]}" for index in wrong)[:200]
    return f"the wrong answer {named!r} is graded right for the solution {solution[:120]!r}; make the options differ"
