"""The results of bench/experiments/*.yaml: `python bench/experiments_report.py` → bench/results/experiments/.

Takes what `hardsample experiment` left in runs/experiments, whether it came to its end or not: a page, a plot and JSON
for each, and README.md, which begins with bench/experiments/findings.md and has the comparisons of all.
"""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path

from preparing import machine

from hardsample.report.parts.figures import mean_intervals
from hardsample.trainer.experiment.config import read_experiment
from hardsample.trainer.experiment.results import name_of, shown
from hardsample.trainer.experiment.runner import laid_out
from hardsample.trainer.experiment.summary import Results, summed_up

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "experiments"


def main() -> None:
    """Writes everything anew."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    pages = []
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        config = read_experiment(path)
        if not (config.folder / "trainings").is_dir():
            continue
        plan, strata = laid_out(config)
        found = summed_up(config, plan, strata, {})
        if any(row.accuracy for row in found.rows):
            head, command = said_above(path)
            write(path.stem, found, head, command)
            pages.append(section(path.stem, found, head))
            print(path.stem, f"{sum(len(row.values) for row in found.rows)} cells")
    findings = (ROOT / "experiments" / "findings.md").read_text().strip()
    (RESULTS / "README.md").write_text("\n\n".join([findings, *pages]) + "\n")


def said_above(path: Path) -> tuple[str, str]:
    """What a config says of itself above its options: in words up to the commands, and the commands."""
    lines = [line.removeprefix("#") for line in path.read_text().splitlines() if line.startswith("#")]
    commands = [line.strip() for line in lines if line.startswith("     ")]
    words = takewhile(lambda line: not line.startswith("     "), lines)
    return " ".join(line.strip() for line in words).removesuffix(":") + ".", "\n".join(commands)


def write(name: str, found: Results, head: str, command: str) -> None:
    """The page, the plot and the JSON of one experiment."""
    content = json.loads((found.folder / "results.json").read_text())
    (RESULTS / f"{name}.json").write_text(
        json.dumps(content | {"command": command, "machine": machine()}, indent=1, ensure_ascii=False) + "\n"
    )
    page = (found.folder / "results.md").read_text().split("\n", 1)[1]
    top = f"# {name}\n\n{head}\n\n```\n{command}\n```\n\nMachine: {machine()}.\n"
    (RESULTS / f"{name}.md").write_text(f"{top}{page}\n![Accuracy by recipe]({name}.png)\n")
    rows = [
        (name_of(row, found.rows), row.accuracy.value, row.accuracy.low, row.accuracy.high, list(row.values.values()))
        for row in found.rows
        if row.accuracy
    ]
    mean_intervals(rows, found.base, f"Experiment {name}").savefig(RESULTS / f"{name}.png", dpi=110)


def section(name: str, found: Results, head: str) -> str:
    """An experiment in the README: what it is, every comparison, its plot."""
    lines = [f"## {name}", "", head, "", f"[Page]({name}.md), [JSON]({name}.json).", ""]
    lines += ["| | minus | points, 95 % interval | seeds | p | by Holm |", "|---|---|---|---|---|---|"]
    for one in found.differences:
        what = f"{'**primary** ' if one.primary else ''}{name_of(one.row, found.rows)}"
        numbers = [f"{value:.2g}" if value is not None else "" for value in (one.p, one.corrected)]
        lines.append(
            f"| {what} | {name_of(one.against, found.rows)} | {shown(one.difference, signed=True)} | "
            f"{one.difference.samples} | {' | '.join(numbers)} |"
        )
    return "\n".join([*lines, "", f"![Accuracy by recipe]({name}.png)"])


if __name__ == "__main__":
    main()
