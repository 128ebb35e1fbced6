"""What the kernels are measured on: each case is a function of ours and its baselines, on the same tensors.

A case is built when it is run and lets go of its tensors after, so that the largest do not add up. Run by `run.py` (a
table, JSON last) and by pytest-benchmark (`bench_kernels.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from hardsample.kernels import native, ops
from hardsample.kernels.keys import mask_key

VARIANTS = 100
RATIO = 0.5
SIZES = (224, 448, 1024)
PATCH = 14

HEADS, KV_HEADS, DIM = 28, 4, 128
ATTENTION = ((1500, 1024, 256), (4096, 3000, 512))
"""Tokens, image tokens and completion rows; the rest of the tokens is text, and the completion comes last."""

Call = Callable[[], Any]


@dataclass
class Case:
    """One measurement.

    Attributes:
        name: of the case; `mask_pixels/chw` and the like.
        shape: for the table.
        dtype: of the tensors.
        device: where they are.
        build: makes the tensors and returns ours and the baselines by name; the first baseline is the one that the
            issue's limits speak of.
    """

    name: str
    shape: str
    dtype: str
    device: str
    build: Callable[[], tuple[Call, dict[str, Call]]]
    against: tuple[str, ...]
    """The names of the baselines."""
    slow: tuple[str, ...] = ()
    """Baselines that are timed fewer times: they take seconds."""


def cases(device: str, quick: bool = False) -> Iterator[Case]:
    """Yield all cases of a device; `quick` leaves out the largest sizes."""
    yield from mask_cases(device, SIZES[:2] if quick else SIZES)
    yield from attention_cases(device, ATTENTION[:1] if quick else ATTENTION)


def mask_cases(device: str, sizes: tuple[int, ...]) -> Iterator[Case]:
    """Yield cases of 100 variants of one image, written into a given buffer."""
    for size in sizes:
        for layout, dtype in (
            ("chw", torch.float32),
            ("chw", torch.bfloat16),
            ("hwc", torch.uint8),
            ("patches", torch.bfloat16),
        ):
            yield Case(
                f"mask_pixels/{layout}",
                f"{size}² x {VARIANTS}",
                str(dtype).removeprefix("torch."),
                device,
                lambda size=size, layout=layout, dtype=dtype: _masking(device, size, layout, dtype),
                against=(
                    "floor",
                    *(("torch",) if layout != "patches" else ()),
                    *(("pil+processor",) if (layout, dtype) == ("chw", torch.float32) else ()),
                ),
                slow=("pil+processor", "torch"),
            )


def _masking(device: str, size: int, layout: str, dtype: torch.dtype) -> tuple[Call, dict[str, Call]]:
    pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = (pixels.permute(2, 0, 1) / 255 - 0.45) / 0.27
    settings: dict[str, Any] = {"layout": layout, "fill": [-1.7922625, -1.7520971, -1.4802197]}
    if layout == "hwc":
        image, settings["fill"] = pixels.to(device), [0, 0, 0]
    elif layout == "chw":
        image = values.to(device, dtype).contiguous()
    else:
        grid = (1, size // PATCH // 2 * 2, size // PATCH // 2 * 2)
        image = torch.randn((grid[1] * grid[2], 3 * 2 * PATCH**2), dtype=dtype, device=device)
        settings["grid_thw"] = grid
    keys = [mask_key(0, "bench")] * VARIANTS
    out = torch.zeros((VARIANTS, *image.shape), dtype=dtype, device=device)
    ratios, realizations = [RATIO] * VARIANTS, list(range(VARIANTS))

    def ours() -> torch.Tensor:
        return ops.mask_pixels(image, ratios, realizations, keys, out=out, **settings)

    def floor() -> None:
        if device == "cpu":
            native.broadcast_cpu(image, out)
        else:
            out.copy_(image)  # the image stays in L2: writes only

    baselines: dict[str, Call] = {"floor": floor}
    if layout != "patches":
        spatial = (size, size, 1) if layout == "hwc" else (1, size, size)
        black = torch.tensor(settings["fill"], dtype=torch.float32).to(device, dtype)
        black = black if layout == "hwc" else black.view(3, 1, 1)

        def plain() -> None:
            for row in out:
                torch.where(torch.rand(spatial, device=device) < RATIO, black, image, out=row)

        baselines["torch"] = plain
    if layout == "chw" and dtype == torch.float32:
        baselines["pil+processor"] = _pil(image, size)
    return ours, baselines


def _pil(image: torch.Tensor, size: int) -> Call:
    """Work as the method's own scripts do: mask in NumPy, make a PIL image, run the model's image processor."""
    import numpy as np
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    edge = {"height": size, "width": size}
    processor = CLIPImageProcessorPil(size=edge, crop_size=edge)
    pixels = image.numpy()
    generator = np.random.default_rng(0)

    def run() -> None:
        for _ in range(VARIANTS):
            masked = pixels.copy()
            masked[generator.random(pixels.shape[:2]) < RATIO] = 0
            processor(Image.fromarray(masked), return_tensors="pt")

    return run


def attention_cases(device: str, shapes: tuple[tuple[int, int, int], ...]) -> Iterator[Case]:
    """Yield cases of attention with masses of the completion rows, against attention without and other ways to them."""
    dtypes = (torch.float32,) if device == "cpu" else (torch.bfloat16, torch.float16)
    for (tokens, images, rows), dtype, batch in product(shapes, dtypes, (1,) if device == "cpu" else (1, 8)):
        for backend in _attention_backends(device, dtype):
            yield Case(
                f"attention_with_mass/{backend}",
                f"B {batch}, T {tokens}, image {images}, rows {rows}, {HEADS}/{KV_HEADS} heads, D {DIM}",
                str(dtype).removeprefix("torch."),
                device,
                lambda a=(batch, tokens, images, rows), dtype=dtype, backend=backend: _attention(
                    device, *a, dtype, backend
                ),
                against=(
                    *(("fused without mass",) if backend == "triton" else ()),
                    *("sdpa", "sdpa+softmax", "sdpa+indicator"),
                    *(("eager",) if batch == 1 else ()),
                ),
                slow=("eager",),
            )


def _attention_backends(device: str, dtype: torch.dtype) -> list[str]:
    """Return the backends to measure: all that can run here except the reference."""
    reasons = ops.backends(device, dtype)["attention_with_mass"]
    return [name for name, reason in reasons.items() if not reason and name != "reference"]


def _attention(
    device: str, batch: int, tokens: int, images: int, rows: int, dtype: torch.dtype, backend: str
) -> tuple[Call, dict[str, Call]]:
    generator = torch.Generator().manual_seed(0)

    def randn(heads: int) -> torch.Tensor:
        return torch.randn((batch, heads, tokens, DIM), generator=generator).to(device, dtype)

    q, k, v = randn(HEADS), randn(KV_HEADS), randn(KV_HEADS)
    kinds = torch.full((batch, tokens), ops.TEXT, dtype=torch.int8, device=device)
    before = (tokens - images - rows) // 2
    kinds[:, before : before + images] = ops.IMAGE
    kinds[:, -rows:] = ops.OTHER
    plan = ops.plan_mass(kinds)
    wanted = (tokens - rows, tokens)
    image, text = kinds[0] == ops.IMAGE, kinds[0] == ops.TEXT
    settings: dict[str, Any] = {"causal": True, "query_offset": 0, "rows": wanted, "plan": plan, "backend": backend}
    repeated_k, repeated_v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    attend = torch.nn.functional.scaled_dot_product_attention
    order = torch.ones((tokens, tokens), dtype=torch.bool, device=device).tril_()

    def ours() -> Any:
        return ops.attention_with_mass(q, k, v, kinds, **settings)

    def sdpa() -> Any:
        return attend(q, k, v, is_causal=True, enable_gqa=True)

    def eager() -> Any:
        scores = (q @ repeated_k.transpose(-1, -2)) * DIM**-0.5
        weights = scores.masked_fill_(~order, -torch.inf).softmax(-1)
        masses = [weights[:, :, -rows:, kind].sum(-1).mean(1) for kind in (image, text)]
        return weights @ repeated_v, masses

    def rows_softmax() -> Any:
        scores = (q[:, :, -rows:] @ repeated_k.transpose(-1, -2)).float() * DIM**-0.5
        weights = scores.masked_fill_(~order[-rows:], -torch.inf).softmax(-1)
        return sdpa(), [weights[..., kind].sum(-1).mean(1) for kind in (image, text)]

    indicator = torch.zeros_like(v)
    indicator[..., 0], indicator[..., 1] = image.to(dtype), text.to(dtype)

    def second_sdpa() -> Any:
        masses = attend(q[:, :, -rows:], k, indicator, attn_mask=order[-rows:], enable_gqa=True)
        return sdpa(), masses[..., :2].mean(1)

    baselines = {"sdpa": sdpa, "sdpa+softmax": rows_softmax, "sdpa+indicator": second_sdpa}
    if batch == 1:
        baselines["eager"] = eager
    if backend == "triton":
        from hardsample.kernels import attention

        plain = (q, k, v, kinds, None, True, 0, DIM**-0.5, 0, 0)
        baselines = {"fused without mass": lambda: attention.fused_attention(*plain, with_mass=False)} | baselines
    return ours, baselines
