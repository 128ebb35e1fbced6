"""Tables and plots of the arena: `python bench/arena/report.py` reads the cells and writes README.md beside them.

Three measures of a method against uniform draws, on the same seeds: the accuracy at the end; the mean accuracy while
training (area under the curve over rollouts); and the share of uniform's rollouts after which the seeds' mean curve
reaches uniform's final accuracy. Each also as a share of what the oracle gains, which draws only questions that had
both outcomes before training.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

RESULTS = Path(__file__).parents[1] / "results" / "arena"
RESAMPLES = 4000
INTRODUCTION = """# The arena: which prompts to roll out

Cells by `python bench/arena/run.py`, this page by `python bench/arena/report.py`. GRPO of the demo model on a pool in
which a question is met once or never; T = 1, learning rate 7e-5, float32, vision tower frozen; accuracy at T = 0.7 on
the first 400 of `demo:test`, six rollouts each. Intervals are 95 %: t over seeds for differences, bootstrap over seeds
for shares (few seeds: read them as rough).

- *oracle*: draws only questions that had both right and wrong answers in 8 rollouts before training, which are not
  counted: the bound of what choosing can win.
- *rollouts to uniform's end*: share of the rollouts after which the mean curve reaches uniform's final accuracy (linear
  between measurements); *saving, of the oracle's*: (1 − that) over (1 − the oracle's).
