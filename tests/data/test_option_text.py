"""Options: which of them a gold means, whether the question lists them, and how they are listed below it."""

import pytest

from hardsample.data.formats import canonical
from hardsample.data.records.conversation import RecordError
from hardsample.data.records.defaults import DEFAULT_TEMPLATE, check_template
from hardsample.data.records.option_text import lists_options
from hardsample.data.records.solutions import given_options

ANIMALS = ["cat", "dog", "bird", "fish"]
LISTED = "\nA. cat\nB. dog\nC. bird\nD. fish\nAnswer with the letter of the right option."


def question_of(record):
    return "".join(block["text"] or "<image>" for turn in record.prompt for block in turn["content"])


@pytest.mark.parametrize(
    ("answer", "solution"),
    [
        ("C", "C"),
        ("bird", "bird"),
        ("Bird ", "Bird "),
        ("C. bird", "C. bird"),
        ("\\boxed{c}", "\\boxed{c}"),
        (0, "A"),
        (3, "D"),
        ("2", "C"),
        (2.0, "C"),
        (["bird"], "bird"),
        (["C", "bird"], "C"),
        ("['dog']", "dog"),
        ("A,C", "A, C"),
        ("C A", "A, C"),
        ("CA", "A, C"),
        ("(A)(C)", "A, C"),
        ("a and c", "A, C"),
        ("A、C", "A, C"),
        ("[A, C]", "A, C"),
        (["C", "A"], "A, C"),
        (["cat", "bird"], "A, C"),
        ("['A', 'C']", "A, C"),
        ("ABCD", "A, B, C, D"),
        ([0, 2], "A, C"),
        ("[2]", "C"),
        ("The answer is C.", "C"),
        ("Birds fly, so the answer is: bird", "bird"),
    ],
)
def test_a_gold_among_options(answer, solution):
    record = canonical({"question": "Which?", "options": ANIMALS, "answer": answer}, 0)
    assert (record.solution, record.answers, record.options, record.grader) == (solution, None, ANIMALS, "choice")
    several = record.solution.count(",") and ", " in solution
    assert question_of(record) == "Which?" + (
        LISTED.replace("the letter of the right option", "the letters of all right options") if several else LISTED
    )


def test_an_options_own_text_wins_over_an_index_and_over_letters():
    numbers = ["3", "2", "1", "0"]
    for answer, solution in (("1", "1"), (0, "0"), ("4", "4")):
        assert canonical({"question": "How many?", "options": numbers, "answer": answer}, 0).solution == solution
    record = canonical({"question": "Which line?", "options": ["AB", "AC"], "answer": "AC"}, 0)
    assert (record.solution, record.grader) == ("AC", "choice")
    record = canonical({"question": "Which?", "options": ANIMALS, "answer": 7}, 0)
    assert (record.solution, record.gold_index) == ("7", (7, 4))  # the check of the gold rejects it


def test_options_that_are_letters_of_others_are_asked_without_letters():
    letters = ["D", "C", "B", "A"]
    record = canonical({"question": "Which letter marks the leaf?", "choices": letters, "answer": 1}, 0)
    assert record.solution == "C"  # the option's own text: a letter B would mean the third
    assert question_of(record).endswith("leaf?\n- D\n- C\n- B\n- A\nAnswer with the right option.")
    natural = canonical({"question": "Which?", "choices": ["A", "B"], "answer": 1}, 0)
    assert question_of(natural).endswith("A. A\nB. B\nAnswer with the letter of the right option.")


def test_a_number_is_no_index_of_options_written_in_the_question():
    record = canonical({"problem": "How many? (A) 2 (B) 3", "answer": "1"}, 0)
    assert (record.solution, record.options, record.grader) == ("1", None, "math")
    record = canonical({"problem": "Which two?\nA. x\nB. y\nC. z", "answer": "C,A"}, 0)
    assert (record.solution, record.options, record.grader) == ("A, C", ["x", "y", "z"], "choice")


