"""Tables of an experiment on the terminal: its plan, and its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hardsample.trainer.experiment.paradigms import ALL
from hardsample.trainer.experiment.plan import Cell
from hardsample.trainer.experiment.results import Difference, Row, name_of, shown

if TYPE_CHECKING:
    from hardsample.trainer.experiment.summary import Cost, Results


def plan_table(
    costs: Sequence[Cost], cells: Sequence[Cell], notes: Sequence[str], assumed: bool = False
) -> RenderableType:
    """Return the planned trainings as a table, one row for trainings that differ only in their seed.

    Args:
        costs: of every training.
        cells: of the plan.
        notes: on the strata.
        assumed: whether the sizes of the strata are assumptions.
    """
    users = Counter(key for cell in cells for key in cell.trainings)
    table = Table(title=Text(f"{len(costs)} trainings for {len(cells)} cells"), title_justify="left")
    for name in ("training", "seeds", "samples", "steps", "rollouts", "seconds", "done", "shared by"):
        table.add_column(name, justify="left" if name == "training" else "right")
    groups: dict[tuple, list[Cost]] = {}
    for cost in costs:
        training = cost.training
        parent = training.parent.rpartition("-")[0]
        alike = (str(training.method), training.part, training.steps, users[training.key], parent, cost.done)
        groups.setdefault((*alike, str(sorted(training.options.items())), training.reward_funcs), []).append(cost)
    for group in groups.values():
        first = group[0].training
        seconds = [cost.seconds for cost in group if cost.seconds is not None]
        about = "≈" if assumed and first.part != ALL else ""
        after = f"{first.parent.rpartition('-')[0]} → " if first.parent.rpartition("-")[0] else ""
        table.add_row(
            Text(f"{after}{first.method} {first.part}"),
            str(len(group)),
            f"{about}{len(first.rows):,}",
            f"{about}{first.steps}",
            f"{about if first.rollouts else ''}{sum(cost.training.rollouts for cost in group):,}",
            f"{about}{sum(seconds):,.0f}" if seconds else "?",
            "yes" if group[0].done else "",
            f"{users[first.key]} cells" if users[first.key] > 1 else "",
        )
    left = [cost for cost in costs if not cost.done]
    known = [cost.seconds for cost in left if cost.seconds is not None]
    lines = [
        f"left       {len(left)} trainings, {'≈' if assumed else ''}"
        f"{sum(cost.training.rollouts for cost in left):,} rollouts"
        + (f", about {sum(known) / 60:,.0f} minutes in sequence" if known else "")
    ]
    lines += [f"cannot run {cell.name}: {cell.problem}" for cell in cells if cell.problem]
    return Group(table, *map(Text, lines), *(Text(f"! {note}", style="bold yellow") for note in notes))


def recipe_table(results: Results) -> RenderableType:
    """Return means with intervals, then differences, then notes."""
    return Group(
        _rows(results.rows, results.base),
        *([_differences(results.differences, results.rows)] if results.differences else []),
        *(Text(f"note       {note}") for note in results.notes),
    )


def recipe_lines(results: Results) -> list[str]:
    """Return one line a recipe and one for the primary comparison; `recipe_table` and the report have the rest."""
    before = f"{100 * results.base:.1f} → " if results.base is not None else ""
    lines = [
        f"trained    accuracy {before}{shown(row.accuracy)} % by GRPO on {name_of(row, results.rows)} "
        f"({' → '.join(f'{size:,}' for size in row.samples)} samples, {row.rollouts:,.0f} rollouts, "
        f"{len(row.values)} seeds)"
        for row in results.rows
        if row.accuracy
    ]
    return lines + [
        f"difference {shown(entry.difference, signed=True)} points, {name_of(entry.row, results.rows)} minus "
        f"{name_of(entry.against, results.rows)}, 95 % interval over seeds"
        + ("" if entry.p is None else f", p = {entry.p:.2g}")
        for entry in results.differences
        if entry.primary
    ]


def _rows(rows: Sequence[Row], base: float | None) -> Table:
    before = f", {100 * base:.1f} before training" if base is not None else ""
    table = Table(title=Text(f"Accuracy in %, 95 % intervals over seeds (t){before}"), title_justify="left")
    for name in ("recipe", "samples", "seeds", "accuracy", "rollouts", "seconds", "notes"):
        table.add_column(name, justify="left" if name in ("recipe", "notes") else "right")
    for row in rows:
        table.add_row(
            Text(name_of(row, rows)),
            " → ".join(f"{size:,}" for size in row.samples) or "–",
            str(len(row.values)),
            shown(row.accuracy) if row.accuracy else "–",
            f"{row.rollouts:,.0f}",
            f"{row.seconds:,.0f}",
            Text("; ".join(row.notes)),
        )
    return table


def _differences(differences: Sequence[Difference], rows: Sequence[Row]) -> Table:
    title = "Differences in points, paired by seed; p Holm-corrected except for the primary comparison"
    table = Table(title=Text(title), title_justify="left")
    for name in ("", "minus", "difference", "seeds", "p"):
        table.add_column(name, justify="left" if name in ("", "minus") else "right")
    for entry in differences:
        p = entry.p if entry.primary else entry.corrected
        table.add_row(
            Text(("primary: " if entry.primary else "") + name_of(entry.row, rows)),
            Text(name_of(entry.against, rows)),
            shown(entry.difference, signed=True),
            str(entry.difference.samples),
            "–" if p is None else f"{p:.2g}",
        )
    return table