- *besides training*: what a method needs before training (a prefill costs about as much as one rollout's first token).
""".splitlines()
Cells = dict[int, dict]
"""Seed → cell."""


def read(folder: Path) -> dict[str, dict[str, Cells]]:
    """Return the cells by environment, method and seed."""
    cells: dict[str, dict[str, Cells]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*-seed*.json")):
        cell = json.loads(path.read_text())
        cells[cell["environment"]][cell["method"]][cell["seed"]] = cell
    return cells


def curves(cells: Cells, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rollouts (points,) and accuracies (seeds, points)."""
    rollouts = np.array([row["rollouts"] for row in cells[seeds[0]]["rows"]], dtype=float)
    return rollouts, np.array([[row["accuracy"] for row in cells[seed]["rows"]] for seed in seeds])


def area(rollouts: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Return the mean accuracy while training."""
    return np.trapezoid(accuracy, rollouts, axis=-1) / (rollouts[-1] - rollouts[0])


def reached(rollouts: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """Return the rollouts at which a curve first reaches the target, linear between points; inf if it does not."""
    for index in range(1, len(rollouts)):
        if accuracy[index] >= target:
            low, high = accuracy[index - 1], accuracy[index]
            share = 1.0 if high <= low else np.clip((target - low) / (high - low), 0, 1)
            return float(rollouts[index - 1] + share * (rollouts[index] - rollouts[index - 1]))
    return float("inf")


def half_width(values: np.ndarray) -> float:
    """Return half of the 95 % t interval of the mean."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def compare(method: Cells, uniform: Cells, oracle: Cells | None) -> dict:
    """Return what a method gains over uniform, on the seeds that both have."""
    seeds = sorted(set(method) & set(uniform) & (set(oracle) if oracle else set(method)))
    points, mine = curves(method, seeds)
    _, base = curves(uniform, seeds)
    best = curves(oracle, seeds)[1] if oracle else None
    gains = area(points, mine) - area(points, base)
    ends = mine[:, -1] - base[:, -1]
    rng, shares, saved = np.random.default_rng(0), [], []
    for draw in (np.arange(len(seeds)), *rng.integers(0, len(seeds), (RESAMPLES, len(seeds)))):
        target = base[draw, -1].mean()
        share = min(reached(points, mine[draw].mean(0), target) / points[-1], 1.5)
        shares.append(share)
        if best is not None:
            most = 1 - min(reached(points, best[draw].mean(0), target) / points[-1], 1.5)
            saved.append((1 - share) / most if most > 0.02 else np.nan)
    result = {
        "seeds": seeds,
        "end": float(ends.mean()),
        "end_half": half_width(ends),
        "area": float(gains.mean()),
        "area_half": half_width(gains),
        "share": shares[0],
        "share_interval": np.quantile(shares[1:], [0.025, 0.975]).tolist(),
        "zero_std": float(np.mean([np.mean(method[seed]["frac_zero_std"]) for seed in seeds])),
        "seconds": float(np.mean([method[seed]["rows"][-1]["seconds"] for seed in seeds])),
        "extra": method[seeds[0]]["extra"],
        "met": float(np.mean([method[seed]["samples_met"] for seed in seeds])),
        "final": float(mine[:, -1].mean()),
    }
    if best is not None:
        oracle_gain = (area(points, best) - area(points, base)).mean()
        result["area_of_oracle"] = float(gains.mean() / oracle_gain) if abs(oracle_gain) > 1e-4 else None
        result["saved_of_oracle"] = saved[0] if np.isfinite(saved[0]) else None
        kept = [value for value in saved[1:] if np.isfinite(value)]
        result["saved_interval"] = np.quantile(kept, [0.025, 0.975]).tolist() if kept else None
    return result


def table(environment: str, methods: dict[str, Cells]) -> tuple[list[str], dict]:
    """Return the lines of an environment's section, and its numbers."""
    uniform, oracle = methods["uniform"], methods.get("oracle")
    numbers = {name: compare(cells, uniform, oracle) for name, cells in methods.items()}
    steps = len(next(iter(uniform.values()))["frac_zero_std"])
    lines = [
        f"## demo:{environment}",
        "",
        f"{steps} steps of 8 prompts × 8 completions; seeds {', '.join(map(str, numbers['uniform']['seeds']))}.",
        "",
        "| method | final accuracy | final − uniform | mean while training − uniform | of the oracle's | rollouts to "
        "uniform's end | saving, of the oracle's | groups without signal | samples met | besides training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in numbers.items():
        low, high = row["share_interval"]
        besides = [f"{count:,} {kind}" for kind, count in row["extra"].items() if count]
        cells = [
            name,
            f"{row['final']:.1%}",
            f"{100 * row['end']:+.1f} ± {100 * row['end_half']:.1f}",
            f"{100 * row['area']:+.1f} ± {100 * row['area_half']:.1f}",
            "–" if row.get("area_of_oracle") is None or name == "uniform" else f"{row['area_of_oracle']:.0%}",
            f"{row['share']:.0%} [{low:.0%}, {high:.0%}]",
            "–"
            if row.get("saved_of_oracle") is None or name == "uniform"
            else f"{row['saved_of_oracle']:.0%} [{row['saved_interval'][0]:.0%}, {row['saved_interval'][1]:.0%}]",
            f"{row['zero_std']:.0%}",
            f"{row['met']:.0f}",
            ", ".join(besides) or "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""], numbers


def plot(environment: str, methods: dict[str, Cells], path: Path) -> None:
    """Plot accuracy and groups without signal over rollouts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for index, (name, cells) in enumerate(methods.items()):
        seeds = sorted(set(cells) & set(methods["uniform"]))
        rollouts, accuracy = curves(cells, seeds)
        color = "black" if name == "uniform" else "grey" if name == "oracle" else f"C{index}"
        style = "--" if name in ("uniform", "oracle") else "-"
        error = [half_width(column) for column in accuracy.T]
        left.errorbar(
            rollouts, 100 * accuracy.mean(0), 100 * np.array(error), color=color, ls=style, label=name, capsize=2
        )
        idle = np.mean([cells[seed]["frac_zero_std"] for seed in seeds], axis=0)
        smooth = np.convolve(idle, np.ones(5) / 5, mode="valid")
        right.plot(np.arange(len(smooth)) + 3, 100 * smooth, color=color, ls=style)
    left.set(xlabel="rollouts of training", ylabel="held-out accuracy, %", title=f"demo:{environment}")
    right.set(xlabel="step", ylabel="groups without signal, % (mean of 5 steps)", ylim=(0, 100))
    left.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5, 10)))
    arguments = parser.parse_args()
    lines, everything = [], {}
    for environment, methods in read(arguments.results).items():
        kept = {
            name: {seed: cell for seed, cell in cells.items() if seed in arguments.seeds}
            for name, cells in methods.items()
        }
        order = sorted(
            (name for name in kept if kept[name]), key=lambda name: (name != "uniform", name != "oracle", name)
        )
        kept = {name: kept[name] for name in order}
        if "uniform" not in kept:
            continue
        section, everything[environment] = table(environment, kept)
        plot(environment, kept, arguments.results / f"{environment}.png")
        lines += [*section, f"![{environment}]({environment}.png)", ""]
    (arguments.results / "arena.json").write_text(json.dumps(everything, indent=1) + "\n")
    (arguments.results / "README.md").write_text("\n".join([*INTRODUCTION, *lines]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
