"""Find the options of a choice question that a text names: by letter, by text, or by value in another notation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from hardsample.grading.parsing.answers import is_denied, normalise, plain, strip_latex_text
from hardsample.grading.parsing.notation import same_constant
from hardsample.grading.parsing.option_names import is_yes_no, option_texts, read_yes_no
from hardsample.grading.parsing.quantities import Quantity, formula_key, quantity_in_prose, read_quantity
from hardsample.grading.parsing.units import compatible, is_percent

MAX_CHOICE_CHARS = 5000

Chosen = frozenset[int]
_UNCLEAR: Chosen = frozenset()

_L = r"(?<![A-Za-z0-9'’\\_])"  # nothing before a letter that makes it part of a word; Chinese has no spaces
_R = r"(?![A-Za-z0-9'’_])"
_FORMULA_BEFORE = r"(?<![=+\-*/^(\\~])(?<![=+\-*/^(\\~]\s)"
_FORMULA_AFTER = r"(?!\s*[=+*/^<>(])(?!\s*-\s*\w)"
# The whole text is a letter: "B", "(B)", "B.", "Option B", "选项B".
_ALONE = re.compile(
    r"(?:(?:the\s+)?(?:option|choice|answer)(?:\s+is)?\s*:?\s*|(?:正确)?(?:选项|答案|选)(?:[是为择项]{0,2})\s*[:：]?\s*)?"
    r"[\s(\[{*]*([A-Za-z])[\s)\]}*.:,。、]*(?:选项|项)?[。.]?",
    re.IGNORECASE,
)
# The text begins with a letter: "B) red", "(B) red", "B. red", "B: red", "B - red", "B, because".
_LEADING = re.compile(
    r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Z])(?=\n)|([A-Z])(?:[.):：、\]]|\s+[-–—]\s)|([a-z])(?:\)|[.:]\s)|([A-Z]),(?=\s*[a-z]))"
    r"[.:)]?\s*(\S.*)",
    re.DOTALL,
)
# Words that may follow a letter in a sentence; before any other word "A" is an article.
_FOLLOWS = (
    r"is|are|was|because|since|as|which|that|with|and|or|but|if|for|due|it|in|on|by|from|would|will|must|should|has|best"
    r"|fits|matches|seems|looks|appears|correctly|instead"
)
# The text names a letter: "option B", "the answer is (B)", "选B"; not the article of "the answer is A dog".
_NAMED = re.compile(
    rf"\b(?i:options?|choices?)(?i:\s+is|\s+are)?\s*:?\s*\(?([A-Z]){_R}"
    rf"|\b(?i:answer)(?i:\s+is)?\s*:?\s*\(?([A-Z]){_R}(?!\s+(?!(?:{_FOLLOWS})\b)[a-z])"
    rf"|选(?:择|项)?(?:[是为])?\s*[:：]?\s*[(]?([A-Z])(?![a-z0-9'’_])|{_L}([A-Z])(?:选项|项)"
)
_BRACKETED = re.compile(r"(?<![A-Za-z0-9\\])\(([A-Z])\)")
# A capital letter by itself. A is an article if the next word is not a verb or conjunction; I is a letter only at the
# end of a text.
_LONE = re.compile(
    rf"{_L}{_FORMULA_BEFORE}(?:([B-HJ-Z]){_R}{_FORMULA_AFTER}"
    rf"|(A){_R}{_FORMULA_AFTER}(?!\s+(?!(?:{_FOLLOWS})\b)[^\W\d_])|(I){_R}(?=[.,;:!*)]*\s*$))"
)
_LABEL = re.compile(
    r"(?:^|(?<=[\s(,;，；]))(?:[(\[]([A-Z])[)\]]|([A-Z])(?:[.):：、](?=\s|[^\x00-\x7f]|\w)|\s+[-–—]\s))"
)
_SEPARATOR = r"\s*(?:,|;|、|/|&|\+|\band\b|和|与|及|\s)\s*"
_SET = re.compile(
    rf"\(?\s*\(?[A-Z]\)?(?:(?:{_SEPARATOR}){{1,2}}\(?[A-Z]\)?){{1,9}}\s*\)?[.。]?"
    r"|(?:\([A-Z]\)\s*){2,10}|[A-Z]{2,10}[.。]?"
)
_SPLIT = re.compile(r"\s*(?:,|;|、|，|\band\b|和|\n)\s*")
_MORE = re.compile(
    rf"[)\]*]*(?P<and>(?:{_SEPARATOR}){{1,2}}|(?<=[A-Z])(?=[A-Z]))\(?([A-Z])(?![a-z0-9'’_])\)?"
    rf"|[)\]*]*,?\s*(?P<or>\bor\b|或)\s*\(?(?:options?\s*)?([A-Z]){_R}"
)
_LETTERS = re.compile(r"[A-Z]")
_DENIED = re.compile(
    r"(?:it\s+|this\s+)?(?:is\s+|are\s+)?(?:not|wrong|incorrect|false|no|fails?|\w+n['’]t|cannot|never|unlikely)\b|不|错",
    re.IGNORECASE,
)
# What follows gives reasons or contrasts other options; the statement comes before it.
_REASON = re.compile(
    r",?\s+\b(?:because|since|while|whereas|unlike|although|rather\s+than|instead\s+of|as\s+(?=\w+\s))\b|[,，;；]\s*(?:not|rather\s+than|而不是|而非|不是)\b"
    r"|[,，]\s*(?=不是|而不是|而非)|[;；]|,\s*(?=\(?[A-Z]\)?\s+(?:is|are)\b)|\s*\((?=not|rather)",
    re.IGNORECASE,
)
_MARKS = ("-", "•", "'", '"', "“", "‘")
_BULLET = re.compile(r"^[-•]\s+(?=\S)")
_NOT_ANOTHER = re.compile(r"not\s+\(?([A-Z])\b")
_JOINED = re.compile(r"(?:or|and|/|&)\b")
_ONE_LETTER = re.compile(r"[(\[]?[A-Z][)\].,]*")
_WORD_CONTINUES = re.compile(r"[\w^]")
_CAPITAL = re.compile(r"[A-Z]")
_QUOTED = re.compile(r"^['\"“‘](.+)['\"”’]\.?$", re.DOTALL)
_HEDGE = re.compile(r"\b(?:maybe|perhaps|possibly|but|or)\b", re.IGNORECASE)
_SPAN = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
_WIDE = str.maketrans({"（": "(", "）": ")", "【": "[", "】": "]", "．": ".", "，": ","} | {
    chr(0xFF21 + i): chr(ord("A") + i) for i in range(26)
})  # fmt: skip


def read_choice(text: str, options: Sequence[str], *, prose: bool) -> int | None:
    """Return the only option that a text names, see :func:`read_choices`.

    Args:
        text: the solution or an answer.
        options: the options' texts in order; may be empty, and then letters A-Z are accepted.
        prose: whether the text may be sentences in which an option is named.

    Returns:
        The option's index (A is 0); None if the text names no option, or several.
    """
    chosen = read_choices(text, options, prose=prose)
    return next(iter(chosen)) if chosen is not None and len(chosen) == 1 else None


def read_choices(text: str, options: Sequence[str], *, prose: bool) -> Chosen | None:
    """Return the options that a text names.

    Tried in this order: an option's text, a single letter, a list of letters or texts (``A, C``, ``A and C``, ``AC``),
    an option's value in another notation, a letter before a text; and in prose the letters named as options, the
    letters in brackets, the only option whose text occurs, single capital letters. A text that negates a letter or is
    ambiguous ("A or B", "not B", "(B) blue" where blue is another option) names none.

    Args:
        text: the solution or an answer.
        options: the options' texts in order; may be empty, and then letters A-Z are accepted.
        prose: whether the text may be sentences in which an option is named.

    Returns:
        The options' indices (A is 0); None if the text names none or is ambiguous.
    """
    return _read(text[:MAX_CHOICE_CHARS], tuple(options), prose)


@lru_cache(maxsize=8192)
def _read(text: str, options: tuple[str, ...], prose: bool) -> Chosen | None:
    text = strip_latex_text(plain(text if text.isascii() else text.translate(_WIDE))).strip()
    if text.startswith(_MARKS):
        text = _QUOTED.sub(r"\1", _BULLET.sub("", text))
    texts = option_texts(options)
    index = _same_text(text, options)
    if index is not None:
        return frozenset([index])
    alone = _ALONE.fullmatch(text)
    if is_yes_no(_normal(texts)):
        verdict = read_yes_no(text, _normal(texts), prose=prose)
        lettered = _LEADING.fullmatch(text)
        if verdict is None and lettered and not alone:
            return _letter_and_text(next(filter(None, lettered.groups()[:-1])), lettered.groups()[-1], texts)
        if verdict is None and prose and not alone and not re.search(r"\b(?:yes|no|true|false)\b", text, re.IGNORECASE):
            return _in_prose(text, texts) or None
        return _indices([alone.group(1)], texts) if verdict is None and alone else _only(verdict)
    if alone:
        return _indices([alone.group(1)], texts)
    if (listed := _listed(text, texts)) is not None:
        return listed or None
    if (index := _by_value(text, texts)) is not None:
        return frozenset([index])
    leading = _LEADING.fullmatch(text)
    if leading and _index(letter := next(filter(None, leading.groups()[:-1])), texts) is not None:
        return _letter_and_text(letter, leading.groups()[-1], texts)
    return (_in_prose(text, texts) or None) if prose else None


@lru_cache(maxsize=1024)
def _normal(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(normalise, options))


@lru_cache(maxsize=1024)
def _wordy(options: tuple[str, ...]) -> tuple[str | None, ...]:
    """Return the options in normal form; None for formulas, whose brackets and signs are significant."""
    return tuple(None if formula_key(option) else normalise(option) for option in options)


def _same_text(text: str, options: tuple[str, ...]) -> int | None:
    """Return the index of the first option with exactly this text, else with its normal form."""
    texts = option_texts(options)
    for wanted, offered in ((text, texts), (text, options), (normalise(text), _wordy(texts))):
        if wanted in offered:
            return offered.index(wanted)
    return None


def _listed(text: str, options: tuple[str, ...]) -> Chosen | None:
    """Return letters or texts joined by "and" or commas; unclear if one is repeated; None for any other text."""
    bare = re.sub(r"[\[\]{}'\"]", "", text).strip()
    if _SET.fullmatch(bare):
        letters = _LETTERS.findall(bare)
        letters = letters[:1] if len(set(letters)) == 1 else letters
        chosen = _indices(letters, options) if len(set(letters)) == len(letters) else None
        return chosen or _UNCLEAR
    parts = [part for part in _SPLIT.split(text) if part]
    if len(parts) < 2 or len(parts) > 10:
        return None
    indices = [_single(part.rstrip("."), options) for part in parts]
    if None in indices:
        return None
    return frozenset(index for index in indices if index is not None) if len(set(indices)) == len(indices) else _UNCLEAR


def _single(text: str, options: tuple[str, ...]) -> int | None:
    """Return the index of the option that an item of a list names, by text, letter or both."""
    if (same_text := _same_text(text, options)) is not None:
        return same_text
    if re.fullmatch(r"\(?([A-Z])\)?", text):
        return _index(text.strip("()"), options)
    leading = _LEADING.fullmatch(text)
    if leading is None:
        return None
    index = _index(next(filter(None, leading.groups()[:-1])), options)
    return index if index is not None and _same_text(leading.groups()[-1], options) == index else None


def _letter_and_text(letter: str, rest: str, options: tuple[str, ...]) -> Chosen | None:
    """Return the option of a letter before a text, unless the text is another option's, negates it or labels others."""
    index = _index(letter, options)
    if index is None:
        return None
    words = normalise(rest)
    same = [i for i, option in enumerate(_normal(options)) if option == words]
    if same:
        return frozenset([index]) if index in same else None
    if (contrast := _NOT_ANOTHER.match(rest)) and contrast.group(1) != letter:  # "B, not A"
        return frozenset([index])
    if _DENIED.match(rest) or _JOINED.match(rest) or _ONE_LETTER.fullmatch(rest):
        return None
    prefix = _begins_with(rest, options)
    if prefix is not None and prefix != index:
        return None
    if _HEDGE.search(rest) and any(_is_other_option(m, letter, options) for m in _LONE.finditer(rest)):
        return None
    own = options[index] if index < len(options) else ""
    rest = rest.replace(own, " ") if own else rest
    if letter.isupper() and not _CAPITAL.search(rest):  # it has no other letter
        return frozenset([index])
    labelled = {m.group(m.lastindex or 0) for m in _LABEL.finditer(rest.upper() if letter.islower() else rest)}
    named = {m.group(m.lastindex or 0) for m in _NAMED.finditer(rest)}
    others = {name for name in (labelled | named) - {letter.upper()} if _index(name, options) is not None}
    listed = len(labelled - {letter.upper()}) > 0 and len(_occurring(rest, options)) > 0
    return None if listed or (others and not is_denied(rest)) else frozenset([index])


