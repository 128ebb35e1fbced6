r"""Inequalities of one variable as intervals: ``x > 2`` → ``(2, \infty)``, ``x<-1 or x>3``, ``-1 < x \le 3``. Pure."""

from __future__ import annotations

import re

from hardsample.grading.parsing.notation import constant

MAX_CHARS = 200

_SIGNS = re.compile(r"\\(?:leqslant|leq|le|geqslant|geq|ge|lt|gt)(?![a-zA-Z])|<=|=<|>=|=>|&lt;|&gt;|≤|≥|⩽|⩾")
_PLAIN = {"lt": "<", "gt": ">", "&lt;": "<", "&gt;": ">"}
_OR = re.compile(r"\\text\s*\{\s*or\s*\}|\\(?:lor|vee)(?![a-zA-Z])|\bor\b|或者?|∨|\|\|", re.IGNORECASE)
_AND = re.compile(r"\\text\s*\{\s*and\s*\}|\\(?:land|wedge)(?![a-zA-Z])|\band\b|且|∧|&&", re.IGNORECASE)
_VARIABLE = re.compile(r"[a-zα-ω]|\\(?:theta|alpha|beta|lambda|mu)")
_RELATION = re.compile(r"([<>≤≥])")
_TURNED = str.maketrans("<>≤≥", "><≥≤")
_MEMBER = re.compile(r"^\s*\\?\{?\s*([a-z])\s*(?:\\in(?![a-zA-Z])|∈)\s*")
_SETS = re.compile(r"^\s*\\?\{\s*[a-z]\s*(?:\||:|\\mid|∣)\s*(.*?)\\?\}\s*$")


def as_interval(text: str) -> tuple[str, str] | None:
    r"""Write inequalities of one variable as an interval, or a union of intervals.

    Args:
        text: an answer: ``x>2``, ``2 < x``, ``-1 < x \le 3``, ``x<-1 \text{ or } x>3``, ``x \ge 1 and x < 3``,
            ``x \in (2, 3]``, ``\{x \mid x > 2\}``.

    Returns:
        The variable and the interval in LaTeX; None for any other text.
    """
    if len(text) > MAX_CHARS:
        return None
    text = text.strip(" $.。")
    if set_text := _SETS.match(text):
        text = set_text.group(1)
    if member := _MEMBER.match(text):
        return member.group(1), text[member.end() :].strip()
    text = _SIGNS.sub(_sign, text)
    if not _RELATION.search(text):
        return None
    parts = _OR.split(text)
    if len(parts) == 1 and text.count(",") == 1 and not _is_between(*text.split(",")):
        parts = text.split(",")
    pieces = [
        _piece(piece.replace(",", " and ") if "," in piece and _RELATION.search(piece) else piece) for piece in parts
    ]
    variables = {piece[0] for piece in pieces if piece}
    if None in pieces or len(variables) != 1:
        return None
    return variables.pop(), r"\cup".join(piece[1] for piece in pieces if piece)


def _is_between(first: str, second: str) -> bool:
    """Return whether two inequalities joined by a comma bound one interval: x > 1, x < 3."""
    both = [_bounds(first), _bounds(second)]
    bounds: dict[str, str] = {}
    for inequality in both:
        bounds |= {side: bound[0] for side, bound in inequality[1].items()} if inequality else {}
    low, high = constant(bounds.get("lower", "")), constant(bounds.get("upper", ""))
    return low is not None and high is not None and low < high


def _sign(match: re.Match[str]) -> str:
    name = match.group().lstrip("\\")
    if name in _PLAIN:
        return _PLAIN[name]
    return "≤" if name[0] in "l<≤⩽" or name == "=<" else "≥"


def _piece(text: str) -> tuple[str, str] | None:
    """Return the variable and the LaTeX of one interval."""
    bounds: dict[str, tuple[str, bool]] = {}
    variable = None
    for part in _AND.split(text):
        read = _bounds(part)
        if read is None or (variable is not None and read[0] != variable):
            return None
        variable = read[0]
        for side, bound in read[1].items():
            if side in bounds:
                return None
            bounds[side] = bound
    lower, closed_below = bounds.get("lower", (r"-\infty", False))
    upper, closed_above = bounds.get("upper", (r"\infty", False))
    if variable is None:
        return None
    return variable, f"{'[' if closed_below else '('}{lower},{upper}{']' if closed_above else ')'}"


def _bounds(text: str) -> tuple[str, dict[str, tuple[str, bool]]] | None:
    """Return the bounds of `x > a`, `a < x` or `a < x < b`."""
    parts = [part.strip() for part in _RELATION.split(text)]
    if len(parts) == 3:
        left, sign, right = parts
        if _VARIABLE.fullmatch(right) and not _VARIABLE.fullmatch(left):
            left, sign, right = right, {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}[sign], left
        if not _VARIABLE.fullmatch(left) or not _is_bound(right, left):
            return None
        return left, {("lower" if sign in ">≥" else "upper"): (right, sign in "≥≤")}
    if len(parts) == 5 and {parts[1], parts[3]} <= {">", "≥"}:
        parts = [part.translate(_TURNED) for part in reversed(parts)]
    if len(parts) == 5 and _VARIABLE.fullmatch(parts[2]) and {parts[1], parts[3]} in ({"<"}, {"≤"}, {"<", "≤"}):
        low, first, variable, second, high = parts
        if _is_bound(low, variable) and _is_bound(high, variable):
            return variable, {"lower": (low, first == "≤"), "upper": (high, second == "≤")}
    return None


def _is_bound(text: str, variable: str) -> bool:
    letters = re.sub(r"\\[a-zA-Z]+", "", text)
    return bool(text) and "," not in text and variable not in letters
