"""Every known format and every odd detail of one, from raw record to canonical record, without files."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardsample.conversation import RecordError, read_conversation
from hardsample.formats import CANONICAL_COLUMNS, FORMATS, canonical, known_formats
from hardsample.solutions import (
    GRADERS,
    choose_grader,
    given_options,
    is_among,
    solution_form,
    solution_text,
    unwrap,
    written_options,
)

IMAGE = {"type": "image", "text": None}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks: dict) -> dict:
    return {"role": "user", "content": list(blocks)}


@pytest.mark.parametrize(
    ("name", "raw", "images", "solution"),
    [
        ("ms-swift", {"messages": [{"role": "user", "content": "<image>Q"}], "images": ["a"], "solution": "5"}, ["a"], "5"),
        ("ms-swift", {"query": "<image>Q", "response": "5", "image": "a"}, ["a"], "5"),
        ("ms-swift", {"query": "<img>a</img>Q", "response": "no", "solution": "5"}, ["a"], "5"),
        ("ms-swift", {"problem": "Q", "image": "a", "solution": "5"}, ["a"], "5"),
        ("paper-scoring", {"prompt": "<image>Q", "image_paths": ["a"], "ground_truth": "5"}, ["a"], "5"),
        ("easyr1", {"problem": "Q", "answer": "5", "images": [{"bytes": b"x"}]}, [{"bytes": b"x"}], "5"),
        ("trl-vlm", {"prompt": [{"role": "user", "content": "Q"}], "image": "a", "solution": "5"}, ["a"], "5"),
        ("llama-factory", {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "5"}], "images": ["a"]}, ["a"], "5"),
        ("llama-factory-sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "5"}], "images": ["a"]}, ["a"], "5"),
        ("vlm-r1", {"id": 1, "image": "a", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": 5.0}]}, ["a"], "5"),
        ("verl", {"prompt": [{"role": "user", "content": "<image>Q"}], "images": ["a"], "reward_model": {"style": "rule", "ground_truth": "5"}}, ["a"], "5"),
        ("orsta", {"prompt": [{"role": "user", "content": "<image>Q"}], "images": ["a"], "reward_model": {"answer": "9", "ground_truth": "5", "verifier": "mathverify"}}, ["a"], "5"),
        ("r1v-eval", {"image_path": "a", "question": "Q", "ground_truth": "5"}, ["a"], "5"),
        ("math-v", {"question": "<image1>Q", "image": "a", "options": [], "answer": "5", "solution": None}, ["a"], "5"),
        ("dynamath", {"question": "Q", "answer": "5", "image": "a", "answer_type": "float"}, ["a"], "5"),
        ("hardsample", {"prompt": [user(IMAGE, text("Q"))], "images": ["a"], "solution": "5", "grader": "math"}, ["a"], "5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_format(name, raw, images, solution):
    record = canonical(raw, 7)
    assert (record.format, record.images, record.solution) == (name, images, solution)
    assert record.prompt == [user(IMAGE, text("Q"))]
    assert record.id == str(raw.get("id", 7)) and record.grader == "math"
    assert not {"response", "image", "images", "messages", "conversations", "problem", "query"} & set(record.extra)


def test_every_format_is_met_above():
    names = {mark.args[1][i][0] for mark in test_each_format.pytestmark for i in range(len(mark.args[1]))}
    assert names == {known.name for known in FORMATS}
    assert "math-v: question" in known_formats()


def test_the_gold_turn_goes_and_earlier_turns_stay():
    turns = [("system", "S"), ("user", "<image>one"), ("assistant", "1"), ("user", "two<image>"), ("assistant", "2")]
    talk = read_conversation([{"role": role, "content": words} for role, words in turns], ["a", "b"], "messages")
    assert talk.gold == "2" and talk.images == ["a", "b"]
    assert talk.prompt == [
        {"role": "system", "content": [text("S")]},
        user(IMAGE, text("one")),
        {"role": "assistant", "content": [text("1")]},
        user(text("two"), IMAGE),
    ]


@pytest.mark.parametrize(
    ("content", "images", "blocks", "order"),
    [
        ("Q", ["a", "b"], [IMAGE, IMAGE, text("Q")], ["a", "b"]),
        ("<image>\nQ", ["a"], [IMAGE, text("\nQ")], ["a"]),
        ("x<image>y<image>z", ["a", "b"], [text("x"), IMAGE, text("y"), IMAGE, text("z")], ["a", "b"]),
        ("<image2> and <image1>", ["a", "b"], [IMAGE, text(" and "), IMAGE], ["b", "a"]),
        ("<image 1> Q: see <image 1>", ["a"], [IMAGE, text(" Q: see <image 1>")], ["a"]),
        ("<image1><image>Q", ["a", "b"], [IMAGE, IMAGE, text("Q")], ["a", "b"]),
        ("<img> a b.png </img>Q", [], [IMAGE, text("Q")], ["a b.png"]),
        ("<img>a</img>Q<image>", ["b"], [IMAGE, text("Q"), IMAGE], ["a", "b"]),
        ([{"type": "image"}, {"type": "text", "text": "Q"}], ["a"], [IMAGE, text("Q")], ["a"]),
        ([{"type": "text", "text": "Q", "image_url": None}, {"type": "image_url", "image_url": {"url": "u"}}], [],
         [text("Q"), IMAGE], [{"url": "u"}]),
        ([{"type": "image_url", "image_url": "u"}, "Q"], [], [IMAGE, text("Q")], ["u"]),
        ([{"type": "image", "image": "u"}, {"text": "Q"}], [], [IMAGE, text("Q")], ["u"]),
        ([{"type": "text", "text": "Q"}], ["a"], [IMAGE, text("Q")], ["a"]),
        (160, [], [text("160")], []),
    ],
)  # fmt: skip
def test_places_of_pictures(content, images, blocks, order):
    talk = read_conversation([{"role": "user", "content": content}], images, "messages")
    assert talk.prompt == [user(*blocks)] and talk.images == order


def test_pictures_without_a_place_go_before_the_first_user_turn_not_the_system_turn():
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert read_conversation(turns, ["a"], "prompt").prompt[1] == user(IMAGE, text("Q"))


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ("<image><image>Q", ["a"], r"2 placeholders \(<image>, <image>\) for 1 images; write one placeholder for each"),
        ("<image>Q", ["a", "b"], "1 placeholders .* for 2 images"),
        ("<image>Q", [], "1 placeholders .* for 0 images"),
        ("<image3>Q", ["a"], r"\(<image3>\) for 1 images"),
        ("<image0>Q", ["a"], "placeholders"),
        ("<image>", ["a"], "column 'messages': no user turn holds text; give it a question"),
        ("  ", [], "no user turn holds text"),
        ([{"role": "system", "content": "S"}], [], "no user turn holds text"),
        ([{"role": "assistant", "content": "S"}], [], "no user turn holds text"),
        ([{"role": "wizard", "content": "Q"}], [], "role 'wizard' is unknown; use one of system, user"),
        (["Q"], [], "role None is unknown"),
        ([{"role": "user", "content": [{"type": "video", "video": "v"}]}], [], "block type 'video' is not supported"),
    ],
)
def test_conversations_that_do_not_fit(turns, images, message):
    with pytest.raises(RecordError, match=message):
        read_conversation(turns, images, "messages")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"a": 1, "b": 2}, "no known format has its columns \\('a', 'b'\\)"),
        ({}, "no known format has its columns \\(none\\)"),
        ({"problem": "", "answer": "5"}, "column 'problem' is empty \\(''\\); give it a question"),
        ({"messages": [], "solution": "5"}, "column 'messages' is empty"),
        ({"problem": "Q", "solution": ""}, "no solution: 'solution' and 'response' and 'ground_truth' hold nothing; give"),
        ({"problem": "Q", "answer": None}, "no solution"),
        ({"problem": "Q", "answer": []}, "no solution"),
        ({"messages": [{"role": "user", "content": "Q"}]}, "no solution: 'the last assistant turn'"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " "}]}, "no solution"),
        ({"problem": "Q", "solution": "5", "id": ["x"]}, r"column 'id' holds \['x'\]; give a text or a number"),
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
    assert record.format == "easyr1" and record.grader == "math"
    assert record.extra == {"original_grader": "my_reward", "original_solution": "because …"}
    assert canonical(raw | {"original_grader": 1}, 0).extra["original_original_grader"] == "my_reward"


def test_decoded_image_wins_over_the_path_beside_it():
    raw = {"question": "Q", "answer": "5", "image": "images/1.jpg", "decoded_image": {"bytes": b"x", "path": None}}
    record = canonical(raw, 0)
    assert record.images == [{"bytes": b"x", "path": None}] and record.extra == {"image": "images/1.jpg"}


def test_ability_is_free_text_and_decides_nothing():
    record = canonical({"problem": "Q", "solution": "word", "ability": "math"}, 0)
    assert (record.ability, record.grader) == ("math", "text")
    assert canonical({"problem": "Q", "solution": "1", "ability": ""}, 0).ability is None


@pytest.mark.parametrize(
    ("solution", "form"),
    [
        ("B", "letter"), ("\\boxed{C}", "letter"), ("(D)", "letter"), ("<answer> A. </answer>", "letter"), ("K", "words"),
        ("160", "number"), ("-1,234.5", "number"), ("$6.90", "number"), ("28.90", "number"), ("12%", "number"),
        ("<answer> 28.90 </answer>", "number"), ("3/4", "number"), ("½", "number"), ("5 cm", "number"), ("1e-5", "number"),
        ("2√3", "number"), ("\\boxed{(7,6)}", "number"), ("(2, 4)", "number"), ("25π", "number"), ("90°", "number"),
        ("\\boxed{\\frac{1}{2}}", "latex"), ("$x^2$", "latex"), ("\\sqrt{2}", "latex"), ("x^2+1", "latex"),
        ("\\boxed{\\text{purple}}", "words"), ("purple", "words"), ("14/04/2018", "words"), ("06-05-2018", "words"),
        ("4:45", "words"), ("69, 51, 59", "words"), ("Q1", "words"), ("32 PUB & BISTRO", "words"), ("false false", "words"),
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
    ("raw", "grader", "box_format"),
    [
        ({"reward_model": {"ground_truth": "[]x", "verifier": "detection", "verifier_parm": {"det_verifier_normalized": True}}},
         "detection", "relative_1000"),
        ({"reward_model": {"ground_truth": "x", "verifier": "detection", "verifier_parm": {"det_verifier_normalized": False}}},
         "detection", "pixels"),
        ({"solution": [1, 2, 3, 4], "box_format": "pixels"}, "grounding", "pixels"),
        ({"solution": [1, 2, 3, 4], "objects": {"bbox_type": "norm1000"}}, "grounding", "relative_1000"),
        ({"solution": "5", "verifier": "counting"}, "counting", None),
        ({"solution": "5", "grader": "ocr"}, "ocr", None),
    ],
)  # fmt: skip
def test_verifier_and_box_format_of_the_record(raw, grader, box_format):
    record = canonical({"prompt": "Q", **raw}, 0)
    assert (record.grader, record.box_format) == (grader, box_format)


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
    assert record.options == options and "options" not in record.extra
    assert record.grader == ("choice" if options else "text")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
    | st.sampled_from(["<image>", "<image1>Q", "<img>a</img>", "\\boxed{B}", "(A) x (B) y", "user", "assistant"]),
    lambda inside: st.lists(inside, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "type", "text", "image_url"]), inside, max_size=4),
    max_leaves=8,
)  # fmt: skip
COLUMNS = ["prompt", "messages", "conversations", "query", "question", "problem", "solution", "answer", "ground_truth"]
COLUMNS += ["response", "images", "image", "options", "choices", "reward_model", "id", "ability", "grader", "system"]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*COLUMNS, "history", "extra_info", "level"]), JSON, max_size=7))
def test_any_record_is_canonical_or_refused(raw):
    """Whatever JSON a record holds, it is refused with a reason, or its pictures and places match."""
    try:
        record = canonical(raw, 0)
    except RecordError as error:
        assert str(error)
        return
    blocks = [block for turn in record.prompt for block in turn["content"]]
    assert sum(block["type"] == "image" for block in blocks) == len(record.images)
    assert all(block["text"] for block in blocks if block["type"] == "text")
    assert record.solution.strip() and record.grader in GRADERS
    assert not set(record.extra) & set(CANONICAL_COLUMNS)
