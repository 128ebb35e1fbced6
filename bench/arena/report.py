"""Tables and plots of the arena: `python bench/arena/report.py` reads the cells and writes README.md beside them.

A method is compared with uniform draws on the same seeds, at three costs: rollouts, generated tokens and seconds of
computing, with everything that it needs beside training (references, scores, features, discarded and screening
rollouts). Curves are means over seeds, made monotone (isotonic regression); the intervals are 95 %, by the jackknife
over seeds, which are paired.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

sys.path.append(str(Path(__file__).parents[1]))
from cells import Help

RESULTS = Path(__file__).parents[1] / "results" / "arena"
COSTS = ("rollouts", "tokens", "seconds")
INTRODUCTION = """# The arena: which prompts to roll out

Cells by `python bench/arena/run.py`, this page by `python bench/arena/report.py`. GRPO of a small model on a pool in
which a question is met once or never; T = 1, learning rate 7e-5, float32, vision tower frozen; accuracy at T = 0.7 on
400 test questions, six rollouts each, every ten steps. Compared are costs: *rollouts*, generated *tokens*, and
*seconds* that one thread computed; all include what a method needs beside training: scores, references, screening and
discarded rollouts, and features. Cells were made beside other work and on several machines, so seconds are counts times
prices that were measured on a quiet one (`prices.json`, by `python bench/arena/prices.py`).

- *rollouts (seconds, tokens) to uniform's end*: at which share of what uniform draws cost in all the method has the
  accuracy that these end with; above 100 % it is dearer. "Not within" is what a training had cost that ended before it
  was there: below 100 % this says nothing yet. ± is 95 % by the jackknife over paired seeds; with few read it as rough.
- *of the oracle's saving*: (1 − that) over (1 − the oracle's). The *oracle* draws only questions that had both right
  and wrong answers in 8 rollouts before training, which are not counted: the bound of choosing once.
- *at equal cost*: accuracy at the rollouts that uniform draws took in all, minus uniform's, in points.
- *trained on*: share of the groups that reached the optimiser with zero variance.
- *p*: that rollouts to uniform's end are not below uniform's, corrected for the number of methods (Holm).
""".splitlines()
MOST = 1.5
"""What a seed's share counts in an interval where uniform's end is not reached, if the method did not cost more."""
Cells = dict[int, dict]
"""Seed → cell."""


def priced(counts: dict, features: str, prices: dict[str, float]) -> float:
    """Return the seconds that something costs.

    Args:
        counts: of its rollouts, prefills, samples whose statistics were read, and steps.
        features: that prompts are chosen by: `none`, `prefill` or `statistics`.
        prices: seconds of each, see prices.py.
    """
    step = prices["step"] + prices[f"choice with {features}"]
    return (
        counts.get("step", 0) * step
        + counts["rollouts"] * prices["rollout"]
        + counts["prefills"] * prices["prefill"]
        + counts["statistics"] * prices["statistics"]
    )


def read(folder: Path, prices: dict[str, float]) -> dict[tuple[str, int], dict[str, Cells]]:
    """Return the cells by environment and group size, method and seed; seconds are priced, what they were measured as
    is kept as `measured`."""
    cells: dict[tuple[str, int], dict[str, Cells]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*-seed*.json")):
        cell = json.loads(path.read_text())
        for part in (cell["extra"], *cell["rows"]):
            part["measured"] = part.get("seconds", 0.0)
            part["seconds"] = priced(part, cell["features"], prices)
        cells[cell["environment"], cell["generations"]][cell["method"]][cell["seed"]] = cell
    return cells


def costs_of(cell: dict, cost: str) -> np.ndarray:
    """Return what a training had cost at each measurement, what it needs beforehand included."""
    spent = np.array([row[cost] for row in cell["rows"]], dtype=float)
    if cost == "tokens":  # rollouts before training are as long as those of training
        return spent + cell["extra"]["rollouts"] * spent[-1] / max(cell["rows"][-1]["rollouts"], 1)
    return spent + cell["extra"][cost]


@dataclass(frozen=True)
class Curve:
    """Mean accuracy over mean cost."""

    cost: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def of(cls, cells: Cells, seeds: list[int], cost: str) -> Curve:
        """Average over seeds, and make monotone."""
        spent = np.mean([costs_of(cells[seed], cost) for seed in seeds], axis=0)
        accuracy = np.mean([[row["accuracy"] for row in cells[seed]["rows"]] for seed in seeds], axis=0)
        return cls(spent, isotonic_regression(accuracy).x)

    def reached(self, target: float) -> float:
        """Return the cost at which a target is first reached, linear between points; inf if it is not."""
        above = np.flatnonzero(self.accuracy >= target - 1e-9)
        if not len(above):
            return float("inf")
        last = above[0]
        if last == 0:
            return float(self.cost[0])
        low, high = self.accuracy[last - 1], self.accuracy[last]
        share = (target - low) / (high - low)
        return float(self.cost[last - 1] + share * (self.cost[last] - self.cost[last - 1]))

    def at(self, cost: float) -> float:
        """Return the accuracy at a cost."""
        return float(np.interp(cost, self.cost, self.accuracy))


def share_of_cost(method: Cells, uniform: Cells, seeds: list[int], cost: str) -> tuple[float, float]:
    """Return the cost at which a method has uniform's final accuracy, inf if it never has, and all that it cost; both
    as shares of uniform's."""
    mine, base = Curve.of(method, seeds, cost), Curve.of(uniform, seeds, cost)
    whole = base.reached(base.accuracy[-1])
    return mine.reached(base.accuracy[-1]) / whole, float(mine.cost[-1]) / whole


