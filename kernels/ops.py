"""The public ops of the kernels: `mask_pixels`, `attention_with_mass`, and the choice of their backends.

Each op is a `torch.library` custom op with a fake, so it can be traced and compiled; its body passes the call to a
backend from the table at the end of this file. Every backend is tested against the PyTorch reference.
"""

from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8, Int64, Shaped
from torch import Tensor

from . import native
from .backends import Backend, BackendError, choose, names, reasons, register
from .keys import Key
from .reference_attention import IMAGE, OTHER, TEXT, visible_keys
from .variants import fill_values, geometry_of, variant_table
from .vendor import attention_with_lse, why_not_flash, why_not_sdpa

__all__ = [
    "IMAGE",
    "OTHER",
    "TEXT",
    "AttentionMass",
    "BackendError",
    "MassPlan",
    "attention_with_mass",
    "backends",
    "chosen",
    "mask_pixels",
    "plan_mass",
]


def mask_pixels(
    images: Shaped[Tensor, "*image"],
    ratios: Sequence[float | Fraction],
    realizations: Sequence[int],
    keys: Sequence[Key],
    *,
    fill: float | Sequence[float] = 0.0,
    kind: str = "pixel",
    layout: str = "hwc",
    image_index: int | Sequence[int] = 0,
    out: Shaped[Tensor, "variants *image"] | None = None,
    grid_thw: Sequence[int] | None = None,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
    backend: str | None = None,
) -> Shaped[Tensor, "variants *image"]:
    """Mask one image, or one image for each variant, with each (ratio, realization, key), in one pass.

    Layouts, for one image:

        hwc      (H, W, C), as images are decoded: uint8 in `source` space
        chw      (C, H, W), as image processors give it: fp32, fp16 or bf16
        patches  (gh·gw, C·T·p·p), Qwen2-VL's pixel_values: rows are p × p patches, the m × m patches that the model
                 merges next to each other (order gh/m, gw/m, m, m), features in the order channel, frame, row, column
                 with the frame repeated T times; the masked space has H = gh·p and W = gw·p pixels

    Args:
        images: one image, or a stack of images of one size: the dimensions of the layout with one more in front, of
            size 1 or len(ratios). Any dtype that holds the fill values.
        ratios: λ of each variant, 0 … 1.
        realizations: k of each variant.
        keys: Philox key of each variant, see `hardsample.kernels.keys.mask_key`.
        fill: value that masked pixels take: one for all channels or one a channel, in the images' own unit (black is
            0 in uint8 and (0 − mean) / std after normalization). Rounded to fp32, then to the images' dtype.
        kind: `pixel`, `patch` (cells of 14 × 14 pixels) or `rectangle`.
        layout: `hwc`, `chw` or `patches`.
        image_index: index of the image in its record, for all variants or for each.
        out: contiguous buffer for the result, for callers that mask many images: the first touch of new memory costs
            far more than masking.
        grid_thw: (1, gh, gw) of the image, for layout `patches` only.
        patch_size: p, pixels (layout `patches`).
        merge_size: m, patches (layout `patches`).
        temporal_patch_size: T, frames (layout `patches`).
        backend: `cpp`, `triton`, `cuda` or `reference`; default: the fastest that can run. All give the same bits.

    Returns:
        The masked variants, (len(ratios), *shape of one image), dtype and device of the images; `out` if given.

    Raises:
        ValueError: shapes, lengths, kind, layout or a value are invalid; the message names it.
        BackendError: the named backend cannot run here.
    """
    count = len(ratios)
    dims = 2 if layout == "patches" else 3
    if images.ndim == dims:
        images = images.unsqueeze(0)
    if images.ndim != dims + 1 or images.shape[0] not in (1, count):
        raise ValueError(
            f"images have shape {tuple(images.shape)}: layout {layout!r} takes one image ({dims} dimensions), "
            f"or a stack of 1 or {count} (one a variant)"
        )
    geometry = geometry_of(images.shape[1:], layout, grid_thw, patch_size, merge_size, temporal_patch_size)
    sources = range(count) if images.shape[0] == count else [0] * count
    variants = variant_table(geometry, ratios, realizations, keys, image_index, kind, sources)
    values = fill_values(fill, geometry.channels, images.dtype)
    shape = (count, *images.shape[1:])
    if out is None:
        out = torch.empty(shape, dtype=images.dtype, device=images.device)
    elif (out.shape, out.dtype, out.device) != (torch.Size(shape), images.dtype, images.device):
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}, must be {shape} {images.dtype} on {images.device}"
        )
    elif not out.is_contiguous():
        raise ValueError("out is not contiguous: give a contiguous buffer")
    if count:
        _mask_pixels(images.contiguous(), variants, values, kind, layout, list(geometry), backend or "", out)
    return out


