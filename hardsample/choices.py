"""Which options of a choice question a text names: by letter, by text, or by a value in another notation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from hardsample.answers import normalise, plain, strip_latex_text
from hardsample.notation import same_constant
from hardsample.quantities import Quantity, formula_key, read_quantity
from hardsample.units import compatible

MAX_CHOICE_CHARS = 5000

_L = r"(?<![A-Za-z0-9'’\\_])"  # nothing before a letter that makes it part of a word; Chinese has no blanks
_R = r"(?![A-Za-z0-9'’_])"
# The whole text is a letter: "B", "(B)", "B.", "Option B", "选项B".
_ALONE = re.compile(
    r"(?:(?:the\s+)?(?:option|choice|answer)(?:\s+is)?\s*:?\s*|(?:正确)?(?:选项|答案|选)(?:[是为择项]{0,2})\s*[:：]?\s*)?"
    r"[\s(\[{*]*([A-Za-z])[\s)\]}*.:,。、]*(?:选项|项)?[。.]?",
    re.IGNORECASE,
)
# It begins with one: "B) red", "(B) red", "B. red", "B: red", "B - red", "B, because".
_LEADING = re.compile(
    r"(?:\(([A-Za-z])\)|\[([A-Z])\]|([A-Z])(?=\n)|([A-Za-z])(?:[.):：、\]]|\s+[-–—])|([A-Z]),(?=\s*[a-z]))[.:)]?\s*(\S.*)",
    re.DOTALL,
)
# It names one: "option B", "the answer is (B)", "选B"; no capital that begins a text ("the answer is A dog").
_FOLLOWS = (
    r"is|are|was|because|since|as|which|that|with|and|or|but|if|for|due|it|in|on|by|from|would|will|must|should|has|best"
    r"|fits|matches|seems|looks|appears|correctly|instead"
)
_NAMED = re.compile(
    rf"\b(?i:options?|choices?)(?i:\s+is|\s+are)?\s*:?\s*\(?([A-Z]){_R}"
    rf"|\b(?i:answer)(?i:\s+is)?\s*:?\s*\(?([A-Z]){_R}(?!\s+(?!(?:{_FOLLOWS})\b)[a-z])"
    rf"|选(?:择|项)?(?:[是为])?\s*[(]?([A-Z])(?![a-z0-9'’_])|{_L}([A-Z])(?:选项|项)"
)
_BRACKETED = re.compile(r"\(([A-Z])\)")
# A capital letter by itself. A is an article where a word follows that is no verb or conjunction; I is a letter only at
# the end of a text.
_LONE = re.compile(
    rf"{_L}(?:([B-HJ-Z]){_R}|(A){_R}(?!\s+(?!(?:{_FOLLOWS})\b)[^\W\d_])(?!\s*[=+*/^<>-])|(I){_R}(?=[.,;:!*)]*\s*$))"
)
_LABEL = re.compile(r"(?:^|(?<=[\s(,;，；]))(?:\(([A-Z])\)|([A-Z])[.):：、](?=\s|[^\x00-\x7f]|\w))")
_SEPARATOR = r"\s*(?:,|;|、|/|&|\+|\band\b|和|与|及|\s)\s*"
_SET = re.compile(
    rf"[(\[{{]?\s*\(?[A-Z]\)?(?:(?:{_SEPARATOR}){{1,2}}\(?[A-Z]\)?){{1,9}}\s*[)\]}}]?[.。]?|(?:\([A-Z]\)\s*){{2,10}}|[A-Z]{{2,10}}[.。]?"
)
_MORE = re.compile(
    rf"[)\]*]*(?P<and>(?:{_SEPARATOR}){{1,2}}|(?<=[A-Z])(?=[A-Z]))\(?([A-Z])(?![a-z0-9'’_])\)?|[)\]*]*\s*(?P<or>\bor\b|或)\s*\(?(?:options?\s*)?([A-Z]){_R}"
)
_NEGATION = re.compile(
    r"\b(?:not|isn['’]?t|aren['’]?t|wasn['’]?t|never|neither|nor|none|cannot|can['’]?t|except|incorrect|wrong|false|excluding"
    r"|rather\s+than|instead\s+of|other\s+than|eliminate\w*|rule[sd]?\s+out|unlikely)\b|不|非|错|排除|没有",
    re.IGNORECASE,
)
_DENIED = re.compile(r"(?:is\s+|are\s+)?(?:not|wrong|incorrect|false|no)\b|不|错", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Z]")
_YES_NO = ({"yes", "no"}, {"true", "false"}, {"是", "否"})
_YES_NO_WORDS = {"yes": "yes", "no": "no", "true": "true", "false": "false", "correct": "true", "incorrect": "false"}
_YES_NO_WORDS |= {"yeah": "yes", "yep": "yes", "nope": "no"}
_YES_NO_START = re.compile(
    r"(?:the\s+(?:correct\s+)?answer\s+is\s*:?\s*)?[\"'“*\s]*([A-Za-z]+)(?![\w'’])(.*)", re.DOTALL | re.IGNORECASE
)
_CHINESE_YES = re.compile(r"(?:是的?|对的?|有的?|正确)(?=$|[,，。.!！\s])")
_CHINESE_NO = re.compile(r"(?:否|不是?|没有|不对|错误?)(?=$|[,，。.!！\s])")

_WIDE = str.maketrans("（）【】．，", "()[].,")

Chosen = frozenset[int]


def read_choice(text: str, options: Sequence[str], *, prose: bool) -> int | None:
    """Tell which one option a text names, see :func:`read_choices`.

    Args:
        text: the solution or an answer.
        options: the options' texts in order; may be empty, and then letters A-Z are accepted.
        prose: whether the text may be sentences in which an option is named.

    Returns:
        The option's index (A is 0); None where the text names no option, or several.
    """
    chosen = read_choices(text, options, prose=prose)
    return next(iter(chosen)) if chosen is not None and len(chosen) == 1 else None


def read_choices(text: str, options: Sequence[str], *, prose: bool) -> Chosen | None:
    """Tell which options a text names.

    Read in this order: an option's text, a letter alone, letters in a row (``A, C``, ``A and C``, ``AC``), a letter in
    front of a text, an option's value in another notation; and in prose the letters that are named as options, the
    letters in brackets, the one option whose text occurs, the lone capital letters. A text that denies a letter, or
    leaves open which one it means ("A or B", "not B", "(B) blue" where blue is another option), names none.

    Args:
        text: the solution or an answer.
        options: the options' texts in order; may be empty, and then letters A-Z are accepted.
        prose: whether the text may be sentences in which an option is named.

    Returns:
        The options' indices (A is 0); None where the text names none, or it is not clear which.
    """
    return _read(text[:MAX_CHOICE_CHARS], tuple(options), prose)


@lru_cache(maxsize=8192)
def _read(text: str, options: tuple[str, ...], prose: bool) -> Chosen | None:
    text = _clean(text)
    texts = option_texts(options)
    same = _same_text(text, options)
    if same is not None:
        return frozenset([same])
    if (verdict := read_yes_no(text, texts, prose=prose)) is not None:
        return frozenset([verdict])
    alone = _ALONE.fullmatch(text)
    if alone:
        return _indices([alone.group(1)], texts)
    if _SET.fullmatch(text):
        letters = _LETTERS.findall(text)
        return _indices(letters, texts) if len(set(letters)) == len(letters) else None
    if (index := _by_value(text, texts)) is not None:
        return frozenset([index])
    leading = _LEADING.fullmatch(text)
    if leading and _index(letter := next(filter(None, leading.groups())), texts) is not None:
        return _led(letter, leading.group(6), texts)
    return _in_prose(text, texts) if prose else None


@lru_cache(maxsize=1024)
def _normal(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(normalise, options))


def _same_text(text: str, options: tuple[str, ...]) -> int | None:
    """The first option of just this text, else of its normal form."""
    texts = option_texts(options)
    for wanted, offered in ((text, texts), (text, options), (normalise(text), _normal(texts))):
        if wanted in offered:
            return offered.index(wanted)
    return None


@lru_cache(maxsize=4096)
def option_texts(options: tuple[str, ...]) -> tuple[str, ...]:
    """Take the letters off options that all carry their own: ``A. red``, ``(B) blue``.

    Args:
        options: the options as the record has them.

    Returns:
        Their texts.
    """
    options = tuple(str(option).strip() for option in options)
    led = [
        re.match(rf"\s*[(\[]?{letter}(?:[.):：、\]]|\s+-)[.:)]?\s*(?=\S)", option)
        for letter, option in _lettered(options)
    ]
    if len(options) < 2 or not all(led):
        return options
    return tuple(option[match.end() :] for option, match in zip(options, led, strict=True) if match)


def yes_no_options(gold: str) -> tuple[str, ...]:
    """Name the two options of a question whose gold is yes or no, true or false.

    Args:
        gold: the gold answer.

    Returns:
        Both; empty for every other gold.
    """
    word = normalise(gold)
    pair = next((pair for pair in (("Yes", "No"), ("True", "False"), ("是", "否")) if word in map(normalise, pair)), ())
    return pair


def read_yes_no(text: str, options: Sequence[str], *, prose: bool) -> int | None:
    """Tell which of the options yes and no (true and false) an answer begins with, or is the only one to say.

    Args:
        text: an answer.
        options: the options' texts; others than these two give None.
        prose: whether a sentence may follow ("Yes, there is a dog.").

    Returns:
        The option's index; None where the answer says neither, or takes it back.
    """
    words = _normal(tuple(options))
    if len(words) != 2 or set(words) not in _YES_NO:
        return None
    start = _YES_NO_START.match(text)
    said = _YES_NO_WORDS.get(start.group(1).lower(), "") if start else ""
    if said not in words and prose:
        said = "是" if _CHINESE_YES.match(text) else "否" if _CHINESE_NO.match(text) else ""
        pairs = {"是": ("yes", "true", "是"), "否": ("no", "false", "否")}
        return next((words.index(word) for word in pairs.get(said, ()) if word in words), None)
    if said not in words or not start:
        return None
    rest = start.group(2).strip(" .!\"'”*\n")
    other = words[1 - words.index(said)]
    taken_back = re.match(rf"(?:or|and|/|,)\s*{re.escape(other)}\b", rest, re.IGNORECASE)
    return None if taken_back or (rest and not prose) else words.index(said)


def _clean(text: str) -> str:
    return strip_latex_text(plain(text if text.isascii() else text.translate(_WIDE))).strip()


def _lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    return [(chr(ord("A") + index), option) for index, option in enumerate(options)]


def _led(letter: str, rest: str, options: Sequence[str]) -> Chosen | None:
    """A letter in front of a text, which must not be another option's, deny it, or label more letters."""
    index = _index(letter, options)
    if index is None:
        return None
    said = normalise(rest)
    stated = [i for i, option in enumerate(_normal(tuple(options))) if option == said]
    if stated:
        return frozenset([index]) if index in stated else None
    if _DENIED.match(rest):
        return None
    begun = _begins_with(rest, options)
    if begun is not None and begun != index:
        return None
    own = options[index] if index < len(options) else ""
    others = {m.group(m.lastindex or 0) for m in _LABEL.finditer(rest.replace(own, " ") if own else rest)} - {
        letter.upper()
    }
    named = {m.group(m.lastindex or 0) for m in _NAMED.finditer(rest)} - {letter.upper()}
    if any(_index(other, options) is not None for other in others | named) and not _NEGATION.search(rest):
        return None
    return frozenset([index])


