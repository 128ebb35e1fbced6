"""Attention masses of given completions: the model reads them after their prompts and generates nothing.

This is the simple way, one forward over prompt + completion for each. If completions of one prompt can share its
prefill, `hardsample.attention.shared_prefill` computes the same masses at lower cost.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hardsample.attention.interface import collect_attention_mass
from hardsample.attention.masses import MassCollector, SampleMasses
from hardsample.metrics.cmab import CmabConfig

_PREFIX_TYPES = {"paligemma"}
"""Families whose token types are 0 in the prefix, which has bidirectional attention, and 1 after it."""


def teacher_forced(
    inputs: Mapping[str, Any], completions: Sequence[Sequence[int]], pad_token_id: int, token_type: int = 0
) -> tuple[dict[str, Any], Tensor]:
    """Append completions to the prompts of a processor's output.

    Args:
        inputs: `input_ids` and, apart from images, tensors of the same shape (attention mask, token types).
        completions: token ids, without the end-of-sequence token.
        pad_token_id: pads the shorter ones on the right.
        token_type: of completion tokens, the same as `generate` uses; see `completion_type`.

    Returns:
        The inputs with prompt + completion, and the completion mask, bool (batch, longest completion), on the device of
        the prompts.
    """
    ids: Tensor = inputs["input_ids"]
    longest = max(len(tokens) for tokens in completions)
    added = torch.full((len(completions), longest), pad_token_id, dtype=ids.dtype)
    mask = torch.zeros((len(completions), longest), dtype=torch.bool)
    for row, tokens in enumerate(completions):
        added[row, : len(tokens)] = torch.tensor(tokens, dtype=ids.dtype)
        mask[row, : len(tokens)] = True
    mask = mask.to(ids.device)
    fed = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.shape != ids.shape:
            continue
        tail = {"input_ids": added, "attention_mask": mask}.get(name, torch.full_like(added, token_type))
        fed[name] = torch.cat([value, tail.to(value)], 1)
    fed.setdefault("attention_mask", torch.cat([torch.ones_like(ids), mask.to(ids)], 1))
    return fed, mask


def completion_type(model: Any) -> int:
    """Return the token type of completions: 0, text, except for prefix models."""
    return int(model.config.model_type in _PREFIX_TYPES)


def collecting(
    model: Any, fed: Mapping[str, Any], completion: Tensor, config: CmabConfig, first_token: int = 1
) -> AbstractContextManager[MassCollector]:
    """Collect the masses that the settings of CMAB ask for, for completions without the end-of-sequence token.

    Args:
        model: switched by `use_attention_mass`.
        fed: prompt + completion, from `teacher_forced`.
        completion: its completion mask.
        config: settings of CMAB.
        first_token: t of the first wanted token, see `collect_attention_mass`.
    """
    return collect_attention_mass(
        model,
        fed["input_ids"],
        completion,
        fed["attention_mask"],
        text=str(config.text),
        per_head=config.heads == "each",
        ends=(),
        first_token=first_token,
    )


def forced_masses(
    model: Any, inputs: Mapping[str, Any], completions: Sequence[Sequence[int]], config: CmabConfig, pad_token_id: int
) -> list[SampleMasses]:
    """Return the masses of one completion for each prompt, from one forward over all of them.

    Args:
        model: switched by `use_attention_mass`.
        inputs: the processor's output on the model's device, one row for each completion.
        completions: token ids, without the end-of-sequence token.
        config: settings of CMAB.
        pad_token_id: pads the shorter ones.

    Raises:
        AttentionMassError: the forward returns no masses.
    """
    fed, completion = teacher_forced(inputs, completions, pad_token_id, completion_type(model))
    with collecting(model, fed, completion, config) as collector:
        model(**fed, use_cache=False, logits_to_keep=1)
    masses = collector.masses
    return [masses.sample(row) for row in range(len(completions))]