def capped_share(method: Cells, uniform: Cells, seeds: list[int], cost: str) -> float:
    """Return the same share as a finite number, for intervals."""
    share, spent = share_of_cost(method, uniform, seeds, cost)
    return share if np.isfinite(share) else max(MOST, spent)


def jackknife(of: Callable[[list[int]], float], seeds: list[int]) -> tuple[float, float, float]:
    """Return a statistic of seeds, its standard error and half of its 95 % interval."""
    whole, size = of(seeds), len(seeds)
    if size < 3:
        return whole, float("nan"), float("nan")
    parts = np.array([of([other for other in seeds if other != seed]) for seed in seeds])
    error = float(np.sqrt((size - 1) / size * np.sum((parts - parts.mean()) ** 2)))
    return whole, error, float(stats.t.ppf(0.975, size - 1) * error)


def holm(values: dict[str, float]) -> dict[str, float]:
    """Return p-values corrected for their number."""
    worst, corrected = 0.0, {}
    known = sorted((value, name) for name, value in values.items() if np.isfinite(value))
    for rank, (value, name) in enumerate(known):
        worst = max(worst, min(1.0, value * (len(known) - rank)))
        corrected[name] = worst
    return corrected


def compare(method: Cells, uniform: Cells, oracle: Cells | None) -> dict:
    """Return what a method costs and gains, on the seeds that it shares with uniform draws and the oracle."""
    seeds = sorted(set(method) & set(uniform) & (set(oracle) if oracle else set(method)))
    result: dict = {"seeds": seeds}
    for cost in COSTS:
        share, error, half = jackknife(lambda part, cost=cost: capped_share(method, uniform, part, cost), seeds)
        reached, spent = share_of_cost(method, uniform, seeds, cost)
        result[cost] = {"share": share, "half": half, "reached": bool(np.isfinite(reached)), "spent": spent}
        if cost == "rollouts":
            freedom = len(seeds) - 1
            result["p"] = float(stats.t.cdf((share - 1) / error, freedom)) if error and error > 0 else float("nan")
        if oracle:
            best = capped_share(oracle, uniform, seeds, cost)
            known = best < 0.98 and result[cost]["reached"]
            result[cost]["of_oracle"] = (1 - share) / (1 - best) if known else float("nan")

    def ends(cell: dict) -> float:
        return cell["rows"][-1]["accuracy"]

    def equal_cost(part: list[int]) -> float:
        base = Curve.of(uniform, part, "rollouts")
        return 100 * (Curve.of(method, part, "rollouts").at(base.cost[-1]) - base.accuracy[-1])

    gain, _, half = jackknife(equal_cost, seeds)
    end, _, end_half = jackknife(
        lambda part: (
            100 * float(np.mean([method[s]["rows"][-1]["accuracy"] - uniform[s]["rows"][-1]["accuracy"] for s in part]))
        ),
        seeds,
    )
    cells = [method[seed] for seed in seeds]
    return result | {
        "equal": gain,
        "equal_half": half,
        "end": end,
        "end_half": end_half,
        "final": float(np.mean([cell["rows"][-1]["accuracy"] for cell in cells])),
        "rolled_out": float(np.mean([np.mean(cell["frac_zero_std"]) for cell in cells])),
        "trained_on": float(np.mean([np.mean(cell["frac_zero_std_trained"]) for cell in cells])),
        "total": {cost: float(np.mean([costs_of(cell, cost)[-1] for cell in cells])) for cost in COSTS},
        "extra": cells[0]["extra"],
    }


