"""The layout of a batch of prompt + completion: the kind of each key, and the query of each completion token."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int8, Int64
from torch import Tensor

from hardsample.errors import HardsampleError
from hardsample.kernels.ops import IMAGE, OTHER, TEXT
from hardsample.kernels.reference_attention import visible_keys
from hardsample.metrics.options import TEXTS

_CHUNK_BYTES = 16 * 2**20


class AttentionMassError(HardsampleError, ValueError):
    """The model or the forward cannot give the requested masses; the message says what to do."""


class Layout(NamedTuple):
    """Kinds of the keys, and queries of the completion tokens."""

    kinds: Int8[Tensor, "batch position"]
    """IMAGE and TEXT of the prompt; OTHER: padding, the completion, and text that does not count."""
    prompt: Int64[Tensor, "batch"]
    """Positions before the first completion token, padding included."""
    queries: Int64[Tensor, "batch token"]
    """Position of the query that produces each completion token."""
    valid: Bool[Tensor, "batch token"]
    """Whether a completion token counts: it is not padding or end-of-sequence, and has a query before it."""
    first: int
    """Smallest query position of the valid tokens, over the whole batch."""
    stop: int
    """Largest query position + 1."""


def lay_out(
    input_ids: Int[Tensor, "batch position"],
    completion_mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"],
    attention_mask: Int[Tensor, "batch position"] | None,
    image_token_id: int,
    text: str = "all",
    ends: Collection[int] = (),
    first_token: int = 1,
) -> Layout:
    """Return the kind of each key, and the query that produces each completion token.

    The prompt is the attended positions before a row's first completion token. The query that produces a token is the
    attended position before it: for the first token the last prompt token, wherever the padding is.

    Args:
        input_ids: prompt + completion.
        completion_mask: nonzero where one of the last C positions is a completion token (C ≤ T; C = T is a mask of
            all positions).
        attention_mask: nonzero where a position is not padding; None if there is none.
        image_token_id: id of image tokens.
        text: `all` prompt text counts, or only the text `before_image`, the first of the row (none without an image).
        ends: ids of end-of-sequence tokens, which do not count.
        first_token: t of the first completion token of each row that counts, from 1.

    Raises:
        AttentionMassError: shapes do not match, or `text` is unknown.
    """
    batch, length = input_ids.shape
    tokens = completion_mask.shape[-1]
    if completion_mask.shape != (batch, tokens) or tokens > length:
        raise AttentionMassError(
            f"completion_mask is {tuple(completion_mask.shape)}, must be ({batch}, at most {length}): it marks the "
            "completion tokens among the last positions of input_ids"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise AttentionMassError(
            f"attention_mask is {tuple(attention_mask.shape)}, must be {tuple(input_ids.shape)}, the shape of input_ids"
        )
    if text not in TEXTS:
        raise AttentionMassError(f"text is {text!r}, must be one of {', '.join(TEXTS)}: choose one")
    start = length - tokens
    attended = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    completion = torch.nn.functional.pad(completion_mask.bool(), (start, 0))
    before = completion.cumsum(1) == 0
    image = attended & before & (input_ids == image_token_id)
    counted = attended & before & ~image
    if text == "before_image":
        counted &= (image.cumsum(1) == 0) & image.any(1, keepdim=True)
    kinds = torch.full_like(input_ids, OTHER, dtype=torch.int8).masked_fill_(image, IMAGE).masked_fill_(counted, TEXT)

    position = torch.arange(length, device=input_ids.device)
    last = torch.where(attended, position, -1).cummax(1).values
    queries = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)[:, start:]
    valid = completion[:, start:] & (queries >= 0) & (completion[:, start:].cumsum(1) >= first_token)
    if ends:
        valid &= ~torch.isin(input_ids[:, start:], torch.tensor(sorted(ends), device=input_ids.device))
    wanted = queries[valid]
    bounds = (int(wanted.min()), int(wanted.max()) + 1) if len(wanted) else (0, 0)
    return Layout(kinds, before.sum(1), queries, valid, *bounds)


def sees_kinds(
    kinds: Int8[Tensor, "batch key"],
    mask: Bool[Tensor, "#batch #head query key"] | None,
    causal: bool,
    rows: tuple[int, int],
) -> tuple[Bool[Tensor, "batch row"], Bool[Tensor, "batch row"]]:
    """Return whether rows may attend to any image key, and to any text key; computed a few rows at a time.

    Args:
        kinds: IMAGE, TEXT or OTHER for each key.
        mask: True where a query may attend (in any head), or None.
        causal: row i sees the keys j ≤ i only.
        rows: first row, last row + 1.
    """
    start, stop = rows
    of_kind = torch.stack([kinds == IMAGE, kinds == TEXT])
    if mask is None and not causal:
        image, text = of_kind.any(-1, keepdim=True).expand(-1, -1, stop - start)
        return image, text
    step = max(1, _CHUNK_BYTES // max(1, 2 * kinds.numel()))
    parts = []
    for low in range(start, stop, step):
        visible = visible_keys(mask, causal, 0, (low, min(low + step, stop)), kinds.shape[1], kinds.device)
        assert visible is not None
        visible = visible.any(1) if visible.ndim == 4 else visible
        parts.append((visible & of_kind[:, :, None]).any(-1))
    image, text = torch.cat(parts, -1)
    return image, text
