"""Options of a choice question: which options a gold means, and how to list them below the question. Pure."""

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
"""The default if several options together are the answer."""
BARE_TEMPLATE = "- {option}\nAnswer with the right option."
"""The default if an option's text is the letter of another option, so that a letter would be ambiguous."""

_FIELD = re.compile(r"\{(letter|option)\}")
_ONE_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
_LETTERED = re.compile(r"\(?([A-Z])[.:)]+\s*(.+)", re.DOTALL)
_RUN = re.compile(r"[A-Z]{2,26}")
_SEPARATOR = re.compile(r"[\s,;/&|+、，；]+|\band\b|和")
_INDEX = re.compile(r"\d{1,3}")
# what may separate two options of a list in the question: punctuation, quotes, brackets, "or", and a marker
_BETWEEN = re.compile(
    r"(?=\W)[\s,;:/|.()\[\]{}\"'`*•、，；。-]{0,9}(?:(?:or|或)\s)?\s{0,3}"
    r"(?:[(\[]?(?:[A-Z]|\d{1,2})[.:)\]、]{1,2}\s{0,9})?[\"'`(]?",
    re.IGNORECASE,
)
_MOST_BETWEEN = 32
"""The most characters that `_BETWEEN` matches."""


@dataclass(frozen=True)
class Choice:
    """The options that a gold means, and the index that it gives, if it gives one."""

    indices: frozenset[int]
    given_index: int | None = None


def column_options(raw: Mapping[str, Any]) -> tuple[list[str] | None, str]:
    """Return the options of a record and the name of their column.

    Raises:
        RecordError: the column holds text that is not a list of options, or more options than there are letters.
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
        if name in ("options", "choices") and isinstance(value, str) and not _is_none_text(value):
            raise RecordError(f"column {name!r} holds {value[:120]!r}, which is not a list of options; write one")
    return None, ""


def chosen(answers: Sequence[str], options: Sequence[str], allow_index: bool) -> Choice | None:
    """Return which options a gold means: their text, letter, index from 0, or several letters.

    A list of answers means several options together, unless only one of them is an option (the others are annotators'
    other wordings).

    Args:
        answers: the gold, or its accepted answers.
        options: the options' texts.
        allow_index: whether a number that is not an option's text is an index.

    Returns:
        The choice, indices from 0; None if the gold is not an option.
    """
    choices = [_chosen(answer, options, allow_index) for answer in answers]
    matched = [choice for choice in choices if choice is not None]
    indices = frozenset().union(*(choice.indices for choice in matched))
    if not matched or (len(matched) < len(choices) and len(indices) > 1):
        return None
    return Choice(indices, matched[0].given_index)


def option_number(answers: Sequence[str], options: Sequence[str]) -> int | None:
    """Return the gold as a number if it is one and not an option's text: perhaps an index."""
    text = unwrap(answers[0])
    return int(text) if _INDEX.fullmatch(text) and _index_of_text(text, options) is None else None


def letters_of(answers: Sequence[str]) -> str | None:
    """Return `A, C` for a list of several letters, whose options are not in the record; None for any other gold."""
    letters = {answer.strip() for answer in answers}
    if len(letters) < 2 or not all(len(letter) == 1 and letter in LETTERS[:10] for letter in letters):
        return None
    return ", ".join(sorted(letters))


def solution_of(choice: Choice, answers: Sequence[str], options: Sequence[str]) -> str:
    """Return the canonical solution: letters for several options or an index, else the gold as it is."""
    if len(choice.indices) > 1:
        return ", ".join(LETTERS[index] for index in sorted(choice.indices))
    (index,) = choice.indices
    if choice.given_index is not None:
        return options[index] if _index_of_text(LETTERS[index], options) not in (None, index) else LETTERS[index]
    answer = next(answer for answer in answers if _chosen(answer, options, False) is not None)
    phrase = find_answer(answer)
    return phrase.text if phrase.source == "phrase" and _index_of_text(unwrap(answer), options) is None else answer


