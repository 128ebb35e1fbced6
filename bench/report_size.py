"""Measure time, memory and size of a report of 100,000 samples: `python bench/report_size.py` →
bench/results/report.json.

Makes two finished runs of one data set that are valid and not real: a file of records, a small image for each, the
rollouts of a lossless ladder in the store, scores.parquet and run.json, by the code that a run writes them with. Then
makes `hardsample report` and `hardsample compare` of them, each in a process of its own, and measures those. --folder
keeps the runs; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hardsample.data.digests import sample_digest
from hardsample.demo import load_split
from hardsample.metrics.cmab import SampleAttention
from hardsample.metrics.ladders import Ladder
from hardsample.metrics.pism import max_rollouts
from hardsample.scoring.attention_pass import settings_of
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.output import write_rejected, write_run, write_scores
from hardsample.scoring.store import Rollout, Store

RESULTS = Path(__file__).parent / "results"
SAMPLES, IMAGES, LAYERS, BATCH = 100_000, 2_000, 28, 5_000
ABILITIES = ("algebra", "charts", "counting", "diagrams", "geometry", "maps", "reading", "science", "tables", "units")
SOURCES = ("geometry3k", "chartqa", "mathverse", "scienceqa")
CONFIG = ScoringConfig(metric=("pism", "cmab"))


def main() -> None:
    """Make the runs, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="another number, to try it (nothing is written)")
    parser.add_argument("--folder", type=Path, help="where the runs are kept, and found if they are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        runs = [folder / "first", folder / "second"]
        if not runs[1].exists():
            data = make_data(folder, arguments.samples)
            for seed, run in enumerate(runs):
                make_run(run, data, seed)
        rows = [
            measured("report", runs[0], output=runs[0] / "report.html"),
            measured("compare", *runs, output=runs[1] / "compare.html"),
        ]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    results = {"machine": machine, "samples": arguments.samples, "load": round(os.getloadavg()[0], 1), "rows": rows}
    if arguments.samples == SAMPLES:
        (RESULTS / "report.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


def make_data(folder: Path, samples: int) -> Path:
    """Write the records and an image file for each; the images are the demo's, each used several times."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [record["images"][0]["bytes"] for record in load_split("demo:pool", min(IMAGES, samples))]
    path = folder / "data.jsonl"
    with path.open("w") as file:
        for row in range(samples):
            name = f"images/{row // 1000}/{row}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(images[row % len(images)])
            text = f"<image>Question {row}: what does the image show in the row that the text names, and why?"
            record = {
                "id": f"sample-{row:06}",
                "messages": [{"role": "user", "content": text}],
                "images": [name],
                "solution": str(row % 997),
                "ability": ABILITIES[row % len(ABILITIES)],
                "source": SOURCES[row // 7 % len(SOURCES)],
            }
            file.write(json.dumps(record) + "\n")
    return path


def make_run(run: Path, data: Path, seed: int) -> None:
    """Write a finished run of the records; a sample's difficulty is the same in every run, its draws differ."""
    began = time.time()
    records = [json.loads(line) for line in data.read_text().splitlines()]
    rng = np.random.default_rng(0)
    count = len(records)
    reach = rng.beta(1.2, 1.2, count) * 1.3 - 0.1  # the mask ratio at which half of its answers are wrong
    best = np.where(rng.random(count) < 0.4, 0.0, rng.beta(2, 1, count))
    chances = best[:, None] / (1 + np.exp((np.asarray(CONFIG.ratios) - reach[:, None]) / 0.08))
    balances = np.exp(rng.normal(0.3, 0.8, count))
    tries = np.random.default_rng(seed + 1).geometric(np.maximum(chances, 1e-9))  # of the first right answer
    ladders, attention = [], {}
    with Store(run) as store:
        for first in range(0, count, BATCH):
            rollouts: list[Rollout] = []
            for row in range(first, min(first + BATCH, count)):
                own = list(asked(records[row], tries[row]))
                record = as_scored(records[row], data.parent)
                graded = [(rollout.ratio, rollout.realization, rollout.grade) for rollout in own]
                ladders.append(Ladder(row, record, CONFIG, graded))
                if own[0].grade or any(rollout.grade for rollout in own if not rollout.ratio):
                    profile = balances[row] * np.exp(np.linspace(-1, 1, LAYERS))
                    attention[record["id"]] = SampleAttention(float(balances[row]), None, tuple(profile.tolist()))
                rollouts += own
            store.commit(rollouts)
        digests = {ladder.record["id"]: sample_digest(ladder.record) for ladder in ladders}
        store.agree_on_samples(digests.items())
        rollouts_made = store.count()
    write_rejected(run, [])
    write_scores(run, ladders, CONFIG, attention, CONFIG.cmab.bounds, digests)
    steps = ("generate", "decode", "mask", "processor", "grade", "wait_for_prepare")
    settings = {name: value for name, value in vars(CONFIG).items() if name not in ("image_root", "cmab")}
    write_run(
        run,
        {
            "data": str(data),
            "data_format": "ms-swift",
            "image_root": None,
            "model": "made/up-7B",
            "device": "cpu",
            "dtype": "float32",
            "mask_space": "source",
            "backends": {"mask_pixels": "none", "image_processor": "none"},
            "settings": settings | {"seed": seed, "max_new_tokens": 64},
            "cmab": {"settings": settings_of(CONFIG.cmab), "seconds": 1.0, "completions": len(attention)},
            "status": "done",
            "counts": {
                "samples": count,
                "rejected": 0,
                "grading_timeouts": 0,
                "rollouts_this_run": rollouts_made,
                "rollouts_exhaustive": count * max_rollouts(CONFIG),
            },
            "seconds": {"total": round(time.time() - began, 1), "cmab": 1.0} | dict.fromkeys(steps, 0.0),
        },
    )


def asked(record: dict[str, Any], tries: np.ndarray) -> Iterator[Rollout]:
    """Yield the rollouts of a lossless ladder: up to the first right one of each level, and ten where there is none."""
    for ratio, needed in zip(CONFIG.ratios, tries.tolist(), strict=True):
        for realization in range(min(needed, CONFIG.num_masks)):
            right = realization == needed - 1
            answer = record["solution"] if right else "no number of the image"
            text = f"The row that the text names shows several numbers. <answer>{answer}</answer>"
            yield Rollout(record["id"], ratio, realization, text, int(right), [7, 11, 13, 17])
        if needed > CONFIG.num_masks:
            return


def as_scored(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the parts of a record that the ladder and the digest need."""
    images = [{"bytes": None, "path": str(folder / name)} for name in record["images"]]
    return (
        record
        | {"prompt": record["messages"], "grader": "math", "options": None, "box_format": None}
        | {"images": images}
    )


def measured(command: str, *folders: Path, output: Path) -> dict[str, Any]:
    """Return seconds, peak memory and output size of a command."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hardsample.cli.main", command, *map(str, folders)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"hardsample {command} failed")
    row = {
        "what": command,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
        "file_mb": round(output.stat().st_size / 1e6, 2),
    }
    print(f"{command:8} {row['seconds']} s, {row['peak_memory_mb']:,} MB at the peak, {row['file_mb']} MB")
    return row


if __name__ == "__main__":
    main()
