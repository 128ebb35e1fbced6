"""Plots of the report only (`figures` has those shared with `explain`): each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hardsample.metrics.intervals import Interval
from hardsample.metrics.strata import STRATA, Bounds, shown_labels, stratum
from hardsample.report.parts.figures import STRATUM_COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hardsample.report.parts.gather import Group

WIDTH, HEIGHT = 4.5, 2.9
"""Inches: as wide as a phone, so that the font size equals that of the page."""
PALETTE = ("#1f4e79", "#b45309", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f")
_GREY, _MUTED = "#374151", "#9ca3af"
_LONGEST_NAME = 22


def strata_bars(groups: Sequence[Group]) -> Figure:
    """Plot the shares of the strata in each group, with the group sizes.

    Args:
        groups: from top to bottom.
    """
    figure = new_figure(WIDTH, 0.7 + 0.27 * len(groups))
    axes = figure.subplots()
    left = np.zeros(len(groups))
    names = shown_labels({name for group in groups for name, count in group.counts.items() if count})
    for name in names:
        share = np.asarray([100 * group.counts[name] / max(group.total, 1) for group in groups])
        colour = _MUTED if name is None else STRATUM_COLOURS[name]
        axes.barh(range(len(groups)), share, left=left, color=colour, label=name or "no image", height=0.72)
        left += share
    for row, group in enumerate(groups):
        axes.text(102, row, f"{group.total:,}", va="center", fontsize=9)
    axes.set_yticks(range(len(groups)), [_short(group.name) for group in groups])
    axes.set(xlim=(0, 100), ylim=(len(groups) - 0.5, -0.5), xlabel="share of the samples, %")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(loc="outside upper left", ncols=5, frameon=False, fontsize=9, handlelength=1, columnspacing=1.2)
    return figure


def threshold_histogram(
    thresholds: Sequence[float | None], strata: Sequence[str | None], ratios: Sequence[float], bounds: Bounds
) -> Figure:
    """Plot how many samples first fail at each mask ratio.

    Args:
        thresholds: λ* of each sample; None if no ratio fails.
        strata: of each; samples in none of the four (unfinished, no image) are not counted.
        ratios: Λ.
        bounds: between the strata.
    """
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    scored = [threshold for threshold, name in zip(thresholds, strata, strict=True) if name in STRATA]
    bins: list[float | None] = [*ratios, None]
    counts = [scored.count(threshold) for threshold in bins]
    colours = [STRATUM_COLOURS[stratum(threshold, threshold == ratios[0], bounds)] for threshold in bins]
    bars = axes.bar(range(len(bins)), counts, color=colours, width=0.8)
    axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts], fontsize=8, padding=1)
    names = [f"{threshold:g}" if threshold is not None else "none\nfails" for threshold in bins]
    step = max(1, len(bins) // 11)
    shown = [index for index in range(len(bins)) if index % step == 0 or index == len(bins) - 1]
    axes.set_xticks(shown, [names[index] for index in shown], fontsize=9)
    axes.set(xlabel="failure threshold λ*", ylabel="samples")
    axes.margins(y=0.1)
    _bare(axes)
    return figure


def level_curves(
    curves: Mapping[str, Sequence[Interval]], ratios: Sequence[float], ylabel: str, tau: float | None = None
) -> Figure:
    """Plot a share at each mask ratio with its 95 % interval, one curve per group.

    Args:
        curves: name → one interval per ratio; strata have their colours, `all` is drawn thick.
        ratios: Λ.
        ylabel: of the axis.
        tau: drawn as a line, if given.
    """
    figure = new_figure(WIDTH, HEIGHT + 0.3)
    axes = figure.subplots()
    colours = iter(PALETTE[1:])
    for name, intervals in curves.items():
        colour = STRATUM_COLOURS.get(name) or (_GREY if name == "all" else next(colours, _MUTED))
        values = [100 * interval.value for interval in intervals]
        axes.plot(ratios, values, marker="o", ms=3, color=colour, lw=2 if name == "all" else 1.3, label=_short(name))
        low, high = [100 * interval.low for interval in intervals], [100 * interval.high for interval in intervals]
        axes.fill_between(ratios, low, high, color=colour, alpha=0.15, lw=0)
    if tau is not None:
        axes.axhline(100 * tau, color=_MUTED, ls="--", lw=1)
        axes.text(ratios[-1], 100 * tau + 1, "τ", color=_MUTED, fontsize=9, ha="right")
    axes.set(xlabel="mask ratio λ", ylabel=ylabel, ylim=(0, 103))
    axes.grid(alpha=0.3)
    _bare(axes)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9, handlelength=1.2, columnspacing=1.2)
    return figure


def time_series(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    *,
    smooth: int = 1,
    colours: Mapping[str, str] | None = None,
    top: float | None = None,
) -> Figure:
    """Plot values over the steps of a training.

    Args:
        series: name → (steps, values).
        ylabel: of the axis.
        smooth: entries in a moving mean; above 1, the values themselves are drawn faintly.
        colours: of some of them.
        top: upper end of the axis, which then starts at 0.
    """
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    for (name, (steps, values)), colour in zip(series.items(), (*PALETTE, *[_MUTED] * len(series)), strict=False):
        colour = (colours or {}).get(name, colour)
        if smooth > 1 and len(values) > smooth:
            axes.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
            values = moving_mean(values, smooth)
        marker = "o" if len(values) < 12 else ""
        axes.plot(steps, values, color=colour, lw=1.7, marker=marker, ms=3, label=_short(name, 34))
    axes.set(xlabel="step", ylabel=ylabel)
    if top is not None:
        axes.set_ylim(0, top)
    axes.grid(alpha=0.3)
    _bare(axes)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, handlelength=1.2, columnspacing=1.2)
    return figure


def strata_over_time(steps: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the shares of the strata in the data over the steps of a training, stacked.

    Args:
        steps: at least two.
        shares: stratum (or `null`, no stratum) → share at each step, 0 … 1.
    """
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    names = [name for name in (*STRATA, "unscored") if name in shares]
    colours = [STRATUM_COLOURS.get(name, _MUTED) for name in names]
    rows = [100 * np.asarray(shares[name]) for name in names]
    labels = ["no stratum" if name == "unscored" else name for name in names]
    axes.stackplot(steps, rows, colors=colours, labels=labels, alpha=0.9, lw=0)
    axes.set(xlabel="step", ylabel="share of the data, %", ylim=(0, 100), xlim=(steps[0], steps[-1]))
    _bare(axes)
    figure.legend(loc="outside upper left", ncols=5, frameon=False, fontsize=9, handlelength=1, columnspacing=1.2)
    return figure