def test_letters_of_a_list_whose_options_stand_elsewhere_belong_together():
    record = canonical({"problem": "Which are right?", "answer": ["C", "A"]}, 0)
    assert (record.solution, record.answers, record.options, record.grader) == ("A, C", None, None, "choice")


def test_the_column_that_names_an_option_is_the_gold():
    raw = {
        "image": "a.png",
        "question": "Which?",
        "choices": ANIMALS,
        "answer": 1,
        "solution": "A dog barks. So it is.",
    }
    assert canonical(raw, 0).solution == "B"
    swift = {"messages": [{"role": "user", "content": "Which?"}], "options": ANIMALS, "answer": 1}
    assert canonical(swift | {"solution": "Dogs bark."}, 0).solution == "B"
    assert canonical(swift | {"solution": "fish"}, 0).solution == "fish"
    okvqa = {"question": "Which?", "choices": ANIMALS, "correct_choice_idx": 0, "direct_answers": "['cat', 'kitten']"}
    record = canonical(okvqa, 0)
    assert (record.format, record.solution, record.extra) == (
        "a-okvqa", "A", {"direct_answers": "['cat', 'kitten']"}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ("['cat', 'dog']", ["cat", "dog"]),
        ("A. 120 cm²; B. 130 cm²; C. No correct answer", ["120 cm²", "130 cm²", "No correct answer"]),
        ("A: cat, B: dog", ["cat", "dog"]),
        ("(A) cat (B) dog", ["cat", "dog"]),
        (["A. cat", "B. dog"], ["cat", "dog"]),
        (["(A) cat", "(B) dog"], ["cat", "dog"]),
        (["A. cat", "dog"], ["A. cat", "dog"]),
        ([{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}], ["cat", "dog"]),
        ({"label": ["A", "B"], "text": ["cat", "dog"]}, ["cat", "dog"]),
        (["A", "B", "C"], ["A", "B", "C"]),
        (["A.M.", "B.C."], ["A.M.", "B.C."]),
    ],
)
def test_columns_of_options(value, options):
    assert given_options(value) == options
    for name in ("options", "choices", "option"):
        record = canonical({"question": "Which?", name: value, "answer": "A"}, 0)
        assert record.options == options
        assert name not in record.extra


def test_options_that_cannot_be_told():
    with pytest.raises(RecordError, match="column 'options' holds 'cat or dog', which is not a list of options"):
        canonical({"question": "Which?", "options": "cat or dog", "answer": "cat"}, 0)
    with pytest.raises(RecordError, match="27 options; there are only 26 letters"):
        canonical({"question": "Which?", "options": [str(i) for i in range(27)], "answer": "3"}, 0)
    record = canonical({"question": "Which?", "option": "cat", "answer": "cat"}, 0)
    assert (record.options, record.extra) == (None, {"option": "cat"})


@pytest.mark.parametrize(
    ("question", "options", "listed"),
    [
        ("Which?\n(A) cat\n(B) dog", ["cat", "dog"], True),
        ("Which? A) cat B) dog", ["cat", "dog"], True),
        ("Is it a cat, a dog?", ["cat", "dog"], False),
        ("Is it yellow, red or green?", ["yellow", "red", "green"], True),
        ("Choices: ['yellow', 'red']", ["yellow", "red"], True),
        ("0: yes, 1: no", ["yes", "no"], True),
        ("Are 2 and 5 primes?", ["2", "5"], False),
        ("Of 25 apples 2 are eaten. How many are left?", ["2", "5"], False),
        ("What does a cat eat? A dog is near.", ["cat", "dog"], False),
        ("<image> Which is it?", ["cat", "dog"], False),
        ("Answer yes or no.", ["Yes", "No"], True),
        ("Which?\n1. cat\n2. dog\n3. bird", ["cat", "dog", "bird"], True),
        ("Which?\nA. cat\nB. dogs", ["cat", "dog"], False),
    ],
)
def test_whether_a_question_lists_options(question, options, listed):
    assert lists_options(question, options) == listed
    record = canonical({"question": question, "options": options, "answer": options[0], "image": "a.png"}, 0)
    assert ("Answer with the letter" in question_of(record)) != listed


