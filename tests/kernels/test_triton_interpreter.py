"""The Triton kernels' arithmetic without a GPU: Triton's interpreter against the PyTorch reference.

TRITON_INTERPRET=1 must be set before a kernel is decorated, so this file starts itself in a process of its own, which
runs the cases that were collected here and prints what went wrong in each; every case is a test. bfloat16 arithmetic is
silently wrong in the interpreter and is tested on GPUs only.
"""

import hashlib
import json
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

from hardsample.kernels import ops, reference_attention
from hardsample.kernels.keys import KINDS, mask_key
from hardsample.kernels.ops import IMAGE, OTHER, TEXT, attention_with_mass, mask_pixels, plan_mass

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "masks.json").read_text(encoding="utf-8"))["masks"]
DTYPES = {"uint8": torch.uint8, "float32": torch.float32, "float16": torch.float16}

RATIOS = [0.0, 1e-4, 0.3, 0.9, 1.0]
CALL = {
    "ratios": RATIOS,
    "realizations": [0, 1, 2, 3, 2**32 - 1],
    "keys": [mask_key(seed, "interpreter") for seed in range(len(RATIOS))],
    "image_index": [0, 0, 5, 2**32 - 1, 0],
}
# Height, width and channels: one pixel, rows narrower than eight pixels, odd sizes, and more than one block.
SIZES = [(1, 1, 3), (9, 5, 3), (15, 31, 3), (33, 40, 3), (8, 24, 1), (13, 8, 4)]
# Patches down and across, patch size, merge size, channels, frames: groups of 2, 8, 4 and 1 pixels share a Philox call.
GRIDS = [(2, 4, 14, 2, 3, 2), (4, 2, 14, 2, 3, 1), (2, 2, 16, 2, 3, 2), (1, 3, 12, 1, 1, 2), (3, 6, 7, 3, 3, 1)]


def check_masks(kind, layout, dtype):
    """Compare every size of a layout bit for bit, from one image and from one per variant.

    No byte around the result may change.
    """
    generator = torch.Generator().manual_seed(7)
    for i, size in enumerate(GRIDS if layout == "patches" else SIZES):
        if layout == "patches":
            down, across, patch, merge, channels, frames = size
            shape = (down * across, channels * frames * patch**2)
            settings = {"grid_thw": (1, down, across), "patch_size": patch, "merge_size": merge}
            settings["temporal_patch_size"] = frames
        else:
            height, width, channels = size
            shape = (height, width, channels) if layout == "hwc" else (channels, height, width)
            settings = {}
        images = (torch.rand((len(RATIOS), *shape), generator=generator) * 200 + 20).to(dtype)
        fill = list(range(1, channels + 1)) if dtype == torch.uint8 else [-1.1 * (c + 1) for c in range(channels)]
        settings |= {"kind": kind, "layout": layout, "fill": fill}
        image = images if i % 2 else images[0]
        wanted = mask_pixels(image, **CALL, backend="reference", **settings)
        around = torch.full((wanted.numel() + 32,), 99).to(dtype)
        out = around[16:-16].view(wanted.shape)
        mask_pixels(image, **CALL, backend="triton", out=out, **settings)
        assert torch.equal(out, wanted), f"size {size}: {int((out != wanted).sum())} values differ"
        assert torch.cat([around[:16], around[-16:]]).eq(99).all(), f"size {size}: wrote outside its result"


def check_golden(case):
    """Check a golden mask by its digest."""
    image = torch.ones((case["height"], case["width"], 1), dtype=torch.uint8)
    key = mask_key(case["seed"], case["id"])
    arguments = ([case["ratio"]], [case["realization"]], [key])
    masked = mask_pixels(image, *arguments, kind=case["kind"], image_index=case["image_index"], backend="triton")
    mask = masked[0, ..., 0].eq(0).numpy()
    assert mask.sum() == case["masked"]
    assert mask.reshape(-1)[:32].astype(int).tolist() == case["first_32"]
    assert hashlib.sha256(mask.tobytes()).hexdigest() == case["sha256"]


