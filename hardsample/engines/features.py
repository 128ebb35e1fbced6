"""What one prefill of a prompt shows of a sample, packed into 512 bytes: named numbers and two projected states.

    features = [ numbers (24) ‖ last (116) ‖ image (116) ],   float16

`last` is the hidden state of the last prompt token in the layer before the last, `image` the mean of the image tokens
there. Each is divided by its root mean square, clipped to ±4 (some models have a few huge dimensions that would drown
the others), and projected by a fixed Gaussian matrix if it is wider than 116. What is not known is NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Float16

Features = Float16[np.ndarray, " 256"]
"""Of one sample."""
State = Float[np.ndarray, " width"]
Logprobs = Float[np.ndarray, " vocabulary"]

VERSION = 1
"""Of the layout below and of the projection; features of another version are not compared."""

NUMBERS = (
    "entropy",
    "logprob_1",
    "logprob_2",
    "logprob_3",
    "logprob_4",
    "logprob_5",
    "end_logprob",
    "varentropy",
    "last_norm",
    "image_norm",
    "prompt_tokens",
    "image_tokens",
    "images",
    "characters",
    "options",
    "pixels",
    "aspect",
    "brightness",
    "contrast",
    "saturation",
    "edges",
)
"""Names of the numbers. Of the first answer token's distribution: entropy (nats), log-probabilities of the five
likeliest tokens and of the end of sequence, variance of the log-probability. Logarithms of: the root mean square of
both states, pixels, width over height; and of 1 + tokens, image tokens, images, characters of the text, options. Of the
first image, from 0 to 1: mean and standard deviation of the brightness, mean saturation, mean absolute difference of
neighbouring pixels."""
STATISTICS = [NUMBERS.index(name) for name in NUMBERS[NUMBERS.index("images") :]]
"""Columns of the numbers that text and images alone give, without a model."""

STATE = 116
"""Dimensions kept of each state."""
_SLOTS = 24
WIDTH = _SLOTS + 2 * STATE
"""Numbers of a sample's features."""
BLOCKS = (_SLOTS, STATE, STATE)
"""Columns of the numbers, of `last` and of `image`."""
BYTES = 2 * WIDTH
"""Bytes of a sample's features."""
CLIP = 4.0

LAST = slice(_SLOTS, _SLOTS + STATE)
IMAGE = slice(_SLOTS + STATE, WIDTH)


def pack(
    numbers: Mapping[str, float],
    last: State | None = None,
    image: State | None = None,
) -> Features:
    """Pack one sample's features.

    Args:
        numbers: by names of `NUMBERS`; those left out are NaN.
        last: hidden state of the last prompt token; None if there is none.
        image: mean hidden state of the image tokens; None if there is none.

    Returns:
        (WIDTH,) float16.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = set(numbers) - set(NUMBERS)
    if unknown:
        raise ValueError(f"there is no feature {sorted(unknown)[0]!r}: names are {', '.join(NUMBERS)}")
    packed = np.full(WIDTH, np.nan, dtype=np.float32)
    values = dict(numbers)
    for name, part, state in (("last_norm", LAST, last), ("image_norm", IMAGE, image)):
        if state is not None:
            norm = float(np.sqrt(np.mean(np.square(state, dtype=np.float64))))
            values[name] = np.log(max(norm, 1e-30))
            kept = project(np.clip(np.asarray(state, dtype=np.float32) / max(norm, 1e-30), -CLIP, CLIP))
            packed[part.start : part.start + len(kept)] = kept
    packed[: len(NUMBERS)] = [values.get(name, np.nan) for name in NUMBERS]
    return np.clip(packed, -6e4, 6e4).astype(np.float16)


def encoder_name(identity: Mapping[str, Any]) -> str:
    """Return the name under which features of a model are kept, of what an engine says of itself."""
    return f"{identity.get('model')} {identity.get('dtype') or ''}".strip()


def distribution_numbers(logprobs: Logprobs, ends: Sequence[int] = ()) -> dict[str, float]:
    """Return the numbers of the first answer token's distribution.

    Args:
        logprobs: log-probabilities at T = 1; of a server only the likeliest, whose rest counts as one token.
        ends: ids of end-of-sequence tokens, as far as they are in `logprobs`.
    """
    logs = np.asarray(logprobs, dtype=np.float64)
    rest = 1 - np.exp(logs).sum()
    whole = np.append(logs, np.log(rest)) if rest > 1e-6 else logs
    chances = np.exp(whole)
    terms = np.where(chances > 0, -chances * np.where(chances > 0, whole, 0), 0)
    entropy = float(terms.sum())
    varentropy = float((chances * np.square(np.where(chances > 0, whole, 0))).sum() - entropy**2)
    top = np.sort(logs)[::-1][:5]
    numbers = {"entropy": entropy, "varentropy": max(varentropy, 0.0)}
    numbers |= {f"logprob_{index + 1}": float(max(value, -20)) for index, value in enumerate(top)}
    if len(ends):
        numbers["end_logprob"] = float(max(np.logaddexp.reduce(logs[list(ends)]), -20))
    return numbers


def image_numbers(pixels: np.ndarray) -> dict[str, float]:
    """Return the numbers of an image.

    Args:
        pixels: (height, width, 3) uint8.
    """
    height, width = pixels.shape[:2]
    stride = max(1, int(np.sqrt(height * width / 65_536)))  # statistics of so many pixels are enough
    red, green, blue = (pixels[::stride, ::stride, channel].astype(np.float32) / 255 for channel in range(3))
    grey = (red + green + blue) / 3
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    steps = [np.abs(np.diff(grey, axis=axis)).mean() if grey.shape[axis] > 1 else 0.0 for axis in (0, 1)]
    return {
        "pixels": float(np.log(height * width)),
        "aspect": float(np.log(width / height)),
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "saturation": float((most - least).mean()),
        "edges": float(np.mean(steps)),
    }


def text_numbers(characters: int, options: int, images: int) -> dict[str, float]:
    """Return the numbers of a prompt: characters of its text, options of a choice question, images."""
    return {
        "characters": float(np.log1p(characters)),
        "options": float(np.log1p(options)),
        "images": float(np.log1p(images)),
    }


def project(state: Float[np.ndarray, "*rows width"]) -> Float[np.ndarray, "*rows kept"]:
    """Project states wider than `STATE` to that many dimensions, by the same matrix for ever."""
    width = state.shape[-1]
    return state if width <= STATE else state @ projection(width)


@lru_cache(maxsize=4)
def projection(width: int) -> Float[np.ndarray, "width kept"]:
    """Return the projection of a state: independent normal numbers of variance 1 / STATE, keyed by the width."""
    key = hashlib.blake2b(f"hardsample features {VERSION} {width}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))
    return (rng.standard_normal((width, STATE)) / np.sqrt(STATE)).astype(np.float32)
