"""Which policy learns most from its rollouts? `python bench/policies.py --set subset --seeds 5 6 7 8 9` (resumes by
cell; start it twice with --threads 1 to use two cores), then `python bench/policies_report.py`.

The demo model is trained by GRPO on 500 questions of its pool (`subset`, drawn before any policy was run) or on all
5,100 (`pool`); its accuracy at T = 0.7 on the first 600 of `demo:test` is measured as it goes. Rollouts count training,
probes and monitoring set; what the scores cost is a second curve. The vision tower is frozen, as in most GRPO recipes
for vision-language models: it halves the time of a step here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cells import DEMO_TRAINING, claim
from datasets import Dataset, Image, List
from demo_grpo import accuracy
from transformers import TrainerCallback

from hardsample.demo import KNOBS, load_split, model_path
from hardsample.engines.transformers import load_model, load_processor
from hardsample.files import RUN_FILE
from hardsample.grading.grader import correctness_reward
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.score import score
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer

RESULTS = Path(__file__).parent / "results" / "policies"
SCORES = Path(__file__).parents[1] / "runs" / "policies"
SUBSET_SEED, SUBSET_SIZE, TEST_SIZE = 20261125, 500, 600
STEPS, PROMPTS, GENERATIONS, LEARNING_RATE = 80, 16, 4, 5e-5
MEASURED = (0, 20, 40, 60, 80)

SETTINGS: dict[str, dict] = {
    "uniform": {},
    "strata": {"policy": "strata", "scores": True},
    "signal": {"policy": "signal", "scores": True, "signal_estimate": "mean"},
    "signal-sharp": {"policy": "signal", "scores": True, "signal_estimate": "mean", "signal_sharpness": 3.0},
    "signal-unscored": {"policy": "signal", "signal_estimate": "mean", "signal_sharpness": 3.0},
    "signal-thompson": {"policy": "signal", "scores": True, "signal_estimate": "thompson"},
    "signal-thompson-unscored": {"policy": "signal", "signal_estimate": "thompson"},
    "target": {"policy": "target", "scores": True, "target_start": 0.5, "target_end": 0.5},
    "target-wide": {"policy": "target", "scores": True, "target_width": 0.3},
    "curriculum": {"policy": "curriculum", "scores": True},
    "curriculum-early": {"policy": "curriculum", "scores": True, "unsolved_from": 0.25},
    "signal-probes": {
        "policy": "signal",
        "scores": True,
        "signal_estimate": "mean",
        "probe_fraction": 0.125,
        "monitor_size": 16,
        "monitor_steps": 20,
    },
}


def questions(which: str) -> Dataset:
    """Return the training questions of a set."""
    pool = load_split("demo:pool").remove_columns(list(KNOBS)).cast_column("images", List(Image()))
    if which == "pool":
        return pool
    return pool.select(sorted(np.random.default_rng(SUBSET_SEED).choice(len(pool), SUBSET_SIZE, replace=False)))


def scored(which: str) -> Path:
    """Return the folder with a set's scores; score first if there is none."""
    folder = SCORES / f"scores-{which}"
    if not (folder / RUN_FILE).exists() or json.loads((folder / RUN_FILE).read_text()).get("status") != "done":
        pool = load_split("demo:pool")
        if which == "subset":
            pool = pool.select(sorted(np.random.default_rng(SUBSET_SEED).choice(len(pool), SUBSET_SIZE, replace=False)))
        score(pool, "demo", folder, ScoringConfig(batch_size=256))
    return folder


class Measure(TrainerCallback):
    """Accuracy on the test questions, and the rollouts that it took."""

    def __init__(self, test: list[dict]) -> None:
        self.test, self.rows = test, []
        self.trainer = None

    def measure(self, step: int, model) -> None:
        counters = self.trainer.difficulty.counters
        rollouts = counters["rollouts"] + counters["probes"] + counters["monitor_rollouts"]
        state = torch.get_rng_state()
        row = {"step": step, "rollouts": rollouts, "accuracy": accuracy(model, self.test)}
        torch.set_rng_state(state)
        self.rows.append(row)
        print(step, rollouts, row["accuracy"]["all"], flush=True)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step in MEASURED:
            self.measure(state.global_step, model)


def train(which: str, name: str, seed: int, steps: int) -> dict:
    """Train one cell and return its measurements."""
    options = dict(SETTINGS[name])
    if options.pop("scores", False):
        options["scores"] = str(scored(which))
    data, test = questions(which), list(load_split("demo:test", TEST_SIZE))
    model = load_model(str(model_path()), "cpu")
    model.model.vision_tower.requires_grad_(False)
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        config = DifficultyAwareGRPOConfig(
            output_dir=folder,
            bf16=True,
            seed=seed,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=PROMPTS * GENERATIONS,
            num_generations=GENERATIONS,
            max_steps=steps,
            **DEMO_TRAINING,
            **options,
        )
        callback = Measure(test)
        trainer = DifficultyAwareGRPOTrainer(
            model=model,
            args=config,
            reward_funcs=correctness_reward,
            train_dataset=data,
            processing_class=load_processor(str(model_path())),
            callbacks=[callback],
        )
        callback.trainer = trainer
        callback.measure(0, model)
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "difficulty/frac_zero_std" in entry]
    return {
        "set": which,
        "setting": name,
        "options": SETTINGS[name],
        "seed": seed,
        "steps": steps,
        "seconds": round(time.time() - began, 1),
        "rows": callback.rows,
        "frac_zero_std": [round(entry["difficulty/frac_zero_std"], 4) for entry in logs],
        "frac_zero_std_uniform": [
            round(entry.get("difficulty/frac_zero_std_uniform", float("nan")), 4) for entry in logs
        ],
        "samples_met": int((trainer.difficulty.evidence.last_step >= 0).sum()),
        "counters": trainer.difficulty.counters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("subset", "pool"), default="subset")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.settings:
            path = arguments.results / f"{arguments.set}-{name}-seed{seed}.json"
            if not claim(path):
                continue
            print(path.stem, flush=True)
            cell = train(arguments.set, name, seed, arguments.steps)
            path.with_suffix(".new").write_text(json.dumps(cell, indent=1) + "\n")
            path.with_suffix(".new").replace(path)
            path.with_suffix(".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
