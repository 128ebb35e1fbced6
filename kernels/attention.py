# mypy: allow-untyped-defs, allow-incomplete-defs
"""Attention masses in Triton: flash attention that also sums its probabilities by kind of key, and a mass-only kernel.

With scores s(i, j) = scale · q_i · k_j over the keys that row i sees, and lse_i = log Σ_j exp s(i, j):

    output_i = Σ_j A(i, j) v_j,  A(i, j) = exp(s(i, j) − lse_i),  mass_i(kind) = Σ_{j of kind} A(i, j)

`fused_attention` goes over the keys tile by tile with the running maximum m, in base 2: x = s · log2 e,

    m' = max(m, max_j x_j);  p_j = 2^(x_j − m');  norm' = norm · 2^(m − m') + Σ_j p_j;  the same for output and masses,

and divides by the norm at the end. Image and text tokens come in long runs, so most tiles hold keys of one kind, and
their mass is the Σ p that the norm needs anyway: a small first launch marks the tiles, and only mixed ones are summed
by kind. `attention_mass` takes lse as input, and computes exp(s − lse) for the wanted columns and rows only.
"""

from math import log
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference_attention import IMAGE, TEXT
from .tiles import Tiles, fused_tiles, mass_tiles

_IMAGE = tl.constexpr(IMAGE)
_TEXT = tl.constexpr(TEXT)
_MIXED = tl.constexpr(3)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["keys"])
def mark_tiles(kinds, padded, marks, keys, BLOCK_N: tl.constexpr):
    """Store the kind that all keys of each tile have, or _MIXED, and a copy of the kinds padded to whole tiles."""
    tiles = tl.cdiv(keys, BLOCK_N)
    program = tl.program_id(0).to(tl.int64)
    b, column = program // tiles, program % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    kind = tl.load(kinds + b * keys + column, mask=column < keys, other=0)
    tl.store(padded + program * BLOCK_N + tl.arange(0, BLOCK_N), kind)
    first, last = tl.min(kind.to(tl.int32)), tl.max(kind.to(tl.int32))
    tl.store(marks + program, tl.where(first == last, first, _MIXED))


