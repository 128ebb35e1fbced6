"""Findings at the top of a page: signs that a number should not be trusted, and what to do about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hardsample.files import REJECTED_FILE
from hardsample.metrics.strata import STRATA
from hardsample.report.parts.document import Finding
from hardsample.report.parts.gather import Scored

MANY = 0.5
"""Share of the samples in one stratum from which a finding reports it."""
FEW = 0.05

ANSWER_SIGNATURES = ("Cut off", "No answer")
"""First words of the signatures about how completions ended."""
ADVICE = {
    "Cut off": (
        "Score again into another folder with a larger --max-new-tokens. A server with a short context window also "
        "cuts completions off: see its options.",
        "",
    ),
    "No answer": (
        "Reasoning without an answer: raise --max-new-tokens, or disable thinking on the server. Tool calls and "
        "refusals: see the server's chat template and filters. Empty: see the prompt in the gallery.",
        "",
    ),
    "Flat curve": (
        "Look at the gallery: can the answers be guessed, or do the images survive any mask? Score again with "
        "--blind to see what is solved without an image; use coarser masks with --mask patch, or higher ratios with "
        "--ratios 0:0.95:0.05. If the curve stays flat, select by CMAB or by the success rate instead.",
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
"""First words of a signature in run.json → advice, and the command to run."""


def signature_findings(sentences: Sequence[str], folder: object) -> list[Finding]:
    """Return the failure signatures of a run.

    Args:
        sentences: `signatures` of run.json.
        folder: of the run.
    """
    findings = []
    for sentence in sentences:
        advice, command = next((remedy for start, remedy in ADVICE.items() if sentence.startswith(start)), ("", ""))
        findings.append(Finding(sentence, advice, command.format(folder=folder)))
    return findings


def scoring_findings(scored: Scored) -> list[Finding]:
    """Return the warnings about a scoring, the failure signatures first.

    Args:
        scored: the run.
    """
    run, counts, folder = scored.run, scored.run["counts"], scored.scores.directory
    findings = signature_findings(run["signatures"], folder)
    strata = Counter(scored.strata)
    known = sum(strata[name] for name in STRATA)
    if known and strata["unsolved"] >= MANY * known:
        findings.append(
            Finding(
                f"{100 * strata['unsolved'] / known:.0f} % of the samples are never solved and give no gradient.",
                "Look at some of them below: are right answers graded as wrong? If not, leave them out, or train the "
                "model on them first (SFT), and score again.",
                f"hardsample export {folder} --subset medium+hard --control",
            )
        )
    if known and strata["easy"] >= MANY * known:
        findings.append(
            Finding(
                f"{100 * strata['easy'] / known:.0f} % of the samples are solved from a few of their pixels.",
                "They teach little. Score with --blind to see which of them are solved without the image.",
            )
        )
    if known and strata["medium"] + strata["hard"] < FEW * known:
        findings.append(
            Finding(
                "Hardly any sample is medium or hard: there is little to select here.",
                "Use other data for this model, or another kind of mask (--mask patch).",
            )
        )
    if counts.get("unfinished"):
        findings.append(
            Finding(
                f"{counts['unfinished']:,} samples are unfinished: none of their rollouts at λ = 0 has an answer (cut "
                "off, empty …). They are in no stratum.",
                "They are neither solved nor unsolved: score again into another folder with a larger --max-new-tokens. "
                "To list them:",
                f"hardsample export {folder} --subset unfinished",
            )
        )
    if counts.get("solved_blind"):
        findings.append(
            Finding(
                f"{counts['solved_blind']:,} samples are solved with nothing of the image left (λ = 1.0): guessing, or "
                "the text alone, explains their stratum.",
                "Leave them out (column solved_blind of scores.parquet), or ask them without answer options.",
            )
        )
    if counts["rejected"]:
        findings.append(
            Finding(
                f"{counts['rejected']:,} records could not be used and are in no plot or table.",
                f"{folder / REJECTED_FILE} gives the reason for each record.",
            )
        )
    if counts["grading_timeouts"]:
        findings.append(
            Finding(f"{counts['grading_timeouts']:,} answers could not be graded in time and count as wrong.")
        )
    if counts["without_stratum"]:
        findings.append(
            Finding(f"{counts['without_stratum']:,} samples have no image: they have no λ* and no stratum.", "", "")
        )
    if (run.get("cmab") or {}).get("reason"):
        findings.append(Finding(f"There is no attention balance: {run['cmab']['reason']}"))
    return findings


def training_findings(alarms: Sequence[str]) -> list[Finding]:
    """Return the alarms of a training as findings.

    Args:
        alarms: sentences, of `hardsample.trainer.watch`.
    """
    return [Finding(text) for text in alarms]
