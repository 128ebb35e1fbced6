"""Other ways to sum masses inside flash attention, kept so that bench/compile.py can show what they cost.

The shipped kernel (kernels/attention.py) marks the tiles by kind in a launch of its own. These do without it:

    two sums    every tile is summed twice more, each time over the keys of one kind
    one-hot     the probabilities times a one-hot matrix of the kinds, 16 columns, on the matrix units
    own marks   each program finds out whether a tile is all of one kind, by a reduction in the loop

Causal attention without a mask; never launched.
"""

import triton
import triton.language as tl

FORMS = ("two sums", "one-hot", "own marks")


@triton.jit
def _attend(
    total,
    norm,
    top,
    image,
    text,
    q,
    k,
    v,
    kinds,
    limit,
    start,
    stop,
    keys,
    k_key,
    v_key,
    scale,
    EDGE: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    dims = tl.arange(0, q.shape[1])
    for first in tl.range(start, stop, BLOCK_N):
        column = tl.multiple_of(first, BLOCK_N) + tl.arange(0, BLOCK_N)
        inside = (column < keys)[:, None] & (dims >= 0)[None, :] if EDGE else (dims >= 0)[None, :]
        offset = column.to(tl.int64)[:, None]
        kind = tl.load(kinds + column, mask=column < keys, other=0).to(tl.int32)
        tile = tl.load(k + offset * k_key + dims[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(tile))
        if EDGE:
            scores = tl.where(column[None, :] <= limit[:, None], scores, -float("inf"))
        peak = tl.maximum(top, tl.max(scores, 1) * scale)
        safe = tl.where(peak == -float("inf"), 0.0, peak)
        p = tl.exp2(scores * scale - safe[:, None])
        shrink = tl.exp2(top - safe)
        share = tl.sum(p, 1)
        norm, top = norm * shrink + share, peak
        total *= shrink[:, None]
        if FORM == "one-hot":
            hot = (kind[:, None] == tl.arange(0, 16)[None, :]).to(q.dtype)
            image = tl.dot(p.to(q.dtype), hot, image * shrink[:, None])
        else:
            image *= shrink
            text *= shrink
        if FORM == "two sums":
            image += tl.sum(tl.where((kind == 1)[None, :], p, 0.0), 1)
            text += tl.sum(tl.where((kind == 2)[None, :], p, 0.0), 1)
        if FORM == "own marks":
            low, high = tl.min(kind), tl.max(kind)
            if low == high:
                image += tl.where(low == 1, share, 0.0)
                text += tl.where(low == 2, share, 0.0)
            else:
                image += tl.sum(tl.where((kind == 1)[None, :], p, 0.0), 1)
                text += tl.sum(tl.where((kind == 2)[None, :], p, 0.0), 1)
        tile = tl.load(v + offset * v_key + dims[None, :], mask=inside, other=0.0)
        total = tl.dot(p.to(tile.dtype), tile, total)
    return total, norm, top, image, text


@triton.jit(do_not_specialize=["heads", "group", "queries", "keys", "query_offset"])
def attention_form(
    output,
    mass,
    lse,
    q,
    k,
    v,
    kinds,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_key,
    v_batch,
    v_head,
    v_key,
    heads,
    group,
    queries,
    keys,
    query_offset,
    scale,
    FORM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend a tile of rows of one head, as `attention_with_mass` does."""
    tiles = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    tile = tiles - 1 - program % tiles
    b, h = (program // tiles // heads).to(tl.int64), (program // tiles % heads).to(tl.int64)
    first = tile * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, DIM)
    inside = (row < queries)[:, None] & (dims >= 0)[None, :]
    k += b * k_batch + h // group * k_head
    v += b * v_batch + h // group * v_head
    kinds += b * keys
    q += b * q_batch + h * q_head
    queried = tl.load(q + row.to(tl.int64)[:, None] * q_row + dims[None, :], mask=inside, other=0.0)
    limit = tl.minimum(row + query_offset, keys - 1)
    stop = tl.maximum(tl.minimum(keys, first + BLOCK_M + query_offset), 0)
    whole = tl.maximum(tl.minimum(keys // BLOCK_N * BLOCK_N, (first + query_offset + 1) // BLOCK_N * BLOCK_N), 0)
    total = tl.zeros([BLOCK_M, DIM], tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    text = tl.zeros_like(norm)
    image = tl.zeros([BLOCK_M, 16], tl.float32) if FORM == "one-hot" else tl.zeros_like(norm)
    # fmt: off
    total, norm, top, image, text = _attend(
        total, norm, top, image, text, queried, k, v, kinds, limit, 0, whole, keys, k_key, v_key, scale,
        False, FORM, BLOCK_N,
    )
    total, norm, top, image, text = _attend(
        total, norm, top, image, text, queried, k, v, kinds, limit, whole, stop, keys, k_key, v_key, scale,
        True, FORM, BLOCK_N,
    )
    # fmt: on
    position = (b * heads + h) * queries + row
    share = 1.0 / tl.where(norm > 0, norm, 1.0)
    tl.store(
        output + position[:, None] * DIM + dims[None, :], (total * share[:, None]).to(q.dtype.element_ty), mask=inside
    )
    tl.store(lse + position, top + tl.log2(norm), mask=row < queries)
    if FORM == "one-hot":
        column = tl.arange(0, 16)[None, :]
        wanted = (row < queries)[:, None] & (column >= 1) & (column <= 2)
        tl.store(mass + position[:, None] * 2 + column - 1, image * share[:, None], mask=wanted)
    else:
        tl.store(mass + position * 2, image * share, mask=row < queries)
        tl.store(mass + position * 2 + 1, text * share, mask=row < queries)
