"""The graders that need no worker, as tables of (completion, solution, right?)."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hardsample.grading.graders import (
    grade_counting,
    grade_detection,
    grade_grounding,
    grade_ocr,
    grade_text,
)

RELATIVE: dict[str, Any] = {"answer_format": "relative_1000", "box_format": "pixels", "image_size": (640, 480)}
PIXELS: dict[str, Any] = {"answer_format": "pixels", "box_format": "relative_1000", "image_size": [640, 480]}
DOG = '[{"bbox_2d": [0, 0, 10, 10], "label": "Dog"}]'
DOG_CAT = '[{"bbox_2d": [0, 0, 10, 10], "label": "dog"}, {"bbox_2d": [20, 20, 30, 30], "label": "cat"}]'
CAT_DOG = '[{"bbox_2d": [0, 0, 10, 10], "label": "cat"}, {"bbox_2d": [20, 20, 30, 30], "label": "dog"}]'

TEXT = [
    ("False", "\\boxed{false}", True),
    ("false.", "false", True),
    ("<answer> false false </answer>", "false false", True),
    ("a dog", "the dog", True),
    ("dog", "a dog", True),
    ("A  Dog", "a dog", True),
    ("true", "false", False),
    ("", "", False),
    ("$\\text{red}$", "red", True),
    ("The answer is: red.", "red", True),
    ("(7,6)", "7,6", True),
    ("I think\n\nred", "red", True),
    ('"red"', "red", True),
    ("Straße", "STRASSE", True),
]

OCR = [
    ("GRAND", "GRAND", True),
    ("grand", "\\boxed{GRAND}", True),
    ("GRAN", "GRAND", False),
    ('The word is "GRAND".', "GRAND", True),
    ("The word is **Grand**", "GRAND", True),
    ("28.90", "28.90", True),
    ("28.80", "28.90", False),
    ("14/04/2013", "14/04/2018", False),
    ("UNIHAKA INTERNATIONAL SDN BHD", "UNIHAKKA INTERNATIONAL SDN BHD", True),
    ("UNIHA  INTER NATIONAL", "UNIHAKKA INTERNATIONAL SDN BHD", False),
    ("a\nb  c", "a b c", True),
    ("ＧＲＡＮＤ", "GRAND", True),
    ("", "", False),
    ("", "x", False),
    ("!!!", "!!!", True),
    ("GRAND.", "GRAND", True),
    ("The answer is S.H.H. MOTOR (SUNGAI RENGIT) SDN. BHD.", "S.H.H. MOTOR (SUNGAI RENGIT) SDN. BHD.", True),
    ("hello world", "hello", False),
]

COUNTING = [
    ("3, 1, 4", "3 1 4", True),
    ("3 circles, 1 square and 4 triangles", "3 1 4", True),
    ("three, one, four", "3 1 4", True),
    ("three one four", "3 1 4", True),
    ("3 1", "3 1 4", False),
    ("3 1 4 1", "3 1 4", False),
    ("(7,6)", "\\boxed{(7,6)}", True),
    ("7 rows and 6 columns", "(7,6)", True),
    ("(6,7)", "(7,6)", False),
    ("seven", "7", True),
    ("twenty-one", "21", True),
    ("Twenty one.", "21", True),
    ("one hundred and five", "105", True),
    ("{4}", "4", True),
    ("There are 3 red and 4 blue, 7 in total.", "7", True),
    ("There are 7 circles", "7", True),
    ("4.5", "4", False),
    ("4.0", "4", True),
    ("-4", "4", False),
    ("1,234", "1234", True),
    ("(10,100)", "(10,100)", True),
    ("10, 100", "10 100", True),
    ("", "0", False),
    ("0", "0", True),
    ("zero", "0", True),
    ("５", "5", True),
    ("3-1-4", "3 1 4", True),
    ("H2O", "2", False),
    ("the 2nd", "2", False),
    ("twenty-one three", "21 3", True),
    ("two hundred three", "203", True),
    ("4", "four", True),
    ("<answer>3 circles and one square</answer>", "3 1", True),
    ("\\boxed{5}\n", "5", True),
    ("\\boxed{5 circles}", "5", True),
    ("<answer>5 or 6</answer>", "5", False),
    ("The answer is 5. There are 6 others.", "5", True),
    ("1. three\n2. four\nTotal: 7", "7", True),
    ("10 000", "10", False),
    ("1e400", "1", False),
]

GROUNDING: list[tuple[str, str, bool, dict[str, Any]]] = [
    ("[10, 20, 30, 40]", "[10,20,30,40]", True, {}),
    ("(10,20),(30,40)", "[10,20,30,40]", True, {}),
    ("<|box_start|>(10,20),(30,40)<|box_end|>", "[10,20,30,40]", True, {}),
    ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]\n```', "[10,20,30,40]", True, {}),
    ("\\boxed{[10, 20, 30, 40]}", "\\boxed{10, 20, 30, 40}", True, {}),
    ("[30, 40, 10, 20]", "[10,20,30,40]", True, {}),
    ("[10,20,30,50]", "[10,20,30,40]", True, {}),
    ("[10,20,30,61]", "[10,20,30,40]", False, {}),
    ("[10,20,30,NaN]", "[10,20,30,40]", False, {}),
    ("[10,20,10,20]", "[10,20,10,20]", False, {}),
    ("<answer>[10,20,30,40] [1,2,3,4]</answer>", "[10,20,30,40]", False, {}),
    ("first [1,2,3,4], no: [10,20,30,40]", "[10,20,30,40]", True, {}),
    ("[100,200,300,400]", "[64,96,192,192]", True, RELATIVE),
    ("[64,96,192,192]", "[100,200,300,400]", True, PIXELS),
    ("[100,200,300,400]", "[64,96,192,192]", False, {}),
    ("", "[1,2,3,4]", False, {}),
    ("{'bbox': [10,20,30,40], 'label': 'x'}", "[10,20,30,40]", True, {}),
    ('<answer>{"x1":10,"y1":20,"x2":30,"y2":40}</answer>', "[10,20,30,40]", True, {}),
    ("The box is (10, 20, 30, 40).", "[10.0,20,30,40]", True, {}),
]

DETECTION = [
    (DOG_CAT, "[[20,20,30,30],[0,0,10,10]]", True),
    (DOG_CAT, CAT_DOG, False),
    ("[[0,0,10,10]]", "[[20,20,30,30],[0,0,10,10]]", False),
    ("[[0,0,10,10],[20,20,30,30],[1,1,2,2]]", "[[20,20,30,30],[0,0,10,10]]", False),
    ("[]", "[]", True),
    ("no objects", "[]", False),
    ("[1,2,3,4]", "[]", False),
    ('```json\n[\n{"bbox_2d": [0,0,10,10], "label": "dog"},\n{"bbox_2d": [20,20,30,30], "label": "cat"', DOG_CAT, True),
    ("{'bbox': [0,0,10,10], 'label': 'x'}", '[{"bbox_2d":[0,0,10,10],"label":"y"}]', False),
    ("<|object_ref_start|>dog<|object_ref_end|><|box_start|>(0,0),(10,10)<|box_end|>", DOG, True),
    ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(0,0),(10,10)<|box_end|>", DOG, False),
    ("[0,0,10,10],[0,0,10,10]", "[[0,0,10,10],[20,20,30,30]]", False),
]


@pytest.mark.parametrize(("completion", "solution", "right"), TEXT)
def test_text(completion: str, solution: str, right: bool) -> None:
    assert grade_text(completion, solution) is right


@pytest.mark.parametrize(("completion", "solution", "right"), OCR)
def test_ocr(completion: str, solution: str, right: bool) -> None:
    assert grade_ocr(completion, solution) is right


def test_ocr_similarity_is_a_bound() -> None:
    assert grade_ocr("abcdefghiX", "abcdefghij")  # one of ten: exactly 0.9
    assert not grade_ocr("abcdefghX", "abcdefghi")
    assert grade_ocr("abcdefghX", "abcdefghi", min_similarity=0.8)


@pytest.mark.parametrize(("completion", "solution", "right"), COUNTING)
def test_counting(completion: str, solution: str, right: bool) -> None:
    assert grade_counting(completion, solution) is right


@pytest.mark.parametrize(("completion", "solution", "right", "keywords"), GROUNDING)
def test_grounding(completion: str, solution: str, right: bool, keywords: dict[str, Any]) -> None:
    assert grade_grounding(completion, solution, **keywords) is right


def test_grounding_threshold() -> None:
    half = "[0, 0, 10, 5]"
    assert grade_grounding(half, "[0, 0, 10, 10]")
    assert not grade_grounding(half, "[0, 0, 10, 10]", iou_threshold=0.51)


def test_spaces_that_differ_need_an_image_size() -> None:
    with pytest.raises(ValueError, match="image_size is needed"):
        grade_grounding("[1, 2, 3, 4]", "[1, 2, 3, 4]", answer_format="relative_1000")


@pytest.mark.parametrize(("completion", "solution", "right"), DETECTION)
def test_detection(completion: str, solution: str, right: bool) -> None:
    assert grade_detection(completion, solution) is right


def naive_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last = row
        row = [i + 1]
        for j, y in enumerate(b):
            row.append(min(last[j] + (x != y), last[j + 1] + 1, row[j] + 1))
    return row[-1]


@given(st.text("abc", min_size=1, max_size=90), st.text("abc", min_size=1, max_size=90), st.floats(0, 1))
def test_ocr_compares_by_the_edit_distance(a: str, b: str, least: float) -> None:
    similarity = 1 - naive_distance(a, b) / max(len(a), len(b))
    assume(abs(similarity - least) > 1e-6)
    assert grade_ocr(a, b, min_similarity=least) is (similarity >= least)