def _begins_with(text: str, options: Sequence[str]) -> int | None:
    """The longest option that a text begins with as a whole word."""
    words = normalise(text)
    hits = [
        (len(option), index)
        for index, option in enumerate(_normal(tuple(options)))
        if option and words.startswith(option) and not re.match(r"[\w^]", words[len(option) : len(option) + 1])
    ]
    return max(hits)[1] if hits else None


def _by_value(text: str, options: Sequence[str]) -> int | None:
    """The one option of the same value or formula: ``\\dfrac{1}{2}`` for ``1/2``, ``15`` for ``15 cm``."""
    values = _values(tuple(options))
    if not any(values):
        return None
    key = formula_key(text)
    alike = [index for index, (other, _) in enumerate(values) if key and other == key]
    quantity = read_quantity(text)
    if not alike and quantity is not None:
        alike = [index for index, (_, other) in enumerate(values) if _same_quantity(quantity, other)]
    return alike[0] if len(alike) == 1 else None


@lru_cache(maxsize=1024)
def _values(options: tuple[str, ...]) -> tuple[tuple[str, Quantity | None], ...]:
    """Key and quantity of each option; nothing where no option has either."""
    values = tuple((formula_key(option), read_quantity(option)) for option in options)
    return values if any(key or quantity for key, quantity in values) else ()


