"""Presets of benchmarks: rules, figures of evaluated folders, and messages about missing parts."""

import base64
import csv
import json
import sqlite3

import pytest
from typer.testing import CliRunner

from hardsample.cli.main import app
from hardsample.demo import load_split
from hardsample.evaluation.benchmarks import (
    RULES,
    BenchmarkError,
    first_completion,
    grade_benchmark,
    grade_contained,
    grade_option_or_open,
    grade_yes_no,
    missing_data,
)
from hardsample.evaluation.evaluate import evaluate
from hardsample.evaluation.presets import BENCHMARKS, GENERAL
from hardsample.files import BENCHMARK_FILE, ROLLOUTS_FILE
from hardsample.metrics.intervals import accuracy_interval, mean_interval
from hardsample.scoring.output import Scores
from hardsample.scoring.store import Store


@pytest.fixture(scope="module")
def records():
    return list(load_split("demo", 8))


def question(record):
    return "\n".join(b["text"] for turn in record["prompt"] for b in turn["content"] if b["text"])


def table(path, records, **columns):
    """Return a table of the demo's images and questions with other columns, one value a row."""
    names = list(dict.fromkeys(["index", "image", "question", *columns]))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(names)
        for number, record in enumerate(records):
            row = {"index": number, "question": question(record)}
            row["image"] = base64.b64encode(record["images"][0]["bytes"]).decode()
            row |= {name: values[number] for name, values in columns.items()}
            writer.writerow([row[name] for name in names])
    return path


def say(folder, completions):
    """Put other completions into a finished run: id → text of each rollout."""
    with sqlite3.connect(folder / ROLLOUTS_FILE) as database:
        for sample, texts in completions.items():
            for number, text in enumerate(texts):
                result = database.execute(
                    "UPDATE rollouts SET completion = ? WHERE sample = ? AND realization = ?", (text, sample, number)
                )
                assert result.rowcount == 1


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_the_table():
    for known in BENCHMARKS.values():
        assert known.rule in (None, GENERAL, *RULES) and known.judge in (None, "right", "score")
        assert known.rule or known.judge


@pytest.mark.parametrize("name", BENCHMARKS)
def test_without_the_file_it_says_what_to_get(name, tmp_path):
    for given in ((), (tmp_path / "absent.tsv",)):
        done = run(*given, "--benchmark", name)
        output = " ".join(done.output.replace("│", " ").split())
        assert done.exit_code == 2 and f"{BENCHMARKS[name].title} needs its data: download https://" in output
    assert f"/{BENCHMARKS[name].table}.tsv" in missing_data(name) and BENCHMARKS[name].hub in missing_data(name)


def test_mmstar_on_the_demo_model(records, tmp_path):
    path = table(
        tmp_path / "MMStar.tsv",
        records,
        A=["red"] * 8,
        B=["two"] * 8,
        answer=["A", "B"] * 4,
        category=["coarse"] * 4 + ["math"] * 4,
    )
    output = tmp_path / "run"
    done = run(path, "--benchmark", "mmstar", "--model", "demo", "--output", output)
    assert done.exit_code == 0 and "MMStar, graded by rule" in done.output, done.output
    assert "8 of the 1,500 samples of MMStar: not comparable" in done.output.replace("\n", " ")
    content = json.loads((output / BENCHMARK_FILE).read_text())
    wins = [row[0] for row in Scores(output).table["successes"]]
    overall = accuracy_interval(wins, [1] * 8)
    assert content["figures"]["score"] == vars(overall)  # the same rule as the grader's
    assert content["figures"]["category coarse"]["value"] == sum(wins[:4]) / 4
    say(output, {str(n): ["The answer is A."] for n in range(8)})
    assert grade_benchmark(output, "mmstar").figures["score"].value == 0.5


