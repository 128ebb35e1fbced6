"""All graders through Grader and the reward functions: on adversarial text, from threads, on real records."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardsample.grading import grader as grading
from hardsample.grading.grader import GRADERS, Grader, completion_text, reward_function
from hardsample.grading.parsing.answers import unwrap_solution

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real records are not here: {SHARED}")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def test_seven_graders() -> None:
    assert set(GRADERS) == {"math", "ocr", "counting", "grounding", "detection", "choice", "text"}
    assert all(function.__doc__ and "Accept" in function.__doc__ for function in GRADERS.values())


def test_importing_needs_no_torch() -> None:
    code = "import sys, hardsample.grading.grader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60).returncode == 0


@pytest.mark.parametrize("name", GRADERS)
@pytest.mark.parametrize("solution", ["", " ", "[]", "0", "\\boxed{}", "<answer></answer>", "A", "[0,0,1,1]"])
@pytest.mark.parametrize("completion", ["", " \n", "<answer></answer>", "\\boxed{}", "<think>x</think>"])
def test_an_empty_completion_is_wrong(grader: Grader, name: str, solution: str, completion: str) -> None:
    assert grader.grade(completion, {"grader": name, "solution": solution, "options": ["", "a"]}) is False


def test_a_mixed_batch_keeps_its_order(grader: Grader) -> None:
    half = {"grader": "math", "solution": "\\frac{1}{2}"}
    pairs = [
        ("0.5", half),
        ("B", {"grader": "choice", "solution": "red", "options": ["blue", "red"], "id": "travels along"}),
        ("0.6", half),
        ("[0,0,10,10]", {"grader": "grounding", "solution": "[0,0,10,10]", "box_format": None, "image_size": None}),
        ("\\sqrt{1/4}", half),
        ("160", {"grader": "math", "solution": 160.0}),
        ("3 1", {"grader": "counting", "solution": "3 1 4"}),
    ]
    assert grader.grade_many(pairs) == [True, True, False, True, True, True, False]
    assert grader.grade_many([]) == []


def test_unknown_grader(grader: Grader) -> None:
    with pytest.raises(ValueError, match="no grader 'maths'; use one of math, ocr"):
        grader.grade("1", {"grader": "maths", "solution": "1"})


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_time_out_is_checked(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="above 0 seconds"):
        Grader(timeout_s=timeout_s)


def test_closing_ends_the_worker_and_grading_starts_a_new_one() -> None:
    grader = Grader()
    for _ in range(2):
        assert grader.grade("x/2", {"grader": "math", "solution": "0.5x"})
        process = grader._worker._process
        assert process is not None
        grader.close()
        assert process.poll() is not None
    grader.close()


def test_runaways_from_a_thread() -> None:
    """The alarms of math-verify work only in the main thread; even so nothing hangs, and other items are graded."""
    results: list[bool] = []
    tower = {"grader": "math", "solution": "9^(9^(9^9))"}
    five = {"grader": "math", "solution": "5"}
    with Grader(timeout_s=3.0) as grader:
        pairs = [("1/2", five), ("9^(9^(9^9))", five), ("5.0 + 0", five), ("9^(9^(9^9)) + 1", tower), ("10/2", five)]
        thread = threading.Thread(target=lambda: results.extend(grader.grade_many(pairs)))
        thread.start()
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert results[0] is False
    assert results[1:3] == [False, True]
    assert results[4] is True


def test_several_threads_share_one_grader(grader: Grader) -> None:
    wrong: list[int] = []

    def work(n: int) -> None:
        for m in range(15):
            pairs = [(f"\\frac{{{n}}}{{7}}", {"grader": "math", "solution": f"{n + d}/7"}) for d in (0, m % 2)]
            if grader.grade_many(pairs) != [True, m % 2 == 0]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


NASTY = [
    "\\boxed{" * 100_000,
    "(" * 1_000_000,
    "answer " * 140_000,
    "9" * 1_000_000,
    "\u0301\u0323" * 500_000,
    '"label": ' * 100_000,
    "one " * 250_000,
    "[1,2,3,4]," * 100_000,
    "\\text{" * 150_000,
    "a:" * 500_000,
    "\ud800\x00<answer>\udfff",
]


@pytest.mark.parametrize("name", GRADERS)
def test_a_megabyte_of_garbage_ends_and_raises_nothing(
    grader: Grader, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # That it ends is the test: with a quadratic search in it, this takes hours.
    for text in NASTY:
        for solution in ("4", "[1,2,3,4]", "some words", text):
            grader.grade(text, {"grader": name, "solution": solution, "options": ["red", "blue"]})
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


PIECES = st.sampled_from(
    "<answer> </answer> <think> </think> \\boxed{ } { \\frac{1}{2} 42 -1,234.5 ½ 12% ² [1,2,3,4] (1,2),(3,4) B (C) one "
    'hundred and $ \\( \\text{ , . ** ``` {"bbox_2d": NaN \n the answer is = ^ 9^9^9 x ° ５ \ud800 \0'.split(" ")
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join), st.lists(PIECES, max_size=12).map(" ".join))


@pytest.fixture(scope="module")
def hasty_grader() -> Iterator[Grader]:
    with Grader(timeout_s=1.0) as grader:
        yield grader


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(completion=TEXTS, solution=TEXTS, options=st.none() | st.lists(TEXTS, max_size=3))
def test_no_text_raises(
    hasty_grader: Grader, caplog: pytest.LogCaptureFixture, completion: str, solution: str, options: list[str] | None
) -> None:
    records = [{"grader": name, "solution": solution, "options": options} for name in GRADERS]
    assert all(
        isinstance(right, bool) for right in hasty_grader.grade_many([(completion, record) for record in records])
    )
    # The broad catch in Grader is there for what nobody thought of: it must not be what makes this test pass.
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_broad_catch_says_so(grader: Grader, caplog: pytest.LogCaptureFixture) -> None:
    record = {"grader": "grounding", "solution": "[1,2,3,4]", "answer_format": "relative_1000"}
    assert grader.grade("[1,2,3,4]", record) is False
    assert "image_size is needed" in caplog.text


def real_records() -> list[tuple[str, dict[str, Any]]]:
    """Return (solution, the rest of the record) for every JSON line of the real files."""
    pairs: list[tuple[str, dict[str, Any]]] = []
    for path in [SHARED / "dev" / "dev.jsonl", *sorted((SHARED / "formats").glob("*.jsonl"))]:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            turns = record.get("messages") or record.get("conversations") or [{}]
            solution = (
                record.get("solution")
                or record.get("answer")
                or record.get("ground_truth")
                or record.get("response")
                or (record.get("reward_model") or {}).get("ground_truth")
                or turns[-1].get("value")
                or turns[-1].get("content")
            )
            pairs.append((str(solution), record))
    return pairs


def fitting_graders(solution: str, record: dict[str, Any]) -> list[str]:
    gold = unwrap_solution(solution)
    names = ["math", "text", "ocr"] + ["choice"] * bool(record.get("options") or gold in "ABCDE")
    return names + ["counting"] * ("counting" in str(record.get("ability")) and not record.get("options"))


@needs_shared
def test_real_golds_are_right_and_others_wrong(grader: Grader) -> None:
    cases: dict[tuple[str, ...], tuple[dict[str, Any], bool]] = {}  # many records share a solution: grade it once
    for solution, record in real_records():
        gold = unwrap_solution(solution)
        others = ["\\boxed{77.25}", "<answer>zebra crossing</answer>", "The answer is 7/2."]
        rights = [solution, gold, f"<think>not 3</think>\n<answer> {gold} </answer>", f"It is so. \\boxed{{{gold}}}"]
        for name in fitting_graders(solution, record):
            options = record.get("options") if name == "choice" else None
            for text in rights + others:
                cases[text, name, solution, *(options or [])] = (
                    {"grader": name, "solution": solution, "options": options},
                    text in rights,
                )
    assert len(cases) > 2000
    verdicts = grader.grade_many([(case[0], record) for case, (record, _) in cases.items()])
    wanted = [right for _, right in cases.values()]
    assert [case for case, verdict, right in zip(cases, verdicts, wanted, strict=True) if verdict != right] == []
    assert grader.timeouts == grader.crashes == 0


def turns(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


# What GRPOTrainer hands over beside the columns.
TRAINER_COLUMNS = {"prompts": ["p"] * 3, "completion_ids": [[1], [2], [3]], "trainer_state": None, "log_extra": print}


def test_reward_on_texts_and_conversations() -> None:
    texts = ["\\boxed{½}", "0.6", ""]
    solution = ["0.5"] * 3
    blocks = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    for completions in (texts, [turns(text) for text in texts], blocks):
        assert grading.math_reward(completions=completions, solution=solution, **TRAINER_COLUMNS) == [1.0, 0.0, 0.0]


def test_reward_takes_columns_and_options() -> None:
    columns: dict[str, Any] = {
        "options": [["blue", "red"], ["red", "blue"], None],
        "grader": ["choice", "choice", "text"],
    }
    columns |= {"completions": ["B", "B", "B"], "solution": ["red", "red", "b"]}
    assert grading.correctness_reward(**columns, **TRAINER_COLUMNS) == [1.0, 0.0, 1.0]
    assert grading.choice_reward(completions=["B"], solution=["red"], options=[["blue", "red"]]) == [1.0]
    strict = reward_function("grounding", iou_threshold=0.9)
    assert strict(completions=["[0,0,10,8]"], solution=["[0,0,10,10]"]) == [0.0]
    assert grading.grounding_reward(completions=["[0,0,10,8]"], solution=["[0,0,10,10]"]) == [1.0]


def test_reward_names_are_what_trl_logs() -> None:
    names = [*GRADERS, "correctness"]
    assert [getattr(grading, f"{name}_reward").__name__ for name in names] == [f"{name}_reward" for name in names]


def test_reward_options_are_checked() -> None:
    with pytest.raises(ValueError, match="no option 'iou'"):
        reward_function("grounding", iou=0.7)
    with pytest.raises(ValueError, match="no grader 'boxes'"):
        reward_function("boxes")


def test_completion_text_takes_the_last_assistant_turn() -> None:
    conversation = [*turns("first"), {"role": "tool", "content": "9"}, *turns("last"), {"role": "user", "content": "?"}]
    assert completion_text(conversation) == "last"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    assert completion_text([]) == ""
