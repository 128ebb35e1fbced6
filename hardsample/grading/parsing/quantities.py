"""Read a number with its unit in an answer: ``x = 12 m/s``, ``$6.90``, ``45 apples``, ``12\\%``, ``5厘米``. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from hardsample.grading.parsing.answers import is_denied, plain, strip_latex_text
from hardsample.grading.parsing.inequalities import as_interval
from hardsample.grading.parsing.notation import MAX_CHARS, Number, constant, plain_formula, same_constant
from hardsample.grading.parsing.numerals import latex_number_text, number_in_chinese, number_in_words, plain_number
from hardsample.grading.parsing.units import Unit, compatible, is_percent, read_unit

_CURRENCY = re.compile(r"^([-+−]?)\s*(RM|Rs\.?|USD|EUR|GBP|CNY|JPY|US\$|\\\$|[$€£¥₹])\s?([-+−]?)(?=[\d.])")
_UNIT_STARTS = re.compile(r"(?<=[\d)}.½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞π])\s*(?=[^\d\s(){}+\-*/^.,:=<>])")
_WORD = re.compile(r"[A-Za-z]{2,}")
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\w)")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_NAME = re.compile(
    r"[^\W\d_]{1,3}(?:\s*[+−-]\s*[^\W\d_]{1,3})+|[^\W\d_]?(?:\([\w,. ]*\))?['′]{0,2}|[^\W\d_](?:\s?[^\W\d_]){1,5}"
)
_DEGREES = re.compile(r"\s*\^?\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?\s*")
_CHINESE_COUNT = re.compile(r"([零一二三四五六七八九十两]{1,3})([㐀-鿿]{0,4})")
_EQUALS = re.compile(r"=|≈|\\approx|≃")
_ENDS = " \t\r\n.。,，;；:："
_STARTS = " \t\r\n:："
_SUM = re.compile(r"(?<=[\w)}])\s*[-+−](?=\s*[\w(\\])(?![^(]*\))")
_ROUNDED = re.compile(r"≈|≃|\\approx(?![a-zA-Z])")
_LABEL = re.compile(r"^(?:(?:final\s+)?answer|答案)\s*[:：]\s*", re.IGNORECASE)
_PERCENT_OUTSIDE = re.compile(r"^\$([^$]+)\$\s*(%|\\%|percent)$")
_FUNCTION = re.compile(r"\\?(?<![a-zA-Z])(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|half|twice|double)(?![a-zA-Z])")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SCALES |= {"百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_SCALED = re.compile(rf"(.*?)\s*({'|'.join(_SCALES)})(?![a-z])\s*(.*)", re.IGNORECASE)
_SCALE_WORD = re.compile(rf"\d\s*(?:{'|'.join(_SCALES)})", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_TOLERANCE = Fraction(2, 10**6)
_MODIFIER = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|roots?|squared|cubed|pi|half|thirds?|quarters?|minus|negative"
    r"|plus|times|dozen|hundred|thousand|million|billion|twice|double|triple|between)\b|[<>≤≥±√π]|\d\s*!"
    r"|\b(?:over|under|above|below|nearly|almost|up\s+to|at\s+least|at\s+most|(?:more|less|fewer|greater)\s+than)\s+\$?\d"
    r"|\d\s+(?:or\s+)?(?:more|less|fewer|at\s+least|at\s+most)\b|至少|至多|大于|小于|超过|不到|多于|少于|[百千万亿]",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,/^*+(-])[$€£¥]?-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s\d+/\d+|/\d+)?(?P<percent>\s?%)?(?![\w.]*\d|,\d|[/^*+]|[A-Za-z])"
)
_UNIT_AFTER = re.compile(r"\s*([^\d\s.,;!?()]+(?:\s[a-z]+)?)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[㐀-鿿]")
_DIGITS = re.compile(r"\d+")
MAX_PROSE_CHARS = 1000


class Quantity(NamedTuple):
    """A value and its unit; the unit is empty for a counted thing, None if there is none."""

    value: Number
    unit: Unit | None


def read_quantity(text: str) -> Quantity | None:
    r"""Read a text that is one number, with its unit, its name and Markdown or LaTeX around it, and nothing else.

    Args:
        text: an answer: ``**45 cm**``, ``v = 12\ \text{m/s}``, ``3 + 4 = 7``, ``twelve``, ``11 5/6``.

    Returns:
        Its value and unit; None for any other text. Of an equation the last side counts if the others are names or
        numbers: ``2x = 10`` is not a quantity.
    """
    return _read(text) if len(text) <= MAX_CHARS else None


@lru_cache(maxsize=8192)
def _read(text: str) -> Quantity | None:
    number = plain_number(text) if text[:1].isdigit() else None
    if number is not None:
        return Quantity(Fraction(int(number)) if number == int(number) else Fraction(number), None)
    text = _PERCENT_OUTSIDE.sub(r"\1 \2", plain(text).rstrip(_ENDS).lstrip(_STARTS))
    text = _LABEL.sub("", strip_latex_text(text)).replace("\\pi", "π")
    exact, *rounded = _ROUNDED.split(text)
    if rounded and constant(exact.rpartition("=")[2]) is not None:
        text = exact  # x = 1/3 ≈ 0.333: the exact value is before the sign
    *sides, last = _EQUALS.split(text)
    if not all(is_name(side) for side in sides):
        return None
    return _number((last if sides else text).rstrip(_ENDS).lstrip(_STARTS).lstrip("~"))


def _number(text: str) -> Quantity | None:
    currency = _CURRENCY.match(text)
    if currency:
        unit = read_unit(currency.group(2).strip("."))
        read = _number(currency.group(1) + currency.group(3) + text[currency.end() :])
        return Quantity(read.value, unit or ()) if read and not read.unit else read
    if (worded := _in_words(text)) is not None:
        return worded
    text = _DEGREES.sub("°", plain_formula(text.strip("$ ")))
    value = constant(text)
    if value is not None:
        return Quantity(value, (("°", 1),) if text.endswith("°") else None)
    if (scaled := _scaled(text)) is not None:
        return scaled
    chinese = _CHINESE_COUNT.fullmatch(text)
    if chinese and (number := number_in_chinese(chinese.group(1))) is not None:
        return Quantity(Fraction(number), read_unit(chinese.group(2)))
    for split in _UNIT_STARTS.finditer(text):
        left, right = text[: split.start()], text[split.end() :].strip(_ENDS)
        unit = read_unit(right)
        if unit is None or (unit == () and split.start() == split.end() and right.isascii()):
            continue
        if _SUM.search(left):  # 1+2m is not 3 m
            return None
        value = constant(left.strip())
        if value is not None:
            return Quantity(value, unit)
    return None


def _in_words(text: str) -> Quantity | None:
    """Return a number in words, with its unit: ``twelve``, ``twelve hours``."""
    words = text.split()
    for count in range(len(words), max(len(words) - 3, 0), -1):
        number = number_in_words(" ".join(words[:count]))
        unit = read_unit(" ".join(words[count:])) if count < len(words) else None
        if number is not None and (unit is not None or count == len(words)):
            return Quantity(Fraction(number), unit)
    return None


def _scaled(text: str) -> Quantity | None:
    """Return a number of dozens, thousands or millions: ``12 million dollars``, ``5万元``."""
    match = _SCALED.fullmatch(text)
    number = _number(match.group(1)) if match else None
    if match is None or number is None or number.unit is not None:
        return None
    words = match.group(3).strip()
    unit = read_unit(words) if words else None
    return Quantity(number.value * _SCALES[match.group(2).lower()], unit) if unit is not None or not words else None


def is_name(text: str) -> bool:
    r"""Return whether a side of an equation is a name or a number, so that the other side is its value.

    Args:
        text: ``x``, ``f(2)``, ``\angle ABC``, ``the total`` or ``3 + 4``.

    Returns:
        False for an expression with an unknown (``2x``, ``x^2``, ``\sin x``) and for a text with a negation.
    """
    if is_denied(text) or _FUNCTION.search(text):
        return False
    text = _SUBSCRIPT.sub("", strip_latex_text(text.strip(_ENDS)))
    text = _COMMAND.sub(" ", text) if constant(text) is None else ""
    words = [word for word in text.split() if not _WORD.fullmatch(word)]
    rest = re.sub(r"[{}∠△]", "", " ".join(words)).strip(" '")
    return not rest or _NAME.fullmatch(rest) is not None or constant(rest) is not None


def quantity_in_prose(text: str) -> Quantity | None:
    """Read the only number in prose, with the known unit after it.

    Args:
        text: a sentence or more.

    Returns:
        The number; None if there is another one or a formula, or a word that modifies or negates it.
    """
    text = plain(text)
    if "\\" in text or len(text) > MAX_PROSE_CHARS or not _PROSE.search(text) or is_modified(text):
        return None
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) != 1 or len(_DIGITS.findall(text)) != len(_DIGITS.findall(numbers[0].group())):
        return None
    quantity = read_quantity(numbers[0].group())
    after = _UNIT_AFTER.match(text, numbers[0].end())
    unit = (read_unit(after.group(1)) or read_unit(after.group(1).partition(" ")[0])) if after else None
    return Quantity(quantity.value, quantity.unit or unit) if quantity else None


def is_modified(text: str) -> bool:
    """Return whether a text modifies the number in it ("at least", "half of", "million") or negates it.

    Args:
        text: a sentence.

    Returns:
        Whether it contains any such word or sign.
    """
    return _MODIFIER.search(text) is not None or is_denied(text)


def is_scaled(text: str) -> bool:
    """Return whether a number is given in dozens, millions or the like.

    Args:
        text: a quantity.
    """
    return _SCALE_WORD.search(text) is not None


def same_quantity(answer: Quantity, gold: Quantity, decimals: int = 6) -> bool:
    """Compare two numbers with their units.

    ``12%`` equals ``12`` and ``0.12``; a unit on one side only is ignored, two known units must be the same.

    Args:
        answer: the answer.
        gold: the gold answer.
        decimals: decimals that must agree, see :func:`hardsample.grading.parsing.numerals.decimals`.

    Returns:
        Whether they are equal: exactly, or to these decimals and (unless the gold has been rounded to them) to 2 parts
        per million of its value.
    """
    if not compatible(answer.unit, gold.unit):
        return False
    if _same_value(answer.value, gold.value, decimals):
        return True
    if is_percent(answer.unit) == is_percent(gold.unit):
        return False
    if is_percent(answer.unit):
        return _same_value(answer.value / 100, gold.value, decimals)
    return _same_value(answer.value, gold.value / 100, decimals)


def _same_value(answer: Number, gold: Number, decimals: int) -> bool:
    if same_constant(answer, gold):
        return True
    answer, gold = Fraction(answer), Fraction(gold)
    if answer.denominator == 1 == gold.denominator:
        return False
    if max(answer.denominator.bit_length(), answer.numerator.bit_length()) > 10_000:
        return False
    if round(answer, decimals) != round(gold, decimals):
        return False
    # three digits or more: the gold was rounded to them
    rounded = (
        round(gold, decimals) == gold and abs(gold) * 10**decimals >= 100 and (decimals < 6 or gold.denominator > 1000)
    )
    return rounded or abs(answer - gold) <= _TOLERANCE * abs(gold)


@lru_cache(maxsize=8192)
def formula_key(text: str) -> str:
    r"""Return a key of a formula that is the same for every notation of it.

    Args:
        text: an option or an answer: ``$2 \sqrt{2}$``, ``\dfrac{1}{2}``, ``5: 3``, ``60^\circ``.

    Returns:
        Its value if it is a constant, else its characters without layout; empty for prose.
    """
    text = strip_latex_text(plain(text).strip(_ENDS))
    if not text or len(text) > MAX_CHARS:
        return ""
    text = plain_formula(latex_number_text(_RATIO_SIGN.sub(":", text).strip("$ ")))
    text = re.sub(r"^[a-zA-Z](?:\(x\))?\s*=\s*(?=[^=]*$)", "", text)
    text = re.sub(r"(?<=[,(\[])\s*\+", "", text).replace("\\gt", ">").replace("\\lt", "<")
    interval = as_interval(text)
    text = interval[1] if interval else text
    value = constant(text)
    if value is not None:
        return f"={value}" if isinstance(value, Fraction) else f"={value:.10g}"
    words = _COMMAND.sub(" ", text)
    if re.search(r"[A-Za-z]{3,}", words) or not re.search(r"[\d=+\-*/^\\<>]", text):
        return ""
    text = _FRACTION.sub(r"(\1)/(\2)", text)
    text = _LESS.sub("≤", _GREATER.sub("≥", text))
    text = re.sub(r"[({](\w)[)}](?!\w)", r"\1", re.sub(r"\^\{(\w+)\}", r"^\1", text))
    return re.sub(r"\s+|\\cdot|\*|\{\}", "", text)


_RATIO_SIGN = re.compile(r"\s*[∶：]\s*")
_LESS = re.compile(r"\\le(?:q|qslant)?(?![a-zA-Z])|<=|⩽")
_GREATER = re.compile(r"\\ge(?:q|qslant)?(?![a-zA-Z])|>=|⩾")
