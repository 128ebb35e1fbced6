"""From rollouts to a model's inputs: images are decoded once, masked in few passes, and processed in one batch.

Images are uint8 tensors from the file to the processor. A processor whose backend is torchvision gets them on the
model's device, where they are masked too; one on PIL and NumPy is shared out among worker threads.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from hardsample.data.images import open_image
from hardsample.engines.image_workers import ImageWorkers, default_workers
from hardsample.engines.masking import MaskDraw, mask_images, mask_model_inputs
from hardsample.engines.protocol import Request
from hardsample.kernels.keys import mask_key
from hardsample.kernels.ops import chosen

_CACHE_BYTES = 512 * 2**20
_BUFFER_BYTES = 512 * 2**20

Pixels = UInt8[Tensor, "height width 3"]


@dataclass
class Seconds:
    """Time of each step, in seconds; all but `generate` and `wait_for_prepare` overlaps with generating.

    On an accelerator a step that does not wait for the device counts the time of launching only.
    """

    decode: float = 0.0
    mask: float = 0.0
    processor: float = 0.0
    """The image processor and the tokenizer, with the chat template."""
    generate: float = 0.0
    wait_for_prepare: float = 0.0
    """Time in which the model waits for a batch that is not prepared yet."""

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time inside to a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, step, getattr(self, step) + time.perf_counter() - began)


class Preparation:
    """Maker of the inputs of a batch of rollouts; safe to use from several threads, one batch at a time.

    Args:
        processor: from `load_processor`; not changed.
        device: of the model.
        seed: of the masks.
        mask_kind: `pixel`, `patch` or `rectangle`.
        mask_space: `source` or `model`.
        max_pixels: larger images are rejected, in pixels (width × height).
        seconds: to which the time of each step is added.
        notice: called with a sentence when something did not go as planned.
    """

    def __init__(
        self,
        processor: Any,
        device: torch.device,
        *,
        seed: int,
        mask_kind: str,
        mask_space: str,
        max_pixels: int,
        seconds: Seconds,
        notice: Callable[[str], None],
    ) -> None:
        self._given, self._processor = processor, processor
        self._seed, self._mask_kind, self._mask_space = seed, mask_kind, mask_space
        self._seconds, self._notice = seconds, notice
        self._images = ImageCache(max_pixels)
        self._buffer: Tensor | None = None
        self._lock = threading.Lock()
        self.backend = getattr(processor.image_processor, "backend", None)
        self.device = device if self.backend == "torchvision" else torch.device("cpu")
        self._workers: ImageWorkers | None = None
        if self.backend == "pil":
            self._workers = ImageWorkers(processor.image_processor, default_workers())
            self._processor = copy.copy(processor)
            self._processor.image_processor = self._workers

    def __call__(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Return the processor's output for these rollouts, masked.

        Raises:
            Exception: what a processor raises on a record that it cannot take.
            MaskSpaceError: the processor's output has no single masked space (`model` space).
        """
        with self._lock:  # one buffer for the masked images
            try:
                return self._inputs(requests)
            except Exception as error:
                if self.device.type == "cpu":
                    raise
                return self._on_the_cpu(requests, error)

    def _on_the_cpu(self, requests: Sequence[Request], error: Exception) -> dict[str, Any]:
        """Try again without the device: it may be full, or the processor may not run there."""
        device, self.device, self._buffer = self.device, torch.device("cpu"), None
        try:
            inputs = self._inputs(requests)
        except Exception:
            self.device, self._buffer = device, None  # it was the record
            raise
        self._notice(f"images are prepared on the CPU from here on: {type(error).__name__} on {device} ({error})")
        return inputs

    def first_image(self, record: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"] | None:
        """Return a record's first image, decoded and whole; None without images."""
        return next((image.numpy() for image in self._images(record)), None)

    def backends(self) -> dict[str, str]:
        """Return the backend of `mask_pixels`, and how the image processor was run."""
        dtype = torch.uint8 if self._mask_space == "source" else torch.float32
        masking = chosen(torch.empty((1, 1, 1, 16), dtype=dtype, device=self.device))["mask_pixels"]
        how = f"{self.backend or type(self._given.image_processor).__name__} on {self.device}"
        if self._workers and self._workers.shared_out:
            how += f", {default_workers()} threads"
        return {"mask_pixels": masking, "image_processor": how}

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Any]:
        with self._seconds.timed("decode"):
            decoded = [self._images(request.record) for request in requests]
            # the same image of several rollouts travels once
            moved = {id(image): image.to(self.device) for images in decoded for image in images}
        draws = [draw for request in requests for draw in self._draws(request)]
        flat = [moved[id(image)] for images in decoded for image in images]
        if self._mask_space == "source":
            with self._seconds.timed("mask"):
                flat = mask_images(flat, draws, kind=self._mask_kind, buffer=self._room(flat))
        with self._seconds.timed("processor"):
            inputs = self._processed(requests, flat)
        if self._mask_space == "model" and flat:
            with self._seconds.timed("mask"):
                inputs = mask_model_inputs(inputs, draws, self._given, kind=self._mask_kind)
        if self._buffer is not None and (len(self._buffer) > _BUFFER_BYTES or _shares(inputs, self._buffer)):
            self._buffer = None
        return inputs

    def _processed(self, requests: Sequence[Request], flat: Sequence[Pixels]) -> dict[str, Any]:
        texts = [self._prompt(request.record["prompt"]) for request in requests]
        left = map(self._as_the_processor_takes_it, flat)
        nested = [[next(left) for _ in request.record["images"]] for request in requests]
        images = {"images": nested} if flat else {}
        return dict(self._processor(text=texts, **images, padding=True, return_tensors="pt"))

    def _as_the_processor_takes_it(self, image: Pixels) -> Tensor | Image.Image:
        """Return an image channels first, which no processor can mistake; as a PIL image for old processors."""
        if self.backend in ("pil", "torchvision"):
            return image.permute(2, 0, 1)
        return Image.fromarray(image.numpy())

    def _draws(self, request: Request) -> list[MaskDraw]:
        key = mask_key(self._seed, request.record["id"])
        count = len(request.record["images"])
        return [MaskDraw(request.ratio, request.realization, key, index) for index in range(count)]

    def _prompt(self, messages: list[dict[str, Any]]) -> str:
        """Return the prompt in the model's chat template; without one, the texts in order."""
        if getattr(self._given, "chat_template", None):
            return self._given.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        image = getattr(self._given, "image_token", "<image>")
        blocks = [block for message in messages for block in message["content"]]
        return "".join(image if block["type"] == "image" else block["text"] for block in blocks)

    def _room(self, images: Sequence[Pixels]) -> Tensor:
        """Return the buffer, grown if need be: first touching fresh memory costs far more than masking into it."""
        size = sum(image.numel() for image in images)
        if self._buffer is None or len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._buffer


