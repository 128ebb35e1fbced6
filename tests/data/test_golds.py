"""Golds of every shape in records: their accepted answers, or why they are not answers."""

import pytest

from hardsample.data.formats import canonical
from hardsample.data.records.conversation import RecordError
from hardsample.data.records.golds import accepted_answers


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ("Paris", ["Paris"]),
        (["Paris"], ["Paris"]),
        (["Paris", "paris", "Paris"], ["Paris", "paris"]),
        (["", None, "Rome"], ["Rome"]),
        ("['stop', 'STOP sign']", ["stop", "STOP sign"]),
        ('["a b"]', ["a b"]),
        ([27], ["27"]),
        ("[27]", ["27"]),
        (["27", 28], ["27", "28"]),
        ([3, 1, 4], ["[3, 1, 4]"]),
        ("[3, 1, 4]", ["[3, 1, 4]"]),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], ["[[1, 2, 3, 4], [5, 6, 7, 8]]"]),
        ({"bbox_2d": [1, 2, 3, 4]}, ['{"bbox_2d": [1, 2, 3, 4]}']),
        ([{"bbox_2d": [1, 2, 3, 4], "label": "x"}], ['[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]']),
        ("(-\\infty, 3)", ["(-\\infty, 3)"]),
        ("[a", ["[a"]),
        ("[x, y]", ["[x, y]"]),
        ('{"total": "3"}', ['{"total": "3"}']),
        (False, ["false"]),
        (0, ["0"]),
        ({"role": "assistant", "content": "6"}, ["6"]),
        ({"from": "gpt", "value": 6.0}, ["6"]),
        ('{"role": "assistant", "content": "6"}', ["6"]),
        ([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "6 m"}], ["6 m"]),
        ([{"role": "assistant", "content": [{"type": "text", "text": "six"}]}], ["six"]),
        ([{"type": "text", "text": "six"}], ["six"]),
        ({"answer": "6", "type": "number"}, ["6"]),
        ({"target": 7}, ["7"]),
        ([{"answer": "net", "answer_confidence": "yes", "answer_id": 1}, {"answer": "a net"}], ["net", "a net"]),
    ],
)
def test_accepted_answers(value, answers):
    assert accepted_answers(value, "answer") == answers
    record = canonical({"problem": "Q", "answer": value}, 0)
    assert (record.solution, record.answers) == (answers[0], answers if len(answers) > 1 else None)


@pytest.mark.parametrize(
    "value", [{"style": "rule"}, {"bbox_2d": "left"}, [["a"], ["b"]], ["a", ["b"]], [{"x": 1}], [None], [" "]]
)
def test_values_that_are_not_answers(value):
    with pytest.raises(RecordError, match=r"column 'answer' holds .*(not an answer|no text)"):
        canonical({"problem": "Q", "answer": value}, 0)


@pytest.mark.parametrize(
    ("raw", "solution", "answers"),
    [
        ({"answers": ["b", "B c"]}, "b", ["b", "B c"]),
        ({"answer": "b", "answers": ["B c", "b"]}, "b", ["b", "B c"]),
        ({"answer": "d", "answers": ["b", "c"]}, "d", None),
        ({"answers": [{"answer": "yes"}, {"answer": "yes"}], "multiple_choice_answer": "yes"}, "yes", None),
    ],
)
def test_annotators_columns(raw, solution, answers):
    record = canonical({"question": "Q", "image": "a.png"} | raw, 0)
    assert (record.solution, record.answers) == (solution, answers)


def test_yes_and_no_are_two_options_in_every_format():
    for answer in ("Yes", "no", "\\boxed{No}", "<answer>yes</answer>"):
        record = canonical({"problem": "Is it?", "answer": answer}, 0)
        assert (record.options, record.grader, record.solution) == (["Yes", "No"], "choice", answer)
        assert record.prompt[0]["content"][0]["text"] == "Is it?"
    assert canonical({"problem": "Is it?", "answer": "yes indeed"}, 0).options is None
    assert canonical({"problem": "Q", "answer": "yes", "verifier": "exact_match"}, 0).grader == "text"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("The answer is 5.", "5"),
        ("So x = 5. The answer is 5", "5"),
        ("Answer: red", "red"),
        ("#### 72", "72"),
        ("3 + 4 = 7, times ten.\n#### 70", "70"),
        ("The final answer is: New York.", "New York"),
        ("red", "red"),
        ("It is red.", "It is red."),
    ],
)
def test_a_gold_that_says_what_the_answer_is_becomes_that_answer(gold, answer):
    assert accepted_answers(gold, "answer") == [answer]
