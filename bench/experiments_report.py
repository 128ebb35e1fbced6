"""Write the results of bench/experiments/*.yaml: `python bench/experiments_report.py` → bench/results/experiments/.

For each experiment a page, a plot and JSON, and README.md, which begins with bench/experiments/findings.md and has the
comparisons of all. What `hardsample experiment` left in runs/experiments comes first, whether it finished or not;
without it the pages are written again from the stored JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from preparing import machine

from hardsample.files import RESULTS_FILE
from hardsample.metrics.intervals import Interval
from hardsample.report.parts.figures import mean_intervals
from hardsample.trainer.experiment.config import read_experiment
from hardsample.trainer.experiment.results import Difference, Row, markdown, name_of, shown
from hardsample.trainer.experiment.runner import laid_out
from hardsample.trainer.experiment.summary import summed_up

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "experiments"


@dataclass(frozen=True)
class Results:
    """The stored results of one experiment."""

    rows: list[Row]
    differences: list[Difference]
    base: float | None
    notes: list[str]
    machine: str


def main() -> None:
    """Write every page anew."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    pages = []
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        head, command = description(path)
        content = collect(path, command)
        if content is None:
            continue
        results = parse(content)
        write_page(path.stem, results, head, command)
        pages.append(section(path.stem, results, head))
        print(path.stem, f"{sum(len(row.values) for row in results.rows)} cells")
    findings = (ROOT / "experiments" / "findings.md").read_text().strip()
    (RESULTS / "README.md").write_text("\n\n".join([findings, *pages]) + "\n")


def description(path: Path) -> tuple[str, str]:
    """Return the comment above a config's options: its sentence up to the commands, and the commands."""
    lines = [line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#")]
    commands = [line.strip() for line in lines if line.startswith("     ")]
    words = takewhile(lambda line: not line.startswith("     "), lines)
    return " ".join(line.strip() for line in words).removesuffix(":") + ".", "\n".join(commands)


def collect(path: Path, command: str) -> Mapping[str, Any] | None:
    """Store an experiment's results if its folder is here, and return what is stored.

    Returns:
        The stored JSON; None if nothing is stored and nothing was run.
    """
    config = read_experiment(path)
    stored = RESULTS / f"{path.stem}.json"
    if (config.folder / "trainings").is_dir():
        plan, strata = laid_out(config)
        if any(row.accuracy for row in summed_up(config, plan, strata, {}).rows):
            content = json.loads((config.folder / RESULTS_FILE).read_text())
            content |= {"command": command, "machine": machine()}
            stored.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return json.loads(stored.read_text()) if stored.exists() else None


def parse(content: Mapping[str, Any]) -> Results:
    """Read the JSON that `hardsample.trainer.experiment.results.as_json` made."""
    rows = {key(row): parse_row(row) for row in content["rows"]}
    differences = [
        Difference(
            rows[key(pair["row"])],
            rows[key(pair["against"])],
            parse_interval(pair["difference"]),
            pair["p"],
            pair["p_holm"],
            pair["primary"],
        )
        for pair in content["comparisons"]
    ]
    return Results(list(rows.values()), differences, content["base"], content["notes"], content["machine"])


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from the others."""
    return row["budget"], row["variant"], row["metric"], row["recipe"]


def parse_row(row: Mapping[str, Any]) -> Row:
    """Read one row of the table."""
    return Row(
        (row["budget"], row["variant"], row["metric"]),
        row["recipe"],
        parse_interval(row["accuracy"]) if row["accuracy"] else None,
        {int(seed): value for seed, value in row["by_seed"].items()},
        row["rollouts"],
        row["tokens"],
        row["seconds"],
        tuple(row["samples"]),
        tuple(row["notes"]),
    )


def parse_interval(numbers: Mapping[str, Any]) -> Interval:
    """Read an interval; that of a single seed has no bounds."""
    low, high = numbers["low"], numbers["high"]
    return Interval(
        numbers["mean"], -math.inf if low is None else low, math.inf if high is None else high, numbers["seeds"]
    )


def write_page(name: str, results: Results, head: str, command: str) -> None:
    """Write the page and the plot of one experiment."""
    page = markdown(name, results.rows, results.differences, results.base, results.notes).split("\n", 1)[1]
    top = f"# {name}\n\n{head}\n\n```\n{command}\n```\n\nMachine: {results.machine}.\n"
    (RESULTS / f"{name}.md").write_text(f"{top}{page}\n![Accuracy by recipe]({name}.png)\n")
    rows = [
        (name_of(row, results.rows), row.accuracy.value, row.accuracy.low, row.accuracy.high, list(row.values.values()))
        for row in results.rows
        if row.accuracy
    ]
    mean_intervals(rows, results.base, f"Experiment {name}").savefig(RESULTS / f"{name}.png", dpi=110)


def section(name: str, results: Results, head: str) -> str:
    """Return an experiment's part of the README: its description, every comparison, its plot."""
    lines = [f"## {name}", "", head, "", f"[Page]({name}.md), [JSON]({name}.json).", ""]
    lines += ["| | minus | points, 95 % interval | seeds | p | by Holm |", "|---|---|---|---|---|---|"]
    for pair in results.differences:
        label = f"{'**primary** ' if pair.primary else ''}{name_of(pair.row, results.rows)}"
        numbers = [f"{value:.2g}" if value is not None else "" for value in (pair.p, pair.corrected)]
        lines.append(
            f"| {label} | {name_of(pair.against, results.rows)} | {shown(pair.difference, signed=True)} | "
            f"{pair.difference.samples} | {' | '.join(numbers)} |"
        )
    return "\n".join([*lines, "", f"![Accuracy by recipe]({name}.png)"])


if __name__ == "__main__":
    main()
