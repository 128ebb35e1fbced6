r"""Where in a completion the answer is. Every grader starts here, so the order is written down once.

1. Thinking goes first: what stands before the last ``</think>`` is dropped. A ``<think>`` that never closes is kept.
2. The last ``<answer>``: to its ``</answer>``, or to the end where the completion was cut off. Of a lone ``</answer>``
   what stands before it is read on. A ``\boxed{}`` inside the tag is opened.
3. The last ``\boxed{}`` (or ``\fbox{}``), braces balanced; cut off, what is there. Of several boxes the last counts.
4. The last phrase such as "the answer is X", "Answer: X", "答案是X" or "#### X": the rest of its line.
5. Otherwise the last line with something on it.

An empty tag or box is an empty answer, which no grader accepts. Only the last 100,000 characters are read.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal, NamedTuple

MAX_CHARS = 100_000
MAX_NORMALISED_CHARS = 20_000

_TAG = re.compile(r"<answer>", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"</answer>", re.IGNORECASE)
_CUT_TAG = re.compile(r"</?[a-z]{0,6}$", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer\b[^.\n:：=]{0,60}?(?:\bis\b|[:：=])|答案(?:是|为|[:：])|####", re.IGNORECASE)
# A line that only opens or closes a block: code fences, display mathematics, rules.
_FILLER = re.compile(r"```\w*|\\[\[\]]|[\s`*_=$#~|.-]*")
_SENTENCE_END = re.compile(r"[.!?。](?=\s|$)|。")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname)\s{0,3}\{([^{}]*)\}")
_PIECE = re.compile(r"\s{1,500}|\S{1,500}")
_SPACES = re.compile(r"\s+")
_MARKED = re.compile(r"\*\*([^*\n]+)\*\*|\"([^\"\n]+)\"|“([^”\n]+)”|`([^`\n]+)`")
_END_PUNCTUATION = " \t\r\n.,;:!?*_`'\"“”‘’()[]{}。，、；："


class Answer(NamedTuple):
    """An answer and how it was found; ``body`` is everything the model said after thinking."""

    text: str
    source: Literal["tag", "box", "phrase", "end"]
    body: str


def extract_answer(completion: str) -> str:
    """Take the answer out of a completion, in the order given at the top of this file.

    Args:
        completion: what the model wrote.

    Returns:
        The answer without surrounding whitespace; empty if there is none.
    """
    return find_answer(completion).text


def find_answer(completion: str) -> Answer:
    """As :func:`extract_answer`, saying also how the answer was found.

    Args:
        completion: what the model wrote.

    Returns:
        The answer, its source (tag, box, phrase or end), and the completion without its thinking.
    """
    body = _without_thinking(completion[-MAX_CHARS:])
    opening = _last(_TAG, body)
    if opening is not None:
        tagged = body[opening.end() :]
        closing = _CLOSING_TAG.search(tagged)
        tagged = tagged[: closing.start()] if closing else _CUT_TAG.sub("", tagged)
        boxed = last_boxed(tagged)
        return Answer((tagged if boxed is None else boxed).strip(), "tag", body)
    closing = _last(_CLOSING_TAG, body)
    if closing is not None:
        body = body[: closing.start()].strip()
    boxed = last_boxed(body)
    if boxed is not None:
        return Answer(boxed.strip(), "box", body)
    phrase = _last(_PHRASE, body)
    if phrase is not None:
        lines = _lines(body[phrase.end() :].lstrip(" \t*_:："))
        if lines:
            return Answer(lines[0].lstrip("*_:： ").strip(), "phrase", body)
    lines = _lines(body)
    return Answer(lines[-1] if lines else body, "end", body)


def unwrap_solution(solution: str) -> str:
    r"""Take the gold answer out of its ``<answer>`` tag or ``\boxed{}``, if it stands in one.

    Args:
        solution: the record's solution.

    Returns:
        The gold answer; a solution in neither is returned as it is, without surrounding whitespace.
    """
    found = find_answer(solution)
    return found.text if found.source in ("tag", "box") else solution.strip()


def last_boxed(text: str) -> str | None:
    r"""Find the content of the last ``\boxed{}`` or ``\fbox{}``, with balanced braces.

    Args:
        text: any text.

    Returns:
        The content, to the end of the text where the box does not close; None where there is no box.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start + (6 if text.startswith("\\boxed", start) else 5) :].lstrip()
    if not rest.startswith("{"):  # \boxed 5
        return rest.split(maxsplit=1)[0] if rest else ""
    depth = 0
    for brace in _BRACE.finditer(rest):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return rest[1 : brace.start()]
    return rest[1:]


def first_sentence(text: str) -> str:
    """Cut a text after its first sentence; a point between digits ends none.

    Args:
        text: for instance ``"5. I hope this helps."``.

    Returns:
        The first sentence without its full stop; the whole text where that would be empty.
    """
    end = _SENTENCE_END.search(text)
    return (text[: end.start()].strip() if end else text) or text


def marked_span(line: str) -> str | None:
    """Find the one quoted, bold or code span of a line, as in ``The word is "GRAND"``.

    Args:
        line: one line of a completion.

    Returns:
        The span's text; None where there is none, or more than one.
    """
    spans = [next(group for group in match.groups() if group) for match in _MARKED.finditer(line)]
    return spans[0] if len(spans) == 1 else None


def strip_latex_text(text: str) -> str:
    r"""Remove text commands and math delimiters around a text: ``$\text{red}$`` → ``red``.

    Args:
        text: an answer.

    Returns:
        The answer in plain characters, as far as these commands go.
    """
    text = _TEXT_COMMAND.sub(r"\1", text).strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
    return text


def normalise(text: str) -> str:
    """Bring a text to the form in which texts are compared.

    NFKC, case-folded, whitespace collapsed, LaTeX text commands opened, punctuation, quotes and brackets taken off the
    ends. Articles stay.

    Args:
        text: an answer; beyond 20,000 characters it is cut.

    Returns:
        The normal form. A text of nothing but punctuation keeps it.
    """
    return _normalise_short(text) if len(text) <= 200 else _normalise(text[:MAX_NORMALISED_CHARS])


def _normalise(text: str) -> str:
    text = nfkc(strip_latex_text(text)).casefold()
    text = _SPACES.sub(" ", text).strip()
    return text.strip(_END_PUNCTUATION) or text


_normalise_short = lru_cache(maxsize=8192)(_normalise)  # options and golds come again and again


def nfkc(text: str) -> str:
    """Normalise to NFKC in linear time.

    Python's own takes quadratic time in a run of combining marks, so this goes piece by piece: words are independent
    under NFKC, and one of more than 500 characters is cut.

    Args:
        text: any text.

    Returns:
        Its normal form.
    """
    if text.isascii():
        return text
    return "".join(unicodedata.normalize("NFKC", piece) for piece in _PIECE.findall(text))


def _without_thinking(text: str) -> str:
    end = text.rfind("</think>")
    text = text[end + len("</think>") :] if end >= 0 else text
    return text.strip().removeprefix("<think>").strip()


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - the last match is what is wanted
        pass
    return last


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if not _FILLER.fullmatch(line)]
