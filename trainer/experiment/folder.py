"""The files of an experiment, and its options as TRL reads them.

OUTPUT/experiment.json     data, model and settings that may not change
OUTPUT/scores/             of the training data (or where `scores` says)
OUTPUT/trainings/KEY/      one stage: stage.json, log.txt, model/, done.json, test-…/ (its evaluation)
OUTPUT/cells/…/cell.json   one recipe with one seed: its stages and its result
OUTPUT/results.json, results.md
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from trl import SFTConfig

from hardsample.engines.transformers import default_device
from hardsample.scoring.output import OutputError
from hardsample.trainer.config import DifficultyAwareGRPOConfig
from hardsample.trainer.experiment.config import ExperimentConfig, ExperimentError


def evaluation_options(config: ExperimentConfig) -> dict[str, Any]:
    """Return the options that `evaluate` is called with."""
    return {
        "data": config.test,
        "limit": config.test_limit,
        "grader": config.grader,
        "trust_remote_code": config.trust_remote_code,
    } | config.evaluation


def evaluation_name(config: ExperimentConfig) -> str:
    """Return the name of an evaluation's folder, which depends on the test."""
    digest = blake2b(json.dumps(evaluation_options(config), sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"test-{digest}"


def training_folder(config: ExperimentConfig, key: str) -> Path:
    return config.folder / "trainings" / key


def made_options(name: str, kind: Any, options: dict[str, Any], config: ExperimentConfig) -> Any:
    """Make a TRL config of some options."""
    given = {"use_cpu": default_device() == "cpu", "report_to": "none"} | options
    try:
        return kind(output_dir=str(config.folder), **given)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"{name}: {error}") from error


def grpo_options(config: ExperimentConfig) -> DifficultyAwareGRPOConfig:
    return made_options("grpo", DifficultyAwareGRPOConfig, config.grpo, config)


def prompts_a_step(config: ExperimentConfig) -> dict[str, int]:
    """Return how many samples an optimizer step takes, by method."""
    grpo, sft = grpo_options(config), made_options("sft", SFTConfig, config.sft, config)
    each = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps
    return {
        "grpo": max(1, each // grpo.num_generations),
        "sft": sft.per_device_train_batch_size * sft.gradient_accumulation_steps,
    }


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(f"{path} cannot be read ({error}): delete it to make it again") from error


def write_json(path: Path, content: Any) -> None:
    path.with_suffix(".new").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)
