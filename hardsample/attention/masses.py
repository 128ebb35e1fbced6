"""Keeps the attention masses of completion tokens, layer by layer, while a model runs forward.

The collector receives the queries and keys of one layer after the other, in one forward or in several (a prefill and
decode steps), and stores the masses at the index of the completion token that a query produces. Plain torch:
`hardsample.attention.interface` connects it to transformers models.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from hardsample.attention.prompt_layout import AttentionMassError, Layout, sees_kinds
from hardsample.kernels.ops import IMAGE, OTHER, TEXT, AttentionMass, MassPlan, attention_with_mass, plan_mass
from hardsample.kernels.reference_attention import visible_keys


class SampleMasses(NamedTuple):
    """Masses of one completion, its counted tokens only: the arguments of `metrics.cmab.attention_balance`."""

    image: Float[Tensor, "layer *head token"]
    text: Float[Tensor, "layer *head token"]
    sees_image: Bool[Tensor, "layer token"]
    sees_text: Bool[Tensor, "layer token"]
    image_tokens: int
    text_tokens: int


@dataclass(frozen=True)
class AttentionMasses:
    """Masses of a batch, in fp32, one entry per column of the completion mask; 0 and False where not valid.

    Attributes:
        image: Σ of the attention probabilities of the query that produces a token over the prompt's image tokens,
            averaged over heads unless masses per head were requested.
        text: the same over the prompt text that counts.
        sees_image: whether that query may attend to any image token in that layer (from the mask, not the mass).
        sees_text: the same for text.
        valid: which completion tokens count.
        image_tokens: number of image tokens in each prompt.
        text_tokens: number of text tokens that count.
        columns: if requested (a batch of one), the probabilities themselves, averaged over heads, on each position
            of the prompt; on the CPU.
    """

    image: Float[Tensor, "layer batch *head token"]
    text: Float[Tensor, "layer batch *head token"]
    sees_image: Bool[Tensor, "layer batch token"]
    sees_text: Bool[Tensor, "layer batch token"]
    valid: Bool[Tensor, "batch token"]
    image_tokens: Int[Tensor, "batch"]
    text_tokens: Int[Tensor, "batch"]
    columns: Float[Tensor, "layer token position"] | None = None

    def sample(self, row: int) -> SampleMasses:
        """Return the masses of one completion, without the tokens that do not count.

        Args:
            row: index in the batch.
        """
        image, text, sees_image, sees_text = (
            part[:, row][..., self.valid[row]] for part in (self.image, self.text, self.sees_image, self.sees_text)
        )
        counts = int(self.image_tokens[row]), int(self.text_tokens[row])
        return SampleMasses(image, text, sees_image, sees_text, *counts)


class LayerCall(NamedTuple):
    """The arguments of one layer's attention."""

    q: Float[Tensor, "batch head query dim"]
    k: Float[Tensor, "batch kv_head key dim"]
    """Those of the cache included, not repeated for grouped queries."""
    v: Float[Tensor, "batch kv_head key dim"]
    mask: Bool[Tensor, "#batch #head query key"] | None
    """True where a query may attend."""
    causal: bool
    """Query i sees the keys j ≤ i only (aligned top-left)."""
    scale: float | None
    """Factor of the scores; 1 / √D if not given."""


class _Keys(NamedTuple):
    """The keys of a layer, the same for all layers of a forward with as many keys."""

    offset: int
    kinds: Int8[Tensor, "batch key"]
    plan: MassPlan