@torch.library.custom_op("hardsample::mask_pixels", mutates_args=("out",))
def _mask_pixels(
    images: Tensor,
    variants: Tensor,
    fill: list[float],
    kind: str,
    layout: str,
    geometry: list[int],
    backend: str,
    out: Tensor,
) -> None:
    choose("mask_pixels", images, backend).run(images, variants, fill, kind, layout, geometry, out)


@_mask_pixels.register_fake
def _(
    images: Tensor,
    variants: Tensor,
    fill: list[float],
    kind: str,
    layout: str,
    geometry: list[int],
    backend: str,
    out: Tensor,
) -> None:
    torch._check(out.shape[1:] == images.shape[1:])
    torch._check(out.shape[0] == variants.shape[0])


class AttentionMass(NamedTuple):
    """Result of `attention_with_mass`; the masses and lse are not differentiable."""

    output: Float[Tensor, "batch head query dim"]
    image: Float[Tensor, "batch *head row"]
    """Σ of the attention probabilities over image keys, for each row of the range."""
    text: Float[Tensor, "batch *head row"]
    """The same over the text keys of the prompt."""
    lse: Float[Tensor, "batch head query"]
    """log Σ_j exp s(i, j), fp32; undefined for rows that see no key."""


class MassPlan(NamedTuple):
    """Which two of the three kinds of keys are summed, and their positions; made once for all layers of a forward."""

    kinds: Int8[Tensor, "batch key"]
    columns: Int[Tensor, "batch key"]
    """Key positions in ascending order: of the smallest kind, then the next, then the third."""
    counts: Int[Tensor, "batch 2"]
    order: Int64[Tensor, "batch 3"]
    """The kinds by number of keys, fewest first; the mass of the last follows from the others."""


def plan_mass(kinds: Int8[Tensor, "batch key"]) -> MassPlan:
    """Find the two kinds with the fewest keys for each row of the batch, without a device synchronization.

    Args:
        kinds: OTHER, IMAGE or TEXT for each key.
    """
    sizes = torch.stack([(kinds == kind).sum(1) for kind in (OTHER, IMAGE, TEXT)], 1)
    order = sizes.argsort(dim=1, stable=True)
    rank = order.argsort(1).gather(1, kinds.long())
    columns = rank.argsort(dim=1, stable=True)
    return MassPlan(kinds, columns.int(), sizes.gather(1, order[:, :2]).int(), order)


def attention_with_mass(
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key dim"],
    kinds: Int8[Tensor, "batch key"],
    *,
    mask: Bool[Tensor, "#batch #head query key"] | None = None,
    causal: bool = False,
    query_offset: int = 0,
    scale: float | None = None,
    rows: tuple[int, int] | None = None,
    per_head: bool = False,
    plan: MassPlan | None = None,
    backend: str | None = None,
) -> AttentionMass:
    """Compute attention, and how much of each row's probability lies on image keys and on text keys.

        A(i, j) = exp(scale · q_i · k_j − lse_i);  image_i = Σ_{j image} A(i, j);  text_i = Σ_{j prompt text} A(i, j)

    The full matrix A is never materialized. Gradients of q, k and v are those of plain attention.

    Args:
        q: queries, (B, H, Tq, D).
        k: keys, (B, H / g, Tk, D): not repeated for grouped queries.
        v: values, like k.
        kinds: int8 (B, Tk): IMAGE, TEXT or OTHER for each key.
        mask: bool, True where a query may attend, or None; combined with `causal` by logical and.
        causal: row i sees the keys j ≤ i + query_offset only.
        query_offset: position of query 0 among the keys (0: aligned top-left, as transformers does; Tk − Tq: bottom-
            right). Matters for `causal` only.
        scale: factor of the scores; 1 / √D if not given.
        rows: (first, last + 1) of the rows whose masses are wanted; default: all.
        per_head: return masses of each head instead of their average.
        plan: `plan_mass(kinds)`, if already computed.
        backend: `sdpa+M` (PyTorch's attention, whose lse goes to a mass-only kernel M: `cpp`, `triton`, `cuda` or
            `reference`), `flash-attn+M` (the flash-attn package instead), `triton` (both in one kernel) or `reference`.

    Returns:
        output (B, H, Tq, D), masses (B, rows), or (B, H, rows) per head, in fp32, and lse (B, H, Tq). A row that sees
        no key has output and masses 0.

    Raises:
        ValueError: shapes, dtypes or the range are invalid; the message names them.
        BackendError: the named backend cannot run here.
    """
    start, stop = rows if rows is not None else (0, q.shape[2])
    _check_attention(q, k, v, kinds, mask, start, stop)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    name = backend or _default_attention(q.device, q.dtype, q.shape[-1])
    if "+" not in name:
        arguments = (mask, causal, query_offset, scale, start, stop, name)
        output, mass, lse = torch.ops.hardsample.fused_attention(q, k, v, kinds, *arguments)
        image, text = mass.detach().unbind(-1)
    else:
        vendor, _, kernel = name.partition("+")
        output, lse = attention_with_lse(vendor, q, k, v, mask, causal, query_offset, scale)
        lse = lse.detach()
        plan = plan or plan_mass(kinds)
        mass = _attention_mass(
            q.detach(),
            k.detach(),
            lse,
            plan.columns,
            plan.counts,
            mask,
            causal,
            query_offset,
            scale,
            start,
            stop,
            kernel,
        )
        visible = visible_keys(mask, causal, query_offset, (start, stop), k.shape[2], q.device)
        image, text = _all_kinds(mass, plan.order, None if visible is None else visible.any(-1))
    if not per_head:
        image, text = image.mean(1), text.mean(1)
    return AttentionMass(output, image, text, lse.detach())


