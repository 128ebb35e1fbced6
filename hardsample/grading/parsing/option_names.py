"""Read options as people write them: with their own leading letters, or as yes and no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from hardsample.grading.parsing.answers import is_denied, normalise, plain

YES_NO = (("Yes", "No"), ("True", "False"), ("是", "否"))
_SYNONYMS = {"yes": "yes", "yeah": "yes", "yep": "yes", "no": "no", "nope": "no"}
_SYNONYMS |= {"true": "true", "correct": "true", "false": "false", "incorrect": "false"}
_START = re.compile(
    r"(?:the\s+(?:correct\s+)?answer\s+is\s*:?\s*)?[\"'“*\s]*([A-Za-z]+)(?![\w'’])(.*)", re.DOTALL | re.I
)
_CHINESE_YES = re.compile(r"(?:是的?|对的?|有的?|正确)(?=$|[,，。.!！\s])")
_CHINESE_NO = re.compile(r"(?:否|不是?的?|没有|不对|错误?的?)(?=$|[,，。.!！\s])")


@lru_cache(maxsize=4096)
def option_texts(options: tuple[str, ...]) -> tuple[str, ...]:
    """Remove the letters of options that all have their own: ``A. red``, ``(b) blue``, ``Option C: green``.

    Args:
        options: the options of the record.

    Returns:
        Their texts.
    """
    options = tuple(plain(str(option)).strip() for option in options)
    if len(options) < 2:
        return options
    led = [re.match(_label(index), option, re.IGNORECASE) for index, option in enumerate(options)]
    if not all(led):
        return options
    return tuple(option[match.end() :] for option, match in zip(options, led, strict=True) if match)


def _label(index: int) -> str:
    letter = chr(ord("A") + index) if index < 26 else r"\Z."
    marked = rf"[(\[（]{letter}[)\]）][.:：]?|{letter}(?:[.:](?=\s)|[)：、．])|{letter}\s+-(?=\s)"
    return rf"\s*(?:(?:option|choice|选项)\s*)?(?:{marked})\s*(?=\S)"


def yes_no_options(gold: str) -> tuple[str, ...]:
    """Return the two options of a question whose gold is yes or no, true or false.

    Args:
        gold: the gold answer.

    Returns:
        Both options; empty for any other gold.
    """
    word = normalise(gold)
    return next((pair for pair in YES_NO if word in map(normalise, pair)), ())


def is_yes_no(options: Sequence[str]) -> bool:
    """Return whether options, in their normal form, are yes and no, or true and false."""
    return len(options) == 2 and any(set(options) == set(map(normalise, pair)) for pair in YES_NO)


def read_yes_no(text: str, words: Sequence[str], *, prose: bool) -> int | None:
    """Return which of yes and no an answer begins with, or contains as the only one.

    Args:
        text: an answer.
        words: the two options in their normal form.
        prose: whether a sentence may follow ("Yes, there is a dog.").

    Returns:
        The option's index; None if the answer gives neither, both, or corrects itself.
    """
    start = _START.match(text)
    word = _SYNONYMS.get(start.group(1).lower(), "") if start else ""
    if start is None or word not in words:
        return _in_prose(text, words) if prose else None
    rest = start.group(2).strip(" .…!?\"'”*\n")
    if rest and not prose:
        return None
    opposite = re.escape(words[1 - words.index(word)])
    joint = r"(?:^|[.,;:!?…\n/|&(]|\b(?:or|and|but|actually|wait|rather)\b)"
    correction = rf"{joint}\s*(?:\w+\W+){{0,2}}?{opposite}(?=\s*[.,;!?…)]|\s*$)"
    return None if re.search(correction, rest, re.IGNORECASE) else words.index(word)


def _in_prose(text: str, words: Sequence[str]) -> int | None:
    """Return the only one that ends a clause of a sentence, not negated; or the Chinese word that begins it."""
    chinese = (
        ("yes", "true", "是") if _CHINESE_YES.match(text) else ("no", "false", "否") if _CHINESE_NO.match(text) else ()
    )
    if chinese:
        return next((words.index(word) for word in chinese if word in words), None)
    indices = {
        words.index(word)
        for word in words
        if word.isascii()
        and re.search(rf"\b{re.escape(word)}\b(?=[\"'”*]*\s*[.,;!?]|[\"'”*]*\s*$)", text, re.IGNORECASE)
    }
    if len(indices) != 1:
        return None
    index = indices.pop()
    return None if is_denied(re.sub(rf"\b{re.escape(words[index])}\b", " ", text, flags=re.IGNORECASE)) else index
