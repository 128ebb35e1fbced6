"""What the attention balance of the demo model looks like on the demo set: `python bench/attention_profile.py` →
bench/results/attention/{balance,profile}.png, summary.md and summary.json.

Scores the 400 demo questions by both metrics, or reads the folder given with --run.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

from hardsample.metrics.cmab import BalanceBounds, balance_quantiles
from hardsample.metrics.strata import STRATA
from hardsample.report.parts.figures import balance_histogram, layer_profile
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score

RESULTS = Path(__file__).parent / "results" / "attention"
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def main() -> None:
    """Score or read, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run of the demo set with --metric pism,cmab")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scores = Scores(arguments.run) if arguments.run else score("demo", "demo", folder, metric=("pism", "cmab"))
        write(scores)


def bands(bounds: BalanceBounds) -> list[tuple[float, float, str]]:
    """Return ranges of ρ̄ and their strata."""
    edges = (0.0, bounds.easy_below, bounds.hard_min, bounds.hard_max, bounds.easy_above, math.inf)
    return list(zip(edges, edges[1:], ("easy", "medium", "hard", "medium", "easy"), strict=False))


def write(scores: Scores) -> None:
    """Write figures, table and JSON."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = scores.table.to_dict()
    rows = list(
        zip(*(table[name] for name in ("pism_stratum", "cmab_stratum", "attention_balance", "ability")), strict=True)
    )
    balances = [value for value in table["attention_balance"] if value is not None]
    title = f"Attention balance of {len(balances)} solved demo questions"
    balance_histogram(balances, bands(scores.cmab_config().bounds), title).savefig(RESULTS / "balance.png", dpi=110)
    profiles: dict[str, list[list[float]]] = {name: [] for name in STRATA if name != "unsolved"}
    for stratum, profile in zip(table["pism_stratum"], table["attention_profile"], strict=True):
        if stratum in profiles and profile:
            profiles[stratum].append([math.log(value) if value else math.nan for value in profile])
    layer_profile(profiles, "Attention balance by layer and PISM stratum").savefig(RESULTS / "profile.png", dpi=110)

    cross = Counter((row[0], row[1]) for row in rows)
    by_ability = {}
    for ability in sorted({row[3] for row in rows}):
        own = [row[2] for row in rows if row[3] == ability and row[2] is not None]
        by_ability[ability] = {"solved": len(own), "quantiles": [round(q, 3) for q in balance_quantiles(own, LEVELS)]}
    by_stratum = {}
    for name in profiles:
        own = [row[2] for row in rows if row[0] == name and row[2] is not None]
        by_stratum[name] = {"solved": len(own), "quantiles": [round(q, 3) for q in balance_quantiles(own, LEVELS)]}
    seconds = scores.run["seconds"]
    pism = seconds["total"] - seconds["cmab"]
    summary = {
        "samples": len(rows),
        "completions": scores.run["cmab"]["completions"],
        "seconds": {"pism": round(pism, 2), "cmab": seconds["cmab"], "share": round(seconds["cmab"] / pism, 3)},
        "by_ability": by_ability,
        "by_stratum": by_stratum,
        "cross": {f"{a}/{b}": cross[a, b] for a in STRATA for b in STRATA},
        "signatures": scores.run["signatures"],
    }
    (RESULTS / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "summary.md").write_text("\n".join(lines(summary)) + "\n")
    print("\n".join(lines(summary)))
    print(json.dumps(summary, ensure_ascii=False))


def lines(summary: dict) -> list[str]:
    """Return the summary as lines of Markdown."""
    seconds = summary["seconds"]
    made = [
        "# Attention balance of the demo model on the demo set",
        "",
        f"`python bench/attention_profile.py`: {summary['completions']} completions in {seconds['cmab']} s, "
        f"{seconds['share']:.0%} of the {seconds['pism']} s that PISM took.",
        "",
        "| | solved | ρ̄ at 5 % | 25 % | 50 % | 75 % | 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, part in (*summary["by_stratum"].items(), *summary["by_ability"].items()):
        made.append(f"| {name} | {part['solved']} | " + " | ".join(f"{q:.2f}" for q in part["quantiles"]) + " |")
    made += ["", "| PISM \\ CMAB | easy | medium | hard | unsolved |", "|---|---|---|---|---|"]
    made += [f"| {a} | " + " | ".join(str(summary["cross"][f"{a}/{b}"]) for b in STRATA) + " |" for a in STRATA]
    return [*made, "", *(f"Signature: {sentence}" for sentence in summary["signatures"])]


if __name__ == "__main__":
    main()
