r"""The graders that cannot run away, as pure functions.

Each takes the completion and the record's solution, and says whether the completion is right. Where an answer is looked
for is written down in :mod:`hardsample.grading.parsing.answers`. An empty completion, answer or solution is never
right.
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
    """Accept the solution's text, exactly but for case, NFKC, whitespace, punctuation at the ends and an article.

    The answer is the one found by :func:`hardsample.grading.parsing.answers.find_answer`. Where no tag or box marks
    it, the whole completion (without thinking), its last line, the end of a sentence that says what it is ("It is a
    lamp."), or the one quoted or bold span of that line may match. Letters in a row (gold ``AC``) match in any
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
    return any(_bare(said) in golds for text in texts if "\n" not in text and (said := _told(text)))


@lru_cache(maxsize=4096)
def _gold_text(solution: str) -> tuple[frozenset[str], bool]:
    """The forms of a gold, itself and what its sentence says, and whether it is yes, no or letters, read as choices."""
    gold = unwrap_solution(solution)
    told = _told(gold) if "\n" not in gold else None
    golds = frozenset(filter(None, [_bare(gold), _bare(told or "")]))
    return golds, bool(yes_no_options(gold) or _LETTERS.fullmatch(gold))


def grade_ocr(completion: str, solution: str, *, min_similarity: float = 0.9) -> bool:
    """Accept a reading of at least ``min_similarity``, whose digits are all right.

    Similarity is 1 − edit distance / length of the longer, on both texts in the normal form of :func:`grade_text`
    (case and runs of whitespace do not count). 0.9 allows one wrong letter in ten, none in a shorter word. Digits have
    to agree exactly, because one wrong digit makes another amount or date. The answer is looked for as in
    :func:`grade_text`; texts longer than 20,000 characters are cut there.

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
    """Accept the solution's integers, in order and no others, in digits or English words.

    Gold ``3 1 4`` accepts ``3, 1, 4``, ``(3,1,4)``, ``three, one, four`` and ``3 circles, 1 square and 4 triangles``.
    ``1,234`` is read both as 1234 and as 1 and 234. A number that is not whole makes the answer wrong. Where nothing
    marks the answer, a gold of one integer accepts the last integer of the last line that has one. A gold without any
    integer is compared as text.

    Args:
        completion: what the model wrote.
        solution: the gold integers.

    Returns:
        Whether all integers are right.
    """
    gold_text = unwrap_solution(solution)
    found = find_answer(completion)
    if found.text and found.text == gold_text:
        return True
    golds = _gold_integers(gold_text)
    if not golds:
        return grade_text(completion, solution)
    if len(golds) == 1:
        return golds == _one_count(found)
    text = first_sentence(found.text) if found.source == "phrase" else found.text
    return golds in read_integers(text)


def _one_count(found: Answer) -> list[int] | None:
    """The integer that an answer gives: in a mark the only one, else the last line's last, which nothing may modify."""
    text = first_sentence(found.text) if found.source == "phrase" else found.text
    quantity = read_quantity(text)
    if quantity is None and found.source == "end":  # the answer first, then why
        first = found.body.partition("\n")[0].strip()
        quantity = read_quantity(first) if first != found.text else None
        lines = (line for line in reversed(found.body.splitlines()) if any(read_integers(line)))
        text = next(lines, text)
    if quantity is not None:
        return [int(quantity.value)] if quantity.value == int(quantity.value) and not is_scaled(text) else None
    if is_modified(text):
        return None
    readings = read_integers(text)
    if found.source == "end":
        return next((reading[-1:] for reading in readings if reading), None)
    return next((reading for reading in readings if reading), None)


def grade_choice(completion: str, solution: str, *, options: Sequence[str] | None = None) -> bool:
    r"""Accept the right option by its letter or by its text, whichever of the two the solution gives.

    Letters: ``B``, ``b``, ``(B)``, ``B.``, ``B) red``, ``option B``, ``the answer is B``, ``选B``. Texts: also a value
    in another notation (``\dfrac12`` for ``1/2``, ``15`` for ``15 cm``). A solution of several letters (``A, C``,
    ``AC``) needs just these, in any order. An option's text is read before a letter. An answer that leaves open which
    option it means, or denies one, is wrong: see :func:`hardsample.grading.choices.read_choices`. A solution of yes or
    no (true or false) without options has these two. Where nothing marks the answer, the last line is read, then
    the first.

    Args:
        completion: what the model wrote.
        solution: the right option's letter or text, or several letters.
        options: all options' texts in order; without them only letter against letter and text against text compare.

    Returns:
        Whether the right option was chosen.
    """
    gold_text = unwrap_solution(solution)
    texts = tuple(str(option) for option in options or ()) or yes_no_options(gold_text)
    gold = read_choices(gold_text, texts, prose=False)
    found = find_answer(completion)
    if not found.text or not gold_text:
        return False
    if gold is None:
        return normalise(plain(found.text)) == normalise(gold_text)
    if found.source == "phrase":
        return _first_clear([first_sentence(found.text), found.text], texts) == gold
    if found.source != "end":
        return read_choices(found.text, texts, prose=True) == gold
    if len(gold) > 1 and "\n" in found.body and read_choices(found.body, texts, prose=False) == gold:
        return True
    chosen = None if _echoes(found.body) else _chosen_at_end(found, texts)
    return chosen == gold


def _chosen_at_end(found: Answer, texts: tuple[str, ...]) -> Chosen | None:
    """What an answer without marks says: its last line by itself, else its first line, else its last line in prose."""
    chosen = read_choices(found.text, texts, prose=False)
    first = found.body.partition("\n")[0].strip()
    if chosen is None and first != found.text:
        chosen = read_choices(first, texts, prose=is_yes_no(tuple(map(normalise, texts))))
    spans = filter(None, [marked_span(found.text)])
    return chosen if chosen is not None else _first_clear([found.text, *spans], texts)


def _first_clear(candidates: Sequence[str], texts: tuple[str, ...]) -> Chosen | None:
    read = (read_choices(text, texts, prose=True) for text in dict.fromkeys(candidates))
    return next((chosen for chosen in read if chosen is not None), None)


def _echoes(body: str) -> bool:
    """Whether the last lines list the options, one after the other: no answer."""
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
    """Accept one box that overlaps the gold box with an IoU of at least ``iou_threshold``.

    In a tag, a box or after a phrase there must be exactly one box; where nothing marks the answer the last one counts.
    Forms: see :func:`hardsample.grading.boxes.parse_boxes`. A box without area is never right.

    Args:
        completion: what the model wrote.
        solution: one box, x1, y1, x2, y2.
        box_format: the space of the solution, ``pixels`` or ``relative_1000``.
        answer_format: the space the model answers in; the same if not given.
        image_size: (width, height) in pixels, needed only where the two differ.
        iou_threshold: least IoU.

    Returns:
        Whether the box is right.

    Raises:
        ValueError: the two spaces differ and ``image_size`` is not given.
    """
    found, answers = _answer_boxes(completion, answer_format or box_format, box_format, image_size)
    golds = parse_boxes(unwrap_solution(solution))
    if len(golds) != 1 or not answers or (len(answers) > 1 and found.source != "end"):
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
    """Accept boxes that pair off with the gold boxes, one to one and none left over on either side.

    A pair needs an IoU of at least ``iou_threshold`` and, where both boxes have a label, the same label (F1 = 1 at this
    threshold). An empty gold list accepts an empty list. Where nothing marks the answer all boxes of the completion
    count.

    Args:
        completion: what the model wrote.
        solution: the gold boxes, with labels or without.
        box_format: the space of the solution, ``pixels`` or ``relative_1000``.
        answer_format: the space the model answers in; the same if not given.
        image_size: (width, height) in pixels, needed only where the two differ.
        iou_threshold: least IoU of a pair.

    Returns:
        Whether all boxes are right.

    Raises:
        ValueError: the two spaces differ and ``image_size`` is not given.
    """
    found, answers = _answer_boxes(completion, answer_format or box_format, box_format, image_size)
    gold_text = unwrap_solution(solution)
    golds = parse_boxes(gold_text)
    if not golds:
        return not answers and _is_empty_list(gold_text) and _is_empty_list(found.text)
    return all_matched(answers, golds, iou_threshold)


def _text_candidates(completion: str) -> list[str]:
    found = find_answer(completion)
    if found.source in ("tag", "box"):
        return [found.text]
    span = marked_span(found.text)
    texts = [found.body if found.source == "end" else first_sentence(found.text), found.text, *([span] if span else [])]
    if found.source == "phrase":  # an answer of several lines
        texts.append(found.body[found.body.rfind(found.text) :])
    return texts


def _bare(text: str) -> str:
    """The normal form without marks and without an article."""
    text = normalise(plain(text))
    if not text.startswith(("the ", "a ", "an ")):
        return text
    return text.partition(" ")[2].strip() or text


def _told(text: str) -> str | None:
    """What the last clause of a sentence says something is: "It is a lamp." → "a lamp."; None where it does not."""
    said = _COPULA.fullmatch(text.strip())
    return said.group(1) if said and not is_denied(text[: said.start(1)]) else None


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
    found = find_answer(completion)
    # JSON runs over many lines, so a phrase or a last line is too little of it.
    text = found.text if found.source in ("tag", "box") else found.body
    return found, [convert(box, source, target, image_size) for box in parse_boxes(text)]


def _is_empty_list(text: str) -> bool:
    return _EMPTY_LIST.search(text) is not None
