"""The mask generator against known answers, golden masks and a slow implementation in plain Python integers."""

import hashlib
import json
from collections import Counter
from fractions import Fraction
from math import isqrt, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from hardsample.kernels.keys import FULL_RATIO, KINDS, mask_key, philox, ratio_units
from hardsample.kernels.ops import mask_pixels
from hardsample.kernels.reference import mask_rectangle, pixel_mask

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "masks.json").read_text(encoding="utf-8"))

# Random123's kat_vectors: rounds, counter, key, answer.
KNOWN_ANSWERS = [
    (7, "00000000 " * 4, "00000000 " * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff " * 4, "ffffffff " * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    """Read hexadecimal words."""
    return [int(word, 16) for word in text.split()]


def slow_philox(counter, key, rounds):
    """Compute Philox4x32 as its paper draws it: S-boxes on (L, R) pairs and a word permutation, on Python integers."""
    l0, r0, l1, r1 = counter[1], counter[0], counter[3], counter[2]
    for step in range(rounds):
        key0 = (key[0] + step * 0x9E3779B9) % 2**32
        key1 = (key[1] + step * 0xBB67AE85) % 2**32
        high0, low0 = divmod(r0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(r1 * 0xCD9E8D57, 2**32)
        # (L, R) -> (low product, high product ^ key ^ L), then the two R words change places.
        l0, r0, l1, r1 = low1, high1 ^ key0 ^ l0, low0, high0 ^ key1 ^ l1
    return [r0, l0, r1, l1]


def slow_draw(draw, units, realization, key, image_index):
    """Return one draw of the generator as DESIGN.md words it."""
    output = slow_philox([draw // 8, image_index, realization, units], key, 7)
    lane = draw % 8
    return (output[lane // 2] >> (16 * (lane % 2))) % 2**16 < units


def slow_rectangle(height, width, units, realization, key, image_index):
    """Return the rectangle by listing every shape in the docstring's order."""
    area = (units * height * width + 32768) >> 16
    if area == 0:
        return 0, 0, 0, 0
    root = isqrt(area)
    side = root if root * root == area else root + 1
    wide = [(h, (2 * area + h) // (2 * h)) for h in range(1, height + 1) if h * width >= area and h <= side]
    tall = [((2 * area + w) // (2 * w), w) for w in range(1, width + 1) if w * height >= area and w <= side]
    shapes = wide + tall
    r = slow_philox([0x1FFFFFFF, image_index, realization, units], key, 7)
    h, w = shapes[r[0] * len(shapes) // 2**32]
    return r[1] * (height - h + 1) // 2**32, r[2] * (width - w + 1) // 2**32, h, w


def slow_mask(height, width, ratio, realization, key, image_index, kind):
    """Return a mask, pixel by pixel."""
    units = round(Fraction(ratio) * 65536)
    if kind == "rectangle":
        top, left, h, w = slow_rectangle(height, width, units, realization, key, image_index)
        return np.array([[top <= y < top + h and left <= x < left + w for x in range(width)] for y in range(height)])
    cells = -(-width // 14)
    mask = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            draw = y * width + x if kind == "pixel" else (y // 14) * cells + x // 14
            mask[y, x] = slow_draw(draw, units, realization, key, image_index)
    return mask


def digest(mask):
    """Return the SHA-256 of a mask as bytes 0 and 1 in raster order."""
    return hashlib.sha256(np.asarray(mask, dtype=np.uint8).tobytes()).hexdigest()


@pytest.mark.parametrize(("rounds", "counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(rounds, counter, key, answer):
    counter, key, answer = words(counter), words(key), words(answer)
    assert slow_philox(counter, key, rounds) == answer
    assert list(philox(counter, key, rounds)) == answer
    tensors = philox([torch.tensor([word]) for word in counter], key, rounds)
    assert [word.item() for word in tensors] == answer
    arrays = philox([np.array([word], dtype=np.uint64) for word in counter], key, rounds)
    assert [word.item() for word in arrays] == answer


def test_philox_broadcasts_counters_and_keys():
    counter = (torch.arange(5), 3, torch.arange(4).view(4, 1), 2**32 - 1)
    key = (torch.tensor([[7], [2**32 - 1], [0], [5]]), 11)
    output = torch.stack(philox(counter, key), -1)
    assert output.shape == (4, 5, 4)
    for k, word in enumerate((7, 2**32 - 1, 0, 5)):
        for c in range(5):
            assert output[k, c].tolist() == slow_philox([c, 3, k, 2**32 - 1], (word, 11), 7)


def test_key_is_blake2b_of_seed_and_id():
    low, high = mask_key(7, "räume/1")
    data = bytes([7, 0, 0, 0, 0, 0, 0, 0]) + "räume/1".encode()
    assert low + high * 2**32 == int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    assert mask_key(0, "a") == (0xAF9EB97B, 0x2A2AD578)
    keys = {mask_key(0, "a"), mask_key(1, "a"), mask_key(0, "b"), mask_key(0, "a", b"noise"), mask_key(2**64 - 1, "a")}
    assert len(keys) == 5


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_key_refuses_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match="seed is"):
        mask_key(seed, "a")


def test_ratio_units():
    assert [ratio_units(r) for r in (0, 0.1, 0.5, 0.9, 1.0)] == [0, 6554, 32768, 58982, 65536]
    assert ratio_units(0.1 * 3) == ratio_units(0.3) == ratio_units(Fraction(3, 10)) == 19661
    for wrong in (-0.1, 1.0001, 40, float("nan")):
        with pytest.raises(ValueError, match="mask ratio is"):
            ratio_units(wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (17, 1), (7, 5), (14, 14), (28, 29), (30, 43)])
def test_masks_equal_the_slow_implementation(height, width, kind):
    for number, ratio in enumerate((0.1, 0.37, 0.5, 0.9, 1 / 65536, 65535 / 65536)):
        key = mask_key(number, f"{height}x{width}")
        mask = pixel_mask(height, width, ratio, number + 3, key, number % 3, kind)
        assert mask.shape == (height, width)
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), slow_mask(height, width, ratio, number + 3, key, number % 3, kind))


def test_large_masks_equal_the_slow_implementation_at_random_pixels():
    """Several blocks of calls, and words that use all 32 bits."""
    height, width, realization, image_index = 601, 907, 2**32 - 1, 2**32 - 2
    key = mask_key(3, "large")
    mask = pixel_mask(height, width, 0.3, realization, key, image_index).view(-1)
    pixels = [*np.random.default_rng(0).integers(0, height * width, 3000).tolist(), 262143, 262144, height * width - 1]
    expected = [slow_draw(p, ratio_units(0.3), realization, key, image_index) for p in pixels]
    assert mask[pixels].tolist() == expected


@pytest.mark.parametrize("case", GOLDEN["masks"], ids=lambda case: f"{case['kind']}-{case['ratio']}")
def test_golden_masks(case):
    key = mask_key(case["seed"], case["id"])
    assert list(key) == case["key"]
    where = (case["realization"], key, case["image_index"], case["kind"])
    mask = pixel_mask(case["height"], case["width"], case["ratio"], *where)
    assert mask.sum() == case["masked"]
    assert mask.view(-1)[:32].int().tolist() == case["first_32"]
    assert digest(mask) == case["sha256"]
    assert digest(slow_mask(case["height"], case["width"], case["ratio"], *where)) == case["sha256"]


@pytest.mark.parametrize("case", GOLDEN["rectangles"])
def test_golden_rectangles(case):
    key = mask_key(case["seed"], case["id"])
    arguments = (case["realization"], key, case["image_index"])
    yxhw = mask_rectangle(case["height"], case["width"], case["ratio"], *arguments)
    assert list(yxhw) == case["yxhw"]
    assert slow_rectangle(case["height"], case["width"], ratio_units(case["ratio"]), *arguments) == yxhw


@pytest.mark.parametrize("kind", KINDS)
def test_ends_mask_nothing_and_everything(kind):
    key = mask_key(0, "ends")
    for height, width in ((1, 1), (15, 31), (64, 64)):
        for ratio in (0.0, 0.4 / 65536):
            assert not pixel_mask(height, width, ratio, 0, key, kind=kind).any()
        for ratio in (1.0, 1 - 0.4 / 65536):
            assert pixel_mask(height, width, ratio, 0, key, kind=kind).all()


@pytest.mark.parametrize("units", [0, FULL_RATIO])
def test_shortcut_at_the_ends_is_what_the_generator_gives(units):
    assert {slow_draw(draw, units, 2, mask_key(0, "ends"), 0) for draw in range(200)} == {units > 0}
    assert slow_rectangle(9, 13, units, 2, mask_key(0, "ends"), 0) == ((0, 0, 9, 13) if units else (0, 0, 0, 0))


@pytest.mark.parametrize(("kind", "side"), [("pixel", 224), ("patch", 14 * 224)])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_share_masked_is_within_five_standard_deviations(kind, side, ratio):
    draws = 224 * 224
    for realization in range(3):
        share = pixel_mask(side, side, ratio, realization, mask_key(0, "share"), kind=kind).float().mean().item()
        assert abs(share - ratio) < 5 * sqrt(ratio * (1 - ratio) / draws)


def test_masks_of_different_draws_are_independent():
    side = 200
    key = mask_key(0, "one")
    masks = [pixel_mask(side, side, 0.5, k, key).view(-1).double() for k in range(4)]
    masks += [
        pixel_mask(side, side, 0.5, 0, key, image_index=1).view(-1).double(),
        pixel_mask(side, side, 0.50002, 0, key).view(-1).double(),
        pixel_mask(side, side, 0.5, 0, mask_key(1, "one")).view(-1).double(),
        pixel_mask(side, side, 0.5, 0, mask_key(0, "two")).view(-1).double(),
    ]
    masks += [masks[0].roll(shift) for shift in (1, 8, side)]
    correlation = torch.corrcoef(torch.stack(masks)) - torch.eye(len(masks))
    assert correlation.abs().max() < 5 / side


def test_rectangles_are_as_near_to_the_area_as_the_drawn_side_allows():
    for height in range(1, 13):
        for width in range(1, 13):
            for area in range(height * width + 1):
                ratio = Fraction(area, height * width)
                y, x, h, w = mask_rectangle(height, width, ratio, area, mask_key(height, str(width)))
                assert 0 <= y <= y + h <= height
                assert 0 <= x <= x + w <= width
                assert 2 * abs(h * w - area) <= isqrt(max(area - 1, 0)) + 1
                assert (h > 0) == (w > 0) == (area > 0)


def test_rectangles_take_every_shape_and_place_alike():
    key, draws = mask_key(0, "uniform"), 6000
    drawn = [mask_rectangle(6, 9, Fraction(12, 54), k, key) for k in range(draws)]
    shapes = Counter((h, w) for _, _, h, w in drawn)
    # Heights 2 to 4 and widths 2 to 4; 3 x 4 and 4 x 3 are listed as wide and as tall.
    assert set(shapes) == {(2, 6), (3, 4), (4, 3), (6, 2)}
    expected = {(2, 6): 1 / 6, (3, 4): 2 / 6, (4, 3): 2 / 6, (6, 2): 1 / 6}
    for shape, share in expected.items():
        assert abs(shapes[shape] / draws - share) < 5 * sqrt(share * (1 - share) / draws)
    places = Counter((y, x) for y, x, h, w in drawn if (h, w) == (2, 6))
    number = shapes[2, 6]
    assert set(places) == {(y, x) for y in range(5) for x in range(4)}
    assert all(abs(n / number - 1 / 20) < 5 * sqrt(1 / 20 * 19 / 20 / number) for n in places.values())


def test_patches_are_whole_cells_of_14_pixels():
    mask = pixel_mask(45, 60, 0.5, 1, mask_key(0, "patch"), kind="patch")
    cells = {(y // 14, x // 14): set() for y in range(45) for x in range(60)}
    for y in range(45):
        for x in range(60):
            cells[y // 14, x // 14].add(bool(mask[y, x]))
    assert all(len(values) == 1 for values in cells.values())
    assert len({value for values in cells.values() for value in values}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 0.5, 0, (0, 0)), "image is 5 x 0"),
        ((2**16, 2**16, 0.5, 0, (0, 0)), "under 2"),
        ((5, 5, 1.5, 0, (0, 0)), "mask ratio is 1.5"),
        ((5, 5, 0.5, -1, (0, 0)), "realization is -1"),
        ((5, 5, 0.5, 0, (0, 0), 2**32), "image_index is"),
        ((5, 5, 0.5, 0, (0, 0), 0, "blur"), "mask kind is 'blur'"),
    ],
)
def test_masks_refuse_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        pixel_mask(*arguments)


VARIANTS = {
    "ratios": [0.0, 0.3, 0.3, 0.7, 1.0],
    "realizations": [0, 0, 1, 9, 0],
    "keys": [mask_key(0, "v"), mask_key(0, "v"), mask_key(0, "v"), mask_key(5, "w"), mask_key(0, "v")],
}


def variant_masks(height, width, kind, indices):
    """Return the masks that VARIANTS stand for."""
    rows = zip(*VARIANTS.values(), indices, strict=True)
    return [pixel_mask(height, width, ratio, k, key, index, kind) for ratio, k, key, index in rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("hwc", torch.uint8), ("chw", torch.float32), ("chw", torch.float16), ("chw", torch.bfloat16)],
)
def test_mask_pixels_puts_fill_where_the_mask_is(layout, dtype, kind):
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(19, 23, 3, generator=generator) * 100 + 50).to(dtype)
    fill = [7, 8, 9] if dtype == torch.uint8 else [-1.7922625, 1e-3, 2.5]
    expected = [
        torch.where(mask[..., None], torch.tensor(fill).to(dtype), image)
        for mask in variant_masks(19, 23, kind, [2] * 5)
    ]
    given, turned = (
        (image, torch.stack(expected))
        if layout == "hwc"
        else (
            image.permute(2, 0, 1),
            torch.stack(expected).permute(0, 3, 1, 2),
        )
    )
    before = given.clone()
    result = mask_pixels(given, **VARIANTS, fill=fill, kind=kind, layout=layout, image_index=2)
    assert result.dtype == dtype
    assert torch.equal(result, turned)
    assert torch.equal(given, before)
    buffer = torch.full(result.shape, 99, dtype=dtype)
    assert mask_pixels(given, **VARIANTS, fill=fill, kind=kind, layout=layout, image_index=2, out=buffer) is buffer
    assert torch.equal(buffer, turned)


def test_mask_pixels_takes_one_image_a_variant():
    images = torch.rand(5, 3, 8, 11, generator=torch.Generator().manual_seed(0)) + 1
    indices = [0, 1, 2, 0, 4]
    result = mask_pixels(images, **VARIANTS, layout="chw", image_index=indices)
    for i, mask in enumerate(variant_masks(8, 11, "pixel", indices)):
        assert torch.equal(result[i], images[i].masked_fill(mask, 0.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("patch_size", "merge_size"), [(14, 2), (16, 2), (4, 1), (3, 3)])
def test_mask_pixels_on_patches_is_patches_of_the_masked_image(patch_size, merge_size, kind):
    grid = (1, 2 * merge_size, 3 * merge_size)
    height, width = grid[1] * patch_size, grid[2] * patch_size
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) + 1

    def patches(pixels):
        """Qwen2-VL's order, one patch at a time."""
        rows = []
        for top in range(0, grid[1], merge_size):
            for left in range(0, grid[2], merge_size):
                for y in range(top, top + merge_size):
                    for x in range(left, left + merge_size):
                        cut = (slice(y * patch_size, (y + 1) * patch_size), slice(x * patch_size, (x + 1) * patch_size))
                        rows.append(torch.cat([pixels[c][cut].reshape(-1) for c in (0, 0, 1, 1, 2, 2)]))
        return torch.stack(rows)

    fill = [-1.5, -2.5, -3.5]
    expected = mask_pixels(image, **VARIANTS, fill=fill, kind=kind, layout="chw")
    result = mask_pixels(
        patches(image),
        **VARIANTS,
        fill=fill,
        kind=kind,
        layout="patches",
        grid_thw=grid,
        patch_size=patch_size,
        merge_size=merge_size,
    )
    for variant, image in zip(result, expected, strict=True):
        assert torch.equal(variant, patches(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": [0.5]}, "1 ratios, 5 realizations"),
        ({"image_index": [0, 1]}, "image_index has 2"),
        ({"layout": "nhwc"}, "layout is 'nhwc'"),
        ({"images": torch.zeros(3, 4)}, "images have shape"),
        ({"images": torch.zeros(2, 4, 4, 3)}, "or a stack of 1 or 5"),
        ({"out": torch.zeros(5, 4, 4, 2)}, "out is"),
        ({"out": torch.zeros(5, 4, 3, 4).transpose(2, 3)}, "not contiguous"),
        ({"fill": [0.0, 1.0]}, "fill has 2 values"),
        ({"images": torch.zeros(4, 4, 3, dtype=torch.uint8), "fill": -1.8}, "must be integers"),
        ({"layout": "patches", "images": torch.zeros(8, 1176), "grid_thw": None}, "grid_thw is None"),
        ({"layout": "patches", "images": torch.zeros(8, 1176), "grid_thw": (2, 2, 2)}, "one still image"),
        ({"layout": "patches", "images": torch.zeros(6, 1176), "grid_thw": (1, 3, 2)}, "multiples of merge_size"),
        ({"layout": "patches", "images": torch.zeros(4, 1000), "grid_thw": (1, 2, 2)}, "a patch has 1000 values"),
    ],
)
def test_mask_pixels_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        mask_pixels(**({"images": torch.zeros(4, 4, 3)} | VARIANTS | change))
