"""The job behind `hardsample experiment`: score → subsets → recipes × seeds → evaluate → one table; it resumes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from trl import ModelConfig, SFTConfig

from hardsample.data.loading import load
from hardsample.errors import ConfigError, HardsampleError
from hardsample.evaluation.config import EvaluationConfig
from hardsample.files import DONE_FILE, EVALUATION_FILE, EXPERIMENT_FILE, LOG_FILE, RUN_FILE, STAGE_FILE
from hardsample.scoring.config import ScoringConfig
from hardsample.scoring.matching import scored_records
from hardsample.scoring.output import Scores
from hardsample.settings import named_settings
from hardsample.trainer.config import DifficultyAwareGRPOConfig
from hardsample.trainer.experiment.config import (
    ExperimentConfig,
    ExperimentError,
    made_settings,
    scoring_settings,
)
from hardsample.trainer.experiment.folder import (
    evaluation_name,
    evaluation_options,
    grpo_options,
    made_options,
    prompts_a_step,
    training_folder,
    write_json,
)
from hardsample.trainer.experiment.jobs import Job, run_jobs, start
from hardsample.trainer.experiment.plan import BASE, Plan, Strata, make_plan, strata_of
from hardsample.trainer.experiment.stage import MODEL
from hardsample.trainer.experiment.summary import Results, summed_up
from hardsample.trainer.training import reward

SAME = ("data", "test", "model", "limit", "image_root", "grader", "freeze", "model_config", "scores", "scoring")
"""What may not change when a folder is resumed; recipes, seeds, budgets and variants may be added."""

PASSED_ON = (
    "data",
    "image_root",
    "grader",
    "limit",
    "freeze",
    "model_config",
    "max_sft_length",
    "reasoning_column",
    "trust_remote_code",
)
"""Fields that are passed on to a training's process unchanged."""

COUNTS = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")
"""Options that the plan computes with, and whose types TRL does not check."""


def run_experiment(config: ExperimentConfig, jobs: int = 1, progress: bool = True) -> Results:
    """Run what is not done yet, and summarize the results.

    Args:
        config: see `read_experiment`.
        jobs: trainings in parallel; each takes that share of the processor cores, or one of several GPUs.
        progress: show a bar over all steps.

    Raises:
        ExperimentError: the folder is another experiment's, or nothing can be trained.
        OutputError: the scores cannot be read.
    """
    check_options(config)
    check_folder(config)
    try:
        with FileLock(config.folder / ".lock", timeout=0):
            return _run(config, jobs, progress)
    except Timeout as error:
        raise ExperimentError(
            f"another process runs an experiment in {config.folder}: wait for it, or give another output"
        ) from error


def _run(config: ExperimentConfig, jobs: int, progress: bool) -> Results:
    score_first(config)
    plan, strata = laid_out(config)
    if not plan.trainings:
        raise ExperimentError(f"nothing can be trained: {plan.cells[0].problem}. Give more data, or other recipes")
    todo = _to_do(config, plan, strata[0].ids)
    failed: dict[str, str] = {}
    if todo:
        check_data(config, strata[0].ids)
        bar = tqdm(
            total=sum(job.steps for job in todo),
            unit="step",
            desc="training",
            disable=not progress,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,  # a log file wants few lines
        )

        def on_progress(steps: int, running: list[str]) -> None:
            bar.set_postfix_str(", ".join(running)[:60], refresh=False)
            bar.update(steps)

        with bar:
            # the untrained model first: what is wrong with the test data is found before hours of training
            base = [job for job in todo if job.key == BASE]
            failed = run_jobs(base, 1, on_progress, _gpus())
            if failed:
                log = training_folder(config, BASE) / LOG_FILE
                raise ExperimentError(
                    f"{config.model} cannot be evaluated on {config.test}: {failed[BASE]} (see {log})"
                )
            failed = run_jobs([job for job in todo if job.key != BASE], jobs, on_progress, _gpus())
    for training in plan.trainings.values():
        if not config.keep_models and training.key not in failed:
            shutil.rmtree(training_folder(config, training.key) / MODEL, ignore_errors=True)
    return summed_up(config, plan, strata, failed)