def _all_kinds(
    mass: Float[Tensor, "batch head row 2"],
    order: Int64[Tensor, "batch 3"],
    sees: Bool[Tensor, "#batch #head row"] | None,
) -> tuple[Float[Tensor, "batch head row"], Float[Tensor, "batch head row"]]:
    """Return image and text masses from the two computed ones: the third is the rest up to 1 (0 for blind rows)."""
    rest = (1 if sees is None else sees.to(mass.dtype)) - mass.sum(-1)
    masses = torch.cat([mass, rest.clamp(min=0)[..., None]], -1)
    rank = order.argsort(1)[:, None, None, :].expand(masses.shape)
    by_kind = masses.gather(-1, rank)
    return by_kind[..., IMAGE], by_kind[..., TEXT]


def _check_attention(
    q: Tensor, k: Tensor, v: Tensor, kinds: Tensor, mask: Tensor | None, start: int, stop: int
) -> None:
    batch, heads, queries, dim = q.shape
    if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != dim or heads % k.shape[1]:
        raise ValueError(
            f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: k and v must have the same shape, with "
            "q's batch and dim, and their heads must divide q's"
        )
    if kinds.shape != (batch, k.shape[2]) or kinds.dtype != torch.int8:
        raise ValueError(f"kinds is {tuple(kinds.shape)} {kinds.dtype}, must be int8 {(batch, k.shape[2])}")
    if mask is not None:
        fits = mask.ndim == 4 and all(
            have in (1, want) for have, want in zip(mask.shape[:2], (batch, heads), strict=True)
        )
        if mask.dtype != torch.bool or not fits or mask.shape[2:] != (queries, k.shape[2]):
            raise ValueError(
                f"mask is {tuple(mask.shape)} {mask.dtype}, must be bool (1 or {batch}, 1 or {heads}, {queries}, "
                f"{k.shape[2]}): True where a query may attend"
            )
    if not 0 <= start <= stop <= queries:
        raise ValueError(f"rows are ({start}, {stop}), must lie in 0 … {queries}, the first not after the last")


@torch.library.custom_op("hardsample::attention_mass", mutates_args=())
def _attention_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    columns: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
    backend: str,
) -> Tensor:
    arguments = (q, k, lse, columns, counts, mask, causal, query_offset, scale, row_start, row_stop)
    return choose("attention_mass", q, backend).run(*arguments)


@_attention_mass.register_fake
def _(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    columns: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
    backend: str,
) -> Tensor:
    work = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty((q.shape[0], q.shape[1], row_stop - row_start, 2), dtype=work)


@torch.library.custom_op("hardsample::fused_attention", mutates_args=())
def _fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinds: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (q, k, v, kinds, mask, causal, query_offset, scale, row_start, row_stop)
    return choose("fused_attention", q, backend).run(*arguments)


@_fused_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kinds: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    work = torch.promote_types(q.dtype, torch.float32)
    batch, heads, queries, _ = q.shape
    mass = q.new_empty((batch, heads, row_stop - row_start, 2), dtype=work)
    return q.new_empty(q.shape), mass, q.new_empty((batch, heads, queries), dtype=work)


