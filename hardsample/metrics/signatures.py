"""Failure signatures: signs in the scores that a method separates nothing on this data with this model.

A signature is one sentence for the user, or None.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from hardsample.metrics.finishes import FINISHES, UNKNOWN, share, shares_text
from hardsample.metrics.strata import SOLVED

MIN_SOLVED = 20
"""Solved samples that are needed to detect a signature."""
NEARLY_ALL = 0.9
"""Share of the solved samples that counts as nearly all."""
MOST_UNANSWERED = 0.05
"""Share of the rollouts at λ = 0 that may be cut off, or be without an answer, before it is reported."""
MORE_TOKENS = 4
"""Factor on the limit of new tokens that is suggested when too many rollouts were cut off."""


def flat_curve(
    strata: Sequence[str | None],
    failure_thresholds: Sequence[float | None],
    successes: Sequence[Sequence[int]],
    attempts: Sequence[Sequence[int]],
    search: str,
) -> str | None:
    """Detect a flat accuracy curve: more masking does not change what is solved, so PISM separates nothing.

    Solved samples are those in easy, medium or hard. The signature is present if at least nine tenths of at
    least 20 solved samples are flat, where flat means

    - after an exhaustive search, that P_c moves less than its noise over Λ (`moves`);
    - after a lossless search, which has no curve, that the samples share one λ*, or that no ratio fails.

    Args:
        strata: the column of the scores table; None for records without an image.
        failure_thresholds: the column λ*, 0 … 1 or None.
        successes: the column of rollouts graded 1, a list over Λ for each record.
        attempts: the column of rollouts graded.
        search: `lossless` or `exhaustive`.

    Returns:
        A sentence that describes the signature; None if it is absent.
    """
    solved = [row for row, name in enumerate(strata) if name in SOLVED]
    if len(solved) < MIN_SOLVED:
        return None
    if search == "exhaustive":
        flat = sum(not moves(successes[row], attempts[row]) for row in solved)
        observation = "the accuracy P_c moves less than its noise over the mask ratios"
    else:
        threshold, flat = Counter(failure_thresholds[row] for row in solved).most_common(1)[0]
        observation = (
            "no mask ratio fails" if threshold is None else f"the failure threshold is the same, {threshold:g}"
        )
    if flat < NEARLY_ALL * len(solved):
        return None
    return (
        f"Flat curve: for {flat} of {len(solved)} solved samples {observation}. Masking separates nothing here: do not "
        "rely on easy, medium and hard."
    )


def all_alike(samples: int, alike: int) -> str | None:
    """Detect a server that does not sample: it returns the same completion for the same image and question.

    Args:
        samples: with several completions at λ = 0, at a temperature above 0.
        alike: those of them whose completions are all the same.

    Returns:
        A sentence that describes the signature; None if it is absent.
    """
    if samples < MIN_SOLVED or alike < samples:
        return None
    return (
        f"No variety: each of {samples} samples has the same completion every time, at a temperature above 0. The "
        "server seems to decode greedily (transformers serve does so if the checkpoint's generation_config.json has "
        "no do_sample). λ* then rests on one answer per mask."
    )


def cut_off(finishes: Mapping[str, int], max_new_tokens: int | None) -> str | None:
    """Detect a limit on new tokens that is too small for this model: rollouts are cut off before they answer.

    Args:
        finishes: finish state → rollouts at λ = 0.
        max_new_tokens: the limit; None if run.json does not have it.

    Returns:
        A sentence that describes the signature and the limit to try; None if it is absent.
    """
    known, cut = _known(finishes), finishes.get("length", 0)
    if cut <= MOST_UNANSWERED * known:
        return None
    limit = max_new_tokens or 0
    return (
        f"Cut off: {share(cut / known)} of the rollouts at λ = 0 ({cut:,} of {known:,}) were cut off at {limit:,} new "
        f"tokens, which says nothing about their samples. Score with more tokens, into another --output: "
        f"--max-new-tokens {MORE_TOKENS * limit}."
    )


def no_answer(finishes: Mapping[str, int]) -> str | None:
    """Detect completions that end by themselves without an answer.

    Args:
        finishes: finish state → rollouts at λ = 0.

    Returns:
        A sentence that describes the signature; None if it is absent.
    """
    known = _known(finishes)
    without = {name: finishes[name] for name in FINISHES if name not in ("stop", "length") and finishes.get(name)}
    number = sum(without.values())
    if number <= MOST_UNANSWERED * known:
        return None
    return (
        f"No answer: {share(number / known)} of the rollouts at λ = 0 ({number:,} of {known:,}) ended without an "
        f"answer; of these, {shares_text(without)}."
    )


def _known(finishes: Mapping[str, int]) -> int:
    return sum(number for name, number in finishes.items() if name != UNKNOWN)


def moves(successes: Sequence[int], attempts: Sequence[int]) -> bool:
    """Return whether one sample's accuracy differs between mask ratios by more than the noise of its rollouts.

    The statistic is the variance of the accuracy over Λ against its binomial noise, a chi-square test of homogeneity
    at 5 %:

        X² = Σ_λ n_λ (P_c(λ) − p)² / (p (1 − p)),  p = pooled accuracy,  d = |Λ| − 1 degrees of freedom;
        moves if X² > d · (1 − 2/(9d) + 1.645 · √(2/(9d)))³   (Wilson and Hilferty's 95th percentile; 16.9 at d = 9).

    Args:
        successes: rollouts graded 1, at each ratio.
        attempts: rollouts graded, at each ratio; ratios without rollouts are skipped.

    Returns:
        True if it moves; False if all rollouts agree or fewer than two ratios have any.
    """
    levels = [(s, n) for s, n in zip(successes, attempts, strict=True) if n]
    from scipy.special import chdtri

    freedom = len(levels) - 1
    total = sum(n for _, n in levels)
    if freedom < 1 or sum(s for s, _ in levels) in (0, total):
        return False
    p = sum(s for s, _ in levels) / total
    statistic = sum(n * (s / n - p) ** 2 for s, n in levels) / (p * (1 - p))
    return bool(statistic > chdtri(freedom, 0.05))
