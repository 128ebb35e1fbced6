"""Attention masses of several completions of one prompt, whose prefill they share.

Most of a teacher-forced forward is the prompt with its images, which is the same for every completion of a sample. So
a batch of prompts runs once and leaves its keys and values in a cache; the last position of each prompt is the query
that produces the first token, t = 1. Then the cache is repeated for the completions, and one short forward over their
tokens gives t = 2 … n:

    prompt                       → cache, masses of t = 1
    cache × completions, c_1 … c_(n-1) → masses of t = 2 … n

A query sees the same keys either way, so the masses are those of `hardsample.attention.teacher_forcing` up to rounding.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hardsample.attention.interface import text_model
from hardsample.attention.masses import AttentionMasses, SampleMasses
from hardsample.attention.teacher_forcing import collecting, teacher_forced
from hardsample.metrics.cmab import CmabConfig

_REPEATABLE = {DynamicLayer, DynamicSlidingWindowLayer}
_MROPE = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"}
"""Families with three-dimensional positions: a completion token has its index + the prompt's delta in each."""
_FORWARD_TOKENS = 16_384
"""Most completion tokens in one forward, over all its rows; longer completions go in chunks."""


@dataclass(frozen=True)
class _Prefill:
    """The state that a batch of prompts leaves behind."""

    cache: DynamicCache
    ids: Int[Tensor, "prompt position"]
    attended: Int[Tensor, "prompt position"]
    deltas: Int[Tensor, "prompt 1"] | None
    """M-RoPE: a token's position is its index in the sequence + this."""
    masses: AttentionMasses
    """Of t = 1."""


def why_not_shared(model: Any) -> str | None:
    """Explain in one sentence why completions cannot share a prompt's prefill; return None if they can.

    Args:
        model: has attention masses, see `why_not_attention_mass`.
    """
    name, config = model.config.model_type, model.config.get_text_config(decoder=True)
    if _mrope(model) is not None and name not in _MROPE:
        return f"{name} has M-RoPE positions that are not supported (supported: {', '.join(sorted(_MROPE))})"
    if _cache_argument(model) is None:
        return f"{name} takes no cache of keys and values"
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        return f"{name} has chunked attention, and a cache may cut its chunks"
    layers = DynamicCache(config=config).layers
    unrepeatable = {type(layer).__name__ for layer in layers if type(layer) not in _REPEATABLE}
    if unrepeatable:
        kinds = ", ".join(sorted(unrepeatable))
        return f"{name} has layers whose cache cannot be repeated for each completion ({kinds})"
    if len(layers) not in (0, config.num_hidden_layers):
        return f"{name} has layers that share the cache of other layers"
    return None


def shared_masses(
    model: Any,
    inputs: Mapping[str, Any],
    completions: Sequence[Sequence[Sequence[int]]],
    config: CmabConfig,
    pad_token_id: int,
    batch_size: int,
) -> list[list[SampleMasses]]:
    """Return the masses of the completions of each prompt, from one prefill and short forwards.

    Apart from the prompts' cache, at most one cache of `batch_size` sequences is held.

    Args:
        model: switched by `use_attention_mass`, and `why_not_shared` returns None for it.
        inputs: the processor's output on the model's device, one row for each prompt, padded on the left.
        completions: of each prompt, token ids without the end-of-sequence token, at least one.
        config: settings of CMAB.
        pad_token_id: pads the shorter completions.
        batch_size: most completions in one forward.

    Raises:
        AttentionMassError: a forward returns no masses.
    """
    prefill = _prefilled(model, inputs, config, pad_token_id)
    masses = [[prefill.masses.sample(row)] * len(own) for row, own in enumerate(completions)]
    longer = [
        (row, index) for row, own in enumerate(completions) for index, tokens in enumerate(own) if len(tokens) > 1
    ]
    longer.sort(key=lambda pair: len(completions[pair[0]][pair[1]]))  # little padding
    for start in range(0, len(longer), batch_size):
        group = longer[start : start + batch_size]
        tokens = [completions[row][index] for row, index in group]
        rest = _continued(model, prefill, [row for row, _ in group], tokens, config, pad_token_id)
        for position, (row, index) in enumerate(group):
            masses[row][index] = _joined(masses[row][index], rest.sample(position))
    return masses


def _prefilled(model: Any, inputs: Mapping[str, Any], config: CmabConfig, pad_token_id: int) -> _Prefill:
    """Run the prompts, with a dummy first completion token: its query is the prompt's last position."""
    fed, completion = teacher_forced(inputs, [[pad_token_id]] * len(inputs["input_ids"]), pad_token_id)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    with collecting(model, fed, completion, config) as collector:
        model(**inputs, **{str(_cache_argument(model)): cache}, use_cache=True, logits_to_keep=1)
    positions = _mrope(model)
    return _Prefill(
        cache,
        inputs["input_ids"],
        fed["attention_mask"][:, :-1],
        None if positions is None else positions.rope_deltas,
        collector.masses,
    )


def _continued(
    model: Any,
    prefill: _Prefill,
    rows: Sequence[int],
    completions: Sequence[Sequence[int]],
    config: CmabConfig,
    pad_token_id: int,
) -> AttentionMasses:
    """Return the masses of t = 2 … of completions, each of them of the prompt in a row of the prefill."""
    picked = torch.tensor(rows, device=prefill.ids.device)
    prompts = {"input_ids": prefill.ids[picked], "attention_mask": prefill.attended[picked]}
    fed, completion = teacher_forced(prompts, completions, pad_token_id)
    ids, attended = fed["input_ids"], fed["attention_mask"]
    cache = _repeated(prefill.cache, picked)
    step = max(1, _FORWARD_TOKENS // len(rows))
    with collecting(model, fed, completion, config, first_token=2) as collector:
        for start in range(prefill.ids.shape[1], ids.shape[1] - 1, step):
            stop = min(start + step, ids.shape[1] - 1)  # the last token produces none
            positions = {}
            if prefill.deltas is not None:
                index = attended[:, :stop].cumsum(1)[:, start:] - 1
                positions["position_ids"] = (index + prefill.deltas[picked]).expand(3, -1, -1)
            model(
                input_ids=ids[:, start:stop],
                attention_mask=attended[:, :stop],
                **{str(_cache_argument(model)): cache},
                **positions,
                use_cache=True,
                logits_to_keep=1,
            )
    return collector.masses


def _repeated(cache: DynamicCache, rows: Int[Tensor, " sequence"]) -> DynamicCache:
    """Return a cache of these rows; the given cache is not changed."""
    picked = copy.copy(cache)
    picked.layers = [copy.copy(layer) for layer in cache.layers]
    picked.batch_select_indices(rows)
    return picked


def _joined(first: SampleMasses, rest: SampleMasses) -> SampleMasses:
    image, text, sees_image, sees_text = (torch.cat(pair, -1) for pair in zip(first[:4], rest[:4], strict=True))
    return SampleMasses(image, text, sees_image, sees_text, first.image_tokens, first.text_tokens)


def _mrope(model: Any) -> Any:
    """Return the module that keeps the M-RoPE position deltas; None if there is none."""
    return next((module for module in model.modules() if hasattr(module, "rope_deltas")), None)


def _cache_argument(model: Any) -> str | None:
    """Return the name of the forward's cache argument, which transformers has renamed."""
    inner = text_model(model)
    parameters = () if inner is None else inspect.signature(inner.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)
