"""Two folders compared: whatever they are, and the page of two scorings."""

from __future__ import annotations

from pathlib import Path

from hardsample.evaluation.comparing import ComparisonError, Moves, by_ability, compare_scores, furthest
from hardsample.evaluation.evaluate import Comparison
from hardsample.evaluation.evaluate import compare as compare_evaluations
from hardsample.metrics.intervals import Interval
from hardsample.metrics.strata import STRATA
from hardsample.report.parts import charts
from hardsample.report.parts.document import Chart, Finding, Moved, Page, Part, Section, Table, Text
from hardsample.report.parts.folders import kind_of
from hardsample.report.parts.gather import MOST_GROUPS, heat
from hardsample.report.parts.names import short, shown
from hardsample.report.parts.svg import to_svg

MOST_ROWS = 400
"""Most samples in the list on the page; the file next to it has all."""
NONE_FAILS = "none"


def kind_of_both(first: Path, second: Path) -> str:
    """Name what two folders are, so that they can be compared.

    Args:
        first: one folder.
        second: the other.

    Returns:
        `scores` or `evaluation`.

    Raises:
        OutputError: a folder cannot be read.
        ComparisonError: they are of two kinds, or of a kind that is not compared.
    """
    kinds = kind_of(first), kind_of(second)
    if kinds in (("scores", "scores"), ("evaluation", "evaluation")):
        return kinds[0]
    names = {"scores": "a scoring", "evaluation": "an evaluation", "training": "a training"}
    names["experiment"] = "an experiment"
    raise ComparisonError(
        f"{first} is {names[kinds[0]]}, {second} {names[kinds[1]]}: give two folders of `hardsample score`, or two of "
        "`hardsample evaluate`"
    )


def compare(first: str | Path, second: str | Path) -> Moves | Comparison:
    """Compare two folders of the same samples: two scorings, or two evaluations.

    Args:
        first: such as before training.
        second: such as after it.

    Returns:
        Of scorings the samples that moved between strata, and how far both agree; of evaluations the paired
        differences in accuracy.

    Raises:
        OutputError: a folder cannot be read.
        ComparisonError: the folders are of two kinds, or measured different things.
        EvaluationError: two evaluations have no sample in common, or grade differently.
    """
    if kind_of_both(Path(first), Path(second)) == "evaluation":
        return compare_evaluations(first, second)
    return compare_scores(first, second)


def compared_page(moves: Moves, listed: str) -> Page:
    """Return the page of a comparison.

    Args:
        moves: the comparison.
        listed: name of the file with every sample that moved.
    """
    runs = moves.first.run, moves.second.run
    models = [short(run["model"]) for run in runs]
    names = models if models[0] != models[1] else [moves.first.directory.name, moves.second.directory.name]
    return Page(
        "comparison",
        f"{names[1]} against {names[0]}",
        [
            ("first", str(moves.first.directory)),
            ("second", str(moves.second.directory)),
            ("samples in both", f"{len(moves.samples):,}"),
            ("mask space", runs[0]["mask_space"]),
            ("in one only, or without a stratum", f"{moves.left_out:,}"),
            *([("unfinished in one", f"{moves.unfinished:,}")] if moves.unfinished else []),
        ],
        _lead(moves),
        [_numbers(moves), _moves(moves), _list(moves, listed), _settings(moves)],
        [Finding(f"{note[:1].upper()}{note[1:]}.", warning=False) for note in moves.notes],
        fine="✓ Both were scored with the same settings.",
    )