def check_options(config: ExperimentConfig) -> None:
    """Find mistakes in the options and in the rewards before hours are spent on scores.

    Args:
        config: the experiment.

    Raises:
        ConfigError: an option is unknown.
        ExperimentError: an option is out of range.
        TrainingError: there is no such reward function.
    """
    scoring_config(config)
    evaluation = {name: value for name, value in evaluation_options(config).items() if name != "data"}
    made_settings(EvaluationConfig, evaluation, "evaluation")
    _check_made("model_config", ModelConfig, config.model_config, lambda: ModelConfig(**config.model_config))
    _check_made("sft", SFTConfig, config.sft, lambda: made_options("sft", SFTConfig, config.sft, config))
    kind = DifficultyAwareGRPOConfig
    _check_made("grpo", kind, config.grpo, lambda: prompts_a_step(config))
    for name, variant in config.variants.items():
        where, options = f"variants.{name}.grpo", config.grpo | variant.grpo
        _check_made(where, kind, options, partial(made_options, where, kind, options, config))
        for reward_func in variant.reward_funcs or config.reward_funcs:
            reward(reward_func)


def _check_made(where: str, kind: Any, options: dict[str, Any], make: Callable[[], Any]) -> None:
    """Check the names of a library's options, then its own checks of their values."""
    named_settings(options, [known.name for known in fields(kind) if known.init], where)
    for name in COUNTS:
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{where}: {name} is {value!r}, must be an integer of at least 1: choose one")
    try:
        make()
    except HardsampleError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError, ImportError) as error:
        raise ConfigError(f"{where} is {options}: {error}: correct the option") from error


def check_folder(config: ExperimentConfig, remember: bool = True) -> None:
    """Check that the folder's experiment is this one, and write what it is if there is none.

    Args:
        config: the experiment.
        remember: write it; False only checks.

    Raises:
        ExperimentError: the folder holds another.
    """
    about = {name: value for name, value in asdict(config).items() if name in SAME}
    path = config.folder / EXPERIMENT_FILE
    if path.exists():
        before = json.loads(path.read_text())
        for name in SAME:
            if name in before and before[name] != about[name]:
                raise ExperimentError(
                    f"{config.folder} holds an experiment with {name} {before[name]!r}, this one has {about[name]!r}: "
                    "give another output (recipes, seeds, budgets and variants may be added)"
                )
    if remember:
        config.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, about)


def has_scores(config: ExperimentConfig) -> bool:
    """Return whether the training data has been scored to the end, by every metric.

    Args:
        config: the experiment.

    Raises:
        ExperimentError: the scores that it names lack a metric.
    """
    try:
        run = json.loads((config.scores_folder / RUN_FILE).read_text())
    except (OSError, ValueError):
        return False
    lacking = [name for name in config.metrics if name not in run.get("settings", {}).get("metric", ())]
    if run.get("status") == "done" and lacking and config.scores:
        raise ExperimentError(
            f"{config.scores} was scored without {lacking[0]}: run its `hardsample score` again with --metric "
            f"{','.join(['pism', *lacking])}"
        )
    return run.get("status") == "done" and not lacking


def scoring_config(config: ExperimentConfig) -> ScoringConfig:
    """Return the settings that the training data is scored with.

    Args:
        config: the experiment.

    Raises:
        ConfigError: a setting is unknown, or out of range.
    """
    return scoring_settings(_scoring_options(config))


def score_first(config: ExperimentConfig) -> None:
    """Score the training data unless that is done, in a separate process, so that its memory is freed.

    Args:
        config: the experiment.

    Raises:
        ExperimentError: scoring failed.
    """
    if has_scores(config):
        return
    options = _scoring_options(config)
    scoring_config(config)  # raises on a mistake
    folder = config.folder / "trainings" / "scoring"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"method": "score", "data": config.data, "model": config.model, "output": str(config.scores_folder)}
    write_json(folder / STAGE_FILE, about | {"options": options})
    process = start(folder, shown=True)
    try:
        code = process.wait()
    finally:
        process.terminate()
    if code:
        raise ExperimentError(f"scoring into {config.scores_folder} failed: see above; the same command resumes")


