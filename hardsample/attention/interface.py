"""The attention function `hardsample` of transformers: SDPA, which also gives attention masses while it is asked to.

    use_attention_mass(model)                    # the language model only; vision towers keep what they have
    with collect_attention_mass(model, input_ids, completion_mask, attention_mask) as collector:
        model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
    collector.masses                             # (layers, batch, tokens)

Who is asked is a context variable: it is the thread's own (two threads may share a model), ends with the context
whatever is raised in it, and holds for the one language model it names. The language model's forward hook, there only
while asked, says how many tokens the cache holds; nothing else is attached to the model.

With gradients the output comes from the very call that SDPA makes, and the masses from the completion's queries alone,
outside of autograd: gradients are SDPA's to the bit, and gradient checkpointing, which runs a layer again in the
backward and compares what it saves, finds the same whether or not masses are still asked for by then. Without
gradients one call of `attention_with_mass` gives both.
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
_asked: ContextVar[tuple[Any, MassCollector] | None] = ContextVar("hardsample_attention_mass", default=None)


def why_not_attention_mass(model: Any) -> str | None:
    """Says why a model has no attention masses, in one sentence; None if it has.

    Args:
        model: of transformers; not wrapped, such as for distributed training.
    """
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        return f"{type(model).__name__} is no model of transformers: give the model inside it"
    config = model.config.get_text_config(decoder=True)
    name = model.config.model_type
    if model.config.is_encoder_decoder or getattr(config, "cross_attention_layers", None):
        return (
            f"{name} sees its image in cross-attention layers, whose queries attend to image tokens only: no layer "
            "weighs image against text, so it has no attention balance"
        )
    others = set(getattr(config, "layer_types", None) or ()) - _SOFTMAX_LAYERS
    if others:
        return f"{name} has layers without attention probabilities ({', '.join(sorted(others))})"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{name} caps its attention scores (attn_logit_softcapping), which SDPA cannot"
    if _image_token(model.config) is None:
        return f"{name} has no image_token_id in its config: it is no vision-language model, or of an unknown kind"
    inner = text_model(model)
    if inner is None:
        return f"{name} has no language model with a config of its own"
    if not inner._supports_sdpa or not _uses_interface(inner):
        return f"{name} does not take its attention function from transformers' AttentionInterface, or not SDPA"
    return None


def use_attention_mass(model: Any) -> ExitStack:
    """Switches the language model of a vision-language model to the attention function `hardsample`.

    Args:
        model: of transformers, with any attention implementation.

    Returns:
        The way back: a context manager that restores what was there, also after an exception; or call its `close()`.

    Raises:
        AttentionMassError: the model has no attention masses; says why.
    """
    reason = why_not_attention_mass(model)
    if reason:
        raise AttentionMassError(reason)
    config = model.config.get_text_config(decoder=True)
    back = ExitStack()
    back.callback(setattr, config, "_attn_implementation", config._attn_implementation)
    config._attn_implementation = NAME
    return back


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
    """Collects the attention masses of completion tokens from the forwards that run inside it.

    The forwards may be one over all of `input_ids`, or a prefill and decode steps with a cache that together feed them.
    A forward that runs again overwrites. The masses are the same with and without gradients.

    Args:
        model: switched by `use_attention_mass`; of a trainer's wrapped model, the one inside.
        input_ids: prompt + completion, padded anywhere.
        completion_mask: nonzero where one of the last C positions is a completion token; C = T marks them among all
            positions, for batches where completions start at different ones.
        attention_mask: nonzero where a position is no padding; None if there is none.
        text: prompt text that counts: `all`, or `before_image` (variant `released` of CMAB).
        per_head: masses of each head instead of their average.
        columns: also keep the probabilities of each completion token on each prompt position; a batch of one only.
        ends: ids of end-of-sequence tokens, which are no t of ρ̄; those of the model's generation config if not given.
        first_token: t of the first completion token that counts, from 1; 2 where the prompts ran before, and with them
            the query that produces t = 1.
        backend: of `hardsample.kernels.ops.attention_with_mass`.

    Yields:
        The collector; its `masses` are there once the forward has run, inside the context and after it.

    Raises:
        AttentionMassError: the model is not switched, shapes do not fit, or a forward does not fit `input_ids`.
    """
    reason = why_not_attention_mass(model)
    if reason:
        raise AttentionMassError(reason)
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != NAME:
        raise AttentionMassError(
            f"the language model's attention is {config._attn_implementation!r}: call use_attention_mass(model) first"
        )
    image_token = _image_token(model.config)
    ends = _ends(model) if ends is None else ends
    layout = lay_out(
        input_ids,
        completion_mask,
        attention_mask,
        image_token,  # type: ignore[arg-type]
        text,
        ends,
        first_token,
    )
    collector = MassCollector(layout, config.num_hidden_layers, per_head, columns, backend)

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked = _asked.get()
        if asked is not None and asked[1] is collector:  # not for a forward of another thread
            cache = next((one for one in (*args, *kwargs.values()) if hasattr(one, "get_seq_length")), None)
            collector.begin(0 if cache is None else int(cache.get_seq_length()))

    with ExitStack() as stack:
        stack.callback(text_model(model).register_forward_pre_hook(begin, with_kwargs=True).remove)  # type: ignore[union-attr]
        stack.callback(_asked.reset, _asked.set((config, collector)))
        stack.callback(collector.begin, 0)  # lets go of the masks of the last forward
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
    """The function that transformers calls; exactly its SDPA, and the masses on the side while they are asked for.

    Args:
        module: the attention layer; without an integer `layer_idx` (vision towers) it is never measured.
        query: queries.
        key: keys, not repeated for grouped queries.
        value: values.
        attention_mask: True where a query may attend, or None: causal with several queries, all keys with one.
        dropout: of the probabilities; masses are those before it.
        scaling: factor of the scores.
        is_causal: overrides the layer's own.
        kwargs: passed on.

    Raises:
        AttentionMassError: masses are asked for that this call cannot give.
    """
    # a compiled graph never measures: dynamo knows no context variables
    asked = None if torch.compiler.is_compiling() else _asked.get()
    if asked is not None:
        output = _measured(asked, module, query, key, value, attention_mask, dropout, scaling, is_causal, kwargs)
        if output is not None:
            return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


def _measured(
    asked: tuple[Any, MassCollector],
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
    """Measures a layer of the language model that is asked; its output if that came along, None if SDPA is to run."""
    config, collector = asked
    layer = getattr(module, "layer_idx", None)
    first, stop = collector.span(q.shape[2])
    if not isinstance(layer, int) or getattr(module, "config", None) is not config or first == stop:
        return None
    if kwargs.get("position_bias") is not None:
        raise AttentionMassError("the layer adds a position bias to its scores, which the masses do not know")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if torch.is_autocast_enabled(q.device.type):  # as SDPA does
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    call = LayerCall(q, k, v, mask, bool(causal) and mask is None and q.shape[2] > 1, scale)
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return collector.measure(layer, call, attend=not differentiable and not dropout)


def text_model(model: torch.nn.Module) -> PreTrainedModel | None:
    """The language model inside a vision-language model; None if it has none with a config of its own."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    return next((one for one in model.modules() if isinstance(one, PreTrainedModel) and one.config is config), None)


def _uses_interface(text_model: PreTrainedModel) -> bool:
    """Whether the module that defines a language model asks the interface for its attention function."""
    names = {type(one).__module__ for one in text_model.modules() if hasattr(one, "layer_idx")}
    return any(hasattr(sys.modules.get(name), "ALL_ATTENTION_FUNCTIONS") for name in names)


def _image_token(config: Any) -> int | None:
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((one for one in found if one is not None), None)


def _ends(model: Any) -> set[int]:
    """End-of-sequence ids of the generation config, else of the language model's."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        ends = getattr(model.config.get_text_config(decoder=True), "eos_token_id", None)
    return {ends} if isinstance(ends, int) else set(ends or ())


AttentionInterface.register(NAME, hardsample_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
