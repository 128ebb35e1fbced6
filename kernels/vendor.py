"""Attention from a vendor's kernel that also returns the lse of each row: PyTorch's, or the flash-attn package's.

Both are differentiable. PyTorch's backward kernels also serve the output and lse of the fused kernel.
"""

from importlib.util import find_spec

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .reference_attention import visible_keys

_ALIGNMENT = 16  # rows of the bias of CUDA's memory-efficient kernel must start at multiples of this many values


def attention_with_lse(
    vendor: str,
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key dim"],
    mask: Bool[Tensor, "#batch #head query key"] | None,
    causal: bool,
    query_offset: int,
    scale: float,
) -> tuple[Float[Tensor, "batch head query dim"], Float[Tensor, "batch head query"]]:
    """Compute output and lse of plain attention.

    Args:
        vendor: `sdpa` (PyTorch) or `flash-attn`.
        q: queries.
        k: keys, not repeated for grouped queries.
        v: values.
        mask: True where a query may attend, or None.
        causal: row i sees the keys j ≤ i + query_offset only.
        query_offset: position of query 0 among the keys.
        scale: factor of the scores.

    Returns:
        Output, 0 in rows that see no key, and lse, which is undefined in such rows.

    Raises:
        ValueError: the vendor is unknown, or does not support this call.
    """
    if vendor == "flash-attn":
        return _flash_attn(q, k, v, mask, causal, query_offset, scale)
    if vendor != "sdpa":
        raise ValueError(f"attention is {vendor!r}, must be sdpa or flash-attn")
    queries, keys = q.shape[2], k.shape[2]
    aligned = causal and query_offset == 0 and mask is None
    mask = None if aligned else _joined(mask, causal, query_offset, queries, keys, q.device)
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v))
    aten = torch.ops.aten
    if q.device.type == "cpu":
        bias = None if mask is None else _bias(mask, q.dtype)
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, aligned, attn_mask=bias, scale=scale)
    if _takes_flash(q, k, mask, aligned):
        output, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, aligned, scale=scale)
        return output, lse
    group = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(group, 1) if group > 1 else tensor for tensor in (k, v))
    bias = None if mask is None else _padded_bias(mask, q, keys)
    output, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, aligned, scale=scale)
    if mask is not None:  # a row without a visible key: the kernel's output is undefined
        output = output.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return output, lse[:, :, :queries]


def attention_backward(
    grad: Float[Tensor, "batch head query dim"],
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key dim"],
    output: Float[Tensor, "batch head query dim"],
    lse: Float[Tensor, "batch head query"],
    mask: Bool[Tensor, "#batch #head query key"] | None,
    causal: bool,
    query_offset: int,
    scale: float,
) -> tuple[
    Float[Tensor, "batch head query dim"],
    Float[Tensor, "batch kv_head key dim"],
    Float[Tensor, "batch kv_head key dim"],
]:
    """Return the gradients of q, k and v by PyTorch's kernels, from an output and lse that any kernel computed.

    The arguments are those of `reference_attention.attention_backward`.
    """
    queries, keys = q.shape[2], k.shape[2]
    aligned = causal and query_offset == 0 and mask is None
    mask = None if aligned else _joined(mask, causal, query_offset, queries, keys, q.device)
    if mask is not None:
        lse = lse.masked_fill(~mask.any(-1), 0.0)
    grad, output = grad.contiguous(), output.contiguous()
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v))
    aten = torch.ops.aten
    if q.device.type == "cpu":
        bias = None if mask is None else _bias(mask, q.dtype)
        arguments = (grad, q, k, v, output, lse, 0.0, aligned)
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(*arguments, attn_mask=bias, scale=scale)
        return tuple(tensor.contiguous() for tensor in gradients)
    zero = torch.zeros((), dtype=torch.int64, device=q.device)
    if _takes_flash(q, k, mask, aligned):
        gradients = aten._scaled_dot_product_flash_attention_backward(
            *(grad, q, k, v, output, lse, None, None, queries, keys, 0.0, aligned, zero, zero), scale=scale
        )
        return tuple(tensor.contiguous() for tensor in gradients)
    group = q.shape[1] // k.shape[1]
    repeated = [tensor.repeat_interleave(group, 1) if group > 1 else tensor for tensor in (k, v)]
    bias = None if mask is None else _padded_bias(mask, q, keys)
    padded = torch.nn.functional.pad(lse, (0, -queries % 32))
    grad_q, grad_k, grad_v, _ = aten._scaled_dot_product_efficient_attention_backward(
        *(grad, q, *repeated, bias, output, padded, zero, zero, 0.0, [True, True, True, False], aligned), scale=scale
    )
    if group > 1:
        grad_k, grad_v = (tensor.unflatten(1, (-1, group)).sum(2) for tensor in (grad_k, grad_v))
    return grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()


def _joined(
    mask: Tensor | None, causal: bool, query_offset: int, queries: int, keys: int, device: torch.device
) -> Tensor | None:
    """Return mask and causal order as one four-dimensional mask."""
    visible = visible_keys(mask, causal, query_offset, (0, queries), keys, device)
    return None if visible is None else visible.view((1,) * (4 - visible.ndim) + tuple(visible.shape))


def _takes_flash(q: Tensor, k: Tensor, mask: Tensor | None, aligned: bool) -> bool:
    """Return whether CUDA's flash kernel supports this call: no mask, and causal rows aligned to the last key."""
    return mask is None and (not aligned or q.shape[2] == k.shape[2]) and q.dtype != torch.float32


def _padded_bias(mask: Tensor, q: Tensor, keys: int) -> Tensor:
    """Return the bias of CUDA's memory-efficient kernel, (B, H, Tq, Tk), with rows at aligned addresses."""
    padded = torch.nn.functional.pad(mask, (0, -keys % _ALIGNMENT))
    return _bias(padded, q.dtype)[..., :keys].expand(*q.shape[:3], keys)


def _bias(mask: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Return 0 where a query may attend, −∞ elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _flash_attn(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, query_offset: int, scale: float
) -> tuple[Tensor, Tensor]:
    reason = why_not_flash(q)
    if reason is None and mask is not None:
        reason = "it does not support a boolean mask"
    if reason is None and causal and query_offset != k.shape[2] - q.shape[2]:
        reason = f"it aligns causal rows to the last key (query_offset {k.shape[2] - q.shape[2]}), not {query_offset}"
    if reason:
        raise ValueError(f"flash-attn does not support this call: {reason}")
    from flash_attn import flash_attn_func

    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    output, lse, _ = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal, return_attn_probs=True)
    return output.transpose(1, 2), lse


def why_not_sdpa(q: Tensor) -> str | None:
    """Return why PyTorch's attention returns no lse for this tensor; None if it does."""
    if q.device.type == "cpu":
        return None
    if q.device.type != "cuda":
        return f"PyTorch returns no lse on {q.device.type}"
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"PyTorch returns no lse for {q.dtype} on CUDA"
    return (
        None
        if q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
        else f"head dim {q.shape[-1]} is not a multiple of 8 up to 256"
    )


def why_not_flash(q: Tensor) -> str | None:
    """Return why the flash-attn package cannot run on this tensor; None if it can."""
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed (pip install hardsample[flash])"
    if not q.is_cuda:
        return f"flash-attn runs on CUDA devices, and this is {q.device}"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "flash-attn needs compute capability 8.0 or higher"
    return None if q.dtype in (torch.float16, torch.bfloat16) else f"flash-attn does not support {q.dtype}"
