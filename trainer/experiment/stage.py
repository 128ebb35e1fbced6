"""One training of an experiment, in a process of its own: `python -m hardsample.trainer.experiment.stage FOLDER`.

The folder's stage.json says what to train; it resumes from its last checkpoint, writes the model, then evaluates it.
The process ends when the one that started it does: it reads its standard input, which ends then.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock
from transformers import TrainerCallback
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from hardsample.data.loading import load
from hardsample.engines.transformers import load_model, load_processor, resolved_model
from hardsample.errors import ConfigError
from hardsample.evaluation.evaluate import evaluate
from hardsample.files import DONE_FILE, EVALUATION_FILE, PROGRESS_FILE, ROLLOUTS_FILE, SECONDS_FILE, STAGE_FILE
from hardsample.scoring.matching import scored_records
from hardsample.scoring.output import Scores
from hardsample.scoring.score import score
from hardsample.trainer.config import DifficultyAwareGRPOConfig
from hardsample.trainer.data.decoding import samples_named
from hardsample.trainer.data.rows import with_images
from hardsample.trainer.experiment.config import scoring_settings
from hardsample.trainer.experiment.targets import completion_dataset
from hardsample.trainer.grpo import DifficultyAwareGRPOTrainer
from hardsample.trainer.training import last_checkpoint, reward
from hardsample.trainer.watch import Watch

MODEL = "model"
LOCK_SECONDS = 60


class Progress(TrainerCallback):
    """Writes the number of the last step, which the experiment's progress bar reads, and the seconds spent so far.

    Args:
        folder: of the training. Time before a kill counts, including that of steps which are repeated after it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before, self.began = _number(folder / SECONDS_FILE), time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on this training, by all its processes."""
        return self.before + time.monotonic() - self.began

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after each step."""
        (self.folder / PROGRESS_FILE).write_text(str(state.global_step))
        (self.folder / SECONDS_FILE).write_text(f"{self.seconds:.1f}")


def run(folder: Path) -> None:
    """Run what stage.json asks for and is not done yet.

    Args:
        folder: of the training.
    """
    wanted = json.loads((folder / STAGE_FILE).read_text())
    with FileLock(folder / ".lock", timeout=LOCK_SECONDS):
        if wanted["method"] == "score":
            score(wanted["data"], wanted["model"], wanted["output"], scoring_settings(wanted["options"]))
            return
        model = wanted["model"]
        if wanted["method"] in ("sft", "grpo"):
            if not (folder / DONE_FILE).exists():
                _write(folder / DONE_FILE, train(folder, wanted))
                shutil.rmtree(folder / "training", ignore_errors=True)
            model = str(folder / MODEL)
        for name, options in wanted["evaluations"].items():
            if not (folder / name / EVALUATION_FILE).exists():
                evaluate(progress=False, model=model, output=folder / name, **options)


