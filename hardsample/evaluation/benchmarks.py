"""Named benchmarks: which data each needs, how its answers are graded, and what its score means.

A preset is a row of `BENCHMARKS`. It reads the completions that an evaluation left in its folder, so grading again
costs no rollout. Where a benchmark's answers can be graded by rule, that is done here; where its score needs a judge
model, it is said, and one is asked if a URL is given.
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
    """The data is not the benchmark's, or its score cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Result:
    """A graded benchmark."""

    benchmark: str
    how: str
    """By what the answers were graded."""
    figures: dict[str, Interval]
    """Name → value and interval; the first is the score."""
    notes: list[str]
    """What to know of the numbers."""


def missing_data(name: str) -> str:
    """What to get, and where, before a benchmark can be evaluated."""
    known = BENCHMARKS[name]
    return (
        f"{known.title} needs its data: get {TABLE_URL.format(known.table)} ({known.samples:,} samples count; the "
        f"original is {known.hub} on the hub, split {known.split}), then: hardsample evaluate {known.table}.tsv "
        f"--benchmark {name} --model MODEL --output DIR"
    )


def grade_benchmark(directory: str | Path, name: str, judge: Judge | None = None) -> Result:
    """Grades an evaluated folder as a benchmark does, by its rules or by a judge; writes benchmark.json into it.

    Args:
        directory: of a finished evaluation of the benchmark's table.
        name: of the benchmark, a key of `BENCHMARKS`.
        judge: who is asked, for a benchmark whose score needs a judge.

    Returns:
        The figures with their 95 % intervals over samples.

    Raises:
        BenchmarkError: the name is unknown, the data is not the benchmark's, or no answer could be graded.
    """
    known = BENCHMARKS.get(name)
    if known is None:
        raise BenchmarkError(f"benchmark {name!r} is unknown: name one of {', '.join(BENCHMARKS)}")
    if judge is not None and known.judge is None:
        raise BenchmarkError(f"{known.title} is graded by rule: leave --judge-url out")
    scores = Scores(directory)
    records = source_records(scores, list(scores.table["id"]), decode=False)
    lacking = [column for column in known.needs if column not in records.column_names]
    if lacking:
        raise BenchmarkError(f"{scores.run['data']} has no column {lacking[0]!r}: {missing_data(name)}")
    rows = _rows(known, records)
    rollouts = _rollouts(directory, [row["id"] for row in rows])
    notes = [f"{len(records) - len(rows):,} samples of other splits, or without an image, do not count"]
    notes = notes if len(rows) < len(records) else []
    if judge is not None and known.judge is not None:
        how = f"the judge {judge.model}"
        worths = _judged(judge, known.judge, rows, rollouts)
        notes += _failures(judge)
    elif known.rule is None:
        raise BenchmarkError(
            f"no rule can grade {known.title}: its score needs a judge model. The completions are kept; give the same "
            "command with --judge-url and --judge-model"
        )
    else:
        how, rule = "rule", RULES.get(known.rule)
        worths = [
            [grade if rule is None else float(rule(text, row)) for text, grade in made]
            for row, made in zip(rows, rollouts, strict=True)
        ]
        if known.judge is not None:
            notes.append(
                f"graded by rule: this is not {known.title}'s score, which needs a judge model (--judge-url); answers "
                "in free text count as wrong more often"
            )
    graded = [(row, [one for one in found if one is not None]) for row, found in zip(rows, worths, strict=True)]
    graded = [(row, found) for row, found in graded if found]
    if not graded:
        raise BenchmarkError(f"no answer of {known.title} could be graded; {'; '.join(notes) or 'no sample counts'}")
    figures = _figures(known, graded)
    notes += _notes(name, known, graded, figures)
    result = Result(known.title, how, figures, notes)
    path = Path(directory) / BENCHMARK_FILE
    path.with_suffix(".new").write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)
    return result


def _golds(row: Mapping[str, Any]) -> list[str]:
    """All accepted answers of a row."""
    return row.get("answers") or as_list(row["solution"])


