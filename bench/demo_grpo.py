"""Is the demo model improvable? Stock TRL GRPO on the pool: `python bench/demo_grpo.py --seed 0 1 2` (resumes
by seed).

300 steps × 64 rollouts (8 questions × 8 completions). Accuracy is measured at T = 0.7 on the first 1,200 of `demo:test`
and on held-out pretraining questions, before and every 50 steps. Writes bench/results/demo/grpo-seed*.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Image, List
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hardsample.demo import KNOBS, load_split, model_path
from hardsample.demo.generator import SIZES, make_record
from hardsample.engines.protocol import Request
from hardsample.engines.transformers import TransformersEngine, load_model, load_processor
from hardsample.grading.grader import Grader, correctness_reward
from hardsample.scoring.config import ScoringConfig

RESULTS = Path(__file__).parent / "results" / "demo"
HELD_OUT_PRETRAINING = 1_200


def pretraining_records(count: int) -> list[dict]:
    """Return records from the end of the pretraining split, which no training stage reaches."""
    from PIL import Image as Images

    rows = []
    for index in range(SIZES["pretrain"] - count, SIZES["pretrain"]):
        record = make_record("pretrain", index)
        content = [{"type": "image", "text": None}, {"type": "text", "text": record["question"]}]
        record["prompt"] = [{"role": "user", "content": content}]
        record["images"] = [Images.fromarray(record["image"])]
        rows.append(record)
    return rows


def accuracy(model, records: list[dict]) -> dict[str, float]:
    """Return the accuracy at T = 0.7, one rollout a record, by ability."""
    settings = model.generation_config
    engine = TransformersEngine(model, load_processor(str(model_path())), ScoringConfig(batch_size=256, seed=1234))
    right: dict[str, list[int]] = {}
    training = model.training
    model.eval()
    with Grader() as grader:
        for start in range(0, len(records), 256):
            batch = records[start : start + 256]
            results = engine.generate(engine.prepare([Request(record, 0.0, 0) for record in batch]))
            pairs = [(result.text, record) for result, record in zip(results, batch, strict=True)]
            for record, grade in zip(batch, grader.grade_many(pairs), strict=True):
                right.setdefault(record["ability"], []).append(int(grade))
    model.train(training)
    model.generation_config = settings
    every = [grade for grades in right.values() for grade in grades]
    return {name: round(float(np.mean(grades)), 4) for name, grades in right.items()} | {
        "all": round(float(np.mean(every)), 4)
    }


class Evaluate(TrainerCallback):
    """Measure every 50 steps."""

    def __init__(self, test: list[dict], pretraining: list[dict]) -> None:
        self.test, self.pretraining, self.rows = test, pretraining, []

    def measure(self, step: int, model, whole: bool) -> None:
        row = {"step": step, "test": accuracy(model, self.test)}
        if whole:
            row["pretraining"] = accuracy(model, self.pretraining)
        self.rows.append(row)
        print(row, flush=True)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % 50 == 0:
            self.measure(state.global_step, model, state.global_step == state.max_steps)


def train(seed: int, learning_rate: float, steps: int) -> dict:
    """Train once with stock GRPO and return the measurements."""
    model = load_model(str(model_path()), "cpu")
    processor = load_processor(str(model_path()))
    pool = load_split("demo:pool").remove_columns(list(KNOBS)).cast_column("images", List(Image()))
    test = list(load_split("demo:test"))
    callback = Evaluate(test, pretraining_records(HELD_OUT_PRETRAINING))
    callback.measure(0, model, True)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            seed=seed,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=16,
            max_steps=steps,
            temperature=1.0,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=10,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            args=config,
            reward_funcs=correctness_reward,
            train_dataset=pool,
            processing_class=processor,
            callbacks=[callback],
        )
        began = time.time()
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "frac_reward_zero_std" in entry]
    return {
        "seed": seed,
        "learning_rate": learning_rate,
        "steps": steps,
        "rollouts_a_step": 64,
        "seconds": round(time.time() - began, 1),
        "rows": callback.rows,
        "frac_reward_zero_std": [[entry["step"], round(entry["frac_reward_zero_std"], 4)] for entry in logs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seed:
        path = arguments.results / f"grpo-seed{seed}.json"
        if path.exists():
            continue
        path.write_text(json.dumps(train(seed, arguments.learning_rate, arguments.steps), indent=1) + "\n")


if __name__ == "__main__":
    main()
