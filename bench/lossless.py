"""Lossless against exhaustive search on the 400 demo samples: `python bench/lossless.py` →
bench/results/lossless.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import torch

from hardsample.scoring.score import score

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="only the first N samples, to try it (nothing is written)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            search: score("demo", "demo", Path(folder) / search, search=search, limit=arguments.limit)
            for search in ("lossless", "exhaustive")
        }
        labels = [
            list(zip(*(run.table[c] for c in ("pism_stratum", "failure_threshold")), strict=True))
            for run in runs.values()
        ]
        rollouts = {search: run.run["counts"]["rollouts"] for search, run in runs.items()}
        seconds = {search: run.run["seconds"]["total"] for search, run in runs.items()}
    results = {
        "machine": f"{platform.machine()}, CPU, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "samples": len(labels[0]),
        "equal": sum(a == b for a, b in zip(*labels, strict=True)),
        "rollouts": rollouts,
        "rollouts_ratio": round(rollouts["lossless"] / rollouts["exhaustive"], 4),
        "seconds": seconds,
        "seconds_ratio": round(seconds["exhaustive"] / seconds["lossless"], 2),
    }
    if arguments.limit is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "lossless.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
