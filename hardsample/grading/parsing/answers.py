r"""Find the answer in a completion, in one order for all graders.

1. Thinking is removed: everything before the last ``</think>``, whatever the tag's name (``<thinking>``,
   ``<reasoning>``, ``[THINK]``, ``◁think▷`` …). If nothing follows it, the text before its opening tag is used. A
   ``<think>`` that is never closed is kept.
2. The last ``<answer>``, up to its ``</answer>`` or the end of a truncated completion. If there is only a
   ``</answer>``, the search continues in the text before it. A box inside the tag is unwrapped.
3. The last ``\boxed{}`` (or ``\fbox{}``, or ``<|begin_of_box|>…<|end_of_box|>``) with balanced braces; if truncated,
   up to the end. Of several boxes the last counts.
4. The last phrase such as "the answer is X", "Answer: X", "答案是X" or "#### X": the rest of its line.
5. Otherwise the last non-empty line.

An empty tag or box is an empty answer, which no grader accepts. Only the last 100,000 characters are read.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal, NamedTuple

MAX_CHARS = 100_000
MAX_NORMALISED_CHARS = 20_000

_THINKING = (
    r"[\w:]{0,20}(?:think|thinking|thought|thoughts|reasoning|reason|analysis|reflection|scratchpad|rationale|monologue"
    r"|reasoning_content)|cot"
)
_THOUGHT = re.compile(
    rf"<\|?\s?(?!end_|END_)(?:{_THINKING})\s?\|?>|\[(?:THINK|THINKING)\]|◁think▷|<\|channel\|>analysis<\|message\|>|<unused94>",
    re.IGNORECASE,
)
_THOUGHT_END = re.compile(
    rf"<\|?\s?(?:/|end_(?:of_)?)(?:{_THINKING})\s?\|?>|\[/(?:THINK|THINKING)\]|◁/think▷|<\|channel\|>final<\|message\|>|<unused95>",
    re.IGNORECASE,
)
_END_TOKENS = re.compile(
    r"(?:\s*(?:</s>|<\|(?:im_end|endoftext|eot_id|end|return|end_of_text)\|>|<(?:end_of_turn|eos)>))+\s*$"
)
_TAG = re.compile(r"<(?:answer|final_answer|conclusion)>", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"</(?:answer|final_answer|conclusion)>", re.IGNORECASE)
_GLM_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)
_MARKDOWN = re.compile(
    r"(?<![A-Za-z0-9_*])(\*{1,3}|__)(?=[^\s*_])(.*?[^\s*_\\])\1(?![A-Za-z0-9_])|`{1,3}([^`\n]+)`{1,3}"
    r"|<(?:b|strong|i|em)>(.*?)</(?:b|strong|i|em)>",
    re.DOTALL,
)
_BULLET = re.compile(r"[-•]\s+(?=\*\*|\$)|•\s*")
_CUT_TAG = re.compile(r"</?[a-z]{0,6}$", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(
    r"\banswer\b[^.\n:：=]{0,60}?(?:\bis\b|[:：=])|答案(?:是|为|[:：])|(?:故|因此|所以|应该?)\s*选(?:择)?[:：]?(?=\s*[(（]?[A-Z])|####",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[.!?。！？,，;；\n]")
_MARKS = re.compile(r"[*`<•]|__")
_THOUGHT_MARKS = re.compile(r"[<\[◁]")
MOST_CLAUSE_CHARS = 300
_PLAIN_STARTS = frozenset(("", "the", "so the", "the final", "final", "the correct", "**"))
# A line that only opens or closes a block: code fences, display mathematics, rules.
_FILLER = re.compile(r"(?!\s*[*=~|-][.]?$)(?:```\w*|\\[\[\]]|[\s`*_=$#~|.:：-]*)")
_SENTENCE_END = re.compile(r"[.!。](?=\s|$)|。")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox|boldsymbol|bm|mathsf)\s{0,3}\{([^{}]*)\}"
)
_PIECE = re.compile(r"\s{1,500}|\S{1,500}")
_MARKED = re.compile(r"\*\*([^*\n]+)\*\*|\"([^\"\n]+)\"|“([^”\n]+)”|`([^`\n]+)`")
_JOINT = re.compile(r"\}[\s$]*(?:,|;|、|\band\b|\bor\b|和|或)?[\s$]*$")
_DENIAL = re.compile(
    r"\b(?:not|\w{2,8}n['’]t|cannot|cant|dont|isnt|never|neither|nor|none|no|nothing|wrong|incorrect|false|unlikely|doubt\w*"
    r"|avoid|fails?|except|anything\s+but|everything\s+but|all\s+but|other\s+than|rather\s+than|instead\s+of"
    r"|nobody|without|disagree|opposite|mistake\w*|(?:any|every)\s+\w+\s+but|rul\w+\s+out|cross\w*\s+out|reject\w*|discard\w*|eliminat\w+|exclud\w+)\b|\\(?:neg|lnot|sim|neq|ne|not)(?![a-zA-Z])|≠|¬|不|非|错|没有|排除|除了",
    re.IGNORECASE,
)
_END_PUNCTUATION = " \t\r\n.,;:!?*_`'\"“”‘’()[]{}。，、；："


class Answer(NamedTuple):
    """An answer and its source; ``body`` is the whole text after thinking."""

    text: str
    source: Literal["tag", "box", "phrase", "end"]
    body: str


def extract_answer(completion: str) -> str:
    """Return the answer of a completion, in the order given at the top of this file.

    Args:
        completion: what the model wrote.

    Returns:
        The answer without surrounding whitespace; empty if there is none.
    """
    return find_answer(completion).text


def find_answer(completion: str) -> Answer:
    """Return the answer of a completion together with its source; see :func:`extract_answer`.

    Args:
        completion: what the model wrote.

    Returns:
        The answer, its source (tag, box, phrase or end), and the completion without its thinking.
    """
    body = without_thinking(completion[-MAX_CHARS:])
    opening = _last(_TAG, body) if "<" in body else None
    if opening is not None:
        tagged = body[opening.end() :]
        closing = _CLOSING_TAG.search(tagged)
        tagged = tagged[: closing.start()] if closing else _CUT_TAG.sub("", tagged)
        boxed = _last_boxes(tagged)
        tagged = _END_TOKENS.sub("", tagged)
        return Answer((tagged if boxed is None else boxed).strip(), "tag", body)
    closing = _last(_CLOSING_TAG, body) if "</" in body else None
    if closing is not None:
        body = body[: closing.start()].strip()
    boxed = _last_boxes(body)
    if boxed is not None:
        return Answer(boxed.strip(), "box", body)
    body = _END_TOKENS.sub("", body) if body.endswith(">") else body
    phrase = _last(_PHRASE, body)
    if phrase is not None:
        lines = _lines(body[phrase.end() :])
        if lines:
            line = plain(lines[0])
            line = line.rstrip("*_ ") if line.count("**") % 2 else line
            bare = line.lstrip("*_:： ")
            clause = _clause_before(body, phrase.start()).strip()
            if clause.lower() not in _PLAIN_STARTS and _DENIAL.search(clause):  # "I do not think that the answer is B"
                bare = f"not {bare}"
            return Answer((bare if bare.strip(".。") else line).strip(), "phrase", body)
    lines = _lines(body)
    return Answer(lines[-1] if lines else body, "end", body)


def without_thinking(text: str) -> str:
    """Remove the thinking of a completion, whatever the name of its tags.

    Args:
        text: a completion.

    Returns:
        The text after the last closing tag or, if that is empty, before its opening tag; empty for a completion that is
        only thinking. Thinking that is never closed is kept, without its tag.
    """
    if not _THOUGHT_MARKS.search(text):
        return text.strip()
    end = _last(_THOUGHT_END, text)
    if end is not None:
        after = text[end.end() :].strip()
        opening = _last(_THOUGHT, text[: end.start()])
        text = after or (text[: opening.start()] if opening else "")
    text = text.strip()
    opening = _THOUGHT.match(text)
    return text[opening.end() :].strip() if opening else text


def is_only_thinking(text: str) -> bool:
    """Return whether a completion never reaches an answer: its thinking is not closed, or there is nothing else.

    Args:
        text: a completion.

    Returns:
        Whether it is only thinking; False for an empty completion.
    """
    opening = _THOUGHT.match(text.lstrip())
    if opening and not _THOUGHT_END.search(text):
        return True
    return bool(text.strip()) and not without_thinking(text)


def plain(text: str) -> str:
    r"""Remove Markdown's bold, italics and code marks: ``**45 cm**.`` → ``45 cm.``; ``2**3`` stays.

    Args:
        text: an answer.

    Returns:
        The answer without these marks.
    """
    if not _MARKS.search(text):
        return text
    text = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
    return _MARKDOWN.sub(lambda match: match.group(2) or match.group(3) or match.group(4), text)


@lru_cache(maxsize=4096)
def unwrap_solution(solution: str) -> str:
    r"""Unwrap a gold answer from its ``<answer>`` tag or ``\boxed{}``, if it has one.

    Args:
        solution: the record's solution.

    Returns:
        The gold answer; any other solution is returned without surrounding whitespace.
    """
    extracted = find_answer(solution)
    return extracted.text if extracted.source in ("tag", "box") else solution.strip()


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{}``, ``\fbox{}`` or ``<|begin_of_box|>``, with balanced braces.

    Args:
        text: any text.

    Returns:
        The content, up to the end of the text if the box is not closed; None if there is no box.
    """
    if "box" not in text:
        return None
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    glm = _last(_GLM_BOX, text)
    if glm is not None and glm.start() > start:
        inner = last_boxed(glm.group(1))
        return glm.group(1) if inner is None else inner
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


