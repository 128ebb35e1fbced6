"""The form of a solution, the options of a question, and the grader that follows from them."""

import pytest

from hardsample.data.formats import canonical
from hardsample.data.records.solutions import (
    choose_grader,
    given_options,
    solution_form,
    unwrap,
    written_options,
)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks: dict) -> dict:
    return {"role": "user", "content": list(blocks)}


@pytest.mark.parametrize(
    ("solution", "form"),
    [
        ("B", "letter"), ("\\boxed{C}", "letter"), ("(D)", "letter"), ("<answer> A. </answer>", "letter"),
        ("K", "words"),
        ("160", "number"), ("-1,234.5", "number"), ("$6.90", "number"), ("28.90", "number"), ("12%", "number"),
        ("<answer> 28.90 </answer>", "number"), ("3/4", "number"), ("½", "number"), ("5 cm", "number"),
        ("1e-5", "number"),
        ("2√3", "number"), ("\\boxed{(7,6)}", "number"), ("(2, 4)", "number"), ("25π", "number"), ("90°", "number"),
        ("\\boxed{\\frac{1}{2}}", "latex"), ("$x^2$", "latex"), ("\\sqrt{2}", "latex"), ("x^2+1", "latex"),
        ("\\boxed{\\text{purple}}", "words"), ("purple", "words"), ("14/04/2018", "formula"), ("06-05-2018", "formula"),
        ("4:45", "formula"), ("69, 51, 59", "number"), ("Q1", "words"), ("2x+3", "formula"), ("x>3", "formula"),
        ("3:4", "number"), ("1/x", "formula"), ("±2", "number"),
        ("y=2x+3", "formula"), ("a=1, b=2", "formula"), ("sin(x)", "formula"), ("12\\%", "number"), ("12 N", "number"),
        ("12 hours", "number"), ("2 hours and 30 minutes", "number"), ("1331 and 1728", "number"), ("yes", "yes_no"),
        ("False", "yes_no"), ("Route 66", "words"), ("3-5", "words"), ("H2O", "words"), ("12 March 2020", "words"),
        ("2nd floor", "words"), ("N/A", "words"), ("and/or", "words"), ("A -> B", "words"),
        ("32 PUB & BISTRO", "words"),
        ("false false", "words"),
        ("[10, 20, 30, 40]", "box"), ("{'bbox_2d': [1, 2, 3, 4], 'label': 'x'}", "box"), ("[10, 20, 5, 40]", "number"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]', "boxes"), ("[[1, 2, 3, 4], [5, 6, 7, 8]]", "boxes"),
        ("[" * 5000, "words"), ("\\boxed{" * 50, "latex"),
    ],
)  # fmt: skip
def test_form_of_a_solution(solution, form):
    assert solution_form(solution) == form


@pytest.mark.parametrize(
    ("wrapped", "bare"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<answer>\\boxed{5}</answer>", "5"),
        ("\\boxed{1} and \\boxed{2}", "\\boxed{1} and \\boxed{2}"),
        ("$\\boxed{7}$", "7"),
        (" x ", "x"),
    ],
)
def test_unwrap(wrapped, bare):
    assert unwrap(wrapped) == bare


@pytest.mark.parametrize(
    ("verifier", "options", "solution", "wanted", "grader"),
    [
        ("mathverify", ["a", "b"], "a", "ocr", "math"),
        ("detection", None, "x", None, "detection"),
        ("Math-Verify", None, "x", None, "math"),
        ("mcq", None, "x", None, "choice"),
        ("default", None, "x", "ocr", "ocr"),
        (None, ["a", "b"], "5", "math", "choice"),
        (None, None, "B", "math", "choice"),
        (None, None, "5", None, "math"),
        (None, None, "5", "counting", "counting"),
        (None, None, "5", "choice", "math"),
        (None, None, "word", None, "text"),
        (None, None, "word", "ocr", "ocr"),
        (None, None, "[1, 2, 3, 4]", None, "grounding"),
        (None, None, "[1, 2, 3, 4]", "detection", "detection"),
    ],
)
def test_grader_from_verifier_then_options_then_form_then_flag(verifier, options, solution, wanted, grader):
    assert choose_grader(verifier, options, solution, wanted) == grader


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Q\nOptions:\n(A) yellow\n(B) red\n(C) purple\n(D) green", ["yellow", "red", "purple", "green"]),
        ("Q? Choices: (A) + (B) - (C) * (D) /", ["+", "-", "*", "/"]),
        ("Q?\nA. Group 1\nB. Group 2\nC. Group 3", ["Group 1", "Group 2", "Group 3"]),
        ("Q?\nA: [1, 4]\nB: [3]\n", ["[1, 4]", "[3]"]),
        ("As (A) and (B) show … (A) yes (B) no\nAnswer with the letter.", ["yes", "no"]),
        ("(A) one (C) three", []),
        ("(A) alone", []),
        ("(B) b (C) c", []),
        ("Q", []),
    ],
)
def test_options_written_in_the_question(question, options):
    assert written_options(question) == options


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (["a", 2], ["a", "2"]),
        ({"A": "x", "B": "y", "C": None}, ["x", "y"]),
        ('["x", "y"]', ["x", "y"]),
        ("A. x\nB. y", ["x", "y"]),
        ([], None), (None, None), ("", None), ({}, None),
    ],
)  # fmt: skip
def test_given_options(value, options):
    assert given_options(value) == options
    record = canonical({"question": "Q", "answer": "x", "options": value}, 0)
    assert record.options == options
    assert "options" not in record.extra
    assert record.grader == ("choice" if options else "text")