class MassCollector:
    """Receives the attention of one layer after the other and keeps its masses; a layer that runs again overwrites."""

    def __init__(
        self, layout: Layout, num_layers: int, per_head: bool = False, columns: bool = False, backend: str | None = None
    ) -> None:
        """Start without any masses.

        Args:
            layout: of the batch.
            num_layers: L.
            per_head: keep masses of each head instead of their average.
            columns: also keep the probabilities on each prompt position; for a batch of one.
            backend: of `hardsample.kernels.ops.attention_with_mass`.

        Raises:
            AttentionMassError: columns are requested for more than one sample.
        """
        batch = layout.kinds.shape[0]
        if columns and batch != 1:
            raise AttentionMassError(
                f"columns are kept for a batch of one, and this batch has {batch} samples: give one sample"
            )
        self.layout = layout
        self.num_layers = num_layers
        self._per_head, self._backend = per_head, backend
        self._prompt = int(layout.prompt[0]) if columns else 0
        self._columns: dict[int, Tensor] | None = {} if columns else None
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self.begin(0)

    def begin(self, past: int) -> None:
        """Start a forward.

        Args:
            past: position of its first query: how many tokens the cache holds already.
        """
        self._past = past
        self._keys: dict[tuple[int, torch.device], _Keys] = {}
        self._sees: dict[tuple[int, int, torch.device], tuple[Tensor | None, Tensor, Tensor]] = {}

    def span(self, num_queries: int) -> tuple[int, int]:
        """Return the queries of this forward whose masses are wanted: (first, last + 1), equal if there are none.

        Args:
            num_queries: of the forward.
        """
        first = min(max(self.layout.first - self._past, 0), num_queries)
        return first, max(first, min(self.layout.stop - self._past, num_queries))

    def measure(self, layer: int, call: LayerCall, attend: bool) -> Float[Tensor, "batch head query dim"] | None:
        """Compute and keep the masses of one layer.

        Args:
            layer: its index, from 0.
            call: its queries, keys, values and mask.
            attend: whether to also compute the output of all queries; else only the wanted queries are computed.

        Returns:
            The output, or None.

        Raises:
            AttentionMassError: the forward does not fit the layout.
        """
        self._check(layer, call)
        first, stop = self.span(call.q.shape[2])
        keys = self._keys_of(call)
        part = slice(0, call.q.shape[2]) if attend else slice(first, stop)
        q, mask = call.q[:, :, part], None if call.mask is None else call.mask[:, :, part]
        # under autocast the matrix products of a backend in PyTorch would be in bf16, and off by a hundredth
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            result = attention_with_mass(
                *(q, call.k, call.v, keys.kinds),
                mask=mask,
                causal=call.causal,
                query_offset=part.start,
                scale=call.scale,
                rows=(first - part.start, stop - part.start),
                per_head=self._per_head,
                plan=keys.plan,
                backend=self._backend,
            )
            if self._columns is not None:
                lse = result.lse[:, :, first - part.start : stop - part.start]
                self._keep_columns(layer, call, lse, keys.offset, first)
        self._keep(layer, result, *self._sees_of(call, keys.kinds, first, stop), first, stop)
        return result.output if attend else None

    @property
    def masses(self) -> AttentionMasses:
        """The collected masses.

        Raises:
            AttentionMassError: a layer or a completion token is missing.
        """
        layers = range(self.num_layers)
        if self.layout.first == self.layout.stop:  # no completion token counts, so no layer was measured
            self._kept = dict.fromkeys(layers, self._nothing())
        missing_layers = [layer for layer in layers if layer not in self._kept]
        if missing_layers:
            raise AttentionMassError(
                f"no attention of layers {', '.join(map(str, missing_layers))} (from 0) was "
                "collected: run the model's forward inside the context, in the thread that opened it, and not compiled"
            )
        image, text, sees_image, sees_text, produced = (
            torch.stack(part) for part in zip(*(self._kept[layer] for layer in layers), strict=True)
        )
        valid = self.layout.valid
        missing_tokens = int((valid & ~produced.all(0)).sum())
        if missing_tokens:
            raise AttentionMassError(
                f"{missing_tokens} of {int(valid.sum())} completion tokens had no query in the forwards that ran: feed "
                "the model all of input_ids except the last token of each row"
            )
        columns = None if self._columns is None else torch.stack([self._table(layer) for layer in layers])
        image_tokens, text_tokens = ((self.layout.kinds == kind).sum(1) for kind in (IMAGE, TEXT))
        return AttentionMasses(image, text, sees_image, sees_text, valid, image_tokens, text_tokens, columns)

    def _check(self, layer: int, call: LayerCall) -> None:
        batch, length = self.layout.kinds.shape
        rows, queries = call.q.shape[0], call.q.shape[2]
        if rows != batch or self._past + queries > length:
            raise AttentionMassError(
                f"the forward has {rows} rows of {self._past} + {queries} positions, but input_ids is "
                f"{(batch, length)}: collect each forward with its own rows of input_ids"
            )
        if not 0 <= layer < self.num_layers:
            raise AttentionMassError(f"layer {layer} (from 0) ran, but the config has {self.num_layers} layers")
        if call.mask is not None and call.mask.dtype != torch.bool:
            raise AttentionMassError(
                f"the attention mask is {call.mask.dtype}, must be bool, True where a query may attend: give the model "
                "a mask of two dimensions, or a bool one of four"
            )

    def _keys_of(self, call: LayerCall) -> _Keys:
        """Return the kinds and the plan of a layer's keys, made once for all layers with as many keys.

        A cache holds either the last positions (a full sliding cache) or all of them with room after them (a static
        cache), so the position of its first column follows from its length.
        """
        num_keys, device = call.k.shape[2], call.k.device
        if (num_keys, device) not in self._keys:
            offset = max(0, self._past + call.q.shape[2] - num_keys)
            kinds = self.layout.kinds[:, offset : offset + num_keys].to(device)
            kinds = torch.nn.functional.pad(kinds, (0, num_keys - kinds.shape[1]), value=OTHER)
            self._keys[num_keys, device] = _Keys(offset, kinds, plan_mass(kinds))
        return self._keys[num_keys, device]

    def _sees_of(self, call: LayerCall, kinds: Tensor, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return whether the rows see an image key, and a text key; computed once for layers with the same mask."""
        name = (id(call.mask), kinds.shape[1], kinds.device)
        if name not in self._sees:  # kept with the mask, so that its id is not reused
            self._sees[name] = (call.mask, *sees_kinds(kinds, call.mask, call.causal, (first, stop)))
        return self._sees[name][1:]

    def _produced_tokens(self, first: int, stop: int) -> tuple[Bool[Tensor, "batch token"], Int[Tensor, "batch token"]]:
        """Return which completion tokens the rows first … stop − 1 produce, and the row of each, from the first."""
        row = self.layout.queries - (self._past + first)
        produces = self.layout.valid & (row >= 0) & (row < stop - first)
        return produces, row.clamp(0, stop - first - 1)

    def _keep(
        self, layer: int, result: AttentionMass, sees_image: Tensor, sees_text: Tensor, first: int, stop: int
    ) -> None:
        produces, row = self._produced_tokens(first, stop)
        kept = self._kept.get(layer, (None,) * 5)
        new = []
        for part, old in zip((result.image, result.text, sees_image, sees_text), kept, strict=False):
            produced, index = (produces[:, None], row[:, None]) if part.ndim == 3 else (produces, row)
            picked = part.to(produces.device).gather(-1, index.expand(*part.shape[:-1], -1))
            picked = picked if picked.dtype == torch.bool else picked.float()
            new.append(torch.where(produced, picked, torch.zeros_like(picked) if old is None else old))
        self._kept[layer] = (*new, produces if kept[4] is None else produces | kept[4])

    def _keep_columns(self, layer: int, call: LayerCall, lse: Tensor, offset: int, first: int) -> None:
        stop = first + lse.shape[2]
        produces, row = (part[0].cpu() for part in self._produced_tokens(first, stop))
        count = max(0, min(self._prompt - offset, call.k.shape[2]))
        table = self._table(layer)
        table[produces] = 0.0
        tokens = produces.nonzero()[:, :1]
        probabilities = _probabilities(call, lse, (first, stop), count)
        table[tokens, torch.arange(offset, offset + count)] = probabilities[row[produces]]

    def _table(self, layer: int) -> Float[Tensor, "token position"]:
        assert self._columns is not None
        return self._columns.setdefault(layer, torch.zeros((self.layout.valid.shape[1], self._prompt)))

    def _nothing(self) -> tuple[Tensor, ...]:
        """Return the masses of a layer for a batch in which no completion token counts."""
        valid = self.layout.valid
        mass = torch.zeros_like(valid, dtype=torch.float32)
        mass = mass[:, None] if self._per_head else mass
        return mass, mass, valid, valid, valid


def _probabilities(
    call: LayerCall, lse: Float[Tensor, "1 head row"], rows: tuple[int, int], count: int
) -> Float[Tensor, "row key"]:
    """Return A(i, j) = exp(scale · q_i · k_j − lse_i), averaged over heads, for some rows and the first keys.

    Computed one head at a time, so that at most rows × keys is held; the result is on the CPU.

    Args:
        call: of a batch of one.
        lse: of the rows.
        rows: first row, last row + 1.
        count: of keys.
    """
    q, k = call.q[0, :, slice(*rows)].float(), call.k[0, :, :count].float()
    scale = q.shape[-1] ** -0.5 if call.scale is None else call.scale
    visible = visible_keys(call.mask, call.causal, 0, rows, call.k.shape[2], k.device)
    total = torch.zeros((q.shape[1], count), device=q.device)
    for head in range(len(q)):
        scores = scale * (q[head] @ k[head * len(k) // len(q)].T) - lse[0, head, :, None]
        if visible is not None:
            own = visible if visible.ndim == 2 else visible[0, head % visible.shape[1]]
            scores.masked_fill_(~own[:, :count], -torch.inf)
        total += scores.exp_()
    return (total / len(q)).cpu()
