"""Which groups of a generation reach the optimiser, and what is rolled out until it is full: arrays in, arrays out.

Dynamic sampling drops groups with zero variance and rolls out further prompts in their place. Screening rolls out a few
completions of more prompts than are needed, the candidates, and the others only for those that promise signal.
"""

from math import ceil, gcd, lcm

import numpy as np
from jaxtyping import Bool, Float, Integer

from hardsample.trainer.selection.sumtree import Rows

MARGIN = 1.25
"""A round asks for so many times the prompts that are expected to fill the batch: one round more costs more."""


def prompt_unit(processes: int, *completions: int) -> int:
    """Return the least number of prompts whose completions divide evenly over the processes.

    Args:
        processes: at least 1.
        completions: of a prompt, in each of the calls that the prompts take part in.
    """
    return lcm(*(processes // gcd(processes, number) for number in completions))


def candidates(prompts: int, factor: float, screened: int, num_generations: int, unit: int) -> int:
    """Return how many candidates a screening takes at most.

    Args:
        prompts: of a generation batch.
        factor: candidates for each of them, at least 1.
        screened: m, completions of a candidate.
        num_generations: G, completions of a group.
        unit: see `prompt_unit`.

    Returns:
        A multiple of `unit`, at least `prompts`, whose completions are no more than those of a generation batch where
        that is possible.
    """
    most = min(int(factor * prompts), prompts * num_generations // screened)
    return max(most // unit, ceil(prompts / unit)) * unit


def further_prompts(missing: int, spread: int, rolled: int, most: int, unit: int) -> int:
    """Return how many prompts the next round asks for: a little more than the missing groups are expected to need.

    A prompt gives a group with nonzero variance with probability (spread + 1) / (rolled + 2), the posterior mean.

    Args:
        missing: groups, at least 1, at most `most`.
        spread: groups with nonzero variance so far.
        rolled: prompts so far.
        most: prompts that a round may have.
        unit: see `prompt_unit`.

    Returns:
        A multiple of `unit`, at least `missing`.
    """
    wanted = MARGIN * missing * (rolled + 2) / (spread + 1)
    return ceil(max(missing, min(wanted, most)) / unit) * unit


def promising(
    spread: Bool[np.ndarray, "candidates"],
    rates: Float[np.ndarray, "candidates"],
    chances: Float[np.ndarray, "candidates"],
    wanted: int,
    unit: int,
    least: float = 0.0,
) -> Integer[np.ndarray, "chosen"]:
    """Choose the candidates whose groups are completed: those that spread, the most balanced first, then by chance.

    Args:
        spread: whether the rewards of the screening differ.
        rates: share of successes in the screening; 0 where nothing was graded.
        chances: chance that the rewards of the completed group differ, see `completion_chance`.
        wanted: how many, at most all.
        unit: see `prompt_unit`; the number of candidates is a multiple of it.
        least: chance below which a candidate that did not spread is left out; 0 leaves out none.

    Returns:
        Indices in ascending order; their number is a multiple of `unit`.
    """
    balance = np.abs(rates - 0.5)
    order = np.lexsort((np.where(spread, balance, -chances), ~spread))
    eligible = int((spread | (chances >= least)).sum())
    number = ceil(min(wanted, eligible) / unit) * unit
    return np.sort(order[:number])


def completion_chance(
    alpha: Float[np.ndarray, "rows"], beta: Float[np.ndarray, "rows"], rates: Float[np.ndarray, "rows"], rest: int
) -> Float[np.ndarray, "rows"]:
    """Return the chance that one of some further rollouts differs from those of a screening, which were all alike.

        1 − E[p^r] after successes, 1 − E[(1−p)^r] after failures,   E[p^r] = Π_{i<r} (α+i) / (α+β+i)

    Args:
        alpha: α of the posterior Beta(α, β) of the success rate, the screening included.
        beta: β.
        rates: share of successes in the screening, 0 or 1 where its rewards were alike.
        rest: r, rollouts of each.
    """
    alike = np.where(rates >= 0.5, alpha, beta)
    steps = np.arange(rest)[:, None]
    return 1 - ((alike + steps) / (alpha + beta + steps)).prod(axis=0)


def worth_completing(spread: int, screened_candidates: int, screened: int, num_generations: int) -> float:
    """Return the chance of signal from which completing a candidate costs less than screening new ones.

    A group found by screening costs m / q + (G − m) completions, with q the share of candidates that spread after m;
    one completed on a chance c costs (G − m) / c.

    Args:
        spread: candidates that spread after m completions.
        screened_candidates: all of them.
        screened: m.
        num_generations: G.
    """
    share = (spread + 1) / (screened_candidates + 2)
    rest = num_generations - screened
    return rest / (rest + screened / share)


def kept_groups(
    spread: Bool[np.ndarray, "groups"], complete: Bool[np.ndarray, "groups"], rounds: Rows, prompts: int
) -> Integer[np.ndarray, "prompts"]:
    """Choose the groups that reach the optimiser: the first that spread; where they are too few, the latest others.

    Args:
        spread: whether the rewards of a group differ.
        complete: whether a group has all its completions; at least `prompts` have.
        rounds: round in which each group was rolled out.
        prompts: of a generation batch.

    Returns:
        Indices in ascending order.
    """
    usable = np.flatnonzero(spread & complete)[:prompts]
    others = np.flatnonzero(~spread & complete)
    latest = others[np.argsort(-rounds[others], kind="stable")]
    return np.sort(np.concatenate([usable, latest[: prompts - len(usable)]]))


def advice(policy: str | None, rewards: Float[np.ndarray, "groups G"]) -> str:
    """Return what can be done if rounds of further prompts leave a batch with zero-variance groups.

    Args:
        policy: name of the policy.
        rewards: of all groups of the generation, NaN where a completion has none.
    """
    values = rewards[~np.isnan(rewards)]
    if not len(values):
        return "No completion has a reward: look at the reward function"
    if values.min() == values.max():
        return f"All rewards are {values[0]:g}: look at the completions and their reward before you change options"
    if policy == "signal":
        return "Allow more rounds, or add samples of other difficulty"
    return "Draw by policy='signal', or allow more rounds"


def merged_metric(name: str, values: Float[np.ndarray, "calls"], weights: Float[np.ndarray, "calls"]) -> float:
    """Return one number for those that several generations of one batch logged under a name.

    Args:
        name: of the metric; the last part says whether it is a minimum or a maximum.
        values: one a call.
        weights: rollouts that each call's value is of; a call of weight 0 logged a placeholder.

    Returns:
        The minimum, the maximum or the weighted mean; the placeholder where all are.
    """
    real = weights > 0
    if not real.any():
        return float(values[-1])
    last = name.rpartition("/")[2]
    if last.startswith("min"):
        return float(values[real].min())
    if last.startswith("max"):
        return float(values[real].max())
    return float(np.average(values, weights=weights))