def _begins_with(text: str, options: tuple[str, ...]) -> int | None:
    """Return the index of the longest option that a text begins with as a whole word."""
    words = normalise(text)
    hits = [
        (len(option), index)
        for index, option in enumerate(_normal(options))
        if option and words.startswith(option) and not _WORD_CONTINUES.match(words, len(option))
    ]
    return max(hits)[1] if hits else None


def _by_value(text: str, options: tuple[str, ...]) -> int | None:
    r"""Return the only option with the same value or formula: ``\dfrac{1}{2}`` for ``1/2``, ``15`` for ``15 cm``."""
    values = _values(options)
    if not any(values):
        return None
    key = formula_key(text)
    alike = [index for index, (option_key, _) in enumerate(values) if key and option_key == key]
    quantity = read_quantity(text)
    if quantity is not None and (not alike or quantity.unit):
        alike = [index for index, (_, value) in enumerate(values) if value is not None and _alike(quantity, value)]
    return alike[0] if len(alike) == 1 else None


@lru_cache(maxsize=1024)
def _values(options: tuple[str, ...]) -> tuple[tuple[str, Quantity | None], ...]:
    """Return key and quantity of each option; empty if no option has either."""
    values = tuple((formula_key(option), read_quantity(option)) for option in options)
    return values if any(key or quantity for key, quantity in values) else ()


