"""The job behind `hardsample experiment`: score → subsets → recipes × seeds → evaluate → one table; it resumes.

OUTPUT/experiment.json     what this experiment is of
OUTPUT/scores/             of the training data (or where `scores` says)
OUTPUT/trainings/KEY/      one stage: stage.json, log.txt, model/, done.json, test-…/ (its evaluation)
OUTPUT/cells/…/cell.json   one recipe with one seed: its stages and its result
OUTPUT/results.json, results.md
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from trl import ModelConfig, SFTConfig

from hardsample.config import ScoringConfig
from hardsample.engines.transformers import default_device
from hardsample.evaluation import EVALUATION_FILE, evaluation_config
from hardsample.output import RUN_FILE, OutputError, Scores
from hardsample.trainer.config import DifficultyAwareGRPOConfig
from hardsample.trainer.experiment_config import ExperimentConfig, ExperimentError
from hardsample.trainer.jobs import LOG_FILE, Job, run_jobs, start
from hardsample.trainer.plan import BASE, Cell, Plan, Strata, Training, make_plan, strata_of
from hardsample.trainer.results import Difference, Outcome, Row, as_json, compare_rows, make_rows, markdown
from hardsample.trainer.stage import DONE_FILE, MODEL, STAGE_FILE
from hardsample.trainer.training import reward

EXPERIMENT_FILE, RESULTS_JSON, RESULTS_PAGE, CELL_FILE = "experiment.json", "results.json", "results.md", "cell.json"
SAME = ("data", "test", "model", "limit", "image_root", "grader", "freeze", "model_config", "scores", "scoring")
"""What may not change when a folder is gone on with; recipes, seeds, budgets and variants may be added."""

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
"""Fields that a training's process reads as they are."""


@dataclass(frozen=True)
class Results:
    """What an experiment found."""

    folder: Path
    rows: list[Row]
    differences: list[Difference]
    base: float | None
    notes: list[str]
    failed: dict[str, str]
    """Key of a training → what went wrong."""


@dataclass(frozen=True)
class Cost:
    """What one training of a plan takes."""

    training: Training
    done: bool
    seconds: float | None
    """Expected; None if there is nothing to tell it from."""


def run_experiment(config: ExperimentConfig, jobs: int = 1, progress: bool = True) -> Results:
    """Runs what is not there yet, and sums up.

    Args:
        config: see `read_experiment`.
        jobs: trainings side by side; each takes that share of the processor cores, or one of several GPUs.
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
        bar = tqdm(
            total=sum(job.steps for job in todo),
            unit="step",
            desc="training",
            disable=not progress,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,  # a log file wants few lines
        )

        def moved(steps: int, running: list[str]) -> None:
            bar.set_postfix_str(", ".join(running)[:60], refresh=False)
            bar.update(steps)

        with bar:
            # the untrained model first: what is wrong with the test data is found before hours of training
            base = [job for job in todo if job.key == BASE]
            failed = run_jobs(base, 1, moved, _gpus())
            if failed:
                log = _folder(config, BASE) / LOG_FILE
                raise ExperimentError(
                    f"{config.model} cannot be evaluated on {config.test}: {failed[BASE]} (see {log})"
                )
            failed = run_jobs([job for job in todo if job.key != BASE], jobs, moved, _gpus())
    for training in plan.trainings.values():
        if not config.keep_models and training.key not in failed:
            shutil.rmtree(_folder(config, training.key) / MODEL, ignore_errors=True)
    return summed_up(config, plan, strata, failed)


def check_options(config: ExperimentConfig) -> None:
    """Finds mistakes in the options of TRL and in the rewards before hours are spent on scores.

    Args:
        config: the experiment.

    Raises:
        ExperimentError: an option is unknown, or out of range.
        TrainingError: there is no such reward function.
    """
    _prompts(config)
    for name, variant in config.variants.items():
        _options(f"variants.{name}.grpo", DifficultyAwareGRPOConfig, config.grpo | variant.grpo, config)
        for one in variant.reward_funcs or config.reward_funcs:
            reward(one)
    try:
        evaluation_config(**{name: value for name, value in _test(config).items() if name != "data"})
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"evaluation: {error}") from error
    try:
        ModelConfig(**config.model_config)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"model_config: {error}") from error


def check_folder(config: ExperimentConfig) -> None:
    """Remembers what the folder's experiment is of, or checks that it is the same.

    Args:
        config: the experiment.

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
    config.folder.mkdir(parents=True, exist_ok=True)
    _write(path, about)


