"""Measure what the demo model's card says: `python bench/demo_card.py` (resumes; some 20 minutes on two cores).

Everything goes through `hardsample.scoring.score.score` on the shipped model, loaded as float32. Writes
bench/results/demo/card.json and knobs.png.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch

from hardsample.demo import KNOBS, load_split
from hardsample.demo.generator import ABILITIES, SIZES, make_record
from hardsample.metrics.strata import STRATA
from hardsample.scoring.score import score
from hardsample.scoring.store import Store

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results" / "demo"
GROUP, SAMPLED = 8, 1_200


def graded(directory: Path) -> dict[str, list[int]]:
    """Return the grades of every sample of a folder."""
    grades: dict[str, list[int]] = defaultdict(list)
    with Store(directory) as store:
        for rollout in store.rollouts():
            grades[rollout.sample].append(rollout.grade)
    return grades


def shares(counts: Counter, total: int) -> dict[str, float]:
    return {str(name): round(count / total, 4) for name, count in counts.items()}


def guessing(records: int) -> dict[str, dict[str, float]]:
    """Return each ability's share of the most frequent answer and number of answers among pretraining records."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for index in range(records):
        record = make_record("pretrain", index)
        answers[str(record["ability"])][record["solution"]] += 1
    return {
        name: {"most_frequent_answer": round(max(c.values()) / c.total(), 4), "answers": len(c)}
        for name, c in answers.items()
    }


def plot_knobs(accuracy: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Plot accuracy against each knob, by ability."""
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.2), sharey=True, layout="constrained")
    for axis, knob in zip(axes.flat, KNOBS, strict=False):
        for colour, (name, (places, values)) in enumerate(accuracy[knob].items()):
            if len(places) > 1:
                width = 2.5 if name == "all" else 1
                axis.plot(places, values, marker="o", markersize=3, label=name, linewidth=width, color=f"C{colour}")
        axis.set_xlabel(knob)
        axis.grid(alpha=0.3)
    handles, names = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(handles, names, loc="center")
    axes[0, 0].set_ylabel("accuracy at T = 0.7")
    axes[1, 0].set_ylabel("accuracy at T = 0.7")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def binned(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each value: one bin a value where there are few, else bins of equal shares."""
    distinct, indices = np.unique(values, return_inverse=True)
    if len(distinct) <= bins:
        return indices
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def by_knob(records, right: dict[str, float], bins: int = 6) -> tuple[dict, dict]:
    """Return accuracy in bins of each knob by ability, and the correlation of each knob with being right."""
    curves: dict[str, dict] = {}
    correlation: dict[str, float] = {}
    hits = np.array([right[name] for name in records["id"]])
    abilities = np.array(records["ability"])
    for knob in KNOBS:
        values = np.array(records[knob], dtype=float)
        curves[knob] = {}
        for name in ("all", *ABILITIES):
            chosen = np.full(len(hits), True) if name == "all" else abilities == name
            bin_of = binned(values[chosen], bins)
            used = [b for b in np.unique(bin_of) if (bin_of == b).sum() >= 20]
            curves[knob][name] = (
                [round(float(values[chosen][bin_of == b].mean()), 2) for b in used],
                [round(float(hits[chosen][bin_of == b].mean()), 4) for b in used],
            )
        within = np.zeros(len(hits))
        for name in ABILITIES:
            chosen = abilities == name
            within[chosen] = values[chosen] - values[chosen].mean()
        spread = within.std()
        correlation[knob] = round(float(np.corrcoef(within, hits)[0, 1]), 3) if spread > 0 else 0.0
    return curves, correlation


def strata_by_ability(table) -> dict[str, dict[str, int]]:
    counts = Counter(zip(table["ability"], table["pism_stratum"], strict=True))
    rows = {name: {stratum: counts[name, stratum] for stratum in STRATA} for name in ABILITIES}
    return rows | {"all": {stratum: sum(row[stratum] for row in rows.values()) for stratum in STRATA}}


def measure(model: str, runs: Path, limit: int | None) -> dict:
    """Measure every figure of the card."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    common = {"limit": limit, "batch_size": 256}
    one_level = {"ratios": (0.0,), "search": "exhaustive"}
    score("demo:pool", model, runs / "accuracy", num_masks=1, **one_level, **common)
    fewer = {"limit": min(limit or SAMPLED, SAMPLED), "batch_size": 256}
    score("demo:pool", model, runs / "groups", num_masks=GROUP, temperature=1.0, **one_level, **fewer)
    score("demo:pool", model, runs / "greedy", num_masks=1, temperature=0.0, **one_level, **fewer)
    score("demo:test", model, runs / "test", num_masks=1, ratios=(0.0,), search="exhaustive", batch_size=256)
    score("demo", model, runs / "blind", num_masks=25, ratios=(0.0,), blind=True, batch_size=256, limit=limit)
    pool = score("demo:pool", model, runs / "strata", **common)
    demo = score("demo", model, runs / "demo", batch_size=256, limit=limit)

    records = load_split("demo:pool", limit)
    ability = dict(zip(records["id"], records["ability"], strict=True))
    accuracy = {name: float(np.mean(grades)) for name, grades in graded(runs / "accuracy").items()}
    greedy = {name: float(np.mean(grades)) for name, grades in graded(runs / "greedy").items()}
    test = [float(np.mean(grades)) for grades in graded(runs / "test").values()]
    groups = graded(runs / "groups")
    blind = defaultdict(list)
    with Store(runs / "blind") as store:
        for rollout in store.rollouts():
            if rollout.ratio == 1.0:
                blind[ability[rollout.sample]].append(rollout.grade)

    def per_ability(values: dict[str, float]) -> dict[str, float]:
        split = {name: [v for sample, v in values.items() if ability[sample] == name] for name in ABILITIES}
        return {name: round(float(np.mean(v)), 4) for name, v in split.items() if v} | {
            "all": round(float(np.mean(list(values.values()))), 4)
        }

    curves, correlation = by_knob(records, accuracy)
    plot_knobs(curves, RESULTS / "knobs.png")
    first = list(demo.table["pism_stratum"])[:120]
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "splits": SIZES,
        "guessing": guessing(60_000),
        "blind_accuracy": {name: round(float(np.mean(v)), 4) for name, v in blind.items()},
        "blind_rollouts": {name: len(v) for name, v in blind.items()},
        "pool_accuracy_T0.7": per_ability(accuracy),
        "pool_accuracy_greedy": per_ability(greedy),
        "test_accuracy_T0.7": round(float(np.mean(test)), 4),
        "pool_accuracy_T1": per_ability({name: float(np.mean(g)) for name, g in groups.items()}),
        "frac_zero_std_T1": round(float(np.mean([sum(g) in (0, GROUP) for g in groups.values()])), 4),
        "pool_strata": strata_by_ability(pool.table),
        "pool_rollouts_of_exhaustive": round(
            pool.run["counts"]["rollouts"] / pool.run["counts"]["rollouts_exhaustive"], 4
        ),
        "demo_strata": strata_by_ability(demo.table),
        "demo_first_120": shares(Counter(first), len(first)),
        "knob_correlation_within_ability": correlation,
        "accuracy_by_knob": curves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--runs", type=Path, default=Path("runs/card"), help="where the rollouts go")
    parser.add_argument("--limit", type=int, help="only so many of the pool: to try it")
    arguments = parser.parse_args()
    measured = measure(arguments.model, arguments.runs, arguments.limit)
    (RESULTS / "card.json").write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps({name: value for name, value in measured.items() if name != "accuracy_by_knob"}, indent=1))


if __name__ == "__main__":
    main()
