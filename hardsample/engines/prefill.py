"""Features of samples from one prefill of their prompts: from a forward that happens anyway, or from one of their own.

with collect_prefill(model, input_ids, rows, ends) as collector:
    model.generate(...)                       # the first forward is read, nothing of it is changed
collector.shown()                             # one `Shown` for each of the rows

prefill_features(engine, records)             # one forward of each prompt with its whole image
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hardsample.engines.features import Features, State, image_numbers, pack, text_numbers
from hardsample.engines.preparing import preparing_thread
from hardsample.engines.protocol import Request, SettleFeatures
from hardsample.engines.results import Failure, Prepared
from hardsample.model_parts import image_token, text_model

if TYPE_CHECKING:
    from hardsample.engines.transformers import TransformersEngine

UNMASKED = 0.0
_LEAST_LOGPROB = -20.0
_TOP = 5


@dataclass(frozen=True)
class Shown:
    """What the prefill of one prompt shows."""

    numbers: dict[str, float] = field(default_factory=dict)
    """By names of `features.NUMBERS`."""
    last: State | None = None
    image: State | None = None


class PrefillCollector:
    """What the first forward of a batch of prompts shows of some of its rows.

    Results stay on the model's device until `shown` reads them, so that the model need not wait for the CPU.

    Args:
        input_ids: of the prompts, padded on the left.
        attention_mask: 1 where a position is no padding; None without padding.
        rows: that are read.
        image_token_id: id of image tokens; None if there are none.
        ends: ids of end-of-sequence tokens.
    """

    def __init__(
        self,
        input_ids: Int[Tensor, "batch position"],
        attention_mask: Int[Tensor, "batch position"] | None,
        rows: Sequence[int],
        image_token_id: int | None,
        ends: Collection[int],
    ) -> None:
        ids = input_ids[list(rows)].cpu()
        attended = torch.ones_like(ids) if attention_mask is None else attention_mask[list(rows)].cpu()
        self._shape, self._rows, self._ends = input_ids.shape, list(rows), sorted(ends)
        images = (ids == image_token_id) & attended.bool() if image_token_id is not None else torch.zeros_like(ids)
        self._positions = [row.nonzero()[:, 0] for row in images]
        self._tokens = attended.sum(1).tolist()
        self._last: list[Tensor] = []
        self._image: list[Tensor | None] = []
        self._distribution: Float[Tensor, "row number"] | None = None

    def read_states(self, _layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the states that enter the last layer; a forward pre-hook of it."""
        states = args[0] if args else kwargs.get("hidden_states")
        if self._last or not isinstance(states, Tensor) or states.shape[:2] != self._shape:
            return  # a decode step, or a family that replaces its image tokens by others
        for row, positions in zip(self._rows, self._positions, strict=True):
            self._last.append(states[row, -1].detach().float())
            image = states[row, positions.to(states.device)].detach().float().mean(0) if len(positions) else None
            self._image.append(image)

    def read_logits(self, _model: Any, _args: Any, output: Any) -> None:
        """Keep the distribution of the first answer token; a forward hook of the model."""
        logits = getattr(output, "logits", None)
        if self._distribution is None and logits is not None:
            rows = logits[self._rows, -1].detach()
            self._distribution = first_token_numbers(rows.float(), self._ends)

    def shown(self) -> list[Shown]:
        """Return what was seen of each row, in order; numbers and states that were not seen are left out."""
        names = ("entropy", "varentropy", "end_logprob", *(f"logprob_{rank + 1}" for rank in range(_TOP)))
        numbers = [{} for _ in self._rows] if self._distribution is None else self._distribution.tolist()
        results = []
        for index, values in enumerate(numbers):
            found = dict(zip(names, values, strict=True)) if values else {}
            found["prompt_tokens"] = float(np.log1p(self._tokens[index]))
            found["image_tokens"] = float(np.log1p(len(self._positions[index])))
            image = self._image[index] if self._image else None
            last = self._last[index].cpu().numpy() if self._last else None
            results.append(Shown(found, last, None if image is None else image.cpu().numpy()))
        return results


