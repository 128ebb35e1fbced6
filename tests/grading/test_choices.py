"""The choice grader: letters and texts, in either direction."""

from typing import Any

import pytest

from hardsample.grading.choices import read_choice
from hardsample.grading.graders import grade_choice

COLOURS: dict[str, Any] = {"options": ["green", "red", "light red", "blue"]}

# completion, solution, right?, options
CASES: list[tuple[str, str, bool, dict[str, Any]]] = [
    ("B", "B", True, {}),
    ("(B)", "B", True, COLOURS),
    ("B.", "\\boxed{B}", True, COLOURS),
    ("B) red", "B", True, COLOURS),
    ("B) red", "red", True, COLOURS),
    ("The answer is B", "red", True, COLOURS),
    ("option B", "red", True, COLOURS),
    ("red", "B", True, COLOURS),
    ("\\boxed{red}", "B", True, COLOURS),
    ("RED.", "B", True, COLOURS),
    ("B) green", "B", False, COLOURS),
    ("A", "B", False, COLOURS),
    ("The answer is a light red.", "C", True, COLOURS),
    ("The answer is a light red.", "B", False, COLOURS),
    ("A dog is red", "A", False, COLOURS),
    ("A dog", "A", False, {}),
    ("A dog", "A", False, COLOURS),
    ("E", "B", False, COLOURS),
    ("b", "red", True, COLOURS),
    ("**B**", "red", True, COLOURS),
    ("**B. red**", "red", True, COLOURS),
    ("Answer: **B**", "red", True, COLOURS),
    ("The correct option is B.", "B", True, COLOURS),
    ("I think it is (B).", "B", True, COLOURS),
    ("B or C", "B", False, COLOURS),
    ("The answer is (B) red because it fits.", "B", True, COLOURS),
    ("red or blue", "B", False, COLOURS),
    ("B\n\nBecause the others do not match.", "B", True, COLOURS),
    ("$\\text{B}$", "B", True, COLOURS),
    ("<answer>B</answer>", "B", True, {}),
    ("<answer> B. red </answer>", "red", True, COLOURS),
    ("", "B", False, COLOURS),
    ("2", "\\boxed{2}", True, {"options": ["6", "2", "8", "0"]}),
    ("B", "\\boxed{2}", True, {"options": ["6", "2", "8", "0"]}),
    ("B) 2", "\\boxed{2}", True, {"options": ["6", "2", "8", "0"]}),
    ("6", "\\boxed{2}", False, {"options": ["6", "2", "8", "0"]}),
    ("purple", "purple", True, {}),
    ("C", "(C) x", True, {}),
    ("The answer is A", "A", True, COLOURS),
    ("Option A is wrong, so option B", "B", False, COLOURS),
    ("A) Yes", "A", True, {}),
    ("Yes", "A", True, {"options": ["Yes", "No"]}),
    ("The final answer is $\\boxed{B}$", "red", True, COLOURS),
    ("The missing color is red.", "B", True, COLOURS),
    ("It is B", "B", True, COLOURS),
    ("Therefore, B is correct.", "B", True, COLOURS),
    ("(b) red", "B", True, COLOURS),
    ("A: green", "A", True, COLOURS),
    ("A cat", "a cat", True, {}),
    ("The answer is A.", "A", True, {}),
    ("I", "I", True, {}),
]


@pytest.mark.parametrize(("completion", "solution", "right", "keywords"), CASES)
def test_choice(completion: str, solution: str, right: bool, keywords: dict[str, Any]) -> None:
    assert grade_choice(completion, solution, **keywords) is right


def test_options_are_distinguished_by_letter_and_by_text() -> None:
    options = COLOURS["options"]
    for gold, text in enumerate(options):
        for solution in ("ABCD"[gold], text):
            for answer, option in enumerate(options):
                letter = "ABCD"[answer]
                for completion in (letter, option, f"({letter}) {option}", f"I see that it is {option}."):
                    assert grade_choice(completion, solution, options=options) is (answer == gold), completion


def test_an_article_is_not_a_letter() -> None:
    assert read_choice("A dog", ["cat", "dog"], prose=True) == 1
    assert read_choice("the answer is A dog", ["cat", "dog"], prose=True) == 1
    assert read_choice("A", ["cat", "dog"], prose=True) == 0
