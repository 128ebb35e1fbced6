"""Extracting answers from completions."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardsample.grading.parsing.answers import (
    MAX_CHARS,
    extract_answer,
    find_answer,
    first_sentence,
    last_boxed,
    marked_span,
    nfkc,
    normalise,
    unwrap_solution,
)

ORDER = [
    # completion, answer, source
    ("<answer>1</answer> \\boxed{2} the answer is 3\n4", "1", "tag"),
    ("\\boxed{2} the answer is 3\n4", "2", "box"),
    ("the answer is 3\n4", "3", "phrase"),
    ("so\n4", "4", "end"),
    ("<think><answer>9</answer></think>\n4", "4", "end"),
    ("<think>\\boxed{3}</think>", "", "end"),
    ("<think> so \\boxed{3}", "3", "box"),
    ("no opening tag </think> 5", "5", "end"),
    ("<answer>1</answer> and <answer>2</answer>", "2", "tag"),
    ("<answer>1</answer> and <answer>2", "2", "tag"),
    ("<answer>42", "42", "tag"),
    ("<answer>42</ans", "42", "tag"),
    ("<ANSWER> 42 </Answer>", "42", "tag"),
    ("42</answer>", "42", "end"),
    ("so \\boxed{42}</answer>", "42", "box"),
    ("<answer>\\boxed{\\frac{1}{2}}</answer>", "\\frac{1}{2}", "tag"),
    ("<answer></answer> 42", "", "tag"),
    ("\\boxed{1}, then \\boxed{2}", "2", "box"),
    ("\\boxed{\\frac{\\sqrt{3}}{2}} holds", "\\frac{\\sqrt{3}}{2}", "box"),
    ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}", "box"),
    ("\\boxed{\\frac{1}{2}", "\\frac{1}{2}", "box"),
    ("\\boxed{", "", "box"),
    ("\\boxed 5 is it", "5", "box"),
    ("\\fbox{7}", "7", "box"),
    ("The final answer is $\\frac{3}{4}$. I hope it is correct.", "$\\frac{3}{4}$. I hope it is correct.", "phrase"),
    ("**Answer:** 42", "42", "phrase"),
    ("Answer: B\nmore words", "B", "phrase"),
    ("The answer to the second question is 42", "42", "phrase"),
    ("The answer is:\n\\[\n 12\n\\]", "12", "phrase"),
    ("#### 42", "42", "phrase"),
    ("答案是42", "42", "phrase"),
    ("first\nlast\n```\n---\n\n", "last", "end"),
    ("", "", "end"),
    (" \n\t ", "", "end"),
]


@pytest.mark.parametrize(("completion", "answer", "source"), ORDER)
def test_order(completion: str, answer: str, source: str) -> None:
    extracted = find_answer(completion)
    assert (extracted.text, extracted.source) == (answer, source)
    assert extract_answer(completion) == answer


def test_only_the_end_of_a_very_long_completion_is_read() -> None:
    assert extract_answer("<answer>1</answer>" + " " * MAX_CHARS + "2") == "2"


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("\\boxed{(7,6)}", "(7,6)"),
        ("<answer> 28.90 </answer>", "28.90"),
        (" two\nlines ", "two\nlines"),
        ("160", "160"),
    ],
)
def test_unwrap_solution(solution: str, gold: str) -> None:
    assert unwrap_solution(solution) == gold


def test_a_solution_is_never_read_as_a_phrase() -> None:
    assert unwrap_solution("the answer is blowing in the wind") == "the answer is blowing in the wind"


def test_last_boxed_without_a_box() -> None:
    assert last_boxed("no box {here}") is None


def test_first_sentence_keeps_decimals() -> None:
    assert first_sentence("It is 3.5. Or not.") == "It is 3.5"
    assert first_sentence(".") == "."


def test_marked_span() -> None:
    assert marked_span('The word is "GRAND".') == "GRAND"
    assert marked_span("It reads **Hotel**") == "Hotel"
    assert marked_span("`a` or `b`") is None


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  The  Dog. ", "the dog"),
        ("Ｇｒａｎｄ", "grand"),
        ("$\\text{Red}$", "red"),
        ("Straße", "strasse"),
        ("!!!", "!!!"),
        ('"A b"', "a b"),
    ],
)
def test_normalise(text: str, form: str) -> None:
    assert normalise(text) == form


@given(st.text(max_size=400))
def test_nfkc_is_nfkc(text: str) -> None:
    assert nfkc(text) == unicodedata.normalize("NFKC", text)
