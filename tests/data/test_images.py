"""Images of every mode, orientation and state, and references that must be rejected."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from hardsample.data.images import DEFAULT_MAX_PIXELS, ImageError, as_ref, image_header, open_image, to_rgb

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims some size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def palette(colour: tuple[int, int, int], **info) -> Image.Image:
    image = Image.new("P", (3, 2), 1)
    image.putpalette([9, 9, 9, *colour])
    image.info.update(info)
    return image


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("1", (3, 2), 1), WHITE),
        (Image.new("L", (3, 2), 77), (77, 77, 77)),
        (Image.new("RGB", (3, 2), (1, 2, 3)), (1, 2, 3)),
        (palette(RED), RED),
        (palette(RED, transparency=1), WHITE),
        (palette(RED, transparency=b"\xff\x80"), (255, 127, 127)),
        (Image.new("PA", (3, 2), (0, 0)), WHITE),
        (Image.new("LA", (3, 2), (0, 0)), WHITE),
        (Image.new("LA", (3, 2), (100, 255)), (100, 100, 100)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (3, 2), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("RGBa", (3, 2), (0, 0, 0, 0)), WHITE),
        (Image.new("La", (3, 2), (0, 0)), WHITE),
        (Image.new("RGBX", (3, 2), (5, 6, 7, 0)), (5, 6, 7)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), RED),
        (Image.new("CMYK", (3, 2), (0, 0, 0, 0)), WHITE),
        (Image.new("YCbCr", (3, 2), (255, 128, 128)), WHITE),
        (Image.new("HSV", (3, 2), (0, 255, 255)), RED),
        (Image.new("LAB", (3, 2), (0, 128, 128)), BLACK),
        (Image.new("I;16", (3, 2), 65535), WHITE),
        (Image.new("I;16", (3, 2), 32896), (128, 128, 128)),
        (Image.new("I;16B", (3, 2), 32896), (128, 128, 128)),
        (Image.new("I", (3, 2), 32896), (128, 128, 128)),
        (Image.new("F", (3, 2), 0.5), (128, 128, 128)),
        (Image.new("F", (3, 2), 128.0), (128, 128, 128)),
        (Image.new("F", (3, 2), float("nan")), BLACK),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_the_rgb_that_a_person_sees(image, pixel):
    rgb = open_image(image)
    assert (rgb.mode, rgb.size) == ("RGB", (3, 2))
    # LAB goes through a colour profile, which rounds by one
    assert np.abs(np.subtract(rgb.getpixel((1, 1)), pixel)).max() <= (image.mode == "LAB")


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 1 << 20, 1 << 21]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.25, 1.0]], np.float32), [0, 64, 255]),
        (np.array([[0.0, 64.0, 255.0]], np.float32), [0, 64, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[1e5, 2e5, 3e5]], np.float32), [0, 128, 255]),
        (np.array([[7e5, 7e5, 7e5]], np.float32), [0, 0, 0]),
    ],
)
def test_numbers_are_scaled_and_not_clipped(values, grey):
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == grey


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_files(kind):
    data = encode(Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)), kind)
    assert image_header(data) == (4, 1, "I;16")
    assert np.asarray(open_image(data))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_pgm():
    data = b"P5 3 1 65535\n" + np.array([0, 32896, 65535], ">u2").tobytes()
    assert np.asarray(open_image(data))[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk_jpeg_is_not_inverted():
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    assert image_header(data) == (16, 16, "CMYK")
    assert np.abs(np.subtract(open_image(data).getpixel((8, 8)), RED)).max() < 12


def test_colour_key_transparency_shows_white():
    assert open_image(encode(Image.new("RGB", (2, 2), RED), transparency=RED)).getpixel((0, 0)) == WHITE


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert open_image(data).getpixel((2, 2)) == RED


def test_one_pixel_and_ten_megapixels():
    assert open_image(encode(Image.new("L", (1, 1), 9))).getpixel((0, 0)) == (9, 9, 9)
    large = encode(Image.new("RGB", (4000, 2500), RED), "JPEG")
    assert image_header(large) == (4000, 2500, "RGB")
    assert open_image(large).size == (4000, 2500)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    """An image with a red top-left quarter is stored rotated; once opened, the quarter is at the top left again."""
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 16, 8))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = stored.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    assert image_header(data) == (32, 16, "RGB")
    opened = np.asarray(open_image(data)).astype(int)
    assert opened.shape == (16, 32, 3)
    assert np.abs(opened[4, 8] - RED).max() < 40
    assert opened[12, 8].min() > 200
    assert opened[4, 24].min() > 200


def test_the_result_carries_no_orientation_to_be_applied_twice():
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    opened = open_image(encode(image, "JPEG", exif=exif))
    assert opened.size == (2, 4)
    assert opened.info == {}
    assert not opened.getexif()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_cost_the_image():
    data = encode(Image.new("RGB", (4, 2), RED), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(data).size == (4, 2)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_from_the_header(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(60000, 60000))
    for ask in (open_image, image_header):
        with pytest.raises(ImageError, match="3600000000 pixels"):
            ask(tmp_path / "bomb.png")
    claimed = png_header(9000, 10000)
    with pytest.raises(
        ImageError, match=rf"9000 × 10000 = 90000000 pixels, more than the {DEFAULT_MAX_PIXELS} allowed"
    ):
        open_image(claimed)


def test_max_pixels_is_a_bound_that_is_still_allowed():
    data = encode(Image.new("L", (10, 10)))
    assert open_image(data, max_pixels=100).size == (10, 10)
    for ask in (open_image, image_header):
        with pytest.raises(ImageError, match="10 × 10 = 100 pixels, more than the 99 allowed; shrink it or raise"):
            ask(data, max_pixels=99)
    with pytest.raises(ImageError, match="more than the 99 allowed"):
        open_image(Image.new("L", (10, 10)), max_pixels=99)


def test_truncated_and_corrupt_files():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise))
    cut = whole[: len(whole) // 2]
    assert image_header(cut) == (64, 64, "RGB")
    with pytest.raises(ImageError, match=r"\(PNG\) cannot be decoded"):
        open_image(cut)
    jpeg = encode(Image.fromarray(noise), "JPEG")
    with pytest.raises(ImageError, match=r"\(JPEG\) cannot be decoded"):
        open_image(jpeg[: len(jpeg) // 2])
    for junk in (b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", whole[:20]):
        with pytest.raises(ImageError):
            open_image(junk)


def test_paths_bytes_uris_and_mappings_all_open(tmp_path):
    data = encode(Image.new("RGB", (3, 2), RED))
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    packed = base64.b64encode(data).decode()
    refs = [path, str(path), data, f"file://{str(path).replace(' ', '%20')}", {"bytes": data, "path": "gone.png"}]
    refs += [
        {"bytes": None, "path": str(path)},
        {"url": str(path)},
        {"bytes": packed},
        f"data:image/png;base64,{packed}",
    ]
    for ref in refs:
        assert open_image(ref).getpixel((0, 0)) == RED
        assert image_header(ref) == (3, 2, "RGB")
    assert open_image("a b.png", root=tmp_path).size == (3, 2)
    assert as_ref("a b.png", tmp_path) == {"bytes": None, "path": str(path.resolve())}


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("missing.png", "file 'missing.png' does not exist under .*; fix the path or set --image-root"),
        ("../secret.png", "'../secret.png' is outside .*; move the image there or set --image-root"),
        ("/etc/hostname", "is outside"),
        ("link.png", "'link.png' is outside"),
        ("folder/x.png", "is outside"),
        ("loop.png", "not a usable path"),
        (".", "is not a file"),
        ("a\0b.png", "not a usable path"),
        ("x" * 5000, "not a usable path"),
        ("https://example.org/a.png", "is a URL; download the image first"),
        ("s3://bucket/a.png", "is a URL"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,!!!", "is not base64"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        (None, "cannot be of type NoneType"),
        (3, "cannot be of type int"),
    ],
    ids=lambda value: str(value)[:30].replace("\0", "0"),
)
def test_references_that_are_refused(tmp_path, ref, message):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encode(Image.new("L", (1, 1))))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop.png").symlink_to(root / "loop.png")
    with pytest.raises(ImageError, match=message):
        as_ref(ref, root)


def test_links_and_absolute_paths_inside_the_root_are_fine(tmp_path):
    target = tmp_path / "real.png"
    target.write_bytes(encode(Image.new("L", (1, 1))))
    (tmp_path / "link.png").symlink_to(target)
    for ref in ("link.png", str(target), "./x/../real.png"):
        assert as_ref(ref, tmp_path)["path"] == str(target.resolve())


def test_a_header_is_read_again_when_the_file_changes(tmp_path):
    path = Path(tmp_path / "a.png")
    path.write_bytes(encode(Image.new("L", (3, 2))))
    assert image_header(path) == (3, 2, "L")
    path.write_bytes(encode(Image.new("RGB", (50, 40))))
    assert image_header(path) == (50, 40, "RGB")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def profile(block: bytes, kind: bytes, packed: bytes) -> bytes:
    """Return the EXIF block as ImageMagick writes it: hexadecimal text in lines."""
    digits = (b"Exif\0\0" + block).hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = f"\n{kind.decode()}\n{len(digits) // 2:8}\n{lines}\n".encode()
    keyword = b"Raw profile type " + kind + b"\0"
    if packed == b"zTXt":
        return chunk(packed, keyword + b"\0" + zlib.compress(text))
    if packed == b"iTXt":
        return chunk(packed, keyword + b"\0\0\0\0" + text)
    return chunk(packed, keyword + text)


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("way", ["eXIf", "exif tEXt", "exif zTXt", "APP1 zTXt", "exif iTXt"])
def test_a_pngs_orientation_wherever_it_is_written(way, position, tmp_path):
    stored = Image.new("RGB", (8, 4), WHITE)
    stored.paste(RED, (0, 0, 4, 2))
    data = encode(stored)
    kind, _, packed = way.partition(" ")
    added = chunk(b"eXIf", exif_block(6)) if way == "eXIf" else profile(exif_block(6), kind.encode(), packed.encode())
    at = data.index(b"IDAT" if position == "before" else b"IEND") - 4
    data = data[:at] + added + data[at:]
    (tmp_path / "a.png").write_bytes(data)
    for ref in (data, tmp_path / "a.png"):
        assert image_header(ref) == (4, 8, "RGB")
        opened = open_image(ref)
        assert opened.size == (4, 8)
        # turned to the right: the corner that was at the top left is at the top right
        assert (opened.getpixel((3, 0)), opened.getpixel((0, 7))) == (RED, WHITE)
    cut = data[: at + len(added) // 2]
    if position == "after":
        assert image_header(cut) == (8, 4, "RGB")  # a block that is cut off is none


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("top", "white"), [(255, 255), (1023, 1023), (4095, 4095), (4000, 4095), (40000, 65535)])
def test_fewer_bits_in_a_file_of_sixteen_are_not_black(kind, top, white):
    data = encode(Image.fromarray(np.array([[0, top // 2, top]], np.uint16)), kind)
    grey = np.asarray(open_image(data))[0, :, 0].tolist()
    assert grey == [round(value * 255 / white) for value in (0, top // 2, top)]


def test_an_image_in_memory_becomes_bytes_upright():
    image = Image.new("RGB", (4, 2), RED)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    lazy = Image.open(io.BytesIO(encode(image, "JPEG", exif=exif, quality=95)))
    for given, size in ((image.copy(), (4, 2)), (lazy, (2, 4)), (Image.new("CMYK", (4, 2)), (4, 2))):
        ref = as_ref(given)
        assert image_header(ref)[:2] == size
        assert open_image(ref).size == size
    assert image_header(as_ref(Image.new("I;16", (3, 2), 7)))[2] == "I;16"


def test_base64_without_a_uri_is_an_image():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    assert as_ref(base64.b64encode(buffer.getvalue()).decode()) == {"bytes": buffer.getvalue(), "path": None}
    with pytest.raises(ImageError, match="does not exist"):
        as_ref("iVBORw0KGgo.png")