@contextmanager
def collect_prefill(
    model: Any,
    input_ids: Int[Tensor, "batch position"],
    attention_mask: Int[Tensor, "batch position"] | None,
    rows: Sequence[int],
    ends: Collection[int] = (),
) -> Iterator[PrefillCollector]:
    """Read the first forward inside; the forward itself is not changed.

    States come from models whose decoder layers are found; of the others only the distribution is read.

    Args:
        model: of transformers.
        input_ids: of the prompts, padded on the left.
        attention_mask: 1 where a position is no padding; None without padding.
        rows: of the batch that are read.
        ends: ids of end-of-sequence tokens.
    """
    collector = PrefillCollector(input_ids, attention_mask, rows, image_token(model.config), ends)
    hooks = [model.register_forward_hook(collector.read_logits)]
    layer = last_layer(model)
    if layer is not None:
        hooks.append(layer.register_forward_pre_hook(collector.read_states, with_kwargs=True))
    try:
        yield collector
    finally:
        for hook in hooks:
            hook.remove()


def last_layer(model: Any) -> torch.nn.Module | None:
    """Return the last decoder layer; None if it is not found, or if the image is only seen by cross-attention."""
    config = model.config.get_text_config(decoder=True)
    inner = text_model(model)
    if inner is None or model.config.is_encoder_decoder or getattr(config, "cross_attention_layers", None):
        return None
    candidates = (getattr(module, "layers", None) for module in inner.modules())
    lists = (layers for layers in candidates if isinstance(layers, torch.nn.ModuleList))
    return next((layers[-1] for layers in lists if len(layers) == config.num_hidden_layers), None)


def first_token_numbers(logits: Float[Tensor, "row vocabulary"], ends: Sequence[int]) -> Float[Tensor, "row number"]:
    """Return entropy, varentropy, log-probability of an end of sequence, and those of the five likeliest tokens.

    The numbers are those of `features.distribution_numbers`, on the model's device.
    """
    logs = torch.log_softmax(logits, -1)
    chances = logs.exp()
    finite = torch.where(chances > 0, logs, 0)  # 0 · log 0 = 0
    entropy = -(chances * finite).sum(-1)
    varentropy = (chances * finite.square()).sum(-1) - entropy.square()
    inside = [end for end in ends if end < logits.shape[-1]]
    end = torch.logsumexp(logs[:, inside], -1) if inside else torch.full_like(entropy, torch.nan)
    top = logs.topk(min(_TOP, logs.shape[-1])).values
    top = torch.nn.functional.pad(top, (0, _TOP - top.shape[-1]), value=torch.nan)
    columns = [entropy, varentropy.clamp(min=0), end.clamp(min=_LEAST_LOGPROB)]
    return torch.cat([torch.stack(columns, -1), top.clamp(min=_LEAST_LOGPROB)], -1)


def sample_features(
    record: Mapping[str, Any], first_image: UInt8[np.ndarray, "height width 3"] | None, shown: Shown
) -> Features:
    """Pack a sample's features: of its prefill, its text and its first image.

    Args:
        record: with `prompt` and `images`; `options` count where it has them.
        first_image: decoded; None without images.
        shown: of its prefill.
    """
    texts = [block["text"] or "" for turn in record["prompt"] for block in turn["content"] if block["type"] == "text"]
    numbers = text_numbers(sum(map(len, texts)), len(record.get("options") or ()), len(record["images"]))
    if first_image is not None:
        numbers |= image_numbers(first_image)
    return pack(numbers | shown.numbers, shown.last, shown.image)


def prefill_features(engine: TransformersEngine, records: Sequence[Mapping[str, Any]]) -> list[Features | Failure]:
    """Return the features of records, by one forward of their prompts with whole images.

    Args:
        engine: with the model loaded.
        records: one batch; it is halved when memory runs out.

    Returns:
        Features of each record, or why it has none.
    """
    return engine.prefill(_prepare(engine, records))


def run_prefills(engine: TransformersEngine, records: Iterable[Mapping[str, Any]], settle: SettleFeatures) -> None:
    """Make the features of records, batch by batch; while the model runs one, the images of the next are prepared.

    Args:
        engine: with the model loaded.
        records: in order.
        settle: gets the results of each batch.
    """
    left = iter(records)
    with preparing_thread(engine.model.device) as preparing:

        def start() -> tuple[list[Mapping[str, Any]], Future[Prepared]] | None:
            batch = list(islice(left, engine.batch_size))
            return (batch, preparing.submit(_prepare, engine, batch)) if batch else None

        ahead = start()
        while ahead:
            batch, future = ahead
            prepared = future.result()
            ahead = start()
            settle(list(zip(batch, engine.prefill(prepared), strict=True)))


def _prepare(engine: TransformersEngine, records: Sequence[Mapping[str, Any]]) -> Prepared:
    return engine.prepare([Request(record, UNMASKED, 0) for record in records])
