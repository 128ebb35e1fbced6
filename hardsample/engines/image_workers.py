"""An image processor whose images are shared out among worker threads, with the outputs of one call.

Processors on PIL and NumPy take one image after the other on one core. Both let other threads run while they resize
and compute, so threads suffice: images need not travel to other processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

MAX_WORKERS = 8
WORTH_PIXELS = 256 * 256
"""Smaller images stay in one call: their time is Python's own, of which one thread runs at a time."""

Images = Sequence[Tensor | Sequence[Tensor]]


def default_workers() -> int:
    """Return the number of processor cores this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_WORKERS)


class ImageWorkers:
    """A stand-in for an image processor of transformers that works on PIL and NumPy (`backend` is `pil`).

    Some processors number or pack what they make through the whole batch, so that no two calls can be joined. The
    first batch of each case (images of one size or of several, joined with or without padding) is therefore made
    both ways and compared bit for bit; where the two differ, batches of that case go to the processor whole.

    Args:
        image_processor: takes a list of images, or of one list for each text, and returns a mapping of tensors.
        workers: number of threads.
        worth_pixels: images of fewer pixels, on average over a batch, are not shared out.
    """

    def __init__(self, image_processor: Any, workers: int, worth_pixels: int = WORTH_PIXELS) -> None:
        self._inner = image_processor
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self._workers, self._worth_pixels = workers, worth_pixels
        self._joins: dict[tuple[bool, bool], bool] = {}
        self.shared_out = 0
        """Calls whose outputs came from several workers."""

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute, above all settings, from the image processor itself."""
        return getattr(self._inner, name)

    def __call__(self, images: Images, *args: Any, **kwargs: Any) -> Any:
        """Return what the image processor makes of these images in one call."""

        def call(part: Images) -> Any:
            return self._inner(part, *args, **kwargs)

        sizes = _sizes(images)
        mixed = len(set(sizes)) > 1
        worth = sum(height * width for height, width in sizes) >= self._worth_pixels * max(len(sizes), 1)
        fails = not all(joins for case, joins in self._joins.items() if case[0] == mixed)
        if self._workers < 2 or len(images) < 2 or not sizes or not worth or fails:
            return call(images)
        try:
            outputs = list(self._pool.map(call, _parts(images, self._workers)))
            joined, padded = join_outputs(outputs)
        except Exception:  # noqa: BLE001 - a bad image, of which the one call tells, or a part that it does not take
            joined, padded = None, False
        if joined is None or (mixed, padded) not in self._joins:
            whole = call(images)
            self._joins[mixed, padded] = joined is not None and _equal(joined, whole)
            return whole
        self.shared_out += 1
        return type(outputs[0])(joined)


def join_outputs(outputs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, bool]:
    """Concatenate the outputs of several calls.

    Tensors whose other dimensions differ are filled up with zeros, as processors do that pad to the largest image of
    a batch.

    Args:
        outputs: of the calls, in order.

    Returns:
        The joined output, or None if it has parts that cannot be joined; and whether something was filled up.
    """
    joined: dict[str, Any] = {}
    filled = False
    if any(output.keys() != outputs[0].keys() for output in outputs):
        return None, False
    for name in outputs[0]:
        values = [output[name] for output in outputs]
        if all(isinstance(value, list) for value in values):
            joined[name] = [item for value in values for item in value]
        elif all(isinstance(value, Tensor) and value.ndim == values[0].ndim > 0 for value in values):
            shapes = {value.shape[1:] for value in values}
            if len(shapes) > 1:
                filled = True
                common = [max(sizes) for sizes in zip(*shapes, strict=True)]
                values = [_fill_up(value, common) for value in values]
            joined[name] = torch.cat(values)
        else:
            return None, filled
    return joined, filled


def _fill_up(value: Tensor, sizes: Sequence[int]) -> Tensor:
    """Pad each dimension but the first with zeros at the end, up to these sizes."""
    made = value.new_zeros((len(value), *sizes))
    made[tuple(slice(size) for size in value.shape)] = value
    return made


def _sizes(images: Images) -> list[tuple[int, ...]]:
    """Return height and width of every image; none if something else than lists of channels-first tensors was given."""
    if not isinstance(images, list | tuple):
        return []
    flat = [tensor for item in images for tensor in (item if isinstance(item, list | tuple) else [item])]
    return [tuple(tensor.shape[-2:]) for tensor in flat] if all(map(torch.is_tensor, flat)) else []


def _parts(images: Images, workers: int) -> list[Images]:
    """Split images into consecutive parts, equally many for each worker."""
    count = min(workers, len(images))
    bounds = [part * len(images) // count for part in range(count + 1)]
    return [images[start:stop] for start, stop in pairwise(bounds)]


def _equal(joined: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    return joined.keys() == whole.keys() and all(_equal_values(joined[name], whole[name]) for name in joined)


def _equal_values(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        same = isinstance(right, Tensor) and (left.shape, left.dtype) == (right.shape, right.dtype)
        return same and left.equal(right)
    if isinstance(left, list | tuple):
        same = type(left) is type(right) and len(left) == len(right)
        return same and all(map(_equal_values, left, right))
    return type(left) is type(right) and bool(left == right)