def _last_boxes(text: str) -> str | None:
    """Return the last box, preceded by the boxes that only "and" or a comma joins to it."""
    boxed = last_boxed(text)
    if boxed is None or text.count("\\boxed") < 2:
        return boxed
    boxes = [boxed]
    while True:
        start = text.rfind("\\boxed")
        text = text[:start]
        joint = _JOINT.search(text)
        previous = last_boxed(text[: joint.start() + 1]) if joint else None
        if joint is None or previous is None or not text[: joint.start() + 1].endswith(f"{{{previous}}}"):
            return ", ".join(reversed(boxes))
        boxes.append(previous)


def first_sentence(text: str) -> str:
    """Return the first sentence of a text; a point between digits does not end it.

    Args:
        text: for instance ``"5. I hope this helps."``.

    Returns:
        The first sentence without its full stop; the whole text if that would be empty.
    """
    end = _SENTENCE_END.search(text)
    return (text[: end.start()].strip() if end else text) or text


def is_denied(text: str) -> bool:
    r"""Return whether a text contains a negation: "not", "isn't", "wrong", "anything but", ``\\neq``, 不.

    Args:
        text: a clause.

    Returns:
        Whether it contains any such word.
    """
    return _DENIAL.search(text) is not None


def marked_span(line: str) -> str | None:
    """Return the only quoted, bold or code span of a line, as in ``The word is "GRAND"``.

    Args:
        line: one line of a completion.

    Returns:
        The span's text; None if there is none, more than one, or a negated one ("not **red**").
    """
    marked = list(_MARKED.finditer(line))
    if len(marked) != 1 or _DENIAL.search(line[: marked[0].start()]):
        return None
    return next(group for group in marked[0].groups() if group)


