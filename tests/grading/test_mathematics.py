"""The math grader, with and without its worker."""

from collections.abc import Iterator

import pytest

from hardsample.grading.grader import Grader
from hardsample.grading.mathematics import MathQuestion, decide_math

CASES = [
    ("42", "42", True),
    ("\\boxed{42}", "42", True),
    ("The answer is 42.", "\\boxed{42}", True),
    ("x = 5", "5", True),
    ("½", "0.5", True),
    ("1½", "1.5", True),
    ("1,234", "1234", True),
    ("1234", "1,234", True),
    ("12%", "0.12", True),
    ("12%", "12", True),
    ("0.12", "12%", True),
    ("12 cm", "12", True),
    ("12", "12 cm", True),
    ("12cm^2", "12", True),
    ("12 cm²", "12", True),
    ("12 square units", "12", True),
    ("\\frac{1}{2}", "0.5", True),
    ("\\dfrac12", "1/2", True),
    ("90^\\circ", "90", True),
    ("90°", "90", True),
    ("90 degrees", "90", True),
    ("５", "5", True),
    ("٤٢", "42", True),
    ("", "", False),
    ("", "0", False),
    ("seven", "7", True),
    ("There are 42 apples.", "42", True),
    ("The total is 3 + 4 = 7 apples", "7", True),
    ("purple", "\\boxed{purple}", True),
    ("lprpue", "\\boxed{purple}", False),
    ("\\text{Sunday}", "Sunday", True),
    ("B", "C", False),
    ("C", "\\boxed{C}", True),
    ("(C) 52", "\\boxed{C}", True),
    ("4:45", "4:45", True),
    ("04:45", "4:45", True),
    ("14/04/2018", "14/04/2018", True),
    ("7/2/2018", "14/4/2018", False),
    ("AG", "GA", False),
    ("(2,4)", "\\boxed{(2, 4)}", True),
    ("(4,2)", "(2, 4)", False),
    ("69, 51, 59", "\\boxed{69, 51, 59}", True),
    ("3811.21", "3811.2098", False),
    ("3811.20983", "3811.2098", True),
    ("\\pi/2", "1.5708", True),
    ("2\\sqrt3", "\\sqrt{12}", True),
    ("$6.90", "6.90", True),
    ("6.90", "$6.90", True),
    ("RM 6.90", "$6.90", True),
    ("5 or 6", "5", False),
    ("5 or 6", "6", False),
    ("-5", "5", False),
    ("−5", "-5", True),
    ("x^2-1", "(x-1)(x+1)", True),
    ("x²-1", "(x-1)(x+1)", True),
    ("1e3", "1000", True),
    ("1.2×10³", "1200", True),
    ("<answer>42", "42", True),
    ("42</answer>", "42", True),
    ("\\boxed{\\frac{1}{2}", "1/2", True),
    ("\\boxed{1} then \\boxed{2}", "1", False),
    ("\\boxed{1} then \\boxed{2}", "2", True),
    ("<think>\\boxed{3}</think> 4", "4", True),
    ("<think>\\boxed{3}</think> 4", "3", False),
    ("<think> so \\boxed{3}", "3", True),
    ("So the area is\n\\[\n x = 12 \n\\]", "12", True),
    ("The answer is:\n\\[\n 12 \n\\]", "12", True),
    ("**Answer:** 42", "42", True),
    ("#### 42", "42", True),
    ("The final answer is $\\frac{3}{4}$. I hope it is correct.", "0.75", True),
    ("$1{,}234$", "1234", True),
    ("1\\,234", "1234", True),
    ("160", "160.0", True),
    ("10 dollars", "10", True),
    ("forty-two", "42", True),
    ("It is 5 because 3 and 2 make 5", "5", True),
    ("Sum of 3 and 4 is 7", "7", True),
    ("<answer>The total is 42 dollars.</answer>", "42", True),
    ("2", "2x", False),
    ("12 percent of it", "0.12", True),
    ("sin 30 degrees", "30", False),
    ("1" * 2000, "1", False),
    ("x" * 2000, "y" * 2000, False),
    ("4:45 PM", "4:45", True),
    ("5:45", "4:45", False),
    (r"\{2, 1\}", r"\{1, 2\}", True),
    ("(1, 2]", "[1, 2]", False),
    (r"\frac{1}{", "1", False),
    ("}}{{", "1", False),
    ("12", "[1, 2", False),
]

# What is said to be fast, and to be gradable without the worker, is decided without it.
INLINE = [
    "42",
    "-3",
    "1,234",
    "28.90",
    r"\boxed{42}",
    "<answer>3.5</answer>",
    "The answer is 42.",
    "There are 42 apples.",
    "seven",
]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


@pytest.mark.parametrize(("completion", "solution", "right"), CASES)
def test_math(grader: Grader, completion: str, solution: str, right: bool) -> None:
    assert grader.grade(completion, {"grader": "math", "solution": solution}) is right


@pytest.mark.parametrize("completion", INLINE)
@pytest.mark.parametrize("solution", ["42", r"\boxed{43}", "<answer>1,234</answer>", "0.5"])
def test_plain_numbers_need_no_worker(completion: str, solution: str) -> None:
    assert isinstance(decide_math(completion, solution), bool)


def test_formulas_need_the_worker() -> None:
    assert decide_math("x½", "x/2") == MathQuestion(r"x\frac{1}{2}", "x/2", 6)


@pytest.mark.parametrize("completion", ["½", r"\frac{1}{2}", "2√3 cm", "1 1/2", "12 m/s", "The answer is **45 cm**."])
def test_constants_and_quantities_need_no_worker(completion: str) -> None:
    assert isinstance(decide_math(completion, "0.5"), bool)
