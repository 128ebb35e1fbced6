"""Golds that no answer can satisfy are rejected at load, with the reason; all others stay."""

import json

import pytest

from hardsample.data.gold_check import gold_problems
from hardsample.data.loading import DataError, NoRecordsError, load
from hardsample.grading import grader as grading
from hardsample.grading.grader import Grader


def row(solution, grader="text", options=None, answers=None, box_format=None):
    return {
        "solution": solution,
        "grader": grader,
        "options": options,
        "answers": answers,
        "box_format": box_format,
    }


@pytest.mark.parametrize(
    "record",
    [
        row("red"),
        row("\\boxed{12}", "math"),
        row("<answer> 3 </answer>", "math"),
        row("\\frac{1}{2}", "math"),
        row("B", "choice", ["cat", "dog"]),
        row("dog", "choice", ["cat", "dog"]),
        row("A", "choice", ["A", "B", "C"]),
        row("C", "choice", ["D", "C", "B", "A"]),
        row("Yes", "choice", ["Yes", "No"]),
        row("2", "choice", ["1", "2", "3"]),
        row("B", "choice", ["", "dog"]),
        row("NYC", answers=["NYC", "New York City"]),
        row("[2, 3, 20, 30]", "grounding"),
        row('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]', "detection", box_format="relative_1000"),
        row("3 1 4", "counting"),
        row("TOTAL 28.90", "ocr"),
    ],
    ids=lambda record: f"{record['grader']}-{record['solution']}",
)
def test_golds_that_can_be_met(record):
    with Grader() as grader:
        assert gold_problems([record], grader) == [None]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (row("E", "choice", ["cat", "dog"]), r"'E' is not one of the 2 options \(A. cat, B. dog\); give the letter"),
        (row("bird", "choice", ["cat", "dog"]), "'bird' is not one of the 2 options"),
        (row("7", "choice", ["cat", "dog"]), "'7' is not one of the 2 options .*index \\(from 0\\)"),
        (row("A", "choice", ["cat", "dog", "cat"]), "the wrong answer 'C. cat' is graded right .* make the options"),
        (row("two boxes", "grounding"), r"'two boxes' is graded wrong by its own grader \(grounding\)"),
        (row("<answer></answer>", "text"), "is graded wrong by its own grader"),
    ],
)
def test_golds_that_no_answer_can_meet(record, reason):
    with Grader() as grader:
        (problem,) = gold_problems([record], grader)
    import re

    assert problem is not None and re.search(reason, problem), problem


def test_no_worker_is_started_where_none_is_needed(monkeypatch):
    monkeypatch.setattr(grading.MathWorker, "ask", lambda *_: pytest.fail("the worker was asked"))
    with Grader() as grader:
        assert gold_problems([row("12", "math"), row("B", "choice", ["x", "y"]), row("word")], grader) == [None] * 3


def jsonl(folder, *records):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_loading_rejects_them_in_their_order(tmp_path):
    records = [
        {"id": "no", "question": "Which?", "options": ["cat", "dog"], "answer": "bird"},
        {"id": "yes", "question": "Which?", "options": ["cat", "dog"], "answer": "dog"},
        {"id": "none", "question": "", "answer": "1"},
        {"id": "far", "question": "Which?", "options": ["cat", "dog"], "answer": 2},
    ]
    loaded = load(jsonl(tmp_path, *records))
    assert loaded.dataset["id"] == ["yes"]
    assert [(rejection.number, rejection.id) for rejection in loaded.rejected] == [(0, "no"), (2, "none"), (3, "far")]
    assert "column 'solution': the solution 'bird' is not one of the 2 options" in loaded.rejected[0].reason
    with pytest.raises(DataError, match=r"record 0 \(id 'no'\): column 'solution'"):
        load(jsonl(tmp_path, *records), strict=True)
    with pytest.raises(NoRecordsError, match="is not one of the 2 options"):
        load(jsonl(tmp_path, records[0]))


def test_golds_are_checked_in_bounded_batches(tmp_path, monkeypatch):
    sizes = []
    check = gold_problems

    def counting(rows, grader):
        sizes.append(len(rows))
        return check(rows, grader)

    monkeypatch.setattr("hardsample.data.loading.gold_problems", counting)
    path = jsonl(tmp_path, *({"problem": "Q", "answer": str(n)} for n in range(600)))
    assert len(load(path).dataset) == 600
    assert sizes == [256, 256, 88]


def test_option_numbers_that_seem_to_count_from_one_are_a_warning(tmp_path):
    records = [{"question": "Which?", "options": ["a cat", "a dog", "a fish"], "answer": n} for n in (1, 2, 3)]
    loaded = load(jsonl(tmp_path, *records))
    assert loaded.dataset["solution"] == ["B", "C"]
    assert [rejection.number for rejection in loaded.rejected] == [2]
    assert "3 golds are option numbers; none is 0 and 1 equal the number of options" in loaded.warnings[0]
    records[0]["answer"] = 0
    assert load(jsonl(tmp_path, *records)).warnings == []


def test_a_loaded_dataset_loads_again_unchanged(tmp_path):
    records = [
        {"question": "Which?", "options": ["cat", "dog"], "answer": 1},
        {"question": "Which?", "options": ["cat", "dog", "fish"], "answer": "CA"},
        {"question": "Where?", "answers": ["NYC", "New York"]},
        {"question": "Is it?", "answer": "yes"},
        {"question": "How many?", "answer": [4]},
    ]
    first = load(jsonl(tmp_path, *records), options_template="{option} = {letter}")
    again = load(first.dataset)
    assert (again.rejected, len(again.dataset)) == ([], 5)
    for name in ("prompt", "solution", "answers", "grader", "options"):
        assert again.dataset[name] == first.dataset[name]
    assert first.dataset[0]["prompt"][0]["content"][0]["text"] == "Which?\ncat = A\ndog = B"
