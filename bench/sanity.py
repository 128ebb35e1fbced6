"""Do the scores mean what they say? `python bench/sanity.py` (three exhaustive scorings of 500 questions, a quarter of
an hour on two quiet cores; they resume), then the same with --report.

(a) PISM: λ* and accuracy curves against the knobs that the generated questions were made with, and the share of equal
strata over three scoring seeds. (b) CMAB: ρ̄ by ability, where the paper's bounds fall, and both metrics against the
number of reasoning steps. The 500 are those of bench/policies.py, drawn from the pool before anything was scored.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
from policies import SUBSET_SEED, SUBSET_SIZE
from preparing import machine

from hardsample.demo import KNOBS, load_split
from hardsample.files import RUN_FILE
from hardsample.metrics.intervals import Interval, accuracy_interval, rank_correlation
from hardsample.metrics.strata import STRATA
from hardsample.report.parts.figures import STRATUM_COLOURS, new_figure
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score

RESULTS = Path(__file__).parent / "results" / "sanity"
FOLDER = Path(__file__).parents[1] / "runs" / "sanity"
SEEDS = (0, 1, 2)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def questions():
    """Return the 500 questions with their knobs."""
    pool = load_split("demo:pool")
    return pool.select(sorted(np.random.default_rng(SUBSET_SEED).choice(len(pool), SUBSET_SIZE, replace=False)))


def scored(seed: int) -> Scores:
    """Return one exhaustive scoring by both metrics; score first if it is not done."""
    folder = FOLDER / f"seed{seed}"
    if not (folder / RUN_FILE).exists() or json.loads((folder / RUN_FILE).read_text())["status"] != "done":
        config = ScoringConfig(search="exhaustive", seed=seed, batch_size=256, metric=("pism", "cmab"))
        score(questions(), "demo", folder, config)
    return Scores(folder)


def difficulty(scores: Scores) -> np.ndarray:
    """Return λ* of each sample, 1 where no ratio fails."""
    return np.array([1.0 if threshold is None else threshold for threshold in scores.table["failure_threshold"]])


def within(abilities: list[str], values: np.ndarray) -> np.ndarray:
    """Return ranks within each ability, as shares: what is left of a quantity for the same kind of question."""
    ranks = np.zeros(len(values))
    for ability in set(abilities):
        rows = [row for row, name in enumerate(abilities) if name == ability]
        order = values[rows]
        ranks[rows] = [(np.sum(order < value) + np.sum(order <= value)) / 2 / len(rows) for value in order]
    return ranks


def plain(interval: Interval) -> dict:
    """Return an interval as JSON holds it."""
    bounds = {name: round(getattr(interval, name), 4) for name in ("value", "low", "high")}
    return bounds | {"n": interval.samples}


def correlations(values: np.ndarray, data, rows: list[int]) -> dict:
    """Correlate a difficulty with every knob, by ability and over all within ability."""
    abilities = [data["ability"][row] for row in rows]
    by_knob: dict[str, dict] = {}
    for knob in KNOBS:
        knobs = np.array([data[knob][row] for row in rows], dtype=float)
        by = {}
        for ability in sorted(set(abilities)):
            chosen = [index for index, name in enumerate(abilities) if name == ability]
            if len(chosen) >= 10 and np.ptp(knobs[chosen]) > 0:
                by[ability] = plain(rank_correlation(values[chosen], knobs[chosen]))
        every = rank_correlation(within(abilities, values), within(abilities, knobs)) if by else None
        by_knob[knob] = {"all, within ability": plain(every) if every else None, **by}
    return by_knob


def measure() -> dict:
    """Measure everything that the page reports."""
    data, runs = questions(), [scored(seed) for seed in SEEDS]
    ids = list(data["id"])
    assert all(list(run.table["id"]) == ids for run in runs)
    abilities = list(data["ability"])
    first = runs[0]
    labels = [list(run.table["pism_stratum"]) for run in runs]
    rows = list(range(len(ids)))
    ratios = first.config().ratios
    successes = np.array(first.table["successes"][:])
    attempts = np.array(first.table["attempts"][:])
    shift = np.array(data["shift"])
    thirds = np.digitize(shift, np.quantile(shift, [1 / 3, 2 / 3]))
    curves = {
        "all": (successes.sum(0) / attempts.sum(0)).round(4).tolist(),
        **{
            name: (successes[keep].sum(0) / attempts[keep].sum(0)).round(4).tolist()
            for name, keep in [
                *((f"ability {name}", [a == name for a in abilities]) for name in sorted(set(abilities))),
                *((f"shift, third {third + 1}", thirds == third) for third in range(3)),
                *((f"stratum {name}", [label == name for label in labels[0]]) for name in STRATA),
            ]
        },
    }
    agree = {}
    for a, b in combinations(range(len(runs)), 2):
        same = [int(label == other) for label, other in zip(labels[a], labels[b], strict=True)]
        agree[f"seeds {SEEDS[a]} and {SEEDS[b]}"] = plain(accuracy_interval(same, [1] * len(same)))
    every = [int(len(set(row_labels)) == 1) for row_labels in zip(*labels, strict=True)]
    agree["all three"] = plain(accuracy_interval(every, [1] * len(every)))
    moves = Counter(zip(labels[0], labels[1], strict=True))
    counts = np.array([labels[0].count(name) for name in STRATA]) / len(ids)
    balances = first.table["attention_balance"][:]
    solved = [row for row in rows if balances[row] is not None]
    rho = np.array([balances[row] for row in solved])
    bounds = first.cmab_config().bounds
    profile = {}
    for ability in ["all", *sorted(set(abilities))]:
        chosen = np.array([value for row, value in zip(solved, rho, strict=True) if ability in ("all", abilities[row])])
        profile[ability] = {
            "solved": len(chosen),
            "quantiles": np.quantile(chosen, QUANTILES).round(3).tolist(),
            "below easy_below": float(np.mean(chosen < bounds.easy_below)),
            "medium below": float(np.mean((chosen >= bounds.easy_below) & (chosen < bounds.hard_min))),
            "hard": float(np.mean((chosen >= bounds.hard_min) & (chosen <= bounds.hard_max))),
            "medium above": float(np.mean((chosen > bounds.hard_max) & (chosen <= bounds.easy_above))),
            "above easy_above": float(np.mean(chosen > bounds.easy_above)),
        }
    steps = np.array(data["steps"], dtype=float)
    hard = difficulty(first)
    return {
        "machine": machine(),
        "samples": len(ids),
        "ratios": list(ratios),
        "strata": {name: [run_labels.count(name) for run_labels in labels] for name in STRATA},
        "curves": curves,
        "threshold_by_knob": correlations(hard, data, rows),
        "agreement": agree,
        "agreement_by_chance": round(float((counts**2).sum()), 4),
        "moves": {f"{a}/{b}": moves[a, b] for a in STRATA for b in STRATA},
        "balance": profile,
        "bounds": vars(bounds),
        "steps": {
            "λ*": plain(rank_correlation(hard, steps)),
            "λ*, solved samples": plain(rank_correlation(hard[solved], steps[solved])),
            "ρ̄, solved samples": plain(rank_correlation(rho, steps[solved])),
            "λ*, within ability": correlations(hard, data, rows)["steps"],
            "ρ̄, within ability": correlations(rho, data, solved)["steps"],
        },
        "balance_by_knob": correlations(rho, data, solved),
        "balance_against_threshold": plain(rank_correlation(rho, hard[solved])),
        "signatures": [run.run["signatures"] for run in runs],
    }


def table_of(correlations_by_knob: dict) -> list[str]:
    """Return correlations as lines of Markdown."""
    abilities = {name for by in correlations_by_knob.values() for name in by} - {"all, within ability"}
    names = ["all, within ability", *sorted(abilities)]
    lines = [f"| knob | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for knob, by in correlations_by_knob.items():
        cells = [
            f"{by[name]['value']:+.2f} [{by[name]['low']:+.2f}, {by[name]['high']:+.2f}]" if by.get(name) else "–"
            for name in names
        ]
        lines.append(f"| {knob} | {' | '.join(cells)} |")
    return lines


def draw_curves(results: dict):
    """Plot P_c(λ) by stratum and by ability."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, kind in ((left, "stratum "), (right, "ability ")):
        for name, curve in results["curves"].items():
            if name.startswith(kind):
                label = name.removeprefix(kind)
                colour = STRATUM_COLOURS.get(label)
                percent = [100 * accuracy for accuracy in curve]
                axes.plot(results["ratios"], percent, marker="o", ms=3, label=label, color=colour)
        percent = [100 * accuracy for accuracy in results["curves"]["all"]]
        axes.plot(results["ratios"], percent, "k--", lw=1, label="all")
        axes.set(xlabel="mask ratio λ", title=f"by {kind.strip()}", ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    left.set_ylabel("accuracy P_c(λ), %")
    return figure


def draw_correlations(results: dict):
    """Plot rank correlations of λ* and of ρ̄ with each knob within ability, with their intervals."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    for shift, (name, table, colour) in enumerate(
        (("λ*", results["threshold_by_knob"], "#1f4e79"), ("ρ̄", results["balance_by_knob"], "#d1495b"))
    ):
        correlated = [(position, by["all, within ability"]) for position, by in enumerate(table.values())]
        for position, interval in correlated:
            if interval:
                y = position + 0.16 * (2 * shift - 1)
                axes.plot([interval["low"], interval["high"]], [y, y], color=colour, lw=2)
                axes.plot(interval["value"], y, "o", color=colour, label=name if position == correlated[0][0] else None)
    names = list(results["threshold_by_knob"])
    axes.axvline(0, color="#6b7280", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="Spearman's correlation within ability, 95 %", xlim=(-1, 1), ylim=(len(names) - 0.5, -0.5))
    axes.legend(frameon=False)
    return figure


def draw_balances(results: dict):
    """Plot quantiles of ρ̄ by ability, with the paper's bounds."""
    figure = new_figure(7, 3.2)
    axes = figure.subplots()
    names = list(results["balance"])
    for position, name in enumerate(names):
        low, quarter, middle, three, high = results["balance"][name]["quantiles"]
        axes.plot([low, high], [position, position], color="#9ca3af", lw=2)
        axes.plot([quarter, three], [position, position], color="#374151", lw=6)
        axes.plot(middle, position, "o", color="white", ms=4)
    for bound in results["bounds"].values():
        axes.axvline(bound, color="#d1495b", ls="--", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xscale="log", xlabel="ρ̄: 5-95 %, 25-75 %, median; dashed: the paper's bounds", ylim=(len(names) - 0.5, -0.5)
    )
    return figure


def page(results: dict) -> str:
    """Return the results page."""

    def shown(interval: dict) -> str:
        return f"{interval['value']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"

    def share(interval: dict) -> str:
        return f"{100 * interval['value']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"

    ratios = " | ".join(f"{ratio:g}" for ratio in results["ratios"])
    lines = [
        "# Do the scores mean what they say?",
        "",
        f"`python bench/sanity.py`: {results['samples']} questions of the bundled pool, exhaustive search (10 masks at "
        f"10 ratios), scoring seeds {', '.join(map(str, SEEDS))}; {results['machine']}. Intervals are 95 %.",
        "",
        "## (a) PISM",
        "",
        "Accuracy P_c(λ), mean over samples (seed 0):",
        "",
        f"| | {ratios} |",
        f"|---|{'---|' * len(results['ratios'])}",
        *(
            f"| {name} | {' | '.join(f'{100 * accuracy:.0f}' for accuracy in curve)} |"
            for name, curve in results["curves"].items()
        ),
        "",
        "![Accuracy by mask ratio](curves.png)",
        "",
        "Spearman's correlation of λ* (1 where no ratio fails) with the knobs of the generator:",
        "",
        "![Correlations with the knobs](correlations.png)",
        "",
        *table_of(results["threshold_by_knob"]),
        "",
        "Test and retest, share of samples in the same stratum:",
        "",
        *(f"- {name}: {share(interval)}" for name, interval in results["agreement"].items()),
        f"- by chance alone (two independent draws from these shares): {100 * results['agreement_by_chance']:.1f} %",
        "",
        "| seed 0 \\ seed 1 | " + " | ".join(STRATA) + " |",
        "|---|---|---|---|---|",
        *(f"| {a} | " + " | ".join(str(results["moves"][f"{a}/{b}"]) for b in STRATA) + " |" for a in STRATA),
        "",
        "## (b) CMAB",
        "",
        "ρ̄ of solved samples (seed 0), and where the paper's bounds fall (share of the solved, %):",
        "",
        "| | solved | 5 % | 25 % | 50 % | 75 % | 95 % | easy below | medium below | hard | medium above | easy above |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in results["balance"].items():
        shares = [entry[key] for key in list(entry)[2:]]
        values = [*(f"{value:.2f}" for value in entry["quantiles"]), *(f"{100 * value:.0f}" for value in shares)]
        lines.append(f"| {name} | {entry['solved']} | {' | '.join(values)} |")
    lines += ["", "![Attention balance by ability](balances.png)"]
    lines += ["", "Spearman's correlation with the number of reasoning steps of the question:", ""]
    for name, entry in results["steps"].items():
        if "value" in entry:
            lines.append(f"- {name}: {shown(entry)} ({entry['n']} samples)")
        else:
            within_all = entry.get("all, within ability")
            lines.append(f"- {name}: {shown(within_all) if within_all else 'steps do not vary within an ability'}")
    lines += [
        f"- ρ̄ against λ*, solved samples: {shown(results['balance_against_threshold'])}",
        "",
        "Spearman's correlation of ρ̄ with the knobs:",
        "",
        *table_of(results["balance_by_knob"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the page anew from sanity.json")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "sanity.json"
    results = json.loads(path.read_text()) if arguments.report else measure()
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "README.md").write_text(page(results))
    for name, draw in (("curves", draw_curves), ("correlations", draw_correlations), ("balances", draw_balances)):
        draw(results).savefig(RESULTS / f"{name}.png", dpi=110)
    print(page(results))


if __name__ == "__main__":
    main()
