"""The attention function `hardsample` for transformers: SDPA that also returns attention masses on request.

    use_attention_mass(model)                    # the language model only; vision towers are not changed
    with collect_attention_mass(model, input_ids, completion_mask, attention_mask) as collector:
        model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
    collector.masses                             # (layers, batch, tokens)

The request is a context variable: it is local to the thread (two threads may share a model), it ends with the context
even if an exception is raised, and it applies to one language model only. While masses are requested, a forward hook on
the language model reports how many tokens the cache holds; nothing else is attached to the model.

With gradients the output comes from SDPA itself, and the masses are computed from the completion's queries alone,
outside of autograd. So gradients equal SDPA's bit for bit, and gradient checkpointing, which runs a layer again in the
backward and compares the saved tensors, sees the same whether or not masses are still requested. Without gradients one
call of `attention_with_mass` computes both.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hardsample.attention.masses import AttentionMasses, LayerCall, MassCollector
from hardsample.attention.prompt_layout import AttentionMassError, lay_out
from hardsample.model_parts import image_token, text_model

__all__ = [
    "NAME",
    "AttentionMassError",
    "AttentionMasses",
    "MassCollector",
    "collect_attention_mass",
    "text_model",
    "use_attention_mass",
    "why_not_attention_mass",
]

NAME = "hardsample"
"""Name of the attention implementation."""

_SOFTMAX_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_request: ContextVar[tuple[Any, MassCollector] | None] = ContextVar("hardsample_attention_mass", default=None)


def why_not_attention_mass(model: Any) -> str | None:
    """Explain in one sentence why a model has no attention masses; return None if it has.

    Args:
        model: a transformers model, unwrapped (such as from a distributed wrapper).
    """
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        return f"{type(model).__name__} is not a transformers model: give the model inside it"
    config = model.config.get_text_config(decoder=True)
    name = model.config.model_type
    if model.config.is_encoder_decoder or getattr(config, "cross_attention_layers", None):
        return (
            f"{name} sees its image in cross-attention layers, whose queries attend to image tokens only: no layer "
            "attends to image and text together, so it has no attention balance"
        )
    unsupported = set(getattr(config, "layer_types", None) or ()) - _SOFTMAX_LAYERS
    if unsupported:
        return f"{name} has layers without attention probabilities ({', '.join(sorted(unsupported))})"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{name} caps its attention scores (attn_logit_softcapping), which SDPA does not support"
    if image_token(model.config) is None:
        return f"{name} has no image_token_id in its config: it is not a vision-language model, or an unsupported one"
    inner = text_model(model)
    if inner is None:
        return f"{name} has no language model with a config of its own"
    if not inner._supports_sdpa or not _uses_interface(inner):
        return f"{name} does not use transformers' AttentionInterface, or does not support SDPA"
    return None


def use_attention_mass(model: Any) -> ExitStack:
    """Switch the language model of a vision-language model to the attention function `hardsample`.

    Args:
        model: a transformers model, with any attention implementation.

    Returns:
        A context manager that restores the previous attention, also after an exception; or call its `close()`.

    Raises:
        AttentionMassError: the model has no attention masses; the message says why.
    """
    reason = why_not_attention_mass(model)
    if reason:
        raise AttentionMassError(reason)
    config = model.config.get_text_config(decoder=True)
    restore = ExitStack()
    restore.callback(setattr, config, "_attn_implementation", config._attn_implementation)
    config._attn_implementation = NAME
    return restore


@contextmanager
def collect_attention_mass(
    model: Any,
    input_ids: Int[Tensor, "batch position"],
    completion_mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"],
    attention_mask: Int[Tensor, "batch position"] | None = None,
    *,
    text: str = "all",
    per_head: bool = False,
    columns: bool = False,
    ends: Collection[int] | None = None,
    first_token: int = 1,
    backend: str | None = None,
) -> Iterator[MassCollector]:
    """Collect the attention masses of completion tokens from the forwards that run inside it.

    Run one forward over all of `input_ids`, or a prefill and decode steps with a cache that together cover them. A
    forward that runs again overwrites its masses. The masses are the same with and without gradients.

    Args:
        model: switched by `use_attention_mass`; unwrap the model of a trainer first.
        input_ids: prompt + completion, padded anywhere.
        completion_mask: nonzero where one of the last C positions is a completion token; C = T marks them among all
            positions, for batches where completions start at different ones.
        attention_mask: nonzero where a position is not padding; None if there is none.
        text: prompt text that counts: `all`, or `before_image` (variant `released` of CMAB).
        per_head: masses of each head instead of their average.
        columns: also keep the probabilities of each completion token on each prompt position, for a batch of one.
        ends: ids of end-of-sequence tokens, which are left out of ρ̄; default: those of the generation config.
        first_token: t of the first completion token that counts, from 1; 2 if the prompts, and with them the query that
            produces t = 1, ran before.
        backend: of `hardsample.kernels.ops.attention_with_mass`.

    Yields:
        The collector; its `masses` are available once the forward has run, inside the context and after it.

    Raises:
        AttentionMassError: the model is not switched, shapes do not match, or a forward does not match `input_ids`.
    """
    reason = why_not_attention_mass(model)
    if reason:
        raise AttentionMassError(reason)
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != NAME:
        raise AttentionMassError(
            f"the language model's attention is {config._attn_implementation!r}: call use_attention_mass(model) first"
        )
    token = image_token(model.config)
    ends = _ends(model) if ends is None else ends
    layout = lay_out(
        input_ids,
        completion_mask,
        attention_mask,
        token,  # type: ignore[arg-type]
        text,
        ends,
        first_token,
    )
    collector = MassCollector(layout, config.num_hidden_layers, per_head, columns, backend)

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        request = _request.get()
        if request is not None and request[1] is collector:  # not for a forward of another thread
            arguments = (*args, *kwargs.values())
            cache = next((argument for argument in arguments if hasattr(argument, "get_seq_length")), None)
            collector.begin(0 if cache is None else int(cache.get_seq_length()))

    with ExitStack() as stack:
        stack.callback(text_model(model).register_forward_pre_hook(begin, with_kwargs=True).remove)  # type: ignore[union-attr]
        stack.callback(_request.reset, _request.set((config, collector)))
        stack.callback(collector.begin, 0)  # releases the masks of the last forward
        yield collector


def hardsample_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key dim"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head dim"], None]:
    """Compute attention exactly as transformers' SDPA does, and collect the masses while they are requested.

    Args:
        module: the attention layer; without an integer `layer_idx` (vision towers) it is never measured.
        query: queries.
        key: keys, not repeated for grouped queries.
        value: values.
        attention_mask: True where a query may attend, or None: causal with several queries, all keys with one.
        dropout: of the probabilities; masses are those before it.
        scaling: factor of the scores.
        is_causal: overrides the layer's own.
        kwargs: passed to SDPA.

    Raises:
        AttentionMassError: masses are requested that this call cannot give.
    """
    # a compiled graph never measures: dynamo does not support context variables
    request = None if torch.compiler.is_compiling() else _request.get()
    if request is not None:
        output = _measured(request, module, query, key, value, attention_mask, dropout, scaling, is_causal, kwargs)
        if output is not None:
            return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


def _measured(
    request: tuple[Any, MassCollector],
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float | None,
    is_causal: bool | None,
    kwargs: dict[str, Any],
) -> Tensor | None:
    """Measure a layer of the requested language model; return its output, or None if SDPA is to compute it."""
    config, collector = request
    layer = getattr(module, "layer_idx", None)
    first, stop = collector.span(q.shape[2])
    if not isinstance(layer, int) or getattr(module, "config", None) is not config or first == stop:
        return None
    if kwargs.get("position_bias") is not None:
        raise AttentionMassError("the layer adds a position bias to its scores, which is not supported")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if torch.is_autocast_enabled(q.device.type):  # as SDPA does
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    call = LayerCall(q, k, v, mask, bool(causal) and mask is None and q.shape[2] > 1, scale)
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return collector.measure(layer, call, attend=not differentiable and not dropout)


def _uses_interface(text_model: PreTrainedModel) -> bool:
    """Return whether the module that defines a language model takes its attention from the interface."""
    names = {type(module).__module__ for module in text_model.modules() if hasattr(module, "layer_idx")}
    return any(hasattr(sys.modules.get(name), "ALL_ATTENTION_FUNCTIONS") for name in names)


def _ends(model: Any) -> set[int]:
    """Return the end-of-sequence ids of the generation config, or else of the language model's config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        ends = getattr(model.config.get_text_config(decoder=True), "eos_token_id", None)
    return {ends} if isinstance(ends, int) else set(ends or ())


AttentionInterface.register(NAME, hardsample_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
