"""What a reader is told first: signs that a figure should not be trusted, and what to do about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hardsample.files import REJECTED_FILE
from hardsample.metrics.strata import STRATA
from hardsample.report.parts.document import Finding
from hardsample.report.parts.gather import Scored

MANY = 0.5
"""Share of the samples in one stratum that is worth a word."""
FEW = 0.05

ENDED = ("Cut off", "No answer")
"""First words of the signatures that say how completions ended."""
ADVICE = {
    "Cut off": (
        "Score again into another folder with a larger --max-new-tokens. On a server, a short context window cuts off "
        "too: see its options.",
        "",
    ),
    "No answer": (
        "Reasoning without an answer: give more --max-new-tokens, or switch the server's thinking off. Tool calls and "
        "refusals: see the server's chat template and filters. Empty: see the prompt in the gallery.",
        "",
    ),
    "Flat curve": (
        "Look at the gallery: can the answers be guessed, or do the images survive any mask? Score again with "
        "--blind to see what is solved without an image; mask coarser with --mask patch, or further with --ratios "
        "0:0.95:0.05. If it stays flat, select by CMAB or by the success rate instead.",
        "",
    ),
    "Piled up": (
        "Take the bounds from the data instead of the paper's fixed numbers.",
        "hardsample stratify {folder} --cmab-bounds quantile:0.1,0.3,0.7,0.9",
    ),
    "No variety": (
        "Set a sampling temperature on the server (do_sample in the checkpoint's generation_config.json), and score "
        "again into another folder.",
        "",
    ),
}
"""First words of a signature in run.json → what to do, and what to type."""


def signature_findings(sentences: Sequence[str], folder: object) -> list[Finding]:
    """The failure signatures of a run.

    Args:
        sentences: `signatures` of run.json.
        folder: of the run.
    """
    found = []
    for sentence in sentences:
        advice, command = next((made for start, made in ADVICE.items() if sentence.startswith(start)), ("", ""))
        found.append(Finding(sentence, advice, command.format(folder=folder)))
    return found


def scoring_findings(scored: Scored) -> list[Finding]:
    """What to be careful about in a scoring, the failure signatures first.

    Args:
        scored: the run.
    """
    run, counts, folder = scored.run, scored.run["counts"], scored.scores.directory
    found = signature_findings(run["signatures"], folder)
    strata = Counter(scored.strata)
    known = sum(strata[name] for name in STRATA)
    if known and strata["unsolved"] >= MANY * known:
        found.append(
            Finding(
                f"{100 * strata['unsolved'] / known:.0f} % of the samples are never solved: no gradient today.",
                "Look at some of them below: are right answers graded as wrong? If not, leave them out, or teach the "
                "model first (SFT), and score again afterwards.",
                f"hardsample export {folder} --subset medium+hard --control",
            )
        )
    if known and strata["easy"] >= MANY * known:
        found.append(
            Finding(
                f"{100 * strata['easy'] / known:.0f} % of the samples are solved from a few of their pixels.",
                "They teach little. Score with --blind to see which are solved without looking at all.",
            )
        )
    if known and strata["medium"] + strata["hard"] < FEW * known:
        found.append(
            Finding(
                "Hardly a sample is medium or hard: there is little here that a filter could select.",
                "Take other data for this model, or mask in another way (--mask patch).",
            )
        )
    if counts.get("unfinished"):
        found.append(
            Finding(
                f"{counts['unfinished']:,} samples are unfinished: none of their rollouts at λ = 0 came to an answer "
                "(cut off, empty …). They are in no stratum.",
                "They are neither solved nor unsolved: score again into another folder with a larger --max-new-tokens. "
                "To look at them:",
                f"hardsample export {folder} --subset unfinished",
            )
        )
    if counts.get("solved_blind"):
        found.append(
            Finding(
                f"{counts['solved_blind']:,} samples are solved with nothing of the image left (λ = 1.0): luck, or the "
                "text alone, explains their stratum.",
                "Leave them out (column solved_blind of scores.parquet), or ask them without options to choose from.",
            )
        )
    if counts["rejected"]:
        found.append(
            Finding(
                f"{counts['rejected']:,} records could not be used and are in no figure.",
                f"{folder / REJECTED_FILE} says why, record by record.",
            )
        )
    if counts["grading_timeouts"]:
        found.append(Finding(f"{counts['grading_timeouts']:,} answers could not be graded in time and count as wrong."))
    if counts["without_stratum"]:
        found.append(
            Finding(f"{counts['without_stratum']:,} samples have no image: they have no λ* and no stratum.", "", "")
        )
    if (run.get("cmab") or {}).get("reason"):
        found.append(Finding(f"There is no attention balance: {run['cmab']['reason']}"))
    return found


def training_findings(alarms: Sequence[str]) -> list[Finding]:
    """What went wrong in a training.

    Args:
        alarms: sentences, of `hardsample.trainer.watch`.
    """
    return [Finding(text) for text in alarms]