@triton.jit
def attend_tiles(
    output,
    norm,
    top,
    image,
    text,
    q,
    k,
    v,
    kinds,
    marks,
    mask,
    limit,
    edge,
    start,
    stop,
    keys,
    k_key,
    v_key,
    mask_key,
    scale,
    wanted,
    EDGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    MASS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Accumulate the keys start … stop − 1 into a tile's running state; EDGE: some rows may not see all of them."""
    dims = tl.arange(0, q.shape[1])
    for first in tl.range(start, stop, BLOCK_N):
        column = tl.multiple_of(first, BLOCK_N) + tl.arange(0, BLOCK_N)
        if EDGE:
            inside = (column < keys)[:, None] & (dims < DIM)[None, :]
        else:
            inside = (dims < DIM)[None, :]
        offset = column.to(tl.int64)[:, None]
        tile = tl.load(k + offset * k_key + dims[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(tile), input_precision="ieee")
        if EDGE:
            if MASK:
                at = column.to(tl.int64)[None, :] * mask_key
                visible = tl.load(mask[:, None] + at, mask=(column < keys)[None, :], other=0)
                scores = tl.where(visible != 0, scores, -float("inf"))
            if CAUSAL and MASK:
                if first + BLOCK_N > edge:
                    scores = tl.where(column[None, :] <= limit[:, None], scores, -float("inf"))
            elif CAUSAL:
                scores = tl.where(column[None, :] <= limit[:, None], scores, -float("inf"))
            elif not MASK:
                scores = tl.where((column < keys)[None, :], scores, -float("inf"))
        peak = tl.maximum(top, tl.max(scores, 1) * scale)
        safe = tl.where(peak == -float("inf"), 0.0, peak)  # no visible key so far
        p = tl.exp2(scores * scale - safe[:, None])
        shrink = tl.exp2(top - safe)
        total = tl.sum(p, 1)
        norm, top = norm * shrink + total, peak
        output *= shrink[:, None]
        if MASS:
            image *= shrink
            text *= shrink
            if wanted:
                mark = tl.load(marks + first // BLOCK_N)
                if mark == _IMAGE:
                    image += total
                elif mark == _TEXT:
                    text += total
                elif mark == _MIXED:
                    kind = tl.load(kinds + column).to(tl.int32)
                    image += tl.sum(tl.where((kind == _IMAGE)[None, :], p, 0.0), 1)
                    text += tl.sum(tl.where((kind == _TEXT)[None, :], p, 0.0), 1)
        tile = tl.load(v + offset * v_key + dims[None, :], mask=inside, other=0.0)
        output = tl.dot(p.to(tile.dtype), tile, output, input_precision="ieee")
    return output, norm, top, image, text


_FUSED_SIZES = ["heads", "group", "queries", "keys", "query_offset", "row_start", "row_stop"]


@triton.jit(do_not_specialize=_FUSED_SIZES)
def attention_with_mass(
    output,
    mass,
    lse,
    q,
    k,
    v,
    kinds,
    marks,
    mask,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_key,
    v_batch,
    v_head,
    v_key,
    mask_batch,
    mask_head,
    mask_row,
    mask_key,
    heads,
    group,
    queries,
    keys,
    query_offset,
    row_start,
    row_stop,
    scale,  # · log2 e
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    MASS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute a tile of BLOCK_M rows of one head: output, lse, and the masses of rows row_start … row_stop − 1."""
    tiles = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    tile = program % tiles
    if CAUSAL:
        tile = tiles - 1 - tile  # the longest first
    b, h = (program // tiles // heads).to(tl.int64), (program // tiles % heads).to(tl.int64)
    first = tile * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    inside = (row < queries)[:, None] & (dims < DIM)[None, :]
    q += b * q_batch + h * q_head
    k += b * k_batch + h // group * k_head
    v += b * v_batch + h // group * v_head
    kinds += b * tl.cdiv(keys, BLOCK_N) * BLOCK_N
    marks += b * tl.cdiv(keys, BLOCK_N)
    queried = tl.load(q + row.to(tl.int64)[:, None] * q_row + dims[None, :], mask=inside, other=0.0)
    if MASK:
        mask += b * mask_batch + h * mask_head + tl.minimum(row, queries - 1).to(tl.int64) * mask_row

    limit = tl.minimum(row + query_offset, keys - 1)  # the last key that each row sees
    whole, stop = keys // BLOCK_N * BLOCK_N, keys
    if CAUSAL:
        stop = tl.maximum(tl.minimum(stop, first + BLOCK_M + query_offset), 0)
        whole = tl.maximum(tl.minimum(whole, (first + query_offset + 1) // BLOCK_N * BLOCK_N), 0)
    edge = whole  # first tile that some row sees only in part; a mask can hide keys of any tile
    if MASK:
        whole = 0
    wanted = (first < row_stop) & (first + BLOCK_M > row_start)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    image, text = tl.zeros_like(norm), tl.zeros_like(norm)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    # fmt: off
    if not MASK:
        total, norm, top, image, text = attend_tiles(
            total, norm, top, image, text, queried, k, v, kinds, marks, mask, limit, edge, 0, whole, keys, k_key,
            v_key, mask_key, scale, wanted, False, CAUSAL, MASK, MASS, DIM, BLOCK_N,
        )
    total, norm, top, image, text = attend_tiles(
        total, norm, top, image, text, queried, k, v, kinds, marks, mask, limit, edge, whole, stop, keys, k_key,
        v_key, mask_key, scale, wanted, True, CAUSAL, MASK, MASS, DIM, BLOCK_N,
    )
    # fmt: on
    row_index = (b * heads + h) * queries + row
    share = 1.0 / tl.where(norm > 0, norm, 1.0)
    total = (total * share[:, None]).to(output.dtype.element_ty)
    tl.store(output + row_index[:, None] * DIM + dims[None, :], total, mask=inside)
    tl.store(lse + row_index, (top + tl.log2(norm)) * _LN_2, mask=row < queries)
    if MASS:  # noqa: SIM102 (decided by the compiler; the next by each program)
        if wanted:
            own = (row >= row_start) & (row < row_stop)
            mass += ((b * heads + h) * (row_stop - row_start) - row_start) * 2
            tl.store(mass + row * 2, image * share, mask=own)
            tl.store(mass + row * 2 + 1, text * share, mask=own)


_MASS_SIZES = ["kv_heads", "group", "queries", "keys", "query_offset", "row_start", "row_stop"]


@triton.jit(do_not_specialize=_MASS_SIZES)
def mass_of_columns(
    mass,
    q,
    k,
    lse,
    columns,
    counts,
    mask,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_key,
    mask_batch,
    mask_head,
    mask_row,
    mask_key,
    kv_heads,
    group,
    queries,
    keys,
    query_offset,
    row_start,
    row_stop,
    scale,  # · log2 e
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PROBES: tl.constexpr,
):
    """Sum the masses of BLOCK_M pairs of row and head; the heads share one head of k, whose columns are read once."""
    pairs = (row_stop - row_start) * group
    tiles = tl.cdiv(pairs, BLOCK_M)
    program = tl.program_id(0)
    tile = program % tiles
    b, kv_head = (program // tiles // kv_heads).to(tl.int64), (program // tiles % kv_heads).to(tl.int64)
    pair = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row, h = row_start + pair // group, kv_head * group + pair % group
    at = row.to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    inside = (pair < pairs)[:, None] & (dims < DIM)[None, :]
    queried = tl.load(q + b * q_batch + (h * q_head + at * q_row)[:, None] + dims[None, :], mask=inside, other=0.0)
    row_index = (b * kv_heads * group + h) * queries + at
    total = tl.load(lse + row_index, mask=pair < pairs, other=0.0) * _LOG2_E
    k += b * k_batch + kv_head * k_head
    columns += b * keys
    if MASK:
        mask += b * mask_batch + h * mask_head + tl.minimum(row, row_stop - 1).to(tl.int64) * mask_row
    last = row_start + tl.minimum(tile * BLOCK_M + BLOCK_M - 1, pairs - 1) // group + query_offset

    start = 0
    for kind in tl.static_range(2):
        count = tl.load(counts + b * 2 + kind)
        blocks = tl.cdiv(count, BLOCK_N)
        if CAUSAL:  # columns ascend: only tiles whose first column the last row sees
            visible_blocks = 0
            for base in range(0, blocks, PROBES):
                probe = base + tl.arange(0, PROBES)
                column = tl.load(columns + start + probe * BLOCK_N, mask=probe < blocks, other=0)
                visible_blocks += tl.sum(((probe < blocks) & (column <= last)).to(tl.int32))
            blocks = visible_blocks
        mass_sum = tl.zeros([BLOCK_M], tl.float32)
        for block in tl.range(0, blocks):
            index = block * BLOCK_N + tl.arange(0, BLOCK_N)
            column = tl.load(columns + start + index, mask=index < count, other=0)
            chosen = (index < count)[:, None] & (dims < DIM)[None, :]
            keys_tile = tl.load(k + column.to(tl.int64)[:, None] * k_key + dims[None, :], mask=chosen, other=0.0)
            scores = tl.dot(queried, tl.trans(keys_tile), input_precision="ieee")
            visible = (index < count)[None, :]
            if CAUSAL:
                visible &= column[None, :] <= (row + query_offset)[:, None]
            if MASK:
                visible &= tl.load(mask[:, None] + column.to(tl.int64)[None, :] * mask_key, mask=visible, other=0) != 0
            p = tl.exp2(scores * scale - total[:, None])
            mass_sum += tl.sum(tl.where(visible, p, 0.0), 1)
        row_index = (b * kv_heads * group + h) * (row_stop - row_start) + (at - row_start)
        tl.store(mass + row_index * 2 + kind, mass_sum, mask=pair < pairs)
        start += count


def fused_constants(tiles: Tiles, head_dim: int, causal: bool, masked: bool, mass: bool = True) -> dict[str, Any]:
    """Return the compile-time constants of `attention_with_mass`; without masses it is plain attention."""
    return {"CAUSAL": causal, "MASK": masked, "MASS": mass, **_common_constants(tiles, head_dim)}


def mass_constants(tiles: Tiles, head_dim: int, causal: bool, masked: bool) -> dict[str, Any]:
    """Return the compile-time constants of `mass_of_columns`."""
    return {"CAUSAL": causal, "MASK": masked, "PROBES": 1024, **_common_constants(tiles, head_dim)}


def _common_constants(tiles: Tiles, head_dim: int) -> dict[str, Any]:
    return {
        "DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        "enable_fp_fusion": True,  # Triton's own default changes between versions
    }


def fused_attention(
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
    *,
    with_mass: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the op `hardsample::fused_attention` in Triton; arguments as of `reference_attention.attention`.

    Without masses (for benchmarks) the same kernel runs with that part compiled out, and `mass` is not written.
    """
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    if scale <= 0:  # the kernel takes the maximum before it scales
        q, scale = (-q, -scale) if scale else (torch.zeros_like(q), 1.0)
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    mass = torch.empty((batch, heads, row_stop - row_start, 2), dtype=torch.float32, device=q.device)
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    tiles = fused_tiles(q.element_size(), dim, mask is not None, _capability(q))
    constants = fused_constants(tiles, dim, causal, mask is not None, with_mass)
    key_tiles, row_tiles = triton.cdiv(keys, tiles.block_n), triton.cdiv(queries, tiles.block_m)
    padded = torch.empty((batch, key_tiles * tiles.block_n), dtype=torch.int8, device=q.device)
    marks = torch.empty((batch, key_tiles), dtype=torch.int32, device=q.device)
    mask, mask_strides = _as_bytes(mask)
    with torch.cuda.device_of(q):
        if marks.numel():
            grid = (batch * key_tiles,)
            mark_tiles[grid](kinds.contiguous(), padded, marks, keys, BLOCK_N=tiles.block_n, num_warps=1)
        if lse.numel():
            attention_with_mass[(batch * heads * row_tiles,)](
                *(output, mass, lse, q, k, v, padded, marks, mask),
                *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *mask_strides),
                *(heads, heads // k.shape[1], queries, keys, query_offset, row_start, row_stop, scale / log(2)),
                **constants,
            )
    return output, mass, lse


def attention_mass(
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
) -> Tensor:
    """Run the op `hardsample::attention_mass` in Triton; arguments as of `reference_attention.attention_mass`."""
    q, k = _dense_rows(q), _dense_rows(k)
    batch, heads, queries, dim = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    mass = torch.empty((batch, heads, row_stop - row_start, 2), dtype=torch.float32, device=q.device)
    lse, columns, counts = lse.float().contiguous(), columns.int().contiguous(), counts.int().contiguous()
    tiles = mass_tiles(q.element_size(), dim, mask is not None, _capability(q))
    constants = mass_constants(tiles, dim, causal, mask is not None)
    row_tiles = triton.cdiv((row_stop - row_start) * group, tiles.block_m)
    mask, mask_strides = _as_bytes(mask)
    if mass.numel():
        with torch.cuda.device_of(q):
            mass_of_columns[(batch * kv_heads * row_tiles,)](
                *(mass, q, k, lse, columns, counts, mask, *q.stride()[:3], *k.stride()[:3], *mask_strides),
                *(kv_heads, group, queries, k.shape[2], query_offset, row_start, row_stop, scale / log(2)),
                **constants,
            )
    return mass


def _capability(tensor: Tensor) -> tuple[int, int]:
    """Return the compute capability of the tensor's device; Triton's interpreter uses the tiles of sm_90."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (9, 0)


def _dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _as_bytes(mask: Tensor | None) -> tuple[Tensor | None, list[int]]:
    """Return the mask as bytes, and its strides: 0 if it is the same for all batch rows or heads."""
    if mask is None:
        return None, [0, 0, 0, 0]
    strides = [0 if size == 1 else stride for size, stride in zip(mask.shape[:2], mask.stride()[:2], strict=True)]
    return mask.view(torch.int8), [*strides, *mask.stride()[2:]]
