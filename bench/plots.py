"""The plot of the kernels' throughput against size, from the rows that `run.py` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SERIES = (("floor", "floor: unmasked copies, writes only"), ("ours", "hardsample"), ("torch", "torch.rand + where"))


def throughput(rows: list[dict[str, Any]], machine: str, path: Path) -> None:
    """Plot masked megapixels a second against image size, one panel for each layout and dtype."""
    try:
        import matplotlib
    except ImportError:
        print(f"no {path.name}: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    masks = [row for row in rows if row["case"].startswith("mask_pixels")]
    panels = list(dict.fromkeys((row["case"].partition("/")[2], row["dtype"]) for row in masks))
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, (layout, dtype) in zip(axes[0], panels, strict=True):
        for baseline, label in (*SERIES, ("pil+processor", "NumPy + PIL + processor")):
            points = _points(masks, layout, dtype, baseline)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=label, lw=2 if baseline == "ours" else 1)
        axis.set(title=f"{layout}, {dtype}", xlabel="side of the image, pixels", xscale="log", yscale="log")
        sizes = sorted({_size(row) for row in masks})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("masked megapixels a second")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"100 variants of one image in one pass ({machine})", fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _size(row: dict[str, Any]) -> int:
    return int(row["shape"].partition("²")[0])


def _points(rows: list[dict[str, Any]], layout: str, dtype: str, baseline: str) -> list[tuple[int, float]]:
    points = {}
    for row in rows:
        if (row["case"], row["dtype"]) != (f"mask_pixels/{layout}", dtype):
            continue
        wanted = "floor" if baseline == "ours" else baseline
        if row["baseline"] == wanted:
            side = _size(row)
            milliseconds = row["p50_ms"] * (1 if baseline == "ours" else row["ratio"])
            points[side] = 100 * side * side / 1e6 / (milliseconds / 1e3)
    return sorted(points.items())
