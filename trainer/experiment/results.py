"""From the cells of an experiment to its table: means with intervals over seeds, differences paired by seed. Pure.

One comparison is primary: it was named before anything was run, and its p-value is not corrected. All others are
corrected for their number by Holm. A cell that diverged is named and not averaged in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    """Average cells over seeds, in the order of their first seed."""
    groups: dict[tuple[Setting, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(((outcome.budget, outcome.variant, outcome.metric), outcome.recipe), []).append(outcome)
    return [_row(setting, recipe, cells) for (setting, recipe), cells in groups.items()]


def _row(setting: Setting, recipe: str, cells: Sequence[Outcome]) -> Row:
    good = [cell for cell in cells if cell.counts]
    notes = [f"seed {cell.seed} diverged ({', '.join(cell.diverged)})" for cell in cells if cell.diverged]
    problems: dict[str, list[int]] = {}
    for cell in cells:
        if cell.problem:
            problems.setdefault(cell.problem, []).append(cell.seed)
    notes += [f"seeds {', '.join(map(str, seeds))}: {text}" for text, seeds in problems.items()]
    quiet = sum("zero_variance" in cell.alarms for cell in good)
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
    """Compare every row with the reference of its setting, and variants of a recipe with the first variant.

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
    compared = [_difference(row, other) for row, other in pairs]
    differences = [difference for difference in compared if difference is not None]
    primary = next((d for d in differences if d.row.recipe == recipe and d.against.recipe == against), None)
    others = [difference for difference in differences if difference is not primary]
    p_values = {index: other.p for index, other in enumerate(others) if other.p is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    rest = [replace(other, corrected=corrected.get(index)) for index, other in enumerate(others)]
    return rest if primary is None else [replace(primary, primary=True), *rest]


def _reference(rows: Sequence[Row], setting: Setting, against: str) -> Row | None:
    """Return the reference for a row that does not depend on the metric: that of the first metric."""
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
    """Format the results page.

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
    for pair in differences:
        lines.append(
            f"| {'**primary** ' if pair.primary else ''}{name_of(pair.row, rows)} | {name_of(pair.against, rows)} | "
            f"{shown(pair.difference, signed=True)} | {pair.difference.samples} | {_p(pair.p)} | "
            f"{'' if pair.primary else _p(pair.corrected)} |"
        )
    lines += [""] + [f"- {note}" for note in notes] if notes else []
    return "\n".join(lines) + "\n"


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Name a row: its recipe, and what of its setting differs between the rows.

    Args:
        row: of the table.
        rows: of the table.
    """
    varies = [len({other.setting[index] for other in rows if other.setting[index]}) > 1 for index in range(3)]
    parts = [part for part, differs in zip(row.setting, varies, strict=True) if differs and part]
    return f"{row.recipe} ({', '.join(parts)})" if parts else row.recipe


def shown(interval: Interval, signed: bool = False) -> str:
    """Format a mean and half of its interval in per cent."""
    value = f"{100 * interval.value:+.1f}" if signed else f"{100 * interval.value:.1f}"
    return value if interval.samples < 2 else f"{value} ± {50 * (interval.high - interval.low):.1f}"


def as_json(rows: Sequence[Row], differences: Sequence[Difference]) -> Mapping[str, object]:
    """Return the results as JSON holds them."""

    def numbers(interval: Interval | None) -> dict[str, float | int | None] | None:
        if interval is None:
            return None
        alone = interval.samples < 2
        bounds = {"low": None if alone else interval.low, "high": None if alone else interval.high}
        return {"mean": interval.value, **bounds, "seeds": interval.samples}

    def about(row: Row) -> dict[str, object]:
        budget, variant, metric = row.setting
        return {"budget": budget, "variant": variant, "metric": metric, "recipe": row.recipe}

    return {
        "rows": [
            about(row)
            | {
                "accuracy": numbers(row.accuracy),
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
                "row": about(pair.row),
                "against": about(pair.against),
                "difference": numbers(pair.difference),
                "p": pair.p,
                "p_holm": pair.corrected,
                "primary": pair.primary,
            }
            for pair in differences
        ],
    }


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
