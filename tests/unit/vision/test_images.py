"""Bytes to pixels. Array axes: H height, W width, C channel."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cykooz_resizer import CpuExtensions, Resizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_cluster.vision import images
from services.contracts.datasets import QuarantineReason
from services.contracts.errors import ImageRejected

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
"""Damaged metadata, on purpose."""


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours with one bright corner, so that a turn or a flip shows."""
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    red, green = 255 * x_HW / width, 255 * y_HW / height
    blue = np.where((x_HW < width / 3) & (y_HW < height / 3), 255, 20)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8)).convert(mode)


def reason_of(data: bytes, size: int = 32) -> str:
    with pytest.raises(ImageRejected) as decoding:
        images.decode(data, size)
    with pytest.raises(ImageRejected) as inspecting:
        images.inspect(data)
    with pytest.raises(ImageRejected):
        images.read(data, 32)
    assert decoding.value.details["reason"] == inspecting.value.details["reason"]
    return str(decoding.value.details["reason"])


def assert_close(actual: np.ndarray, expected: np.ndarray, mean: float) -> None:
    difference = np.abs(actual.astype(int) - expected.astype(int)).mean()
    assert difference <= mean, f"{difference:.2f} grey levels apart on average"


# --- what is accepted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_every_accepted_format_gives_the_same_picture(image_format: str) -> None:
    pixels = images.decode(encoded(scene(90, 60), image_format), 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    expected = np.asarray(scene(90, 60).resize((32, 32), Image.Resampling.BILINEAR))
    assert_close(pixels, expected, mean=6)  # GIF has 256 colours


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"),
        ("CMYK", "TIFF"), ("L", "TIFF"), ("P", "GIF"), ("RGBA", "WEBP"), ("P", "BMP"), ("YCbCr", "TIFF"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode: str, image_format: str) -> None:
    source = scene(80, 80, mode)
    pixels = images.decode(encoded(source, image_format), 40)
    expected = source.convert("RGB").resize((40, 40), Image.Resampling.BILINEAR)
    assert_close(pixels, np.asarray(expected), mean=6)


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    pixels = images.decode(encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"), 8)
    assert_close(pixels, np.full((8, 8, 3), (255, 0, 0)), mean=3)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_greys_are_scaled_not_clipped(image_format: str) -> None:
    values_HW = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    pixels = images.decode(encoded(Image.fromarray(values_HW), image_format), 64)
    assert_close(pixels[0, :, 0], np.linspace(0, 255, 64), mean=1)
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_sixteen_bit_colour_is_scaled() -> None:
    row = b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 4
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * 4)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    assert images.decode(b"\x89PNG\r\n\x1a\n" + body, 2)[0, 0].tolist() == [255, 128, 0]


def test_float_greys_are_stretched_and_gaps_are_black() -> None:
    values_HW = np.tile(np.linspace(-2, 3, 64).astype(np.float32), (64, 1))
    values_HW[:, 0] = np.nan
    pixels = images.decode(encoded(Image.fromarray(values_HW), "TIFF"), 64)
    assert pixels[0, 0, 0] == 0
    assert pixels[0, -1, 0] == 255
    assert abs(int(pixels[0, 32, 0]) - 128) <= 4


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_on_white(image_format: str) -> None:
    see_through = Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    assert (images.decode(encoded(see_through, image_format, lossless=True), 4) == 255).all()
    assert_close(images.decode(encoded(half, image_format), 4), np.full((4, 4, 3), 127), mean=2)


def test_a_transparent_palette_colour_lies_on_white() -> None:
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert (images.decode(encoded(palette, "GIF", transparency=1), 4) == 255).all()
    assert (images.decode(encoded(palette, "PNG", transparency=1), 4) == 255).all()


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_shows_its_first_frame(image_format: str) -> None:
    later = [Image.new("RGB", (30, 30), colour) for colour in ("lime", "blue")]
    data = encoded(Image.new("RGB", (30, 30), "red"), image_format, save_all=True, append_images=later)
    assert_close(images.decode(data, 8), np.full((8, 8, 3), (255, 0, 0)), mean=3)


# --- orientation ----------------------------------------------------------------------------------------------------

UPRIGHT = scene(160, 80)
STORED_AS = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""What a camera held that way stores for the upright picture."""


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int, image_format: str) -> None:
    method = STORED_AS[orientation]
    stored = UPRIGHT.transpose(method) if method is not None else UPRIGHT
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, image_format, exif=exif)
    expected = images.decode(encoded(UPRIGHT, image_format), 32)
    assert_close(images.decode(data, 32), expected, mean=2)
    assert images.inspect(data) == images.ImageSize(width=160, height=80)
    size, pixels = images.read(data, 32)
    assert size == images.ImageSize(width=160, height=80)
    assert (pixels == images.decode(data, 32)).all()
    shown_HWC = images.decode_for_people(data, 64)
    assert shown_HWC.shape == (32, 64, 3)
    assert_close(shown_HWC, np.asarray(UPRIGHT.resize((64, 32), Image.Resampling.BILINEAR)), mean=3)


def test_for_people_an_image_is_never_enlarged_and_never_vanishes() -> None:
    assert images.decode_for_people(encoded(scene(90, 60), "PNG"), 640).shape == (60, 90, 3)
    assert images.decode_for_people(encoded(scene(500, 2), "PNG"), 64).shape == (1, 64, 3)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_not_cost_the_image(exif: bytes) -> None:
    data = encoded(UPRIGHT, "JPEG", exif=exif)
    assert images.inspect(data) == images.ImageSize(160, 80)
    assert_close(images.decode(data, 32), images.decode(encoded(UPRIGHT, "JPEG"), 32), mean=0)


# --- resizing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(2400, 1600), (3000, 500), (500, 3000), (1500, 230), (224, 224), (5, 3)])
def test_a_jpeg_decoded_small_looks_like_one_decoded_whole(width: int, height: int) -> None:
    rng = np.random.default_rng(0)
    grain = Image.fromarray(rng.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), np.uint8))
    picture = Image.blend(scene(width, height), grain.resize((width, height)), 0.3)
    data = encoded(picture, "JPEG", quality=90)
    whole = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    assert_close(images.decode(data, 224), np.asarray(whole), mean=1.5)


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (224, 224), (100, 700), (31, 7), (1, 1), (3, 5000), (3000, 2500)]
)
def test_the_stretch_is_pillows_but_for_a_grey_level(width: int, height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    pixels = images.decode(encoded(Image.fromarray(noise), "BMP"), 64)
    expected = np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("extensions", list(CpuExtensions))
def test_the_stretch_is_the_same_on_every_processor(extensions: CpuExtensions, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited() -> Resizer:
        resizer = Resizer()
        resizer.cpu_extensions = extensions  # what a processor does not have changes nothing
        return resizer

    data = encoded(scene(500, 375), "JPEG")
    pixels = images.decode(data, 224)
    monkeypatch.setattr(images, "Resizer", limited)
    assert (images.decode(data, 224) == pixels).all()


def test_a_picture_is_stretched_to_the_square() -> None:
    wide = Image.new("RGB", (200, 50), "black")
    wide.paste("white", (100, 0, 200, 50))
    pixels = images.decode(encoded(wide, "PNG"), 20)
    assert (pixels[:, :9] == 0).all()
    assert (pixels[:, 11:] == 255).all()


def test_a_ten_thousand_pixel_wide_image_is_read() -> None:
    data = encoded(scene(10_000, 3_000), "JPEG")
    assert images.inspect(data) == images.ImageSize(10_000, 3_000)
    assert images.decode(data, 64).shape == (64, 64, 3)


def test_view_one_is_the_mirror_image() -> None:
    pixels = images.decode(encoded(scene(64, 64), "PNG"), 16)
    assert images.view(pixels, 0) is pixels
    assert (images.view(pixels, 1) == pixels[:, ::-1]).all()


@pytest.mark.parametrize("index", range(len(images.VIEWS)))
def test_every_view_is_a_picture_of_its_own(index: int) -> None:
    pixels = images.decode(encoded(scene(64, 64), "PNG"), 48)
    before = pixels.copy()
    seen = images.view(pixels, index)
    assert (seen.shape, seen.dtype, seen.flags.c_contiguous) == (pixels.shape, np.uint8, True)
    assert np.array_equal(seen, images.view(pixels, index))
    assert np.array_equal(pixels, before)
    others = [images.view(pixels, other) for other in range(len(images.VIEWS)) if other != index]
    assert all(np.abs(seen.astype(int) - other.astype(int)).mean() > 2 for other in others)


def test_a_crop_shows_its_part_of_the_image() -> None:
    pixels = images.decode(encoded(scene(100, 100), "PNG"), 100)
    part = Image.fromarray(pixels[20:, :80]).resize((100, 100), Image.Resampling.BILINEAR)
    assert_close(images.view(pixels, 5)[:, ::-1], np.asarray(part), mean=0)


def test_brightness_and_contrast_stay_in_range() -> None:
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    bright, pale = images.view(greys, 6).ravel()[::3], images.view(greys, 7)[:, ::-1].ravel()[::3]
    assert (bright.min(), bright.max(), bright[128]) == (0, 255, 144)
    assert (pale.min(), pale.max(), pale[128]) == (22, 200, 112)
    assert (np.diff(bright.astype(int)) >= 0).all()


@pytest.mark.parametrize("index", [-1, len(images.VIEWS)])
def test_an_unknown_view_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"no view {index}"):
        images.view(np.zeros((4, 4, 3), np.uint8), index)


def test_decoding_in_threads_gives_the_same_pixels() -> None:
    files = [encoded(scene(300 + 7 * n, 200), "JPEG") for n in range(16)]
    alone = [images.decode(data, 48) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: images.decode(data, 48), files * 4))
    for one, other in zip(alone * 4, together, strict=True):
        assert np.array_equal(one, other)


# --- what is rejected, and why --------------------------------------------------------------------------------------


def test_an_empty_file_says_so() -> None:
    assert reason_of(b"") == QuarantineReason.ZERO_BYTES


@pytest.mark.parametrize(
    "data",
    [b"hello", b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 500, b"PK\3\4" + b"\0" * 100,
     b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"],
)  # fmt: skip
def test_another_kind_of_file_is_not_an_image_and_hears_what_is(data: bytes) -> None:
    assert reason_of(data) == QuarantineReason.NOT_AN_IMAGE
    with pytest.raises(ImageRejected, match="JPEG, PNG, GIF, BMP, WebP or TIFF"):
        images.decode(data, 32)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_corrupt(image_format: str, kept: float) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)), image_format)
    assert reason_of(data[: int(len(data) * kept)]) == QuarantineReason.CORRUPT


def test_a_truncated_progressive_jpeg_is_corrupt() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (400, 400, 3), np.uint8))
    data = encoded(picture, "JPEG", progressive=True)
    assert reason_of(data[: len(data) // 2]) == QuarantineReason.CORRUPT


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb += struct.pack(">I", 4) + b"IDAT" + b"\0" * 4 + struct.pack(">I", zlib.crc32(b"IDAT" + b"\0" * 4))
    assert reason_of(bomb) == QuarantineReason.TOO_MANY_PIXELS


def test_a_huge_file_is_refused_unread() -> None:
    assert reason_of(bytes(images.MAX_BYTES + 1)) == QuarantineReason.TOO_LARGE


# --- anything at all ------------------------------------------------------------------------------------------------

SEEDS = [
    encoded(scene(24, 16), "JPEG"),
    encoded(scene(24, 16), "JPEG", progressive=True),
    encoded(scene(24, 16), "PNG"),
    encoded(scene(24, 16, "P"), "PNG"),
    encoded(scene(24, 16), "GIF"),
    encoded(scene(24, 16), "BMP"),
    encoded(scene(24, 16), "WEBP"),
    encoded(scene(24, 16), "TIFF"),
    encoded(scene(24, 16), "TIFF", compression="tiff_lzw"),
    encoded(scene(24, 16), "TIFF", compression="jpeg"),
]


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    kept=st.floats(0.05, 1),
    tail=st.binary(max_size=16),
)
def test_mutated_files_are_read_or_rejected_and_nothing_else(
    seed: bytes, edits: list[tuple[float, int]], kept: float, tail: bytes
) -> None:
    data = bytearray(seed[: int(len(seed) * kept)])
    for where, value in edits:
        data[int(where * len(data))] = value
    mutated = bytes(data) + tail
    try:
        size = images.inspect(mutated)
    except ImageRejected:
        assert reason_of(mutated) in set(QuarantineReason)
    else:
        assert size.width > 0
        assert images.decode(mutated, 8).shape == (8, 8, 3)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"])
)
def test_random_bytes_are_rejected(noise: bytes, start: bytes) -> None:
    with pytest.raises(ImageRejected):
        images.decode(start + noise, 8)


@pytest.mark.shared_data
def test_real_photographs_decode(data_dir: Path) -> None:
    for path in sorted((data_dir / "datasets" / "hemlock_cherry").rglob("*.jpg")):
        data = path.read_bytes()
        with Image.open(path) as image:
            assert images.inspect(data) == images.ImageSize(*image.size)
            whole = np.asarray(image.convert("RGB").resize((96, 96), Image.Resampling.BILINEAR))
        assert_close(images.decode(data, 96), whole, mean=1.5)
