"""Plots of a scoring run, shared by `explain` and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from hardsample.errors import HardsampleError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

STRATUM_COLOURS = {
    "easy": "#4c9f70",
    "medium": "#e3b23c",
    "hard": "#d1495b",
    "unsolved": "#6b7280",
    "unfinished": "#8d7fae",
}
"""One colour per stratum in every plot."""
_ATTENTION_MAP = "magma"


class FiguresError(HardsampleError, RuntimeError):
    """matplotlib is not installed."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display.

    Args:
        width: inches.
        height: inches.

    Raises:
        FiguresError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FiguresError("plots need matplotlib: pip install 'hardsample[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def balance_histogram(
    balances: Sequence[float], bands: Sequence[tuple[float, float, str]], title: str = "Attention balance"
) -> Figure:
    """Plot the attention balance ρ̄ of the solved samples against the bounds of the strata.

    Args:
        balances: ρ̄ of each sample, above 0.
        bands: (from, to, stratum), ascending: the stratum of the balances in that range.
        title: above the plot.
    """
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    values = np.asarray([value for value in balances if value > 0], dtype=float)
    edges = [edge for low, high, _ in bands for edge in (low, high) if 0 < edge < np.inf]
    inside = [*values, *edges] or [0.1, 10.0]
    low, high = min(inside) / 1.6, max(inside) * 1.6
    for start, stop, stratum in bands:
        left, right = max(start, low), min(stop, high)
        if left < right:
            axes.axvspan(left, right, color=STRATUM_COLOURS[stratum], alpha=0.18, lw=0)
            middle = np.sqrt(left * right)
            axes.text(middle, 0.97, stratum, ha="center", va="top", transform=axes.get_xaxis_transform(), fontsize=9)
    axes.hist(values, bins=np.geomspace(low, high, 41).tolist(), color="#374151")
    axes.set(xscale="log", xlim=(low, high), xlabel="attention balance ρ̄ = image / text", ylabel="samples", title=title)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.12)
    return figure


