r"""Notation of real answers: golds × phrasings × wrong answers, by kind, as real models write them."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardsample.data.records.solutions import choose_grader
from hardsample.grading.grader import Grader, reward_function
from hardsample.grading.parsing.answers import is_only_thinking, without_thinking

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real records are not here: {SHARED}")
ANIMALS = ["cat", "dog", "horse", "cow"]
NUMBERS = ["1", "2", "3", "4"]
COLOURS = ["red", "green", "blue", "white"]

# kind, solution, options, grader (None: the one that loading chooses), completion, right?
ROWS: list[tuple[str, str, list[str] | None, str | None, str, bool]] = [
    ("units", "12", None, None, "12 kg", True),
    ("units", "12", None, None, "12 kWh", True),
    ("units", "12", None, None, "12 m³", True),
    ("units", "12", None, None, "12 μm", True),
    ("units", "12", None, None, "12 N·m", True),
    ("units", "12", None, None, "12 rad/s", True),
    ("units", "12", None, None, "≈ 12 m", True),
    ("units", "12", None, None, "about 12 m", True),
    ("units", "12", None, None, "12 people", True),
    ("units", "12", None, None, "$12", True),
    ("units", "12", None, None, "12 dollars.", True),
    ("units", "12", None, None, "12 square meters", True),
    ("units that differ", "12", None, None, "13 kg", False),
    ("units that differ", "12 cm", None, None, "12 m", False),
    ("units that differ", "12 cm", None, None, "12 centimeters", True),
    ("units that differ", "12 cm", None, None, "\\boxed{12\\text{ cm}}", True),
    ("units that differ", "12 cm^2", None, None, "12 cm", False),
    ("units that differ", "12 cm^2", None, None, "12 square centimeters", True),
    ("units that differ", "12 hours", None, None, "12 minutes", False),
    ("units that differ", "12 hours", None, None, "12 hrs", True),
    ("units that differ", "12 apples", None, None, "There are 12 apples in it.", True),
    ("units that differ", "12 apples", None, None, "13 apples", False),
    ("degrees and speeds", "12 km/h", None, None, "12 km per hour", True),
    ("degrees and speeds", "12 km/h", None, None, "12 mph", False),
    ("degrees and speeds", "30^\\circ", None, None, "30 degrees", True),
    ("degrees and speeds", "30°", None, None, "The angle is 30°.", True),
    ("degrees and speeds", "30", None, None, "$30^{\\circ}$", True),
    ("tiny numbers", "0.000012", None, None, "0.000013", False),
    ("tiny numbers", "1.2\\times10^{-5}", None, None, "0.000012", True),
    ("tiny numbers", "1e-9", None, None, "0", False),
    ("tiny numbers", "0", None, None, "0.0000001", False),
    ("tiny numbers", "6.02e23", None, None, "6.02 \\times 10^{23}", True),
    ("tiny numbers", "6.02e23", None, None, "6.03e23", False),
    ("tiny numbers", "3.14159", None, None, "3.14159265", True),
    ("tiny numbers", "3.14", None, None, "3.15", False),
    ("tiny numbers", "1/3", None, None, "0.333", False),
    ("tiny numbers", "1/3", None, None, "0.3333333", True),
    ("tiny numbers", "1000000", None, None, "1000001", False),
    ("mixed numbers", "2 1/2", None, None, "2.5", True),
    ("mixed numbers", "2.5", None, None, "2\\frac{1}{2}", True),
    ("mixed numbers", "2.5", None, None, "2 1/2 cm", True),
    ("mixed numbers", "2\\frac12", None, None, "5/2", True),
    ("mixed numbers", "2 1/2", None, None, "1", False),
    ("mixed numbers", "7/2", None, None, "7", False),
    ("thousands by a space", "12000", None, None, "12 000", True),
    ("thousands by a space", "12000", None, None, "12,000", True),
    ("thousands by a space", "12000", None, None, "12.000", False),
    ("thousands by a space", "12", None, None, "12 000", False),
    ("thousands by a space", "12 345", None, None, "12345", True),
    ("thousands by a space", "3, 4", None, None, "3 4", False),
    ("inequalities and intervals", "x>3", None, None, "x > 3", True),
    ("inequalities and intervals", "x>3", None, None, "(3, \\infty)", True),
    ("inequalities and intervals", "x\\leq 5", None, None, "(-\\infty, 5]", True),
    ("inequalities and intervals", "x\\leq 5", None, None, "(-\\infty, 5)", False),
    ("inequalities and intervals", "-2<x<3", None, None, "(-2,3)", True),
    ("inequalities and intervals", "(-2,3)", None, None, "-2 < x < 3", True),
    ("inequalities and intervals", "[-2,3]", None, None, "-2 < x < 3", False),
    ("inequalities and intervals", "x>3", None, None, "x<3", False),
    ("inequalities and intervals", "x \\in (2,3)", None, None, "2<x<3", True),
    ("inequalities and intervals", "(-\\infty,0)\\cup(0,\\infty)", None, None, "x<0 or x>0", True),
    ("inequalities and intervals", "x<1 or x>4", None, None, "x>4 or x<1", True),
    ("inequalities and intervals", "y>3", None, None, "x>3", False),
    ("inequalities and intervals", "x>1/2", None, None, "x>0.5", True),
    ("algebra", "3:4", None, None, "3 : 4", True),
    ("algebra", "3:4", None, None, "4:3", False),
    ("algebra", "1/x", None, None, "\\frac{1}{x}", True),
    ("algebra", "1/x", None, None, "x", False),
    ("algebra", "±2", None, None, "x = ±2", True),
    ("algebra", "±2", None, None, "2", False),
    ("algebra", "±2", None, None, "2 or -2", True),
    ("algebra", "x+1", None, None, "1+x", True),
    ("algebra", "x+1", None, None, "x-1", False),
    ("algebra", "2x+3=0", None, None, "2x+3=0", True),
    ("algebra", "sin(x)", None, None, "\\sin x", True),
    ("algebra", "x=2,y=3", None, None, "y=3, x=2", True),
    ("algebra", "x=2,y=3", None, None, "x=3, y=2", False),
    ("algebra", "10", None, None, "2x = 10", False),
    ("algebra", "5", None, None, "x = 5", True),
    ("algebra", "n(n+1)", None, None, "n^2+n", True),
    ("algebra", "2x + 3", None, None, "2x+4", False),
    ("algebra", "12%", None, None, "0.12", True),
    ("algebra", "12%", None, None, "1.2", False),
    ("algebra", "a^2 + b^2", None, None, "b^2+a^2", True),
    ("algebra", "5 and 7", None, None, "7 and 5", True),
    ("algebra", "5 and 7", None, None, "5", False),
    ("phrases with digits", "Route 66", None, None, "66", False),
    ("phrases with digits", "Route 66", None, None, "route 66", True),
    ("phrases with digits", "2 hours and 30 minutes", None, None, "2 hours and 30 minutes", True),
    ("phrases with digits", "2 hours and 30 minutes", None, None, "2 hours 30 min", True),
    ("phrases with digits", "2 hours and 30 minutes", None, None, "2 hours and 20 minutes", False),
    ("phrases with digits", "3-5", None, None, "-2", False),
    ("phrases with digits", "3-5", None, None, "3-5", True),
    ("phrases with digits", "H2O", None, None, "H2O", True),
    ("phrases with digits", "12 March 2020", None, None, "12", False),
    ("phrases with digits", "4:45", None, None, "4:45 PM", True),
    ("phrases with digits", "2020-05-01", None, None, "2020-05-01", True),
    ("yes and no", "yes", None, None, "no", False),
    ("yes and no", "yes", None, None, "Yes or no", False),
    ("yes and no", "yes", None, None, "Yes and no", False),
    ("yes and no", "yes", None, None, "It is not clear.", False),
    ("yes and no", "no", None, None, "Yes, no doubt.", False),
    ("yes and no", "yes", None, None, "The answer is yes.", True),
    ("yes and no", "No", None, None, "**No**", True),
    ("yes and no", "no", None, None, "not", False),
    ("yes and no", "True", None, None, "true.", True),
    ("yes and no", "yes", None, None, "是的。", True),
    ("yes and no", "no", None, None, "不是。", True),
    ("yes and no", "yes", None, None, "不是。", False),
    ("yes and no", "yes", ["Yes", "No"], "choice", "A", True),
    ("yes and no", "yes", ["Yes", "No"], "choice", "B", False),
    ("yes and no", "yes", ["Yes", "No"], "choice", "Yes.", True),
    ("text in a sentence", "lamp", None, None, "This is a lamp.", True),
    ("text in a sentence", "lamp", None, None, "It is not a lamp.", False),
    ("text in a sentence", "lamp", None, None, "a chair", False),
    ("text in a sentence", "lamp", None, None, "a lamp or a chair", False),
    ("text in a sentence", "lamp", None, None, "The answer is **lamp**.", True),
    ("text in a sentence", "lamp", None, None, "The object is a red lamp.", False),
    ("text in a sentence", "red lamp", None, None, "The object is a red lamp.", True),
    ("text in a sentence", "lamp", None, None, "It is a **chair**, not a **lamp**.", False),
    ("text in a sentence", "lamp", None, None, "not a **lamp**", False),
    ("text in a sentence", "New York", None, None, "The city is New York.", True),
    ("two letters", "B", ANIMALS, "choice", "\\boxed{A,B}", False),
    ("two letters", "B", ANIMALS, "choice", "A/B", False),
    ("two letters", "B", ANIMALS, "choice", "A & B", False),
    ("two letters", "B", ANIMALS, "choice", "Both A and B", False),
    ("two letters", "B", ANIMALS, "choice", "either A or B", False),
    ("two letters", "B", ANIMALS, "choice", "ABCD", False),
    ("two letters", "B", ANIMALS, "choice", "all of the above", False),
    ("two letters", "B", ANIMALS, "choice", "not B", False),
    ("two letters", "B", ANIMALS, "choice", "B is wrong", False),
    ("two letters", "B", ANIMALS, "choice", "It can't be B.", False),
    ("two letters", "B", ANIMALS, "choice", "It is not a dog.", False),
    ("two letters", "B", ANIMALS, "choice", "dog and cat", False),
    ("two letters", "B", ANIMALS, "choice", "(B) cat", False),
    ("two letters", "B", ANIMALS, "choice", "B. cat", False),
    ("two letters", "B", ANIMALS, "choice", "The answer is B or C.", False),
    ("two letters", "B", ANIMALS, "choice", "A. cat B. dog C. horse D. cow", False),
    ("two letters", "B", ANIMALS, "choice", "A\nB", True),
    ("two letters", "B", ANIMALS, "choice", "B, C", False),
    ("two letters", "B", ANIMALS, "choice", "none", False),
    ("two letters", "B", ANIMALS, "choice", "B?", True),
    ("two letters", "B", ANIMALS, "choice", "The answer is neither A nor B.", False),
    ("two letters", "B", ANIMALS, "choice", "Not A, so B or C", False),
    ("two letters", "B", ANIMALS, "choice", "<answer>B or D</answer>", False),
    ("letters in sentences", "B", ANIMALS, "choice", "B, because A is too small.", True),
    ("letters in sentences", "B", ANIMALS, "choice", "B. Because the ears are long.", True),
    ("letters in sentences", "B", ANIMALS, "choice", "The animal is a dog.", True),
    ("letters in sentences", "B", ANIMALS, "choice", "<answer>(B)</answer>", True),
    ("letters in sentences", "B", ANIMALS, "choice", "**(B) dog**", True),
    ("letters in sentences", "B", ANIMALS, "choice", "Answer: (B)", True),
    ("letters in sentences", "B", ANIMALS, "choice", "The correct option is **B**: dog", True),
    ("letters in sentences", "B", ANIMALS, "choice", "B) dog", True),
    ("letters in sentences", "B", ANIMALS, "choice", "b)", True),
    ("letters in sentences", "B", ANIMALS, "choice", "The answer is B: dog, since A is a cat.", True),
    ("letters in sentences", "B", ANIMALS, "choice", "$\\boxed{\\text{B}}$", True),
    ("letters in sentences", "B", ANIMALS, "choice", "\\boxed{\\textbf{(B)}}", True),
    ("letters in sentences", "B", ANIMALS, "choice", "\\boxed{B. dog}", True),
    ("letters in sentences", "B", ANIMALS, "choice", "[B]", True),
    ("letters in sentences", "B", ANIMALS, "choice", "Option B", True),
    ("letters in sentences", "B", ANIMALS, "choice", "I would choose B.", True),
    ("letters in sentences", "B", ANIMALS, "choice", "So B is the right one.", True),
    ("letters in sentences", "B", ANIMALS, "choice", "选B", True),
    ("letters in sentences", "B", ANIMALS, "choice", "答案：B", True),
    ("letters in sentences", "B", ANIMALS, "choice", "所以正确答案是B。", True),
    ("letters in sentences", "B", ANIMALS, "choice", "应选B项", True),
    ("letters in sentences", "B", ANIMALS, "choice", "B项正确", True),
    ("letters in sentences", "B", ANIMALS, "choice", "不选B", False),
    ("letters in sentences", "B", ANIMALS, "choice", "B错误", False),
    ("letters in sentences", "B", ANIMALS, "choice", "选A或B", False),
    ("letter A", "A", ANIMALS, "choice", "The answer is A because it purrs.", True),
    ("letter A", "A", ANIMALS, "choice", "A is correct.", True),
    ("letter A", "A", ANIMALS, "choice", "So A is right.", True),
    ("letter A", "A", ANIMALS, "choice", "I choose A, since it is small.", True),
    ("letter A", "A", ANIMALS, "choice", "A dog.", False),
    ("letter A", "A", ANIMALS, "choice", "A horse is here", False),
    ("letter A", "A", ANIMALS, "choice", "a", True),
    ("letter A", "A", ANIMALS, "choice", "a cat", True),
    ("letter A", "A", ANIMALS, "choice", "The answer is a dog", False),
    ("letter A", "A", ANIMALS, "choice", "**A**", True),
    ("letter A", "A", ANIMALS, "choice", "Therefore, the answer is A", True),
    ("letter A", "A", COLOURS, "choice", "a frog", False),
    ("letter A", "A", COLOURS, "choice", "It's a tree", False),
    ("letter A", "A", ["A", "B", "C", "D"], "choice", "A", True),
    ("letter A", "A", ["A", "B", "C", "D"], "choice", "a point", False),
    ("letter A", "C", ["A", "B", "C", "D"], "choice", "point C", True),
    ("an option's number", "B", NUMBERS, "choice", "2+5\\pi", False),
    ("an option's number", "B", NUMBERS, "choice", "x=2", True),
    ("an option's number", "B", NUMBERS, "choice", "2", True),
    ("an option's number", "B", NUMBERS, "choice", "12", False),
    ("an option's number", "B", NUMBERS, "choice", "2.5", False),
    ("an option's number", "B", NUMBERS, "choice", "There are 2 of them.", True),
    ("an option's number", "B", NUMBERS, "choice", "2x", False),
    ("an option's number", "B", NUMBERS, "choice", "-2", False),
    ("an option's number", "B", NUMBERS, "choice", "2/3", False),
    ("an option's number", "B", NUMBERS, "choice", "\\frac{2}{3}", False),
    ("an option's number", "B", NUMBERS, "choice", "two", True),
    ("an option's number", "B", NUMBERS, "choice", "2^2", False),
    ("an option's number", "D", NUMBERS, "choice", "2^2", True),
    ("options in other notation", "B", ["12 cm", "15 cm"], "choice", "15", True),
    ("options in other notation", "B", ["12 cm", "15 cm"], "choice", "15 m", False),
    ("options in other notation", "B", ["15 m", "15 cm"], "choice", "15", False),
    ("options in other notation", "B", ["15 m", "15 cm"], "choice", "15 cm", True),
    ("options in other notation", "B", ["30^\\circ", "60^\\circ"], "choice", "60°", True),
    ("options in other notation", "B", ["$\\frac{1}{3}$", "$\\frac{2}{3}$"], "choice", "2/3", True),
    ("options in other notation", "B", ["x+1", "x-1"], "choice", "$x - 1$", True),
    ("options in other notation", "B", ["x+1", "x-1"], "choice", "x+1", False),
    ("several letters", "A,B", ANIMALS, "choice", "A", False),
    ("several letters", "A,B", ANIMALS, "choice", "A, B", True),
    ("several letters", "A,B", ANIMALS, "choice", "B and A", True),
    ("several letters", "A,B", ANIMALS, "choice", "A or B", False),
    ("several letters", "A,B", ANIMALS, "choice", "A, B, C", False),
    ("several letters", "A,B", ANIMALS, "choice", "\\boxed{AB}", True),
    ("several letters", "A,B", ANIMALS, "choice", "The answers are A and B.", True),
    ("several letters", "A,B", ANIMALS, "choice", "(A), (B)", True),
    ("several letters", "A,B", ANIMALS, "choice", "(A)(B)", True),
    ("several letters", "A,B", ANIMALS, "choice", "选AB", True),
    ("several letters", "BD", ANIMALS, "choice", "B、D", True),
    ("several letters", "BD", ANIMALS, "choice", "Options B and D are correct.", True),
    ("several letters", "A, C, D", ANIMALS, "choice", "A, C and D", True),
    ("Chinese", "7", None, "counting", "一共有7个。", True),
    ("Chinese", "7", None, "counting", "There are seven.", True),
    ("Chinese", "7", None, "counting", "有8个", False),
    ("Chinese", "45", None, None, "一共有45个。", True),
    ("Chinese", "45", None, None, "答案是45厘米。", True),
    ("Chinese", "45", None, None, "答案：45", True),
    ("Chinese", "3", None, None, "三个", True),
    ("Chinese", "45", None, None, "一共有46个。", False),
    ("thinking by other names", "5", None, None, "<thought>3</thought>5", True),
    ("thinking by other names", "3", None, None, "<reasoning>the answer is 3</reasoning>\n5", False),
    ("thinking by other names", "5", None, None, "<answer>5</answer><reasoning>because 3</reasoning>", True),
    ("thinking by other names", "5", None, None, "[THINK]3[/THINK]\\boxed{5}", True),
    ("GLM's box", "cat", None, None, "<|begin_of_box|>dog<|end_of_box|>", False),
    ("bold", "45", None, None, "The answer is **45 cm**.", True),
    ("bold", "45", None, None, "**45 cm**", True),
    ("bold", "45", None, None, "The answer is *45*.", True),
    ("bold", "45", None, None, "The answer is __45__.", True),
    ("bold", "45", None, None, "Answer: **45 cm**, since 9·5=45", True),
    ("bold", "45", None, None, "The answer is **46 cm**.", False),
    ("bold", "45", None, None, "45. This follows from 9 times 5.", True),
    ("bold", "45", None, None, "45\nBecause 40+5.", True),
    ("bold", "45", None, None, "46\n\nExplanation: there are 45.", False),
    ("bold", "45", None, None, "4 5", False),
    ("bold", "45", None, None, "45 or 46", False),
    ("bold", "45", None, None, "44, 45, 46", False),
    ("bold", "45", None, None, "not 45", False),
    ("taken back", "yes", None, None, "yes/no", False),
    ("taken back", "yes", None, None, "Yes (or no)", False),
    ("taken back", "yes", None, None, "yes and also no", False),
    ("taken back", "yes", None, None, "Yes, no doubt about it.", True),
    ("taken back", "B", COLOURS, "choice", "B, maybe C", False),
    ("taken back", "B", COLOURS, "choice", "Option B is tempting, but C", False),
    ("taken back", "B", COLOURS, "choice", "B rather than C", True),
    ("taken back", "B", COLOURS, "choice", "\\boxed{B}\n\\boxed{B}", True),
    ("several lines", "A, C", COLOURS, "choice", "A. red\nC. blue", True),
    ("several lines", "A, C", COLOURS, "choice", "A. red\nB. green\nC. blue", False),
    ("plain sentences", "45", None, None, "It is 45.", True),
    ("plain sentences", "45", None, None, "∠A = 45°", True),
    ("plain sentences", "45", None, None, "45? 46?", False),
    ("plain sentences", "45", None, None, "45:1", False),
    ("plain sentences", "12 hours", None, None, "twelve hours", True),
    ("plain sentences", "It is red.", None, None, "red", True),
    ("plain sentences", "lamp", None, None, "It looks like a lamp.", True),
    ("dates", "14/04/2018", None, None, "7/4036", False),
    ("dates", "2023-04-05", None, None, "2023/04/05", True),
]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def graded(grader: Grader, solution: str, options: list[str] | None, name: str | None, completion: str) -> bool:
    name = name or choose_grader(None, options, solution, None)
    return grader.grade(completion, {"grader": name, "solution": solution, "options": options})


@pytest.mark.parametrize(("kind", "solution", "options", "name", "completion", "right"), ROWS)
def test_kinds(grader, kind, solution, options, name, completion, right):
    assert graded(grader, solution, options, name, completion) is right, kind


@needs_shared
def test_cases_on_which_earlier_versions_failed(grader):
    rows = [json.loads(line) for line in (SHARED / "cases" / "grading.jsonl").read_text().splitlines()]
    wrong = [
        row
        for row in rows
        if graded(grader, row["solution"], row["options"], row["grader"], row["completion"]) is not row["right"]
    ]
    assert wrong == []


def test_answers_of_a_trial(grader):
    """Answers that a tester wrote to get wrong ones accepted and right ones rejected; each failed once."""
    lines = (Path(__file__).parents[1] / "golden" / "grading.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    wrong = [
        row
        for row in rows
        if graded(grader, row["solution"], row["options"], row["grader"], row["completion"]) is not row["right"]
    ]
    assert (len(rows) > 500, wrong) == (True, [])


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[2] / "bench" / "grading.py"
    spec = importlib.util.spec_from_file_location("bench_grading", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shared_files() -> list[Path]:
    return [*sorted((SHARED / "formats").glob("*")), SHARED / "dev" / "dev.jsonl"] if SHARED.is_dir() else [SHARED]


@needs_shared
@pytest.mark.parametrize("path", shared_files(), ids=lambda path: path.name)
def test_the_gold_in_every_dressing_is_right_and_everything_else_wrong(bench, grader, path):
    from hardsample.data.loading import load

    loaded = load(path, image_root=SHARED / "dev")
    counts, mistakes = bench.confusion(loaded.dataset, grader)
    assert mistakes == []
    assert sum(counts.values()) >= 7 * len(loaded.dataset)


NUMBER = st.one_of(
    st.integers(-10_000, 10_000).map(str),
    st.decimals(-1000, 1000, places=2, allow_nan=False, allow_infinity=False).map(str),
    st.tuples(st.integers(1, 99), st.integers(2, 99)).map(lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}"),
)
UNITS = ["", " cm", " m/s", "°", "%", " kg", " apples", " \\text{cm}", " km per hour", "厘米", " Ω", "$^2$"]
FORMS = [
    "{}", "\\boxed{{{}}}", "<answer>{}</answer>", "The answer is {}.", "**{}**", "The answer is **{}**.", "x = {}",
    "<think>Is it 99991? No.</think>\n{}", "{}\n\nExplanation: I counted them one by one.", "答案是{}。",
]  # fmt: skip
common = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@common
@given(NUMBER, st.sampled_from(UNITS[:-1]), st.sampled_from(FORMS))
def test_a_number_is_right_in_every_form_and_another_never(grader, number, unit, form):
    gold = {"grader": "math", "solution": number}
    assert grader.grade(form.format(number + unit), gold)
    wrong = number.replace("\\frac{", "\\frac{1") if "frac" in number else f"{number}7"
    assert not grader.grade(form.format(wrong + unit), gold) or unit == "%"


WORDS = st.lists(
    st.sampled_from("red green blue white lamp chair table house boat train".split()),
    min_size=2,
    max_size=5,
    unique=True,
)
CHOICE_FORMS = [
    "{0}", "({0})", "{0}. {1}", "{0}: {1}", "({0}) {1}", "**{0}**", "\\boxed{{{0}}}", "<answer>{0}</answer>", "{1}",
    "The answer is {0}.", "The answer is ({0}) because it fits.", "The answer is {0} because it fits.", "Option {0}",
    "{0} is correct.", "{0}\n\nIt fits best.", "It is a {1}.", "故选{0}。", "选项{0}", "So the right option is {0}.",
    "{0}, because it fits.", "I choose {0}.", "$\\text{{{0}}}$", "<|begin_of_box|>{0}<|end_of_box|>",
]  # fmt: skip
UNCLEAR = [
    "{0} or {2}", "{0}, {2}", "\\boxed{{{0}, {2}}}", "({0}) ({2})", "both {0} and {2}", "neither {0} nor {2}",
    "not {0}", "{0} is wrong", "{0}/{2}", "{1} or {3}", "({0}) {3}", "{0}. {3}", "The answer is not {0}.", "不选{0}",
    "{0}. {1} {2}. {3}", "The correct option is {0} or {2}", "It is not a {1}.",
]  # fmt: skip


@common
@given(WORDS, st.integers(0, 4), st.integers(0, 4), st.sampled_from(CHOICE_FORMS), st.booleans())
def test_a_choice_is_right_for_its_own_option_only_and_all_letters_are_treated_alike(
    grader, options, gold, answer, form, by_text
):
    gold, answer = gold % len(options), answer % len(options)
    record = {"grader": "choice", "options": options, "solution": options[gold] if by_text else "ABCDE"[gold]}
    assert grader.grade(form.format("ABCDE"[answer], options[answer]), record) is (answer == gold)


@common
@given(WORDS, st.integers(0, 4), st.sampled_from(UNCLEAR))
def test_an_unclear_or_denied_choice_is_wrong(grader, options, gold, form):
    gold = gold % len(options)
    wrong = (gold + 1) % len(options)
    record = {"grader": "choice", "options": options, "solution": "ABCDE"[gold]}
    assert not grader.grade(form.format("ABCDE"[gold], options[gold], "ABCDE"[wrong], options[wrong]), record)


def test_any_of_several_accepted_answers_is_right(grader):
    record = {"grader": "text", "solution": "NYC", "answers": ["NYC", "New York City"]}
    assert [grader.grade(text, record) for text in ("nyc", "It is New York City.", "Boston")] == [True, True, False]
    formulas = {"grader": "math", "solution": "x+1", "answers": ["x+1", "\\frac{y}{2}"]}
    assert [grader.grade(text, formulas) for text in ("1+x", "y/2", "y/3")] == [True, True, False]
    mixed = [
        ("1+x", formulas),
        ("nyc", record),
        ("y/2", formulas),
        ("y/3", formulas),
        ("5", {"grader": "math", "solution": "5"}),
    ]
    assert grader.grade_many(mixed) == [True, True, True, False, True]
    reward = reward_function()
    assert reward(["Boston", "NYC"], ["NYC"] * 2, grader=["text"] * 2, answers=[record["answers"], None]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>a</think>b", "b"), ("<Thinking>a</THINKING> b", "b"), ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"), ("a</think>b", "b"), ("<think>a</think>", ""), ("<think>a", "a"), ("b", "b"),
        ("b<reasoning>a</reasoning>", "b"),
        ("<think>a</think>b<think>c</think>d", "d"), ("[1, 2] < 3", "[1, 2] < 3"), ("", ""),
    ],
)  # fmt: skip
def test_without_thinking(text, rest):
    assert without_thinking(text) == rest


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ("<think>a", True), ("<think>a</think>", True), ("◁think▷a◁/think▷ \n", True), ("[THINK]a", True), ("", False),
        ("<think>a</think>b", False), ("b<think>a</think>", False), ("b", False), ("a</think>", True),
    ],
)  # fmt: skip
def test_thinking_only(text, only):
    assert is_only_thinking(text) is only
