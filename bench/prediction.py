"""How well is the success rate of questions predicted that nobody rolled out? `python bench/prediction.py`

Features by one prefill a question; 8 rollouts a question at T = 1 (`bench/base_rates.py`) of 16 to 1,024 references
that the predictor is fitted on, and of all others, that it is measured on. Ten draws of the references; intervals are t
intervals over draws. Writes bench/results/prediction/README.md, the JSON beside it and the plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.append(str(Path(__file__).parent / "arena"))  # last: it has a run.py, too
from environments import ENVIRONMENTS, ROOT, features, truth

from hardsample.engines.features import STATISTICS
from hardsample.prediction.categories import category_features
from hardsample.prediction.predictor import auroc, calibration_error, fit
from hardsample.scoring.features.files import read_features

RESULTS = Path(__file__).parent / "results" / "prediction"
REFERENCES, DRAWS, GROUP = (16, 64, 256, 1024), 10, 8
SHARES = (10, 25, 50)
SETS = {
    "all": None,
    "numbers and ability": slice(0, 24),
    "no hidden states, no image statistics": slice(0, 8),
    "text and image alone (--model none)": STATISTICS,
}
"""Which columns of the features are used; the ability always."""


def measure(name: str) -> list[dict]:
    """Measure an environment; one entry a number of references and set of features."""
    wins, kinds = truth(name)
    wins = wins.sum(1).astype(float)
    _, matrix = read_features(features(name))
    category = category_features({"ability": kinds})
    size, rate, signal = len(wins), wins / GROUP, (wins > 0) & (wins < GROUP)
    rows = []
    for label, part in SETS.items():
        chosen = matrix if part is None else matrix[:, part]
        blocks = [24, 116, 116] if part is None else [chosen.shape[1]]
        inputs = np.concatenate([chosen, category], axis=1)
        for references in REFERENCES:
            found = []
            for draw in range(DRAWS):
                order = np.random.default_rng(draw).permutation(size)
                known, others = order[:references], order[references:]
                began = time.perf_counter()
                predictor = fit(
                    inputs[known], wins[known], np.full(references, float(GROUP)), [*blocks, category.shape[1]]
                )
                seconds = time.perf_counter() - began
                predicted = predictor.predict(inputs[others])
                chance = predicted.signal(GROUP)
                ranked = signal[others][np.argsort(-chance, kind="stable")]
                varies = predicted.mean.std() > 1e-9
                found.append(
                    {
                        "pearson": float(np.corrcoef(predicted.mean, rate[others])[0, 1]) if varies else 0.0,
                        "auroc": auroc(signal[others], chance),
                        "ece_rate": calibration_error(predicted.mean, rate[others]),
                        "ece_signal": calibration_error(chance, signal[others].astype(float)),
                        "own_pearson": predictor.skill.pearson if varies else 0.0,
                        "useful": float(predictor.skill.useful),
                        "seconds": seconds,
                    }
                    | {f"top_{share}": float(ranked[: len(ranked) * share // 100].mean()) for share in SHARES}
                )
            mean = {key: float(np.mean([entry[key] for entry in found])) for key in found[0]}
            half = {
                key: float(
                    stats.t.ppf(0.975, DRAWS - 1) * np.std([entry[key] for entry in found], ddof=1) / np.sqrt(DRAWS)
                )
                for key in found[0]
            }
            rows.append({"environment": name, "features": label, "references": references, "mean": mean, "half": half})
            print(name, label, references, {key: round(value, 3) for key, value in mean.items()}, flush=True)
    return rows


def ceiling(wins: np.ndarray) -> float:
    """Return the correlation that the true rates would have with the observed ones: √(1 − noise / variance)."""
    rate = wins / GROUP
    noise = (rate * (1 - rate)).mean() * GROUP / (GROUP - 1) / GROUP
    return float(np.sqrt(max(1 - noise / rate.var(), 0)))


def report(rows: list[dict], about: dict[str, dict]) -> str:
    """Return the page."""
    lines = [
        "# Held-out prediction of the success rate",
        "",
        "Made by `python bench/prediction.py`. Of questions that were never rolled out; one prefill each; references",
        "are the questions that were rolled out 8 times for the fit. Mean of ten draws ± half of the 95 % interval",
        "over draws. ECE: expected calibration error in ten equal groups, of the success rate and of the chance that a",
        "group of 8 has signal.",
        "Top x %: share of groups with signal among the x % of the other questions that the predictor ranks first.",
        "",
    ]
    for name, entry in about.items():
        lines += [
            f"## {entry['pool']}",
            "",
            f"{entry['questions']:,} questions, {entry['signal']:.1%} of the groups of 8 have signal; noise ceiling of "
            f"Pearson {entry['ceiling']:.2f}.",
            "",
            "| features | references | Pearson | AUROC (signal) | ECE rate | ECE signal "
            "| top 10 % | top 25 % | top 50 % |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in (row for row in rows if row["environment"] == name):
            mean, half = row["mean"], row["half"]
            cells = [f"{mean[key]:.3f} ± {half[key]:.3f}" for key in ("pearson", "auroc", "ece_rate", "ece_signal")]
            cells += [f"{mean[f'top_{share}']:.0%}" for share in SHARES]
            lines.append(f"| {row['features']} | {row['references']:,} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def plot(rows: list[dict], about: dict[str, dict], path: Path) -> None:
    """Plot Pearson and AUROC over the number of references."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, key, title in zip(
        axes, ("pearson", "auroc"), ("Pearson, success rate", "AUROC, group has signal"), strict=True
    ):
        for name, entry in about.items():
            for label, style in zip(SETS, ("-", "--", ":", "-."), strict=True):
                mine = [row for row in rows if row["environment"] == name and row["features"] == label]
                counts = [row["references"] for row in mine]
                means, halves = ([row[part][key] for row in mine] for part in ("mean", "half"))
                color = f"C{list(about).index(name)}"
                axis.errorbar(
                    counts, means, halves, ls=style, color=color, label=f"{entry['pool']}: {label}", capsize=2
                )
        axis.set_xscale("log")
        axis.set_xlabel("questions rolled out for the fit")
        axis.set_title(title)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS), choices=list(ENVIRONMENTS))
    arguments = parser.parse_args()
    ROOT.mkdir(parents=True, exist_ok=True)
    known = json.loads((RESULTS / "prediction.json").read_text()) if (RESULTS / "prediction.json").exists() else {}
    about = {name: entry for name, entry in known.get("about", {}).items() if name not in arguments.environments}
    rows = [row for row in known.get("rows", []) if row["environment"] in about]
    for name in arguments.environments:
        wins = truth(name)[0].sum(1)
        signal = (wins > 0) & (wins < GROUP)
        about[name] = {
            "pool": f"demo:{name}" if ENVIRONMENTS[name].pool == f"demo:{name}" else f"{name} generator",
            "questions": len(wins),
            "signal": float(signal.mean()),
            "ceiling": ceiling(wins),
        }
        rows += measure(name)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "prediction.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (RESULTS / "README.md").write_text(report(rows, about) + "\n![Pearson and AUROC over references](prediction.png)\n")
    plot(rows, about, RESULTS / "prediction.png")


if __name__ == "__main__":
    main()
