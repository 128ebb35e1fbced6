"""What the parts of a training cost on this machine, alone on it: `python bench/arena/prices.py` (two minutes).

Cells of the arena are trained beside other work, on several machines; the seconds that they took vary by a quarter
with that. So the report prices what they counted: a step of the optimiser, a rollout, the choice of prompts, features.
Each price is the mean of short trainings, in seconds of computing. Give your own with `report.py --prices FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import SEEN, Measure, train

from hardsample.trainer import DifficultyAwareGRPOTrainer
from hardsample.trainer.data import prefills
from hardsample.trainer.difficulty import Difficulty

PRICES = Path(__file__).parents[1] / "results" / "arena" / "prices.json"
STEPS, REPEATS = 16, 2
METHODS = {"uniform": "none", "inline-statistics": "statistics", "inline-prefill": "prefill"}
"""Trainings that are timed, and the features that their policy reads."""


def machine() -> str:
    """Return the name of this machine's processor, with the instructions that PyTorch uses."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    model = f" (model {facts['model']})" if "model" in facts else ""
    return f"{name}{model}, {torch.backends.cpu.get_cpu_capability()}"


class Clock:
    """Seconds of computing inside some methods, that of the inner ones taken from the outer ones."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, timed."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            self._open.append(0.0)
            try:
                return method(*args, **kwargs)
            finally:
                took = time.process_time() - began
                self.seconds[name] += took - self._open.pop()
                if self._open:
                    self._open[-1] += took

        return run


def measure(name: str) -> dict[str, float]:
    """Train for a few steps; seconds of each part, and how often it ran."""
    clock, counts, state = Clock(), defaultdict(float), {}
    trainer = DifficultyAwareGRPOTrainer
    methods = {
        "rollout": (trainer, ("_generate", "_calculate_rewards")),
        "choice": (trainer, ("_choose",)),
        "choice of the evidence": (Difficulty, ("observe",)),
        "step": (trainer, ("training_step",)),
        "features": (prefills, ("statistics_rows", "prefill_rows")),
    }
    kept = [(owner, method, getattr(owner, method)) for owner, names in methods.values() for method in names]

    def measured(self: Any, step: int, model: Any) -> None:
        self.rows.append({"step": step})
        if step == 0:
            clock.seconds.clear()
            state["trainer"] = self.trainer

    kept.append((Measure, "measure", Measure.measure))
    SEEN.clear()  # the vision tower sees each image for the first time
    try:
        for part, (owner, names) in methods.items():
            for method in names:
                setattr(owner, method, clock.timed(part, getattr(owner, method)))
        Measure.measure = measured
        train("wide", name, 0, STEPS)
    finally:
        for owner, method, original in kept:
            setattr(owner, method, original)
    difficulty = state["trainer"].difficulty
    prior = difficulty.evidence.prior
    clock.seconds["choice"] += clock.seconds.pop("choice of the evidence")
    counts = {"step": STEPS, "rollout": difficulty.counters["rollouts"], "choice": STEPS}
    counts["features"] = 0 if prior is None else int(prior.read.sum())
    return {part: clock.seconds[part] / counts[part] for part in counts if counts[part]}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = defaultdict(list)
    measure("uniform")  # images are read, code is loaded
    for _ in range(REPEATS):
        for name, features in METHODS.items():
            for part, seconds in measure(name).items():
                found[{"features": features, "choice": f"choice with {features}"}.get(part, part)].append(seconds)
    prices = {part: float(f"{np.mean(values):.4g}") for part, values in found.items()}
    new = PRICES.with_suffix(".new")
    new.write_text(json.dumps({"machine": machine(), "seconds": prices}, indent=1) + "\n")
    os.replace(new, PRICES)
    print(PRICES.read_text())


if __name__ == "__main__":
    main()
