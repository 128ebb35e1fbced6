"""The part of the math grader that needs no computer algebra, and the question that is left where some is needed."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from hardsample.answers import Answer, find_answer, first_sentence, normalise, plain, strip_latex_text, unwrap_solution
from hardsample.graders import grade_choice
from hardsample.inequalities import as_interval
from hardsample.notation import Number, plain_formula, same_constant
from hardsample.numerals import decimals, latex_number_text, plain_number, without_unit_power
from hardsample.quantities import Quantity, read_quantity
from hardsample.units import compatible, is_percent, read_unit

MAX_MATH_CHARS = 1000

_WORDS = re.compile(r"[^\W\d_]+(?:[\s'’&-]{1,3}[^\W\d_]+){0,50}")
_PRODUCT = re.compile(r"[a-z]{1,3}")  # xy may be a product, "Sunday" and the segment AG are names
_LETTER = re.compile(r"[A-Z]")
_TIME_OR_DATE = re.compile(r"(?<!\d)(?:\d{1,2}:\d{2}(?::\d{2})?|\d{1,4}([/.-])\d{1,2}\1\d{1,4})(?!\d)")
_LEADING_ZERO = re.compile(r"(?<!\d)0+(?=\d)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}|[㐀-鿿]")
_CONNECTORS = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|和|或", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,/^*+(-])[$€£¥]?-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s\d+/\d+|/\d+)?(?P<percent>\s?%)?(?![\w.]*\d|[/^*+]|[A-Za-z])"
)
_UNIT_AFTER = re.compile(r"\s*([^\d\s.,;!?()]+(?:\s[a-z]+)?)")
# Words that make another number of the one in front of them or behind.
_MODIFIER = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|root|squared|cubed|pi|half|third|quarter|percent|minus|negative|plus"
    r"|times|over|dozen|hundred|thousand|million|billion|not|isn['’]t|never|neither|nor|wrong|incorrect)\b|不是|并非",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"\d+")
_EXPLAINS = re.compile(
    r"(?:explanation|because|since|reason\w*|note|this|i|we|the|as|here|why|解释|因为|理由)\b", re.IGNORECASE
)
# An equation that is not solved, 2x = 10 or x + 3 = 10: its right side is no answer.
_UNSOLVED = re.compile(r"[^=<>]*(?:\d\s*[a-zA-Z]|[a-zA-Z]\s*[-+*/]|[-+*/]\s*[a-zA-Z])[^=<>]*=[^=<>]*")
_WHY = re.compile(r",?\s+(?:since|because|as|which|so|for)\b|;|\s[-–—]\s", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|isn['’]t|never|neither|nor|wrong|incorrect)\b|不是|并非", re.IGNORECASE)
_TOLERANCE = Fraction(2, 10**6)


class MathQuestion(NamedTuple):
    """What remains to be compared by computer algebra: is ``answer`` equal to ``gold``, to so many decimals?"""

    answer: str
    gold: str
    decimals: int


class _Gold(NamedTuple):
    """A gold answer, read once."""

    text: str
    number: Decimal | None
    quantity: Quantity | None
    decimals: int
    interval: tuple[str, str] | None


def decide_math(completion: str, solution: str) -> bool | MathQuestion:
    """Grade a math answer as far as that needs no computer algebra.

    Decided here: the same text; numbers with or without units on both sides (also a number in words, and the only
    number of a text in prose); words; times and dates; a capital letter, which is graded as a choice.

    Args:
        completion: what the model wrote.
        solution: the gold answer.

    Returns:
        The verdict, or the question to put to :class:`hardsample.grading_worker.MathWorker`.
    """
    gold = _gold(solution)
    found = find_answer(completion)
    if not gold.text or not found.text:
        return False
    if gold.number is not None and (number := plain_number(found.text)) is not None:
        if number == gold.number:
            return True
        if number == int(number) and gold.number == int(gold.number):
            return False
    if gold.quantity is not None:
        quantity = _answer_quantity(found)
        if quantity is not None:
            return same_quantity(quantity, gold.quantity, gold.decimals)
    if _LETTER.fullmatch(_plain(gold.text)):
        return grade_choice(completion, _plain(gold.text))
    text = first_sentence(found.text) if found.source == "phrase" else found.text
    if len(text) > MAX_MATH_CHARS:
        return False
    answer = plain_formula(latex_number_text(plain(text))).removesuffix(".").removesuffix("。").strip()
    return answer == gold.text or _decide_words(answer, gold)


def same_quantity(answer: Quantity, gold: Quantity, places: int) -> bool:
    """Compare two numbers with their units.

    ``12%`` equals ``12`` and ``0.12``; a unit on one side only does not matter, two known units have to be the same.

    Args:
        answer: the answer.
        gold: the gold answer.
        places: decimals that have to agree, see :func:`hardsample.numerals.decimals`.

    Returns:
        Whether they are equal: exactly, or to these decimals and (where the gold has not been rounded to them) to 2
        parts in a million of its value.
    """
    if not compatible(answer.unit, gold.unit):
        return False
    if _same_value(answer.value, gold.value, places):
        return True
    if is_percent(answer.unit) == is_percent(gold.unit):
        return False
    if is_percent(answer.unit):
        return _same_value(answer.value / 100, gold.value, places)
    return _same_value(answer.value, gold.value / 100, places)


def _same_value(answer: Number, gold: Number, places: int) -> bool:
    if same_constant(answer, gold):
        return True
    answer, gold = Fraction(answer), Fraction(gold)
    if answer.denominator == 1 == gold.denominator:
        return False
    if max(answer.denominator.bit_length(), answer.numerator.bit_length()) > 10_000:
        return False
    if round(answer, places) != round(gold, places):
        return False
    rounded = places < 6 or (round(gold, places) == gold and abs(gold) * 10**places >= 100)
    return rounded or abs(answer - gold) <= _TOLERANCE * abs(gold)


def _answer_quantity(found: Answer) -> Quantity | None:
    """The number that an answer gives, as the whole of it, or as the only one in prose."""
    quantity = read_quantity(found.text)
    if quantity is None and found.source == "phrase":
        sentence = first_sentence(found.text)
        quantity = read_quantity(_WHY.split(sentence)[0]) or _quantity_in_prose(sentence)
    if quantity is not None:
        return quantity
    in_prose = _quantity_in_prose(found.text)
    if found.source != "end":
        return in_prose
    first = first_sentence(found.body.partition("\n")[0].strip())
    rest = found.body[found.body.find(first) + len(first) :].strip(" .*_#\n")
    alone = read_quantity(first) if rest else None
    if alone is None or (in_prose is not None and not _EXPLAINS.match(rest)):
        return in_prose
    return alone  # the answer first, then why


def _decide_words(answer: str, gold: _Gold) -> bool | MathQuestion:
    plain_answer, plain_gold = _plain(answer), _plain(gold.text)
    if _WORDS.fullmatch(plain_gold) and _WORDS.fullmatch(plain_answer) and not _PRODUCT.fullmatch(plain_gold):
        return normalise(plain_answer) == normalise(plain_gold)
    times = [match.group() for match in _TIME_OR_DATE.finditer(plain_answer)]
    if _TIME_OR_DATE.fullmatch(plain_gold) and times:
        return [_LEADING_ZERO.sub("", time) for time in times] == [_LEADING_ZERO.sub("", plain_gold)]
    if _PROSE.search(plain_gold) and normalise(plain_answer) == normalise(plain_gold):
        return True
    if gold.quantity is None and _is_phrase(plain_gold):
        return _words(plain_answer) == _words(plain_gold)
    if _DENIAL.search(answer) and not _DENIAL.search(gold.text):
        return False
    interval = as_interval(answer)
    if interval and gold.interval and interval[0] != gold.interval[0]:
        return False
    if interval or gold.interval:
        answer_text = interval[1] if interval else answer
        gold_text = gold.interval[1] if gold.interval else gold.text
        return answer_text.replace(" ", "") == gold_text.replace(" ", "") or MathQuestion(answer_text, gold_text, 6)
    if "=" not in gold.text and _UNSOLVED.fullmatch(re.sub(r"\\[a-zA-Z]+|_\{?\w+\}?|\b[a-zA-Z]\(\w+\)", " ", answer)):
        return False
    return MathQuestion(_joined(answer), _joined(gold.text), gold.decimals)


def _joined(text: str) -> str:
    """Write what math-verify reads better: "和" and "或" as commas, functions as commands, no power behind a unit."""
    text = _ROOT.sub(r"\\sqrt{\1}", re.sub(r"\s*(?:或|和|且)\s*", ", ", text))
    return without_unit_power(_FUNCTION.sub(r"\\\g<0>", text))


def _is_phrase(text: str) -> bool:
    """Whether a gold has words that are no unit behind one number, such as "2 hours and 30 minutes"."""
    return len(_DIGITS.findall(text)) > 1 and bool(_PROSE.search(_CONNECTORS.sub(" ", _FUNCTIONS.sub(" ", text))))


_FUNCTIONS = re.compile(
    r"\\(?:begin|end)\{\w+\*?\}|\\[a-zA-Z]+|\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|arcsin|arccos|arctan|max|min|det)\b"
)
_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt\(([^()]*)\)")
_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(?:sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![a-zA-Z])")
_PIECES = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?|[^\w\s.,;]")


def _words(text: str) -> list[str]:
    """The numbers and words of a phrase, units in one spelling."""
    words = [word for word in _PIECES.findall(text.replace(",", "")) if word.casefold() != "and"]
    units = [read_unit(word) for word in words]
    return [str(unit) if unit else word.casefold() for word, unit in zip(words, units, strict=True)]


def _plain(text: str) -> str:
    return strip_latex_text(text.strip("* ")).strip(".* ")


@lru_cache(maxsize=4096)
def _gold(solution: str) -> _Gold:
    gold = unwrap_solution(solution)
    if len(gold) > MAX_MATH_CHARS:
        return _Gold("", None, None, 6, None)
    text = plain_formula(latex_number_text(plain(gold)))
    time = _TIME_OR_DATE.fullmatch(_plain(text))
    quantity = None if time else read_quantity(gold)
    return _Gold(text, plain_number(gold), quantity, decimals(gold), as_interval(text))


def _quantity_in_prose(text: str) -> Quantity | None:
    """The one number of a text in prose, with the known unit behind it; None where there is another or any formula."""
    text = plain(text)
    if "\\" in text or len(text) > MAX_MATH_CHARS or not _PROSE.search(text) or _MODIFIER.search(text):
        return None
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) != 1 or len(_DIGITS.findall(text)) != len(_DIGITS.findall(numbers[0].group())):
        return None
    quantity = read_quantity(numbers[0].group())
    after = _UNIT_AFTER.match(text, numbers[0].end())
    unit = (read_unit(after.group(1)) or read_unit(after.group(1).partition(" ")[0])) if after else None
    return Quantity(quantity.value, quantity.unit or unit) if quantity else None
