"""From counts of successes to strata, and from strata to subsets and random controls.

A mask ratio is compared as the integer round(λ · 65536) and a success count as a rational, never as floats, so that
0.1 · 3 is the ratio 0.3 and τ · K = 1 is exactly one success.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import ceil

from hardsample.errors import ConfigError, HardsampleError
from hardsample.kernels.keys import mask_key, ratio_units

STRATA = ("easy", "medium", "hard", "unsolved")
"""The strata, from the easiest to the hardest."""
SOLVED = STRATA[:3]
"""The strata of samples that are solved at λ = 0."""
UNFINISHED = "unfinished"
"""Label of a sample without an answer in any rollout at λ = 0 (cut off, empty …): its stratum is unknown."""
LABELS = (*STRATA, UNFINISHED)
"""All values of the column `pism_stratum` for samples with an image."""


def shown_labels(labels: Container[str | None]) -> list[str | None]:
    """Return the columns of a table of strata: the four, then `unfinished` and None (no image) if present.

    Args:
        labels: all labels of the samples in the table.
    """
    return [*STRATA, *(name for name in (UNFINISHED, None) if name in labels)]


def check_tau(tau: float | Fraction) -> None:
    """Check the share of successes below which a level fails.

    Raises:
        ConfigError: it is not above 0 and at most 1.
    """
    if not 0 < tau <= 1:
        raise ConfigError(f"tau is {tau}, must be above 0 and at most 1: give a share of successes, such as 0.1")


class StrataError(HardsampleError, ValueError):
    """The recorded rollouts do not decide the strata asked for, or the request is malformed."""


@dataclass(frozen=True)
class Bounds:
    """Bounds on the failure threshold λ* between strata; the defaults are those of the paper's text."""

    hard_max: float = field(default=0.4, metadata={"help": "hard if λ* is at most this, mask ratio from 0 to 1"})
    easy_min: float = field(
        default=0.7, metadata={"help": "easy if λ* is at least this or no ratio fails, mask ratio above hard_max to 1"}
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("hard_max", "easy_min"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(
                    f"{name} is {value}, must be a mask ratio from 0 to 1: choose one, such as 0.4 or 0.7"
                )
        if ratio_units(self.hard_max) >= ratio_units(self.easy_min):
            raise ConfigError(
                f"hard_max is {self.hard_max}, must be below easy_min {self.easy_min}: lower hard_max or raise easy_min"
            )


@dataclass(frozen=True)
class Verdict:
    """λ* and stratum of one sample, from its rollouts."""

    failure_threshold: float | None = field(
        metadata={
            "help": "λ*, the smallest mask ratio with P_c < τ (0 … 1); None if no ratio fails, undecided or unfinished"
        }
    )
    stratum: str | None = field(
        metadata={"help": "one of LABELS; None if not decided, and for a record without an image"}
    )
    used: int = field(metadata={"help": "graded rollouts, the blind level's not counted"})
    decided: bool = field(metadata={"help": "whether no further rollout can change λ* and the stratum"})


def stratum(failure_threshold: float | None, unsolved: bool, bounds: Bounds = Bounds()) -> str:
    """Return the stratum of a sample with an image.

    Args:
        failure_threshold: λ*, 0 … 1; None if no ratio fails.
        unsolved: whether P_c(0) < τ.
        bounds: bounds on λ*.

    Returns:
        `unsolved` if unsolved; `hard` if λ* ≤ hard_max; `easy` if λ* ≥ easy_min or there is none; else `medium`.
    """
    if unsolved:
        return "unsolved"
    if failure_threshold is None or ratio_units(failure_threshold) >= ratio_units(bounds.easy_min):
        return "easy"
    return "hard" if ratio_units(failure_threshold) <= ratio_units(bounds.hard_max) else "medium"


@lru_cache
def needed_successes(num_masks: int, tau: float | Fraction) -> int:
    """Return the number of successes that a level needs to pass: the smallest s with s ≥ τ · K.

    Args:
        num_masks: K, rollouts of a level.
        tau: τ, share of successes; a float is read as the decimal number that it prints as.

    Returns:
        ⌈τ · K⌉ in rational arithmetic.
    """
    return ceil(Fraction(str(tau)) * num_masks)


def level_passes(successes: int, attempts: int, num_masks: int, tau: float | Fraction) -> bool | None:
    """Return whether a level's P_c reaches τ, as soon as the remaining rollouts cannot change it.

    Args:
        successes: rollouts graded 1.
        attempts: rollouts graded, 0 … K.
        num_masks: K.
        tau: τ.

    Returns:
        True if P_c ≥ τ, False if P_c < τ, None while either is possible.

    Raises:
        StrataError: the counts are not possible with K rollouts.
    """
    if not 0 <= successes <= attempts <= num_masks:
        raise StrataError(
            f"{successes} successes in {attempts} of {num_masks} rollouts: use the num_masks of the scores"
        )
    needed = needed_successes(num_masks, tau)
    if successes >= needed:
        return True
    return False if successes + (num_masks - attempts) < needed else None


def count_verdict(
    successes: Sequence[int],
    attempts: Sequence[int],
    ratios: Sequence[float],
    num_masks: int,
    tau: float | Fraction,
    bounds: Bounds = Bounds(),
) -> Verdict:
    """Return λ* = min{λ ∈ Λ : P_c(λ) < τ} and the stratum of a sample with an image.

    Args:
        successes: rollouts graded 1, at each ratio.
        attempts: rollouts graded, at each ratio.
        ratios: Λ, ascending; the first is 0.
        num_masks: K.
        tau: τ.
        bounds: bounds on λ*.

    Returns:
        The verdict; not decided if a level before the first failed one is open.

    Raises:
        StrataError: the lists differ in length, or the counts are not possible with K rollouts.
    """
    if not len(successes) == len(attempts) == len(ratios):
        raise StrataError(
            f"{len(successes)} success counts, {len(attempts)} attempt counts, {len(ratios)} ratios: "
            "use the ratios that the scores were made with (run.json)"
        )
    used = sum(attempts)
    for index, ratio in enumerate(ratios):
        passes = level_passes(successes[index], attempts[index], num_masks, tau)
        if passes is None:
            return Verdict(None, None, used, False)
        if not passes:
            return Verdict(ratio, stratum(ratio, index == 0, bounds), used, True)
    return Verdict(None, stratum(None, False, bounds), used, True)


def relabel(
    strata: Sequence[str | None],
    successes: Sequence[Sequence[int]],
    attempts: Sequence[Sequence[int]],
    ratios: Sequence[float],
    num_masks: int,
    tau: float | Fraction,
    bounds: Bounds = Bounds(),
    command: str = "hardsample score DATA --model M --output NEW_DIR",
) -> list[Verdict]:
    """Recompute the labels of a table of scores for other bounds or another τ, without new rollouts.

    Args:
        strata: the table's column; None marks records without an image, which stay without a stratum. Unfinished
            samples stay unfinished: no rollout at λ = 0 has an answer, whatever τ and the bounds are.
        successes: the table's column, one list per record, aligned with `ratios`.
        attempts: the table's column.
        ratios: Λ of the run.
        num_masks: K of the run.
        tau: τ to label with, 0 < τ ≤ 1.
        bounds: bounds on λ* to label with.
        command: the command that scored the table, into a new folder, for the error message.

    Returns:
        A verdict for each record, in order.

    Raises:
        ConfigError: τ is out of range.
        StrataError: some records' rollouts do not decide it; the message says how many, and
            which commands would.
    """
    check_tau(tau)
    verdicts = [
        Verdict(None, name, sum(tries), True)
        if name in (None, UNFINISHED)
        else count_verdict(wins, tries, ratios, num_masks, tau, bounds)
        for name, wins, tries in zip(strata, successes, attempts, strict=True)
    ]
    undecided = sum(not verdict.decided for verdict in verdicts)
    if undecided:
        raise StrataError(
            f"the rollouts of {undecided} of {len(verdicts)} records do not decide tau = {tau}: "
            f"run `{command} --tau {tau}`, or `{command} --search exhaustive`, which decides every tau"
        )
    return verdicts


def parse_subset(spec: str) -> tuple[str, ...]:
    """Read a subset such as `medium+hard`.

    Args:
        spec: names of strata joined by `+`; `unfinished` is one of them.

    Returns:
        The strata, in the order of LABELS.

    Raises:
        StrataError: a name is unknown or repeated.
    """
    names = spec.split("+")
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        raise StrataError(f"subset {spec!r} names {unknown[0]!r}, must join some of {', '.join(LABELS)} by +")
    if len(set(names)) < len(names):
        raise StrataError(f"subset {spec!r} names a stratum twice: name each once")
    return tuple(name for name in LABELS if name in names)


def subset_rows(strata: Sequence[str | None], spec: str) -> list[int]:
    """Return the rows of a subset.

    Args:
        strata: the table's column; None for records without an image.
        spec: see `parse_subset`.

    Returns:
        Row indices, ascending, as `datasets.Dataset.select` takes them.

    Raises:
        StrataError: the specification is malformed.
    """
    wanted = parse_subset(spec)
    return [row for row, name in enumerate(strata) if name in wanted]


def control_rows(ids: Sequence[str], strata: Sequence[str | None], spec: str, seed: int) -> list[int]:
    """Draw a random control: as many records as the subset has, from all records in the four strata.

    A record's rank in the draw is a hash of (seed, subset, id): the control does not depend on the order of the
    table, and the controls of two subsets or two seeds are independent of each other (they may overlap).

    Args:
        ids: the table's column, unique.
        strata: the table's column.
        spec: the subset to match in size, see `parse_subset`.
        seed: 0 … 2⁶⁴−1.

    Returns:
        Row indices, ascending.

    Raises:
        StrataError: the specification is malformed.
        ValueError: the seed is out of range.
    """
    size = len(subset_rows(strata, spec))
    name = "+".join(parse_subset(spec))
    scored = [row for row, label in enumerate(strata) if label in STRATA]
    drawn = sorted(scored, key=lambda row: (mask_key(seed, f"{name}\0{ids[row]}", b"random-control"), ids[row]))
    return sorted(drawn[:size])
