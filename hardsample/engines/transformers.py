"""Rollouts on this machine, by any `AutoModelForImageTextToText` of transformers.

A rollout is one completion of one sample under one mask. Its mask and its sampling noise are keyed by (run seed,
sample id, ratio, realization), so what comes out does not depend on which rollouts share a batch.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LogitsProcessorList

from hardsample.images import open_image
from hardsample.kernels.reference import mask_key
from hardsample.masking import MaskDraw, MaskSpaceError, mask_image, mask_model_inputs
from hardsample.sampling import GumbelNoise, NoiseKey

DEFAULT_NEW_TOKENS = 1024
_CACHE_BYTES = 512 * 2**20
_HASHED_WHOLE_BYTES = 64 * 2**20


class EngineError(RuntimeError):
    """The model cannot be loaded or does not run; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """One rollout to make: a record (`id`, `prompt`, `images`), a mask ratio λ and a realization k."""

    record: Mapping[str, Any]
    ratio: float
    realization: int


@dataclass(frozen=True)
class Completion:
    """What came back: the text without special tokens, and the generated ids without end-of-sequence."""

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Failure:
    """A rollout that cannot be made, with the reason."""

    reason: str


@dataclass(frozen=True)
class Prepared:
    """A batch ready for the model: the processor's output on the CPU, or None if nothing is left to run."""

    requests: list[Request]
    inputs: dict[str, Any] | None
    failures: dict[int, Failure]
    """Place in `requests` → why this one is not in `inputs`."""


@dataclass
class Seconds:
    """Where the time went, in seconds; preparing overlaps with generating."""

    prepare: float = 0.0
    generate: float = 0.0


def load_processor(model: str, trust_remote_code: bool = False) -> Any:
    """The processor of a model folder or hub id, padding on the left.

    Raises:
        EngineError: if it cannot be loaded, with the likely remedy.
    """
    try:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        hint = "pip install torchvision" if "torchvision" in str(error).lower() else "check the name or path"
        raise EngineError(f"the processor of {model!r} cannot be loaded: {_first_line(error)} ({hint})") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise EngineError(f"{model!r} has no processor for images and text: give a vision-language model")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def load_model(
    model: str,
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load weights for inference.

    Args:
        model: folder or hub id.
        device: torch device; default the first GPU, else the CPU.
        dtype: name of a torch dtype; default float32 on a CPU, the checkpoint's on a GPU.
        attn_implementation: name of an attention implementation of transformers; default its choice.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        EngineError: if it cannot be loaded.
    """
    try:
        place = torch.device(device or default_device())
    except RuntimeError as error:
        raise EngineError(f"there is no device {device!r}: give one such as cpu, cuda or cuda:1") from error
    wanted = dtype or ("float32" if place.type == "cpu" else "auto")
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(
            model, dtype=wanted, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
        )
        return loaded.to(place).eval()
    except (OSError, ValueError, ImportError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise EngineError(f"the model {model!r} cannot be loaded on {place}: {_first_line(error)}") from error


def default_device() -> str:
    """`cuda` or another accelerator that torch finds, else `cpu`."""
    return str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"


def model_fingerprint(model: str, revision: str | None = None) -> str:
    """What tells one checkpoint from another: of a folder its config and weights, of a hub id its commit.

    Files of more than 64 MB count with their size and their first and last MB.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{revision or 'unknown'}"
    digest = hashlib.blake2b(digest_size=16)
    patterns = ("*.safetensors", "*.bin", "config.json", "*processor*.json", "tokenizer*", "*.jinja")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _HASHED_WHOLE_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(2**20))
                file.seek(-(2**20), 2)
                digest.update(file.read())
    return digest.hexdigest()


