"""The table and the curves of bench/policies.py: `python bench/policies_report.py` → bench/results/policies/.

Means over seeds with 95 % intervals (t, n − 1 degrees of freedom); differences are paired by seed with uniform.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results" / "policies"
SCORING = {"subset": 8258, "pool": 83510}
"""Rollouts that scoring a set took, see runs/policies/scores-*/run.json."""
CHOOSING, REPORTED = range(5), range(5, 10)
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles .975 of t with 1 … 9 degrees of freedom."""
COLOURS = ("#444444", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Cells = dict[tuple[str, str], dict[int, dict]]


def cells() -> Cells:
    """Return all cells that are done, by (set, setting), then by seed."""
    cells_by_setting: Cells = defaultdict(dict)
    for path in sorted(RESULTS.glob("*-seed*.json")):
        cell = json.loads(path.read_text())
        cells_by_setting[cell["set"], cell["setting"]][cell["seed"]] = cell
    return cells_by_setting


def curve(cell: dict) -> list[float]:
    """Return the accuracy at each measurement."""
    return [row["accuracy"]["all"] for row in cell["rows"]]


def final(cell: dict) -> float:
    return curve(cell)[-1]


def area(cell: dict) -> float:
    """Return the mean accuracy while training, without the first measurement, which all cells share."""
    return fmean(curve(cell)[1:])


def frac_zero_std(cell: dict) -> float:
    return fmean(cell["frac_zero_std"])


def interval(values: list[float]) -> tuple[float, float]:
    """Return (mean, half-width of the 95 % interval)."""
    if len(values) < 2:
        return fmean(values), float("nan")
    return fmean(values), T95[len(values) - 2] * stdev(values) / len(values) ** 0.5


def shown(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def rollouts_to(level: float, cell: dict) -> float | None:
    """Return the rollouts after which a cell first reaches an accuracy, interpolated linearly; None if never."""
    before = cell["rows"][0]
    for row in cell["rows"][1:]:
        high, low = row["accuracy"]["all"], before["accuracy"]["all"]
        if high >= level:
            share = 1.0 if high == low else max(0.0, (level - low) / (high - low))
            return before["rollouts"] + share * (row["rollouts"] - before["rollouts"])
        before = row
    return None


def table(which: str, seeds: range, all_cells: Cells) -> list[str]:
    """Return one line for each setting."""
    uniform = all_cells.get((which, "uniform"), {})
    lines = [
        "| setting | seeds | final accuracy, % | minus uniform | mean accuracy while training, % | minus uniform | "
        "zero-variance groups, % | samples met | rollouts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (group, name), by_seed in sorted(all_cells.items(), key=lambda item: item[0][1] != "uniform"):
        if group != which:
            continue
        chosen = {seed: cell for seed, cell in by_seed.items() if seed in seeds}
        if not chosen:
            continue
        pairs = [(cell, uniform[seed]) for seed, cell in chosen.items() if seed in uniform]
        minus = [shown([f(a) - f(b) for a, b in pairs]) if pairs else "–" for f in (final, area)]
        some = list(chosen.values())
        rollouts = sum(some[0]["counters"][key] for key in ("rollouts", "probes", "monitor_rollouts"))
        if name == "uniform":
            minus = ["", ""]
        values = (
            name,
            len(chosen),
            shown([final(cell) for cell in some]),
            minus[0],
            shown([area(cell) for cell in some]),
            minus[1],
            shown([frac_zero_std(cell) for cell in some]),
            f"{fmean(cell['samples_met'] for cell in some):.0f}",
            f"{rollouts:,}",
        )
        lines.append(f"| {' | '.join(map(str, values))} |")
    return lines


def speed(which: str, seeds: range, all_cells: Cells) -> list[str]:
    """Return how soon each setting reaches the final accuracy of uniform, on the mean curves."""
    lines = [
        "| setting | rollouts to uniform's final accuracy | share of uniform's | with scoring's rollouts |",
        "|---|---|---|---|",
    ]
    uniform = [cell for seed, cell in all_cells.get((which, "uniform"), {}).items() if seed in seeds]
    if not uniform:
        return []
    level = fmean(final(cell) for cell in uniform)
    for (group, name), by_seed in sorted(all_cells.items()):
        chosen = [cell for seed, cell in by_seed.items() if seed in seeds]
        if group != which or not chosen:
            continue
        mean = {"rows": [mean_row([cell["rows"][index] for cell in chosen]) for index in range(len(chosen[0]["rows"]))]}
        reached = rollouts_to(level, mean)
        scores = SCORING.get(which, 0) if chosen[0]["options"].get("scores") else 0
        end = uniform[0]["rows"][-1]["rollouts"]
        if reached is None:
            lines.append(f"| {name} | not reached | – | – |")
        else:
            lines.append(f"| {name} | {reached:,.0f} | {reached / end:.0%} | {reached + scores:,.0f} |")
    return lines


def mean_row(rows: list[dict]) -> dict:
    return {
        "rollouts": fmean(row["rollouts"] for row in rows),
        "accuracy": {"all": fmean(row["accuracy"]["all"] for row in rows)},
    }


def plot(which: str, seeds: range, all_cells: Cells, path: Path) -> None:
    """Plot learning curves, over training's rollouts and with scoring's rollouts in front."""
    names = [name for group, name in sorted(all_cells, key=lambda key: key[1] != "uniform") if group == which]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for colour, name in zip(COLOURS, [n for n in names if any(s in seeds for s in all_cells[which, n])], strict=False):
        chosen = [cell for seed, cell in all_cells[which, name].items() if seed in seeds]
        indices = range(len(chosen[0]["rows"]))
        steps = [fmean(cell["rows"][index]["rollouts"] for cell in chosen) for index in indices]
        bands = [interval([100 * cell["rows"][index]["accuracy"]["all"] for cell in chosen]) for index in indices]
        for panel, before in zip(panels, (0, SCORING.get(which, 0)), strict=True):
            paid = before if chosen[0]["options"].get("scores") else 0
            x = [paid + step for step in steps]
            panel.plot(x, [mean for mean, _ in bands], color=colour, label=name, marker="o", markersize=3)
            panel.fill_between(
                x, [m - h for m, h in bands], [m + h for m, h in bands], color=colour, alpha=0.12, linewidth=0
            )
    panels[0].set_title("training's rollouts")
    panels[1].set_title("scoring's rollouts counted too")
    for panel in panels:
        panel.set_xlabel("rollouts")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out accuracy, % (mean, 95 % interval)")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    all_cells = cells()
    lines = [
        "# Which policy learns most from its rollouts?",
        "",
        "`python bench/policies.py` (cells), `python bench/policies_report.py` (this page). The demo model, vision",
        "tower frozen, GRPO with 16 prompts × 4 completions a step, 80 steps, learning rate 5e-5, T = 1, bf16 autocast",
        "on a CPU; accuracy at T = 0.7 on the first 600 questions of `demo:test`. Mean over seeds ± half of the 95 %",
        "interval (t, n − 1 degrees of freedom); differences are paired by seed.",
        "",
    ]
    for which, title in (
        ("subset", "500 questions, drawn beforehand"),
        ("pool", "All 5,100 questions: met once or never"),
    ):
        for seeds, what in ((REPORTED, "reported: seeds 5-9"), (CHOOSING, "for choosing settings: seeds 0-4")):
            if any(group == which and seed in seeds for (group, _), by in all_cells.items() for seed in by):
                lines += [f"## {title}; {what}", "", *table(which, seeds, all_cells), ""]
                quick = speed(which, seeds, all_cells)
                if quick:
                    lines += [*quick, ""]
                plot(which, seeds, all_cells, RESULTS / f"{which}-{seeds[0]}.png")
    RESULTS.joinpath("README.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
