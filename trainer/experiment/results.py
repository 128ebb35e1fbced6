"""From the cells of an experiment to its table: means with intervals over seeds, differences paired by seed. Pure.

One comparison is primary: it was named before anything was run, and its p-value stands as it is. All others are
corrected for their number by Holm. A cell that diverged is named and not averaged in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hardsample.metrics.intervals import Interval, holm, mean_interval, p_value

DIVERGED = ("loss", "kl", "reward_collapse")
"""Alarms of `watch` that make a cell's accuracy one of a broken model."""

Setting = tuple[str, str, str | None]
"""Budget, variant, metric."""


@dataclass(frozen=True)
class Outcome:
    """One cell that was run, or was not."""

    metric: str | None
    budget: str
    variant: str
    recipe: str
    seed: int
    accuracy: float | None = None
    rollouts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    samples: tuple[int, ...] = ()
    """Of each stage."""
    alarms: tuple[str, ...] = ()
    problem: str = ""

    @property
    def diverged(self) -> tuple[str, ...]:
        """The alarms that say so."""
        return tuple(name for name in self.alarms if name in DIVERGED)

    @property
    def counts(self) -> bool:
        """Whether its accuracy is averaged in."""
        return self.accuracy is not None and not self.diverged


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    setting: Setting
    recipe: str
    accuracy: Interval | None
    values: dict[int, float] = field(default_factory=dict)
    """Seed → accuracy."""
    rollouts: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    samples: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One row minus another, paired by seed."""

    row: Row
    against: Row
    difference: Interval
    p: float | None
    """None with fewer than two seeds."""
    corrected: float | None = None
    """By Holm, for all comparisons but the primary."""
    primary: bool = False


def make_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Sums cells up over seeds, in the order of their first."""
    groups: dict[tuple[Setting, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(((one.budget, one.variant, one.metric), one.recipe), []).append(one)
    return [_row(setting, recipe, cells) for (setting, recipe), cells in groups.items()]


def _row(setting: Setting, recipe: str, cells: Sequence[Outcome]) -> Row:
    good = [cell for cell in cells if cell.counts]
    notes = [f"seed {cell.seed} diverged ({', '.join(cell.diverged)})" for cell in cells if cell.diverged]
    problems: dict[str, list[int]] = {}
    for cell in cells:
        if cell.problem:
            problems.setdefault(cell.problem, []).append(cell.seed)
    notes += [f"seeds {', '.join(map(str, seeds))}: {text}" for text, seeds in problems.items()]
    quiet = sum("no_signal" in cell.alarms for cell in good)
    notes += [f"hardly any signal in {quiet} of {len(good)}"] if quiet else []
    made = [cell for cell in cells if cell.accuracy is not None]

    def mean(name: str) -> float:
        return sum(getattr(cell, name) for cell in made) / len(made) if made else 0.0

    values = {cell.seed: float(cell.accuracy) for cell in good if cell.accuracy is not None}
    return Row(
        setting,
        recipe,
        mean_interval(list(values.values())) if values else None,
        values,
        mean("rollouts"),
        mean("tokens"),
        mean("seconds"),
        made[0].samples if made else (),
        tuple(notes),
    )


def compare_rows(rows: Sequence[Row], recipe: str, against: str) -> list[Difference]:
    """Compares every row with the reference of its setting, and variants of a recipe with the first variant.

    Args:
        rows: of the table, the first setting first.
        recipe: the one of the primary comparison, which is made in the first setting that has both.
        against: the reference.

    Returns:
        The primary comparison first, if it can be made; the others with p-values corrected by Holm.
    """
    by = {(row.setting, row.recipe): row for row in rows}
    pairs: list[tuple[Row, Row]] = []
    for row in rows:
        other = by.get((row.setting, against)) or _reference(rows, row.setting, against)
        if other is not None and row is not other:
            pairs.append((row, other))
    variants = list(dict.fromkeys(row.setting[1] for row in rows))
    for row in rows:
        budget, variant, metric = row.setting
        first = by.get(((budget, variants[0], metric), row.recipe))
        if variant != variants[0] and first is not None:
            pairs.append((row, first))
    found = [one for one in (_difference(row, other) for row, other in pairs) if one is not None]
    chosen = next((one for one in found if one.row.recipe == recipe and one.against.recipe == against), None)
    rest = [one for one in found if one is not chosen]
    tested = [one for one in rest if one.p is not None]
    corrected = dict(zip(map(id, tested), holm([one.p for one in tested if one.p is not None]), strict=True))
    others = [Difference(one.row, one.against, one.difference, one.p, corrected.get(id(one))) for one in rest]
    if chosen is None:
        return others
    return [Difference(chosen.row, chosen.against, chosen.difference, chosen.p, primary=True), *others]


def _reference(rows: Sequence[Row], setting: Setting, against: str) -> Row | None:
    """The reference for a row that no metric has: that of the first metric."""
    budget, variant, metric = setting
    if metric is not None:
        return None
    return next((row for row in rows if row.setting[:2] == (budget, variant) and row.recipe == against), None)


def _difference(row: Row, other: Row) -> Difference | None:
    seeds = [seed for seed in row.values if seed in other.values]
    if not seeds:
        return None
    values = [row.values[seed] - other.values[seed] for seed in seeds]
    return Difference(row, other, mean_interval(values), p_value(values) if len(values) > 1 else None)


def markdown(
    title: str, rows: Sequence[Row], differences: Sequence[Difference], base: float | None, notes: Sequence[str]
) -> str:
    """The results page.

    Args:
        title: its heading.
        rows: of the table.
        differences: see `compare_rows`.
        base: accuracy of the model before training.
        notes: sentences below.
    """
    lines = [f"# {title}", ""]
    if base is not None:
        lines += [f"Accuracy before training: {100 * base:.1f} %. Intervals are 95 %, over seeds (t, n − 1).", ""]
    lines += [
        "| budget | variant | strata | recipe | samples | seeds | accuracy, % | rollouts | tokens | seconds | notes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        budget, variant, metric = row.setting
        values = (
            budget,
            variant,
            metric or "–",
            row.recipe,
            " → ".join(f"{size:,}" for size in row.samples) or "–",
            len(row.values),
            shown(row.accuracy) if row.accuracy else "–",
            f"{row.rollouts:,.0f}",
            f"{row.tokens:,.0f}",
            f"{row.seconds:,.0f}",
            "; ".join(row.notes).replace("|", "\\|"),
        )
        lines.append(f"| {' | '.join(map(str, values))} |")
    if differences:
        lines += [
            "",
            "| | minus | difference, points | seeds | p | p by Holm |",
            "|---|---|---|---|---|---|",
        ]
    for one in differences:
        lines.append(
            f"| {'**primary** ' if one.primary else ''}{name_of(one.row, rows)} | {name_of(one.against, rows)} | "
            f"{shown(one.difference, signed=True)} | {one.difference.samples} | {_p(one.p)} | "
            f"{'' if one.primary else _p(one.corrected)} |"
        )
    lines += [""] + [f"- {note}" for note in notes] if notes else []
    return "\n".join(lines) + "\n"


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """A row in a few words: the recipe, and of its setting what differs between the rows.

    Args:
        row: one of them.
        rows: of the table.
    """
    varies = [len({one.setting[place] for one in rows if one.setting[place]}) > 1 for place in range(3)]
    parts = [part for part, differs in zip(row.setting, varies, strict=True) if differs and part]
    return f"{row.recipe} ({', '.join(parts)})" if parts else row.recipe


def shown(one: Interval, signed: bool = False) -> str:
    """A mean in per cent and half of its interval."""
    value = f"{100 * one.value:+.1f}" if signed else f"{100 * one.value:.1f}"
    return value if one.samples < 2 else f"{value} ± {50 * (one.high - one.low):.1f}"


def as_json(rows: Sequence[Row], differences: Sequence[Difference]) -> Mapping[str, object]:
    """The results for programs."""

    def interval(one: Interval | None) -> dict[str, float | int | None] | None:
        if one is None:
            return None
        alone = one.samples < 2
        bounds = {"low": None if alone else one.low, "high": None if alone else one.high}
        return {"mean": one.value, **bounds, "seeds": one.samples}

    def about(row: Row) -> dict[str, object]:
        budget, variant, metric = row.setting
        return {"budget": budget, "variant": variant, "metric": metric, "recipe": row.recipe}

    return {
        "rows": [
            about(row)
            | {
                "accuracy": interval(row.accuracy),
                "by_seed": {str(seed): value for seed, value in row.values.items()},
                "samples": list(row.samples),
                "rollouts": row.rollouts,
                "tokens": row.tokens,
                "seconds": row.seconds,
                "notes": list(row.notes),
            }
            for row in rows
        ],
        "comparisons": [
            {
                "row": about(one.row),
                "against": about(one.against),
                "difference": interval(one.difference),
                "p": one.p,
                "p_holm": one.corrected,
                "primary": one.primary,
            }
            for one in differences
        ],
    }


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
