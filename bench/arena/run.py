"""The arena: methods of choosing prompts, side by side, with all costs counted.

    python bench/arena/run.py --environments wide --methods uniform oracle predictor --seeds 5 6 7 8 9

Each cell (environment, method, seed) is one GRPO training of the demo model: 64 completions a step, in groups of 8 (or
of `--generations`), at T = 1, learning rate 7e-5, the vision tower frozen. Everything that costs is counted, and priced
by the report (`prices.py`); a row's seconds are what the process computed meanwhile, measurements left out. A cell that
is done is not made again; start the command twice to use two cores. `python bench/arena/report.py` makes tables and
plots of what is done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.modeling_outputs import BaseModelOutputWithPooling

sys.path.insert(0, str(Path(__file__).parents[1]))
from cells import DEMO_TRAINING, Help, claim
from environments import ENVIRONMENTS, ROOT, HeldOut, base_rates, features, held_out, questions, scores
from methods import METHODS, features_of

from hardsample.engines.transformers import load_model, load_processor
from hardsample.grading.grader import correctness_reward
from hardsample.trainer import DifficultyAwareGRPOConfig, DifficultyAwareGRPOTrainer

RESULTS = Path(__file__).parents[1] / "results" / "arena"
SEEN: dict[int, torch.Tensor] = {}
"""What the vision tower returned, by the bytes of the image: about 50 KB each."""
COMPLETIONS, GENERATIONS, LEARNING_RATE = 64, 8, 7e-5
STEPS, MEASURED_EVERY = 60, 10


def remember_images(model: Any) -> None:
    """Let the frozen vision tower see each image once in a process: what it returns never changes."""
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    forward, empty = tower.forward, [None] * (model.config.vision_config.num_hidden_layers + 1)

    @torch.no_grad()
    def once(pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        keys = [hash(image.numpy().tobytes()) for image in pixel_values]
        new = {key: place for place, key in enumerate(keys) if key not in SEEN}
        if new:
            states = forward(pixel_values[list(new.values())], **kwargs).hidden_states[layer]
            SEEN.update(zip(new, (state.clone() for state in states), strict=True))
        states = torch.stack([SEEN[key] for key in keys])
        layers = list(empty)
        layers[layer] = states
        return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=tuple(layers))

    tower.forward = once


class Measure(TrainerCallback):
    """Accuracy on the test questions, and what it took so far."""

    def __init__(self, held_out: HeldOut, every: int) -> None:
        self.held_out, self.every, self.rows, self.trainer = held_out, every, [], None
        self.began, self.paused = time.process_time(), 0.0

    def statistics(self) -> int:
        """Return the samples whose text and image were read as training went."""
        prior = self.trainer.difficulty.evidence.prior
        inline = self.trainer.args.features == "statistics" and prior is not None
        return int(prior.read.sum()) if inline else 0

    def measure(self, step: int, model: Any) -> None:
        stopped = time.process_time()
        counters = self.trainer.difficulty.counters
        if step == 0 and self.held_out.untrained is None:
            self.held_out.untrained = self.held_out.accuracy(model)
        accuracy = self.held_out.accuracy(model) if step else self.held_out.untrained
        row = {
            "step": step,
            "rollouts": self.trainer.difficulty.rollouts,
            "tokens": counters["generated_tokens"],
            "prefills": counters["prefills"],
            "statistics": self.statistics(),
            "seconds": round(stopped - self.began - self.paused, 1),
            "accuracy": round(accuracy, 5),
        }
        self.paused += time.process_time() - stopped
        self.rows.append(row)
        print(row, flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.measure(state.global_step, model)


def train(environment: str, name: str, seed: int, steps: int, generations: int = GENERATIONS) -> dict[str, Any]:
    """Train one cell and return its measurements."""
    entry, method = ENVIRONMENTS[environment], METHODS[name]
    data, options = questions(environment), dict(method.options)
    extra = {"rollouts": 0, "prefills": 0, "statistics": 0}
    if method.oracle:
        wins = base_rates(environment).sum(1)
        data = data.select(np.flatnonzero((wins > 0) & (wins < 8)))
    if method.features:
        options["features"] = features(environment, method.features)
        extra["prefills" if method.features == "prefill" else "statistics"] += len(data)
    if method.strata:
        options["scores"], rollouts = scores(environment)
        extra["rollouts"] += rollouts
    model = load_model(entry.model, "cpu", "float32")
    model.model.vision_tower.requires_grad_(False)
    remember_images(model)
    processor = load_processor(entry.model)
    with tempfile.TemporaryDirectory() as folder:
        config = DifficultyAwareGRPOConfig(
            output_dir=folder,
            bf16=False,
            seed=seed,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=COMPLETIONS,
            num_generations=generations,
            max_steps=steps,
            **DEMO_TRAINING,
            **options,
        )
        measure = Measure(held_out(environment), MEASURED_EVERY)
        trainer = DifficultyAwareGRPOTrainer(
            model=model,
            args=config,
            reward_funcs=correctness_reward,
            train_dataset=data,
            processing_class=processor,
            callbacks=[measure],
        )
        measure.trainer = trainer
        if method.scores:
            wins = base_rates(environment)
            extra["rollouts"] += wins.size
            weight = 4 / wins.shape[1]
            for evidence in (trainer.difficulty.evidence,):
                evidence.successes[:] = wins.sum(1) * weight
                evidence.failures[:] = (wins.shape[1] - wins.sum(1)) * weight
        measure.measure(0, model)
        measure.began, measure.paused = time.process_time(), 0.0
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "difficulty/frac_zero_std" in entry]
    skills = {
        key: [
            round(entry[f"difficulty/predictor/{key}"], 4) for entry in logs if f"difficulty/predictor/{key}" in entry
        ]
        for key in ("pearson", "auroc", "calibration_error")
    }
    return {
        "environment": environment,
        "method": name,
        "options": method.options,
        "seed": seed,
        "steps": steps,
        "generations": generations,
        "features": features_of(method),
        "extra": extra,
        "rows": measure.rows,
        "frac_zero_std": [round(entry["difficulty/frac_zero_std"], 4) for entry in logs],
        "frac_zero_std_trained": [
            round(entry.get("difficulty/frac_zero_std_trained", entry["difficulty/frac_zero_std"]), 4) for entry in logs
        ],
        "mean_length": [round(entry["completions/mean_length"], 4) for entry in logs],
        "predictor": skills,
        "samples_met": int((trainer.difficulty.evidence.last_step >= 0).sum()),
        "counters": trainer.difficulty.counters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    environments, methods = list(ENVIRONMENTS), list(METHODS)
    parser.add_argument("--environments", nargs="+", default=environments, choices=environments, help="data and model")
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods, help="see methods.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5, 10)), help="one training each")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the optimiser")
    parser.add_argument("--generations", type=int, default=GENERATIONS, help="completions of a group")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in this process")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    ROOT.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for environment in arguments.environments:
            for name in arguments.methods:
                size = "" if arguments.generations == GENERATIONS else f"-g{arguments.generations}"
                path = arguments.results / f"{environment}{size}-{name}-seed{seed}.json"
                if not claim(path):
                    continue
                print(path.stem, flush=True)
                cell = train(environment, name, seed, arguments.steps, arguments.generations)
                path.with_suffix(".new").write_text(json.dumps(cell, indent=1) + "\n")
                os.replace(path.with_suffix(".new"), path)
                path.with_suffix(".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
