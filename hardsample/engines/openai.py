"""Rollouts by any server with OpenAI's interface (vLLM, SGLang, transformers serve …): a chat completion each.

Images are masked here, in source space, and sent as PNG data URIs. A rollout's seed is keyed by (run seed, sample id,
ratio, realization), as its mask is.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from hardsample.engines.client.chat import ChatClient
from hardsample.engines.client.retry import Refusal
from hardsample.engines.client.server_url import without_key
from hardsample.engines.features import Features, distribution_numbers
from hardsample.engines.image_workers import default_workers
from hardsample.engines.masking import MaskDraw, mask_images
from hardsample.engines.prefill import Shown, sample_features
from hardsample.engines.preparing import ImageCache, Pixels, Seconds
from hardsample.engines.protocol import Job, Request, RunInfo, Settings, SettleFeatures
from hardsample.engines.results import Completion, EngineError, Failure
from hardsample.kernels.keys import mask_key, ratio_units
from hardsample.kernels.ops import chosen

DEFAULT_NEW_TOKENS = 1024
NEUTRAL = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
"""Neutral sampling settings, always sent: many servers would otherwise take the checkpoint's."""
_LOGPROBS = {"logprobs": True, "top_logprobs": 20}
"""Optional settings of a request for the first token's distribution."""
_PNG_LEVEL = 1