def grade_contained(completion: str, row: Row) -> bool:
    """OCRBench: one of the answers is contained in the text; case and line breaks do not count, in formulas spaces."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if row["category"] == _EXPRESSIONS else text.lower()

    text = plain(find_answer(completion).body)
    return any(plain(gold) in text for gold in _golds(row) if plain(gold))


def grade_yes_no(completion: str, row: Row) -> bool:
    """HallusionBench: the answer says yes or no, and not both; where it says both, its first word counts."""
    found = find_answer(completion)
    for text in (found.text, found.body):
        words = re.findall(r"[a-z]+", text.lower())
        said = {"yes", "no"} & set(words)
        if len(said) == 1 or words[:1] in (["yes"], ["no"]):
            return (said.pop() if len(said) == 1 else words[0]) == row["solution"].strip().lower()
    return False


def grade_option(completion: str, row: Row) -> bool:
    """MMStar: the right option, by letter or by text."""
    return grade_choice(completion, row["solution"], options=row["options"])


def grade_option_or_open(completion: str, row: Row) -> bool:
    """MMMU: the right option; without options one of the answers, as the last number or as words of the answer."""
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


def _rows(known: Benchmark, records: Dataset) -> list[dict[str, Any]]:
    """The samples that count, without their images."""
    kept = ("id", "prompt", "solution", "answers", "options", "image_headers", "split", *known.needs, *known.groups)
    columns = [name for name in dict.fromkeys(kept) if name in records.column_names]
    rows = [dict(row) for row in records.select_columns(columns)]
    if known.table == "MMMU_DEV_VAL":
        rows = [row for row in rows if row["split"] == known.split]
    if known.table == "HallusionBench":  # as VLMEvalKit counts; the original has questions without an image too
        rows = [row for row in rows if row["image_headers"]]
        strange = next((row["index"] for row in rows if len(row["index"].split("_")) < 6), None)
        if strange is not None:
            raise BenchmarkError(f"index {strange!r} names no set, figure and question: give VLMEvalKit's table")
    return rows


def _rollouts(directory: str | Path, samples: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Completion and grade of each sample's rollouts on whole images, in order."""
    with Store(directory) as store:
        return [
            [(one.completion, float(one.grade)) for one in store.rollouts(name) if not one.ratio] for name in samples
        ]


def first_completion(store: Store, sample: str) -> str | None:
    """The first rollout of a sample on its whole image."""
    return next((one.completion for one in store.rollouts(sample) if not one.ratio), None)


def _judged(
    judge: Judge, kind: str, rows: Sequence[Row], rollouts: Sequence[Sequence[tuple[str, float]]]
) -> list[list[float | None]]:
    cases = [
        Case(user_text(row["prompt"]), row["solution"], text)
        for row, made in zip(rows, rollouts, strict=True)
        for text, _ in made
    ]
    found = iter(judge.verdicts(kind, cases))
    return [[next(found) for _ in made] for made in rollouts]


def _figures(known: Benchmark, graded: Sequence[tuple[Row, list[float]]]) -> dict[str, Interval]:
    """The score first, then each group's."""
    interval = _marks if known.judge == "score" else _shares
    figures = {}
    if known.table == "HallusionBench":
        figures["aAcc (questions)"] = interval([found for _, found in graded])
        for name, part in (("fAcc (figures)", 4), ("qAcc (questions over their figures)", 5)):
            together: dict[tuple[str, str, str], list[list[float]]] = {}
            for row, found in graded:
                parts = row["index"].split("_")
                together.setdefault((row["l2-category"], parts[3], parts[part]), []).append(found)
            # of several rollouts, the first of each question belong together, then the second, …
            figures[name] = interval([[min(ones) for ones in zip(*group, strict=True)] for group in together.values()])
    else:
        figures["score"] = interval([found for _, found in graded])
    for column in known.groups:
        groups: dict[str, list[list[float]]] = {}
        for row, found in graded:
            for value in [part.strip() for item in as_list(row.get(column) or "") for part in item.split(",")]:
                groups.setdefault(value, []).append(found)
        groups.pop("", None)
        figures |= {f"{column} {value}": interval(groups[value]) for value in sorted(groups)}
    return figures


def _shares(found: Sequence[Sequence[float]]) -> Interval:
    return accuracy_interval([int(sum(ones)) for ones in found], [len(ones) for ones in found])


def _marks(found: Sequence[Sequence[float]]) -> Interval:
    mean = mean_interval([sum(ones) / len(ones) for ones in found])
    return Interval(mean.value, max(mean.low, 0.0), min(mean.high, 1.0), mean.samples)


def _notes(
    name: str, known: Benchmark, graded: Sequence[tuple[Row, list[float]]], figures: Mapping[str, Interval]
) -> list[str]:
    notes = []
    if name == "ocrbench":
        points = sum(sum(found) / len(found) for _, found in graded)
        notes.append(f"OCRBench's score: {points:.4g} of {len(graded):,}")
    if name == "hallusionbench":
        three = list(figures.values())[:3]
        notes.append(f"mean of aAcc, fAcc and qAcc: {sum(one.value for one in three) / 3:.1%}")
    if len(graded) != known.samples:
        notes.append(
            f"{len(graded):,} of the {known.samples:,} samples of {known.title}: not comparable with its table"
        )
    return notes


def _failures(judge: Judge) -> list[str]:
    count = sum(judge.failed.values())
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in sorted(judge.failed.items()))
    said = f"{count:,} verdicts could not be had and do not count ({reasons}): the same command asks for them again"
    return [said] if count else []


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))