def interval_rows(rows: Sequence[tuple[str, Interval]], xlabel: str, zero: bool = False) -> Figure:
    """Plot estimates with their 95 % intervals, one per row, in per cent.

    Args:
        rows: name and interval, from top to bottom.
        xlabel: of the axis.
        zero: whether to draw a line at 0.
    """
    figure = new_figure(WIDTH, 0.75 + 0.26 * len(rows))
    axes = figure.subplots()
    for row, (_, interval) in enumerate(rows):
        if np.isfinite(interval.low):
            axes.plot([100 * interval.low, 100 * interval.high], [row, row], color=_MUTED, lw=3, solid_capstyle="round")
        axes.plot(100 * interval.value, row, "o", color=PALETTE[0], ms=5)
    if zero:
        axes.axvline(0, color=_GREY, lw=1)
    axes.set_yticks(range(len(rows)), [_short(name) for name, _ in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure


def both_ways(rows: Sequence[tuple[str, Interval, Interval]]) -> Figure:
    """Plot the shares that became easier and harder, with 95 % intervals, one group per row.

    Args:
        rows: name, share that became easier (drawn to the right), share that became harder (to the left).
    """
    figure = new_figure(WIDTH, 0.9 + 0.3 * len(rows))
    axes = figure.subplots()
    for sign, column, stratum_name in ((1, 1, "easy"), (-1, 2, "hard")):
        colour = STRATUM_COLOURS[stratum_name]
        intervals: list[Interval] = [row[column] for row in rows]  # type: ignore[misc]
        shares = [100 * sign * interval.value for interval in intervals]
        axes.barh(range(len(rows)), shares, color=colour, height=0.7, alpha=0.75)
        for row, interval in enumerate(intervals):
            axes.plot([100 * sign * interval.low, 100 * sign * interval.high], [row, row], color=_GREY, lw=1.2)
    axes.axvline(0, color=_GREY, lw=1)
    axes.set_yticks(range(len(rows)), [_short(name) for name, *_ in rows])
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="← harder · share of the samples, % · easier →")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure


def threshold_moves(first: Sequence[float], second: Sequence[float], labels: Sequence[str]) -> Figure:
    """Plot λ* in one scoring against λ* in another: the area of a disc is the number of samples.

    Args:
        first: index of λ* among the mask ratios, 0 … n, of each sample.
        second: likewise in the second scoring.
        labels: of the indices 0 … n.
    """
    figure = new_figure(WIDTH, WIDTH * 0.86)
    axes = figure.subplots()
    pairs, counts = np.unique(np.stack([first, second], 1), axis=0, return_counts=True)
    below = pairs[:, 1] < pairs[:, 0]
    same = pairs[:, 1] == pairs[:, 0]
    colours = np.where(same, _MUTED, np.where(below, STRATUM_COLOURS["hard"], STRATUM_COLOURS["easy"]))
    axes.plot([-0.5, len(labels) - 0.5], [-0.5, len(labels) - 0.5], color=_MUTED, lw=0.8)
    axes.scatter(pairs[:, 0], pairs[:, 1], s=280 * counts / counts.max() + 2, c=colours.tolist(), alpha=0.85, lw=0)
    for name in ("x", "y"):
        axes.tick_params(axis=name, labelsize=9)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="λ* in the first", ylabel="λ* in the second", xlim=(-0.7, len(labels) - 0.3))
    axes.set_ylim(-0.7, len(labels) - 0.3)
    _bare(axes)
    return figure


def moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the centred moving mean, with a shorter window at the ends.

    Args:
        values: at least one.
        width: of the window, in values.
    """
    array = np.asarray(values, dtype=float)
    half = width // 2
    return [float(array[max(0, index - half) : index + half + 1].mean()) for index in range(len(array))]


def resized(figure: Figure, height: float = HEIGHT) -> Figure:
    """Resize a figure of `hardsample.report.parts.figures` to the page's size.

    Args:
        figure: resized in place.
        height: inches.
    """
    figure.set_size_inches(WIDTH, height)
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    """Shorten a name, and escape what matplotlib would read as a formula."""
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("$", r"\$")
