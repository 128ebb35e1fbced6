"""The part of the math grader that needs no computer algebra; the rest becomes a question to the worker."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from hardsample.grading.graders import grade_choice
from hardsample.grading.parsing.answers import (
    Answer,
    find_answer,
    first_sentence,
    is_denied,
    normalise,
    plain,
    strip_latex_text,
    unwrap_solution,
)
from hardsample.grading.parsing.inequalities import as_interval
from hardsample.grading.parsing.notation import constant, plain_formula, same_constant
from hardsample.grading.parsing.numerals import decimals, latex_number_text, plain_number, without_unit_power
from hardsample.grading.parsing.quantities import (
    Quantity,
    is_modified,
    is_name,
    quantity_in_prose,
    read_quantity,
    same_quantity,
)
from hardsample.grading.parsing.units import read_unit

MAX_MATH_CHARS = 1000

_WORDS = re.compile(r"[^\W\d_]+(?:[\s'’&-]{1,3}[^\W\d_]+){0,50}")
_PRODUCT = re.compile(r"[a-z]{1,3}")  # xy may be a product, "Sunday" and the segment AG are names
_LETTER = re.compile(r"[A-Z]")
_TIME_OR_DATE = re.compile(r"(?<!\d)(?:\d{1,2}:\d{2}(?::\d{2})?|\d{1,4}([/.-])\d{1,2}\1\d{1,4})(?!\d)")
_LEADING_ZERO = re.compile(r"(?<!\d)0+(?=\d)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}|[㐀-鿿]")
_WORD = re.compile(r"[A-Za-z㐀-鿿]{2,}")
_CONNECTORS = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|和|或", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
_WHY = re.compile(r",?\s+(?:since|because|as|which|so|for)\b|;|\s[-–—]\s|\s\((?=[a-z0-9 ]{6})", re.IGNORECASE)
_RELATION = re.compile(r"[<>≤≥]|\\(?:le|ge|lt|gt|leq|geq)(?![a-zA-Z])")
_MATH_SPAN = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\*\*([^*\n]+)\*\*")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")
_BASE = re.compile(r"\d_\{?\d")
_NAMED = re.compile(r"\$?([a-zA-Z])\s*=")
_TUPLE = re.compile(r"\([^()]*,[^()]*\)")
_WRAPPED = re.compile(r"\\(?:text|mbox|mathbf|boldsymbol|textbf|mathrm|bm)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LABEL = re.compile(r"^\\text\s*\{[^{}]*:\s*\}\s*")
_PARTS = re.compile(r",|;|、|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|和|或")
_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt\(([^()]*)\)")
_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(?:sin|cos|tan|cot|sec|csc|log|ln|exp|pi)(?![a-zA-Z])")
_PIECES = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?|[^\w\s.,;]")
_COMMAND_AT_END = re.compile(r"\\[a-zA-Z]+$")
_FUNCTIONS = re.compile(
    r"\\(?:begin|end)\{\w+\*?\}|\\[a-zA-Z]+|\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|arcsin|arccos|arctan|max|min|det)\b"
)
# math-verify takes a final letter for a unit (2m, ab) and drops it; real units have been removed before
_LAST_LETTER = re.compile(r"^((?:[^=,<>]*=)?\s*)([^=,<>≤≥]*[\w)}+*/^-]\s*[a-zA-Z])$")


class MathQuestion(NamedTuple):
    """A question to computer algebra: does ``answer`` equal ``gold`` to this many decimals?"""

    answer: str
    gold: str
    decimals: int


class _Gold(NamedTuple):
    """A gold answer, parsed once."""

    text: str
    name: str | None
    number: Decimal | None
    quantity: Quantity | None
    decimals: int
    interval: tuple[str, str] | None


def decide_math(completion: str, solution: str) -> bool | MathQuestion:
    """Grade a math answer as far as possible without computer algebra.

    Decided here: equal texts; numbers with or without units on both sides (also a number in words, and the only number
    in prose); words; times and dates; a capital letter, which is graded as a choice.

    Args:
        completion: what the model wrote.
        solution: the gold answer.

    Returns:
        The verdict, or the question for :class:`hardsample.grading.math_worker.MathWorker`.
    """
    gold = _gold(solution)
    extracted = find_answer(completion)
    if not gold.text or not extracted.text:
        return False
    if (
        gold.number is not None
        and extracted.text[:1].isdigit()
        and (number := plain_number(extracted.text)) is not None
    ):
        if number == gold.number:
            return True
        if number == int(number) and gold.number == int(gold.number):
            return False
    if gold.quantity is not None:
        quantity = _answer_quantity(extracted)
        if gold.name and (name := _NAMED.match(extracted.text)) and name.group(1) != gold.name:
            return False  # y = 11 for x = 11
        if (
            quantity is not None
            and ":" in extracted.text
            and ":" not in gold.text
            and _gives_other_number(extracted.text)
        ):
            return False  # 45:1
        if quantity is not None:
            return same_quantity(quantity, gold.quantity, gold.decimals)
        if _gives_other_number(extracted.text) and ":" not in gold.text:
            return False
    if _LETTER.fullmatch(_plain(gold.text)):
        return grade_choice(completion, _plain(gold.text))
    text = first_sentence(extracted.text) if extracted.source == "phrase" else extracted.text
    if len(text) > MAX_MATH_CHARS:
        return False
    span = _only_span(text) if _WORD.search(_MATH_SPAN.sub(" ", text)) and not _PROSE.search(gold.text) else None
    answer = _comparable(span or text)
    return answer == gold.text or _decide_words(answer, gold)


def _gives_other_number(text: str) -> bool:
    """Return whether a text means another number than the one in it: "at least 5", "not 5", x > 5, 1,5391."""
    if _RELATION.search(text) or re.search(r"\d,\d{4,}|\d\s*:\s*\d", text) or is_denied(text):
        return True
    return len(_DIGITS.findall(text)) == 1 and bool(_PROSE.search(strip_latex_text(text))) and is_modified(text)


def _comparable(text: str) -> str:
    """Return an answer in the form to compare: without Markdown, layout, labels and a final full stop."""
    text = strip_latex_text(plain(text).strip().rstrip(".。").strip())
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped.group(1)
    return plain_formula(latex_number_text(_LABEL.sub("", text))).rstrip(".。").strip()


def _answer_quantity(extracted: Answer) -> Quantity | None:
    """Return the number of an answer that is only a number, or the only number in its prose."""
    sentence = first_sentence(extracted.text) if extracted.source == "phrase" else extracted.text
    head = _WHY.split(sentence)[0]
    if extracted.source == "end" and len(_WORD.findall(extracted.text)) > 3:  # the answer first, then why
        line = extracted.body.partition("\n")[0].strip()
        if line != extracted.text and (quantity := read_quantity(line)) is not None:
            return quantity
    quantity = read_quantity(extracted.text) or read_quantity(sentence) or (read_quantity(head) if head else None)
    if quantity is not None:
        return quantity
    if extracted.source == "end":  # the answer first, then why
        line = extracted.body.partition("\n")[0].strip()
        first = first_sentence(line)
        if first != extracted.text and (quantity := read_quantity(first)) is not None:
            return quantity
    quantity = quantity_in_prose(sentence)
    span = _only_span(sentence)
    return quantity if quantity is not None or span is None else read_quantity(span)


def _only_span(text: str) -> str | None:
    """Return the only formula between dollars in a sentence that neither negates nor modifies it."""
    spans = [next(filter(None, match.groups())) for match in _MATH_SPAN.finditer(text)]
    return spans[0] if len(spans) == 1 and not is_modified(_MATH_SPAN.sub(" ", text)) else None


def _decide_words(answer: str, gold: _Gold) -> bool | MathQuestion:
    plain_answer, plain_gold = _plain(answer), _plain(gold.text)
    if _WORDS.fullmatch(plain_gold) and _WORDS.fullmatch(plain_answer) and not _PRODUCT.fullmatch(plain_gold):
        return normalise(plain_answer) == normalise(plain_gold)
    if is_denied(answer) and not is_denied(gold.text):
        return False
    times = [match.group() for match in _TIME_OR_DATE.finditer(plain_answer)]
    if _TIME_OR_DATE.fullmatch(plain_gold):
        return [_normal_time(time) for time in times] == [_normal_time(plain_gold)]
    if _PROSE.search(plain_gold) and normalise(plain_answer) == normalise(plain_gold):
        return True
    if gold.quantity is None and _is_phrase(plain_gold):
        return _words(plain_answer) == _words(plain_gold)
    if (verdict := _decide_shape(answer, plain_answer, plain_gold)) is not None:
        return verdict
    if _TUPLE.fullmatch(plain_gold) and _PROSE.search(answer) and len(points := _TUPLE.findall(answer)) == 1:
        answer = points[0]
    interval = as_interval(answer)
    if interval and gold.interval and interval[0] != gold.interval[0]:
        return False
    if interval or gold.interval:
        answer_text = interval[1] if interval else answer
        gold_text = gold.interval[1] if gold.interval else gold.text
        return answer_text.replace(" ", "") == gold_text.replace(" ", "") or MathQuestion(answer_text, gold_text, 6)
    if "=" not in gold.text and not all(
        is_name(side) for part in _PARTS.split(answer) for side in part.split("=")[:-1]
    ):
        return False  # 2x = 10: not solved, so its right side is not the answer
    return MathQuestion(_for_math_verify(answer), _for_math_verify(gold.text), gold.decimals)


def _decide_shape(answer: str, plain_answer: str, gold: str) -> bool | None:
    """Return the verdict on ratios, numbers in another base, and points with reordered names; else None."""
    if _RATIO.fullmatch(gold):
        ratio_text = re.sub(r"(?<=\d)\s+to\s+(?=\d)", ":", plain_answer)
        ratios = _RATIO.findall(ratio_text)
        return _same_ratio(ratios[0] if len(ratios) == 1 and _WORD.search(ratio_text) else ratio_text, gold)
    if _BASE.search(gold) or _BASE.search(answer):
        return re.sub(r"[\s{}]", "", answer) == re.sub(r"[\s{}]", "", gold)
    names = re.findall(r"([a-zA-Z])\s*=", answer)
    return False if _TUPLE.fullmatch(gold) and "=" not in gold and names != sorted(names) else None


def _same_ratio(answer: str, gold: str) -> bool:
    """Return whether two ratios are the same up to scale."""
    if not _RATIO.fullmatch(answer):
        value, wanted = constant(answer), constant(gold)
        return value is not None and wanted is not None and same_constant(value, wanted)
    parts, golds = ([Fraction(part.strip()) for part in text.split(":")] for text in (answer, gold))
    if len(parts) != len(golds) or not golds[0] or not parts[0]:
        return False
    return all(part * golds[0] == gold_part * parts[0] for part, gold_part in zip(parts, golds, strict=True))


def _normal_time(text: str) -> str:
    """Return a time or a date without leading zeros and with one kind of separator."""
    return re.sub(r"[/.-]", "-", _LEADING_ZERO.sub("", text))


def _for_math_verify(text: str) -> str:
    """Rewrite a text for math-verify: "和" and "或" as commas, functions as commands, no power after a unit."""
    text = re.sub(r"^[fgh]\(x\)\s*=", "y=", text)
    text = _ROOT.sub(r"\\sqrt{\1}", re.sub(r"\s*(?:或者?|和|且|、)\s*", ", ", text)).replace(
        "\\varnothing", "\\emptyset"
    )
    text = without_unit_power(_FUNCTION.sub(r"\\\g<0>", text))
    return _LAST_LETTER.sub(r"\1(\2)", text) if not _COMMAND_AT_END.search(text) else text


def _is_phrase(text: str) -> bool:
    """Return whether a gold has words beyond one number and its unit, such as "2 hours and 30 minutes"."""
    return len(_DIGITS.findall(text)) > 1 and bool(_PROSE.search(_CONNECTORS.sub(" ", _FUNCTIONS.sub(" ", text))))


def _words(text: str) -> list[str]:
    """Return the numbers and words of a phrase, with units in one spelling."""
    words = [word for word in _PIECES.findall(text.replace(",", "")) if word.casefold() != "and"]
    units = [read_unit(word) for word in words]
    return [str(unit) if unit else word.casefold() for word, unit in zip(words, units, strict=True)]


def _plain(text: str) -> str:
    return strip_latex_text(text.strip("* ")).strip(".* ")


@lru_cache(maxsize=4096)
def _gold(solution: str) -> _Gold:
    gold = unwrap_solution(solution)
    if len(gold) > MAX_MATH_CHARS:
        return _Gold("", None, None, None, 6, None)
    text = _comparable(gold)
    time = _TIME_OR_DATE.fullmatch(_plain(text))
    quantity = None if time else read_quantity(gold)
    number = plain_number(gold) if gold[:1].isdigit() else None
    name = _NAMED.match(gold)
    return _Gold(text, name.group(1) if name else None, number, quantity, decimals(gold), as_interval(text))