def percent(share: Interval) -> str:
    """Format a share with its interval."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _plain(interval: Interval | None) -> str:
    return (
        "undefined"
        if interval is None or interval.value != interval.value
        else f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"
    )


def _lead(moves: Moves) -> list[str]:
    return [
        f"Of {len(moves.samples):,} samples in both, {percent(moves.agreement)} are in the same stratum; "
        f"{percent(moves.easier)} are easier in the second, {percent(moves.harder)} harder.",
        "In brackets: 95 % intervals. Part of the changes is sampling noise from few rollouts: to see how large that "
        "part is, score one model twice with different seeds and compare the two.",
    ]


def _numbers(moves: Moves) -> Section:
    change = moves.change
    rows = [
        ["same stratum", percent(moves.agreement)],
        ["Cohen's κ", _plain(moves.kappa)],
        ["rank correlation of λ*", _plain(moves.correlation)],
        ["easier in the second", percent(moves.easier)],
        ["harder in the second", percent(moves.harder)],
        ["mean change of λ*", f"{round(change.value, 3) + 0.0:+.3f} ({change.low:+.3f} to {change.high:+.3f})"],
    ]
    note = (
        "κ is the agreement beyond chance: 0 is chance, 1 is perfect. λ* counts as 1 if no ratio fails, and as 0 for "
        "unsolved samples."
    )
    return Section(
        "agreement", "Agreement", [Table("With 95 % intervals", ["", "value"], rows), _matrix(moves), Text(note)]
    )


def _matrix(moves: Moves) -> Table:
    totals = [sum(row) for row in moves.counts]
    rows = [
        [name, *(f"{count:,}" for count in row), f"{total:,}"]
        for name, row, total in zip(STRATA, moves.counts, totals, strict=True)
    ]
    shades = [[*row, 0] for row in heat(moves.counts)]
    return Table(
        "Samples by stratum in the first (rows) and in the second (columns)", ["", *STRATA, "all"], rows, shades
    )


def _moves(moves: Moves) -> Section:
    ratios = moves.first.config().ratios
    index_of = {ratio: index for index, ratio in enumerate(ratios)}
    sides = [move.first_threshold for move in moves.samples], [move.second_threshold for move in moves.samples]
    first, second = (
        [len(ratios) if threshold is None else index_of[threshold] for threshold in side] for side in sides
    )
    figure = charts.threshold_moves(first, second, [*(f"{ratio:g}" for ratio in ratios), NONE_FAILS])
    caption = "λ* in both; the area of a disc is the number of samples. Above the line: easier in the second."
    parts: list[Part] = [Chart(to_svg(figure, "moves", "λ* in the first scoring against λ* in the second"), caption)]
    groups = by_ability(moves.samples)
    if len(groups) < 2:
        return Section("moves", "Changes of λ*", [*parts, Text("The samples have no ability, or all the same one.")])
    largest = sorted(sorted(groups, key=lambda name: -groups[name][0])[:MOST_GROUPS])
    figure = charts.both_ways([(name, *groups[name][1:]) for name in largest])
    caption = "Share of the samples that became easier and harder, by ability, with 95 % intervals."
    parts.append(Chart(to_svg(figure, "abilities", "Share that became easier and harder by ability"), caption))
    rows = [[name, f"{size:,}", percent(easier), percent(harder)] for name, (size, easier, harder) in groups.items()]
    head = ["ability", "samples", "easier", "harder"]
    parts.append(Table("Share that became easier and harder, with 95 % intervals", head, rows, folded=True))
    return Section("moves", "Changes of λ*", parts)


def _list(moves: Moves, listed: str) -> Section:
    moved = furthest(moves.moved)
    if not moved:
        return Section("moved", "Samples that moved", [Text("None: every sample is in the same stratum in both.")])

    rows = [
        {
            "id": move.id,
            "ability": move.ability or "—",
            "first": move.first,
            "second": move.second,
            "move": f"{move.first} → {move.second}",
            "change": f"{move.change:.4f}",
            "first_threshold": _threshold(move.first_threshold),
            "second_threshold": _threshold(move.second_threshold),
        }
        for move in moved[:MOST_ROWS]
    ]
    limit = "" if len(rows) == len(moved) else f"; the {len(rows):,} with the largest change of λ* are shown"
    note = f"{len(moved):,} samples moved{limit}. {listed} lists them all."
    return Section("moved", "Samples that moved", [Moved(note, rows)])


def _threshold(value: float | None) -> str:
    return NONE_FAILS if value is None else f"{value:g}"


def _settings(moves: Moves) -> Section:
    first, second = moves.first.run["settings"], moves.second.run["settings"]
    rows = [["model", moves.first.run["model"], moves.second.run["model"]]]
    rows.append(["data", moves.first.run["data"], moves.second.run["data"]])
    rows += [[name, shown(first.get(name)), shown(second.get(name))] for name in first]
    return Section(
        "settings", "Settings", [Table("Settings of both", ["", "first", "second"], rows, folded=True, texts=3)]
    )