def mean_intervals(
    rows: Sequence[tuple[str, float, float, float, Sequence[float]]], base: float | None, title: str
) -> Figure:
    """Plot means with their intervals and the values behind them, one per row, such as accuracy by recipe.

    Args:
        rows: (name, mean, low, high, values), from top to bottom, as shares; low and high may be infinite (one value).
        base: position of a dashed line, such as the accuracy before training.
        title: above the plot.
    """
    figure = new_figure(7.5, 1.1 + 0.34 * len(rows))
    axes = figure.subplots()
    for row, (_, mean, low, high, values) in enumerate(rows):
        axes.plot([100 * value for value in values], [row] * len(values), "o", color="#9ca3af", ms=4)
        if np.isfinite(low):
            axes.plot([100 * low, 100 * high], [row, row], color="#374151", lw=2)
        axes.plot(100 * mean, row, "D", color="#374151", ms=6)
    if base is not None:
        axes.axvline(100 * base, color="#d1495b", ls="--", lw=1)
        anchor = (100 * base, -0.75)
        axes.annotate(
            "before training", anchor, (4, 0), textcoords="offset points", color="#d1495b", fontsize=8, va="center"
        )
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -1.1)
    axes.set(xlabel="accuracy, % (◆ mean, ─ 95 % interval, ● one seed)", title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def layer_profile(
    profiles: Mapping[str, Sequence[Sequence[float]]], title: str = "Attention balance by layer"
) -> Figure:
    """Plot the mean balance of each layer over the samples of a stratum, with one standard deviation.

    Args:
        profiles: stratum → one list per sample of log ρ of each layer; NaN if a layer has none.
        title: above the plot.
    """
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    layers = 0
    for stratum, rows in profiles.items():
        if not len(rows):
            continue
        table = np.asarray(rows, dtype=float)
        layers = table.shape[1]
        layer_numbers = np.arange(1, layers + 1)
        known = np.isfinite(table)
        count = np.maximum(known.sum(0), 1)
        middle = np.where(known, table, 0).sum(0) / count
        spread = np.sqrt(np.where(known, (table - middle) ** 2, 0).sum(0) / count)
        colour = STRATUM_COLOURS.get(stratum, "#374151")
        axes.plot(layer_numbers, np.exp(middle), marker="o", color=colour, label=f"{stratum} ({len(rows)})")
        axes.fill_between(
            layer_numbers, np.exp(middle - spread), np.exp(middle + spread), color=colour, alpha=0.12, lw=0
        )
    axes.set(xlabel="layer", ylabel="ρ = image / text", yscale="log", title=title)
    if layers:
        axes.set_xticks(range(1, layers + 1, max(1, layers // 12)))
        for edge in (1, layers):
            axes.axvspan(edge - 0.5, edge + 0.5, color="#9ca3af", alpha=0.2, lw=0)
        axes.legend(frameon=False, fontsize=9, title="grey: left out of ρ̄", title_fontsize=8)
    return figure


def ladder(axes: Axes, ratios: Sequence[float], successes: Sequence[int], attempts: Sequence[int], tau: float) -> None:
    """Draw the rollouts of a sample at each mask ratio: P_c(λ) if all levels are full, else right / rollouts.

    Args:
        axes: where to draw.
        ratios: Λ.
        successes: rollouts graded 1, at each ratio.
        attempts: rollouts graded, at each ratio.
        tau: τ, drawn as a line.
    """
    full = max(attempts, default=0)
    asked = [n > 0 for n in attempts]
    shares = [s / n if n else 0.0 for s, n in zip(successes, attempts, strict=True)]
    if all(n == full for n in attempts):
        axes.plot(ratios, shares, marker="o", color="#1f4e79")
        axes.set_ylabel("accuracy P_c(λ)")
    else:
        width = min((b - a for a, b in pairwise(ratios)), default=0.1) * 0.7
        colours = ["#4c9f70" if share >= tau else "#d1495b" for share in shares]
        axes.bar(
            ratios,
            [max(share, 0.02) * any_made for share, any_made in zip(shares, asked, strict=True)],
            width,
            color=colours,
        )
        for ratio, won, tried in zip(ratios, successes, attempts, strict=True):
            if tried:
                axes.text(ratio, max(won / tried, 0.02) + 0.02, f"{won}/{tried}", ha="center", fontsize=8)
        axes.set_ylabel("right / rollouts")
    axes.axhline(tau, color="#6b7280", lw=1, ls="--")
    axes.set(xlabel="mask ratio λ", ylim=(0, 1.12), xticks=list(ratios))


def token_weights(axes: Axes, tokens: Sequence[str], weights: Sequence[float], per_line: int = 14) -> None:
    """Draw tokens one after the other, each on a background as dark as its weight.

    Args:
        axes: where to draw; its frame is removed.
        tokens: shown as plain text.
        weights: at least 0, one per token.
        per_line: tokens on a line.
    """
    from matplotlib import colormaps

    axes.axis("off")
    top = max([*weights, 1e-12])
    lines = max(1, -(-len(tokens) // per_line))
    for index, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
        row, column = divmod(index, per_line)
        colour = colormaps["YlOrRd"](0.85 * weight / top)
        shown = token.replace("\n", "⏎").strip() or "␣"
        shown = shown if len(shown) <= 12 else shown[:11] + "…"
        axes.text(
            (column + 0.5) / per_line,
            1 - (row + 0.5) / lines,
            shown.replace("$", r"\$"),
            ha="center",
            va="center",
            fontsize=8,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
            clip_on=True,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1))


def image_with_attention(axes: Axes, image: Image.Image, grid: Any | None, title: str) -> None:
    """Draw an image, with the attention of its tokens as an overlay if their grid is known.

    Args:
        axes: where to draw.
        image: mode RGB.
        grid: attention of each image token, (rows, columns), or None for the image alone.
        title: above it.
    """
    axes.axis("off")
    extent = (0, image.width, image.height, 0)
    axes.imshow(image, extent=extent)
    if grid is not None:
        axes.imshow(np.asarray(grid), extent=extent, cmap=_ATTENTION_MAP, alpha=0.55, interpolation="nearest")
    axes.set_title(title, fontsize=9)


def paragraph(axes: Axes, text: str, width: int = 70) -> None:
    """Draw text as it is: no mathematics, no markup."""
    axes.axis("off")
    lines = [fill(line, width) for line in text.splitlines()]
    axes.text(0, 1, "\n".join(lines).replace("$", r"\$"), va="top", fontsize=9, transform=axes.transAxes, wrap=False)