@torch.library.custom_op("hardsample::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (grad, q, k, v, output, lse, mask, causal, query_offset, scale)
    return choose("attention_backward", q, backend).run(*arguments)


@_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
    query_offset: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, _, mask, ctx.causal, ctx.query_offset, ctx.scale, _, _, backend = inputs
    ctx.backend = "reference" if backend == "reference" else ""
    ctx.save_for_backward(q, k, v, output[0], output[2], mask)


def _backward(ctx, grad, grad_mass, grad_lse):  # type: ignore[no-untyped-def]
    *tensors, mask = ctx.saved_tensors
    settings = (ctx.causal, ctx.query_offset, ctx.scale, ctx.backend)
    return (*_attention_backward(grad, *tensors, mask, *settings), *(None,) * 8)


_fused_attention.register_autograd(_backward, setup_context=_save)


@torch.compiler.assume_constant_result
def _default_attention(device: torch.device, dtype: torch.dtype, dim: int) -> str:
    """Return PyTorch's attention with the fastest mass-only kernel that can run, or else the reference."""
    probe = torch.empty((1, 1, 1, dim), dtype=dtype, device=device)
    if why_not_sdpa(probe) is None:
        return f"sdpa+{choose('attention_mass', probe).name}"
    return "reference"


def chosen(tensor: Tensor) -> dict[str, str]:
    """Return the default backends for tensors of this device and dtype: op → backend."""
    names_by_op = {"mask_pixels": choose("mask_pixels", tensor).name}
    if tensor.is_floating_point():
        names_by_op["attention_with_mass"] = _default_attention(tensor.device, tensor.dtype, 64)
    return names_by_op


def backends(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, dict[str, str]]:
    """Return what can run on a device: op → backend → "" if it can, else the reason; preferred backends first.

    >>> backends()["mask_pixels"]["reference"]
    ''
    """
    try:
        probe = torch.empty((1, 1, 1, 16), dtype=dtype, device=device)
    except (AssertionError, RuntimeError) as error:  # a PyTorch without CUDA, a machine without a GPU
        absent = f"PyTorch cannot use {device}: {str(error).splitlines()[0]}"
        on_cpu = backends("cpu", dtype)
        return {op: dict.fromkeys(table, absent) for op, table in on_cpu.items()}
    reasons_by_op = {"mask_pixels": reasons("mask_pixels", probe)}
    masses = reasons("attention_mass", probe)
    vendors = {"sdpa": why_not_sdpa(probe), "flash-attn": why_not_flash(probe)}
    reasons_by_op["attention_with_mass"] = {
        **{
            f"{vendor}+{mass}": no or masses[mass] for vendor, no in vendors.items() for mass in names("attention_mass")
        },
        **reasons("fused_attention", probe),
    }
    return {op: {name: reason or "" for name, reason in table.items()} for op, table in reasons_by_op.items()}


def _why_not_triton(tensor: Tensor) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if tensor.is_cuda:
        return (
            None if tensor.dtype in native.FLOATS or tensor.dtype == torch.uint8 else f"{tensor.dtype} is not handled"
        )
    from triton import knobs

    if not knobs.runtime.interpret:
        return f"it runs on CUDA devices, and on the CPU only with TRITON_INTERPRET=1; this is {tensor.device}"
    return "bfloat16 is wrong in Triton's interpreter" if tensor.dtype == torch.bfloat16 else None


register(
    "mask_pixels",
    Backend("cpp", "native", "mask_pixels_cpu", native.why_not_cpu),
    Backend("triton", "masking", "mask_pixels", _why_not_triton),
    Backend("cuda", "native", "mask_pixels_cuda", native.why_not_cuda),
    Backend("reference", "reference", "mask_pixels"),
)
register(
    "attention_mass",
    Backend("cpp", "native", "attention_mass_cpu", native.why_not_cpu),
    Backend("triton", "attention", "attention_mass", _why_not_triton),
    Backend("cuda", "native", "attention_mass_cuda", native.why_not_cuda),
    Backend("reference", "reference_attention", "attention_mass"),
)
register(
    "fused_attention",
    Backend("triton", "attention", "fused_attention", _why_not_triton),
    Backend("reference", "reference_attention", "attention"),
)
register(
    "attention_backward",
    Backend("vendor", "vendor", "attention_backward", why_not_sdpa),
    Backend("reference", "reference_attention", "attention_backward"),
)
