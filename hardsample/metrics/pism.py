"""PISM, difficulty from progressive image masking: which rollouts to make next, and the strata they give.

Pure functions of one sample's grades. `grades[i][k]` is the grade (0 or 1) of the rollout at ratio i under mask k,
None while there is none. The engine calls `next_rollouts` until it returns nothing, then takes the `verdict`:

    P_c(λ) = (1/K) Σ_k grade(λ, k),    λ* = min{λ ∈ Λ : P_c(λ) < τ}.

A `lossless` search draws the masks of a level in the order k = 0, 1, … and only until the remaining ones cannot change
whether the level passes; it ends at the first level that fails. So its λ* and stratum are those of the `exhaustive`
search, which fills the whole curve.
"""

from collections.abc import Sequence

from hardsample.metrics.options import PismConfig
from hardsample.metrics.strata import SOLVED, UNFINISHED, Verdict, count_verdict, level_passes

__all__ = [
    "BLIND_RATIO",
    "Grades",
    "PismConfig",
    "Verdict",
    "blind_rollouts",
    "counts",
    "empty_grades",
    "is_done",
    "max_rollouts",
    "next_rollouts",
    "solved_blind",
    "verdict",
]

BLIND_RATIO = 1.0
"""Mask ratio of the blind level, where nothing of the image is left."""

Grades = Sequence[Sequence[int | None]]


def empty_grades(config: PismConfig) -> list[list[int | None]]:
    """Return the grades of a sample that has no rollout yet.

    Args:
        config: settings.

    Returns:
        Nones, len(ratios) lists of K.
    """
    return [[None] * config.num_masks for _ in config.ratios]


def next_rollouts(
    grades: Grades, config: PismConfig, has_image: bool = True, answered: bool = True
) -> list[tuple[int, int]]:
    """Return which rollouts to make next, given all grades so far.

    Args:
        grades: (ratios, K) grades; None where there is none yet.
        config: settings.
        has_image: False for a record without an image, which has only P_c(0): all K rollouts at ratio 0.
        answered: whether any rollout at ratio 0 has an answer; while none has, a lossless search makes all K of them,
            because only then is the sample unfinished instead of unsolved.

    Returns:
        (ratio index, realization) pairs. Lossless: at most one, the first missing mask of the first open level.
        Exhaustive: all missing ones. Empty when the search is over.

    Raises:
        ValueError: grades do not have the shape of the settings, or a grade is not 0, 1 or None.
    """
    successes, attempts = counts(grades, config)
    levels = range(len(config.ratios) if has_image else 1)
    if config.search == "exhaustive" or not has_image:
        missing = [(i, k) for i in levels for k, grade in enumerate(grades[i]) if grade is None]
        return missing if config.search == "exhaustive" else missing[:1]
    for i in levels:
        passes = level_passes(successes[i], attempts[i], config.num_masks, config.tau)
        if passes is None or (not passes and not answered and i == 0 and attempts[0] < config.num_masks):
            return [(i, next(k for k, grade in enumerate(grades[i]) if grade is None))]
        if not passes:
            return []
    return []


def blind_rollouts(blind: Sequence[int | None], config: PismConfig, has_image: bool = True) -> list[int]:
    """Return which rollouts of the blind level (mask ratio 1.0) are missing, in any order.

    Args:
        blind: K grades of the blind level; None where there is none yet.
        config: settings.
        has_image: False for a record without an image, which has no blind level.

    Returns:
        Realizations k; empty unless the settings ask for the blind level.

    Raises:
        ValueError: there are not K grades.
    """
    if not config.blind or not has_image:
        return []
    if len(blind) != config.num_masks:
        raise ValueError(
            f"{len(blind)} blind grades, must be num_masks = {config.num_masks}: fill missing ones with None"
        )
    return [k for k, grade in enumerate(blind) if grade is None]


