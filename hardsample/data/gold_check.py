"""Golds that no answer can meet, found by grading them: each gold as an answer, and with options each option too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardsample.data.records.option_text import LETTERS, chosen
from hardsample.grading.grader import Grader

_YES_NO = {"yes", "no"}


def gold_problems(records: Sequence[Mapping[str, Any]], grader: Grader) -> list[str | None]:
    """Grade every record's gold as an answer, `<answer>gold</answer>`, and each of its options.

    A gold passes where one of its accepted answers is graded right, and of the options those that it means and no
    others: by letter and by text. Options that are letters themselves are asked by their text.

    Args:
        records: canonical records: `solution`, `answers`, `grader`, `options`, `box_format`.
        grader: grades them; many records at once are cheaper.

    Returns:
        For each record why no answer can meet its gold, or None.
    """
    asked = [_asked(record) for record in records]
    verdicts = iter(
        grader.grade_many(
            [
                (f"<answer>{answer}</answer>", gold)
                for golds, options in asked
                for answer, gold in (*golds, *((text, gold) for text, _, gold in options))
            ]
        )
    )
    return [
        _problem(record, [next(verdicts) for _ in golds], [(place, text, next(verdicts)) for text, place, _ in options])
        for record, (golds, options) in zip(records, asked, strict=True)
    ]


_Golds = list[tuple[str, dict[str, Any]]]
_Options = list[tuple[str, int, dict[str, Any]]]


def _asked(record: Mapping[str, Any]) -> tuple[_Golds, _Options]:
    """What is graded: each accepted answer against itself, and each option by letter and text against the gold."""
    fields = {name: record[name] for name in ("grader", "options")}
    if record["grader"] in ("grounding", "detection"):
        fields["box_format"] = record["box_format"] or "pixels"
    golds = [(answer, fields | {"solution": answer}) for answer in record["answers"] or [record["solution"]]]
    options = record["options"] or []
    if record["grader"] != "choice" or not options:
        return golds, []
    whole = fields | {"solution": record["solution"], "answers": record["answers"]}
    plain = [option.strip().casefold() for option in options]
    asked = []
    for place, option in enumerate(options[: len(LETTERS)]):
        letter = LETTERS[place]
        if letter.casefold() not in plain and set(plain) != _YES_NO:
            asked.append((letter, place, whole))
        if option.strip():
            asked.append((option, place, whole))
    return golds, asked


def _problem(record: Mapping[str, Any], golds: list[bool], options: list[tuple[int, str, bool]]) -> str | None:
    solution = record["solution"]
    if not any(golds):
        return (
            f"the solution {solution[:120]!r} is wrong by its own grader ({record['grader']}), so no answer can meet "
            "it; correct it, or name another grader"
        )
    if not options:
        return None
    texts = record["options"]
    choice = chosen(record["answers"] or [solution], texts, indices=False)
    right = {place for place, _, is_right in options if is_right}
    listed = ", ".join(f"{LETTERS[place]}. {text}" for place, text in enumerate(texts))[:200]
    if choice is not None and len(choice.places) > 1:
        wrong = sorted(right)
    elif choice is None and len(right) == 1:
        return None  # the gold is an option in other notation
    elif choice is None and not right:
        return (
            f"the solution {solution[:120]!r} is none of the {len(texts)} options ({listed}); give the letter, the "
            "text, or the index counted from 0"
        )
    else:
        meant = choice.places if choice is not None else frozenset()
        if not right & meant:
            return f"option {solution[:120]!r} is graded wrong, by its letter and by its text; the options are {listed}"
        wrong = sorted(right - meant)
    if not wrong:
        return None
    named = ", ".join(f"{LETTERS[place]}. {texts[place]}" for place in wrong)[:200]
    return f"the wrong answer {named!r} is graded right for the solution {solution[:120]!r}; make the options differ"
