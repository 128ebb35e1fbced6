"""Named benchmarks: which data each needs, how its answers are graded, and what its score means.

A preset is a row of `BENCHMARKS`. It reads the completions that an evaluation left in its folder, so grading again
needs no rollout. If a benchmark's answers can be graded by rule, this module does so; if its score needs a judge model,
the notes say so, and a judge grades the answers if its URL is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from hardsample.data.records.conversation import user_text
from hardsample.data.vlmevalkit import as_list
from hardsample.errors import HardsampleError
from hardsample.evaluation.judge import Case, Judge
from hardsample.evaluation.presets import BENCHMARKS, Benchmark
from hardsample.files import BENCHMARK_FILE
from hardsample.grading.graders import grade_choice
from hardsample.grading.parsing.answers import find_answer, normalise
from hardsample.metrics.intervals import Interval, accuracy_interval, mean_interval
from hardsample.scoring.output import Scores
from hardsample.scoring.store import Store
from hardsample.scoring.subsets import source_records

TABLE_URL = "https://opencompass.openxlab.space/utils/VLMEval/{}.tsv"
_EXPRESSIONS = "Handwritten Mathematical Expression Recognition"
_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")

Row = Mapping[str, Any]


class BenchmarkError(HardsampleError, ValueError):
    """The data is not the benchmark's, or its score cannot be computed; the message says what to do."""


@dataclass(frozen=True)
class Result:
    """A graded benchmark."""

    benchmark: str
    how: str
    """What graded the answers."""
    figures: dict[str, Interval]
    """Name → value and interval; the score first."""
    notes: list[str]
    """Caveats about the numbers."""


def missing_data(name: str) -> str:
    """Say which data a benchmark needs, and where to download it."""
    benchmark = BENCHMARKS[name]
    return (
        f"{benchmark.title} needs its data: download {TABLE_URL.format(benchmark.table)} ({benchmark.samples:,} "
        f"samples count; the original is {benchmark.hub} on the hub, split {benchmark.split}), then: "
        f"hardsample evaluate {benchmark.table}.tsv --benchmark {name} --model MODEL --output DIR"
    )


def grade_benchmark(directory: str | Path, name: str, judge: Judge | None = None) -> Result:
    """Grade an evaluated folder as a benchmark does, by rule or by a judge, and write benchmark.json into it.

    Args:
        directory: of a finished evaluation of the benchmark's table.
        name: of the benchmark, a key of `BENCHMARKS`.
        judge: grades the answers of a benchmark whose score needs a judge.

    Returns:
        The figures with their 95 % intervals over samples.

    Raises:
        BenchmarkError: the name is unknown, the data is not the benchmark's, or no answer could be graded.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise BenchmarkError(f"benchmark {name!r} is unknown: name one of {', '.join(BENCHMARKS)}")
    if judge is not None and benchmark.judge is None:
        raise BenchmarkError(f"{benchmark.title} is graded by rule: leave --judge-url out")
    scores = Scores(directory)
    records = source_records(scores, list(scores.table["id"]), decode=False)
    missing = [column for column in benchmark.needs if column not in records.column_names]
    if missing:
        raise BenchmarkError(f"{scores.run['data']} has no column {missing[0]!r}: {missing_data(name)}")
    rows = _rows(benchmark, records)
    rollouts = _rollouts(directory, [row["id"] for row in rows])
    notes = [f"{len(records) - len(rows):,} samples of other splits, or without an image, do not count"]
    notes = notes if len(rows) < len(records) else []
    if judge is not None and benchmark.judge is not None:
        how = f"the judge {judge.model}"
        grades_of_rows = _judged(judge, benchmark.judge, rows, rollouts)
        notes += _failures(judge)
    elif benchmark.rule is None:
        raise BenchmarkError(
            f"no rule can grade {benchmark.title}: its score needs a judge model. The completions are kept; run the "
            "same command with --judge-url and --judge-model"
        )
    else:
        how, rule = "rule", RULES.get(benchmark.rule)
        grades_of_rows = [
            [grade if rule is None else float(rule(text, row)) for text, grade in completions]
            for row, completions in zip(rows, rollouts, strict=True)
        ]
        if benchmark.judge is not None:
            notes.append(
                f"graded by rule: this is not {benchmark.title}'s score, which needs a judge model (--judge-url); "
                "free-text answers are graded as wrong more often"
            )
    graded = [
        (row, [grade for grade in grades if grade is not None])
        for row, grades in zip(rows, grades_of_rows, strict=True)
    ]
    graded = [(row, grades) for row, grades in graded if grades]
    if not graded:
        raise BenchmarkError(
            f"no answer of {benchmark.title} could be graded; {'; '.join(notes) or 'no sample counts'}"
        )
    figures = _figures(benchmark, graded)
    notes += _notes(name, benchmark, graded, figures)
    result = Result(benchmark.title, how, figures, notes)
    path = Path(directory) / BENCHMARK_FILE
    path.with_suffix(".new").write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)
    return result


def _golds(row: Mapping[str, Any]) -> list[str]:
    """Return all accepted answers of a row."""
    return row.get("answers") or as_list(row["solution"])


def grade_contained(completion: str, row: Row) -> bool:
    """Grade OCRBench: the text contains one of the answers; case, line breaks and spaces in formulas are ignored."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if row["category"] == _EXPRESSIONS else text.lower()

    text = plain(find_answer(completion).body)
    return any(plain(gold) in text for gold in _golds(row) if plain(gold))


