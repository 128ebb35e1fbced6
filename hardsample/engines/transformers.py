"""Rollouts on this machine, by any `AutoModelForImageTextToText` of transformers.

A rollout is one completion of one sample under one mask. Its mask and its sampling noise are keyed by (run seed,
sample id, ratio, realization), so what comes out does not depend on which rollouts share a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from hardsample.demo import model_path
from hardsample.engines.features import Features
from hardsample.engines.masking import MaskSpaceError
from hardsample.engines.prefill import UNMASKED, PrefillCollector, collect_prefill, run_prefills, sample_features
from hardsample.engines.preparing import Preparation, Seconds, preparing_thread
from hardsample.engines.protocol import Job, Request, RunInfo, Settings, SettleFeatures
from hardsample.engines.results import Completion, EngineError, Failure, Prepared, finish_state
from hardsample.engines.sampling import GumbelNoise, NoiseKey
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LogitsProcessorList

DEFAULT_NEW_TOKENS = 1024
_HASHED_WHOLE_BYTES = 64 * 2**20

Result = TypeVar("Result")
Step = Callable[[list[Request], dict[str, Any]], list[Result]]
"""Runs the model on a batch: requests, and the processor's output for them."""


def resolved_model(model: str) -> str:
    """Return the folder of the demo model for the name `demo`; other names as they are."""
    return str(model_path()) if model == "demo" else model


def load_processor(model: str, trust_remote_code: bool = False) -> Any:
    """Load the processor of a model folder or hub id, padding on the left.

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
        target = torch.device(device or default_device())
    except RuntimeError as error:
        raise EngineError(f"there is no device {device!r}: give one such as cpu, cuda or cuda:1") from error
    wanted = dtype or ("float32" if target.type == "cpu" else "auto")
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(
            model, dtype=wanted, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
        )
        return loaded.to(target).eval()
    except (OSError, ValueError, ImportError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise EngineError(f"the model {model!r} cannot be loaded on {target}: {_first_line(error)}") from error


def default_device() -> str:
    """Return `cuda` or another accelerator that torch finds, else `cpu`."""
    return str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"


def model_fingerprint(model: str, revision: str | None = None) -> str:
    """Return what tells one checkpoint from another: a hash of a folder's config and weights, or a hub id's commit.

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