def score_first(config: ExperimentConfig) -> None:
    """Scores the training data if that has not been done, in a process of its own, which gives its memory back.

    Args:
        config: the experiment.

    Raises:
        ExperimentError: scoring failed.
    """
    try:
        run = json.loads((config.scores_folder / RUN_FILE).read_text())
    except (OSError, ValueError):
        run = {}
    lacking = [name for name in config.metrics if name not in run.get("settings", {}).get("metric", ())]
    if run.get("status") == "done" and not lacking:
        return
    if run.get("status") == "done" and config.scores:
        raise ExperimentError(
            f"{config.scores} was scored without {lacking[0]}: run its `hardsample score` again with --metric "
            f"{','.join(['pism', *lacking])}"
        )
    options: dict[str, Any] = {
        "metric": ["pism", *(one for one in config.metrics if one != "pism")],
        "limit": config.limit,
    }
    options |= {"image_root": config.image_root, "grader": config.grader} | config.scoring
    ScoringConfig(**options)  # a mistake is said here
    folder = config.folder / "trainings" / "scoring"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"method": "score", "data": config.data, "model": config.model, "output": str(config.scores_folder)}
    _write(folder / STAGE_FILE, about | {"options": options})
    process = start(folder, shown=True)
    try:
        code = process.wait()
    finally:
        process.terminate()
    if code:
        raise ExperimentError(f"scoring into {config.scores_folder} failed: see above; the same command goes on")


def laid_out(config: ExperimentConfig) -> tuple[Plan, list[Strata]]:
    """The plan of all trainings, from finished scores.

    Args:
        config: the experiment.

    Returns:
        The plan, and the strata of each metric.
    """
    scores = Scores(config.scores_folder)
    table = scores.table
    ids, balances = list(table["id"]), list(table["attention_balance"])
    found = []
    for metric in config.metrics:
        labels = list(table["stratum"] if metric == "pism" else table["cmab_stratum"])
        thresholds, ratios = list(table["failure_threshold"]), scores.config().ratios
        found.append(strata_of(metric, ids, labels, thresholds, balances, ratios, config.min_stratum))
    return make_plan(config, found, _prompts(config), _grpo(config).num_generations), found


def costs(config: ExperimentConfig, plan: Plan) -> list[Cost]:
    """What each training takes: seconds by those of the same method that are done, else by the pace of scoring.

    Args:
        config: the experiment.
        plan: its plan.
    """
    done = {key: _read(_folder(config, key) / DONE_FILE) for key in plan.trainings}
    pace: dict[str, float] = {}
    for method in ("sft", "grpo"):
        made = [(found, plan.trainings[key].steps) for key, found in done.items() if found and key.startswith(method)]
        if made:
            pace[method] = sum(one["seconds"] for one, _ in made) / sum(steps for _, steps in made)
    if "grpo" not in pace:
        run = _read(config.scores_folder / RUN_FILE) or {}
        made_rollouts = run.get("counts", {}).get("rollouts_this_run", 0)
        if made_rollouts:
            each = run["seconds"]["total"] / made_rollouts
            group = _grpo(config).num_generations
            pace["grpo"] = 2 * each * _prompts(config)["grpo"] * group  # a rollout is also run forward and backward
            pace.setdefault("sft", 2 * each * _prompts(config)["sft"])
    return [
        Cost(one, done[key] is not None, pace[one.method] * one.steps if one.method in pace else None)
        for key, one in plan.trainings.items()
    ]


def summed_up(config: ExperimentConfig, plan: Plan, strata: Sequence[Strata], failed: dict[str, str]) -> Results:
    """Writes each cell's result, results.json and results.md from what is there.

    Args:
        config: the experiment.
        plan: its plan.
        strata: of its metrics.
        failed: key of a training → what went wrong.
    """
    outcomes = [_outcome(config, plan, cell, failed) for cell in plan.cells]
    rows = make_rows(outcomes)
    assert config.primary is not None  # set by the config itself
    differences = compare_rows(rows, config.primary.recipe, config.primary.against)
    found = _read(config.folder / "trainings" / BASE / _test_name(config) / EVALUATION_FILE)
    base = found["overall"]["accuracy"] if found else None
    notes = [one.note for one in strata if one.note]
    run = _read(config.scores_folder / RUN_FILE) or {}
    if run.get("counts"):
        notes.append(
            f"scoring took {run['counts']['rollouts']:,} rollouts, once for all recipes; they are not in the table"
        )
    targets = _targets(config, plan)
    notes += [f"SFT imitates {targets}"] if targets else []
    title = f"Recipes on {config.data} with {config.model}"
    content = dict(as_json(rows, differences)) | {"base": base, "notes": notes, "config": asdict(config)}
    _write(config.folder / RESULTS_JSON, content)
    (config.folder / RESULTS_PAGE).write_text(markdown(title, rows, differences, base, notes))
    return Results(config.folder, rows, differences, base, notes, failed)