def grade_yes_no(completion: str, row: Row) -> bool:
    """Grade HallusionBench: the answer says yes or no; if it says both, its first word counts."""
    answer = find_answer(completion)
    for text in (answer.text, answer.body):
        words = re.findall(r"[a-z]+", text.lower())
        choices = {"yes", "no"} & set(words)
        if len(choices) == 1 or words[:1] in (["yes"], ["no"]):
            return (choices.pop() if len(choices) == 1 else words[0]) == row["solution"].strip().lower()
    return False


def grade_option(completion: str, row: Row) -> bool:
    """Grade MMStar: the right option, by letter or by text."""
    return grade_choice(completion, row["solution"], options=row["options"])


def grade_option_or_open(completion: str, row: Row) -> bool:
    """Grade MMMU: the right option, or without options a gold answer as the last number or as words of the text."""
    if row["options"]:
        return grade_option(completion, row)
    answer = find_answer(completion).text
    numbers, text = _NUMBER.findall(answer), normalise(answer)
    for gold in _golds(row):
        if _NUMBER.fullmatch(gold.strip()):
            if numbers and abs(_number(numbers[-1]) - _number(gold.strip())) < 0.005:
                return True
        elif normalise(gold) and re.search(rf"(?<!\w){re.escape(normalise(gold))}(?!\w)", text):
            return True
    return False


RULES: dict[str, Callable[[str, Row], bool]] = {
    "contained": grade_contained,
    "yes_no": grade_yes_no,
    "option": grade_option,
    "option_or_open": grade_option_or_open,
}


def _rows(benchmark: Benchmark, records: Dataset) -> list[dict[str, Any]]:
    """Return the samples that count, without their images."""
    kept = ["id", "prompt", "solution", "answers", "options", "image_headers", "split"]
    kept += [*benchmark.needs, *benchmark.groups]
    columns = [name for name in dict.fromkeys(kept) if name in records.column_names]
    rows = [dict(row) for row in records.select_columns(columns)]
    if benchmark.table == "MMMU_DEV_VAL":
        rows = [row for row in rows if row["split"] == benchmark.split]
    if benchmark.table == "HallusionBench":  # as VLMEvalKit counts; the original also has questions without an image
        rows = [row for row in rows if row["image_headers"]]
        malformed = next((row["index"] for row in rows if len(row["index"].split("_")) < 6), None)
        if malformed is not None:
            raise BenchmarkError(f"index {malformed!r} does not name set, figure and question: give VLMEvalKit's table")
    return rows


