"""Read a record's answer and choose its grader. Pure.

The grader follows from the record's verifier, else its options, else the form of its solution, else `--grader`, else it
is text. Some forms fit more than one grader (a number can be a count): `--grader` chooses among those.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from hardsample.data.records.defaults import GRADERS
from hardsample.grading.parsing.option_names import option_texts
from hardsample.grading.parsing.quantities import read_quantity

VERIFIERS = {name: name for name in GRADERS} | {
    "mathverify": "math",
    "math_verify": "math",
    "mcq": "choice",
    "multiple_choice": "choice",
    "yes_no": "choice",
    "exact_match": "text",
    "rec": "grounding",
    "iou": "grounding",
    "count": "counting",
}
"""Names of verifiers in records (Orsta, VLM-R1, hardsample) → grader; other names are ignored."""

FORM_GRADERS: dict[str, tuple[str, ...]] = {
    "letter": ("choice", "ocr", "text"),
    "yes_no": ("choice", "text", "ocr"),
    "number": ("math", "counting", "ocr", "text"),
    "formula": ("math", "ocr", "text", "counting"),
    "latex": ("math",),
    "box": ("grounding", "detection"),
    "boxes": ("detection", "grounding"),
    "words": (),
}
"""Form of a solution → the graders that fit, the usual one first; any grader fits words."""

BOX_FORMATS = {
    "pixels": "pixels",
    "real": "pixels",
    "relative_1000": "relative_1000",
    "norm1000": "relative_1000",
    "True": "relative_1000",
    "False": "pixels",
}
"""Box formats in records (hardsample, ms-swift's bbox_type, Orsta's det_verifier_normalized) → box_format."""

_LETTER = re.compile(r"\(?([A-J])\)?[.:]?")
_YES_NO = re.compile(r"(?:yes|no|true|false)[.!]?", re.IGNORECASE)
_LATEX = re.compile(r"\\[a-zA-Z{]+|\$[^$]+\$|\w\^[\w{]")
_TIME_OR_DATE = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?(?:\s*[ap]\.?m\.?)?|\d{1,4}([/.-])\d{1,2}\1\d{1,4}", re.IGNORECASE)
_NUMBERS = re.compile(
    r"[(\[{]?\s*[-+−±]?[\d.,]+%?(?:\s*(?:[,;]|,?\s*\b(?:and|or)\b|和|或)\s*[-+−±]?[\d.,]+%?)*\s*[)\]}]?"
)
_SYMBOLS = re.compile(r"[\w\s.,;:+\-−–*·×/÷^=<>≤≥≠≈±√π∞∪∩∈()\[\]{}|!%°'′²³½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞α-ωΑ-Ω∠△]+")
_OPERATOR = re.compile(
    r"[+*×÷^=<>≤≥≠≈±√π∞∪∩∈²³½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]|(?<=[\w)\]])\s*[-−/]\s*(?=[\w(\[])|^[-−](?=\w)|\d:\d|\d[a-z]\b|\d\(|\)\(|\d!|\d_\{?\d|\b(?:sin|cos|tan|log|ln|exp|sqrt)\b"
)
_FUNCTIONS = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|arcsin|arccos|arctan|max|min|and|or|pi|inf)\b")
_WORD = re.compile(r"[^\W\d_]{3,}|[㐀-鿿]")
_RANGE = re.compile(
    r"\d[\d.,]*\s*[-–—]\s*\d[\d.,]*%?|[A-Z]\s*/\s*[A-Z]|[a-z]{2,}/[a-z]{2,}|->|\d+[A-Z]|[A-Z]+-?\d+[A-Z]?"
)
_MARKER = re.compile(r"\(([A-J])\)")
_INLINE_MARKER = re.compile(r"(?:^|(?<=[;,；\s]))\(?([A-Z])[.:)]\s*")
_LINE_MARKER = re.compile(r"^[ \t]*([A-J])[.:)]", re.MULTILINE)


def solution_text(value: Any) -> str:
    """Return a solution as text: strings unchanged, 160.0 as 160, lists and mappings (boxes) as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def unwrap(solution: str) -> str:
    """Remove the wrapping of an answer: `<answer>` tags, `\\boxed{}`, `\\text{}` and dollar signs."""
    text = solution.strip()
    if tagged := re.search(r"<answer>(.*?)</answer>", text, re.DOTALL):
        text = tagged.group(1).strip()
    while wrapped := re.fullmatch(r"\\(?:boxed|text|mathrm|textbf)\s*\{(.*)\}|\$+([^$]+)\$+", text, re.DOTALL):
        inner = wrapped.group(1) if wrapped.group(1) is not None else wrapped.group(2)
        if not _balanced(inner):
            break
        text = inner.strip()
    return text


