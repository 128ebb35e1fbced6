"""Options of a choice question: which of them a gold means, and how they are written below the question. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hardsample.data.records.conversation import RecordError
from hardsample.data.records.defaults import DEFAULT_TEMPLATE, NO_TEMPLATE
from hardsample.data.records.solutions import given_options, read_literal, unwrap, written_options
from hardsample.grading.parsing.answers import find_answer

OPTION_COLUMNS = ("options", "choices", "option", "choice")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

SEVERAL_TEMPLATE = "{letter}. {option}\nAnswer with the letters of all right options."
"""What the default is where several options together are the answer."""
BARE_TEMPLATE = "- {option}\nAnswer with the right option."
"""What the default is where options are themselves letters of other options, so that a letter would mean two."""

_FIELD = re.compile(r"\{(letter|option)\}")
_ONE_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
_LETTERED = re.compile(r"\(?([A-Z])[.:)]+\s*(.+)", re.DOTALL)
_RUN = re.compile(r"[A-Z]{2,26}")
_SEPARATOR = re.compile(r"[\s,;/&|+、，；]+|\band\b|和")
_INDEX = re.compile(r"\d{1,3}")
# what may stand between two options of a list in the question: separators, quotes, brackets, "or", and a marker
_BETWEEN = re.compile(
    r"(?=\W)[\s,;:/|.()\[\]{}\"'`*•、，；。-]{0,9}(?:(?:or|或)\s)?\s{0,3}"
    r"(?:[(\[]?(?:[A-Z]|\d{1,2})[.:)\]、]{1,2}\s{0,9})?[\"'`(]?",
    re.IGNORECASE,
)
_MOST_BETWEEN = 32
"""The most characters that `_BETWEEN` matches."""


@dataclass(frozen=True)
class Choice:
    """What a gold means among the options: their places, and the place that it counted out, if it did."""

    places: frozenset[int]
    index: int | None = None


def column_options(raw: Mapping[str, Any]) -> tuple[list[str] | None, str]:
    """The options that a column holds, and its name.

    Raises:
        RecordError: a column of options holds text that is no list of them, or more options than letters.
    """
    for name in OPTION_COLUMNS:
        value = raw.get(name)
        options = given_options(value)
        if options:
            if name in ("option", "choice") and len(options) < 2:
                continue
            if len(options) > len(LETTERS):
                raise RecordError(f"column {name!r} holds {len(options)} options; there are only 26 letters for them")
            return options, name
        if name in ("options", "choices") and isinstance(value, str) and not _says_none(value):
            raise RecordError(f"column {name!r} holds {value[:120]!r}, which is no list of options; write one")
    return None, ""


def chosen(answers: Sequence[str], options: Sequence[str], indices: bool) -> Choice | None:
    """Which options a gold means: their text, letter, index from 0, or several letters.

    Several answers of a list mean several options that belong together, unless all but one are none of the options
    (annotators' other wordings).

    Args:
        answers: the gold, or its accepted answers.
        options: the options' texts.
        indices: whether a number that is no option's text is an index.

    Returns:
        The places, from 0; None where the gold is none of the options.
    """
    read = [_chosen(answer, options, indices) for answer in answers]
    met = [choice for choice in read if choice is not None]
    places = frozenset().union(*(choice.places for choice in met))
    if not met or (len(met) < len(read) and len(places) > 1):
        return None
    return Choice(places, met[0].index)


def counted(answers: Sequence[str], options: Sequence[str]) -> int | None:
    """The number that a gold is where it is no option's text: an index, if it is one of them."""
    text = unwrap(answers[0])
    return int(text) if _INDEX.fullmatch(text) and _same_place(text, options) is None else None


def letters_of(answers: Sequence[str]) -> str | None:
    """`A, C` for a list of several letters, whose options stand elsewhere; None for any other gold."""
    letters = {answer.strip() for answer in answers}
    if len(letters) < 2 or not all(len(letter) == 1 and letter in LETTERS[:10] for letter in letters):
        return None
    return ", ".join(sorted(letters))


def solution_of(choice: Choice, answers: Sequence[str], options: Sequence[str]) -> str:
    """The canonical solution: letters for several options or an index, else the gold as it is."""
    if len(choice.places) > 1:
        return ", ".join(LETTERS[place] for place in sorted(choice.places))
    (place,) = choice.places
    if choice.index is not None:
        return options[place] if _same_place(LETTERS[place], options) not in (None, place) else LETTERS[place]
    answer = next(answer for answer in answers if _chosen(answer, options, False) is not None)
    said = find_answer(answer)
    return said.text if said.source == "phrase" and _same_place(unwrap(answer), options) is None else answer


def lines_below(question: str, options: Sequence[str], template: str, several: bool) -> str:
    """What is written below a question so that its options are asked; empty where it lists them already.

    Args:
        question: all that the user's turns say.
        options: the options' texts.
        template: see `DEFAULT_TEMPLATE`: the line with {option} is written for each option; or "none".
        several: whether several options together are the answer.
    """
    if template == NO_TEMPLATE or lists(question, options):
        return ""
    if template == DEFAULT_TEMPLATE:
        clash = any(_same_place(letter, options) not in (None, place) for place, letter in _lettered(options))
        template = BARE_TEMPLATE if clash else SEVERAL_TEMPLATE if several else template
    lines = []
    for line in template.split("\n"):
        if "{option}" not in line:
            lines.append(line)
            continue
        for place, letter in _lettered(options):
            values = {"letter": letter, "option": options[place]}
            lines.append(_FIELD.sub(lambda field, values=values: values[field.group(1)], line))  # type: ignore[misc]
    return "\n".join(lines)


def lists(question: str, options: Sequence[str]) -> bool:
    """Whether a question lists these options: one after the other, with nothing but separators and markers between."""
    if [_plain(text) for text in written_options(question)] == [_plain(option) for option in options]:
        return True
    said = " ".join(question.split()).casefold()
    wanted = [" ".join(option.split()).casefold() for option in options]
    start = said.find(wanted[0])
    while start >= 0:
        if not said[start - 1 : start].isalnum() and _listed_from(said, wanted, start):
            return True
        start = said.find(wanted[0], start + 1)
    return False


def _listed_from(said: str, wanted: Sequence[str], start: int) -> bool:
    """Whether the options stand one after the other from here on; the last one ends a word."""
    end = start + len(wanted[0])
    for option in wanted[1:]:
        latest = end + _MOST_BETWEEN
        place = said.find(option, end, latest + len(option))
        while place >= 0 and not _BETWEEN.fullmatch(said, end, place):
            place = said.find(option, place + 1, latest + len(option))
        if place < 0:
            return False
        end = place + len(option)
    return not said[end : end + 1].isalnum()


def _chosen(answer: str, options: Sequence[str], indices: bool) -> Choice | None:
    text = unwrap(answer)
    place = _same_place(text, options)
    if place is not None:
        return Choice(frozenset({place}))
    letter = _ONE_LETTER.fullmatch(text)
    if letter:
        place = LETTERS.index(letter.group(1).upper())
        return Choice(frozenset({place})) if place < len(options) else None
    lettered = _LETTERED.fullmatch(text)
    if lettered and (place := _same_place(lettered.group(2), options)) is not None:
        return Choice(frozenset({place}))
    if indices and _INDEX.fullmatch(text):
        return Choice(frozenset({int(text)}), int(text)) if int(text) < len(options) else None
    numbers = read_literal(text) if indices else None
    if isinstance(numbers, list) and numbers and all(type(number) is int for number in numbers):
        met = min(numbers) >= 0 and max(numbers) < len(options)
        return Choice(frozenset(numbers), numbers[0]) if met else None
    said = find_answer(answer)
    if said.source == "phrase" and said.text.rstrip(" .") != answer.rstrip(" ."):
        return _chosen(said.text, options, indices)
    places = [LETTERS.index(letter) for letter in _several(text)]
    return Choice(frozenset(places)) if len(set(places)) > 1 and max(places) < len(options) else None


def _several(text: str) -> list[str]:
    """The letters of `A,C`, `AC`, `(A)(C)`, `a and c`; none where the text is anything else."""
    bare = text.strip("[]{} .").replace(")(", ") (")
    if _RUN.fullmatch(bare):
        return list(bare)
    found = [_ONE_LETTER.fullmatch(part.strip("'\"")) for part in _SEPARATOR.split(bare) if part]
    return [letter.group(1).upper() for letter in found if letter] if all(found) and len(found) > 1 else []


def _same_place(text: str, options: Sequence[str]) -> int | None:
    """The option of this text: as it is, else up to case, spaces and what surrounds it."""
    for same in (str.strip, _plain):
        if (wanted := same(text)) and wanted in (texts := [same(option) for option in options]):
            return texts.index(wanted)
    return None


def _plain(text: str) -> str:
    return _short_plain(text) if len(text) <= 200 else " ".join(unwrap(text).casefold().split())


@lru_cache(maxsize=8192)
def _short_plain(text: str) -> str:
    return " ".join(unwrap(text).casefold().split())


def _lettered(options: Sequence[str]) -> list[tuple[int, str]]:
    return [(place, LETTERS[place]) for place in range(len(options))]


def _says_none(value: str) -> bool:
    return value.strip().casefold() in ("", "[]", "{}", "none", "null", "nan", "n/a")
