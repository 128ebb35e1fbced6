"""Every known format and every odd detail of one, from raw record to canonical record, without files."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hardsample.data.formats import CANONICAL_COLUMNS, FORMATS, canonical, known_formats
from hardsample.data.records.conversation import RecordError
from hardsample.data.records.solutions import (
    GRADERS,
    is_among,
    solution_text,
)

IMAGE = {"type": "image", "text": None}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks: dict) -> dict:
    return {"role": "user", "content": list(blocks)}


def detection(normalized: bool | None) -> dict:
    return {"ground_truth": "x", "verifier": "detection", "verifier_parm": {"det_verifier_normalized": normalized}}


ASKED = [{"role": "user", "content": "<image>Q"}]
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "5"}]
SHARED_TALK = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": 5.0}]
ORSTA = {"answer": "9", "ground_truth": "5", "verifier": "mathverify"}
FOUR_OR_FIVE = "A. 4\nB. 5\nAnswer with the letter of the right option."
KNOWN = [
    ("vlmevalkit", {"index": "1", "question": "Q", "image": ["a"], "answer": "5"}),
    ("ms-swift", {"messages": ASKED, "images": ["a"], "solution": "5"}),
    ("ms-swift", {"query": "<image>Q", "response": "5", "image": "a"}),
    ("ms-swift", {"query": "<img>a</img>Q", "response": "no", "solution": "5"}),
    ("ms-swift", {"problem": "Q", "image": "a", "solution": "5"}),
    ("paper-scoring", {"prompt": "<image>Q", "image_paths": ["a"], "ground_truth": "5"}),
    ("easyr1", {"problem": "Q", "answer": "5", "images": ["a"]}),
    ("trl-vlm", {"prompt": [{"role": "user", "content": "Q"}], "image": "a", "solution": "5"}),
    ("llama-factory", {"messages": TALK, "images": ["a"]}),
    ("llama-factory-sharegpt", {"conversations": SHARED_TALK, "images": ["a"]}),
    ("vlm-r1", {"id": 1, "image": "a", "conversations": SHARED_TALK}),
    ("vlm-r1", {"image": ["a"], "conversations": SHARED_TALK}),
    ("verl", {"prompt": ASKED, "images": ["a"], "reward_model": {"style": "rule", "ground_truth": "5"}}),
    ("orsta", {"prompt": ASKED, "images": ["a"], "reward_model": ORSTA}),
    ("r1v-eval", {"image_path": "a", "question": "Q", "ground_truth": "5"}),
    ("math-v", {"question": "<image1>Q", "image": "a", "options": [], "answer": "5", "solution": None}),
    ("dynamath", {"question": "Q", "answer": "5", "image": "a", "answer_type": "float"}),
    ("mm-eureka", {"conversations": [{"role": "user", "content": "<image>Q"}], "image_urls": ["a"], "answer": "5"}),
    ("chartqa", {"image": "a", "query": "Q", "label": ["5"], "human_or_machine": 0}),
    ("mmmu", {"question": "<image 1>Q", "options": "[]", "image_1": "a", "image_2": None, "answer": "5"}),
    ("a-okvqa", {"image": "a", "question": "Q", "choices": ["4", "5"], "correct_choice_idx": 1}),
    ("mathvista", {"pid": "1", "question": "Q", "query": "Hint: Q", "decoded_image": "a", "answer": "5"}),
    ("ocrbench", {"image": "a", "question": "Q", "question_type": "Digits", "answer": ["5"]}),
    ("vqa", {"image": "a", "question": "Q", "answers": ["5", "5"]}),
    ("alpaca", {"instruction": "<image>Q", "input": "", "output": "5", "images": ["a"]}),
    ("hardsample", {"prompt": [user(IMAGE, text("Q"))], "images": ["a"], "solution": "5", "grader": "math"}),
]


@pytest.mark.parametrize(("name", "raw"), KNOWN)
def test_each_format(name, raw):
    record = canonical(raw, 7)
    gold = ("B", "choice") if name == "a-okvqa" else ("5", "math")
    assert (record.format, record.images, record.solution, record.grader) == (name, ["a"], *gold)
    assert record.prompt[0]["content"][:2] == [IMAGE, text("Q" if name != "a-okvqa" else f"Q\n{FOUR_OR_FIVE}")]
    assert record.id == str(raw.get("id", 7))
    assert record.extra.get("response") == (raw.get("response") if raw.get("solution") == "5" else None)
    spare = set() if name == "mathvista" else {"query"}
    assert not {"image", "images", "messages", "conversations", "problem", *spare} & set(record.extra)


def test_every_format_is_met_above():
    assert {name for name, _ in KNOWN} == {known.name for known in FORMATS}
    assert "math-v: question" in known_formats()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"a": 1, "b": 2}, "no known format has these columns \\('a', 'b'\\)"),
        ({}, "no known format has these columns \\(none\\)"),
        ({"problem": "", "answer": "5"}, "column 'problem' is empty \\(''\\); give it a question"),
        ({"messages": [], "solution": "5"}, "column 'messages' is empty"),
        (
            {"problem": "Q", "solution": ""},
            "no solution in 'solution' or 'response' or 'ground_truth' or 'answers'; give",
        ),
        ({"problem": "Q", "answer": None}, "no solution"),
        ({"problem": "Q", "answer": []}, "no solution"),
        ({"question": "Q", "answer": float("nan")}, "no solution"),
        (
            {"messages": [{"role": "user", "content": "Q"}]},
            "no solution in 'answer' or .* or 'the last assistant turn'",
        ),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " "}]}, "no solution"),
        ({"problem": "Q", "solution": "5", "id": ["x"]}, r"column 'id' holds \['x'\]; give a string or a number"),
    ],
)
def test_records_that_do_not_fit(raw, message):
    with pytest.raises(RecordError, match=message):
        canonical(raw, 0)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("\\boxed{160}", "\\boxed{160}"),
        (160, "160"),
        (160.0, "160"),
        (28.9, "28.9"),
        (True, "true"),
        (0, "0"),
        ([1, 2, 3, 4], "[1, 2, 3, 4]"),
        ({"bbox_2d": [1, 2, 3, 4], "label": "Käfer"}, '{"bbox_2d": [1, 2, 3, 4], "label": "Käfer"}'),
    ],
)
def test_solutions_as_text(value, shown):
    assert solution_text(value) == shown
    assert canonical({"problem": "Q", "solution": value}, 0).solution == shown


def test_ids():
    assert canonical({"problem": "Q", "solution": "1"}, 3).id == "3"
    assert canonical({"problem": "Q", "solution": "1", "id": 0}, 3).id == "0"
    assert canonical({"problem": "Q", "solution": "1", "id": ""}, 3).id == "3"
    assert canonical({"problem": "Q", "solution": "1", "id": 4.0}, 3).id == "4"


def test_system_and_history_columns_come_first():
    raw = {"query": "Q", "response": "5", "system": "S", "history": [["q", "a"]], "images": ["x"]}
    assert canonical(raw, 0).prompt == [
        {"role": "system", "content": [text("S")]},
        user(IMAGE, text("q")),
        {"role": "assistant", "content": [text("a")]},
        user(text("Q")),
    ]
    assert canonical(raw, 0).extra == {}


def test_unknown_columns_travel_untouched():
    raw = {"problem": "Q", "answer": "5", "ground_truth": "five", "level": 3, "tags": [1, "x"], "none": None}
    assert canonical(raw, 0).extra == {"ground_truth": "five", "level": 3, "tags": [1, "x"], "none": None}
    verl = {"prompt": [{"role": "user", "content": "Q"}], "reward_model": {"ground_truth": "5"}, "data_source": "d"}
    assert canonical(verl, 0).extra == {"reward_model": {"ground_truth": "5"}, "data_source": "d"}


def test_columns_named_like_ours_travel_as_original():
    raw = {"problem": "Q", "answer": "5", "prompt": "", "grader": "my_reward", "solution": "because …", "images": []}
    record = canonical(raw, 0)
    assert record.format == "easyr1"
    assert record.grader == "math"
    assert record.extra == {"original_grader": "my_reward", "original_solution": "because …"}
    assert canonical(raw | {"original_grader": 1}, 0).extra["original_original_grader"] == "my_reward"


def test_decoded_image_wins_over_the_path_beside_it():
    raw = {"question": "Q", "answer": "5", "image": "images/1.jpg", "decoded_image": {"bytes": b"x", "path": None}}
    record = canonical(raw, 0)
    assert record.images == [{"bytes": b"x", "path": None}]
    assert record.extra == {"image": "images/1.jpg"}


def test_ability_is_free_text_and_decides_nothing():
    record = canonical({"problem": "Q", "solution": "word", "ability": "math"}, 0)
    assert (record.ability, record.grader) == ("math", "text")
    assert canonical({"problem": "Q", "solution": "1", "ability": ""}, 0).ability is None


@pytest.mark.parametrize(
    ("raw", "grader", "box_format"),
    [
        ({"reward_model": detection(True)}, "detection", "relative_1000"),
        ({"reward_model": detection(False)}, "detection", "pixels"),
        ({"reward_model": detection(None)}, "detection", None),
        ({"solution": [1, 2, 3, 4], "box_format": "pixels"}, "grounding", "pixels"),
        ({"solution": [1, 2, 3, 4], "objects": {"bbox_type": "norm1000"}}, "grounding", "relative_1000"),
        ({"solution": "5", "verifier": "counting"}, "counting", None),
        ({"solution": "5", "grader": "ocr"}, "ocr", None),
    ],
)  # fmt: skip
def test_verifier_and_box_format_of_the_record(raw, grader, box_format):
    record = canonical({"prompt": "Q", **raw}, 0)
    assert (record.grader, record.box_format) == (grader, box_format)


def test_written_options_count_only_if_the_solution_is_among_them():
    question = "Q\n(A) yellow\n(B) red"
    for solution in ("B", "red", "\\boxed{Red}", "(B)", "B. red", "<answer>yellow</answer>"):
        record = canonical({"problem": question, "solution": solution}, 0)
        assert (record.grader, record.options) == ("choice", ["yellow", "red"])
    for solution, grader in (("42", "math"), ("blue", "text"), ("B. blue", "text")):
        record = canonical({"problem": question, "solution": solution}, 0)
        assert (record.grader, record.options) == (grader, None)
    assert not is_among("C", ["yellow", "red"])


def test_options_leave_verls_instruction_out():
    raw = {
        "prompt": [{"role": "user", "content": "Q\n(A) yellow\n(B) red You FIRST think."}],
        "reward_model": {"ground_truth": "red"},
        "extra_info": {"question": "Q\n(A) yellow\n(B) red"},
    }
    record = canonical(raw, 0)
    assert (record.grader, record.options) == ("choice", ["yellow", "red"])
    assert record.prompt == [user(text("Q\n(A) yellow\n(B) red You FIRST think."))]


KEYS = "role from content value type text image_url bbox ref answer path"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
    | st.sampled_from(["<image>", "<image1>Q", "<img>a</img>", "\\boxed{B}", "(A) x (B) y", "user", "assistant"])
    | st.sampled_from(["['a', 'b']", "A, C", "A. x; B. y", "<bbox>", "<video>", '[{"role": "user", "content": "Q"}]']),
    lambda inside: st.lists(inside, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS.split()), inside, max_size=4),
    max_leaves=8,
)  # fmt: skip
COLUMNS = ["prompt", "messages", "conversations", "query", "question", "problem", "solution", "answer", "ground_truth"]
COLUMNS += ["instruction", "output", "label", "answers", "objects", "image_1", "img", "correct_choice_idx", "hint"]
COLUMNS += ["response", "images", "image", "options", "choices", "reward_model", "id", "ability", "grader", "system"]


@example({"prompt": [{"role": None, "from": []}]})
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*COLUMNS, "history", "extra_info", "level"]), JSON, max_size=7))
def test_any_record_is_canonical_or_rejected(raw):
    """Whatever JSON a record holds, it is rejected with a reason, or its images and placeholders match."""
    try:
        record = canonical(raw, 0)
    except RecordError:
        return
    blocks = [block for turn in record.prompt for block in turn["content"]]
    assert sum(block["type"] == "image" for block in blocks) == len(record.images)
    assert all(block["text"] for block in blocks if block["type"] == "text")
    assert record.solution.strip()
    assert record.grader in GRADERS
    assert not set(record.extra) & set(CANONICAL_COLUMNS)