def test_the_template_is_the_users():
    raw = {"question": "Which?", "options": ["{letter}", "dog"], "answer": 1}
    assert (
        question_of(canonical(raw, 0, None, "Choices:\n({letter}) {option}"))
        == "Which?\nChoices:\n(A) {letter}\n(B) dog"
    )
    assert question_of(canonical(raw, 0, None, "none")) == "Which?"
    for template in (DEFAULT_TEMPLATE, "none", "{option}"):
        check_template(template)
    for template in ("", "{letter}", "{option}\n{option}"):
        with pytest.raises(ValueError, match=r"exactly one line must contain \{option\}"):
            check_template(template)


def test_options_go_below_the_last_users_turn_and_may_have_places():
    turns = [("user", "one"), ("assistant", "1"), ("user", [{"type": "text", "text": "Which?"}])]
    messages = [{"role": role, "content": content} for role, content in turns]
    record = canonical({"messages": messages, "options": ANIMALS, "solution": "B"}, 0)
    assert [block["text"] for block in record.prompt[2]["content"]] == ["Which?", LISTED]
    raw = {"question": "Which of them?", "options": "['<image 1>', '<image 2>']", "answer": "B", "image_1": "a.png"}
    record = canonical(raw | {"image_2": "b.png"}, 0)
    assert question_of(record).startswith("Which of them?\nA. <image>\nB. <image>\nAnswer")
    assert record.images == ["a.png", "b.png"]


@pytest.mark.parametrize("columns", [{"image": "i/1.png"}, {"image": "i/1.png", "decoded_image": {"bytes": b"x"}}])
def test_math_v_asks_its_options_and_mentions_parts_of_its_one_image(columns):
    question = "A piece <image1> is cut off a sheet.\n<image2>\nWhich piece <image1> is left?\n<image3>"
    raw = {"id": "34", "question": question, "options": list("ABCDE"), "answer": "E", "solution": None, "level": 1}
    record = canonical(raw | columns, 0)
    assert (record.format, len(record.images), record.solution, record.grader) == ("math-v", 1, "E", "choice")
    assert question_of(record) == (
        "<image>A piece (image 1) is cut off a sheet.\n(image 2)\nWhich piece (image 1) is left?\n(image 3)"
        "\nA. A\nB. B\nC. C\nD. D\nE. E\nAnswer with the letter of the right option."
    )


def test_the_hint_of_scienceqa_belongs_to_its_question_and_no_other_hint_does():
    raw = {"question": "Which?", "choices": ["cat", "dog"], "answer": 0, "hint": "It purrs.", "task": "closed choice"}
    assert question_of(canonical(raw, 0)).startswith("Hint: It purrs.\nWhich?\nA. cat")
    assert "purrs" not in question_of(canonical({"problem": "Which?", "answer": "cat", "hint": "It purrs."}, 0))


def test_turns_that_a_column_holds_as_json():
    turns = '[{"role": "system", "content": "S"}, {"role": "user", "content": "<image>Which?"}]'
    record = canonical({"conversations": turns, "answer": "B", "image_urls": ["a.png"], "options": ["x", "y"]}, 0)
    assert [turn["role"] for turn in record.prompt] == ["system", "user"]
    assert question_of(record).startswith("S<image>Which?\nA. x\nB. y")


def test_alpaca_puts_the_input_below_the_instruction():
    raw = {"instruction": "<image>What colour?", "input": "Of the car.", "output": "red", "images": ["a.png"]}
    record = canonical(raw | {"system": "S", "history": [["q", "a"]]}, 0)
    assert [block["text"] for turn in record.prompt for block in turn["content"]] == [
        "S", "q", "a", None, "What colour?\nOf the car."
    ]  # fmt: skip
    assert (record.solution, record.extra) == ("red", {})
