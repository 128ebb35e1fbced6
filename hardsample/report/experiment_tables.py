"""What a person sees of an experiment: its plan, and its results."""

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
    """What would be trained: one line for trainings that differ in their seed only.

    Args:
        costs: of every training.
        cells: of the plan.
        notes: on the strata.
        assumed: whether the sizes of strata are no more than assumed.
    """
    users = Counter(key for cell in cells for key in cell.trainings)
    table = Table(title=Text(f"{len(costs)} trainings for {len(cells)} cells"), title_justify="left")
    for name in ("training", "seeds", "samples", "steps", "rollouts", "seconds", "done", "shared by"):
        table.add_column(name, justify="left" if name == "training" else "right")
    groups: dict[tuple, list[Cost]] = {}
    for one in costs:
        training = one.training
        parent = training.parent.rpartition("-")[0]
        alike = (str(training.method), training.part, training.steps, users[training.key], parent, one.done)
        groups.setdefault((*alike, str(sorted(training.options.items())), training.reward_funcs), []).append(one)
    for same in groups.values():
        first = same[0].training
        seconds = [one.seconds for one in same if one.seconds is not None]
        about = "≈" if assumed and first.part != ALL else ""
        after = f"{first.parent.rpartition('-')[0]} → " if first.parent.rpartition("-")[0] else ""
        table.add_row(
            Text(f"{after}{first.method} {first.part}"),
            str(len(same)),
            f"{about}{len(first.rows):,}",
            f"{about}{first.steps}",
            f"{about if first.rollouts else ''}{sum(one.training.rollouts for one in same):,}",
            f"{about}{sum(seconds):,.0f}" if seconds else "?",
            "yes" if same[0].done else "",
            f"{users[first.key]} cells" if users[first.key] > 1 else "",
        )
    left = [one for one in costs if not one.done]
    known = [one.seconds for one in left if one.seconds is not None]
    lines = [
        f"left       {len(left)} trainings, {'≈' if assumed else ''}"
        f"{sum(one.training.rollouts for one in left):,} rollouts"
        + (f", some {sum(known) / 60:,.0f} minutes one after the other" if known else "")
    ]
    lines += [f"cannot     {cell.name}: {cell.problem}" for cell in cells if cell.problem]
    return Group(table, *map(Text, lines), *(Text(f"! {note}", style="bold yellow") for note in notes))


def recipe_table(found: Results) -> RenderableType:
    """Means with intervals, then differences, then what to be careful about."""
    return Group(
        _rows(found.rows, found.base),
        *([_differences(found.differences, found.rows)] if found.differences else []),
        *(Text(f"note       {note}") for note in found.notes),
    )


def recipe_lines(found: Results) -> list[str]:
    """One line a recipe and one for the primary comparison; `recipe_table` and the report have the rest."""
    before = f", {100 * found.base:.1f} before" if found.base is not None else ""
    lines = [
        f"trained    {shown(row.accuracy)} % right after GRPO on {name_of(row, found.rows)}{before} "
        f"({' → '.join(f'{size:,}' for size in row.samples)} samples, {row.rollouts:,.0f} rollouts, "
        f"{len(row.values)} seeds)"
        for row in found.rows
        if row.accuracy
    ]
    return lines + [
        f"difference {shown(one.difference, signed=True)} points, {name_of(one.row, found.rows)} minus "
        f"{name_of(one.against, found.rows)}, 95 % interval over seeds"
        + ("" if one.p is None else f", p = {one.p:.2g}")
        for one in found.differences
        if one.primary
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
    title = "Differences in points, paired by seed; p corrected by Holm but for the primary comparison"
    table = Table(title=Text(title), title_justify="left")
    for name in ("", "minus", "difference", "seeds", "p"):
        table.add_column(name, justify="left" if name in ("", "minus") else "right")
    for one in differences:
        p = one.p if one.primary else one.corrected
        table.add_row(
            Text(("primary: " if one.primary else "") + name_of(one.row, rows)),
            Text(name_of(one.against, rows)),
            shown(one.difference, signed=True),
            str(one.difference.samples),
            "–" if p is None else f"{p:.2g}",
        )
    return table