def _outcome(config: ExperimentConfig, plan: Plan, cell: Cell, failed: dict[str, str]) -> Outcome:
    about = (cell.metric, cell.budget, cell.variant, cell.recipe, cell.seed)
    folder = config.folder / "cells" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    problem = cell.problem or next((failed[key] for key in cell.trainings if key in failed), "")
    made = [_read(_folder(config, key) / DONE_FILE) for key in cell.trainings]
    found = None
    if cell.trainings and not problem:
        found = _read(_folder(config, cell.trainings[-1]) / _test_name(config) / EVALUATION_FILE)
    outcome = Outcome(*about, problem=problem or ("" if found else "not run yet"))
    if found and all(made):
        ready = [one for one in made if one]
        outcome = Outcome(
            *about,
            accuracy=found["overall"]["accuracy"],
            rollouts=sum(one["rollouts"] for one in ready),
            tokens=sum(one["tokens"] for one in ready),
            seconds=sum(one["seconds"] for one in ready),
            samples=tuple(one["samples"] for one in ready),
            alarms=tuple(dict.fromkeys(name for one in ready for name in one["alarms"])),
        )
    _write(folder / CELL_FILE, asdict(outcome) | {"trainings": list(cell.trainings)})
    return outcome


def _targets(config: ExperimentConfig, plan: Plan) -> str:
    """What all fine-tunings together imitate, in words."""
    counts: dict[str, int] = {}
    for key, training in plan.trainings.items():
        made = _read(_folder(config, key) / DONE_FILE) if training.method == "sft" else None
        for name, number in ((made or {}).get("targets") or {}).items():
            counts[name] = counts.get(name, 0) + number
    total = sum(counts.values())
    return ", ".join(f"{name} in {number / total:.0%}" for name, number in counts.items())


def _to_do(config: ExperimentConfig, plan: Plan, ids: Sequence[str]) -> list[Job]:
    """Writes what each training's process needs to know, of those that are not done."""
    jobs: list[Job] = []
    wanted: set[str] = set()  # whose models are gone on from
    for key, training in reversed(plan.trainings.items()):
        folder = _folder(config, key)
        last = any(cell.trainings and cell.trainings[-1] == key for cell in plan.cells)
        evaluations = {_test_name(config): _test(config)} if last else {}
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
            "model": config.model if base else str(_folder(config, training.parent) / MODEL),
            "seed": training.seed,
            "options": dict(training.options),
            "reward_funcs": list(training.reward_funcs),
            "evaluations": evaluations,
            "scores": str(config.scores_folder),
            "ids": [ids[row] for row in training.rows],
        }
        _write(folder / STAGE_FILE, about | {name: getattr(config, name) for name in PASSED_ON})
        jobs.append(Job(key, folder, None if base else training.parent, training.steps))
    folder = _folder(config, BASE)
    if not (folder / _test_name(config) / EVALUATION_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        about = {"method": BASE, "model": config.model, "evaluations": {_test_name(config): _test(config)}}
        _write(folder / STAGE_FILE, about)
        jobs.append(Job(BASE, folder, None, 0))
    return jobs[::-1]


def _test(config: ExperimentConfig) -> dict[str, Any]:
    """What `evaluate` is called with."""
    return {
        "data": config.test,
        "limit": config.test_limit,
        "grader": config.grader,
        "trust_remote_code": config.trust_remote_code,
    } | config.evaluation


def _test_name(config: ExperimentConfig) -> str:
    """The folder of an evaluation: another test is another folder."""
    digest = blake2b(json.dumps(_test(config), sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"test-{digest}"


def _folder(config: ExperimentConfig, key: str) -> Path:
    return config.folder / "trainings" / key


def _options(name: str, kind: Any, options: dict[str, Any], config: ExperimentConfig) -> Any:
    """Options as TRL understands them."""
    given = {"use_cpu": default_device() == "cpu", "report_to": "none"} | options
    try:
        return kind(output_dir=str(config.folder), **given)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"{name}: {error}") from error


def _grpo(config: ExperimentConfig) -> DifficultyAwareGRPOConfig:
    return _options("grpo", DifficultyAwareGRPOConfig, config.grpo, config)


def _prompts(config: ExperimentConfig) -> dict[str, int]:
    """Samples that one optimizer step takes, by method."""
    grpo, sft = _grpo(config), _options("sft", SFTConfig, config.sft, config)
    each = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps
    return {
        "grpo": max(1, each // grpo.num_generations),
        "sft": sft.per_device_train_batch_size * sft.gradient_accumulation_steps,
    }


def _gpus() -> int:
    return torch.cuda.device_count()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(f"{path} cannot be read ({error}): delete it, and it is made again") from error


def _write(path: Path, content: Any) -> None:
    path.with_suffix(".new").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)