@dataclass
class TransformersEngine:
    """Prepares and generates batches of rollouts.

    Attributes:
        model: from `load_model`.
        processor: from `load_processor`.
        seed: of masks and sampling noise.
        temperature: T ≥ 0; 0 is greedy.
        max_new_tokens: None takes the model's generation config, else 1,024.
        kind: `pixel`, `patch` or `rectangle`.
        mask_space: `source` or `model`.
        max_pixels: pictures beyond it are refused.
        batch_size: rollouts in one `generate` call; halved when memory runs out.
    """

    model: Any
    processor: Any
    seed: int
    temperature: float
    max_new_tokens: int | None
    kind: str
    mask_space: str
    max_pixels: int
    batch_size: int
    seconds: Seconds = field(default_factory=Seconds)
    notice: Callable[[str], None] = print

    def __post_init__(self) -> None:
        """Replace the checkpoint's sampling settings: top-p, top-k and penalties play no part in a score."""
        old = self.model.generation_config
        tokenizer = self.processor.tokenizer
        self.max_new_tokens = self.max_new_tokens or old.max_new_tokens or DEFAULT_NEW_TOKENS
        ends = old.eos_token_id if old.eos_token_id is not None else tokenizer.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        pad = old.pad_token_id if old.pad_token_id is not None else tokenizer.pad_token_id
        self.model.generation_config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self._ends),
            pad_token_id=pad if pad is not None else min(self._ends),
            bos_token_id=old.bos_token_id,
            cache_implementation=old.cache_implementation,
        )
        self._pictures = _PictureCache(self.max_pixels)
        self._worked = False

    def prepare(self, requests: Sequence[Request]) -> Prepared:
        """Mask the pictures and run the processor, on the CPU; safe in a thread beside `generate`.

        A request that the processor refuses is in `failures`; the others go on.
        """
        began = time.perf_counter()
        try:
            prepared = self._prepare(list(requests))
        finally:
            self.seconds.prepare += time.perf_counter() - began
        return prepared

    def generate(self, prepared: Prepared) -> list[Completion | Failure]:
        """Complete a batch; one result for each request, in order."""
        began = time.perf_counter()
        try:
            return self._results(prepared)
        finally:
            self.seconds.generate += time.perf_counter() - began

    def _prepare(self, requests: list[Request]) -> Prepared:
        try:
            return Prepared(requests, self._inputs(requests), {})
        except MaskSpaceError as error:  # of the processor, not of a record
            raise EngineError(str(error)) from error
        except Exception as error:  # noqa: BLE001 - processors raise anything on a bad record, which must not sink the batch
            if len(requests) == 1:
                return Prepared(requests, None, {0: Failure(_first_line(error))})
        alone = [self._prepare([request]) for request in requests]
        failures = {place: one.failures[0] for place, one in enumerate(alone) if one.failures}
        good = [request for place, request in enumerate(requests) if place not in failures]
        return Prepared(requests, self._inputs(good) if good else None, failures)

    def _inputs(self, requests: list[Request]) -> dict[str, Any]:
        texts = [self._prompt(request.record["prompt"]) for request in requests]
        masks = [self._masks(request) for request in requests]
        pictures = [self._pictures(request.record) for request in requests]
        if self.mask_space == "source":
            pictures = [
                [
                    mask_image(
                        image, draw.ratio, draw.realization, draw.key, image_index=draw.image_index, kind=self.kind
                    )
                    for image, draw in zip(images, draws, strict=True)
                ]
                for images, draws in zip(pictures, masks, strict=True)
            ]
        images = {"images": pictures} if any(pictures) else {}
        inputs = dict(self.processor(text=texts, **images, padding=True, return_tensors="pt"))
        if self.mask_space == "model" and images:
            draws = [draw for one in masks for draw in one]
            inputs = mask_model_inputs(inputs, draws, self.processor, kind=self.kind)
        return inputs

    def _masks(self, request: Request) -> list[MaskDraw]:
        key = mask_key(self.seed, request.record["id"])
        count = len(request.record["images"])
        return [MaskDraw(request.ratio, request.realization, key, index) for index in range(count)]

    def _prompt(self, messages: list[dict[str, Any]]) -> str:
        """The prompt as the model's chat template writes it; without one, the texts in order."""
        if getattr(self.processor, "chat_template", None):
            return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        image = getattr(self.processor, "image_token", "<image>")
        blocks = [block for message in messages for block in message["content"]]
        return "".join(image if block["type"] == "image" else block["text"] for block in blocks)

    def _results(self, prepared: Prepared) -> list[Completion | Failure]:
        places = [place for place in range(len(prepared.requests)) if place not in prepared.failures]
        results: dict[int, Completion | Failure] = dict(prepared.failures)
        if prepared.inputs is not None:
            requests = [prepared.requests[place] for place in places]
            ran = self._run(requests, prepared.inputs)
            self._worked = self._worked or any(isinstance(result, Completion) for result in ran)
            if not self._worked:  # not one bad record, but a model that does not run
                raise EngineError(f"the model fails on every record of its first batch: {ran[0]}")
            results |= zip(places, ran, strict=True)
        return [results[place] for place in range(len(prepared.requests))]

    def _run(self, requests: list[Request], inputs: dict[str, Any]) -> list[Completion | Failure]:
        """Run the model; halve the batch when memory runs out, and find the record that the model refuses."""
        try:
            return list(self._complete(requests, inputs))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            full = _is_out_of_memory(error)
            reason = _first_line(error)
        if len(requests) == 1:
            return [Failure(f"does not fit into memory alone: {reason}" if full else f"the model refuses it: {reason}")]
        if full:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.batch_size = max(1, len(requests) // 2)
            self.notice(f"out of memory with {len(requests)} rollouts in a batch: going on with {self.batch_size}")
        middle = len(requests) // 2
        halves = (requests[:middle], requests[middle:])
        return [result for half in halves for result in self._run(half, self._inputs(half))]

    @torch.inference_mode()
    def _complete(self, requests: list[Request], inputs: dict[str, Any]) -> list[Completion]:
        length = inputs["input_ids"].shape[1]
        keys = [NoiseKey(self.seed, r.record["id"], r.ratio, r.realization) for r in requests]
        noise = GumbelNoise(keys, self.temperature, length)
        moved = {name: self._moved(value) for name, value in inputs.items()}
        output = self.model.generate(**moved, logits_processor=LogitsProcessorList([noise]))
        return [self._completion(row) for row in output[:, length:].tolist()]

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        floating = value.is_floating_point()
        return value.to(self.model.device, self.model.dtype if floating else None, non_blocking=True)

    def _completion(self, ids: list[int]) -> Completion:
        end = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        tokens = ids[:end]
        return Completion(self.processor.tokenizer.decode(tokens, skip_special_tokens=True), tokens)


class _PictureCache:
    """Decoded pictures of the samples in flight, by id, up to half a gigabyte; safe to use from several threads."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._held: OrderedDict[str, list[Image.Image]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, record: Mapping[str, Any]) -> list[Image.Image]:
        with self._lock:
            if record["id"] in self._held:
                self._held.move_to_end(record["id"])
                return self._held[record["id"]]
        pictures = [open_image(ref, max_pixels=self._max_pixels) for ref in record["images"]]
        with self._lock:
            if record["id"] not in self._held:
                self._held[record["id"]] = pictures
                self._bytes += _size(pictures)
            while self._bytes > _CACHE_BYTES and len(self._held) > 1:
                self._bytes -= _size(self._held.popitem(last=False)[1])
        return pictures


def _size(pictures: list[Image.Image]) -> int:
    return sum(3 * image.width * image.height for image in pictures)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:300] if lines else ''}"
