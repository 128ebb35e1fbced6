r"""Read numbers as people and models write them: digits of any script, words, vulgar fractions, thousands, LaTeX."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from hardsample.grading.parsing.answers import nfkc

MAX_COUNTING_CHARS = 5000
MAX_PLAIN_CHARS = 60

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: value for value, word in enumerate(_UNITS)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2}
_LARGE = {"hundred": 100, "thousand": 1000, "million": 1_000_000}

_PLAIN = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.\d{0,15})?|\.\d{1,15})")
_CURRENCY = re.compile(r"(?:RM|Rs\.?|USD|EUR|GBP|CNY|JPY|US\$|[€£¥₹])\s?(?=\d)")
# Either digits with their fraction, or a word. A digit after a letter (H2O) or before an ordinal ending (2nd) is not a
# count; a minus is a sign only after white space or an opening bracket.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_.])(?P<sign>(?<![^\s(\[{,;:=])-)?(?P<digits>\d+)(?P<fraction>\.\d+)?(?!\.?\d|e[+-]?\d|(?:st|nd|rd|th)\b)|(?P<word>[a-z]+)"
)
_THOUSANDS = re.compile(r"(?<![\d,])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_VULGAR = re.compile(r"(\d*)\s*([¼-¾⅐-⅞↉])")
_UNIT_POWER = re.compile(r"(?<=\d)\s*(?:[cdkm]?m|in|ft|yd|mi|inch|inches|feet|units?)\s*\^\s*\{?[23]\}?\s*$")
_THIN_SPACE = re.compile(r"(?<=\d)(?:\\[,!;]|\{,\})(?=\d)")
_SIGNS = {
    "−": "-",
    "–": "-",
    "×": r" \times ",
    "·": r" \cdot ",
    "÷": "/",
    "π": r" \pi ",
    "√": r" \sqrt ",
    "°": r"^\circ ",
    "∞": r" \infty ",
    "≤": r" \le ",
    "≥": r" \ge ",
    "⁄": "/",
}


def plain_number(text: str) -> Decimal | None:
    r"""Read a text that is one plain number and nothing else: ``42``, ``-1,234.5``, ``$7$``, ``**3.**``, ``RM 6.90``.

    Args:
        text: an answer.

    Returns:
        Its exact value; None for anything but an integer or decimal in digits.
    """
    return _plain_number(text) if len(text) <= MAX_PLAIN_CHARS else None


@lru_cache(maxsize=4096)
def _plain_number(text: str) -> Decimal | None:
    text = _CURRENCY.sub("", text.strip(" \t\r\n*$").replace("−", "-").removesuffix("."))
    return Decimal(text.replace(",", "")) if _PLAIN.fullmatch(text) else None


def decimals(text: str) -> int:
    """Return to how many decimals an answer must agree with this gold number.

    Args:
        text: the gold answer.

    Returns:
        Its own number of decimals if that is three to five, since such a gold has been rounded; otherwise 6.
    """
    text = text.strip(" $")
    count = len(text.rpartition(".")[2]) if plain_number(text) is not None and "." in text else 0
    return count if 3 <= count <= 5 else 6


def read_integers(text: str) -> list[list[int]]:
    """Read all integers of a text in order, in digits or English words ("twenty-one", "one hundred and five").

    Args:
        text: for instance ``"3 circles, one square and 4 triangles"``.

    Returns:
        The possible readings: one, or two if a comma may or may not be a thousands separator (``1,234``), thousands
        first. A reading is empty if there is no integer, if a number is not an integer, or if the text is longer than
        5,000 characters.
    """
    if len(text) > MAX_COUNTING_CHARS:
        return [[]]
    text = nfkc(text).casefold().replace("−", "-")
    joined = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    readings = [_integers(joined)]
    return readings if joined == text else [*readings, _integers(text)]


def number_in_words(text: str) -> int | None:
    """Read a text that is one integer in English words and nothing else, such as ``Twenty-one``.

    Args:
        text: an answer.

    Returns:
        The integer; None for any other text.
    """
    words = text.casefold().strip(" .*").replace("-", " ").split() if len(text) <= 100 else []
    if not words or any(word not in _SMALL and word not in _LARGE and word != "and" for word in words):
        return None
    numbers = _number_words(words)
    return numbers[0] if len(numbers) == 1 else None


def number_in_chinese(text: str) -> int | None:
    """Read a Chinese numeral below a hundred: ``三``, ``十二``, ``四十五``, ``两``.

    Args:
        text: an answer.

    Returns:
        The integer; None for any other text.
    """
    tens, ten, units = text.rpartition("十")
    if len(text) > 3 or (tens and tens not in _CHINESE) or (units and units not in _CHINESE) or not text:
        return None
    return (_CHINESE[tens] if tens else 1 if ten else 0) * 10 + (_CHINESE[units] if units else 0)


def latex_number_text(text: str) -> str:
    r"""Rewrite an answer for a LaTeX parser: ``1½`` → ``1\frac{1}{2}``, ``x²`` → ``x^{2}``, ``５`` → ``5``.

    Args:
        text: an answer.

    Returns:
        The answer with ASCII digits and LaTeX commands.
    """
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _VULGAR.sub(_latex_fraction, text)
    text = nfkc(text)
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else _SIGNS.get(c, c) for c in text)
    return _THIN_SPACE.sub("", text).strip()


def without_unit_power(text: str) -> str:
    """Drop the power of a final length unit, which computer algebra would apply to the number: ``12cm^2``.

    Args:
        text: a result of :func:`latex_number_text`.

    Returns:
        The number alone, or the text unchanged.
    """
    return _UNIT_POWER.sub("", text).strip()


def _latex_fraction(match: re.Match[str]) -> str:
    upper, _, lower = unicodedata.normalize("NFKC", match.group(2)).partition("⁄")
    return rf"{match.group(1)}\frac{{{upper}}}{{{lower}}}"


def _integers(text: str) -> list[int]:
    integers: list[int] = []
    words: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        word = match.group("word")
        # Words belong to one number only if nothing but spaces or hyphens is between them.
        if words and (word is None or text[end : match.start()].strip(" -")):
            integers += _number_words(words)
            words = []
        end = match.end()
        if word is not None:
            words.append(word)
        elif match.group("fraction") and int(match.group("fraction")[1:]):
            return []
        elif len(match.group("digits")) <= 18:
            integers.append(int((match.group("sign") or "") + match.group("digits")))
    return integers + _number_words(words)


def _number_words(words: list[str]) -> list[int]:
    """Read "one hundred and five twenty one three" as [105, 21, 3]."""
    numbers: list[int] = []
    total: int | None = None
    last = 0  # the value of the last word, which limits what may follow it
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word in _LARGE and total is not None:
            head = total % 1000 if _LARGE[word] == 100 else total
            total = total - head + head * _LARGE[word]
            last = _LARGE[word]
        elif word in _SMALL:
            value = _SMALL[word]
            if total is not None and (last >= 100 or (20 <= last < 100 and 0 < value < 10)):
                total += value
            else:
                numbers += [] if total is None else [total]
                total = value
            last = value
        elif not (word == "and" and last >= 100 and following in _SMALL):
            numbers += [] if total is None else [total]
            total, last = None, 0
    return numbers if total is None else [*numbers, total]
