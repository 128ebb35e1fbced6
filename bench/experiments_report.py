"""The results of bench/experiments/*.yaml: `python bench/experiments_report.py` → bench/results/experiments/.

Takes what `hardsample experiment` left in runs/experiments, whether it came to its end or not.
"""

from __future__ import annotations

import json
from pathlib import Path

from preparing import machine

from hardsample.figures import mean_intervals
from hardsample.trainer.experiment import laid_out
from hardsample.trainer.experiment_config import read_experiment
from hardsample.trainer.summary import summed_up

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "experiments"


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        config = read_experiment(path)
        if not (config.folder / "trainings").is_dir():
            continue
        plan, strata = laid_out(config)
        found = summed_up(config, plan, strata, {})
        comment = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        head = " ".join(line for line in comment if not line.startswith("hardsample"))
        command = f"hardsample experiment bench/experiments/{path.name} --jobs 2"
        page = (config.folder / "results.md").read_text().split("\n", 1)[1]
        text = f"# {path.stem}\n\n{head}\n\n`{command}`, {machine()}\n{page}\n![Accuracy by recipe]({path.stem}.png)\n"
        (RESULTS / f"{path.stem}.md").write_text(text)
        content = json.loads((config.folder / "results.json").read_text()) | {"command": command, "machine": machine()}
        (RESULTS / f"{path.stem}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        rows = [
            (
                " · ".join(part for part in (row.recipe, row.setting[2], row.setting[1]) if part and part != "plain"),
                *mean,
            )
            for row in found.rows
            if row.accuracy
            for mean in [(row.accuracy.value, row.accuracy.low, row.accuracy.high, list(row.values.values()))]
        ]
        if rows:
            mean_intervals(rows, found.base, f"Experiment {path.stem}").savefig(RESULTS / f"{path.stem}.png", dpi=110)
        print(path.stem, len(rows), "rows")


if __name__ == "__main__":
    main()