def strip_latex_text(text: str) -> str:
    r"""Remove text commands and math delimiters around a text: ``$\text{red}$`` → ``red``.

    Args:
        text: an answer.

    Returns:
        The answer without these commands.
    """
    if "\\" not in text and "$" not in text:
        return text.strip()
    text = _TEXT_COMMAND.sub(r"\1", text).strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            text = text[len(left) : -len(right)].strip()
    return text


def normalise(text: str) -> str:
    """Return the normal form in which texts are compared.

    NFKC, case-folded, whitespace collapsed, LaTeX text commands unwrapped, punctuation, quotes and brackets stripped at
    both ends. Articles stay.

    Args:
        text: an answer; cut after 20,000 characters.

    Returns:
        The normal form. A text of only punctuation is kept.
    """
    return _normalise_short(text) if len(text) <= 200 else _normalise(text[:MAX_NORMALISED_CHARS])


def _normalise(text: str) -> str:
    text = " ".join(nfkc(strip_latex_text(text)).casefold().split())
    return text.strip(_END_PUNCTUATION) or text


_normalise_short = lru_cache(maxsize=8192)(_normalise)  # options and golds recur


def nfkc(text: str) -> str:
    """Normalise to NFKC in linear time.

    Python's own takes quadratic time on a run of combining marks, so this works piece by piece: words are independent
    under NFKC, and words of more than 500 characters are split.

    Args:
        text: any text.

    Returns:
        Its normal form.
    """
    if text.isascii():
        return text
    return "".join(unicodedata.normalize("NFKC", piece) for piece in _PIECE.findall(text))


def _clause_before(text: str, end: int) -> str:
    """Return the text of a clause before the phrase that ends it, at most its last 300 characters."""
    return _CLAUSE_END.split(text[max(0, end - MOST_CLAUSE_CHARS) : end])[-1]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - the last match is what is wanted
        pass
    return last


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if not _FILLER.fullmatch(line)]
