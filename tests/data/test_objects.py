"""ms-swift's marks: filled from `objects`, in order, in the prompt and in the gold."""

import json

import pytest

from hardsample.data.formats import canonical
from hardsample.data.loading import load
from hardsample.data.records.conversation import RecordError

OBJECTS = {"ref": ["sheep", "dog"], "bbox": [[2, 3, 20, 30], [5, 5, 9, 9]]}


def swift(question, gold, objects=OBJECTS, **columns):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": gold}]
    return canonical({"messages": messages, "objects": objects, **columns}, 0)


def question_of(record):
    return record.prompt[0]["content"][-1]["text"]


@pytest.mark.parametrize(
    ("question", "gold", "filled", "solution", "grader"),
    [
        ("Find the <ref-object>", "<bbox>", "Find the sheep", "[2, 3, 20, 30]", "grounding"),
        ("What is in <bbox>?", "<ref-object>", "What is in [2, 3, 20, 30]?", "sheep", "text"),
        ("Find all", "<bbox><bbox>", "Find all", "[[2, 3, 20, 30], [5, 5, 9, 9]]", "detection"),
        (
            "Find all",
            "<ref-object><bbox>, <ref-object><bbox>",
            "Find all",
            '[{"bbox_2d": [2, 3, 20, 30], "label": "sheep"}, {"bbox_2d": [5, 5, 9, 9], "label": "dog"}]',
            "detection",
        ),
        ("<ref-object> and <ref-object>: the second", "<answer><bbox></answer>", "sheep and dog: the second",
         "[2, 3, 20, 30]", "grounding"),
    ],
)  # fmt: skip
def test_marks_are_filled(question, gold, filled, solution, grader):
    record = swift(question, gold)
    assert (question_of(record), record.solution, record.grader) == (filled, solution, grader)
    blocks = swift([{"type": "text", "text": question}], gold)
    assert question_of(blocks) == filled


def test_the_gold_in_a_column_of_its_own_goes_on_where_the_prompt_ends():
    messages = [{"role": "user", "content": "Find the <ref-object>"}]
    record = canonical({"messages": messages, "solution": "<bbox>", "objects": OBJECTS}, 0)
    assert (question_of(record), record.solution) == ("Find the sheep", "[2, 3, 20, 30]")
    record = canonical({"query": "Find the <ref-object>", "response": "<bbox>", "objects": OBJECTS}, 0)
    assert (question_of(record), record.solution) == ("Find the sheep", "[2, 3, 20, 30]")


def test_the_space_of_the_boxes():
    norm = {"ref": ["x"], "bbox": [[0.1, 0.2, 0.5, 0.25]], "bbox_type": "norm1"}
    record = swift("Find <ref-object>", "<bbox>", norm)
    assert (json.loads(record.solution), record.box_format) == ([100, 200, 500, 250], "relative_1000")
    assert swift("Find", "<bbox>", OBJECTS | {"bbox_type": "norm1000"}).box_format == "relative_1000"
    assert swift("Find", "<bbox>", OBJECTS | {"bbox_type": "real"}).box_format == "pixels"


def test_version_2_writes_them_as_text():
    objects = json.dumps([{"caption": "sheep", "bbox": [2, 3, 20, 30], "bbox_type": "real", "image": 0}])
    record = swift("Find the <ref-object>", "<bbox>", objects)
    assert (question_of(record), record.solution, record.box_format) == ("Find the sheep", "[2, 3, 20, 30]", None)


@pytest.mark.parametrize(
    ("question", "gold", "objects", "reason"),
    [
        ("<ref-object> <ref-object> <ref-object>", "<bbox>", OBJECTS, "nothing fills the placeholder '<ref-object>'"),
        ("Find <bbox>", "x", {"ref": ["a"]}, "nothing fills the placeholder '<bbox>'"),
        ("Find <ref-object>", "<bbox>", "sheep", "column 'objects' must be"),
        ("Find <ref-object>", "5", None, "column 'objects' must be"),
    ],
)
def test_marks_that_nothing_fills(question, gold, objects, reason):
    with pytest.raises(RecordError, match=reason):
        swift(question, gold, objects)


def test_a_gold_that_is_a_mark_is_rejected(tmp_path):
    path = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": "Find it"}, {"role": "assistant", "content": "<bbox>"}]
    good = {"problem": "Q", "answer": "1"}
    path.write_text("\n".join(map(json.dumps, [{"messages": messages}, good])))
    (rejection,) = load(path).rejected
    assert "placeholder '<bbox>'" in rejection.reason
