"""Tables at the end of a command on the terminal: strata by ability, their cost, and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hardsample.evaluation.benchmarks import Result
from hardsample.evaluation.evaluate import Comparison, Evaluation
from hardsample.files import REJECTED_FILE
from hardsample.metrics.finishes import UNKNOWN, shares_text
from hardsample.metrics.intervals import Interval
from hardsample.metrics.strata import LABELS, STRATA, shown_labels
from hardsample.scoring.output import Scores

MOST_ABILITIES = 20
SURE = 0.9
"""Probability from which on a stratum counts as sure."""
BAR_WIDTH = 40
"""Characters of the bar of a stratum that all samples are in."""


def strata_table(abilities: Sequence[str | None], strata: Sequence[str | None], title: str) -> Table:
    """Return strata by ability, one row per ability, with the share of each stratum in the last row.

    Args:
        abilities: of each sample; None is shown as a dash.
        strata: of each sample; `unfinished` and None (no image) get a column if present.
        title: above the table.
    """
    counts = Counter(zip(abilities, strata, strict=True))
    columns = shown_labels(strata)
    names = [name for name, _ in Counter(abilities).most_common()]
    table = Table(title=Text(title), title_justify="left", show_footer=False)
    table.add_column("ability")
    for column in columns:
        table.add_column(column or "no image", justify="right")
    table.add_column("all", justify="right")
    shown = sorted(names[:MOST_ABILITIES], key=lambda name: name or "")
    for name in shown:
        row = [counts[name, column] for column in columns]
        table.add_row(Text(name or "—"), *map(str, row), str(sum(row)))
    if len(names) > len(shown):
        rest = set(names[MOST_ABILITIES:])
        row = [sum(counts[name, column] for name in rest) for column in columns]
        table.add_row(Text(f"({len(rest)} more)"), *map(str, row), str(sum(row)))
    totals = Counter(strata)
    table.add_section()
    table.add_row("all", *(str(totals[column]) for column in columns), str(len(strata)))
    shares = [f"{100 * totals[column] / max(len(strata), 1):.0f} %" for column in columns]
    table.add_row("", *shares, "")
    return table


def cross_table(pism: Sequence[str | None], cmab: Sequence[str | None], title: str) -> Table:
    """Return PISM strata against CMAB strata: rows are PISM strata, columns CMAB strata.

    Args:
        pism: stratum of each sample.
        cmab: likewise; `unfinished` and None (no balance, no image) get a column if present.
        title: above the table.
    """
    counts = Counter(zip(pism, cmab, strict=True))
    rows = [name for name in (*LABELS, None) if name in pism]
    columns = shown_labels(cmab)
    table = Table(title=Text(title), title_justify="left")
    table.add_column("PISM \\ CMAB")
    for column in columns:
        table.add_column(column or "none", justify="right")
    table.add_column("all", justify="right")
    for row in rows:
        row_counts = [counts[row, column] for column in columns]
        table.add_row(row or "no image", *map(str, row_counts), str(sum(row_counts)))
    return table


def accuracy_table(evaluation: Evaluation) -> RenderableType:
    """Return accuracies with their intervals, all samples first, then by group, and how the answers ended."""
    table = Table(
        title=Text(f"Accuracy, 95 % intervals, {evaluation.rollouts} rollouts per sample"), title_justify="left"
    )
    for name in ("", "accuracy", "95 % interval", "samples"):
        table.add_column(name, justify="right" if name else "left")

    def add(name: str, interval: Interval) -> None:
        bounds = f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"
        table.add_row(Text(name), f"{100 * interval.value:.1f} %", bounds, f"{interval.samples:,}")

    add("all", evaluation.overall)
    for name, values in evaluation.groups.items():
        table.add_section()
        for value, interval in values.items():
            add(f"{name} {value}", interval)
    return Group(table, *ended_notes(evaluation))


def ended_notes(evaluation: Evaluation) -> list[Text]:
    """Return how an evaluation's answers ended, if not all by themselves, and the warnings about that."""
    notes = [Text(f"! {sentence}", style="bold yellow") for sentence in evaluation.warnings]
    if evaluation.finish.keys() - {"stop", UNKNOWN}:
        notes.insert(0, Text(f"ended      {shares_text(evaluation.finish)}; answers that are missing count as wrong"))
    return notes


def benchmark_table(result: Result) -> RenderableType:
    """Return a benchmark's figures with their intervals, its score first, and notes on them."""
    table = Table(title=Text(f"{result.benchmark}, graded by {result.how}, 95 % intervals"), title_justify="left")
    for name in ("", "value", "95 % interval", "samples"):
        table.add_column(name, justify="right" if name else "left")
    for name, interval in result.figures.items():
        bounds = f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"
        table.add_row(Text(name), f"{100 * interval.value:.1f} %", bounds, f"{interval.samples:,}")
    return Group(table, *(Text(f"note       {note}") for note in result.notes))