def _alike(answer: Quantity, option: Quantity) -> bool:
    """Return whether an answer has an option's value; its unit may be missing, a percentage may be a plain number."""
    if not compatible(answer.unit, option.unit):
        return False
    if is_percent(answer.unit) and not is_percent(option.unit):
        return same_constant(answer.value / 100, option.value)
    return same_constant(answer.value, option.value) or (
        is_percent(option.unit) and not answer.unit and same_constant(answer.value, option.value / 100)
    )


def _in_prose(text: str, options: tuple[str, ...]) -> Chosen | None:
    """Return what a sentence states before it gives reasons, else what it states as a whole."""
    for part in dict.fromkeys([_REASON.split(text)[0].strip(), text]):
        if part and (stated := _stated(part, options)) is not None:
            return stated
    return None


def _stated(text: str, options: tuple[str, ...]) -> Chosen | None:
    """Return the option that a sentence names; unclear if it negates it or names others; None if it names none."""
    occurring = _occurring(text, options)
    for pattern in (_NAMED, _BRACKETED):
        if mentions := list(pattern.finditer(text)):
            return _asserted(text, mentions, options, occurring)
    if occurring:
        rest = _without(text, (options[index] for index in occurring))
        return occurring if len(occurring) == 1 and not is_denied(rest) else _UNCLEAR
    mentions = [] if "\\" in text else list(_LONE.finditer(text))
    return _asserted(text, mentions, options, occurring) if mentions else None