def percent(value: float, half: float = float("nan")) -> str:
    """Return a share as text, with its interval where there is one."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.0%}" + (f" ± {100 * half:.0f}" if np.isfinite(half) else "")


def table(key: tuple[str, int], methods: dict[str, Cells]) -> tuple[list[str], dict]:
    """Return the lines of an environment's section, and its numbers."""
    uniform, oracle = methods["uniform"], methods.get("oracle")
    numbers = {name: compare(cells, uniform, oracle) for name, cells in methods.items()}
    corrected = holm({name: row["p"] for name, row in numbers.items() if name not in ("uniform", "oracle")})
    steps = next(iter(uniform.values()))["steps"]
    lines = [
        f"## {key[0]}, groups of {key[1]}",
        "",
        f"{steps} steps of {64 // key[1]} prompts × {key[1]} completions that reach the optimiser.",
        "",
        "| method | seeds | rollouts to uniform's end | seconds | tokens | of the oracle's saving: rollouts | "
        "seconds | p | at equal cost | final accuracy | zero variance: rolled out | trained on |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in numbers.items():
        reference = name in ("uniform", "oracle")
        cells = [
            name,
            str(len(row["seeds"])),
            *(
                percent(row[cost]["share"], row[cost]["half"])
                if row[cost]["reached"]
                else f"not within {row[cost]['spent']:.0%}"
                for cost in ("rollouts", "seconds", "tokens")
            ),
            *(
                "–" if name == "uniform" else percent(row[cost].get("of_oracle", float("nan")))
                for cost in ("rollouts", "seconds")
            ),
            "–" if reference or name not in corrected else f"{corrected[name]:.3f}",
            f"{row['equal']:+.1f} ± {row['equal_half']:.1f}",
            f"{row['final']:.1%} ({row['end']:+.1f} ± {row['end_half']:.1f})",
            percent(row["rolled_out"]),
            percent(row["trained_on"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""], numbers


def plot(key: tuple[str, int], methods: dict[str, Cells], path: Path) -> None:
    """Plot accuracy over each cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(COSTS), figsize=(13, 3.8), layout="constrained", sharey=True)
    colors = plt.get_cmap("tab20")
    for index, (name, cells) in enumerate(methods.items()):
        seeds = sorted(set(cells) & set(methods["uniform"]))
        color = "black" if name == "uniform" else "grey" if name == "oracle" else colors(index % 20)
        style = "--" if name in ("uniform", "oracle") else "-"
        for axis, cost in zip(axes, COSTS, strict=True):
            spent = np.mean([costs_of(cells[seed], cost) for seed in seeds], axis=0)
            accuracy = np.mean([[row["accuracy"] for row in cells[seed]["rows"]] for seed in seeds], axis=0)
            axis.plot(spent, 100 * accuracy, color=color, ls=style, marker=".", lw=1.2, label=name)
    most = {cost: Curve.of(methods["uniform"], sorted(methods["uniform"]), cost).cost[-1] for cost in COSTS}
    for axis, cost in zip(axes, COSTS, strict=True):
        axis.set(xlabel=cost, xlim=(0, 1.5 * most[cost]))
    axes[0].set(ylabel="held-out accuracy, %", title=f"{key[0]}, groups of {key[1]}")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def harm(everything: dict[str, dict]) -> list[str]:
    """Return the lines of the worst difference from uniform of each method."""
    worst: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for key, numbers in everything.items():
        for name, row in numbers.items():
            if name not in ("uniform", "oracle"):
                worst[name].append((row["equal"], row["equal_half"], key))
    lines = [
        "## The worst difference from uniform",
        "",
        "In points at equal rollouts, over the environments and group sizes above.",
        "",
        "| method | worst | where | environments |",
        "|---|---|---|---|",
    ]
    for name, found in sorted(worst.items(), key=lambda item: -min(item[1])[0]):
        value, half, key = min(found)
        lines.append(f"| {name} | {value:+.1f} ± {half:.1f} | {key} | {len(found)} |")
    return [*lines, ""]


def without_table(methods: dict[str, Cells], seeds: list[int]) -> str:
    """Return why an environment has no table: no seed of `seeds` has the cells that others are compared with."""
    found = {name: sorted(cells) for name, cells in sorted(methods.items())}
    done = "; ".join(f"{name}: seeds {', '.join(map(str, own))}" for name, own in found.items())
    wanted = ", ".join(map(str, seeds))
    if "uniform" not in found:
        return f"nothing to compare with: run the method uniform too. Done: {done}"
    if not set(found["uniform"]) & set(seeds):
        return f"uniform has none of the seeds {wanted}: give --seeds. Done: {done}"
    return f"uniform and oracle share none of the seeds {wanted}: run both on the same seeds. Done: {done}"


def about_prices(cells: dict[tuple[str, int], dict[str, Cells]], prices: dict[str, float]) -> list[str]:
    """Return the prices, and how far measured seconds are from them."""
    ends = [cell["rows"][-1] for methods in cells.values() for own in methods.values() for cell in own.values()]
    ratios = np.array([end["measured"] / end["seconds"] for end in ends if end["measured"]])
    lines = ["## Prices", "", "| part | milliseconds |", "|---|---|"]
    lines += [f"| {part} | {1000 * seconds:.3g} |" for part, seconds in prices.items()]
    if len(ratios):
        low, middle, high = np.quantile(ratios, (0.05, 0.5, 0.95))
        lines += ["", f"Seconds measured beside other work were {middle:.2f} times the priced ones (5 % of the cells "]
        lines[-1] += f"below {low:.2f}, 5 % above {high:.2f})."
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5, 10)), help="those that count")
    parser.add_argument("--name", default="README", help="of the page, beside the cells")
    parser.add_argument("--prices", type=Path, default=RESULTS / "prices.json", help="seconds of each part, prices.py")
    arguments = parser.parse_args()
    lines, everything = [], {}
    prices = json.loads(arguments.prices.read_text())["seconds"]
    cells = read(arguments.results, prices)
    if not cells:
        sys.exit(f"{arguments.results} has no finished cell, *-seed*.json: run bench/arena/run.py, or give --results")
    for key, methods in sorted(cells.items()):
        kept = {
            name: {seed: cell for seed, cell in cells.items() if seed in arguments.seeds}
            for name, cells in methods.items()
        }
        shared = set(kept.get("uniform", {})) & set(kept.get("oracle", kept.get("uniform", {})))
        order = sorted(
            (name for name in kept if set(kept[name]) & shared),
            key=lambda name: (name != "uniform", name != "oracle", name),
        )
        label = f"{key[0]}-g{key[1]}"
        if not shared:
            lines += [
                f"## demo:{key[0]}, groups of {key[1]}",
                "",
                f"No table: {without_table(methods, arguments.seeds)}.",
                "",
            ]
            continue
        kept = {name: kept[name] for name in order}
        section, everything[label] = table(key, kept)
        picture = f"{arguments.name.lower()}-{label}.png".removeprefix("readme-")
        plot(key, kept, arguments.results / picture)
        lines += [*section, f"![{label}]({picture})", ""]
    if everything:
        lines += harm(everything)
    lines += [*about_prices(cells, prices), ""]
    (arguments.results / f"{arguments.name}.json".replace("README", "arena")).write_text(
        json.dumps(everything, indent=1) + "\n"
    )
    (arguments.results / f"{arguments.name}.md").write_text("\n".join([*INTRODUCTION, *lines]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