def train(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Train a model and save it.

    Args:
        folder: of the training.
        wanted: stage.json.

    Returns:
        What it took: steps, rollouts, tokens, seconds; alarms; and for SFT what its targets are.
    """
    progress = Progress(folder)
    model_options = ModelConfig(**wanted["model_config"])
    network, processor = _load(wanted, model_options)
    scores = Scores(wanted["scores"])
    loaded = load(
        wanted["data"],
        image_root=wanted["image_root"],
        grader=wanted["grader"],
        limit=wanted["limit"],
        options_template=scores.options_template,
    )
    data = with_images(scored_records(scores, loaded.dataset, wanted["ids"], wanted["data"]))
    made = folder / "training"
    common = {
        "output_dir": str(made),
        "seed": wanted["seed"],
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": str(network.device) == "cpu",
        "logging_steps": 1,
        "save_total_limit": 1,
    }
    peft = get_peft_config(model_options)
    targets = None
    make = _grpo if wanted["method"] == "grpo" else _sft
    trainer, targets = make(network, processor, data, common | wanted["options"], wanted, peft)
    trainer.add_callback(progress)
    with samples_named(data):
        trainer.train(resume_from_checkpoint=last_checkpoint(made))
    if wanted["method"] == "grpo":
        print(trainer.summary(), flush=True)  # into log.txt
    _save(trainer, processor, folder / MODEL, merge=peft is not None)
    logs = trainer.state.log_history
    counters = trainer.difficulty.counters if wanted["method"] == "grpo" and trainer.difficulty else {}
    tokens = [entry["num_tokens"] for entry in logs if "num_tokens" in entry]
    return {
        "steps": trainer.state.global_step,
        "samples": len(data),
        "rollouts": sum(counters.get(name, 0) for name in ("rollouts", "probes", "monitor_rollouts")),
        "tokens": int(tokens[-1]) if tokens else 0,
        "seconds": round(progress.seconds, 1),
        "alarms": {alarm.name: alarm.text for alarm in _alarms(logs)},
        "targets": targets,
        "rewards": [entry["reward"] for entry in logs if "reward" in entry],
        "frac_zero_std": [entry["frac_reward_zero_std"] for entry in logs if "frac_reward_zero_std" in entry],
    }


def _load(wanted: Mapping[str, Any], options: ModelConfig) -> tuple[Any, Any]:
    name = resolved_model(wanted["model"])
    trust = wanted["trust_remote_code"]
    network = load_model(name, None, options.dtype or "float32", options.attn_implementation, trust_remote_code=trust)
    frozen = 0
    for parameter, values in network.named_parameters():
        if any(part in parameter for part in wanted["freeze"]):
            values.requires_grad_(False)
            frozen += 1
    if wanted["freeze"] and not frozen:
        raise ConfigError(f"freeze names {wanted['freeze']}, and no parameter of {name} has that in its name")
    return network, load_processor(name, trust)


def _grpo(
    network: Any, processor: Any, data: Dataset, options: dict[str, Any], wanted: Mapping[str, Any], peft: Any
) -> tuple[Any, None]:
    rewards = [reward(name) for name in wanted["reward_funcs"]]
    config = DifficultyAwareGRPOConfig(**options)
    return DifficultyAwareGRPOTrainer(
        model=network,
        args=config,
        reward_funcs=rewards,
        train_dataset=data,
        processing_class=processor,
        peft_config=peft,
    ), None


def _sft(
    network: Any, processor: Any, data: Dataset, options: dict[str, Any], wanted: Mapping[str, Any], peft: Any
) -> tuple[Any, dict[str, int]]:
    right = right_completions(Path(wanted["scores"]), set(wanted["ids"]))
    made, targets = completion_dataset(data, right, wanted["seed"], wanted["reasoning_column"])
    made = with_images(made)
    config = SFTConfig(**{"max_length": wanted["max_sft_length"]} | options)
    trainer = SFTTrainer(model=network, args=config, train_dataset=made, processing_class=processor, peft_config=peft)
    return trainer, targets


def right_completions(scores: Path, samples: set[str]) -> dict[str, list[str]]:
    """Return the completions at λ = 0 of a scoring run that were graded right, by sample.

    Args:
        scores: folder of the run; it is opened read-only, so that parallel trainings may read it.
        samples: whose.
    """
    right: dict[str, list[str]] = defaultdict(list)
    database = sqlite3.connect(f"{(scores / ROLLOUTS_FILE).resolve().as_uri()}?mode=ro", uri=True)
    try:
        query = "SELECT sample, completion FROM rollouts WHERE ratio = 0 AND grade = 1 ORDER BY sample, realization"
        for sample, completion in database.execute(query):
            if sample in samples:
                right[sample].append(completion)
    finally:
        database.close()
    return right


def _alarms(logs: list[dict[str, Any]]) -> list[Any]:
    watch = Watch()
    for entry in logs:
        watch.update(entry)
    return watch.raised


def _save(trainer: Any, processor: Any, target: Path, merge: bool) -> None:
    """Save the model whole or not at all; merge adapters, so that the next stage and the engine can load it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.merge_and_unload() if merge else model
    new = target.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    processor.save_pretrained(new)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.with_suffix(".new").write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".new").replace(path)


def _end_with_parent() -> None:
    """End this process when its standard input ends, so that a killed experiment leaves no training behind."""

    def wait() -> None:
        while os.read(0, 1):  # past sys.stdin, whose lock would be held at the end of this process
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    run(Path(sys.argv[1]))
