r"""Bounding boxes in text: reading them, and how well they overlap. Boxes are (x1, y1, x2, y2)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from hardsample.grading.parsing.answers import normalise

BoxFormat = Literal["pixels", "relative_1000"]

MAX_BOXES = 500
_BOX_KEYS = ("bbox_2d", "bbox", "box", "bounding_box", "coordinates")
_LABEL_KEYS = ("label", "name", "category", "class", "object")

_N = r"\s{0,9}([-+]?\d{1,9}(?:\.\d{1,15})?)\s{0,9}"
_FOUR = rf"{_N},{_N},{_N},{_N}"
# One or two bracketed groups, with Qwen's name of the object before it.
_BOX = re.compile(
    r"(?:<\|object_ref_start\|>(?P<ref>[^<]{0,200})<\|object_ref_end\|>\s{0,9})?(?:<\|box_start\|>)?\s{0,9}"
    rf"(?:[\[(]{_FOUR}[\])]|[\[(]{_N},{_N}[\])]\s{{0,9}},?\s{{0,9}}[\[(]{_N},{_N}[\])])"
)
_BARE_BOX = re.compile(_FOUR)
_OBJECT = re.compile(r"\{[^{}]{0,2000}\}")
_LABEL = re.compile(rf"[\"'](?:{'|'.join(_LABEL_KEYS)})[\"']\s{{0,9}}:\s{{0,9}}[\"']([^\"']{{0,200}})[\"']")


class Box(NamedTuple):
    """A box with its corners in order (x1 ≤ x2, y1 ≤ y2) and the name of what is in it, if given."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str | None = None


def parse_boxes(text: str) -> list[Box]:
    r"""Read all boxes of a text, in order.

    Accepted: ``[x1, y1, x2, y2]``, ``(x1,y1,x2,y2)``, ``(x1,y1),(x2,y2)`` (also between ``<|box_start|>`` and
    ``<|box_end|>``), four bare numbers as the whole text, and JSON: lists of boxes, objects with ``bbox_2d``, ``bbox``
    or ``x1`` … ``y2`` and optionally ``label``, in code fences or not, cut off or with single quotes.

    Args:
        text: a gold answer or the model's.

    Returns:
        The first 500 boxes. Swapped corners are put in order; a box with a number that is not finite is left out.
    """
    start, end = _json_span(text)
    try:
        boxes = list(_walk(json.loads(text[start:end]))) if end > start else []
    except (ValueError, RecursionError):  # no JSON, or nested beyond reason: read it as text
        boxes = []
    return [box for box in islice(boxes or _scan(text), MAX_BOXES) if box is not None]


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes in the same space.

    Args:
        a: a box.
        b: another.

    Returns:
        A number in [0, 1]; 0 where both are without area.
    """
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    common = max(width, 0.0) * max(height, 0.0)
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - common
    return common / union if union > 0 else 0.0


def convert(box: Box, source: BoxFormat, target: BoxFormat, image_size: tuple[int, int] | None) -> Box:
    """Move a box between pixels and the 0-1000 space.

    Args:
        box: a box in ``source``.
        source: the space it is in.
        target: the space wanted.
        image_size: (width, height) in pixels; needed only where the two differ.

    Returns:
        The box in ``target``.

    Raises:
        ValueError: the spaces differ and no image size is given.
    """
    if source == target:
        return box
    if image_size is None:
        raise ValueError(f"a box in {source} cannot be compared with one in {target}: image_size is needed")
    x, y = (side / 1000 if target == "pixels" else 1000 / side for side in image_size)
    return Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y, box.label)


def all_matched(answers: Sequence[Box], golds: Sequence[Box], threshold: float) -> bool:
    """Tell whether answers and golds can be paired off, one to one and none left over.

    Args:
        answers: the model's boxes.
        golds: the gold boxes, in the same space.
        threshold: least IoU of a pair. Labels of a pair must agree where both have one.

    Returns:
        Whether there is such a pairing: whether the largest assignment of answers to golds pairs them all.
    """
    if len(answers) != len(golds):
        return False
    pairs = [_fits(answer, gold, threshold) for gold in golds for answer in answers]
    fits = np.array(pairs, dtype=bool).reshape(len(golds), len(answers))
    if not fits.any(axis=1).all():
        return False
    from scipy.optimize import linear_sum_assignment  # imported where it is used: it takes long

    return bool(fits[linear_sum_assignment(fits, maximize=True)].all())


def _fits(answer: Box, gold: Box, threshold: float) -> bool:
    if answer.label and gold.label and normalise(answer.label) != normalise(gold.label):
        return False
    return iou(answer, gold) >= threshold


def _json_span(text: str) -> tuple[int, int]:
    starts = [i for i in (text.find("["), text.find("{")) if i >= 0]
    return (min(starts), max(text.rfind("]"), text.rfind("}")) + 1) if starts else (0, 0)


def _walk(value: Any, label: str | None = None) -> Iterator[Box | None]:
    """Yield the boxes of parsed JSON; None for a box that is no box."""
    if isinstance(value, dict):
        name = next((str(value[key]) for key in _LABEL_KEYS if key in value), label)
        if all(key in value for key in ("x1", "y1", "x2", "y2")):
            yield _box([value[key] for key in ("x1", "y1", "x2", "y2")], name)
        else:
            key = next((key for key in _BOX_KEYS if key in value), None)
            for inner in [value[key]] if key else value.values():
                yield from _walk(inner, name)
    elif isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value):
        yield _box(value, label)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, label)


def _scan(text: str) -> Iterator[Box | None]:
    bare = _BARE_BOX.fullmatch(text)
    if bare:
        yield _box(bare.groups(), None)
        return
    # Objects that json could not read (single quotes, cut off) still say which label goes with which box.
    spans = [(match.start(), match.end(), _LABEL.search(match.group())) for match in _OBJECT.finditer(text)]
    index = 0
    for match in _BOX.finditer(text):
        while index < len(spans) and spans[index][1] <= match.start():
            index += 1
        inside = index < len(spans) and spans[index][0] <= match.start()
        label = spans[index][2] if inside else None
        numbers = [group for group in match.groups()[1:] if group is not None]
        yield _box(numbers, label.group(1) if label else match.group("ref"))


def _box(numbers: Sequence[Any], label: str | None) -> Box | None:
    try:
        x1, y1, x2, y2 = (float(number) for number in numbers)
    except (ValueError, TypeError, OverflowError):
        return None
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or max(map(abs, (x1, y1, x2, y2))) > 1e9:
        return None
    return Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), label)