def _scoring_options(config: ExperimentConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "metric": ["pism", *(metric for metric in config.metrics if metric != "pism")],
        "limit": config.limit,
    }
    for name in ("image_root", "grader", "trust_remote_code"):
        options[name] = getattr(config, name)
    return options | config.scoring


def laid_out(config: ExperimentConfig) -> tuple[Plan, list[Strata]]:
    """Plan all trainings from finished scores.

    Args:
        config: the experiment.

    Returns:
        The plan, and the strata of each metric.

    Raises:
        ExperimentError: there are scores of more samples than `limit` allows.
    """
    scores = Scores(config.scores_folder)
    table = scores.table
    if config.limit is not None and len(scores) > config.limit:
        raise ExperimentError(
            f"{config.scores_folder} holds the scores of {len(scores)} samples, and limit is {config.limit}: give the "
            "limit that they were scored with, or other scores"
        )
    ids, balances = list(table["id"]), list(table["attention_balance"])
    strata = []
    for metric in config.metrics:
        labels = list(table["pism_stratum"] if metric == "pism" else table["cmab_stratum"])
        thresholds, ratios = list(table["failure_threshold"]), scores.config().ratios
        strata.append(strata_of(metric, ids, labels, thresholds, balances, ratios, config.min_stratum))
    return make_plan(config, strata, prompts_a_step(config), grpo_options(config).num_generations), strata


def check_data(config: ExperimentConfig, samples: Sequence[str]) -> None:
    """Find data that is not what was scored before hours are spent on training.

    Args:
        config: the experiment.
        samples: ids of the scored samples.

    Raises:
        OutputError: a scored sample is missing.
        ChangedError: a record is not what was scored under its id.
    """
    scores = Scores(config.scores_folder)
    loaded = load(
        config.data,
        image_root=config.image_root,
        grader=config.grader,
        limit=config.limit,
        options_template=scores.options_template,
    )
    scored_records(scores, loaded.dataset, samples, config.data)


def _to_do(config: ExperimentConfig, plan: Plan, ids: Sequence[str]) -> list[Job]:
    """Write stage.json of each training that is not done."""
    jobs: list[Job] = []
    wanted: set[str] = set()  # whose models others continue from
    for key, training in reversed(plan.trainings.items()):
        folder = training_folder(config, key)
        last = any(cell.trainings and cell.trainings[-1] == key for cell in plan.cells)
        evaluations = {evaluation_name(config): evaluation_options(config)} if last else {}
        trained = (folder / DONE_FILE).exists() and ((folder / MODEL).exists() or key not in wanted)
        evaluated = all((folder / name / EVALUATION_FILE).exists() for name in evaluations)
        if trained and evaluated:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MODEL).exists():
            (folder / DONE_FILE).unlink(missing_ok=True)
        base = training.parent == BASE
        wanted.add(training.parent)
        about = {
            "method": training.method,
            "part": training.part,
            "model": config.model if base else str(training_folder(config, training.parent) / MODEL),
            "seed": training.seed,
            "options": dict(training.options),
            "reward_funcs": list(training.reward_funcs),
            "evaluations": evaluations,
            "scores": str(config.scores_folder),
            "ids": [ids[row] for row in training.rows],
        }
        write_json(folder / STAGE_FILE, about | {name: getattr(config, name) for name in PASSED_ON})
        jobs.append(Job(key, folder, None if base else training.parent, training.steps))
    folder = training_folder(config, BASE)
    if not (folder / evaluation_name(config) / EVALUATION_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "method": BASE,
            "model": config.model,
            "evaluations": {evaluation_name(config): evaluation_options(config)},
        }
        write_json(folder / STAGE_FILE, about)
        jobs.append(Job(BASE, folder, None, 0))
    return jobs[::-1]


def _gpus() -> int:
    return torch.cuda.device_count()
