"""Rollouts by any server with OpenAI's interface (vLLM, SGLang, transformers serve …): a chat completion each.

Images are masked here, in source space, and sent as PNG data URIs. A rollout's seed is keyed by (run seed, sample id,
ratio, realization), as its mask is. The key is read from OPENAI_API_KEY and goes to the client alone.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import torch
from PIL import Image

from hardsample.engines.flight import Flight, Patience, Setback, SetbackError, Window
from hardsample.engines.image_workers import default_workers
from hardsample.engines.masking import MaskDraw, mask_images
from hardsample.engines.preparing import ImageCache, Pixels, Request, Seconds
from hardsample.engines.replies import Problem, UnreadableError, read_reply, said_by
from hardsample.engines.results import Completion, EngineError, Failure
from hardsample.engines.server_url import KEY_VARIABLE, checked_url, key_notice, server_key, without_key
from hardsample.kernels.keys import mask_key, ratio_units
from hardsample.kernels.ops import chosen

DEFAULT_NEW_TOKENS = 1024
PROBE_SECONDS = 5.0
NEUTRAL = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
"""Sampling settings that play no part in a score; many servers take others from the checkpoint if not told."""
_OVERLOADED = (408, 409, 429)
_PNG_LEVEL = 1
_MOST_SAID = 300


@dataclass
class OpenAIEngine:
    """Makes rollouts on a server.

    Attributes:
        base_url: such as http://localhost:8000/v1.
        model: its name there.
        seed: of masks and rollouts.
        temperature: T ≥ 0; 0 is greedy.
        max_new_tokens: longest completion; None is 1,024.
        mask_kind: `pixel`, `patch` or `rectangle`.
        max_pixels: images beyond it are refused.
        concurrency: the most requests in flight.
        request_timeout: how long one reply may take.
        retries: tries after the first, while the server answers other requests.
        server_timeout: how long a server that answers nothing is waited for.
        notice: is told what went another way than planned.

    Raises:
        EngineError: the openai package is missing.
        ValueError: the address is none, or holds a secret.
    """

    base_url: str
    model: str
    seed: int
    temperature: float
    max_new_tokens: int | None
    mask_kind: str
    max_pixels: int
    concurrency: int
    request_timeout: float
    retries: int
    server_timeout: float
    seconds: Seconds = field(default_factory=Seconds)
    notice: Callable[[str], None] = print

    def __post_init__(self) -> None:
        """Make the client."""
        try:
            import openai
        except ImportError as error:
            raise EngineError("a server needs the openai package: pip install 'hardsample[openai]'") from error
        self._openai = openai
        self.base_url = checked_url(self.base_url, "--base-url")
        if said := key_notice():
            self.notice(said)
        self.max_new_tokens = self.max_new_tokens or DEFAULT_NEW_TOKENS
        self._images = ImageCache(self.max_pixels)
        self._whole: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._optional: dict[str, Any] = {**NEUTRAL, "seed": True}
        self._length = "max_tokens"
        self._patience: Patience | None = None
        self._encoders = ThreadPoolExecutor(default_workers(), thread_name_prefix="images")
        self.tokens = {"prompt": 0, "completion": 0}
        """As the server counted them."""

    @property
    def sent(self) -> int:
        """Requests that were sent, tries again among them."""
        return self._patience.sent if self._patience else 0

    @property
    def tried_again(self) -> dict[str, int]:
        """Tries after the first, by what failed before."""
        return dict(self._patience.tried_again) if self._patience else {}

    @property
    def retried(self) -> int:
        """Tries after the first."""
        return sum(self.tried_again.values())

    @property
    def refusal(self) -> str:
        """Why the last request that failed for good did; empty if none has."""
        return self._patience.refusal if self._patience else ""

    def flight(self) -> Flight[Any, Completion | Failure]:
        """Where requests are started and their results come back; a context manager."""
        self._client = self._openai.AsyncOpenAI(
            base_url=self.base_url, api_key=server_key(), timeout=self.request_timeout, max_retries=0
        )
        window = Window(self.concurrency)
        self._patience = Patience(
            self.retries, self.server_timeout, self._answers, lambda text: self.notice(text), window
        )
        return Flight(self.rollout, window, self._client.close)

    async def rollout(self, request: Request) -> Completion | Failure:
        """Make one rollout.

        Raises:
            EngineError: the server refuses the key, does not know the model, is gone, or refuses everything.
        """
        assert self._patience is not None
        try:
            messages = await asyncio.get_running_loop().run_in_executor(self._encoders, self.messages, request)
        except Exception as error:  # noqa: BLE001 - a bad image raises anything, and must not sink the job
            return Failure(f"{type(error).__name__}: {without_key(str(error))}")
        seed = rollout_seed(self.seed, request)
        try:
            result = await self._patience.insist(lambda: self._ask(messages, seed))
        except _RefusedError as refused:
            self._patience.refused(str(refused))
            return Failure(str(refused))
        return Failure(result, of_record=False) if isinstance(result, str) else result

    def messages(self, request: Request) -> list[dict[str, Any]]:
        """A rollout's prompt as the interface takes it, with its masked images."""
        sample, whole = request.record["id"], not request.ratio
        if whole and (kept := self._whole.get(sample)) is not None:
            return kept
        with self.seconds.timed("decode"):
            images = self._images(request.record)
        key = mask_key(self.seed, sample)
        draws = [MaskDraw(request.ratio, request.realization, key, index) for index in range(len(images))]
        with self.seconds.timed("mask"):
            masked = images if whole else mask_images(list(images), draws, kind=self.mask_kind)
        with self.seconds.timed("processor"):
            made = chat_messages(request.record["prompt"], [png_uri(one) for one in masked])
        if whole:  # an unsolved sample is asked K times with the same image
            with self._lock:
                self._whole[sample] = made
                while len(self._whole) > self.concurrency:
                    del self._whole[next(iter(self._whole))]
        return made

    def backends(self) -> dict[str, str]:
        """Who did the work, for run.json."""
        masking = chosen(torch.empty((1, 1, 1, 16), dtype=torch.uint8))["mask_pixels"]
        return {"mask_pixels": masking, "server": self.base_url}

    def sampling(self) -> dict[str, Any]:
        """The optional settings of sampling that the server takes, and those it refused."""
        refused = [name for name in (*NEUTRAL, "seed") if name not in self._optional]
        return {"sent": sorted(self._optional), "refused": refused}

    async def _ask(self, messages: Any, seed: int) -> Completion:
        """One try.

        Raises:
            SetbackError: another try may help.
            _RefusedError: none does.
            EngineError: no request can succeed.
        """
        api, given, length = self._openai, dict(self._optional), self._length
        extra = {name: given[name] for name in ("top_k", "repetition_penalty") if name in given}
        options = {name: value for name, value in (("top_p", given.get("top_p")),) if value is not None}
        options |= {"seed": seed} if "seed" in given else {}
        options |= {length: self.max_new_tokens}
        try:
            reply = await self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, temperature=self.temperature, extra_body=extra, **options
            )
            result = self._read(json.loads(reply.http_response.content))
        except api.APIStatusError as error:
            said = said_by(error.body) or str(error)
            result = Problem(error.status_code, said, wait_s=retry_after(error.response.headers))
        except api.APITimeoutError:
            raise SetbackError(Setback("no reply in time", True)) from None
        except (api.APIError, json.JSONDecodeError, UnicodeDecodeError, UnreadableError) as error:
            lost = isinstance(error, api.APIConnectionError)
            reason = "no connection" if lost else "a reply that cannot be read"
            raise SetbackError(Setback(reason, False, lost=lost)) from None
        if isinstance(result, Completion):
            return result
        return await self._again(result, given, length, messages, seed)

    async def _again(
        self, problem: Problem, given: Mapping[str, Any], length: str, messages: Any, seed: int
    ) -> Completion:
        """Another try at once, where the server's error names what it does not take; else as `_ask` raises."""
        code, reason = problem.code, problem.reason
        if code in (401, 403):
            raise EngineError(f"{reason}: check {KEY_VARIABLE}")
        if code == 404:
            raise EngineError(await self._who_is_there(reason))
        if code in _OVERLOADED or code >= 500:
            words = without_key(problem.said)[:_MOST_SAID] if problem.body else ""
            raise SetbackError(Setback(reason, True, problem.wait_s, counts=code != 429, said=words))
        if self._adapt(given, length, problem.said):
            return await self._ask(messages, seed)
        raise _RefusedError(f"{reason}: {without_key(problem.said)}")

    def _read(self, reply: Any) -> Completion | Problem:
        """What a reply with status 200 says; its tokens are counted."""
        assert self.max_new_tokens is not None
        result = read_reply(reply, self.max_new_tokens)
        usage = reply.get("usage")
        for name in self.tokens:
            counted = usage.get(f"{name}_tokens") if isinstance(usage, Mapping) else None
            self.tokens[name] += counted if isinstance(counted, int) else 0
        return result

    def _adapt(self, given: Mapping[str, Any], length: str, text: str) -> bool:
        """Whether another request may be taken: without the settings that the server's error names."""
        if length == "max_tokens" and "max_completion_tokens" in text:
            self._length = "max_completion_tokens"
            return True
        named = [name for name in given if re.search(rf"\b{name}\b", text)]
        for name in named:
            if self._optional.pop(name, None) is not None:
                lost = "its rollouts cannot be repeated" if name == "seed" else "it stays as the server has it"
                self.notice(f"the server does not take {name}: {lost}")
        return bool(named)

    async def _answers(self) -> bool:
        """Whether the server answers anything but an error of its own."""
        try:
            await self._client.models.list(timeout=PROBE_SECONDS)
        except self._openai.APIStatusError as error:
            return error.status_code < 500
        except (self._openai.APIError, json.JSONDecodeError, AttributeError):
            return False
        return True

    async def _who_is_there(self, reason: str) -> str:
        names: list[str] = []
        with suppress(self._openai.APIError, json.JSONDecodeError, AttributeError, TypeError):
            names = [one.id async for one in self._client.models.list(timeout=PROBE_SECONDS)]
        there = f"it has {', '.join(map(repr, names[:5]))}" if names else "is the end of --base-url right (/v1)?"
        return f"{reason} for the model {self.model!r}: {there}"


class _RefusedError(Exception):
    """The server does not take this request, and will not."""


def rollout_seed(seed: int, request: Request) -> int:
    """The seed that a rollout is sent with, 0 … 2³¹ − 1."""
    parts = [seed, request.record["id"], ratio_units(request.ratio), request.realization]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=4, person=b"rollout").digest()
    return int.from_bytes(digest, "little") >> 1


def png_uri(pixels: Pixels) -> str:
    """An image, uint8 (height, width, 3), as a data URI that loses nothing."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", compress_level=_PNG_LEVEL)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def chat_messages(prompt: Sequence[Mapping[str, Any]], images: Sequence[str]) -> list[dict[str, Any]]:
    """A canonical prompt in the interface's form.

    Args:
        prompt: messages with content blocks of type image and text.
        images: a URI for each image block, in order.
    """
    left = iter(images)

    def block(one: Mapping[str, Any]) -> dict[str, Any]:
        if one["type"] == "image":
            return {"type": "image_url", "image_url": {"url": next(left)}}
        return {"type": "text", "text": one["text"]}

    return [{"role": one["role"], "content": [block(part) for part in one["content"]]} for one in prompt]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a reply asks to wait, of Retry-After as a number or a date; None if it does not."""
    value = headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
