r"""Does the grader take right answers and refuse wrong ones? Every gold of some data, in many dressings; and how fast.

    python bench/grading.py ../shared/data/dev/dev.jsonl [MORE DATA …] [--image-root DIR] [--save NAME]

A gold is written as models write answers (bare, in a box, in a tag, bold, in a sentence, by letter, by text, …), and so
are wrong answers made from the record itself: every other option, two letters, a denied letter, the number plus one.
The report says for each grader and dressing how many right answers were taken and how many wrong ones were refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hardsample.data.loading import load
from hardsample.grading.choices import read_choices
from hardsample.grading.grader import Grader
from hardsample.grading.parsing.answers import unwrap_solution
from hardsample.grading.parsing.option_names import option_texts
from hardsample.scoring.rollouts import gradable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DRESSINGS = {
    "bare": "{}",
    "boxed": r"\boxed{{{}}}",
    "tag": "<answer>{}</answer>",
    "sentence": "The answer is {}.",
    "bold": "**{}**",
    "after thinking": "<thinking>First I thought it was 123456789.</thinking>\n{}",
    "GLM's box": "<|begin_of_box|>{}<|end_of_box|>",
}
BY_LETTER = {
    "letter": "{0}",
    "(letter)": "({0})",
    "letter: text": "{0}: {1}",
    "letter. text": "{0}. {1}",
    "sentence, letter": "The answer is {0}.",
    "sentence, why": "The answer is ({0}) because it fits.",
    "boxed letter": r"\boxed{{{0}}}",
    "bold letter": "**{0}**",
    "letter, then why": "{0}\n\nIt fits.",
    "letter is correct": "{0} is correct.",
    "Chinese": "因此选{0}。",
}
TWO_LETTERS = ("{0}, {1}", "{0} or {1}", "{0} and {1}", r"\boxed{{{0}, {1}}}", "({0}) ({1})", "neither {0} nor {1}")


class Case(NamedTuple):
    """One completion made for a record, and whether it is right."""

    dressing: str
    completion: str
    right: bool


def cases(record: Mapping[str, Any]) -> Iterator[Case]:
    """Dress a record's gold, and wrong answers made from the record.

    Args:
        record: a canonical record.

    Yields:
        Completions with the verdict that they deserve.
    """
    for solution in record.get("answers") or [record["solution"]]:
        gold = unwrap_solution(solution)
        yield from (Case(name, form.format(gold), True) for name, form in DRESSINGS.items())
    if record["grader"] == "choice" and record["options"]:
        yield from _options(record)
    if record["grader"] in ("math", "counting") and (other := _plus_one(gold)) is not None:
        yield from (Case(f"plus one, {name}", form.format(other), False) for name, form in DRESSINGS.items())


def _options(record: Mapping[str, Any]) -> Iterator[Case]:
    texts = option_texts(tuple(record["options"]))
    golds = read_choices(unwrap_solution(record["solution"]), record["options"], prose=False) or frozenset()
    alone = len(golds) == 1
    for index, text in enumerate(texts):
        right = alone and index in golds
        for name, form in BY_LETTER.items():
            yield Case(name, form.format(LETTERS[index], text), right)
        unlike_markup = text.strip("*_` ") == text.strip() and texts.count(text) == 1
        if unlike_markup:
            yield from (Case(f"text, {name}", form.format(text), right) for name, form in DRESSINGS.items())
        yield Case("denied", f"not {LETTERS[index]}", False)
        for other in range(index + 1, len(texts)):
            for form in TWO_LETTERS:
                both = golds == {index, other} and "or" not in form
                yield Case("two letters", form.format(LETTERS[index], LETTERS[other]), both)


def _plus_one(gold: str) -> str | None:
    try:
        value = float(gold.replace(",", ""))
    except ValueError:
        return None
    return str(int(value) + 1) if value.is_integer() else str(value + 1)


def confusion(
    records: Iterable[Mapping[str, Any]], grader: Grader
) -> tuple[Counter[tuple[str, str, bool, bool]], list[str]]:
    """Grade all cases of all records.

    Args:
        records: canonical records.
        grader: what grades them.

    Returns:
        Counts by grader, dressing, whether right and whether graded right; and each mistake in words.
    """
    counts: Counter[tuple[str, str, bool, bool]] = Counter()
    mistakes: list[str] = []
    for record in records:
        made = list(cases(record))
        known = gradable(record, None)
        for case, verdict in zip(made, grader.grade_many([(case.completion, known) for case in made]), strict=True):
            counts[record["grader"], case.dressing, case.right, verdict] += 1
            if verdict != case.right:
                outcome = "refused" if case.right else "ACCEPTED"
                mistakes.append(
                    f"{outcome}: {record['grader']}, gold {record['solution']!r}, options {record['options']}, "
                    f"{case.completion!r}"
                )
    return counts, mistakes


SPEED = {
    "choice": (
        {"grader": "choice", "options": ["red", "green", "blue", "white"]},
        "B",
        "The answer is (B) green number {}.",
    ),
    "math, numbers": ({"grader": "math"}, "42", "So x is 3 + {0}.\nThe answer is {0}."),
    "math, formulas": ({"grader": "math"}, r"\frac{x+1}{2}", r"so it is \boxed{{\frac{{x+{}}}{{2}}}}"),
    "text": ({"grader": "text"}, "red lamp", "I see it well.\nIt is a red lamp {}."),
}


def speed(seconds: float = 3.0) -> dict[str, float]:
    """Measure how many different answers a second each grader does, one process.

    Args:
        seconds: for how long each is measured.

    Returns:
        Answers a second, by grader.
    """
    rates = {}
    with Grader() as grader:
        for name, (record, solution, form) in SPEED.items():
            known = record | {"solution": solution}
            grader.grade_many([(form.format(0), known)])
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                grader.grade_many([(form.format(count + i), known) for i in range(200)])
                count += 200
            rates[name] = count / (time.perf_counter() - began)
    return rates


def table(counts: Counter[tuple[str, str, bool, bool]]) -> list[str]:
    """Write the counts as a Markdown table."""
    lines = ["| grader | dressing | right, taken | wrong, refused |", "|---|---|---|---|"]
    for grader, dressing in sorted({key[:2] for key in counts}):
        taken, missed = counts[grader, dressing, True, True], counts[grader, dressing, True, False]
        refused, let_in = counts[grader, dressing, False, False], counts[grader, dressing, False, True]
        right = f"{taken} of {taken + missed}" if taken + missed else "–"
        wrong = f"{refused} of {refused + let_in}" if refused + let_in else "–"
        lines.append(f"| {grader} | {dressing} | {right} | {wrong} |")
    return lines


def main() -> None:
    """Print the report, and with --save write it to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="files that hardsample reads")
    parser.add_argument("--image-root", help="folder that their image paths start at")
    parser.add_argument("--save", help="name of the report in bench/results")
    arguments = parser.parse_args()
    counts: Counter[tuple[str, str, bool, bool]] = Counter()
    mistakes: list[str] = []
    with Grader() as grader:
        for data in arguments.data:
            loaded = load(data, image_root=arguments.image_root)
            more, more_mistakes = confusion(loaded.dataset, grader)
            counts += more
            mistakes += more_mistakes
    total = sum(counts.values())
    wrong = sum(count for (_, _, right, verdict), count in counts.items() if right != verdict)
    names = [Path(data).name for data in arguments.data]
    lines = [
        "# Grading",
        "",
        f"`python bench/grading.py` over {', '.join(names) or 'no data'}: "
        f"{total - wrong:,} of {total:,} as they should be.",
        "",
    ]
    lines += table(counts) if counts else []
    lines += ["", "Answers a second, one process:", "", "| grader | answers/s |", "|---|---|"]
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in speed().items()]
    lines += ["", *(f"- {mistake}" for mistake in mistakes)] if mistakes else []
    print("\n".join(lines))
    if arguments.save:
        (Path(__file__).parent / "results" / f"{arguments.save}.md").write_text("\n".join(lines) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