def is_done(
    grades: Grades,
    config: PismConfig,
    has_image: bool = True,
    blind: Sequence[int | None] | None = None,
    answered: bool = True,
) -> bool:
    """Return whether a sample needs no more rollouts.

    Args:
        grades: (ratios, K) grades.
        config: settings.
        has_image: False for a record without an image.
        blind: K grades of the blind level; None if there are none yet.
        answered: see `next_rollouts`.

    Returns:
        True if neither `next_rollouts` nor `blind_rollouts` returns any.
    """
    missing = blind_rollouts([None] * config.num_masks if blind is None else blind, config, has_image)
    return not missing and not next_rollouts(grades, config, has_image, answered)


def verdict(grades: Grades, config: PismConfig, has_image: bool = True, answered: bool = True) -> Verdict:
    """Return λ* and the stratum from the grades so far.

    Args:
        grades: (ratios, K) grades.
        config: settings.
        has_image: False for a record without an image: no λ*, no stratum, decided when P_c(0) is complete.
        answered: whether any rollout at ratio 0 has an answer. If all K are made and none has, the sample is
            unfinished: it has no λ*.

    Returns:
        The verdict. An exhaustive search is often decided long before it is done.

    Raises:
        ValueError: grades do not have the shape of the settings, or a grade is not 0, 1 or None.
    """
    successes, attempts = counts(grades, config)
    if not has_image:
        return Verdict(None, None, sum(attempts), attempts[0] == config.num_masks)
    if not answered:
        full = attempts[0] == config.num_masks
        return Verdict(None, UNFINISHED if full else None, sum(attempts), full)
    return count_verdict(successes, attempts, config.ratios, config.num_masks, config.tau, config.bounds)


def counts(grades: Grades, config: PismConfig) -> tuple[list[int], list[int]]:
    """Count the grades of each ratio.

    Args:
        grades: (ratios, K) grades.
        config: settings.

    Returns:
        (successes, attempts), each a list of len(ratios).

    Raises:
        ValueError: grades do not have the shape of the settings, or a grade is not 0, 1 or None.
    """
    if len(grades) != len(config.ratios) or any(len(level) != config.num_masks for level in grades):
        raise ValueError(
            f"grades have levels of {[len(level) for level in grades]}, must be {len(config.ratios)} ratios with "
            f"num_masks = {config.num_masks} each: fill missing ones with None"
        )
    wrong = [grade for level in grades for grade in level if grade not in (None, 0, 1)]
    if wrong:
        raise ValueError(f"a grade is {wrong[0]!r}, must be 0, 1 or None: grade rollouts as correct or not")
    attempts = [sum(grade is not None for grade in level) for level in grades]
    return [sum(grade == 1 for grade in level) for level in grades], attempts


def max_rollouts(config: PismConfig, has_image: bool = True) -> int:
    """Return the number of rollouts of an exhaustive search of one sample, without the blind level.

    Args:
        config: settings.
        has_image: False for a record without an image.

    Returns:
        |Λ| · K, or K without an image.
    """
    return config.num_masks * (len(config.ratios) if has_image else 1)


def solved_blind(blind_successes: int, blind_attempts: int, stratum: str | None, config: PismConfig) -> bool | None:
    """Return whether a sample's stratum can be explained without the image: by guessing, or by the text alone.

    The rule: a solved sample is solved blind if its blind level passes, P_c(1.0) ≥ τ. Without any of the image it is
    then right often enough to pass a level, so neither the levels that it passed nor the level at which it failed say
    anything about the image. A model that guesses right with probability g passes a level with probability
    1 − (1 − g)^K where one success suffices (65 % at g = 0.1, 94 % at g = 0.25, both with K = 10), and the sample is
    flagged with that same probability: the flag is a test with K rollouts, not a certainty. Unsolved and unfinished
    samples are never solved blind.

    Args:
        blind_successes: rollouts at mask ratio 1.0 graded 1.
        blind_attempts: rollouts at mask ratio 1.0 graded, 0 … K.
        stratum: the sample's stratum, or None if it has none.
        config: settings.

    Returns:
        True or False; None for a sample without a stratum, or if its blind level is not decided yet.
    """
    passes = level_passes(blind_successes, blind_attempts, config.num_masks, config.tau)
    if stratum is None or passes is None:
        return None
    return passes and stratum in SOLVED