def test_mmmu_counts_its_split_only_and_open_questions_by_rule(records, tmp_path):
    path = table(
        tmp_path / "MMMU_DEV_VAL.tsv",
        records,
        A=["x"] * 4 + [""] * 4,
        B=["y"] * 4 + [""] * 4,
        answer=["A", "B", "A", "B", "24.32", "['1/4', '0.25']", "blue whale", "7"],
        split=["dev"] + ["validation"] * 7,
        category=["Art"] * 8,
    )
    evaluate(path, "demo", tmp_path / "run", progress=False)
    completions = ["B", "B", "(A) x", "A", "so it is 24.321", "The answer is 0.25", "A blue whales", "3 + 4 = 8"]
    say(tmp_path / "run", {str(n): [text] for n, text in enumerate(completions)})
    result = grade_benchmark(tmp_path / "run", "mmmu")
    assert result.figures["score"] == accuracy_interval([1, 1, 0, 1, 1, 0, 0], [1] * 7)
    assert any("1 samples of other splits" in note for note in result.notes)


def test_hallusionbench_figures_and_questions(records, tmp_path):
    names = ["h_VD_chart_0_1_0", "h_VD_chart_0_1_1", "h_VD_chart_0_2_0", "h_VD_chart_0_2_1"]
    names += ["h_VD_map_0_1_0", "h_VD_map_0_1_1", "h_VS_map_1_1_0", "h_VS_map_1_0_0"]
    path = table(
        tmp_path / "HallusionBench.tsv",
        records,
        index=names,
        answer=["Yes", "No"] * 4,
        category=["VD"] * 6 + ["VS"] * 2,
        **{"l2-category": ["chart"] * 4 + ["map"] * 4},
    )
    text = path.read_text().splitlines()
    cells = text[-1].split("\t")
    text[-1] = "\t".join([cells[0], "", *cells[2:]])  # the last question has no image
    path.write_text("\n".join(text) + "\n")
    evaluate(path, "demo", tmp_path / "run", rollouts=2, temperature=1.0, progress=False)
    right = [(1, 1), (1, 1), (1, 0), (0, 1), (1, 1), (0, 0), (1, 1), (1, 1)]
    completions = {
        name: [gold if right else {"yes": "No.", "no": "Yes!"}[gold] for right in verdicts]
        for name, gold, verdicts in zip(names, ["yes", "no"] * 4, right, strict=True)
    }
    say(tmp_path / "run", completions)
    result = grade_benchmark(tmp_path / "run", "hallusionbench")
    with Store(tmp_path / "run") as store:
        assert first_completion(store, names[2]) == completions[names[2]][0] != completions[names[2]][1]
    figures = list(result.figures.items())
    assert figures[0] == ("aAcc (questions)", accuracy_interval([2, 2, 1, 1, 2, 0, 2], [2] * 7))
    # figures: chart 1 twice right, chart 2 never both, map set 0 never, map set 1 twice
    assert figures[1][1] == accuracy_interval([2, 0, 0, 2], [2] * 4)
    # questions over figures: chart 0: first rollout, chart 1: second; map 0/0 both, map 0/1 none, map 1/0 both
    assert figures[2][1] == accuracy_interval([1, 1, 2, 0, 2], [2] * 5)
    mean = (10 / 14 + 4 / 8 + 6 / 10) / 3
    assert f"mean of aAcc, fAcc and qAcc: {mean:.1%}" in result.notes
    say(tmp_path / "run", {names[0]: ["no"] * 2})
    assert grade_benchmark(tmp_path / "run", "hallusionbench").figures["aAcc (questions)"].value == 8 / 14


def test_ocrbench_points(records, tmp_path):
    formulas = "Handwritten Mathematical Expression Recognition"
    path = table(
        tmp_path / "OCRBench.tsv",
        records,
        answer=["['CENTRE']", '["a b", "c"]', "['x ^ 2']", "['X']"] * 2,
        category=["Doc-oriented VQA", "Doc-oriented VQA", formulas, formulas] * 2,
    )
    evaluate(path, "demo", tmp_path / "run", progress=False)
    say(tmp_path / "run", {str(n): [text] for n, text in enumerate(["the Centre is", "A\nB", "x^2+1", "x"] * 2)})
    result = grade_benchmark(tmp_path / "run", "ocrbench")
    assert result.figures["score"] == accuracy_interval([1, 1, 1, 0] * 2, [1] * 8)
    assert result.figures[f"category {formulas}"].value == 0.5 and "OCRBench's score: 6 of 8" in result.notes


class Marks:
    """Verdicts by a table; test_judge.py has the whole way, with a server."""

    def __init__(self, worths):
        self.worths, self.model, self.failed, self.cases = worths, "marks", {}, []

    def verdicts(self, kind, cases):
        self.kind, self.cases = kind, list(cases)
        self.failed = {"no reply in time": self.worths.count(None)} if None in self.worths else {}
        return self.worths