def comparison_table(comparison: Comparison, first: str, second: str) -> RenderableType:
    """Return differences with their intervals, in points of accuracy."""
    table = Table(title=Text(f"{second} minus {first}, points of accuracy, 95 % intervals"), title_justify="left")
    for name in ("", "difference", "95 % interval", "samples"):
        table.add_column(name, justify="right" if name else "left")
    for name, interval in {"all": comparison.overall, **comparison.groups}.items():
        bounds = f"{100 * interval.low:+.1f} – {100 * interval.high:+.1f}"
        table.add_row(Text(name), f"{100 * interval.value:+.1f}", bounds, f"{interval.samples:,}")
    totals = f"better on {comparison.better:,} samples, worse on {comparison.worse:,}"
    test = f"; p = {comparison.p_value:.2g} (paired t)"
    left_out = f"; {comparison.left_out:,} samples in only one of them are left out" if comparison.left_out else ""
    return Group(table, Text(totals + test + left_out))


def probability_table(strata: Sequence[str | None], probabilities: Sequence[Sequence[float] | None]) -> Table:
    """Return strata by probability: samples whose likeliest stratum it is, those expected, and those that are sure.

    Args:
        strata: of each sample; only the four are shown.
        probabilities: of each sample, in the order of `STRATA`; None for a sample without any.
    """
    known = [(name, row) for name, row in zip(strata, probabilities, strict=True) if name in STRATA and row is not None]
    table = Table(title=Text(f"Strata of {len(known):,} samples by probability"), title_justify="left")
    for name in ("stratum", "likeliest", "expected", f"at least {SURE:g}"):
        table.add_column(name, justify="right" if name != "stratum" else "left")
    sure_in_all = 0
    for column, stratum in enumerate(STRATA):
        likeliest = [row[column] for name, row in known if name == stratum]
        sure = sum(value >= SURE for value in likeliest)
        sure_in_all += sure
        expected = sum(row[column] for _, row in known)
        table.add_row(stratum, f"{len(likeliest):,}", f"{expected:,.1f}", f"{sure:,}")
    table.add_section()
    table.add_row("all", f"{len(known):,}", f"{len(known):,}", f"{sure_in_all:,}")
    return table


def adaptive_result(counts: Mapping[str, Any]) -> str:
    """Return how many strata an adaptive search got from own rollouts, how many without, and how sure it is.

    Args:
        counts: `counts` of run.json.
    """
    sources = counts["sources"]
    return (
        f"{sources['adaptive']:,} strata by own rollouts, {sources['predicted']:,} predicted without; the mean of "
        f"their probabilities is {counts['mean_probability']:.2f}; expected, where the likeliest stratum undercounts "
        "rare ones: " + ", ".join(f"{count:,.0f} {name}" for name, count in counts["expected_strata"].items())
    )


def brief_summary(scores: Scores) -> RenderableType:
    """One line a stratum, rollouts, attention balance, and what needs attention; the report has the rest."""
    counts, labels = scores.run["counts"], list(scores.table["pism_stratum"])
    total, totals = max(len(labels), 1), Counter(labels)
    lines = [
        f"{label or 'no image':<10} {totals[label]:>5,}  {totals[label] / total:>4.0%}  "
        + "█" * round(BAR_WIDTH * totals[label] / total)
        for label in shown_labels(labels)
    ]
    lines.append(
        f"rollouts   {counts['rollouts']:,} of the {counts['rollouts_exhaustive']:,} of an exhaustive search "
        f"({counts['rollouts'] / max(counts['rollouts_exhaustive'], 1):.0%}) in "
        + _seconds(scores.run["seconds"]["total"])
    )
    if "sources" in counts:
        lines.append(f"adaptive   {adaptive_result(counts)}")
    balances = sorted(value for value in scores.table["attention_balance"] if value is not None)
    if balances:
        lines.append(
            f"attention  median ρ̄ {balances[len(balances) // 2]:.3g} over {len(balances):,} solved samples "
            "(attention on the image over attention on the text)"
        )
    if counts["rejected"]:
        lines.append(f"rejected   {counts['rejected']} records: see {scores.directory / REJECTED_FILE}")
    sentences = [*scores.run.get("warnings", []), *scores.run["signatures"]]
    return Group(*map(Text, lines), *(Text(f"! {sentence}", style="bold yellow") for sentence in sentences))