class TransformersEngine:
    """Batches of rollouts by a model on this machine.

    Args:
        model: from `load_model`; None for one that `from_config` names and `__enter__` loads.
        processor: from `load_processor`.
        config: settings of the job.
        notice: called with a sentence when something did not go as planned.

    Attributes:
        batch_size: rollouts in one `generate` call; halved when memory runs out.
        max_new_tokens: the setting, else that of the model's generation config, else 1,024.
        temperature: T ≥ 0; 0 is greedy.
        pad_token_id: of the tokenizer.
    """

    shows_attention = True
    pad_token_id: int

    def __init__(
        self, model: Any | None, processor: Any, config: Settings, notice: Callable[[str], None] = print
    ) -> None:
        self.model: Any = None
        self.processor, self.config, self.notice = processor, config, notice
        self.batch_size: int = config.batch_size
        self.max_new_tokens: int | None = config.max_new_tokens
        self.temperature: float = config.temperature
        self.seconds = Seconds()
        self._name = ""
        self._worked = False
        if model is not None:
            self._use(model)

    @classmethod
    def from_config(cls, model: str, config: Settings, notice: Callable[[str], None] = print) -> Self:
        """Make the engine for a folder, a hub id or `demo`; its processor is loaded, its weights not yet."""
        name = resolved_model(model)
        engine = cls(None, load_processor(name, config.trust_remote_code), config, notice)
        engine._name = name
        return engine

    def __enter__(self) -> Self:
        """Load the weights."""
        return self.load()

    def load(self) -> Self:
        """Load the weights unless they are loaded; for callers that keep the engine as long as they run."""
        if self.model is None:
            config = self.config
            self._use(
                load_model(
                    self._name, config.device, config.dtype, config.attn_implementation, config.trust_remote_code
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the model: it is freed with the engine."""

    def _use(self, model: Any) -> None:
        """Replace the checkpoint's sampling settings: top-p, top-k and penalties play no part in a score."""
        self.model = model
        old = model.generation_config
        tokenizer = self.processor.tokenizer
        self.max_new_tokens = self.max_new_tokens or old.max_new_tokens or DEFAULT_NEW_TOKENS
        ends = old.eos_token_id if old.eos_token_id is not None else tokenizer.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        pad = old.pad_token_id if old.pad_token_id is not None else tokenizer.pad_token_id
        self.pad_token_id = pad if pad is not None else min(self._ends)
        model.generation_config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self._ends),
            pad_token_id=self.pad_token_id,
            bos_token_id=old.bos_token_id,
            cache_implementation=old.cache_implementation,
        )
        self._inputs = Preparation(
            self.processor,
            model.device,
            seed=self.config.seed,
            mask_kind=self.config.mask_kind,
            mask_space=self.config.mask_space,
            max_pixels=self.config.max_pixels,
            seconds=self.seconds,
            notice=lambda text: self.notice(text),
        )

    def identity(self) -> dict[str, Any]:
        """Return a hash of the weights, whatever their folder is called, and their dtype."""
        revision = getattr(self.model.config, "_commit_hash", None)
        return {
            "model": model_fingerprint(self._name, revision),
            "dtype": self._dtype,
            "max_new_tokens": self.max_new_tokens,
        }

    def run(self, job: Job) -> None:
        """Work in batches: while the model generates one, the next is prepared, if it would be full."""
        with preparing_thread(self.model.device) as preparing:

            def start(requests: list[Request]) -> Future[Prepared] | None:
                return preparing.submit(self.prepare, requests) if requests else None

            current = start(job.take(self.batch_size))
            while current:
                with self.seconds.timed("wait_for_prepare"):
                    prepared = current.result()
                ahead = start(job.take(self.batch_size)) if job.fills(self.batch_size) else None
                results = self.generate(prepared)
                job.settle(list(zip(prepared.requests, results, strict=True)), len(results))
                current = ahead or start(job.take(self.batch_size))

    def run_info(self) -> RunInfo:
        """Return device, dtype, backends and the seconds of each step."""
        return RunInfo(
            device=str(self.model.device),
            dtype=self._dtype,
            backends=self._inputs.backends(),
            seconds=dict(vars(self.seconds)),
        )

    @property
    def _dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def prepare(self, requests: Sequence[Request]) -> Prepared:
        """Mask the images and run the processor; safe in a thread beside `generate`.

        A request that the processor rejects is in `failures`; the others are prepared.
        """
        requests = list(requests)
        try:
            return Prepared(requests, self._inputs(requests), {})
        except MaskSpaceError as error:  # of the processor, not of a record
            raise EngineError(str(error)) from error
        except Exception as error:  # noqa: BLE001 - processors raise anything on a bad record, which must not sink the batch
            if len(requests) == 1:
                return Prepared(requests, None, {0: Failure(_first_line(error))})
        alone = [self.prepare([request]) for request in requests]
        failures = {row: prepared.failures[0] for row, prepared in enumerate(alone) if prepared.failures}
        good = [request for row, request in enumerate(requests) if row not in failures]
        return Prepared(requests, self._inputs(good) if good else None, failures)

    def generate(self, prepared: Prepared) -> list[Completion | Failure]:
        """Complete a batch; one result for each request, in order."""
        results = self._each(prepared, self._complete)
        ran = [result for row, result in enumerate(results) if row not in prepared.failures]
        self._worked = self._worked or any(isinstance(result, Completion) for result in ran)
        if not self._worked and ran and isinstance(ran[0], Failure):  # not one bad record: the model does not run
            raise EngineError(f"the model fails on every record of its first batch: {ran[0].reason}")
        return results

    def prefill(self, prepared: Prepared) -> list[Features | Failure]:
        """Run the prompts of a batch once and return their features, in order."""
        return self._each(prepared, self._prefill)

    def run_features(self, records: Iterable[Mapping[str, Any]], settle: SettleFeatures) -> None:
        """Make the features of records in batches."""
        run_prefills(self, records, settle)

    def _each(self, prepared: Prepared, step: Step[Result]) -> list[Result | Failure]:
        """Run the model on the requests that could be prepared; one result for each request, in order."""
        rows = [row for row in range(len(prepared.requests)) if row not in prepared.failures]
        results: dict[int, Result | Failure] = dict(prepared.failures)
        if prepared.inputs is not None:
            ran = self._run([prepared.requests[row] for row in rows], prepared.inputs, step)
            results |= zip(rows, ran, strict=True)
        return [results[row] for row in range(len(prepared.requests))]

    def _run(self, requests: list[Request], inputs: dict[str, Any], step: Step[Result]) -> list[Result | Failure]:
        """Run the model; halve the batch when memory runs out, and find the record that the model rejects."""
        try:
            with self.seconds.timed("generate"):
                return list(step(requests, inputs))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            reason = self.refusal(error, len(requests))
        if len(requests) == 1:
            return [Failure(reason)]
        middle = len(requests) // 2
        halves = (requests[:middle], requests[middle:])
        return [result for half in halves for result in self._run(half, self._inputs(half), step)]

    def refusal(self, error: BaseException, size: int) -> str:
        """Return why a batch of this size failed; if memory ran out, make later batches half as large.

        Call it after the failed call is over, when the memory it held is free again.
        """
        reason = _first_line(error)
        if not _is_out_of_memory(error):
            return f"the model cannot run it: {reason}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size > 1:
            self.batch_size = max(1, size // 2)
            self.notice(f"out of memory with {size} rollouts in a batch: continuing with {self.batch_size}")
        return f"does not fit into memory alone: {reason}"

    @torch.inference_mode()
    def _complete(self, requests: list[Request], inputs: dict[str, Any]) -> list[Completion]:
        length = inputs["input_ids"].shape[1]
        keys = [NoiseKey(self.config.seed, r.record["id"], r.ratio, r.realization) for r in requests]
        noise = GumbelNoise(keys, self.temperature, length)
        # with a static cache decode steps are compiled, and would be again for the hooks of each batch
        asked = self.config.features and not self.model.generation_config.cache_implementation
        rows = [row for row, r in enumerate(requests) if asked and r.ratio == UNMASKED and r.realization == 0]
        with self._collecting(inputs, rows) as collector:
            output = self._generated(inputs, logits_processor=LogitsProcessorList([noise]))
        features = dict(zip(rows, self._features(requests, rows, collector), strict=True))
        return [self._completion(ids, features.get(row)) for row, ids in enumerate(output[:, length:].tolist())]

    @torch.inference_mode()
    def _prefill(self, requests: list[Request], inputs: dict[str, Any]) -> list[Features]:
        rows = range(len(requests))
        with self._collecting(inputs, rows) as collector:
            self._generated(inputs, max_new_tokens=1)  # positions and masks are then those of a rollout
        return self._features(requests, rows, collector)

    def _generated(self, inputs: Mapping[str, Any], **settings: Any) -> Int[Tensor, "batch position"]:
        return self.model.generate(**{name: self.moved(value) for name, value in inputs.items()}, **settings)

    def _collecting(
        self, inputs: Mapping[str, Any], rows: Sequence[int]
    ) -> AbstractContextManager[PrefillCollector | None]:
        """Read what the first forward inside shows of these rows; without rows nothing is attached to the model."""
        if not rows:
            return nullcontext()
        return collect_prefill(self.model, inputs["input_ids"], inputs.get("attention_mask"), rows, self._ends)

    def _features(
        self, requests: Sequence[Request], rows: Sequence[int], collector: PrefillCollector | None
    ) -> list[Features]:
        records = [requests[row].record for row in rows]
        shown = collector.shown() if collector is not None else []
        return [
            sample_features(record, self._inputs.first_image(record), seen)
            for record, seen in zip(records, shown, strict=True)
        ]

    def moved(self, value: Any) -> Any:
        """Return a value of the processor's output on the model's device, floating point in the model's dtype."""
        if not isinstance(value, torch.Tensor):
            return value
        floating = value.is_floating_point()
        return value.to(self.model.device, self.model.dtype if floating else None, non_blocking=True)

    def _completion(self, ids: list[int], features: Features | None) -> Completion:
        end = next((length for length, token in enumerate(ids) if token in self._ends), len(ids))
        tokens = ids[:end]
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return Completion(text, tokens, finish_state(text, "stop" if end < len(ids) else "length"), features)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:300] if lines else ''}"
