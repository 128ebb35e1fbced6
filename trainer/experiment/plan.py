"""From an experiment and its strata to trainings: on which samples, from which model, and what cells share.

A training's key is a digest of all that determines it: the model it starts from, method, samples, options, seed. So two
recipes that begin with the same fine-tuning share it, and a recipe that uses no strata is trained once for both
metrics. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import product
from typing import Any

from hardsample.trainer.experiment.config import ExperimentConfig
from hardsample.trainer.experiment.paradigms import Recipe, rows_of, tercile_strata

BASE = "base"
"""The key of the untrained model, which is evaluated too."""
NEEDED = ("medium", "hard")


@dataclass(frozen=True)
class Strata:
    """The strata of the scored samples by one metric."""

    metric: str
    ids: tuple[str, ...]
    strata: tuple[str | None, ...]
    note: str = ""
    """Why these are not the strata by the usual bounds; empty if they are."""


@dataclass(frozen=True)
class Training:
    """One stage of one or more cells."""

    key: str
    parent: str
    """Key of the training that it continues from, or `BASE`."""
    method: str
    part: str
    seed: int
    rows: tuple[int, ...]
    """Of the scored samples."""
    reward_funcs: tuple[str, ...]
    options: Mapping[str, Any]
    steps: int
    rollouts: int


@dataclass(frozen=True)
class Cell:
    """One recipe with one seed."""

    metric: str | None
    """None where the recipe does not depend on it."""
    budget: str
    variant: str
    recipe: str
    seed: int
    trainings: tuple[str, ...]
    """Keys, in order; empty if it cannot be trained, and then `problem` says why."""
    problem: str = ""

    @property
    def name(self) -> str:
        """The cell's folder, relative to the folder of cells."""
        safe = "".join(character if character.isalnum() or character in "+-_" else "_" for character in self.recipe)
        return f"{self.budget}-{self.variant}/{self.metric or 'any'}-{safe}/seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All trainings and cells of an experiment."""

    trainings: dict[str, Training]
    """Each after those that it continues from."""
    cells: tuple[Cell, ...]


def strata_of(
    metric: str,
    ids: Sequence[str],
    strata: Sequence[str | None],
    thresholds: Sequence[float | None],
    balances: Sequence[float | None],
    ratios: Sequence[float],
    least: int,
) -> Strata:
    """Return a metric's strata, or thirds of the solved samples where medium or hard is too small to train on.

    Args:
        metric: `pism` or `cmab`.
        ids: of the scored samples.
        strata: by the metric's bounds.
        thresholds: λ*.
        balances: ρ̄.
        ratios: Λ of the run.
        least: samples that medium and hard must have each.
    """
    small = [f"{strata.count(name)} {name}" for name in NEEDED if strata.count(name) < least]
    if not small:
        return Strata(metric, tuple(ids), tuple(strata))
    thirds, bounds = tercile_strata(metric, strata, thresholds, balances, ratios)
    note = f"{metric}: only {' and '.join(small)} of {len(ids)} by the usual bounds, so thirds are used: {bounds}"
    return Strata(metric, tuple(ids), tuple(thirds), note)


def make_plan(config: ExperimentConfig, strata: Sequence[Strata], prompts: Mapping[str, int], group: int) -> Plan:
    """Plan every training.

    Args:
        config: the experiment.
        strata: of each of its metrics, over the same samples.
        prompts: samples that one step takes, by method.
        group: completions of each prompt of a GRPO step.
    """
    trainings: dict[str, Training] = {}
    cells: dict[tuple, Cell] = {}
    # seeds outermost: an experiment that is cut short has whole seeds
    order = product(config.seeds, strata, config.budgets, config.variants, config.parsed())
    for seed, metric, budget, variant, recipe in order:
        about = (metric.metric if recipe.uses_strata else None, budget, variant, recipe.name, seed)
        if about not in cells:
            made, problem = _chain(config, metric, budget, variant, recipe, seed, prompts, group)
            trainings |= {training.key: training for training in made}
            cells[about] = Cell(*about, tuple(training.key for training in made), problem)
    return Plan(trainings, tuple(cells.values()))


def _chain(
    config: ExperimentConfig,
    strata: Strata,
    budget: str,
    variant: str,
    recipe: Recipe,
    seed: int,
    prompts: Mapping[str, int],
    group: int,
) -> tuple[list[Training], str]:
    """Return the trainings of a cell, or why it has none."""
    trainings: list[Training] = []
    parent = BASE
    changes = config.variants[variant]
    for stage in recipe.stages:
        rows = tuple(rows_of(stage.part, strata.ids, strata.strata, seed))
        epoch = len(rows) // prompts[stage.method]
        if not rows or (stage.method == "grpo" and not epoch):
            need = prompts[stage.method] if stage.method == "grpo" else 1
            return [], f"{stage.part} has {len(rows)} samples, a step of {stage.method} takes {need}"
        grpo = stage.method == "grpo"
        if grpo:
            steps = config.steps if budget == "rollouts" else min(epoch, config.steps)
            options = config.grpo | changes.grpo | {"max_steps": steps}
            rewards = tuple(changes.reward_funcs or config.reward_funcs)
        else:
            options, rewards = {"num_train_epochs": 1} | config.sft, ()
            steps = max(1, -(-len(rows) // prompts["sft"]) * int(options["num_train_epochs"]))
        about = {
            "parent": parent,
            "method": stage.method,
            "ids": [strata.ids[row] for row in rows],
            "seed": seed,
            "options": options,
            "reward_funcs": rewards,
            **_shared(config, grpo),
        }
        key = f"{stage.method}-{_digest(about)}"
        rollouts = steps * prompts["grpo"] * group if grpo else 0
        about_stage = (key, parent, stage.method, str(stage.part), seed)
        trainings.append(Training(*about_stage, rows, rewards, options, steps, rollouts))
        parent = key
    return trainings, ""


def _shared(config: ExperimentConfig, grpo: bool) -> dict[str, Any]:
    """Return what determines every training of an experiment, besides its own options."""
    shared = {name: getattr(config, name) for name in ("model", "data", "freeze", "model_config", "grader")}
    if not grpo:
        shared |= {name: getattr(config, name) for name in ("max_sft_length", "reasoning_column")}
    return shared


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value, sort_keys=True, default=asdict).encode(), digest_size=6).hexdigest()