def test_mmvet_needs_a_judge(records, tmp_path):
    path = table(
        tmp_path / "MMVet.tsv", records[:4], answer=["a <AND> b"] * 4, category=["ocr,math", "ocr", "rec", "rec"]
    )
    output = tmp_path / "run"
    done = run(path, "--benchmark", "mmvet", "--model", "demo", "--output", output)
    assert done.exit_code == 1 and "needs a judge model" in done.output and "--judge-url" in done.output
    judge = Marks([0.5, 1.0, None, 0.0])
    result = grade_benchmark(output, "mmvet", judge)
    assert judge.kind == "score" and judge.cases[0].question == question(records[0])
    assert judge.cases[0].reference == "a <AND> b"
    expected = mean_interval([0.5, 1.0, 0.0])
    assert result.figures["score"].value == 0.5 and result.figures["score"].samples == 3
    assert result.figures["score"].low == max(expected.low, 0) and result.figures["score"].high == min(expected.high, 1)
    assert result.figures["category ocr"].value == 0.75 and result.figures["category math"].value == 0.5
    assert any("1 verdicts failed and do not count (no reply in time: 1)" in note for note in result.notes)
    with pytest.raises(BenchmarkError, match="could be graded"):
        grade_benchmark(output, "mmvet", Marks([None] * 4))


def test_mathvista_by_rule_says_that_it_is_not_the_score(records, tmp_path):
    path = table(tmp_path / "MathVista_MINI.tsv", records[:4], answer=["3"] * 4, skills=["['a skill', 'other']"] * 4)
    evaluate(path, "demo", tmp_path / "run", progress=False)
    result = grade_benchmark(tmp_path / "run", "mathvista")
    with Store(tmp_path / "run") as store:
        grades = [rollout.grade for rollout in store.rollouts()]
    assert result.figures["score"] == accuracy_interval(grades, [1] * 4)
    assert "skills a skill" in result.figures and any("not MathVista's score" in note for note in result.notes)
    judged = grade_benchmark(tmp_path / "run", "mathvista", Marks([1.0, 1.0, 0.0, 1.0]))
    assert judged.figures["score"] == accuracy_interval([1, 1, 0, 1], [1] * 4) and judged.how == "the judge marks"


def test_other_data_is_refused(records, tmp_path):
    path = table(tmp_path / "Other.tsv", records[:2], answer=["3"] * 2)
    evaluate(path, "demo", tmp_path / "run", progress=False)
    with pytest.raises(BenchmarkError, match="no column 'category': OCRBench needs its data"):
        grade_benchmark(tmp_path / "run", "ocrbench")
    with pytest.raises(BenchmarkError, match="'other' is unknown"):
        grade_benchmark(tmp_path / "run", "other")
    for options in (["--judge-url", "http://localhost:1/v1"], ["--judge-url", "http://h/v1", "--judge-model", "m"]):
        done = run(path, "--benchmark", "mmstar", "--model", "demo", "--output", tmp_path / "run", *options)
        assert done.exit_code == 2


def test_rules():
    def row(solution, options=None, category=""):
        return {"solution": solution, "options": options, "category": category}

    assert grade_yes_no("Yes, there is no doubt.", row("Yes")) and not grade_yes_no(
        "Yes, there is no doubt.", row("No")
    )
    assert grade_yes_no("I think yes? <answer>No</answer>", row("No")) and not grade_yes_no("perhaps", row("No"))
    assert not grade_yes_no("", row("Yes")) and not grade_yes_no("Know", row("No"))
    assert grade_contained("<think>wrong</think>It reads HELLO", row("['hello']"))
    assert not grade_contained("<think>hello</think>nothing", row("['hello']")) and not grade_contained(
        "x", row("['']")
    )
    assert grade_option_or_open("The answer is 1,000 m", row("1000")) and not grade_option_or_open(
        "1000 2", row("1000")
    )
    assert grade_option_or_open("−5", row("-5")) and not grade_option_or_open("5", row("-5"))
    assert grade_option_or_open("It is the Blue Whale.", row("blue whale"))
    assert not grade_option_or_open("bluebell", row("blue"))