def _same_quantity(one: Quantity, other: Quantity | None) -> bool:
    return other is not None and same_constant(one.value, other.value) and compatible(one.unit, other.unit)


def _in_prose(text: str, options: Sequence[str]) -> Chosen | None:
    for pattern in (_NAMED, _BRACKETED):
        mentions = list(pattern.finditer(text))
        if mentions:
            return _asserted(text, mentions, options)
    occurring = _occurring(text, options)
    if occurring:
        return occurring if len(occurring) == 1 and not _NEGATION.search(_before(text, occurring, options)) else None
    return _asserted(text, list(_LONE.finditer(text)), options)


def _asserted(text: str, mentions: Sequence[re.Match[str]], options: Sequence[str]) -> Chosen | None:
    """The letters of a sentence, if it clearly means them: one, or several joined by "and" or commas."""
    if not mentions or _NEGATION.search(text):
        return None
    letters: set[str] = set()
    runs = set()
    at = -1
    for match in mentions:
        if match.start() < at:  # part of the row before
            continue
        row = [match.group(match.lastindex or 0)]
        at = match.end()
        while more := _MORE.match(text, at):
            if more["or"]:
                return None
            row.append(more.group(2))
            at = more.end()
        runs.add(frozenset(row))
        letters |= set(row)
    if len(runs) > 1:
        return None
    if len(letters) > 1:
        return _indices(letters, options)
    index = _index(letters.pop(), options)
    if index is None:
        return None
    begun = _begins_with(text[mentions[-1].end() :].lstrip(" ).:,-*"), options)
    return None if begun is not None and begun != index else frozenset([index])