class OpenAIEngine:
    """Rollouts by a model on a server.

    Args:
        model: its name there.
        config: settings of the job.
        notice: called with a sentence when something did not go as planned.

    Raises:
        EngineError: the openai package is missing.
        ConfigError: the address is not valid, or holds a secret.
    """

    shows_attention = False
    processor = None

    def __init__(self, model: str, config: Settings, notice: Callable[[str], None] = print) -> None:
        self.client = ChatClient(
            config.base_url,
            model,
            url_option="--base-url",
            request_timeout=config.request_timeout,
            retries=config.retries,
            server_timeout=config.server_timeout,
            concurrency=config.concurrency,
            notice=notice,
        )
        self.config, self._notice, self._said_without = config, notice, False
        self.max_new_tokens: int = config.max_new_tokens or DEFAULT_NEW_TOKENS
        self.seconds = Seconds()
        self._images = ImageCache(config.max_pixels)
        self._whole: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_config(cls, model: str, config: Settings, notice: Callable[[str], None] = print) -> Self:
        """Make the engine; nothing is sent."""
        return cls(model, config, notice)

    def __enter__(self) -> Self:
        """Start the threads that encode images."""
        self._encoders = ThreadPoolExecutor(default_workers(), thread_name_prefix="images")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads."""
        self._encoders.shutdown(cancel_futures=True)

    def identity(self) -> dict[str, Any]:
        """Return the server's name of the model: servers with the same name are taken for the same."""
        return {"engine": "openai", "model": self.client.model, "max_new_tokens": self.max_new_tokens}

    def run(self, job: Job) -> None:
        """Keep as many requests in flight as the server bears; settle each result at once.

        Raises:
            EngineError: the server rejects the key, does not know the model, is gone, or rejects every request.
        """
        with self.client.flight(self.rollout) as flight:
            while True:
                while (room := flight.room) > 0 and (requests := job.take(room)):
                    for request in requests:
                        flight.start(request, request)
                if not flight.under_way:
                    break
                waited = time.perf_counter()
                landed = flight.landed()
                self.seconds.generate += time.perf_counter() - waited
                job.settle(landed, flight.under_way, f"{flight.under_way} in flight, {self.client.retried} retries")
        if (refusal := self.client.patience.refusal) and not job.finished:
            raise EngineError(f"the server took no request: {refusal}")

    def run_info(self) -> RunInfo:
        """Return the server, the backend of the masks, and the requests and tokens of this run."""
        patience = self.client.patience
        masking = chosen(torch.empty((1, 1, 1, 16), dtype=torch.uint8))["mask_pixels"]
        return RunInfo(
            device=self.client.url,
            dtype=None,
            backends={"mask_pixels": masking, "server": self.client.url},
            seconds=dict(vars(self.seconds)),
            counts={
                "requests_this_run": patience.sent,
                "retries": dict(patience.tried_again),
                "tokens": dict(self.client.tokens),
            },
            sampling=self.sampling(),
        )

    def sampling(self) -> dict[str, Any]:
        """Return the optional sampling settings that the server takes, and those it rejected."""
        names = (*NEUTRAL, "seed")
        rejected = [name for name in names if name in self.client.rejected_settings]
        return {"sent": sorted(set(names) - set(rejected)), "refused": rejected}

    async def rollout(self, request: Request) -> Completion | Failure:
        """Make one rollout, within a flight.

        Raises:
            EngineError: the server rejects the key, does not know the model, is gone, or rejects every request.
        """
        try:
            messages = await asyncio.get_running_loop().run_in_executor(self._encoders, self.messages, request)
        except Exception as error:  # noqa: BLE001 - a bad image raises anything, and must not sink the job
            return Failure(f"{type(error).__name__}: {without_key(str(error))}")
        required = {"temperature": self.config.temperature}
        optional = NEUTRAL | {"seed": rollout_seed(self.config.seed, request)}
        result = await self.client.complete(messages, required, optional, self.max_new_tokens)
        return Failure(str(result), of_record=result.of_request) if isinstance(result, Refusal) else result

    def run_features(self, records: Iterable[Mapping[str, Any]], settle: SettleFeatures) -> None:
        """Ask for one token of each record and keep its distribution; a server shows no hidden states.

        Raises:
            EngineError: the server rejects the key, does not know the model, is gone, or rejects every request.
        """
        left = iter(records)
        with self.client.flight(self.first_token) as flight:
            while True:
                while flight.room > 0 and (record := next(left, None)) is not None:
                    flight.start(record, record)
                if not flight.under_way:
                    break
                settle(flight.landed())

    async def first_token(self, record: Mapping[str, Any]) -> Features | Failure:
        """Return the features of one record, within a flight.

        Raises:
            EngineError: as `run_features`.
        """
        loop, request = asyncio.get_running_loop(), Request(record, 0.0, 0)
        try:
            messages = await loop.run_in_executor(self._encoders, self.messages, request)
        except Exception as error:  # noqa: BLE001 - a bad image raises anything, and must not sink the job
            return Failure(f"{type(error).__name__}: {without_key(str(error))}")
        # at T = 1 the distribution is the model's own, whether a server reports it before or after the temperature
        result = await self.client.complete(messages, {"temperature": 1.0}, _LOGPROBS, 1)
        if isinstance(result, Refusal):
            return Failure(str(result), of_record=result.of_request)
        if not (result.first_logprobs or self._said_without):
            self._said_without = True
            self._notice("the server sends no log-probabilities: the first token's distribution is not known")
        numbers = distribution_numbers(np.array(result.first_logprobs)) if result.first_logprobs else {}
        return await loop.run_in_executor(self._encoders, self._packed, record, Shown(numbers))

    def _packed(self, record: Mapping[str, Any], shown: Shown) -> Features:
        first_image = next((image.numpy() for image in self._images(record)), None)
        return sample_features(record, first_image, shown)

    def messages(self, request: Request) -> list[dict[str, Any]]:
        """Return a rollout's prompt in the interface's form, with its masked images."""
        sample, whole = request.record["id"], not request.ratio
        if whole and (kept := self._whole.get(sample)) is not None:
            return kept
        with self.seconds.timed("decode"):
            images = self._images(request.record)
        key = mask_key(self.config.seed, sample)
        draws = [MaskDraw(request.ratio, request.realization, key, index) for index in range(len(images))]
        with self.seconds.timed("mask"):
            masked = images if whole else mask_images(list(images), draws, kind=self.config.mask_kind)
        with self.seconds.timed("processor"):
            made = chat_messages(request.record["prompt"], [png_uri(image) for image in masked])
        if whole:  # an unsolved sample is asked K times with the same image
            with self._lock:
                self._whole[sample] = made
                while len(self._whole) > self.config.concurrency:
                    del self._whole[next(iter(self._whole))]
        return made


def rollout_seed(seed: int, request: Request) -> int:
    """Return the seed that is sent with a rollout, 0 … 2³¹ − 1."""
    parts = [seed, request.record["id"], ratio_units(request.ratio), request.realization]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=4, person=b"rollout").digest()
    return int.from_bytes(digest, "little") >> 1


def png_uri(pixels: Pixels) -> str:
    """Encode an image, uint8 (height, width, 3), as a lossless data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", compress_level=_PNG_LEVEL)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat_messages(prompt: Sequence[Mapping[str, Any]], images: Sequence[str]) -> list[dict[str, Any]]:
    """Convert a canonical prompt to the interface's form.

    Args:
        prompt: messages with content blocks of type image and text.
        images: a URI for each image block, in order.
    """
    left = iter(images)

    def converted(block: Mapping[str, Any]) -> dict[str, Any]:
        if block["type"] == "image":
            return {"type": "image_url", "image_url": {"url": next(left)}}
        return {"type": "text", "text": block["text"]}

    return [{"role": turn["role"], "content": list(map(converted, turn["content"]))} for turn in prompt]
