"""Gallery of samples: drawn at random, the same number from each stratum, with images, completions and grades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hardsample.data.formats import Record
from hardsample.data.images import ImageError, open_image
from hardsample.data.records.conversation import user_text
from hardsample.kernels.keys import ratio_units
from hardsample.metrics.finishes import FINISHES
from hardsample.metrics.intervals import accuracy_interval
from hardsample.metrics.strata import UNFINISHED
from hardsample.report.parts.document import CompletionGroup, Gallery, Item, Level, Thumbnail
from hardsample.report.parts.gather import NO_IMAGE, Scored
from hardsample.report.parts.images import MOST_IMAGES, masked_images, shown_ratios, small_images
from hardsample.scoring.store import Rollout, StoreError, StoreReader

ALL_IMAGES = 4_500_000
"""Bytes of all images together, before base64; each image gets an equal share."""
MOST_TEXT, MOST_UNMASKED, MOST_MASKED = 600, 8, 3
"""Most characters of a completion; most distinct completions at λ = 0, and at each other ratio."""
ORDERS = (("id", "id"), ("threshold", "λ*"), ("balance", "ρ̄"), ("rollouts", "rollouts"))


def gallery(scored: Scored, labels: Mapping[str | None, str]) -> Gallery:
    """Return the gallery of a run.

    Args:
        scored: the run, with the rows that were drawn.
        labels: names of the strata.
    """
    rows = scored.drawn
    notes = [f"Drawn at random, the same number from each stratum: {len(rows):,} of {len(scored.ids):,} samples."]
    try:
        with StoreReader(scored.scores.directory) as store:
            rollouts = {row: store.rollouts(scored.ids[row]) for row in rows}
    except StoreError as error:
        rollouts = {}
        notes.append(f"Completions are not shown: {error}.")
    if scored.source.missing:
        notes.append(f"Images and questions are not shown because the data was not found: {scored.source.missing}")
    elif scored.run["mask_space"] == "model":
        notes.append(
            "This run masked the preprocessed image (mask space: model). The masks below are drawn on the original "
            "pixels instead, with the same seed and ratios: an illustration, not the masks of the run."
        )
    if scored.source.note:
        notes.append(scored.source.note)
    room = ALL_IMAGES // max(1, len(rows) * (MOST_IMAGES + 6))
    items = [_item(scored, row, rollouts.get(row, []), room, labels) for row in rows]
    has_balance = any(balance is not None for balance in scored.balances)
    orders = [order for order in ORDERS if has_balance or order[0] != "balance"]
    if len(scored.scores.config().ratios) < 2:
        orders = [order for order in orders if order[0] != "threshold"]
    return Gallery(" ".join(notes), items, orders, scored.scores.config().tau)


def _item(scored: Scored, row: int, rollouts: Sequence[Rollout], room: int, labels: Mapping[str | None, str]) -> Item:
    stratum, threshold, balance = scored.strata[row], scored.thresholds[row], scored.balances[row]
    config = scored.scores.config()
    record = scored.source.records.get(scored.ids[row])
    images, masked, problem = _images(scored, record, row, room)
    levels = [
        _level(ratio, int(right), int(asked))
        for ratio, right, asked in zip(config.ratios, scored.successes[row], scored.attempts[row], strict=True)
    ]
    completions, more = condensed(rollouts)
    facts = [
        ("ρ̄", f"{balance:.3g}" if balance is not None else ""),
        ("CMAB", scored.cmab[row] or ""),
        ("rollouts", f"{scored.rollouts[row]:,}"),
        ("solved_blind", "solved with no image left" if scored.solved_blind[row] else ""),
        ("options", "; ".join((record.options if record else None) or [])),
        ("image", problem),
    ]
    passes_all = 1.0 if stratum == "easy" else None
    return Item(
        id=scored.ids[row],
        stratum=labels[stratum],
        tone=stratum or "none",
        ability=scored.abilities[row],
        source=scored.source.names[row] if scored.source.names else "",
        threshold=threshold_text(threshold, stratum) if len(config.ratios) > 1 else "",
        facts=[(name, value) for name, value in facts if value],
        order={
            "threshold": passes_all if threshold is None else threshold,
            "balance": balance,
            "rollouts": float(scored.rollouts[row]),
        },
        question=user_text(record.prompt) if record else "",
        solution=record.solution if record else "",
        images=images,
        masked=masked,
        levels=levels,
        curve=len(levels) > 1 and all(level.asked == config.num_masks for level in levels),
        completions=completions,
        more=more,
    )


def threshold_text(threshold: float | None, stratum: str | None) -> str:
    """Describe λ*."""
    if threshold is not None:
        return f"λ* = {threshold:g}"
    return "no λ*: " + {None: NO_IMAGE, UNFINISHED: "no answer at λ = 0"}.get(stratum, "no ratio fails")


def _level(ratio: float, right: int, asked: int) -> Level:
    if not asked:
        return Level(ratio, right, asked)
    interval = accuracy_interval([1] * right + [0] * (asked - right), [1] * asked)
    return Level(ratio, right, asked, interval.low, interval.high)


def _images(scored: Scored, record: Record | None, row: int, room: int) -> tuple[list[Thumbnail], list[Thumbnail], str]:
    """Return the images, the masked versions of the first, and any problem with them."""
    refs, settings, threshold = record.images if record else [], scored.run["settings"], scored.thresholds[row]
    if not refs:
        return [], [], ""
    ratios = shown_ratios(scored.scores.config().ratios, threshold)
    try:
        opened = [
            open_image(ref, max_pixels=settings["max_pixels"], root=scored.source.root) for ref in refs[:MOST_IMAGES]
        ]
        images = list(small_images(opened, len(refs), room))
        if len(ratios) < 2:
            return images, [], ""
        return images, list(masked_images(opened[0], scored.ids[row], ratios, threshold, settings, room)), ""
    except ImageError as error:
        return [], [], str(error)


def condensed(rollouts: Sequence[Rollout]) -> tuple[list[CompletionGroup], int]:
    """Group equal completions, the most frequent first; also return how many are left out.

    Args:
        rollouts: of one sample.
    """
    counts: Counter[tuple[float, str, int, str]] = Counter()
    for rollout in rollouts:
        text = rollout.completion
        text = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"
        counts[rollout.ratio, text, rollout.grade, _describe_finish(rollout)] += 1
    groups: list[CompletionGroup] = []
    left_out = 0
    shown: Counter[float] = Counter()
    order = sorted(counts.items(), key=lambda entry: (entry[0][0], -entry[0][2], -entry[1], entry[0][1:]))
    for (ratio, text, grade, ended), times in order:
        most = MOST_MASKED if ratio_units(ratio) else MOST_UNMASKED
        if shown[ratio] < most:
            groups.append(CompletionGroup(ratio, text, bool(grade), times, ended))
        else:
            left_out += times
        shown[ratio] += 1
    return groups, left_out


def _describe_finish(rollout: Rollout) -> str:
    """Describe how a completion ended if not by itself; an empty one is visible as such."""
    return "" if rollout.finish in (None, "stop", "empty") else FINISHES[rollout.finish]