def preparing_thread(device: torch.device) -> ThreadPoolExecutor:
    """Start the thread that prepares the next batch while the model generates.

    Where the model is on the CPU, PyTorch keeps to one core in this thread: with a second team of OpenMP threads there
    are more than cores, and then the model's own wait asleep for each other (the demo's model lost a quarter of its
    speed).

    Args:
        device: of the model.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
    if device.type == "cpu":
        threads = torch.get_num_threads()
        thread.submit(_on_one_core).result()
        torch.set_num_threads(threads)  # OpenMP's number is each thread's own, MKL's the whole process's
    return thread


def _on_one_core() -> None:
    torch.get_num_threads()  # a thread's first question sets its number to the process's
    torch.set_num_threads(1)


class ImageCache:
    """Cache of decoded images, by sample id, up to half a gigabyte; safe to use from several threads."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._held: OrderedDict[str, list[Pixels]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, record: Mapping[str, Any]) -> list[Pixels]:
        """Return the record's images, the same tensors as long as they are cached."""
        with self._lock:
            if record["id"] in self._held:
                self._held.move_to_end(record["id"])
                return self._held[record["id"]]
        opened = [open_image(ref, max_pixels=self._max_pixels) for ref in record["images"]]
        images = [torch.from_numpy(np.array(image)) for image in opened]
        with self._lock:
            if record["id"] not in self._held:
                self._held[record["id"]] = images
                self._bytes += _size(images)
            while self._bytes > _CACHE_BYTES and len(self._held) > 1:
                self._bytes -= _size(self._held.popitem(last=False)[1])
        return images


def _size(images: Sequence[Pixels]) -> int:
    return sum(image.numel() for image in images)


def _shares(value: Any, buffer: Tensor) -> bool:
    """Return whether an output holds the buffer's own memory, which must then not be written again."""
    if isinstance(value, Mapping):
        return any(_shares(item, buffer) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_shares(item, buffer) for item in value)
    if isinstance(value, np.ndarray):
        return np.may_share_memory(value, buffer.numpy(force=True))
    return isinstance(value, Tensor) and value.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
