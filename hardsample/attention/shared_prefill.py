"""Attention masses of several completions of one prompt, whose prefill they share.

Most of a teacher-forced forward is the prompt with its images, and that part is the same for every completion of a
sample. So a batch of prompts runs once and leaves its keys and values in a cache; the last position of each prompt is
the query that produces every first token, t = 1. Then the cache is repeated for the completions, and one short forward
of their tokens gives t = 2 … n:

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
"""Families with positions in three dimensions, of which a completion's token has its place + the prompt's delta."""
_FORWARD_TOKENS = 16_384
"""Most completion tokens in one forward, over all its rows; longer completions go in chunks."""


@dataclass(frozen=True)
class _Prefill:
    """What a batch of prompts leaves behind."""

    cache: DynamicCache
    ids: Int[Tensor, "prompt position"]
    attended: Int[Tensor, "prompt position"]
    deltas: Int[Tensor, "prompt 1"] | None
    """M-RoPE: a token's position is its place in the sequence + this."""
    masses: AttentionMasses
    """Of t = 1."""


def why_not_shared(model: Any) -> str | None:
    """Says why completions cannot share a prompt's prefill, in one sentence; None if they can.

    Args:
        model: one that has attention masses, see `why_not_attention_mass`.
    """
    name, config = model.config.model_type, model.config.get_text_config(decoder=True)
    if _mrope(model) is not None and name not in _MROPE:
        return f"{name} has M-RoPE positions of its own, which are known of {', '.join(sorted(_MROPE))} only"
    if _cache_argument(model) is None:
        return f"{name} takes no cache of keys and values"
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        return f"{name} has chunked attention, whose chunks a cache may cut"
    layers = DynamicCache(config=config).layers
    others = {type(layer).__name__ for layer in layers if type(layer) not in _REPEATABLE}
    if others:
        return f"{name} has layers whose cache cannot be repeated for each completion ({', '.join(sorted(others))})"
    if len(layers) not in (0, config.num_hidden_layers):
        return f"{name} has layers that share the cache of others"
    return None


def shared_masses(
    model: Any,
    inputs: Mapping[str, Any],
    completions: Sequence[Sequence[Sequence[int]]],
    config: CmabConfig,
    pad_token_id: int,
    batch_size: int,
) -> list[list[SampleMasses]]:
    """The masses of the completions of each prompt, from one prefill and short forwards.

    Beside the prompts' cache at most one of `batch_size` sequences is held.

    Args:
        model: switched by `use_attention_mass`; `why_not_shared` gives None.
        inputs: the processor's output on the model's device, one row for each prompt, padded on the left.
        completions: of each prompt, token ids without end-of-sequence, at least one.
        config: settings of CMAB.
        pad_token_id: fills the shorter completions.
        batch_size: most completions in one forward.

    Raises:
        AttentionMassError: a forward does not give masses.
    """
    prefill = _prefilled(model, inputs, config, pad_token_id)
    found = [[prefill.masses.sample(row)] * len(own) for row, own in enumerate(completions)]
    longer = [(row, place) for row, own in enumerate(completions) for place, one in enumerate(own) if len(one) > 1]
    longer.sort(key=lambda at: len(completions[at[0]][at[1]]))  # little padding
    for start in range(0, len(longer), batch_size):
        group = longer[start : start + batch_size]
        tokens = [completions[row][place] for row, place in group]
        rest = _continued(model, prefill, [row for row, _ in group], tokens, config, pad_token_id)
        for index, (row, place) in enumerate(group):
            found[row][place] = _joined(found[row][place], rest.sample(index))
    return found


def _prefilled(model: Any, inputs: Mapping[str, Any], config: CmabConfig, pad_token_id: int) -> _Prefill:
    """Runs the prompts. Any token in the place of the first one will do: its query, the last of the prompt, is fed."""
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
    """The masses of t = 2 … of completions, each of the prompt in a row of the prefill."""
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
                place = attended[:, :stop].cumsum(1)[:, start:] - 1
                positions["position_ids"] = (place + prefill.deltas[picked]).expand(3, -1, -1)
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
    """A cache of these rows; the one given stays as it is."""
    picked = copy.copy(cache)
    picked.layers = [copy.copy(layer) for layer in cache.layers]
    picked.batch_select_indices(rows)
    return picked


def _joined(first: SampleMasses, rest: SampleMasses) -> SampleMasses:
    image, text, sees_image, sees_text = (torch.cat(pair, -1) for pair in zip(first[:4], rest[:4], strict=True))
    return SampleMasses(image, text, sees_image, sees_text, first.image_tokens, first.text_tokens)


def _mrope(model: Any) -> Any:
    """The module that keeps what M-RoPE adds to a sequence's positions; None if there is none."""
    return next((one for one in model.modules() if hasattr(one, "rope_deltas")), None)


def _cache_argument(model: Any) -> str | None:
    """What the model's forward calls its cache: transformers has renamed it."""
    inner = text_model(model)
    known = () if inner is None else inspect.signature(inner.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), None)
