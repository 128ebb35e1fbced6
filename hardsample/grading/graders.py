r"""The graders that need no computer algebra, as pure functions.

Each takes a completion and the record's solution and returns whether the completion is right. How the answer is found
in a completion is described in :mod:`hardsample.grading.parsing.answers`. An empty completion, answer or solution is
never right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rapidfuzz.distance import Levenshtein

from hardsample.grading.boxes import Box, BoxFormat, all_matched, convert, iou, parse_boxes
from hardsample.grading.choices import Chosen, read_choices
from hardsample.grading.parsing.answers import (
    Answer,
    find_answer,
    first_sentence,
    is_denied,
    marked_span,
    normalise,
    plain,
    unwrap_solution,
)
from hardsample.grading.parsing.numerals import read_integers
from hardsample.grading.parsing.option_names import is_yes_no, yes_no_options
from hardsample.grading.parsing.quantities import is_modified, is_scaled, read_quantity

_DIGITS = re.compile(r"\d+")
_LETTERS = re.compile(r"[A-H](?:\s*(?:[,;、&]|and|和)?\s*[A-H])+")
_LISTED = re.compile(r"\s*[(\[]?([A-Ha-h])[.):\]]")
_COPULA = re.compile(
    r"(?:(?:it|this|that|there|they|these|those|he|she|the|in|i|we)\b[^.!?\n]{0,120}?(?:\b(?:is|are|was|were|says|reads|shows|see|looks\s+like|(?:seems|appears)\s+to\s+be)|['’]s)"
    r"|it['’]s|that['’]s)\s+(?:called\s+)?(\S.{0,2000})",
    re.IGNORECASE | re.DOTALL,
)
_EMPTY_LIST = re.compile(r"\[\s*\]")


def grade_text(completion: str, solution: str) -> bool:
    """Accept the solution's text, ignoring case, NFKC, whitespace, punctuation at the ends and a leading article.

    The answer is the one that :func:`hardsample.grading.parsing.answers.find_answer` returns. If no tag or box marks
    it, the whole completion (without thinking), its last line, the end of a sentence that names the answer ("It is a
    lamp."), or the only quoted or bold span of that line may match. A gold of several letters (``AC``) matches in any
    order and spelling (``C, A``); a gold of yes or no matches an answer that begins with it.

    Args:
        completion: what the model wrote.
        solution: the gold text, also in an ``<answer>`` tag or a box.

    Returns:
        Whether the answer is right.
    """
    golds, is_choice = _gold_text(solution)
    if not golds:
        return False
    if is_choice:
        return grade_choice(completion, solution)
    texts = dict.fromkeys(_text_candidates(completion))
    if any(_bare(text) in golds for text in texts):
        return True
    return any(_bare(stated) in golds for text in texts if "\n" not in text and (stated := _stated(text)))


@lru_cache(maxsize=4096)
def _gold_text(solution: str) -> tuple[frozenset[str], bool]:
    """Return the forms of a gold (itself, what its sentence states), and whether it is yes, no or letters: a choice."""
    gold = unwrap_solution(solution)
    stated = _stated(gold) if "\n" not in gold else None
    golds = frozenset(filter(None, [_bare(gold), _bare(stated or "")]))
    return golds, bool(yes_no_options(gold) or _LETTERS.fullmatch(gold))


def grade_ocr(completion: str, solution: str, *, min_similarity: float = 0.9) -> bool:
    """Accept a reading with a similarity of at least ``min_similarity`` and all digits right.

    Similarity is 1 − edit distance / length of the longer text, on both texts in the normal form of :func:`grade_text`
    (case and runs of whitespace do not count). 0.9 allows one wrong letter in ten, none in a shorter word. Digits must
    agree exactly, because one wrong digit makes another amount or date. The answer is extracted as in
    :func:`grade_text`; texts are cut after 20,000 characters.

    Args:
        completion: what the model wrote.
        solution: the gold text.
        min_similarity: least similarity, in [0, 1].

    Returns:
        Whether the reading is right.
    """
    gold = normalise(unwrap_solution(solution))
    candidates = filter(None, map(normalise, _text_candidates(completion)))
    return bool(gold) and any(_similar(candidate, gold, min_similarity) for candidate in candidates)


def grade_counting(completion: str, solution: str) -> bool:
    """Accept exactly the solution's integers, in order, in digits or English words.

    Gold ``3 1 4`` accepts ``3, 1, 4``, ``(3,1,4)``, ``three, one, four`` and ``3 circles, 1 square and 4 triangles``.
    ``1,234`` is read both as 1234 and as 1 and 234. A number that is not an integer makes the answer wrong. If nothing
    marks the answer, a gold of one integer accepts the last integer of the last line that has one. A gold without
    integers is compared as text.

    Args:
        completion: what the model wrote.
        solution: the gold integers.

    Returns:
        Whether all integers are right.
    """
    gold_text = unwrap_solution(solution)
    extracted = find_answer(completion)
    if extracted.text and extracted.text == gold_text:
        return True
    golds = _gold_integers(gold_text)
    if not golds:
        return grade_text(completion, solution)
    if len(golds) == 1:
        return golds == _single_count(extracted)
    text = first_sentence(extracted.text) if extracted.source == "phrase" else extracted.text
    return golds in read_integers(text)


def _single_count(extracted: Answer) -> list[int] | None:
    """Return the integer of an answer: the only one of a marked answer, else the last line's last, if unmodified."""
    text = first_sentence(extracted.text) if extracted.source == "phrase" else extracted.text
    quantity = read_quantity(text)
    if quantity is None and extracted.source == "end":  # the answer first, then why
        first = extracted.body.partition("\n")[0].strip()
        quantity = read_quantity(first) if first != extracted.text else None
        lines = (line for line in reversed(extracted.body.splitlines()) if any(read_integers(line)))
        text = next(lines, text)
    if quantity is not None:
        return [int(quantity.value)] if quantity.value == int(quantity.value) and not is_scaled(text) else None
    if is_modified(text):
        return None
    readings = read_integers(text)
    if extracted.source == "end":
        return next((reading[-1:] for reading in readings if reading), None)
    return next((reading for reading in readings if reading), None)


def grade_choice(completion: str, solution: str, *, options: Sequence[str] | None = None) -> bool:
    r"""Accept the right option by letter or by text, whichever of the two the solution gives.

    Letters: ``B``, ``b``, ``(B)``, ``B.``, ``B) red``, ``option B``, ``the answer is B``, ``选B``. Texts: also a value
    in another notation (``\dfrac12`` for ``1/2``, ``15`` for ``15 cm``). A solution of several letters (``A, C``,
    ``AC``) needs exactly these, in any order. An option's text takes precedence over a letter. An answer that is
    ambiguous or negates an option is wrong: see :func:`hardsample.grading.choices.read_choices`. A solution of yes or
    no (true or false) without options has these two. If nothing marks the answer, the last line is read, then the
    first.

    Args:
        completion: what the model wrote.
        solution: the right option's letter or text, or several letters.
        options: all options' texts in order; without them letters compare only with letters, texts with texts.

    Returns:
        Whether the right option was chosen.
    """
    gold_text = unwrap_solution(solution)
    texts = tuple(str(option) for option in options or ()) or yes_no_options(gold_text)
    gold = read_choices(gold_text, texts, prose=False)
    extracted = find_answer(completion)
    if not extracted.text or not gold_text:
        return False
    if gold is None:
        return normalise(plain(extracted.text)) == normalise(gold_text)
    if extracted.source == "phrase":
        return _first_clear([first_sentence(extracted.text), extracted.text], texts) == gold
    if extracted.source != "end":
        return read_choices(extracted.text, texts, prose=True) == gold
    if len(gold) > 1 and "\n" in extracted.body and read_choices(extracted.body, texts, prose=False) == gold:
        return True
    chosen = None if _echoes(extracted.body) else _chosen_at_end(extracted, texts)
    return chosen == gold


def _chosen_at_end(extracted: Answer, texts: tuple[str, ...]) -> Chosen | None:
    """Return the choice of an unmarked answer: from its last line alone, its first line, or its last line as prose."""
    chosen = read_choices(extracted.text, texts, prose=False)
    first = extracted.body.partition("\n")[0].strip()
    if chosen is None and first != extracted.text:
        chosen = read_choices(first, texts, prose=is_yes_no(tuple(map(normalise, texts))))
    spans = filter(None, [marked_span(extracted.text)])
    return chosen if chosen is not None else _first_clear([extracted.text, *spans], texts)


def _first_clear(candidates: Sequence[str], texts: tuple[str, ...]) -> Chosen | None:
    read = (read_choices(text, texts, prose=True) for text in dict.fromkeys(candidates))
    return next((chosen for chosen in read if chosen is not None), None)


def _echoes(body: str) -> bool:
    """Return whether the last lines only repeat the list of options."""
    labels = [match.group(1).upper() for line in body.splitlines()[-2:] if (match := _LISTED.match(line))]
    return len(labels) == 2 and ord(labels[1]) == ord(labels[0]) + 1


def grade_grounding(
    completion: str,
    solution: str,
    *,
    box_format: BoxFormat = "pixels",
    answer_format: BoxFormat | None = None,
    image_size: tuple[int, int] | None = None,
    iou_threshold: float = 0.5,
) -> bool:
    """Accept one box whose IoU with the gold box is at least ``iou_threshold``.

    A marked answer (tag, box or phrase) must have exactly one box; if nothing marks the answer, the last one counts.
    For the notations see :func:`hardsample.grading.boxes.parse_boxes`. A box without area is never right.

    Args:
        completion: what the model wrote.
        solution: one box, x1, y1, x2, y2.
        box_format: the space of the solution, ``pixels`` or ``relative_1000``.
        answer_format: the space of the model's answer; the solution's by default.
        image_size: (width, height) in pixels, needed only if the two differ.
        iou_threshold: least IoU.

    Returns:
        Whether the box is right.

    Raises:
        ValueError: the two spaces differ and ``image_size`` is not given.
    """
    extracted, answers = _answer_boxes(completion, answer_format or box_format, box_format, image_size)
    golds = parse_boxes(unwrap_solution(solution))
    if len(golds) != 1 or not answers or (len(answers) > 1 and extracted.source != "end"):
        return False
    return iou(answers[-1], golds[0]) >= iou_threshold


def grade_detection(
    completion: str,
    solution: str,
    *,
    box_format: BoxFormat = "pixels",
    answer_format: BoxFormat | None = None,
    image_size: tuple[int, int] | None = None,
    iou_threshold: float = 0.5,
) -> bool:
    """Accept boxes that match the gold boxes one to one, with none left over on either side.

    A pair needs an IoU of at least ``iou_threshold`` and, if both boxes have a label, the same label (F1 = 1 at this
    threshold). An empty gold list accepts an empty list. If nothing marks the answer, all boxes of the completion
    count.

    Args:
        completion: what the model wrote.
        solution: the gold boxes, with labels or without.
        box_format: the space of the solution, ``pixels`` or ``relative_1000``.
        answer_format: the space of the model's answer; the solution's by default.
        image_size: (width, height) in pixels, needed only if the two differ.
        iou_threshold: least IoU of a pair.

    Returns:
        Whether all boxes are right.

    Raises:
        ValueError: the two spaces differ and ``image_size`` is not given.
    """
    extracted, answers = _answer_boxes(completion, answer_format or box_format, box_format, image_size)
    gold_text = unwrap_solution(solution)
    golds = parse_boxes(gold_text)
    if not golds:
        return not answers and _is_empty_list(gold_text) and _is_empty_list(extracted.text)
    return all_matched(answers, golds, iou_threshold)


def _text_candidates(completion: str) -> list[str]:
    extracted = find_answer(completion)
    if extracted.source in ("tag", "box"):
        return [extracted.text]
    span = marked_span(extracted.text)
    texts = [
        extracted.body if extracted.source == "end" else first_sentence(extracted.text),
        extracted.text,
        *([span] if span else []),
    ]
    if extracted.source == "phrase":  # an answer of several lines
        texts.append(extracted.body[extracted.body.rfind(extracted.text) :])
    return texts


def _bare(text: str) -> str:
    """Return the normal form without Markdown and without a leading article."""
    text = normalise(plain(text))
    if not text.startswith(("the ", "a ", "an ")):
        return text
    return text.partition(" ")[2].strip() or text


def _stated(text: str) -> str | None:
    """Return what the last clause of a sentence states: "It is a lamp." → "a lamp."; None for other clauses."""
    match = _COPULA.fullmatch(text.strip())
    return match.group(1) if match and not is_denied(text[: match.start(1)]) else None


@lru_cache(maxsize=4096)
def _gold_integers(gold: str) -> list[int]:
    return read_integers(gold)[0]


def _similar(a: str, b: str, min_similarity: float) -> bool:
    longest = max(len(a), len(b))
    if abs(len(a) - len(b)) > (1 - min_similarity) * longest or _DIGITS.findall(a) != _DIGITS.findall(b):
        return False
    # The same expression as in the docstring; the tolerance only absorbs what 1 − 0.9 loses in binary.
    return a == b or 1 - Levenshtein.distance(a, b) / longest >= min_similarity - 1e-9


def _answer_boxes(
    completion: str, source: BoxFormat, target: BoxFormat, image_size: tuple[int, int] | None
) -> tuple[Answer, list[Box]]:
    extracted = find_answer(completion)
    # JSON runs over many lines, so a phrase or a last line is too little of it.
    text = extracted.text if extracted.source in ("tag", "box") else extracted.body
    return extracted, [convert(box, source, target, image_size) for box in parse_boxes(text)]


def _is_empty_list(text: str) -> bool:
    return _EMPTY_LIST.search(text) is not None
