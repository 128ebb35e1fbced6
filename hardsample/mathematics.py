"""The part of the math grader that needs no computer algebra, and the question that is left where some is needed."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from hardsample.answers import find_answer, first_sentence, normalise, strip_latex_text, unwrap_solution
from hardsample.graders import grade_choice
from hardsample.numerals import decimals, latex_number_text, number_in_words, plain_number, same_number

MAX_MATH_CHARS = 1000

_WORDS = re.compile(r"[^\W\d_]+(?:[\s'’&-]{1,3}[^\W\d_]+){0,50}")
_PRODUCT = re.compile(r"[a-z]{1,3}")  # xy may be a product, "Sunday" and the segment AG are names
_LETTER = re.compile(r"[A-Z]")
_TIME_OR_DATE = re.compile(r"(?<!\d)(?:\d{1,2}:\d{2}(?::\d{2})?|\d{1,4}([/.-])\d{1,2}\1\d{1,4})(?!\d)")
_LEADING_ZERO = re.compile(r"(?<!\d)0+(?=\d)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_NUMBER = re.compile(r"(?<![^\s($€£¥=])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?=[\s.,;:!?)]|$)")
# Words that make another number of the one in front of them or behind.
_MODIFIER = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|root|squared|cubed|pi|half|third|quarter|percent|minus|negative|plus"
    r"|times|over|dozen|hundred|thousand|million|billion)\b",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"\d+")


class MathQuestion(NamedTuple):
    """What remains to be compared by computer algebra: is ``answer`` equal to ``gold``, to so many decimals?"""

    answer: str
    gold: str
    decimals: int


def decide_math(completion: str, solution: str) -> bool | MathQuestion:
    """Grade a math answer as far as that needs no computer algebra.

    Decided here: the same text; plain numbers on both sides (also a number in words, and the only number of a text in
    prose); words; times and dates; a capital letter, which is graded as a choice.

    Args:
        completion: what the model wrote.
        solution: the gold answer.

    Returns:
        The verdict, or the question to put to :class:`hardsample.grading_worker.MathWorker`.
    """
    gold, gold_number, places = _gold(solution)
    found = find_answer(completion)
    text = found.text
    if not gold or not text:
        return False
    number = plain_number(text)
    if number is None and found.source == "phrase":
        text = first_sentence(text)
        number = plain_number(text)
    if gold_number is not None:
        number = _number_in_text(text) if number is None else number
        if number is not None:
            return same_number(number, gold_number, places)
    if _LETTER.fullmatch(_plain(gold)):
        return grade_choice(completion, _plain(gold))
    if len(text) > MAX_MATH_CHARS:
        return False
    answer = latex_number_text(text)
    return answer == gold or _decide_words(answer, gold, places)


def _decide_words(answer: str, gold: str, places: int) -> bool | MathQuestion:
    plain_answer, plain_gold = _plain(answer), _plain(gold)
    if _WORDS.fullmatch(plain_gold) and _WORDS.fullmatch(plain_answer) and not _PRODUCT.fullmatch(plain_gold):
        return normalise(plain_answer) == normalise(plain_gold)
    times = [match.group() for match in _TIME_OR_DATE.finditer(plain_answer)]
    if _TIME_OR_DATE.fullmatch(plain_gold) and times:
        return [_LEADING_ZERO.sub("", time) for time in times] == [_LEADING_ZERO.sub("", plain_gold)]
    return MathQuestion(answer, gold, places)


def _plain(text: str) -> str:
    return strip_latex_text(text.strip("* ")).strip(".* ")


@lru_cache(maxsize=4096)
def _gold(solution: str) -> tuple[str, Decimal | None, int]:
    gold = unwrap_solution(solution)
    gold = latex_number_text(gold) if len(gold) <= MAX_MATH_CHARS else ""
    return gold, plain_number(gold), decimals(gold)


def _number_in_text(text: str) -> Decimal | None:
    """Read a number in words, or the one number of a text in prose; None where there is another or any formula."""
    words = number_in_words(text)
    if words is not None:
        return Decimal(words)
    if "\\" in text or len(text) > MAX_MATH_CHARS or not _PROSE.search(text) or _MODIFIER.search(text):
        return None
    numbers = _NUMBER.findall(text)
    if len(numbers) != 1 or len(_DIGITS.findall(text)) != len(_DIGITS.findall(numbers[0])):
        return None
    return plain_number(numbers[0])
