"""Attention with the mass on image and text keys, in plain PyTorch: definition and oracle of all backends.

With scores s(i, j) = scale · q_i · k_j over the keys that row i sees, and lse_i = log Σ_j exp s(i, j):

    output_i = Σ_j A(i, j) v_j,  A(i, j) = exp(s(i, j) − lse_i),  mass_i(kind) = Σ_{j of kind} A(i, j).

A row that sees no key has output 0, masses 0 and lse −∞. A key has one of three kinds: image, text of the prompt, or
other (the completion and padding). All arithmetic is in float32 (float64 for float64 inputs), a few rows at a time, so
that the matrix of all rows and keys never exists.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

OTHER, IMAGE, TEXT = 0, 1, 2
"""Kinds of keys: everything else, image tokens of the prompt, text tokens of the prompt."""

_CHUNK_BYTES = 16 * 2**20


def visible_keys(
    mask: Bool[Tensor, "#batch #head query key"] | None,
    causal: bool,
    query_offset: int,
    rows: tuple[int, int],
    num_keys: int,
    device: torch.device,
) -> Bool[Tensor, "#batch #head row key"] | None:
    """Return which keys some rows see; None stands for all.

    Args:
        mask: True where a query may attend, or None.
        causal: whether row i sees the keys j ≤ i + query_offset only.
        query_offset: position of query 0 among the keys.
        rows: first row, last row + 1.
        num_keys: Tk.
        device: of the result.
    """
    start, stop = rows
    visible = None if mask is None else mask[:, :, start:stop]
    if causal:
        row = torch.arange(start, stop, device=device).view(1, 1, -1, 1)
        causal_keys = torch.arange(num_keys, device=device) <= row + query_offset
        visible = causal_keys if visible is None else visible & causal_keys
    return visible


def attention(
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    v: Float[Tensor, "batch kv_head key dim"],
    kinds: Int8[Tensor, "batch key"],
    mask: Bool[Tensor, "#batch #head query key"] | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
) -> tuple[Float[Tensor, "batch head query dim"], Float[Tensor, "batch head row 2"], Float[Tensor, "batch head query"]]:
    """Return output, masses (image, text) of the rows row_start … row_stop − 1, and lse of all rows.

    See `hardsample.kernels.ops.attention_with_mass` for the arguments.
    """
    work = torch.promote_types(q.dtype, torch.float32)
    batch, heads, queries, _ = q.shape
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((batch, heads, queries), dtype=work, device=q.device)
    mass = torch.zeros((batch, heads, row_stop - row_start, 2), dtype=work, device=q.device)
    of_kind = torch.stack([kinds == IMAGE, kinds == TEXT], -1).to(work)
    values = v.to(work)
    for start, stop, scores in _scores(q, k.to(work), scale, (0, queries)):
        visible = visible_keys(mask, causal, query_offset, (start, stop), k.shape[2], q.device)
        if visible is not None:
            scores.masked_fill_(~visible, -torch.inf)
        total = torch.logsumexp(scores, -1)
        weights = scores.sub_(total.nan_to_num(neginf=0.0)[..., None]).exp_()
        lse[:, :, start:stop] = total
        output[:, :, start:stop] = _grouped(weights, values).to(q.dtype)
        first, last = max(start, row_start), min(stop, row_stop)
        if first < last:
            wanted = weights[:, :, first - start : last - start]
            mass[:, :, first - row_start : last - row_start] = torch.einsum("bhqk,bkc->bhqc", wanted, of_kind)
    return output, mass, lse


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
    """Return the gradients of q, k and v from the gradient of the output.

        dV = Aᵀ dO;  dS = A ∘ (dO Vᵀ − rowsum(dO ∘ O));  dQ = scale · dS K;  dK = scale · dSᵀ Q

    Args:
        grad: dO.
        q: as in the forward, like the other arguments.
        k: keys.
        v: values.
        output: O.
        lse: of every row; −∞, 0 or anything in rows that see no key.
        mask: True where a query may attend, or None.
        causal: row i sees the keys j ≤ i + query_offset only.
        query_offset: position of query 0 among the keys.
        scale: factor of the scores.
    """
    work = torch.promote_types(q.dtype, torch.float32)
    groups = k.shape[1]
    keys, values = k.to(work), v.to(work)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    grad_k, grad_v = torch.zeros_like(keys), torch.zeros_like(values)
    for start, stop, scores in _scores(q, keys, scale, (0, q.shape[2])):
        part = grad[:, :, start:stop].to(work)
        visible = visible_keys(mask, causal, query_offset, (start, stop), k.shape[2], q.device)
        weights = scores.sub_(lse[:, :, start:stop, None]).exp_()
        if visible is not None:
            weights = weights.masked_fill_(~visible, 0.0)
        inner = (part * output[:, :, start:stop].to(work)).sum(-1, keepdim=True)
        d_scores = weights * (_grouped(part, values.transpose(-1, -2)) - inner) * scale
        grad_q[:, :, start:stop] = _grouped(d_scores, keys).to(q.dtype)
        rows = q[:, :, start:stop].to(work).unflatten(1, (groups, -1)).flatten(2, 3)
        grad_k += d_scores.unflatten(1, (groups, -1)).flatten(2, 3).transpose(-1, -2) @ rows
        grad_v += weights.unflatten(1, (groups, -1)).flatten(2, 3).transpose(-1, -2) @ part.unflatten(
            1, (groups, -1)
        ).flatten(2, 3)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def attention_mass(
    q: Float[Tensor, "batch head query dim"],
    k: Float[Tensor, "batch kv_head key dim"],
    lse: Float[Tensor, "batch head query"],
    columns: Int[Tensor, "batch key"],
    counts: Int[Tensor, "batch 2"],
    mask: Bool[Tensor, "#batch #head query key"] | None,
    causal: bool,
    query_offset: int,
    scale: float,
    row_start: int,
    row_stop: int,
) -> Float[Tensor, "batch head row 2"]:
    """Return the masses on two sets of keys, from q, k and the lse of an attention computed elsewhere.

    Args:
        q: queries.
        k: keys, not repeated for grouped queries.
        lse: log Σ_j exp s(i, j) of every row; that of a row without a visible key is ignored.
        columns: key positions: in each batch row first counts[b, 0] of the first set in ascending order, then
            counts[b, 1] of the second; the rest is not read.
        counts: sizes of the two sets.
        mask: as in `visible_keys`.
        causal: as in `visible_keys`.
        query_offset: as in `visible_keys`.
        scale: factor of the scores.
        row_start: first row wanted.
        row_stop: last row + 1.

    Returns:
        Σ over each set of exp(s(i, j) − lse_i), in float32 (float64 for float64 inputs).
    """
    work = torch.promote_types(q.dtype, torch.float32)
    batch, heads = q.shape[:2]
    mass = torch.zeros((batch, heads, row_stop - row_start, 2), dtype=work, device=q.device)
    for b, (first, second) in enumerate(counts.tolist()):
        chosen = columns[b, : first + second].long()
        keys = k[b : b + 1, :, chosen].to(work)
        for start, stop, scores in _scores(q[b : b + 1], keys, scale, (row_start, row_stop)):
            scores.sub_(lse[b : b + 1, :, start:stop, None].to(work)).exp_()
            if mask is not None:
                own = mask[b if mask.shape[0] > 1 else 0][None, :, start:stop]
                scores.masked_fill_(~own[..., chosen], 0.0)
            if causal:
                row = torch.arange(start, stop, device=q.device)[:, None]
                scores.masked_fill_(chosen > row + query_offset, 0.0)
            window = slice(start - row_start, stop - row_start)
            mass[b, :, window, 0] = scores[0, ..., :first].sum(-1)
            mass[b, :, window, 1] = scores[0, ..., first:].sum(-1)
    return mass


def _scores(q: Tensor, k: Tensor, scale: float, rows: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the scores of a few rows at a time: (first row, last row + 1, (batch, head, rows, keys))."""
    batch, heads, _, _ = q.shape
    step = max(1, _CHUNK_BYTES // max(1, k.element_size() * batch * heads * k.shape[2]))
    for start in range(*rows, step):
        stop = min(start + step, rows[1])
        grouped = (q[:, :, start:stop].to(k.dtype) * scale).unflatten(1, (k.shape[1], -1))
        scores = grouped.flatten(2, 3) @ k.transpose(-1, -2)
        yield start, stop, scores.view(batch, heads, stop - start, k.shape[2])


def _grouped(weights: Tensor, values: Tensor) -> Tensor:
    """Return weights @ values, (batch, head, rows, dim), without repeating the values of grouped heads."""
    batch, heads, rows, keys = weights.shape
    merged = weights.reshape(batch, values.shape[1], -1, keys) @ values
    return merged.view(batch, heads, rows, values.shape[-1])
