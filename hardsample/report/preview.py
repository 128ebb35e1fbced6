"""Preview of an experiment: what it would train and how long, without loading a model or writing a file.

Without scores the strata are unknown. The preview then assumes strata of equal size, and says so.
"""

from __future__ import annotations

from rich.console import RenderableType

from hardsample.data.loading import load
from hardsample.metrics.strata import STRATA
from hardsample.report.experiment_tables import plan_table
from hardsample.scoring.forecast import Forecast
from hardsample.scoring.rollouts import images_there
from hardsample.trainer.experiment.config import ExperimentConfig
from hardsample.trainer.experiment.folder import grpo_options, prompts_a_step
from hardsample.trainer.experiment.plan import Plan, Strata, make_plan
from hardsample.trainer.experiment.runner import check_folder, has_scores, laid_out, scoring_config
from hardsample.trainer.experiment.summary import costs


def preview(config: ExperimentConfig) -> RenderableType:
    """Describe what `run_experiment` would do now.

    Args:
        config: the experiment.

    Raises:
        ExperimentError: the folder is another experiment's, or the scores do not fit.
        DataError: there are no scores, and the data cannot be read.
    """
    check_folder(config, remember=False)
    known = has_scores(config)
    if known:
        plan, strata = laid_out(config)
        notes = [metric_strata.note for metric_strata in strata if metric_strata.note]
    else:
        plan, notes = _assumed_plan(config)
    return plan_table(costs(config, plan), plan.cells, notes, assumed=not known)


def _assumed_plan(config: ExperimentConfig) -> tuple[Plan, list[str]]:
    """Return the plan for strata of equal size, and notes on what is unknown."""
    scoring = scoring_config(config)
    loaded = load(
        config.data,
        image_root=scoring.image_root,
        grader=scoring.grader,
        limit=scoring.limit,
        strict=scoring.strict,
        max_pixels=scoring.max_pixels,
        options_template=scoring.options_template,
    )
    ids, has_image = list(loaded.dataset["id"]), images_there(loaded.dataset)
    strata = []
    for index, metric in enumerate(config.metrics):  # shifted for each metric, so that their trainings differ
        labels = [STRATA[(row + index) % len(STRATA)] if image else None for row, image in enumerate(has_image)]
        strata.append(Strata(metric, tuple(ids), tuple(labels)))
    plan = make_plan(config, strata, prompts_a_step(config), grpo_options(config).num_generations)
    with_image = sum(has_image)
    left = Forecast(scoring, with_image, len(ids) - with_image).remaining()
    expected = (
        f"about {left.expected:,.0f} rollouts ({left.low:,.0f} to {left.high:,.0f})"
        if left.low < left.high
        else f"{left.expected:,.0f} rollouts"
    )
    return plan, [
        f"there are no finished scores in {config.scores_folder}: a run first scores {len(ids):,} samples, {expected}; "
        "how long a rollout takes is unknown before that",
        f"the strata are unknown: numbers with ≈ assume strata of equal size, {with_image / len(STRATA):,.0f} "
        f"samples each (if medium or hard has fewer than {config.min_stratum}, thirds of the solved are used)",
    ]