def _rollouts(directory: str | Path, samples: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Return completion and grade of each sample's rollouts on the unmasked image, in order."""
    with Store(directory) as store:
        return [
            [(rollout.completion, float(rollout.grade)) for rollout in store.rollouts(sample) if not rollout.ratio]
            for sample in samples
        ]


def first_completion(store: Store, sample: str) -> str | None:
    """Return the first completion of a sample on its unmasked image."""
    return next((rollout.completion for rollout in store.rollouts(sample) if not rollout.ratio), None)


def _judged(
    judge: Judge, kind: str, rows: Sequence[Row], rollouts: Sequence[Sequence[tuple[str, float]]]
) -> list[list[float | None]]:
    cases = [
        Case(user_text(row["prompt"]), row["solution"], text)
        for row, completions in zip(rows, rollouts, strict=True)
        for text, _ in completions
    ]
    verdicts = iter(judge.verdicts(kind, cases))
    return [[next(verdicts) for _ in completions] for completions in rollouts]


def _figures(benchmark: Benchmark, graded: Sequence[tuple[Row, list[float]]]) -> dict[str, Interval]:
    """Return the score, then the figures of each group."""
    interval = _marks if benchmark.judge == "score" else _shares
    figures = {}
    if benchmark.table == "HallusionBench":
        figures["aAcc (questions)"] = interval([grades for _, grades in graded])
        for name, part in (("fAcc (figures)", 4), ("qAcc (questions over their figures)", 5)):
            together: dict[tuple[str, str, str], list[list[float]]] = {}
            for row, grades in graded:
                parts = row["index"].split("_")
                together.setdefault((row["l2-category"], parts[3], parts[part]), []).append(grades)
            # with several rollouts, the first of each question belong together, then the second, …
            figures[name] = interval(
                [[min(question_grades) for question_grades in zip(*group, strict=True)] for group in together.values()]
            )
    else:
        figures["score"] = interval([grades for _, grades in graded])
    for column in benchmark.groups:
        groups: dict[str, list[list[float]]] = {}
        for row, grades in graded:
            for value in [part.strip() for item in as_list(row.get(column) or "") for part in item.split(",")]:
                groups.setdefault(value, []).append(grades)
        groups.pop("", None)
        figures |= {f"{column} {value}": interval(groups[value]) for value in sorted(groups)}
    return figures


def _shares(grades: Sequence[Sequence[float]]) -> Interval:
    return accuracy_interval(
        [int(sum(sample_grades)) for sample_grades in grades], [len(sample_grades) for sample_grades in grades]
    )


def _marks(grades: Sequence[Sequence[float]]) -> Interval:
    mean = mean_interval([sum(sample_grades) / len(sample_grades) for sample_grades in grades])
    return Interval(mean.value, max(mean.low, 0.0), min(mean.high, 1.0), mean.samples)


def _notes(
    name: str, benchmark: Benchmark, graded: Sequence[tuple[Row, list[float]]], figures: Mapping[str, Interval]
) -> list[str]:
    notes = []
    if name == "ocrbench":
        points = sum(sum(grades) / len(grades) for _, grades in graded)
        notes.append(f"OCRBench's score: {points:.4g} of {len(graded):,}")
    if name == "hallusionbench":
        aggregates = list(figures.values())[:3]
        notes.append(f"mean of aAcc, fAcc and qAcc: {sum(figure.value for figure in aggregates) / 3:.1%}")
    if len(graded) != benchmark.samples:
        notes.append(
            f"{len(graded):,} of the {benchmark.samples:,} samples of {benchmark.title}: not comparable with published "
            "scores"
        )
    return notes


def _failures(judge: Judge) -> list[str]:
    count = sum(judge.failed.values())
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in sorted(judge.failed.items()))
    note = f"{count:,} verdicts failed and do not count ({reasons}): run the same command to request them again"
    return [note] if count else []


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))
