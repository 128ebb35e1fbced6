"""The expected cost of an experiment, and its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hardsample.files import CELL_FILE, DONE_FILE, EVALUATION_FILE, RESULTS_FILE, RESULTS_PAGE, RUN_FILE
from hardsample.metrics.strata import LABELS
from hardsample.trainer.experiment.config import ExperimentConfig
from hardsample.trainer.experiment.folder import (
    evaluation_name,
    grpo_options,
    prompts_a_step,
    read_json,
    training_folder,
    write_json,
)
from hardsample.trainer.experiment.plan import BASE, Cell, Plan, Strata, Training
from hardsample.trainer.experiment.results import Difference, Outcome, Row, as_json, compare_rows, make_rows, markdown


@dataclass(frozen=True)
class Results:
    """The results of an experiment."""

    folder: Path
    rows: list[Row]
    differences: list[Difference]
    base: float | None
    notes: list[str]
    failed: dict[str, str]
    """Key of a training → what went wrong."""


@dataclass(frozen=True)
class Cost:
    """The cost of a training."""

    training: Training
    done: bool
    seconds: float | None
    """Expected; None if there is nothing to estimate it from."""


def costs(config: ExperimentConfig, plan: Plan) -> list[Cost]:
    """Estimate the cost of each training: by those of the same method that are done, else by the pace of scoring.

    Args:
        config: the experiment.
        plan: its plan.
    """
    done = {key: read_json(training_folder(config, key) / DONE_FILE) for key in plan.trainings}
    pace: dict[str, float] = {}
    for method in ("sft", "grpo"):
        made = [(entry, plan.trainings[key].steps) for key, entry in done.items() if entry and key.startswith(method)]
        if made:
            pace[method] = sum(entry["seconds"] for entry, _ in made) / sum(steps for _, steps in made)
    if "grpo" not in pace:
        run = read_json(config.scores_folder / RUN_FILE) or {}
        made_rollouts = run.get("counts", {}).get("rollouts_this_run", 0)
        if made_rollouts:
            each = run["seconds"]["total"] / made_rollouts
            group = grpo_options(config).num_generations
            pace["grpo"] = (
                2 * each * prompts_a_step(config)["grpo"] * group
            )  # a rollout is also run forward and backward
            pace.setdefault("sft", 2 * each * prompts_a_step(config)["sft"])
    return [
        Cost(
            training, done[key] is not None, pace[training.method] * training.steps if training.method in pace else None
        )
        for key, training in plan.trainings.items()
    ]


def summed_up(config: ExperimentConfig, plan: Plan, strata: Sequence[Strata], failed: dict[str, str]) -> Results:
    """Write each cell's result, results.json and results.md from what is done.

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
    evaluation = read_json(config.folder / "trainings" / BASE / evaluation_name(config) / EVALUATION_FILE)
    base = evaluation["overall"]["accuracy"] if evaluation else None
    notes = [text for by_metric in strata for text in (by_metric.note, _sizes(by_metric)) if text]
    run = read_json(config.scores_folder / RUN_FILE) or {}
    if run.get("model", config.model) != config.model:
        notes.append(f"the strata are those of {run['model']}, not of {config.model}: score it, unless that is wanted")
    if run.get("counts"):
        notes.append(
            f"scoring took {run['counts']['rollouts']:,} rollouts, once for all recipes; they are not in the table"
        )
    targets = _targets(config, plan)
    notes += [f"SFT imitates {targets}"] if targets else []
    title = f"Recipes on {config.data} with {config.model}"
    content = dict(as_json(rows, differences)) | {"base": base, "notes": notes, "config": asdict(config)}
    write_json(config.folder / RESULTS_FILE, content)
    (config.folder / RESULTS_PAGE).write_text(markdown(title, rows, differences, base, notes))
    return Results(config.folder, rows, differences, base, notes, failed)


def _outcome(config: ExperimentConfig, plan: Plan, cell: Cell, failed: dict[str, str]) -> Outcome:
    about = (cell.metric, cell.budget, cell.variant, cell.recipe, cell.seed)
    folder = config.folder / "cells" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    problem = cell.problem or next((failed[key] for key in cell.trainings if key in failed), "")
    made = [read_json(training_folder(config, key) / DONE_FILE) for key in cell.trainings]
    evaluation = None
    if cell.trainings and not problem:
        evaluation = read_json(training_folder(config, cell.trainings[-1]) / evaluation_name(config) / EVALUATION_FILE)
    outcome = Outcome(*about, problem=problem or ("" if evaluation else "not run yet"))
    if evaluation and all(made):
        stages = [stage for stage in made if stage]
        outcome = Outcome(
            *about,
            accuracy=evaluation["overall"]["accuracy"],
            rollouts=sum(stage["rollouts"] for stage in stages),
            tokens=sum(stage["tokens"] for stage in stages),
            seconds=sum(stage["seconds"] for stage in stages),
            samples=tuple(stage["samples"] for stage in stages),
            alarms=tuple(dict.fromkeys(name for stage in stages for name in stage["alarms"])),
        )
    write_json(folder / CELL_FILE, asdict(outcome) | {"trainings": list(cell.trainings)})
    return outcome


def _sizes(strata: Strata) -> str:
    """Describe how many samples each stratum has."""
    counts = Counter(label or "none" for label in strata.strata)
    return f"strata by {strata.metric}: " + ", ".join(
        f"{name} {counts[name]:,}" for name in (*LABELS, "none") if name in counts
    )


def _targets(config: ExperimentConfig, plan: Plan) -> str:
    """Describe what all fine-tunings together imitate."""
    counts: dict[str, int] = {}
    for key, training in plan.trainings.items():
        made = read_json(training_folder(config, key) / DONE_FILE) if training.method == "sft" else None
        for name, number in ((made or {}).get("targets") or {}).items():
            counts[name] = counts.get(name, 0) + number
    total = sum(counts.values())
    return ", ".join(f"{name} in {number / total:.0%}" for name, number in counts.items())
