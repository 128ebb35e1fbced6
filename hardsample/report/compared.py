"""The page of two scorings side by side."""

from __future__ import annotations

from pathlib import Path

from hardsample.evaluation.comparing import ComparisonError, Moves, by_ability, furthest
from hardsample.metrics.intervals import Interval
from hardsample.metrics.strata import STRATA
from hardsample.report.parts import charts
from hardsample.report.parts.document import Chart, Finding, Moved, Page, Part, Section, Table, Text
from hardsample.report.parts.folders import kind_of
from hardsample.report.parts.gather import MOST_GROUPS, heat
from hardsample.report.parts.names import short, shown
from hardsample.report.parts.svg import to_svg

MOST_ROWS = 400
"""Samples of the list on the page; the file beside it has all."""
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


def compared_page(found: Moves, listed: str) -> Page:
    """The page of a comparison.

    Args:
        found: the comparison.
        listed: name of the file that has every sample that moved.
    """
    runs = found.first.run, found.second.run
    models = [short(run["model"]) for run in runs]
    names = models if models[0] != models[1] else [found.first.directory.name, found.second.directory.name]
    return Page(
        "comparison",
        f"{names[1]} against {names[0]}",
        [
            ("first", str(found.first.directory)),
            ("second", str(found.second.directory)),
            ("samples in both", f"{len(found.samples):,}"),
            ("mask space", runs[0]["mask_space"]),
            ("only in one, or without stratum", f"{found.left_out:,}"),
            *([("unfinished in one", f"{found.unfinished:,}")] if found.unfinished else []),
        ],
        _lead(found),
        [_numbers(found), _moves(found), _list(found, listed), _settings(found)],
        [Finding(f"{note[:1].upper()}{note[1:]}.", warning=False) for note in found.notes],
        fine="✓ Both were scored with the same settings.",
    )


def percent(one: Interval) -> str:
    """A share with its interval."""
    return f"{100 * one.value:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"


def _plain(one: Interval | None) -> str:
    return (
        "not to be had"
        if one is None or one.value != one.value
        else f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"
    )


def _lead(found: Moves) -> list[str]:
    return [
        f"Of {len(found.samples):,} samples that both have, {percent(found.agreement)} are in the same stratum; "
        f"{percent(found.easier)} are easier in the second, {percent(found.harder)} harder.",
        "In brackets: 95 % intervals. A part of the moves is the luck of few rollouts: score one model twice, with two "
        "seeds, and compare these, to see how large that part is.",
    ]


def _numbers(found: Moves) -> Section:
    change = found.change
    rows = [
        ["same stratum", percent(found.agreement)],
        ["Cohen's κ", _plain(found.kappa)],
        ["rank correlation of λ*", _plain(found.correlation)],
        ["easier in the second", percent(found.easier)],
        ["harder in the second", percent(found.harder)],
        ["mean change of λ*", f"{round(change.value, 3) + 0.0:+.3f} ({change.low:+.3f} to {change.high:+.3f})"],
    ]
    said = (
        "κ is the agreement beyond chance: 0 is chance, 1 is perfect. For λ* a sample that no ratio fails counts as 1, "
        "an unsolved one as 0."
    )
    return Section(
        "agreement", "Agreement", [Table("With 95 % intervals", ["", "value"], rows), _matrix(found), Text(said)]
    )


def _matrix(found: Moves) -> Table:
    totals = [sum(row) for row in found.counts]
    rows = [
        [name, *(f"{count:,}" for count in row), f"{total:,}"]
        for name, row, total in zip(STRATA, found.counts, totals, strict=True)
    ]
    shades = [[*row, 0] for row in heat(found.counts)]
    return Table(
        "Samples by stratum in the first (rows) and in the second (columns)", ["", *STRATA, "all"], rows, shades
    )


def _moves(found: Moves) -> Section:
    ratios = found.first.config().ratios
    places = {ratio: place for place, ratio in enumerate(ratios)}
    sides = [one.first_threshold for one in found.samples], [one.second_threshold for one in found.samples]
    first, second = ([len(ratios) if one is None else places[one] for one in side] for side in sides)
    figure = charts.threshold_moves(first, second, [*(f"{ratio:g}" for ratio in ratios), NONE_FAILS])
    caption = "λ* in both: the area of a disc is the number of samples. Above the line: easier in the second."
    parts: list[Part] = [Chart(to_svg(figure, "moves", "λ* in the first scoring against λ* in the second"), caption)]
    groups = by_ability(found.samples)
    if len(groups) < 2:
        return Section("moves", "Moves", [*parts, Text("All samples have the same ability, or none is named.")])
    largest = sorted(sorted(groups, key=lambda name: -groups[name][0])[:MOST_GROUPS])
    figure = charts.both_ways([(name, *groups[name][1:]) for name in largest])
    caption = "Share of the samples that became easier and harder, by ability, with 95 % intervals."
    parts.append(Chart(to_svg(figure, "abilities", "Share that became easier and harder by ability"), caption))
    rows = [[name, f"{size:,}", percent(easier), percent(harder)] for name, (size, easier, harder) in groups.items()]
    head = ["ability", "samples", "easier", "harder"]
    parts.append(Table("Share that became easier and harder, with 95 % intervals", head, rows, folded=True))
    return Section("moves", "Moves", parts)


def _list(found: Moves, listed: str) -> Section:
    moved = furthest(found.moved)
    if not moved:
        return Section("moved", "Samples that moved", [Text("None: every sample is in the same stratum in both.")])

    rows = [
        {
            "id": one.id,
            "ability": one.ability or "—",
            "first": one.first,
            "second": one.second,
            "move": f"{one.first} → {one.second}",
            "change": f"{one.change:.4f}",
            "first_threshold": _threshold(one.first_threshold),
            "second_threshold": _threshold(one.second_threshold),
        }
        for one in moved[:MOST_ROWS]
    ]
    which = "moved" if len(rows) == len(moved) else f"moved; the {len(rows):,} that moved furthest are shown"
    note = f"{len(moved):,} samples {which}. {listed} lists them all."
    return Section("moved", "Samples that moved", [Moved(note, rows)])


def _threshold(value: float | None) -> str:
    return NONE_FAILS if value is None else f"{value:g}"


def _settings(found: Moves) -> Section:
    one, other = found.first.run["settings"], found.second.run["settings"]
    rows = [["model", found.first.run["model"], found.second.run["model"]]]
    rows.append(["data", found.first.run["data"], found.second.run["data"]])
    rows += [[name, shown(one.get(name)), shown(other.get(name))] for name in one]
    return Section(
        "settings", "Settings", [Table("Settings of both", ["", "first", "second"], rows, folded=True, texts=3)]
    )
