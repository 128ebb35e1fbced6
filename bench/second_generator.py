"""Other questions than the bundled ones, to see what holds beyond them (not shipped; the same discipline).

    python bench/second_generator.py write OUT_DIR                      # OUT_DIR/pool.parquet, OUT_DIR/test.parquet
    python bench/second_generator.py pretrain RUN_DIR --scale quarter   # options of hardsample.demo.pretrain

Bars to read off, a clock, arrows, lines to follow, corners to count, a cell that differs: no digits in the images, no
guess above 2 %. Every record follows from (split, index) by integers alone. Grounds, noise, strokes and the knobs are
those of hardsample/demo/generator.py. What an image shows (which heights, hour, colours …, not where or how well it is
drawn) is dealt to the splits by its hash: the splits share none of it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardsample.demo import generator
from hardsample.demo.generator import COLOURS, SIDE, SIZES, Canvas, Draw, Drawn, draw_knobs, draw_shift

if TYPE_CHECKING:
    from datasets import Dataset

    from hardsample.demo.pretrain import Material

SPLITS = {"pretrain": 0, "pool": 1, "test": 2}
"""Split name → its number in the seed; this generator has no wide pool."""
DIRECTIONS = ("up", "left", "down", "right")
CORNERS = (3, 4, 5, 6, 8)
PALETTE = list(COLOURS.items())
GRID = 9
"""Rows and columns of the cells of which one differs."""

HEADS = {
    "thing": len(DIRECTIONS) + len(CORNERS) + 1,
    "colour": len(COLOURS) + 1,
    "hour": 13,
    "minute": 13,
    "height": 10,
    "leads": len(COLOURS) + 1,
    "odd": 3,
}
"""Dense labels and their number of classes; the last class of each is none."""

NONE = {name: classes - 1 for name, classes in HEADS.items()}

_QUARTER: tuple[int, ...] = (0, 54, 107, 160, 213, 265, 316, 367, 416, 465, 512, 558, 602, 644, 685, 724)
_QUARTER += (761, 796, 828, 859, 887, 912, 935, 956, 974, 989, 1002, 1011, 1018, 1023, 1024)
"""1024 · sin of 0°, 3° … 90°."""

Content = tuple[int, ...]
"""What an image shows, in numbers."""


def _sine(turn: int) -> int:
    """Return 1024 · sin of 3° · turn."""
    turn %= 120
    sign, turn = (1, turn) if turn < 60 else (-1, turn - 60)
    return sign * _QUARTER[min(turn, 60 - turn)]


def _point(turn: int, radius: int) -> tuple[int, int]:
    """Return (y, x) at `radius` from the origin, clockwise from the top by 3° · turn, in 1/16 pixel."""
    return -radius * 16 * _sine(turn + 30) // 1024, radius * 16 * _sine(turn) // 1024


def _segment(start: tuple[int, int], end: tuple[int, int], width: int) -> np.ndarray:
    """Return the pixels within width / 2 of a segment between points (y, x) in 1/16 pixel; bool (96, 96)."""
    low = [max(min(pair) // 16 - width, 0) for pair in zip(start, end, strict=True)]
    high = [min(max(pair) // 16 + width + 1, SIDE) for pair in zip(start, end, strict=True)]
    box = slice(low[0], high[0]), slice(low[1], high[1])
    y, x = (np.mgrid[box].astype(np.int64) * 16 + 8) - np.array(start)[:, None, None]
    dy, dx = end[0] - start[0], end[1] - start[1]
    length = max(dy * dy + dx * dx, 1)
    along = np.clip(y * dy + x * dx, 0, length)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[box] = (y * length - along * dy) ** 2 + (x * length - along * dx) ** 2 <= (8 * width * length) ** 2
    return mask


def _arrow(direction: int, size: int) -> np.ndarray:
    """Return an arrow that fills a square; bool (size, size)."""
    y, x = np.mgrid[0:size, 0:size]
    off = abs(2 * x - (size - 1))
    up = ((2 * y < size) & (off <= 2 * y)) | ((2 * y >= size - 1) & (5 * off <= size + 2))
    return np.rot90(up, direction)


def _polygon(corners: int, turn: int, size: int) -> np.ndarray:
    """Return a regular polygon in a circle of diameter `size`; bool (size, size)."""
    y, x = np.mgrid[0:size, 0:size] * 32 + 16 - 16 * size
    ends = [_point(turn + corner * 120 // corners, size) for corner in range(corners)]
    inside = np.ones((size, size), dtype=bool)
    for (y0, x0), (y1, x1) in zip(ends, ends[1:] + ends[:1], strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    return inside


class Board(Canvas):
    """A canvas that remembers what was painted where, for dense labels."""

    def __init__(self, draw: Draw, shift: int) -> None:
        knobs = draw_knobs(draw, shift)
        super().__init__(draw, knobs)
        self.owner = np.zeros((SIDE, SIDE), dtype=np.int64)
        self.labels = [tuple(NONE.values())]
        self.strokes(knobs.clutter)

    def stamp(self, mask: np.ndarray, colour: tuple[int, int, int], top: int = 0, left: int = 0, **labels: int) -> None:
        """Paint a mask, bool (h, w), wholly inside the image; with labels, own its pixels."""
        self.paint(np.where(mask, 256, 0).astype(np.int32), colour, top, left)
        if labels:
            self.labels.append(tuple((NONE | labels).values()))
            self.owner[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = len(self.labels) - 1

    def own(self, top: int, left: int, height: int, width: int, /, **labels: int) -> None:
        """Label a whole rectangle."""
        self.labels.append(tuple((NONE | labels).values()))
        self.owner[top : top + height, left : left + width] = len(self.labels) - 1

    def sign(self, thing: int, colour: int, top: int, left: int, size: int) -> None:
        """Paint an arrow (thing 0-3) or a polygon (4-8) in a square that it owns."""
        turns = self.draw.below(120)
        mask = _arrow(thing, size) if thing < 4 else _polygon(CORNERS[thing - 4], turns, size)
        self.stamp(mask, PALETTE[colour][1], top, left)
        self.own(top, left, size, size, thing=thing, colour=colour)


def _several(draw: Draw, shift: int, few: int) -> int:
    """Return `few` or one more; the larger the shift, the more often one more."""
    return few + (draw.below(256) < 32 + shift // 2)


def _sample_bars(draw: Draw, shift: int) -> Content:
    return tuple(draw.below(bound) for _ in range(_several(draw, shift, 3)) for bound in (9, len(PALETTE)))


def _paint_bars(board: Board, content: Content) -> Drawn:
    draw, unit = board.draw, 6 + (board.knobs.size - 11) // 4
    count, ink = len(content) // 2, board.ink()
    bottom, left = draw.between(9 * unit + 2, SIDE - 4), draw.between(2, 12)
    board.stamp(np.ones((9 * unit, 2), dtype=bool), ink, bottom - 9 * unit, left)
    board.stamp(np.ones((2, SIDE - 4 - left), dtype=bool), ink, bottom, left)
    for tick in range(1, 10):
        long = 5 if tick % 5 == 0 else 3
        board.stamp(np.ones((1, long), dtype=bool), ink, bottom - tick * unit, left + 2)
    pitch = (SIDE - 6 - left - 8) // count
    for index, (height, colour) in enumerate(zip(content[::2], content[1::2], strict=True)):
        start, width, tall = left + 8 + index * pitch + draw.between(0, 3), pitch - 6, (height + 1) * unit
        board.stamp(np.ones((tall, width), dtype=bool), PALETTE[colour][1], bottom - tall, start)
        board.own(bottom - tall, start, tall, width, height=height, colour=colour)
    return Drawn(" ".join(str(height + 1) for height in content[::2]), unit, count, count)


def _sample_clock(draw: Draw, shift: int) -> Content:
    return tuple(draw.below(bound) for bound in (12, 12, len(PALETTE), len(PALETTE), len(PALETTE)))


def _paint_clock(board: Board, content: Content) -> Drawn:
    hour, minute, *colours = content
    rim, short, long = (PALETTE[colour][1] for colour in colours)
    draw, radius = board.draw, 20 + board.knobs.size
    down, right = (draw.between(radius + 1, SIDE - 2 - radius) for _ in range(2))
    board.own(down - radius, right - radius, 2 * radius, 2 * radius, hour=hour, minute=minute)

    def hand(turn: int, start: int, end: int, width: int, colour: tuple[int, int, int]) -> None:
        (y0, x0), (y1, x1) = _point(turn, start), _point(turn, end)
        board.stamp(_segment((16 * down + y0, 16 * right + x0), (16 * down + y1, 16 * right + x1), width), colour)

    for tick in range(12):
        hand(10 * tick, radius * (6 if tick == 0 else 7) // 8, radius, 3 if tick % 3 == 0 else 2, rim)
    hand(10 * hour + minute * 10 // 12, 0, radius * 5 // 10, 5, short)
    hand(10 * minute, 0, radius * 8 // 10, 3, long)
    return Drawn(f"{hour} {minute * 5}", 2 * radius, 2, 3)


def _sample_row(bound: int, few: int) -> Callable[[Draw, int], Content]:
    """Return a sampler of a row of things, each with a colour."""

    def sample(draw: Draw, shift: int) -> Content:
        return tuple(draw.below(b) for _ in range(_several(draw, shift, few)) for b in (bound, len(PALETTE)))

    return sample


def _paint_row(board: Board, content: Content, first: int, least: int, names: tuple[Any, ...]) -> Drawn:
    """Paint signs from left to right; `first` is the number of the first kind, `least` is added to the size."""
    draw, count = board.draw, len(content) // 2
    pitch = SIDE // count
    size = min(board.knobs.size + least, pitch)
    for index, (kind, colour) in enumerate(zip(content[::2], content[1::2], strict=True)):
        top, left = draw.between(0, SIDE - size), index * pitch + draw.between(0, pitch - size)
        board.sign(first + kind, colour, top, left, size)
    return Drawn(" ".join(str(names[kind]) for kind in content[::2]), size, count, count)


def _paint_arrows(board: Board, content: Content) -> Drawn:
    return _paint_row(board, content, 0, 0, DIRECTIONS)


def _paint_corners(board: Board, content: Content) -> Drawn:
    return _paint_row(board, content, len(DIRECTIONS), 6, CORNERS)


def _sample_lines(draw: Draw, shift: int) -> Content:
    count = _several(draw, shift, 3)
    return (count, *draw.shuffled(count), *draw.shuffled(len(PALETTE))[:count], draw.below(4), draw.below(4))


def _paint_lines(board: Board, content: Content) -> Drawn:
    """Paint lines from dots at the left to colours at the right; line k ends at position ends[k]."""
    draw, count = board.draw, content[0]
    ends, colours, (dot, end) = content[1 : 1 + count], content[1 + count : 1 + 2 * count], content[-2:]
    ink, pitch = board.ink(), SIDE // count
    width, size = (3 if board.knobs.size > 15 else 2), min(board.knobs.size, 18)
    columns = np.arange(10, SIDE - size, dtype=np.int64)
    along = (columns - columns[0]) * 1024 // (columns[-1] - columns[0])
    ease = along * along * (3 * 1024 - 2 * along) // 1024**2  # 0 … 1024, level at both ends
    tops = [index * pitch + draw.between(0, pitch - size) for index in range(count)]
    for line in range(count):
        start, target = line * pitch + draw.between(6, pitch - 6), tops[ends[line]] + size // 2
        rows = start + (target - start) * ease // 1024
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        for column, row, before in zip(columns, rows, [rows[0], *rows[:-1]], strict=True):
            mask[min(row, before) : max(row, before) + width, column] = True
        board.stamp(mask, ink, leads=colours[ends[line]])
        board.shape(generator.SHAPES[dot], ink, start - 3, 3, 8)
    for index, colour in enumerate(colours):
        board.shape(generator.SHAPES[end], PALETTE[colour][1], tops[index], SIDE - size, size)
        board.own(tops[index], SIDE - size, size, size, colour=colour)
    return Drawn(" ".join(PALETTE[colours[index]][0] for index in ends), size, count, 2 * count)


def _sample_cells(draw: Draw, shift: int) -> Content:
    """Draw row, column, directions and colours (others, different cell); a large shift makes colours equal."""
    row, column, direction, colour = (draw.below(bound) for bound in (GRID, GRID, 4, len(PALETTE)))
    same = draw.below(256) < 48 + shift * 3 // 4
    other = colour if same else (colour + draw.between(1, len(PALETTE) - 1)) % len(PALETTE)
    return row, column, direction, (direction + draw.between(1, 3)) % 4, colour, other


def _paint_cells(board: Board, content: Content) -> Drawn:
    row, column, *directions, colour, other = content
    size, corner = 7 + (board.knobs.size > 15), [board.draw.between(1, 5) for _ in range(2)]
    for cell in range(GRID * GRID):
        odd = cell == row * GRID + column
        top, left = corner[0] + cell // GRID * 10, corner[1] + cell % GRID * 10
        board.sign(directions[odd], other if odd else colour, top, left, size)
        board.own(top, left, size, size, thing=directions[odd], colour=other if odd else colour, odd=int(odd))
    return Drawn(f"{row} {column}", size, GRID * GRID, 2)


@dataclass(frozen=True)
class Ability:
    """One kind of question: what its images may show, how that is painted, and the steps that spoil an answer."""

    question: str
    grader: str
    sample: Callable[[Draw, int], Content]
    paint: Callable[[Board, Content], Drawn]
    steps: tuple[tuple[int, ...], ...] = ()
    """Values, in order, that each part of the answer may have (the last: of all further parts); none for words."""


TASKS = {
    "bars": Ability(
        "How high are the bars from left to right?", "counting", _sample_bars, _paint_bars, (tuple(range(1, 10)),)
    ),
    "clock": Ability(
        "Which hour and minute does the clock show?",
        "counting",
        _sample_clock,
        _paint_clock,
        (tuple(range(12)), tuple(range(0, 60, 5))),
    ),
    "arrows": Ability(
        "Where do the arrows point from left to right?", "text", _sample_row(len(DIRECTIONS), 4), _paint_arrows
    ),
    "lines": Ability("Which colours do the lines lead to from top to bottom?", "text", _sample_lines, _paint_lines),
    "corners": Ability(
        "How many corners do the shapes have from left to right?",
        "counting",
        _sample_row(len(CORNERS), 3),
        _paint_corners,
        (CORNERS,),
    ),
    "cells": Ability(
        "In which row and column is the different arrow? Count from 0.",
        "counting",
        _sample_cells,
        _paint_cells,
        (tuple(range(GRID)),),
    ),
}
ABILITIES = tuple(TASKS)
TEXTS = (*(task.question for task in TASKS.values()), " ".join(DIRECTIONS))


def split_of(ability: str, content: Content) -> str:
    """Return the split whose images may show this: eight tenths go to pretraining, a tenth each to pool and test."""
    digest = hashlib.blake2b(f"{ability} {content}".encode(), digest_size=8).digest()
    return {8: "pool", 9: "test"}.get(int.from_bytes(digest, "little") % 10, "pretrain")


def draw_content(draw: Draw, split: str, ability: str, shift: int) -> Content:
    """Draw what an image of this split shows."""
    while True:
        content = TASKS[ability].sample(draw, shift)
        if split_of(ability, content) == split:
            return content


def make_record(split: str, index: int) -> dict[str, Any]:
    """Return one record of a split, as hardsample.demo.generator.make_record does, with its `content`.

    Args:
        split: "pretrain", "pool" or "test".
        index: 0 … SIZES[split] − 1; `index % 6` is its ability.

    Raises:
        ValueError: for a split or an index that does not exist.
    """
    if split not in SPLITS or not 0 <= index < SIZES[split]:
        raise ValueError(f"no record {index} in split {split!r}: splits are {SIZES} (name: number of records)")
    draw = Draw(31_415_926, SPLITS[split], index)
    ability = ABILITIES[index % len(ABILITIES)]
    shift = draw_shift(draw, split)
    content = draw_content(draw, split, ability, shift)
    board = Board(draw, shift)
    drawn = TASKS[ability].paint(board, content)
    return {
        "id": f"second-{split}-{index:06d}",
        "question": TASKS[ability].question,
        "image": board.finish(),
        "solution": drawn.answer,
        "ability": ability,
        "grader": TASKS[ability].grader,
        "shift": shift,
        "size": drawn.size,
        "contrast": board.knobs.contrast,
        "noise": board.knobs.noise,
        "clutter": board.knobs.clutter,
        "count": drawn.count,
        "steps": drawn.steps,
        "content": content,
    }


def dense_scene(index: int, masked: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and what covers each patch: arrows and polygons in every third, else one of the other tasks.

    Returns:
        uint8 (96, 96, 3) and int64 (7, 64): the classes of HEADS by patch.
    """
    from hardsample.demo.pretrain import mask_some, patch_labels

    draw = Draw(27_182_818, index)
    shift = draw_shift(draw, "pretrain")
    board = Board(draw, shift)
    if index % 3 == 0:
        for quadrant in range(4):
            size = draw.between(9, 28)
            pitch = min(size + draw.between(0, 6), 48)
            down, right = draw.below(48 - size + 1) % pitch, draw.below(48 - size + 1) % pitch
            for y in range(quadrant // 2 * 48 + down, quadrant // 2 * 48 + 49 - size, pitch):
                for x in range(quadrant % 2 * 48 + right, quadrant % 2 * 48 + 49 - size, pitch):
                    if draw.below(10):
                        board.sign(draw.below(NONE["thing"]), draw.below(len(PALETTE)), y, x, size)
    else:
        ability = ("bars", "clock", "lines", "cells")[draw.below(4)]
        TASKS[ability].paint(board, draw_content(draw, "pretrain", ability, shift))
    # a line covers less of a patch than a sign does
    return mask_some(draw, board.finish(), masked), patch_labels(board.owner, np.array(board.labels), 8)


def spoil(draw: Draw, record: dict[str, Any]) -> str:
    """Return the record's answer, or a spoiled one: one number a step off, or two neighbouring words swapped."""
    from hardsample.demo.pretrain import is_spoiled

    parts, steps = str(record["solution"]).split(), TASKS[record["ability"]].steps
    if not is_spoiled(draw, int(record["shift"])):
        return " ".join(parts)
    if not steps:
        index = draw.below(len(parts) - 1)
        parts[index], parts[index + 1] = parts[index + 1], parts[index]
        return " ".join(parts)
    index = draw.below(len(parts))
    values = steps[min(index, len(steps) - 1)]
    step = 1 if draw.below(2) else -1
    parts[index] = str(values[(values.index(int(parts[index])) + step) % len(values)])
    return " ".join(parts)


def material() -> Material:
    """Return these questions as material to pretrain on."""
    from hardsample.demo.pretrain import Material

    return Material("second", make_record, dense_scene, spoil, HEADS, TEXTS)


def load_split(name: str, limit: int | None = None) -> Dataset:
    """Draw the questions of a split as a dataset with the columns of hardsample.demo.load_split.

    Args:
        name: `pool`, `test` or `pretrain`.
        limit: only the first so many.

    Raises:
        ValueError: if there is no such split.
    """
    from datasets import Dataset

    from hardsample import demo

    if name not in SPLITS:
        raise ValueError(f"there is no split {name!r}: choose one of {', '.join(SPLITS)}")
    count = min(SIZES[name], limit or SIZES[name])
    sources = (Path(__file__), Path(generator.__file__))
    definition = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()  # no stale cache is read
    drawn = {"split": name, "count": count, "definition": definition}
    return Dataset.from_generator(_rows, gen_kwargs=drawn, features=demo.load_split("demo", limit=1).features)


def _rows(split: str, count: int, definition: str) -> Iterator[dict[str, Any]]:
    import io

    from PIL import Image

    for index in range(count):
        record = make_record(split, index)
        del record["content"]
        file = io.BytesIO()
        Image.fromarray(record.pop("image")).save(file, "PNG")
        content = [{"type": "image", "text": None}, {"type": "text", "text": record.pop("question")}]
        record["prompt"] = [{"role": "user", "content": content}]
        record["images"] = [{"bytes": file.getvalue(), "path": None}]
        yield record


def main(arguments: list[str]) -> None:
    """Run `write OUT_DIR [--limit N]`, or `pretrain` with the options of hardsample.demo.pretrain."""
    if arguments[:1] == ["pretrain"]:
        from hardsample.demo import pretrain

        pretrain.main(arguments[1:], material())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    commands.add_parser("pretrain", help="train a model on the pretraining split; see pretrain --help")
    write = commands.add_parser("write", help="write pool.parquet and test.parquet")
    write.add_argument("out", type=Path, metavar="OUT_DIR")
    write.add_argument("--limit", type=int, help="only the first so many of each")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("pool", "test"):
        load_split(name, options.limit).to_parquet(options.out / f"{name}.parquet")
        print(options.out / f"{name}.parquet")


if __name__ == "__main__":
    main(sys.argv[1:])
