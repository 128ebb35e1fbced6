"""How many rollouts tell the strata? `python bench/adaptive.py run --variant features` (also: `lossless`, `blind`,
`pool`), then `python bench/adaptive.py report`.

1,000 questions of `demo:pool` (the first 400 are the demo). Two lossless searches with seeds 1 and 2, which give the
labels of two exhaustive ones, are the yardstick: how often they agree, and how often the adaptive search, with a third
seed, agrees with either, after 2, 4, 6, 8 and 12 rollouts a sample (2 to 12 % of exhaustive). Each budget continues the
folder of the one before. `pool`: all 5,100 questions at a budget of 5 %, with the wall time of one thread, beside the
other searches' on a part of them. Calibration: of the probability stated for the likeliest stratum, against both
yardsticks.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm

from hardsample.demo import load_split
from hardsample.prediction.predictor import calibration_error
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score

ROOT = Path(__file__).parents[1] / "runs" / "adaptive"
RESULTS = Path(__file__).parent / "results" / "adaptive"
DATA, SIZE, DEMO, LEVELS = "demo:pool", 1000, 400, 100
BUDGETS = (2, 4, 6, 8, 12)
TIMED = {"lossless": 200, "exhaustive": 40}
"""Search → questions that its rate is measured on."""
VARIANTS = {"features": True, "blind": False}
"""Variant of the adaptive search → whether it uses features."""


def run(variant: str) -> None:
    """Make the folders of a variant; `lossless` makes the yardsticks."""
    if variant == "lossless":
        for seed in (1, 2):
            score(DATA, "demo", ROOT / f"lossless-{seed}", ScoringConfig(batch_size=256, seed=seed, limit=SIZE))
        return
    if variant == "pool":
        spend_five_percent()
        return
    for budget in BUDGETS:
        stored = ROOT / f"{variant}-{budget}.json"
        if stored.exists():
            continue
        began = time.time()
        config = ScoringConfig(
            batch_size=256,
            seed=3,
            limit=SIZE,
            search="adaptive",
            confidence=0.99,
            budget=str(budget * SIZE),
            features=VARIANTS[variant],
        )
        scores = score(DATA, "demo", ROOT / variant, config, progress=False)
        columns = ("id", "pism_stratum", "stratum_probability", "rollouts", "stratum_source")
        table = {name: list(scores.table[name]) for name in columns}
        stored.write_text(json.dumps({"seconds": time.time() - began, "table": table}))
        tqdm.write(f"{variant} {budget}: {sum(table['rollouts'])} rollouts in {time.time() - began:.0f} s")


def spend_five_percent() -> None:
    """Score the whole pool at a budget of 5 %, and time the other searches on the questions after the first 1,000."""
    stored, began = ROOT / "pool.json", time.time()
    if stored.exists():
        return
    scores = score(DATA, "demo", ROOT / "pool", ScoringConfig(batch_size=256, seed=3, search="adaptive", budget="5%"))
    searches = {"adaptive, --budget 5%": {"questions": len(scores.table), "seconds": time.time() - began}}
    searches["adaptive, --budget 5%"] |= {"rollouts": sum(scores.table["rollouts"]), "counts": scores.run["seconds"]}
    for search, size in TIMED.items():
        data, began = load_split(DATA).select(range(SIZE, SIZE + size)), time.time()
        timed = score(data, "demo", ROOT / f"timed-{search}", ScoringConfig(batch_size=256, search=search))
        searches[search] = {"questions": size, "seconds": time.time() - began, "rollouts": sum(timed.table["rollouts"])}
    columns = ("id", "pism_stratum", "stratum_probability", "rollouts", "stratum_source")
    table = {name: list(scores.table[name]) for name in columns}
    stored.write_text(json.dumps({"searches": searches, "table": table}))


def labels(folder: Path) -> dict[str, str]:
    table = Scores(folder).table
    return dict(zip(table["id"], table["pism_stratum"], strict=True))


def measure(table: dict, yardsticks: list[dict[str, str]], ids: set[str]) -> dict:
    """Return agreement with either yardstick, and calibration, over some samples."""
    rows = [row for row, sample in enumerate(table["id"]) if sample in ids]
    right = np.array([[label[table["id"][row]] == table["pism_stratum"][row] for label in yardsticks] for row in rows])
    stated = np.array([table["stratum_probability"][row] or 0.0 for row in rows])
    order = np.argsort(stated, kind="stable")
    groups = [part for part in np.array_split(order, 10) if len(part)]
    rng = np.random.default_rng(0)
    draws = [right[rng.integers(0, len(rows), len(rows))].mean() for _ in range(2000)]
    spent = np.array([table["rollouts"][row] for row in rows])
    return {
        "samples": len(rows),
        "rollouts": float(spent.mean()),
        "share": float(spent.mean() / LEVELS),
        "agreement": float(right.mean()),
        "interval": np.quantile(draws, [0.025, 0.975]).tolist(),
        "stated": float(stated.mean()),
        "ece": calibration_error(stated, right.mean(1)),
        "reliability": [[float(stated[part].mean()), float(right[part].mean())] for part in groups],
        "sources": {name: table["stratum_source"].count(name) for name in ("adaptive", "predicted")},
    }


def report() -> None:
    """Write the page, the JSON and the plots."""
    yardsticks = [labels(ROOT / f"lossless-{seed}") for seed in (1, 2)]
    first, second = yardsticks
    sets = {f"{DATA}, first {SIZE:,}": set(first), f"demo, {DEMO}": set(list(first)[:DEMO])}
    spent = {seed: Scores(ROOT / f"lossless-{seed}").table for seed in (1, 2)}
    lines = [
        "# Strata from few rollouts",
        "",
        "Made by `python bench/adaptive.py run --variant lossless` (then `features`, `blind`) and `python",
        "bench/adaptive.py report`. Agreement is with the labels of two full searches with other seeds (mean of both),",
        "with a 95 % bootstrap interval over samples; ECE of the stated probability of the likeliest stratum in ten",
        "equal groups.",
        "",
    ]
    everything = {}
    for name, ids in sets.items():
        both = float(np.mean([first[sample] == second[sample] for sample in ids]))
        full = float(np.mean([row for seed in (1, 2) for row in rollouts(spent[seed], ids)]))
        lines += [
            f"## {name}",
            "",
            f"Two full searches agree on {both:.1%}; each took {full:.1f} rollouts a sample by the lossless search, "
            "100 by the exhaustive one.",
            "",
            "| search | rollouts a sample | of exhaustive | agreement | stated | ECE |",
            "|---|---|---|---|---|---|",
        ]
        everything[name] = {"two full searches": both, "lossless rollouts": full}
        for variant in VARIANTS:
            rows = []
            for budget in BUDGETS:
                file = ROOT / f"{variant}-{budget}.json"
                if not file.exists():
                    continue
                row = measure(json.loads(file.read_text())["table"], yardsticks, ids)
                rows.append(row)
                low, high = row["interval"]
                label = "adaptive, with features" if VARIANTS[variant] else "adaptive, without features"
                lines.append(
                    f"| {label} | {row['rollouts']:.1f} | {row['share']:.1%} | {row['agreement']:.1%} "
                    f"[{low:.1%}, {high:.1%}] | {row['stated']:.1%} | {row['ece']:.3f} |"
                )
            everything[name][variant] = rows
        lines.append("")
    if (ROOT / "pool.json").exists():
        lines += pool_table(yardsticks, everything)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "adaptive.json").write_text(json.dumps(everything, indent=1) + "\n")
    lines += ["![Agreement over rollouts, and stated against observed](adaptive.png)", ""]
    (RESULTS / "README.md").write_text("\n".join(lines))
    print("\n".join(lines))
    plot(everything, RESULTS / "adaptive.png")


def pool_table(yardsticks: list[dict[str, str]], everything: dict) -> list[str]:
    """Return the section on the whole pool at a budget of 5 %."""
    stored = json.loads((ROOT / "pool.json").read_text())
    searches, table = stored["searches"], stored["table"]
    questions = len(table["id"])
    first, second = yardsticks
    both = float(np.mean([first[sample] == second[sample] for sample in first]))
    own = measure(table, yardsticks, set(first))
    everything["whole pool, 5 %"] = {"searches": searches, "first 1,000": own}
    lines = [
        f"## {DATA}, all {questions:,} questions",
        "",
        "One thread of two busy cores. Rollouts and time of the lossless and the exhaustive search are those of "
        f"{searches['lossless']['questions']} and {searches['exhaustive']['questions']} questions of the pool, scaled.",
        "",
        "| search | rollouts | wall time, min | agreement with another full search |",
        "|---|---|---|---|",
    ]
    for name, row in searches.items():
        scale = questions / row["questions"]
        agreement = f"{own['agreement']:.1%} (ECE {own['ece']:.3f})" if name.startswith("adaptive") else f"{both:.1%}"
        lines.append(f"| {name} | {row['rollouts'] * scale:,.0f} | {row['seconds'] * scale / 60:.0f} | {agreement} |")
    counts = {name: table["stratum_source"].count(name) for name in ("adaptive", "predicted")}
    return [
        *lines,
        "",
        f"Rolled out: {counts['adaptive']:,}; predicted without a rollout: {counts['predicted']:,}.",
        "",
    ]


def rollouts(table: Dataset, ids: set[str]) -> list[int]:
    return [count for sample, count in zip(table["id"], table["rollouts"], strict=True) if sample in ids]


def plot(everything: dict, path: Path) -> None:
    """Plot agreement over rollouts, and reliability at 8 rollouts a sample."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    numbers = next(iter(everything.values()))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
    for variant, style in zip(VARIANTS, ("o-", "s--"), strict=True):
        rows = numbers.get(variant) or []
        label = "with features" if VARIANTS[variant] else "without"
        if rows:
            left.plot([row["rollouts"] for row in rows], [100 * row["agreement"] for row in rows], style, label=label)
            chosen = rows[min(3, len(rows) - 1)]["reliability"]
            right.plot(*zip(*chosen, strict=True), style, label=label)
    left.axhline(100 * numbers["two full searches"], color="grey", ls=":", label="two full searches")
    left.set(xlabel="rollouts a sample (= % of exhaustive)", ylabel="agreement with a full search, %")
    left.legend(fontsize=8)
    right.plot([0.3, 1], [0.3, 1], color="grey", lw=1)
    right.set(xlabel="stated probability", ylabel="agreement", title="8 rollouts a sample")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--variant", choices=("lossless", "pool", *VARIANTS), default="features")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "run":
        run(arguments.variant)
    else:
        report()


if __name__ == "__main__":
    main()
