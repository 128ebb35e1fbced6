"""Figures of a training: what its rollouts went to, counted, and what its logs say of draws and groups."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from hardsample.metrics.beta import spread_probability
from hardsample.trainer.selection.evidence import Evidence
from hardsample.trainer.selection.levels import Rows
from hardsample.trainer.selection.prior import LEAST_COUNT

COUNTERS = (
    "rollouts",
    "probes",
    "monitor_rollouts",
    "reference_rollouts",
    "effective_rollouts",
    "groups",
    "zero_std_groups",
    "trained_groups",
    "trained_zero_std_groups",
    "discarded_rollouts",
    "screening_rollouts",
    "screened_out_groups",
    "discarded_spread_groups",
    "resample_rounds",
    "generated_tokens",
    "prefills",
)
"""Names of all counters. `rollouts` are all that were generated for training; `effective_rollouts` those in groups with
nonzero variance that reached the optimiser; `discarded_rollouts` those that did not reach it. `screened_out_groups` are
candidates that were not completed, `discarded_spread_groups` groups with variance that did not reach the optimiser."""

LOGGED = (
    "groups",
    "zero_std_groups",
    "trained_groups",
    "trained_zero_std_groups",
    "discarded_rollouts",
    "screening_rollouts",
    "resample_rounds",
)
"""Counters that a training logs, so far, if some of its rollouts do not reach the optimiser."""


def new_counters() -> dict[str, int]:
    """Return the counters of a training that has not begun."""
    return dict.fromkeys(COUNTERS, 0)


def saved_counters(saved: Mapping[str, Any]) -> dict[str, int]:
    """Return the counters of a checkpoint, those of an older version completed."""
    older = {"trained_groups": saved.get("groups", 0), "trained_zero_std_groups": saved.get("zero_std_groups", 0)}
    return {name: int(saved.get(name, older.get(name, 0))) for name in COUNTERS}


def count_groups(
    counters: dict[str, int],
    spread: Bool[np.ndarray, "groups"],
    trained: Bool[np.ndarray, "groups"],
    complete: Bool[np.ndarray, "groups"],
    rollouts: int,
    num_generations: int,
) -> None:
    """Count the groups of a generation.

    Args:
        counters: changed in place.
        spread: whether the rewards of each group have nonzero variance.
        trained: whether each group reaches the optimiser.
        complete: whether each has all G completions; the others were only screened.
        rollouts: completions of all groups; those that are not trained on may have fewer than G each.
        num_generations: G, completions of a group that is trained on.
    """
    added = {
        "rollouts": rollouts,
        "effective_rollouts": int((spread & trained).sum()) * num_generations,
        "groups": len(spread),
        "zero_std_groups": int((~spread).sum()),
        "trained_groups": int(trained.sum()),
        "trained_zero_std_groups": int((trained & ~spread).sum()),
        "screened_out_groups": int((~complete).sum()),
        "discarded_spread_groups": int((spread & ~trained).sum()),
        "discarded_rollouts": rollouts - int(trained.sum()) * num_generations,
    }
    for name, number in added.items():
        counters[name] += number


def say_rollouts(counters: Mapping[str, int], resampled: bool, screened: int) -> list[str]:
    """Return lines that say what the rollouts went to.

    Args:
        counters: see `COUNTERS`.
        resampled: whether some rollouts do not reach the optimiser by the training's options.
        screened: completions by which candidates are screened.
    """
    groups, zero = counters["groups"], counters["zero_std_groups"]
    candidates = ""
    if counters["screened_out_groups"]:
        candidates = f"; {counters['screened_out_groups']:,} of all are candidates judged by {screened} completions"
    lines = [
        f"  effective       {counters['effective_rollouts']:,} rollouts; {zero:,} of {groups:,} groups "
        f"({zero / max(groups, 1):.0%}) had zero variance{candidates}"
    ]
    if not resampled:
        return lines
    unused = counters["discarded_spread_groups"]
    spread = f" ({unused:,} groups with variance among them)" if unused else ""
    trained, idle = counters["trained_groups"], counters["trained_zero_std_groups"]
    lines.append(
        f"  trained on      {trained:,} groups, {idle:,} ({idle / max(trained, 1):.0%}) with zero variance; "
        f"{counters['discarded_rollouts']:,} rollouts discarded{spread}, "
        f"{counters['screening_rollouts']:,} for screening, {counters['resample_rounds']:,} rounds of refill"
    )
    if groups and zero == groups:
        lines.append(
            "  nothing learnt  no group's rewards had any variance: look at the reward of a few completions, or add "
            "easier or harder data"
        )
    return lines


def expected_zero_std(evidence: Evidence, rows: Rows, step: int, num_generations: int) -> float | None:
    """Estimate the share of zero-variance groups if some samples were drawn uniformly.

    Args:
        evidence: of all samples.
        rows: the samples.
        step: optimizer steps done.
        num_generations: G, completions of a group.

    Returns:
        The mean of E[p^G] + E[(1−p)^G] over those of them with evidence; None if none has.
    """
    prior = evidence.prior
    if prior is not None and prior.read is not None:
        rows = rows[prior.read[rows]]
    alpha, beta = evidence.posterior(rows, step)
    known = evidence.successes[rows] + evidence.failures[rows] > LEAST_COUNT
    if prior is not None and known.any():
        known[:] = True  # what features say of the others is evidence, too
    if not known.any():
        return None
    return float(1 - spread_probability(alpha[known], beta[known], num_generations).mean())
