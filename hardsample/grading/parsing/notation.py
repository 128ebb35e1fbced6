r"""Evaluate a formula without variables: ``\dfrac{3}{4}``, ``2√3``, ``1 1/2``, ``3.0e+08``, ``5: 3``. Pure.

Only constants are read, by a small parser with bounded cost; everything else is left to computer algebra.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache

from hardsample.grading.parsing.numerals import latex_number_text

Number = Fraction | float
"""Exact if possible; a float if it contains a root or π."""

MAX_CHARS = 120
_RELATIVE_TOLERANCE = 1e-9
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|limits|big|Big|quad|qquad)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|~|&nbsp;|\u00a0"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?(?:[eE][-+]?\d{1,3}(?![\d.]))?|\.\d+)"
    r"|(?P<command>\\?(?:[dtc]?frac|sqrt|pi|times|cdot|div|circ)(?![a-zA-Z]))|(?P<symbol>[-+*/^(){}\[\]:%]))"
)
_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*10\s*\^")
_MIXED = re.compile(r"(?<![\d./^{(])(\d+)\s+(?:and\s+)?(\d+)\s*/\s*(\d+)(?![\d./])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?![\d])")


def plain_formula(text: str) -> str:
    r"""Remove the layout of a formula: ``\left(2, 4\right)`` → ``(2, 4)``, ``1\ 000`` → ``1000``.

    Args:
        text: an answer.

    Returns:
        The formula without LaTeX's spaces, with thousands joined and mixed numbers written as sums.
    """
    text = re.sub(r"(?<=\d)(?:,\\!|\\[,;:! ]|\{,\}|~)\s?(?=\d{3})", "", text)
    text = _TIMES.sub(r"\\times 10^", text)
    text = _LAYOUT.sub(" ", text)
    text = _SPACED_THOUSANDS.sub(lambda match: re.sub(r"\s", "", match.group()), text)
    return _MIXED.sub(r"(\1+\2/\3)", text).strip()


@lru_cache(maxsize=8192)
def constant(text: str) -> Number | None:
    r"""Evaluate a formula of numbers, ``+ - * / ^``, ratios (``5:3``), ``\frac``, ``\sqrt``, π, and brackets.

    An integer before a fraction makes a mixed number: ``2\frac{1}{4}`` is 9/4.

    Args:
        text: a formula; LaTeX or plain.

    Returns:
        Its value; None if the text is anything else, longer than 120 characters, or has no finite value.
    """
    if not text or len(text) > MAX_CHARS:
        return None
    parser = _Parser(plain_formula(latex_number_text(text)))
    try:
        value = parser.total()
        return value if parser.at_end() and math.isfinite(value) else None
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None


def same_constant(first: Number, second: Number) -> bool:
    """Compare two constants: exactly, or to a relative 1e-9 if one of them contains a root or π.

    Args:
        first: a value.
        second: another.

    Returns:
        Whether they are equal.
    """
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    return math.isclose(first, second, rel_tol=_RELATIVE_TOLERANCE)


class _Parser:
    """A recursive-descent parser for the tokens of one formula; raises ValueError on unknown ones."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                if text[position:].strip():
                    character = text[position:].strip()[0]
                    self._tokens.append(("unknown", character))
                break
            kind = match.lastgroup or ""
            self._tokens.append((kind, match.group(kind).lstrip("\\")))
            position = match.end()
        self._position = 0
        self._ratio = False

    def at_end(self) -> bool:
        return self._position == len(self._tokens)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._position] if self._position < len(self._tokens) else ("end", "")

    def _take(self, value: str | None = None) -> tuple[str, str]:
        token = self._peek()
        if value is not None and token[1] != value:
            raise ValueError(token[1])
        self._position += 1
        return token

    def total(self) -> Number:
        value = self._product()
        while self._peek()[1] in ("+", "-"):
            sign = self._take()[1]
            term = self._product()
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Number:
        value = self._signed()
        while True:
            kind, token = self._peek()
            if token in ("*", "times", "cdot"):
                self._take()
                value = value * self._signed()
            elif token == ":" and self._ratio:
                raise ValueError("a ratio of more than two")
            elif token in ("/", "div", ":"):
                self._ratio |= self._take()[1] == ":"
                value = value / self._signed()
            elif token in ("frac", "dfrac", "tfrac", "cfrac"):
                before = self._tokens[self._position - 1] if self._position else ("", "")
                fraction = self._power()
                mixed = before[0] == "number" and isinstance(value, Fraction) and value.denominator == 1
                mixed = mixed and isinstance(fraction, Fraction)
                value = value + (fraction if value >= 0 else -fraction) if mixed else value * fraction
            elif token in ("sqrt", "pi", "(", "{") or (kind == "number" and self._tokens[self._position - 1][1] == ")"):
                value = value * self._power()
            else:
                return value

    def _signed(self) -> Number:
        if self._peek()[1] in ("-", "+"):
            sign = self._take()[1]
            value = self._signed()
            return -value if sign == "-" else value
        return self._power()

    def _power(self) -> Number:
        base = self._atom()
        if self._peek()[1] == "^":
            self._take()
            if self._peek()[1] == "circ":
                self._take()
                return base
            if self._peek()[1] == "{" and self._tokens[self._position + 1 : self._position + 3] == [
                ("command", "circ"),
                ("symbol", "}"),
            ]:
                self._position += 3
                return base
            exponent = self._signed()
            return _power(base, exponent)
        if self._peek()[1] == "circ":
            self._take()
        return base

    def _atom(self) -> Number:
        kind, token = self._take()
        if kind == "number":
            return Fraction(token.replace(",", "")) if len(token) <= 40 else float(token.replace(",", ""))
        if token in ("(", "{"):
            value = self.total()
            self._take(")" if token == "(" else "}")
            return value
        if token == "pi":
            return math.pi
        if token == "sqrt":
            degree: Number = Fraction(2)
            if self._peek()[1] == "[":
                self._take()
                degree = self.total()
                self._take("]")
            return _root(self._argument(), degree)
        if token.endswith("frac"):
            upper = self._argument()
            return upper / self._argument()
        raise ValueError(token)

    def _argument(self) -> Number:
        r"""Read a LaTeX argument: a group, or the single digit or command that follows (``\frac12``)."""
        kind, token = self._peek()
        if (
            kind == "number"
            and len(token) > 1
            and token.isdigit()
            and self._tokens[self._position - 1][1].endswith("frac")
        ):
            self._tokens[self._position : self._position + 1] = [("number", digit) for digit in token]
        return self._atom()


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if abs(exponent) > 400 or max(abs(base.numerator), base.denominator).bit_length() * abs(exponent) > 4000:
            raise OverflowError
        return base ** int(exponent)
    value = float(base) ** float(exponent)
    if isinstance(value, complex):
        raise ValueError(base)
    return value


def _root(value: Number, degree: Number) -> Number:
    if value < 0 or degree != int(degree) or not 1 <= degree <= 10:
        raise ValueError(value)
    if isinstance(value, Fraction) and degree == 2:
        upper, lower = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if upper**2 == value.numerator and lower**2 == value.denominator:
            return Fraction(upper, lower)
    return float(value) ** (1 / float(degree))
