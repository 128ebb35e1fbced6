"""Bounding boxes: parsing, overlap, matching."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsample.grading.boxes import Box, all_matched, convert, iou, parse_boxes

ONE = Box(10, 20, 30, 40)
DOG = Box(10, 20, 30, 40, "dog")

PARSED = [
    ("[10, 20, 30, 40]", [ONE]),
    ("10, 20, 30, 40", [ONE]),
    ("(10,20,30,40)", [ONE]),
    ("(10,20),(30,40)", [ONE]),
    ("<|box_start|>(10,20),(30,40)<|box_end|>", [ONE]),
    ("<|object_ref_start|>dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>", [DOG]),
    ("the box is [10.0, 20.0, 30.0, 40.0].", [ONE]),
    ("[30, 40, 10, 20]", [ONE]),
    ("[[10, 20, 30, 40], [1, 2, 3, 4]]", [ONE, Box(1, 2, 3, 4)]),
    ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]\n```', [DOG]),
    ('[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, {"bbox_2d": [1, 2', [DOG]),
    ("{'bbox': [10, 20, 30, 40], 'label': 'dog'}", [DOG]),
    ('{"x1": 10, "y1": 20, "x2": 30, "y2": 40, "name": "dog"}', [DOG]),
    ('{"objects": [{"box": [10, 20, 30, 40], "category": "dog"}]}', [DOG]),
    ("[10, 20, 30, NaN]", []),
    ("[10, 20, 30, 1e999]", []),
    ('{"bbox": ["a", 1, 2, 3]}', []),
    ("[10, 20, 30]", []),
    ("[[[[" * 10000, []),
    ("", []),
]


@pytest.mark.parametrize(("text", "boxes"), PARSED)
def test_parse_boxes(text: str, boxes: list[Box]) -> None:
    assert parse_boxes(text) == boxes


corner = st.integers(0, 12)
boxes = st.builds(lambda a, b, c, d: Box(min(a, c), min(b, d), max(a, c), max(b, d)), corner, corner, corner, corner)


def covered(box: Box) -> np.ndarray:
    """The unit cells of a box on a 12 × 12 grid, which is what IoU means."""
    grid = np.zeros((12, 12), bool)
    grid[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = True
    return grid


@given(boxes, boxes)
def test_iou_counts_cells(a: Box, b: Box) -> None:
    both, either = (covered(a) & covered(b)).sum(), (covered(a) | covered(b)).sum()
    assert iou(a, b) == pytest.approx(both / either if either else 0.0)


@given(st.lists(boxes, max_size=5), st.lists(boxes, max_size=5))
def test_matching_against_all_permutations(answers: list[Box], golds: list[Box]) -> None:
    expected = len(answers) == len(golds) and any(
        all(iou(a, g) >= 0.3 for a, g in zip(order, golds, strict=True)) for order in itertools.permutations(answers)
    )
    assert all_matched(answers, golds, 0.3) == expected


def test_labels_must_agree_where_both_have_one() -> None:
    assert all_matched([DOG], [Box(10, 20, 30, 40, "Dog.")], 0.5)
    assert all_matched([DOG], [ONE], 0.5)
    assert not all_matched([DOG], [Box(10, 20, 30, 40, "cat")], 0.5)


def test_convert() -> None:
    assert convert(Box(100, 200, 300, 400), "relative_1000", "pixels", (640, 480)) == Box(64, 96, 192, 192)
    assert convert(Box(64, 96, 192, 192), "pixels", "relative_1000", (640, 480)) == Box(100, 200, 300, 400)
    with pytest.raises(ValueError, match="image_size is needed"):
        convert(ONE, "pixels", "relative_1000", None)