def solution_form(solution: str) -> str:
    """Return the form of a solution: a key of `FORM_GRADERS`.

    A number is a number, also if followed by a unit or by what is counted. Digits, operators and relations without
    prose are a formula ("2x+3", "x > 3", "3:4", "1331 and 1728"). "Route 66", "2 hours and 5 minutes", "3-5" and "H2O"
    are words.
    """
    answer = unwrap(solution)
    if _LETTER.fullmatch(answer):
        return "letter"
    if _YES_NO.fullmatch(answer):
        return "yes_no"
    if form := _box_form(answer):
        return form
    if _TIME_OR_DATE.fullmatch(answer):
        return "formula"
    if _RANGE.fullmatch(answer):
        return "words"
    if _LATEX.search(answer):
        return "latex"
    has_digit = any(character.isdigit() or character in "½⅓⅔¼¾π√" for character in answer)
    if has_digit and (_NUMBERS.fullmatch(answer) or ("=" not in answer and _measures(answer))):
        return "number"
    is_formula = (
        _SYMBOLS.fullmatch(answer) and _OPERATOR.search(answer) and not _WORD.search(_FUNCTIONS.sub(" ", answer))
    )
    return "formula" if is_formula and "->" not in answer else "words"


def _measures(answer: str) -> bool:
    """Return whether an answer is one quantity, or several with known units ("2 hours and 30 minutes")."""
    if read_quantity(answer) is not None:
        return True
    parts = [read_quantity(part) for part in re.split(r",\s*|\s+and\s+|(?<=[a-z])\s+(?=\d)", answer)]
    return all(part is not None and part.unit for part in parts)


def choose_grader(verifier: Any, options: list[str] | None, solution: str, wanted: str | None) -> str:
    """Choose the grader: the verifier's, else choice if there are options, else by the form of the solution.

    Args:
        verifier: the record's name for its verifier, if it has one.
        options: the record's options.
        solution: the gold answer.
        wanted: the user's `--grader`; used if it fits the form.

    Returns:
        One of `GRADERS`.
    """
    grader = VERIFIERS.get(str(verifier).lower().replace("-", "_"))
    if grader or options:
        return grader or "choice"
    fitting = FORM_GRADERS[solution_form(solution)]
    if wanted and (wanted in fitting or not fitting):
        return wanted
    return fitting[0] if fitting else "text"


def given_options(value: Any) -> list[str] | None:
    """Return the options of a column as a list of texts, without their leading letters.

    Accepted: a list of texts or of `{"label", "text"}`, {"A": …} in its order, {"label": […], "text": […]}; or as text
    the JSON or Python literal of one of these, lettered lines, or `A. …; B. …`.
    """
    if isinstance(value, str):
        parsed = read_literal(value)
        value = parsed if isinstance(parsed, list | dict) else (written_options(value) or _in_one_line(value))
    if isinstance(value, Mapping):
        texts = next((value[key] for key in ("text", "texts") if isinstance(value.get(key), list | tuple)), None)
        # in a typed file every record has all letters, null if unused
        value = texts if texts is not None else list(value.values())
    if not isinstance(value, list | tuple):
        return None
    options = [solution_text(_option_of(option)) for option in value if option is not None]
    return list(option_texts(tuple(options))) or None


