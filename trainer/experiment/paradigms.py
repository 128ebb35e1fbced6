"""The training recipes, as data: which stages, each on which part of the samples.

The twelve of the paper's comparison (`PAPER`): GRPO alone on four parts, and SFT followed by GRPO on medium and hard
samples and on random draws of their sizes. Pure: labels in, rows out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hardsample.errors import HardsampleError
from hardsample.metrics.cmab import BalanceBounds, balance_stratum, parse_bounds
from hardsample.metrics.strata import (
    SOLVED,
    Bounds,
    StrataError,
    control_rows,
    parse_subset,
    ratio_units,
    stratum,
    subset_rows,
)

ALL = "all"
TERCILES = "quantile:0.16667,0.33333,0.66667,0.83333"
"""Of the attention balance: a third hard in the middle, a sixth medium on either side, the rest easy."""


class RecipeError(HardsampleError, ValueError):
    """A recipe cannot be parsed, or names samples that do not exist."""


@dataclass(frozen=True)
class Part:
    """Which samples a stage trains on."""

    spec: str
    """`all`, or strata such as `medium+hard`."""
    random: bool = False
    """Whether to draw as many at random from all in the four strata instead, differently for each seed."""

    def __str__(self) -> str:
        return f"random({self.spec})" if self.random else self.spec


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    method: str
    """`sft` or `grpo`."""
    part: Part

    def __str__(self) -> str:
        return f"{self.method} {self.part}"


@dataclass(frozen=True)
class Recipe:
    """Stages one after the other."""

    name: str
    stages: tuple[Stage, ...]

    @property
    def uses_strata(self) -> bool:
        """Whether it depends on the strata, so that another metric makes another training of it."""
        return any(stage.part.spec != ALL for stage in self.stages)


_PAPER = {
    "full": "grpo all",
    "unsolved": "grpo unsolved",
    "random": "grpo random(medium+hard)",
    "medium+hard": "grpo medium+hard",
    "medium-hard": "sft medium, grpo hard",
    "medium-rand_h": "sft medium, grpo random(hard)",
    "rand_m-hard": "sft random(medium), grpo hard",
    "rand_m-rand_h": "sft random(medium), grpo random(hard)",
    "hard-medium": "sft hard, grpo medium",
    "hard-rand_m": "sft hard, grpo random(medium)",
    "rand_h-medium": "sft random(hard), grpo medium",
    "rand_h-rand_m": "sft random(hard), grpo random(medium)",
}
_STAGE = re.compile(r"(sft|grpo)\s+(?:(random)\(\s*([a-z+]+)\s*\)|([a-z+]+))")


def parse_recipe(text: str) -> Recipe:
    """Parse a recipe: a name of the paper's twelve, or stages such as `sft medium, grpo random(hard)`.

    Args:
        text: a name of `PAPER`, or stages, separated by commas: a method and the samples.

    Raises:
        RecipeError: it is neither.
    """
    stages = []
    for part in _PAPER.get(text, text).split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise RecipeError(
                f"there is no recipe {text!r}: name one of {', '.join(_PAPER)}, or write stages such as "
                "'sft medium, grpo random(hard)'"
            )
        method, random, drawn, plain = match.groups()
        spec = drawn or plain
        if spec != ALL:
            try:
                spec = "+".join(parse_subset(spec))
            except StrataError as error:
                raise RecipeError(f"recipe {text!r}: {error}") from error
        elif random:
            raise RecipeError(f"recipe {text!r}: a random draw of the size of all samples is all samples: write all")
        stages.append(Stage(method, Part(spec, bool(random))))
    return Recipe(text if text in _PAPER else ", ".join(map(str, stages)), tuple(stages))


PAPER = {name: parse_recipe(name) for name in _PAPER}
"""The paper's twelve recipes. rand_m and rand_h are random draws of the size of medium and of hard."""


def rows_of(part: Part, ids: Sequence[str], strata: Sequence[str | None], seed: int) -> list[int]:
    """Find the samples of a part.

    Args:
        part: see `Part`.
        ids: of all scored samples, unique.
        strata: of each; None for those without one.
        seed: of a random draw; draws of two specs are independent and may overlap.

    Returns:
        Row indices, ascending.
    """
    if part.spec == ALL:
        return list(range(len(ids)))
    return control_rows(ids, strata, part.spec, seed) if part.random else subset_rows(strata, part.spec)


def tercile_bounds(thresholds: Sequence[float | None], ratios: Sequence[float]) -> Bounds:
    """Find the bounds on λ* that divide the solved samples most evenly, for models whose strata are too small.

    λ* takes few values, so exact thirds seldom exist: of all pairs of bounds on the grid of ratios, take the pair
    whose smallest stratum is largest, then whose largest is smallest.

    Args:
        thresholds: λ* of the solved samples; None where no ratio fails.
        ratios: Λ, ascending.

    Raises:
        RecipeError: there are fewer than three ratios above 0.
    """
    steps = [ratio for ratio in ratios if ratio > 0]
    if len(steps) < 3:
        raise RecipeError(f"{len(steps)} mask ratios above 0, three strata need at least three: score with more")
    values = [ratio_units(1.0 if threshold is None else threshold) for threshold in thresholds]

    def sizes(hard_max: float, easy_min: float) -> tuple[int, int]:
        hard = sum(value <= ratio_units(hard_max) for value in values)
        easy = sum(value >= ratio_units(easy_min) for value in values)
        counts = hard, len(values) - hard - easy, easy
        return min(counts), -max(counts)

    pairs = [(low, high) for index, low in enumerate(steps) for high in steps[index + 2 :]]
    return Bounds(*max(pairs, key=lambda pair: sizes(*pair)))


def tercile_strata(
    metric: str,
    strata: Sequence[str | None],
    thresholds: Sequence[float | None],
    balances: Sequence[float | None],
    ratios: Sequence[float],
) -> tuple[list[str | None], str]:
    """Relabel the solved samples by thirds; unsolved and unfinished ones keep their labels.

    Args:
        metric: `pism` or `cmab`.
        strata: by the usual bounds.
        thresholds: λ* of each sample.
        balances: ρ̄ of each sample.
        ratios: Λ of the run.

    Returns:
        The labels, and the bounds in words.
    """
    solved = [name in SOLVED for name in strata]
    if metric == "cmab":
        thirds = parse_bounds(TERCILES, [balance for balance, keep in zip(balances, solved, strict=True) if keep])
        return _balance_labels(strata, balances, thirds), (
            f"ρ̄ hard {thirds.hard_min:.3g}-{thirds.hard_max:.3g}, easy below {thirds.easy_below:.3g} or above "
            f"{thirds.easy_above:.3g}"
        )
    bounds = tercile_bounds([threshold for threshold, keep in zip(thresholds, solved, strict=True) if keep], ratios)
    labels = [
        stratum(threshold, False, bounds) if keep else name
        for name, threshold, keep in zip(strata, thresholds, solved, strict=True)
    ]
    return labels, f"hard λ* ≤ {bounds.hard_max:g}, easy λ* ≥ {bounds.easy_min:g}"


def _balance_labels(
    strata: Sequence[str | None], balances: Sequence[float | None], bounds: BalanceBounds
) -> list[str | None]:
    return [
        balance_stratum(balance, True, bounds) if name in SOLVED else name
        for name, balance in zip(strata, balances, strict=True)
    ]
