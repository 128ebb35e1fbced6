"""Generate questions about small images, with answers that are hard to guess, by integer arithmetic alone.

Every record is determined by (split, index): its image is drawn with integer arithmetic from NumPy's raw PCG64 stream,
which NumPy keeps stable, so every machine produces the same bytes. A record's `shift` (0-256) makes it harder
through its knobs: size, contrast, noise, clutter, count and steps of reasoning, each recorded in its own column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 96
"""Width and height of an image in pixels."""

SPLITS = {"pretrain": 0, "pool": 1, "test": 2, "wide": 3}
"""Split name → its number in the seed."""

DIGITS = {"pretrain": 0, "pool": 1, "test": 2, "wide": 1}
"""Split name → its part of the handwritten digits in `digits.npz`."""

SIZES = {"pretrain": 500_000, "pool": 5_100, "test": 1_200, "wide": 10_000}
DEMO_SIZE = 400

WIDEST = 640
"""Largest shift in `wide`."""

PLAIN = {"reading": 40, "adding": 20, "comparing": 26, "counting": 128, "colours": 196, "locating": 26}
"""Share of plain questions in `wide`, in 1/256. With what the demo model can do they give strata like those of the
reasoning pool in the paper: 19 % easy, 4 % medium, 6 % hard, 71 % unsolved."""

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (236, 200, 30),
    "purple": (150, 50, 190),
    "orange": (240, 120, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")

QUESTIONS = {
    "reading": "What number is written?",
    "adding": "What is the sum of the two numbers?",
    "comparing": "Which of the two numbers is larger?",
    "counting": "How many circles, squares and triangles are there?",
    "colours": "Which colours do the shapes have from left to right?",
    "locating": "In which row and column is the cross? Count from 0.",
}
ABILITIES = tuple(QUESTIONS)
GRADERS = {
    "reading": "math",
    "adding": "math",
    "comparing": "math",
    "counting": "counting",
    "colours": "text",
    "locating": "counting",
}

Image = np.ndarray
"""uint8, shape (96, 96, 3)."""


class Draw:
    """Integers from one raw PCG64 stream; the stream is part of the data's definition."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, bound: int) -> int:
        """Draw an integer in 0 … bound − 1."""
        return int(self._bits.random_raw()) % bound

    def between(self, low: int, high: int) -> int:
        """Draw an integer in low … high, both included."""
        return low + self.below(high - low + 1)

    def shuffled(self, count: int) -> list[int]:
        """Draw 0 … count − 1 in random order."""
        return [int(i) for i in np.argsort(self._bits.random_raw(count), kind="stable")]

    def noise(self, amplitude: int) -> np.ndarray:
        """Draw integers in −amplitude … amplitude, shape (96, 96, 3)."""
        raw = self._bits.random_raw(SIDE * SIDE * 3 // 4).view(np.uint16).astype(np.int32)
        return (raw * (2 * amplitude + 1) >> 16).reshape(SIDE, SIDE, 3) - amplitude


@dataclass(frozen=True)
class Knobs:
    """Difficulty of a record: `size` in pixels, `contrast` in 1/256, `noise` in grey levels, `clutter` in strokes."""

    size: int
    contrast: int
    noise: int
    clutter: int


@lru_cache(maxsize=1)
def digit_images() -> dict[str, list[np.ndarray]]:
    """Return the handwritten digits of each split: for each class 0-9 an array of shape (n, 8, 8), values 0-16."""
    with np.load(Path(__file__).parent / "digits.npz") as file:
        images, labels, parts = file["images"], file["labels"], file["parts"]
    return {
        split: [images[(labels == digit) & (parts == part)].astype(np.int32) for digit in range(10)]
        for split, part in DIGITS.items()
    }


@lru_cache(maxsize=64)
def _weights(size: int) -> np.ndarray:
    """Return bilinear weights from 8 points to `size`, in 1/256, shape (size, 8)."""
    table = np.zeros((size, 8), dtype=np.int32)
    for row in range(size):
        position = min(max((2 * row + 1) * 1024 // size - 128, 0), 7 * 256)
        low = min(position // 256, 6)
        table[row, low], table[row, low + 1] = 256 - (position - 256 * low), position - 256 * low
    return table


@lru_cache(maxsize=256)
def _shape_alpha(shape: str, size: int) -> np.ndarray:
    """Return the coverage of a shape, 0 or 256, shape (size, size)."""
    y, x = np.mgrid[0:size, 0:size]
    u, v = abs(2 * x - (size - 1)), abs(2 * y - (size - 1))
    inside = {
        "circle": u * u + v * v <= size * size,
        "square": (8 * u <= 7 * size) & (8 * v <= 7 * size),
        "triangle": u <= y + 1,
        "cross": (3 * u <= size) | (3 * v <= size),
    }[shape]
    return np.where(inside, 256, 0).astype(np.int32)


class Canvas:
    """An image being drawn: a background, and objects painted over it with a common contrast."""

    def __init__(self, draw: Draw, knobs: Knobs) -> None:
        self.draw, self.knobs = draw, knobs
        self.dark = draw.below(3) == 0
        base = draw.between(8, 56) if self.dark else draw.between(200, 247)
        tint = np.array([base + draw.between(-8, 8) for _ in range(3)], dtype=np.int32)
        self.pixels = np.broadcast_to(tint, (SIDE, SIDE, 3)).copy()
        slope = draw.between(-24, 24) * (256 - knobs.contrast) // 192
        self.pixels += (np.arange(SIDE, dtype=np.int32) * slope // SIDE)[:, None, None]

    def ink(self) -> tuple[int, int, int]:
        """Draw a grey that contrasts with the background."""
        grey = self.draw.between(205, 255) if self.dark else self.draw.between(0, 50)
        return grey, grey, grey

    def paint(self, alpha: np.ndarray, colour: tuple[int, int, int], top: int, left: int) -> None:
        """Blend a colour over the background where `alpha` (0-256, shape (h, w)) covers it; clipped to the image."""
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + alpha.shape[0], SIDE), min(left + alpha.shape[1], SIDE)
        if y0 >= y1 or x0 >= x1:
            return
        cover = alpha[y0 - top : y1 - top, x0 - left : x1 - left, None] * self.knobs.contrast >> 8
        ground = self.pixels[y0:y1, x0:x1]
        ground += (np.array(colour, dtype=np.int32) - ground) * cover >> 8

    def digit(
        self, image: np.ndarray, colour: tuple[int, int, int], top: int, left: int, height: int, width: int
    ) -> None:
        """Paint a handwritten digit (8, 8), stretched to (height, width)."""
        smooth = _weights(height) @ image @ _weights(width).T >> 12
        self.paint(np.minimum(smooth * 5 // 4, 256), colour, top, left)

    def shape(self, shape: str, colour: tuple[int, int, int], top: int, left: int, size: int) -> None:
        self.paint(_shape_alpha(shape, size), colour, top, left)

    def strokes(self, count: int) -> None:
        """Paint thin lines from edge to edge, in ink or in a colour."""
        palette = list(COLOURS.values())
        for _ in range(count):
            ends = [self.draw.below(SIDE) for _ in range(4)]
            colour = self.ink() if self.draw.below(2) else palette[self.draw.below(len(palette))]
            step = np.arange(SIDE, dtype=np.int32)
            y = ends[0] + (ends[1] - ends[0]) * step // (SIDE - 1)
            x = ends[2] + (ends[3] - ends[2]) * step // (SIDE - 1)
            ground = self.pixels[y, x]
            self.pixels[y, x] = ground + ((np.array(colour, dtype=np.int32) - ground) * self.knobs.contrast >> 8)

    def finish(self) -> Image:
        """Add the noise and return the image as uint8."""
        if self.knobs.noise:
            self.pixels += self.draw.noise(self.knobs.noise)
        return np.clip(self.pixels, 0, 255).astype(np.uint8)


def write_number(canvas: Canvas, digits: list[np.ndarray], text: str, top: int, left: int) -> None:
    """Write a number in handwritten digits of the split, each of a random image and width."""
    draw, size, colour = canvas.draw, canvas.knobs.size, canvas.ink()
    for character in text:
        hands = digits[int(character)]
        width = size * draw.between(13, 18) // 16
        drop = draw.between(-size // 10, size // 10)
        canvas.digit(hands[draw.below(len(hands))], colour, top + drop, left, size, width)
        left += width + draw.between(0, 2)


def number_width(text: str, size: int) -> int:
    """Return the maximum width in pixels that `write_number` needs."""
    return len(text) * (size * 18 // 16 + 2)


@dataclass(frozen=True)
class Drawn:
    """The result of a drawing: the answer, the size and number of its objects, and the steps of reasoning."""

    answer: str
    size: int
    count: int
    steps: int


def _reading(canvas: Canvas, digits: list[np.ndarray], shift: int) -> Drawn:
    draw = canvas.draw
    length = 3 if draw.below(256) < 64 + shift // 2 else 2
    text = str(draw.between(10 ** (length - 1), 10**length - 1))
    top = draw.between(2, SIDE - canvas.knobs.size - 2)
    left = draw.between(1, SIDE - 1 - number_width(text, canvas.knobs.size))
    write_number(canvas, digits, text, top, left)
    return Drawn(text, canvas.knobs.size, length, 1)


def _two_numbers(canvas: Canvas, digits: list[np.ndarray], first: int, second: int) -> None:
    """Write one number in the upper half of the image and one in the lower."""
    draw, size = canvas.draw, canvas.knobs.size
    for half, number in enumerate((first, second)):
        top = half * SIDE // 2 + draw.between(2, SIDE // 2 - size - 2)
        write_number(canvas, digits, str(number), top, draw.between(1, SIDE - 1 - number_width(str(number), size)))


def _adding(canvas: Canvas, digits: list[np.ndarray], shift: int) -> Drawn:
    total = canvas.draw.between(20, 198)
    first = canvas.draw.between(max(10, total - 99), min(99, total - 10))
    _two_numbers(canvas, digits, first, total - first)
    carry = first % 10 + (total - first) % 10 > 9
    return Drawn(str(total), canvas.knobs.size, 4, 3 if carry else 2)


def _comparing(canvas: Canvas, digits: list[np.ndarray], shift: int) -> Drawn:
    draw = canvas.draw
    low = 100 if draw.below(256) < 64 + shift // 2 else 10
    larger = draw.between(low + 1, 10 * low - 1)
    smaller = draw.between(low, larger - 1)
    pair = (larger, smaller) if draw.below(2) else (smaller, larger)
    _two_numbers(canvas, digits, *pair)
    return Drawn(str(larger), canvas.knobs.size, 2 * len(str(larger)), 2)


def _counting(canvas: Canvas, digits: list[np.ndarray], shift: int) -> Drawn:
    draw, size = canvas.draw, min(canvas.knobs.size, 15)
    most = 2 if shift < 0 else 4 + (shift + draw.below(64)) // 128
    counts = [draw.between(0, most) for _ in range(3)]
    things = [shape for shape, count in zip(SHAPES, counts, strict=False) for _ in range(count)]
    things += ["cross"] * draw.between(0, max(shift, 0) * 4 // 256)
    palette = list(COLOURS.values())
    for thing, cell in zip(things, draw.shuffled(36), strict=False):
        top, left = cell // 6 * 16 + draw.between(0, 16 - size), cell % 6 * 16 + draw.between(0, 16 - size)
        canvas.shape(thing, palette[draw.below(len(palette))], top, left, size)
    return Drawn(" ".join(map(str, counts)), size, len(things), 3)


def _colours(canvas: Canvas, digits: list[np.ndarray], shift: int) -> Drawn:
    draw, size = canvas.draw, min(canvas.knobs.size, 22)
    count = 4 if draw.below(256) < 32 + shift * 3 // 4 else 3
    names = [list(COLOURS)[draw.below(len(COLOURS))] for _ in range(count)]
    width = SIDE // count
    for index, name in enumerate(names):
        left = index * width + draw.between(0, width - size)
        canvas.shape(SHAPES[draw.below(4)], COLOURS[name], draw.between(0, SIDE - size), left, size)
    return Drawn(" ".join(names), size, count, count)


def _locating(canvas: Canvas, digits: list[np.ndarray], shift: int) -> Drawn:
    draw, size = canvas.draw, 9 if canvas.knobs.size > 12 else 8
    cells = draw.shuffled(100)
    palette = list(COLOURS.values())
    distractors = max(draw.between(2, 6) + shift * 24 // 256, 1)
    for index, cell in enumerate(cells[: distractors + 1]):
        thing = "cross" if index == 0 else SHAPES[draw.below(3)]
        top, left = 3 + cell // 10 * 9, 3 + cell % 10 * 9
        canvas.shape(thing, palette[draw.below(len(palette))], top, left, size)
    return Drawn(f"{cells[0] // 10} {cells[0] % 10}", size, distractors + 1, 2)


_DRAWINGS = {
    "reading": _reading,
    "adding": _adding,
    "comparing": _comparing,
    "counting": _counting,
    "colours": _colours,
    "locating": _locating,
}


def draw_shift(draw: Draw, split: str, ability: str = ABILITIES[0]) -> int:
    """Draw how far a record is from the easy end, 0-256; of `wide` up to 640.

    Mostly small in pretraining. In pool and test anything, with more large values (density ½ + s of s = shift / 256),
    since real pools hold much that a model cannot do yet. In `wide`, where the ability plays a part, nearly all are at
    one of two ends, as in real pools of mixed sources: plain questions, mostly of two abilities, or images in which
    hardly anything can be seen.
    """
    if split == "pretrain":
        return draw.below(257) * draw.below(257) * 3 // 1024
    if split == "wide":
        return draw.below(33) if draw.below(256) < PLAIN[ability] else draw.between(304, WIDEST)
    shift = draw.below(257)
    return shift if draw.below(2) else max(shift, draw.below(257))


def draw_knobs(draw: Draw, shift: int, most: int = 256) -> Knobs:
    """Draw the knobs of one record: each follows the shift, with its own spread of a quarter of the range.

    Args:
        draw: source of the draws.
        shift: of the record.
        most: largest shift of a knob; above 256 its range goes on at the same slope, as far as there is any.
    """
    own = [min(max(shift + draw.between(-64, 64), 0), most) for _ in range(4)]
    return Knobs(
        size=max(23 - own[0] * 12 // 256, 8),
        contrast=max(256 - own[1] * 192 // 256, 16),
        noise=own[2] * 64 // 256,
        clutter=own[3] * 8 // 256,
    )


def make_record(split: str, index: int) -> dict[str, Any]:
    """Generate one record of a split.

    Args:
        split: "pretrain", "pool" or "test".
        index: 0 … SIZES[split] − 1; `index % 6` is its ability, so six consecutive records cover all abilities.

    Returns:
        `id`, `question`, `image` (uint8, (96, 96, 3)), `solution`, `ability`, `grader` and the knobs `shift`, `size`,
        `contrast`, `noise`, `clutter`, `count`, `steps`.

    Raises:
        ValueError: the split or the index does not exist.
    """
    if split not in SPLITS or not 0 <= index < SIZES[split]:
        raise ValueError(f"no record {index} in split {split!r}: splits are {SIZES} (name: number of records)")
    draw = Draw(20_251_106, SPLITS[split], index)
    ability = ABILITIES[index % len(ABILITIES)]
    shift = draw_shift(draw, split, ability)
    knobs = draw_knobs(draw, shift, WIDEST if split == "wide" else 256)
    canvas = Canvas(draw, knobs)
    canvas.strokes(knobs.clutter)
    content = -256 if split == "wide" and shift <= 256 else min(shift, 256)
    drawn = _DRAWINGS[ability](canvas, digit_images()[split], content)
    return {
        "id": f"{split}-{index:06d}",
        "question": QUESTIONS[ability],
        "image": canvas.finish(),
        "solution": drawn.answer,
        "ability": ability,
        "grader": GRADERS[ability],
        "shift": shift,
        "size": drawn.size,
        "contrast": knobs.contrast,
        "noise": knobs.noise,
        "clutter": knobs.clutter,
        "count": drawn.count,
        "steps": drawn.steps,
    }