def written_options(question: str) -> list[str]:
    """Return the options in a question: `(A) … (B) …` anywhere, or lines `A. …`, `A: …`, `A) …`, from A without a gap.

    If there are several lists, the last one counts. The last option ends at the end of its line.
    """
    for pattern in (_MARKER, _LINE_MARKER):
        marks = list(pattern.finditer(question))
        starts = [i for i, mark in enumerate(marks) if mark.group(1) == "A"]
        if not starts:
            continue
        run = [m for letter, m in zip("ABCDEFGHIJ", marks[starts[-1] :], strict=False) if m.group(1) == letter]
        if len(run) >= 2 and run == marks[starts[-1] : starts[-1] + len(run)]:
            ends = [mark.start() for mark in run[1:]] + [len(question)]
            texts = [question[mark.end() : end] for mark, end in zip(run, ends, strict=True)]
            return [text.strip() for text in texts[:-1]] + [texts[-1].strip().split("\n")[0].strip()]
    return []


def _in_one_line(text: str) -> list[str]:
    """Return the options of `A. one; B. two; C. three`, from A without a gap."""
    marks = list(_INLINE_MARKER.finditer(text))
    if len(marks) < 2 or [mark.group(1) for mark in marks] != list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(marks)]):
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [text[mark.end() : end].strip().rstrip(";,；").strip() for mark, end in zip(marks, ends, strict=True)]


def _option_of(option: Any) -> Any:
    """Return the text of an option that is a mapping with a label; any other option unchanged."""
    if isinstance(option, Mapping):
        return next((option[key] for key in ("text", "content", "value", "option") if option.get(key)), option)
    return option


def is_among(solution: str, options: list[str]) -> bool:
    """Return whether a solution is one of the options: its letter, its text, or both (`B. 13`)."""
    answer = unwrap(solution)
    if letter := _LETTER.fullmatch(answer):
        return ord(letter.group(1)) - ord("A") < len(options) or _same(answer, options)
    lettered = re.fullmatch(r"\(?[A-J][.:)]+\s*(.+)", answer, re.DOTALL)
    return _same(answer, options) or (lettered is not None and _same(lettered.group(1), options))


def box_format(raw: Mapping[str, Any]) -> str | None:
    """Return the record's own box format, "pixels" or "relative_1000", or None if it names none."""
    values = (
        raw.get("box_format"),
        raw.get("bbox_type"),
        inner(raw, "objects", "bbox_type"),
        inner(raw, "reward_model", "verifier_parm", "det_verifier_normalized"),
    )
    return next((BOX_FORMATS[str(value)] for value in values if str(value) in BOX_FORMATS), None)


def inner(raw: Any, *names: str) -> Any:
    """Return the value at a path of nested mappings, or None."""
    for name in names:
        raw = raw.get(name) if isinstance(raw, dict) else None
    return raw


def _same(answer: str, options: list[str]) -> bool:
    def plain(text: str) -> str:
        return " ".join(unwrap(text).casefold().split())

    return plain(answer) in {plain(option) for option in options}


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def _box_form(answer: str) -> str | None:
    value = read_literal(answer)
    if _is_box(value):
        return "box"
    return "boxes" if isinstance(value, list) and value and all(_is_box(item) for item in value) else None


def _is_box(value: Any) -> bool:
    """Return whether a value is [x1, y1, x2, y2] with x1 < x2 and y1 < y2, or a mapping with such a box."""
    if isinstance(value, dict):
        return any(_is_box(value.get(key)) for key in ("bbox_2d", "bbox", "box", "boxes"))
    numbers = isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) for x in value)
    return numbers and 0 <= value[0] < value[2] and 0 <= value[1] < value[3]


def read_literal(text: str, most_chars: int = 100_000) -> Any:
    """Parse a list or mapping written as JSON or as a Python literal; None for any other or longer text."""
    if not text.lstrip().startswith(("[", "{")) or len(text) > most_chars:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None