def _asserted(text: str, mentions: Sequence[re.Match[str]], options: tuple[str, ...], occurring: Chosen) -> Chosen:
    """Return the letters that a sentence clearly means: one, or several joined by "and" or commas."""
    if is_denied(_without(text, options)):
        return _UNCLEAR
    rows = set()
    end = -1
    for match in mentions:
        if match.start() < end:  # part of the previous list
            continue
        row = [match.group(match.lastindex or 0)]
        end = match.end()
        while more := _MORE.match(text, end):
            if more["or"]:
                return _UNCLEAR
            row.append(more.group(2))
            end = more.end()
        rows.add(frozenset(row))
    if len(rows) > 1:
        return _UNCLEAR
    letters = rows.pop()
    letter = next(iter(letters))
    if _HEDGE.search(text) and any(_is_other_option(m, letter, options) for m in _LONE.finditer(text)):
        return _UNCLEAR
    chosen = _indices(letters, options) or _UNCLEAR
    return _UNCLEAR if occurring and len(letters) == 1 and not chosen & occurring else chosen


def _is_other_option(mention: re.Match[str], letter: str, options: tuple[str, ...]) -> bool:
    """Return whether a single letter is that of another option."""
    name = mention.group(mention.lastindex or 0)
    return name != letter.upper() and _index(name, options) is not None


