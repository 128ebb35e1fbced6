"""Masks on a GPU: every backend there gives the reference's bits, through the front door."""

from itertools import product

import pytest
import torch

from hardsample.kernels import ops
from hardsample.kernels.keys import KINDS, mask_key
from hardsample.kernels.ops import mask_pixels

pytestmark = pytest.mark.gpu

RATIOS = [0.0, 1e-4, 0.3, 0.5, 0.9, 1.0]
CALL = {
    "ratios": RATIOS,
    "realizations": list(range(len(RATIOS))),
    "keys": [mask_key(seed, "gpu") for seed in range(len(RATIOS))],
}
SHAPES = [(1, 1), (1, 7), (15, 31), (64, 64), (45, 60), (224, 224), (517, 1031)]


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none here")


def images(layout, dtype, height, width):
    """Return one image of a layout, and the settings it needs."""
    values = torch.rand((height, width, 3), generator=torch.Generator().manual_seed(height)) * 200 + 20
    fill = [1, 2, 3] if dtype == torch.uint8 else [-1.79, -1.75, -1.48]
    if layout == "hwc":
        return values.to(dtype), {"layout": layout, "fill": fill}
    if layout == "chw":
        return values.permute(2, 0, 1).contiguous().to(dtype), {"layout": layout, "fill": fill}
    grid = (1, -(-height // 28) * 2, -(-width // 28) * 2)
    patches = torch.rand((grid[1] * grid[2], 1176), generator=torch.Generator().manual_seed(width)) + 1
    return patches.to(dtype), {"layout": layout, "fill": fill, "grid_thw": grid}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["hwc", "chw", "patches"])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_every_backend_gives_the_reference_bits(backend, layout, kind):
    if reason := ops.backends("cuda")["mask_pixels"][backend]:
        pytest.skip(reason)
    for dtype, (height, width) in product((torch.uint8, torch.float32, torch.float16, torch.bfloat16), SHAPES):
        image, settings = images(layout, dtype, height, width)
        wanted = mask_pixels(image, **CALL, kind=kind, backend="reference", **settings)
        poisoned = torch.full(wanted.shape, 99, dtype=dtype, device="cuda")
        result = mask_pixels(image.cuda(), **CALL, kind=kind, backend=backend, out=poisoned, **settings)
        assert torch.equal(result.cpu(), wanted), (dtype, height, width)


def test_a_side_stream_is_respected():
    for backend in ("triton", "cuda"):
        if ops.backends("cuda")["mask_pixels"][backend]:
            continue
        image = torch.zeros((3, 2048, 2048), device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            image.fill_(2.0)
            result = mask_pixels(image, **CALL, layout="chw", fill=0.0, backend=backend)
        torch.cuda.current_stream().wait_stream(stream)
        assert result[0].eq(2.0).all()