def summary(scores: Scores) -> RenderableType:
    """Return the strata table, rollouts against an exhaustive search, time, rejected records, and warnings."""
    run, counts = scores.run, scores.run["counts"]
    seconds = run["seconds"]
    title = f"Strata of {run['data']} for {run['model']}, by ability (mask space: {run['mask_space']})"
    served = "requests_this_run" in counts
    lines = [
        f"rollouts   {counts['rollouts']:,} of the {counts['rollouts_exhaustive']:,} of an exhaustive search "
        f"({100 * counts['rollouts'] / max(counts['rollouts_exhaustive'], 1):.0f} %)",
        *([f"adaptive   {adaptive_result(counts)}"] if "sources" in counts else []),
        f"time       {_seconds(seconds['total'])}: {_seconds(seconds['generate'])} "
        f"{'waiting for the server' if served else 'in the model'}, "
        f"{_seconds(seconds['wait_for_prepare'])} waiting for images, {_seconds(seconds['grade'])} grading; "
        f"{counts['rollouts_this_run']:,} rollouts in this run",
        f"images     {'in threads' if served else 'beside the model'}: {_seconds(seconds['decode'])} decoding, "
        f"{_seconds(seconds['mask'])} masking ({run['backends']['mask_pixels']}), {_seconds(seconds['processor'])} "
        + ("writing PNG" if served else f"in the processor ({run['backends']['image_processor']})"),
        *([_requests(counts)] if served else []),
        f"rejected   {counts['rejected']} records"
        + (f": see {scores.directory / REJECTED_FILE}" * bool(counts["rejected"])),
    ]
    lines += finish_lines(counts)
    if counts["rollouts_blind"]:
        lines.append(
            f"blind      {counts['solved_blind']} samples are solved with no image left (λ = 1.0), so their stratum "
            f"may be due to guessing (column solved_blind); {counts['rollouts_blind']:,} more rollouts"
        )
    if counts["grading_timeouts"]:
        lines.append(f"grading    {counts['grading_timeouts']} answers timed out in grading and count as wrong")
    if counts["without_stratum"]:
        lines.append(f"no image   {counts['without_stratum']} samples have P_c(0) and no stratum")
    cmab = run.get("cmab")
    parts: list[RenderableType] = []
    if cmab and cmab.get("reason"):
        lines.append(f"attention  no balance: {cmab['reason']}")
    elif cmab:
        balances = [value for value in scores.table["attention_balance"] if value is not None]
        middle = f"median ρ̄ {sorted(balances)[len(balances) // 2]:.3g} over " if balances else ""
        share = ""
        if counts["rollouts_this_run"] and cmab["seconds"] < run["seconds"]["total"]:
            share = f", {cmab['seconds'] / (run['seconds']['total'] - cmab['seconds']):.0%} of PISM's time"
        lines.append(
            f"attention  {middle}{len(balances):,} solved samples; {cmab['completions']:,} completions in "
            f"{_seconds(cmab['seconds'])} ({cmab['settings']['variant']}{share})"
        )
        parts.append(
            cross_table(list(scores.table["pism_stratum"]), list(scores.table["cmab_stratum"]), "PISM and CMAB")
        )
    warnings = [Text(f"! {sentence}", style="bold yellow") for sentence in run["signatures"]]
    table = strata_table(list(scores.table["ability"]), list(scores.table["pism_stratum"]), title)
    first = [Text(f"! {sentence}", style="bold yellow") for sentence in run.get("warnings", [])]
    return Group(*first, table, *parts, *map(Text, lines), *warnings, Text(f"results    {scores.directory}"))


def finish_lines(counts: Mapping[str, Any]) -> list[str]:
    """Return how rollouts ended, and how many samples are unfinished; nothing for a run of an older version.

    Args:
        counts: `counts` of run.json.
    """
    ended = counts.get("finish") or {}
    lines = [f"ended      at λ = 0: {shares_text(ended['unmasked'])}"] if ended.get("unmasked") else []
    if lines and ended["all"] != ended["unmasked"]:
        lines.append(f"           in all:   {shares_text(ended['all'])}")
    if counts.get("unfinished"):
        lines.append(
            f"unfinished {counts['unfinished']:,} samples have no rollout at λ = 0 with an answer: they are in no "
            "stratum"
        )
    return lines


def _requests(counts: Mapping[str, Any]) -> str:
    retries = counts["retries"]
    reasons = ", ".join(f"{number:,} after {reason}" for reason, number in sorted(retries.items()))
    return (
        f"requests   {counts['requests_this_run']:,} to the server, {sum(retries.values()):,} of them retries"
        + (f" ({reasons})" if reasons else "")
        + f"; {counts['tokens']['completion']:,} completion tokens"
    )


def _seconds(value: float) -> str:
    """Format seconds, with one decimal below 10."""
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