def _occurring(text: str, options: tuple[str, ...]) -> Chosen:
    """Return the options that occur as whole words, longest first: "light red" is not also "red".

    A number or a formula counts only if it is the only one in the sentence, a short name in capitals (IT) only in
    capitals, and a single letter never: it may be an article.
    """
    occurring = set()
    normal = _normal(options)
    values = _values(options) or [("", None)] * len(options)
    lower = normalise(text)
    for index in sorted(range(len(options)), key=lambda i: -len(normal[i])):
        name, option = options[index], normal[index]
        if not option or any(values[index]) or (len(option) == 1 and option.isascii() and option.isalpha()):
            continue
        if name.isalpha() and name.isupper() and len(name) <= 4 and not re.search(rf"{_L}{name}{_R}", text):
            continue
        if option not in lower:
            continue
        lower, count = re.subn(_whole(option), "\0", lower)
        if count:
            occurring.add(index)
    if any(map(any, values)):
        occurring |= _values_in(text, options)
    return frozenset(occurring)


def _values_in(text: str, options: tuple[str, ...]) -> set[int]:
    """Return the option whose value is the only number, or the only formula between dollars, of a sentence."""
    spans = [next(filter(None, match.groups())) for match in _SPAN.finditer(text)]
    if len(spans) == 1:
        index = _by_value(spans[0], options)
        return set() if index is None else {index}
    quantity = quantity_in_prose(text)
    if quantity is None:
        return set()
    alike = {
        index for index, (_, value) in enumerate(_values(options)) if value is not None and _alike(quantity, value)
    }
    return alike if len(alike) == 1 else set()


@lru_cache(maxsize=4096)
def _whole(option: str) -> str:
    """Return a pattern that matches an option as a whole word."""
    left = r"(?<![A-Za-z0-9_./])" if _word_edge(option[0]) else ""
    right = r"(?![A-Za-z0-9_/%]|[.,]\d)" if _word_edge(option[-1]) else ""
    return left + re.escape(option) + right


def _word_edge(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character in "_$\\")


def _without(text: str, options: Iterable[str]) -> str:
    """Return a text without the options' own words if these contain a negation ("not given")."""
    for option in options:
        if option and is_denied(option):
            text = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return text


def _only(index: int | None) -> Chosen | None:
    return None if index is None else frozenset([index])


def _indices(letters: Iterable[str], options: Sequence[str]) -> Chosen | None:
    indices = [_index(letter, options) for letter in letters]
    return None if not indices or None in indices else frozenset(index for index in indices if index is not None)


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if index < (len(options) or 26) else None