def option_lines(question: str, options: Sequence[str], template: str, several: bool) -> str:
    """Return the lines that list the options below a question; empty if the question lists them already.

    Args:
        question: the text of the user's turns.
        options: the options' texts.
        template: like `DEFAULT_TEMPLATE`: the line with {option} is repeated for each option; or "none".
        several: whether several options together are the answer.
    """
    if template == NO_TEMPLATE or lists_options(question, options):
        return ""
    if template == DEFAULT_TEMPLATE:
        clash = any(_index_of_text(letter, options) not in (None, index) for index, letter in _lettered(options))
        template = BARE_TEMPLATE if clash else SEVERAL_TEMPLATE if several else template
    lines = []
    for line in template.split("\n"):
        if "{option}" not in line:
            lines.append(line)
            continue
        for index, letter in _lettered(options):
            values = {"letter": letter, "option": options[index]}
            lines.append(_FIELD.sub(lambda field, values=values: values[field.group(1)], line))  # type: ignore[misc]
    return "\n".join(lines)


def lists_options(question: str, options: Sequence[str]) -> bool:
    """Return whether a question lists these options in a row, with only separators and markers between them."""
    if [_plain(text) for text in written_options(question)] == [_plain(option) for option in options]:
        return True
    text = " ".join(question.split()).casefold()
    texts = [" ".join(option.split()).casefold() for option in options]
    start = text.find(texts[0])
    while start >= 0:
        if not text[start - 1 : start].isalnum() and _lists_from(text, texts, start):
            return True
        start = text.find(texts[0], start + 1)
    return False


def _lists_from(text: str, options: Sequence[str], start: int) -> bool:
    """Return whether a text lists the options in a row from `start` on, the last one ending a word."""
    end = start + len(options[0])
    for option in options[1:]:
        latest = end + _MOST_BETWEEN
        position = text.find(option, end, latest + len(option))
        while position >= 0 and not _BETWEEN.fullmatch(text, end, position):
            position = text.find(option, position + 1, latest + len(option))
        if position < 0:
            return False
        end = position + len(option)
    return not text[end : end + 1].isalnum()


def _chosen(answer: str, options: Sequence[str], allow_index: bool) -> Choice | None:
    text = unwrap(answer)
    index = _index_of_text(text, options)
    if index is not None:
        return Choice(frozenset({index}))
    letter = _ONE_LETTER.fullmatch(text)
    if letter:
        index = LETTERS.index(letter.group(1).upper())
        return Choice(frozenset({index})) if index < len(options) else None
    lettered = _LETTERED.fullmatch(text)
    if lettered and (index := _index_of_text(lettered.group(2), options)) is not None:
        return Choice(frozenset({index}))
    if allow_index and _INDEX.fullmatch(text):
        return Choice(frozenset({int(text)}), int(text)) if int(text) < len(options) else None
    numbers = read_literal(text) if allow_index else None
    if isinstance(numbers, list) and numbers and all(type(number) is int for number in numbers):
        in_range = min(numbers) >= 0 and max(numbers) < len(options)
        return Choice(frozenset(numbers), numbers[0]) if in_range else None
    phrase = find_answer(answer)
    if phrase.source == "phrase" and phrase.text.rstrip(" .") != answer.rstrip(" ."):
        return _chosen(phrase.text, options, allow_index)
    indices = [LETTERS.index(letter) for letter in _several_letters(text)]
    return Choice(frozenset(indices)) if len(set(indices)) > 1 and max(indices) < len(options) else None


def _several_letters(text: str) -> list[str]:
    """Return the letters of `A,C`, `AC`, `(A)(C)` or `a and c`; an empty list for any other text."""
    bare = text.strip("[]{} .").replace(")(", ") (")
    if _RUN.fullmatch(bare):
        return list(bare)
    letters = [_ONE_LETTER.fullmatch(part.strip("'\"")) for part in _SEPARATOR.split(bare) if part]
    return [letter.group(1).upper() for letter in letters if letter] if all(letters) and len(letters) > 1 else []


def _index_of_text(text: str, options: Sequence[str]) -> int | None:
    """Return the index of the option with this text: exactly, else up to case, spaces and wrapping."""
    for normalised in (str.strip, _plain):
        if (wanted := normalised(text)) and wanted in (texts := [normalised(option) for option in options]):
            return texts.index(wanted)
    return None


def _plain(text: str) -> str:
    return _short_plain(text) if len(text) <= 200 else " ".join(unwrap(text).casefold().split())


@lru_cache(maxsize=8192)
def _short_plain(text: str) -> str:
    return " ".join(unwrap(text).casefold().split())


def _lettered(options: Sequence[str]) -> list[tuple[int, str]]:
    return [(index, LETTERS[index]) for index in range(len(options))]


def _is_none_text(value: str) -> bool:
    return value.strip().casefold() in ("", "[]", "{}", "none", "null", "nan", "n/a")
