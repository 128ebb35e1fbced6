"""Which option of a choice question a text names: by its letter or by its text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hardsample.answers import normalise, strip_latex_text

MAX_CHOICE_CHARS = 5000

# The whole text is a letter: "B", "(B)", "**B**.", "Option B".
_ALONE = re.compile(r"(?:(?:the\s+)?(?:option|choice|answer)\s*:?\s*)?[\s(\[*]*([A-Za-z])[\s)\]*.:,]*", re.IGNORECASE)
# It begins with one: "B) red", "(B) red", "B. red", "B: red", "B - red", "**B** red".
_LEADING = re.compile(r"(?:\(([A-Za-z])\)|\*\*([A-Za-z])\*\*|([A-Za-z])(?:[.):\]]|\s+[-–—]))[.:)]?\s*(\S.*)", re.DOTALL)
# It names one: "option B", "the answer is (B)"; no capital that begins a text ("the answer is A dog").
_NAMED = re.compile(
    r"\b(?:(?i:option|choice)(?:\s+is)?\s*:?\s*(?:\*\*)?\(?([A-Z])(?![\w'’])"
    r"|(?i:answer)(?:\s+is)?\s*:?\s*(?:\*\*)?\(?([A-Z])(?![\w'’]|\s+[a-z]))"
)
# A capital letter by itself; A and I only at the end, elsewhere they are words.
_LONE = re.compile(r"(?<![\w'’])(?:([B-HJ-Z])(?![\w'’])|([AI])(?=[.,;:!*]*\s*$))")
_BRACKETED = re.compile(r"\(([A-Z])\)")


def read_choice(text: str, options: Sequence[str], *, prose: bool) -> int | None:
    """Tell which option a text names.

    Read in this order: an option's text, a letter alone, a letter in front of a text, and in prose the one letter that
    is named as an option, the one letter in brackets, the one option whose text occurs, the one lone capital letter.

    Args:
        text: the solution or an answer.
        options: the options' texts in order; may be empty, and then letters A-Z are accepted.
        prose: whether the text may be sentences in which an option is named.

    Returns:
        The option's index (A is 0); None where the text names no option, or different ones.
    """
    text = strip_latex_text(text[:MAX_CHOICE_CHARS])
    exact = [index for index, option in enumerate(options) if option.strip() == text.strip()]
    same = exact or [index for index, option in enumerate(options) if normalise(option) == normalise(text)]
    if same:
        return same[0]
    alone = _ALONE.fullmatch(text)
    if alone:
        return _index(alone.group(1), options)
    leading = _LEADING.fullmatch(text)
    if leading:
        index = _index(next(filter(None, leading.groups())), options)
        rest = [i for i, option in enumerate(options) if normalise(option) == normalise(leading.group(4))]
        if index is not None and (not rest or index in rest):
            return index
    return _in_prose(text, options) if prose else None


def _in_prose(text: str, options: Sequence[str]) -> int | None:
    for pattern in (_NAMED, _BRACKETED):
        letters = {match.group(match.lastindex or 0) for match in pattern.finditer(text)}
        if letters:
            return _index(letters.pop(), options) if len(letters) == 1 else None
    occurring = _occurring(normalise(text), [normalise(option) for option in options])
    if occurring:
        return occurring.pop() if len(occurring) == 1 else None
    letters = {match.group(match.lastindex or 0) for match in _LONE.finditer(text)}
    return _index(letters.pop(), options) if len(letters) == 1 else None


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if index < (len(options) or 26) else None


def _occurring(text: str, options: list[str]) -> set[int]:
    """Find the options that occur as whole words or numbers, longest first: "light red" is not also "red"."""
    found = set()
    for index in sorted(range(len(options)), key=lambda i: -len(options[i])):
        if not options[index]:
            continue
        pattern = rf"(?<![\w./])(?<!\d,){re.escape(options[index])}(?![\w/%]|[.,]\d)"
        text, count = re.subn(pattern, "\0", text)
        if count:
            found.add(index)
    return found