def _before(text: str, occurring: Chosen, options: Sequence[str]) -> str:
    """The sentence up to and with the option's text, with the option's own words left out."""
    option = options[next(iter(occurring))]
    at = text.lower().find(option.lower())
    return text[:at] if at >= 0 else text


def _indices(letters: Sequence[str] | set[str], options: Sequence[str]) -> Chosen | None:
    found = [_index(letter, options) for letter in letters]
    return None if not found or None in found else frozenset(index for index in found if index is not None)


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if index < (len(options) or 26) else None


def _occurring(text: str, options: Sequence[str]) -> Chosen:
    """Find the options that occur as whole words or numbers, longest first: "light red" is not also "red".

    A number or a formula does not occur inside another formula, a short name in capitals (IT) only in capitals, and a
    single letter not at all: it may be an article.
    """
    found = set()
    normal = _normal(tuple(options))
    lower = normalise(text)
    for index in sorted(range(len(options)), key=lambda i: -len(normal[i])):
        name, option = options[index], normal[index]
        if not option or (len(option) == 1 and option.isascii() and option.isalpha()):
            continue
        if name.isalpha() and name.isupper() and len(name) <= 4 and not re.search(rf"{_L}{name}{_R}", text):
            continue
        if option not in lower:
            continue
        lower, count = re.subn(_whole(option), "\0", lower)
        if count:
            found.add(index)
    return frozenset(found)


@lru_cache(maxsize=4096)
def _whole(option: str) -> str:
    """A pattern of an option that is no part of a longer word, number or formula."""
    left = r"(?<![A-Za-z0-9_./])(?<!\d,)" if _word_edge(option[0]) else ""
    right = r"(?![A-Za-z0-9_/%]|[.,]\d)" if _word_edge(option[-1]) else ""
    if any(character.isdigit() for character in option):
        left, right = left + r"(?<![\\+\-*^{(]\s)(?<![\\+\-*^{(])", right + r"(?!\s*[+\-*^=(){}\\:])"
    return left + re.escape(option) + right


def _word_edge(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character in "_$\\")