@dataclass(frozen=True)
class Call:
    """One call of the attention ops: (batch, heads, heads of k, queries, keys, dim) and what is special about it."""

    shape: tuple[int, int, int, int, int, int]
    causal: bool = False
    query_offset: int = 0
    mask: str = ""
    kinds: str = "runs"
    rows: tuple[int, int] | None = None
    scale: float | None = None
    transposed: bool = False

    def build(self, dtype):
        """q, k, v, kinds and the arguments from mask to row_stop."""
        batch, heads, kv_heads, queries, keys, dim = self.shape
        generator = torch.Generator().manual_seed(sum(self.shape))
        q = torch.randn((batch, heads, queries, dim), generator=generator)
        k, v = (torch.randn((batch, kv_heads, keys, dim), generator=generator) for _ in range(2))
        if self.transposed:  # as models give them: (batch, position, head, dim) in memory
            q, k, v = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v))
        kinds = torch.full((batch, keys), OTHER, dtype=torch.int8)
        if self.kinds == "image":
            kinds[:] = IMAGE
        elif self.kinds == "text":
            kinds[:, : keys // 2] = TEXT
        elif self.kinds == "mixed":
            kinds[:] = torch.randint(0, 3, (batch, keys), generator=generator)
        else:  # text, an image, text, another image, text, completion; each batch row elsewhere
            for b in range(batch):
                kinds[b, : keys * 7 // 8] = TEXT
                kinds[b, keys // 8 + b : keys // 2 + b] = IMAGE
                kinds[b, keys * 5 // 8 : keys * 6 // 8 + b] = IMAGE
        rows = self.rows or (0, queries)
        scale = dim**-0.5 if self.scale is None else self.scale
        settings = (self._mask(kinds, generator), self.causal, self.query_offset, scale, *rows)
        return q.to(dtype), k.to(dtype), v.to(dtype), kinds, settings

    def _mask(self, kinds, generator):
        batch, heads, _, queries, keys, _ = self.shape
        row, column = torch.arange(queries)[:, None] + self.query_offset, torch.arange(keys)
        below = (column <= row).expand(batch, 1, queries, keys)
        if self.mask == "padding":  # the first keys of every second batch row: its first rows see nothing
            real = column >= (torch.arange(batch) % 2 * (keys // 5))[:, None]
            return below & real[:, None, None, :]
        if self.mask == "image block":
            image = kinds == IMAGE
            return below | (image[:, None, :queries, None] & image[:, None, None, :])
        if self.mask == "window":
            return (below & (column > row - 20))[:1]
        if self.mask == "per head":
            return torch.rand((1, heads, queries, keys), generator=generator) < 0.2
        return None


CALLS = {
    "grouped heads": Call((2, 4, 2, 70, 70, 64), causal=True),
    "one head": Call((1, 1, 1, 33, 33, 16), causal=True, kinds="mixed"),
    "group of seven": Call((1, 7, 1, 30, 30, 80), causal=True),
    "head dim 128": Call((1, 2, 1, 20, 140, 128), kinds="mixed", transposed=True),
    "bottom-right": Call((1, 4, 2, 20, 150, 32), causal=True, query_offset=130),
    "top-left": Call((1, 2, 2, 40, 90, 16), causal=True),
    "first rows see nothing": Call((1, 2, 1, 40, 30, 16), causal=True, query_offset=-5),
    "no row sees a key": Call((1, 2, 1, 5, 8, 16), causal=True, query_offset=-100),
    "one query": Call((3, 4, 2, 1, 90, 64)),
    "more queries than keys": Call((1, 2, 2, 150, 10, 16), causal=True),
    "many tiles": Call((1, 1, 1, 260, 260, 16), causal=True),
    "left padding": Call((2, 4, 2, 70, 70, 16), mask="padding"),
    "left padding, causal": Call((2, 4, 2, 70, 70, 16), mask="padding", causal=True),
    "bidirectional image": Call((2, 2, 1, 70, 70, 32), mask="image block"),
    "sliding window": Call((2, 2, 2, 140, 140, 16), mask="window", rows=(100, 140)),
    "mask per head": Call((2, 4, 2, 20, 70, 16), mask="per head"),
    "no image": Call((1, 2, 1, 70, 70, 16), causal=True, kinds="text"),
    "all image": Call((1, 2, 1, 70, 70, 16), causal=True, kinds="image"),
    "some rows": Call((1, 4, 2, 140, 140, 16), causal=True, rows=(130, 137)),
    "no rows": Call((1, 2, 1, 10, 10, 16), causal=True, rows=(4, 4)),
    "negative scale": Call((1, 2, 1, 20, 20, 16), causal=True, scale=-0.3),
    "scale zero": Call((1, 2, 1, 20, 20, 16), causal=True, scale=0.0),
}


def assert_masses_close(result, truth, dtype):
    """Within 1e-6 in fp32; from 16-bit inputs within 2e-3 relative where the mass is at least 1e-2, 2e-5 below."""
    assert result.dtype == torch.float32 and result.shape == truth.shape and result.isfinite().all()
    difference = (result - truth).abs()
    bound = 2e-3 * truth if dtype != torch.float32 else torch.full_like(truth, 1e-6)
    if dtype != torch.float32:
        bound = torch.where(truth >= 1e-2, bound, 2e-5)
    assert (difference <= bound).all(), f"masses differ by up to {float(difference.max()):.2e}"


def check_fused(call, dtype):
    """Compare output, masses and lse of the fused kernel with the reference in float64 on the same inputs."""
    q, k, v, kinds, settings = call.build(dtype)
    output, mass, lse = (
        tensor.float() for tensor in reference_attention.attention(q.double(), k.double(), v.double(), kinds, *settings)
    )
    result = torch.ops.hardsample.fused_attention(q, k, v, kinds, *settings, "triton")
    bound = 1e-5 if dtype == torch.float32 else 2e-3 * max(1.0, float(output.abs().max()))
    assert result[0].dtype == dtype and result[0].isfinite().all()
    assert (result[0].float() - output).abs().max() <= bound
    assert_masses_close(result[1], mass, dtype)
    assert torch.equal(result[2].isinf(), lse.isinf())
    assert torch.allclose(result[2], lse, rtol=1e-6, atol=2e-6)
    assert not result[0][lse.isinf()].any()


def check_mass_only(call, dtype):
    """Compare the mass-only kernel with the reference in float64, both with the same lse in fp32.

    The lse of rows that see no key is arbitrary.
    """
    q, k, v, kinds, settings = call.build(dtype)
    lse = reference_attention.attention(q.float(), k.float(), v.float(), kinds, *settings)[2]
    plan = plan_mass(kinds)
    wanted = reference_attention.attention_mass(
        q.double(), k.double(), lse, plan.columns, plan.counts, *settings
    ).float()
    for blind in (-torch.inf, 0.0, torch.nan):
        given = torch.where(lse.isinf(), blind, lse)
        result = torch.ops.hardsample.attention_mass(q, k, given, plan.columns, plan.counts, *settings, "triton")
        assert_masses_close(result, wanted, dtype)
        if not lse.isinf().any():
            break


def check_gradients(call):
    """Check that gradients of q, k and v through the public op equal the reference's."""
    gradients = {}
    for backend in ("triton", "reference"):
        *tensors, kinds, (mask, causal, query_offset, scale, start, stop) = call.build(torch.float32)
        tensors = [tensor.requires_grad_() for tensor in tensors]
        settings = {"mask": mask, "causal": causal, "query_offset": query_offset, "scale": scale}
        result = attention_with_mass(*tensors, kinds, **settings, rows=(start, stop), backend=backend)
        result.output.pow(2).sum().backward()
        gradients[backend] = [tensor.grad for tensor in tensors]
        assert not result.image.requires_grad and not result.lse.requires_grad
    for result, wanted in zip(gradients["triton"], gradients["reference"], strict=True):
        assert (result - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def check_front_door():
    """Check that `sdpa+triton` and `triton` give the masses of the reference, averaged over heads."""
    q, k, v, kinds, (_, causal, *_) = CALLS["grouped heads"].build(torch.float32)
    wanted = attention_with_mass(q, k, v, kinds, causal=causal, backend="reference")
    for backend in ("sdpa+triton", "triton"):
        result = attention_with_mass(q, k, v, kinds, causal=causal, backend=backend)
        assert (result.image - wanted.image).abs().max() <= 1e-6
        assert (result.text - wanted.text).abs().max() <= 1e-6


def check_odd_address():
    """Mask bytes whose address is not a multiple of four, which cannot be moved as words."""
    image = torch.arange(48 * 3, dtype=torch.uint8).view(6, 8, 3)
    shifted = torch.empty(image.numel() + 1, dtype=torch.uint8)[1:].view(image.shape).copy_(image)
    wanted = mask_pixels(image, **CALL, fill=[1, 2, 3], backend="reference")
    assert torch.equal(mask_pixels(shifted, **CALL, fill=[1, 2, 3], backend="triton"), wanted)


def check_large_head_dim():
    """Check that a head dim beyond the kernels' limit is rejected by name."""
    q = torch.zeros((1, 1, 2, 320))
    with pytest.raises(ValueError, match="320"):
        attention_with_mass(q, q, q, torch.zeros((1, 2), dtype=torch.int8), backend="triton")


CASES = {
    **{
        f"mask {kind} {layout} {dtype}": partial(check_masks, kind, layout, DTYPES[dtype])
        for kind, layout, dtype in product(KINDS, ("hwc", "chw", "patches"), DTYPES)
    },
    **{f"golden {i} {case['kind']}": partial(check_golden, case) for i, case in enumerate(GOLDEN)},
    "mask odd address": check_odd_address,
    **{
        f"{name} {call} {dtype}": partial(check, CALLS[call], DTYPES[dtype])
        for (name, check), call, dtype in product(
            (("fused", check_fused), ("mass", check_mass_only)), CALLS, ("float32", "float16")
        )
    },
    **{
        f"gradients {call}": partial(check_gradients, CALLS[call])
        for call in ("grouped heads", "left padding, causal", "bottom-right")
    },
    "front door": check_front_door,
    "large head dim": check_large_head_dim,
}


@pytest.fixture(scope="module")
def results(request, made_once):
    """Return what went wrong in each collected case, "" where nothing did."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if _version("triton") < (3, 7) and _version("numpy") >= (2, 4):
        pytest.skip("the interpreter of triton 3.6 needs numpy < 2.4 for loops whose bounds are tensors")
    here = [item for item in request.session.items if item.path == Path(__file__)]
    names = [item.callspec.params["case"] for item in here]

    def interpret(folder):
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        command = [sys.executable, __file__, json.dumps(names)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        if process.returncode:
            pytest.fail(f"the interpreter's process ended with {process.returncode}:\n{process.stderr[-3000:]}")
        (folder / "results.json").write_text(process.stdout.splitlines()[-1])

    return json.loads((made_once("triton-interpreter", interpret) / "results.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_against_the_reference(case, results):
    if results[case]:
        pytest.fail(results[case], pytrace=False)


def _version(package):
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


def main():
    """Run the named cases and print JSON: case → traceback, or "" if it passed."""
    torch.set_num_threads(1)
    result = {}
    for name in json.loads(sys.argv[1]):
        try:
            CASES[name]()
            result[name] = ""
        except Exception:  # noqa: BLE001 (reported as that case's failure)
            result[name] = traceback.format_exc()
    print(json.dumps(result))


if __name__ == "__main__":
    assert not ops.backends()["mask_pixels"]["triton"], "Triton's interpreter is not on"
    main()
