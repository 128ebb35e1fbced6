"""A number and its unit in a short answer: ``x = 12 m/s``, ``$6.90``, ``45 apples``, ``12\\%``, ``5厘米``. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from hardsample.answers import plain, strip_latex_text
from hardsample.notation import MAX_CHARS, Number, constant, plain_formula
from hardsample.numerals import latex_number_text, number_in_chinese, number_in_words, plain_number
from hardsample.units import Unit, read_unit

_CURRENCY = re.compile(r"^([-+−]?)\s*(RM|Rs\.?|USD|EUR|GBP|CNY|JPY|US\$|\\\$|[$€£¥₹])\s?([-+−]?)(?=[\d.])")
_UNIT_STARTS = re.compile(r"(?<=[\d)}.½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞π])\s*(?=[^\d\s(){}+\-*/^.,:=<>])")
_WORD = re.compile(r"[A-Za-z]{2,}")
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|\w)")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_NAME = re.compile(r"[^\W\d_]?(?:\([^()]*\))?['′]{0,2}|[^\W\d_](?:\s?[^\W\d_]){1,5}")
_DEGREES = re.compile(r"\s*\^?\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?\s*")
_CHINESE_COUNT = re.compile(r"([零一二三四五六七八九十两]{1,3})([㐀-鿿]{0,4})")
_EQUALS = re.compile(r"=|≈|\\approx|≃")
_ENDS = " \t\r\n.。,，;；:："


class Quantity(NamedTuple):
    """A value and the unit behind it; the unit is empty for a counted thing, None where there is none."""

    value: Number
    unit: Unit | None


def read_quantity(text: str) -> Quantity | None:
    r"""Read a text that is one number, with its unit, its name and Markdown or LaTeX around it, and nothing else.

    Args:
        text: an answer: ``**45 cm**``, ``v = 12\ \text{m/s}``, ``3 + 4 = 7``, ``twelve``, ``11 5/6``.

    Returns:
        Its value and unit; None for every other text. Of an equation the last side counts, where the others are names
        or numbers: ``2x = 10`` is no quantity.
    """
    return _read(text) if len(text) <= MAX_CHARS else None


@lru_cache(maxsize=8192)
def _read(text: str) -> Quantity | None:
    number = plain_number(text)
    if number is not None:
        return Quantity(Fraction(int(number)) if number == int(number) else Fraction(number), None)
    text = strip_latex_text(plain(text).strip(_ENDS))
    *sides, last = _EQUALS.split(text)
    if not all(_is_name(side) for side in sides):
        return None
    last = last.strip(_ENDS).lstrip("~") if sides else text.strip(_ENDS).lstrip("~")
    return _number(last)


def _number(text: str) -> Quantity | None:
    currency = _CURRENCY.match(text)
    if currency:
        unit = read_unit(currency.group(2).strip("."))
        read = _number(currency.group(1) + currency.group(3) + text[currency.end() :])
        return Quantity(read.value, unit or ()) if read and not read.unit else read
    words = number_in_words(text)
    if words is not None:
        return Quantity(Fraction(words), None)
    text = _DEGREES.sub("°", plain_formula(text.strip("$ ")))
    value = constant(text)
    if value is not None:
        return Quantity(value, (("°", 1),) if text.endswith("°") else None)
    chinese = _CHINESE_COUNT.fullmatch(text)
    if chinese and (number := number_in_chinese(chinese.group(1))) is not None:
        return Quantity(Fraction(number), read_unit(chinese.group(2)))
    for split in _UNIT_STARTS.finditer(text):
        left, right = text[: split.start()], text[split.end() :].strip(_ENDS)
        unit = read_unit(right)
        if unit is None or (unit == () and split.start() == split.end() and right.isascii()):
            continue
        value = constant(left.strip())
        if value is not None:
            return Quantity(value, unit)
    return None


def _is_name(text: str) -> bool:
    r"""Whether a side of an equation is a name (``x``, ``f(2)``, ``\angle ABC``, ``the total``) or a number."""
    text = _SUBSCRIPT.sub("", strip_latex_text(text.strip(_ENDS)))
    text = _COMMAND.sub(" ", text) if constant(text) is None else ""
    words = [word for word in text.split() if not _WORD.fullmatch(word)]
    rest = " ".join(words).strip(" {}'")
    return not rest or _NAME.fullmatch(rest) is not None or constant(rest) is not None


@lru_cache(maxsize=8192)
def formula_key(text: str) -> str:
    r"""Write a formula in one way, so that the same formula in another notation has the same key.

    Args:
        text: an option or an answer: ``$2 \sqrt{2}$``, ``\dfrac{1}{2}``, ``5: 3``, ``60^\circ``.

    Returns:
        Its value where it is a constant, else its characters without layout; empty for prose.
    """
    text = strip_latex_text(plain(text).strip(_ENDS))
    if not text or len(text) > MAX_CHARS:
        return ""
    text = plain_formula(latex_number_text(text.strip("$ ")))
    value = constant(text)
    if value is not None:
        return f"={value}" if isinstance(value, Fraction) else f"={value:.10g}"
    words = _COMMAND.sub(" ", text)
    if re.search(r"[A-Za-z]{3,}", words) or not re.search(r"[\d=+\-*/^\\<>]", text):
        return ""
    return re.sub(r"\s+|\\cdot|\*", "", re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)).replace("{}", "")
