"""Bytes to pixels: the one definition that training, serving and export share.

JPEG, PNG, GIF, BMP, WebP and TIFF; the first frame of an animation; EXIF orientation applied; transparency laid on
white; 16-bit greys scaled to 8 bits, and greys without a defined white (32-bit integers, floats) stretched from their
least to their greatest value; embedded colour profiles ignored. The picture is then stretched to a square with an
antialiasing bilinear filter: Pillow's, computed by `fast_image_resize` in a fifth of the time, at most one grey level
apart from it, and the same on processors with and without vector instructions. Large JPEGs are reduced while they are
decoded, never below twice the target: five times faster at 12 megapixels, and within about a grey level of decoding
them whole.

Changing what any byte string decodes to means a new `contracts.models.PREPROCESSING_VERSION`.

Array axes: H height, W width, C channel (red, green, blue).
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from services.contracts.datasets import QuarantineReason
from services.contracts.errors import ImageRejected

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 178_956_970
"""Twice Pillow's default warning level, which is where Pillow itself refuses to open an image."""
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")

# Pillow warns from half of MAX_PIXELS on, and of odd metadata. We decide by the size in the header, before anything is
# allocated, and by whether the pixels decode: the warnings would only be noise. Set once here, since warning filters
# are global and not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,  # a header may claim strips of any length
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders are known to raise on broken input."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_BILINEAR = ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear))

ImageHWC = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class View:
    """One fixed augmentation: a square cut out and enlarged, colours changed, and the whole mirrored."""

    left: float = 0
    """Of the square cut out, as a share of the image's side."""
    top: float = 0
    """As `left`."""
    side: float = 1
    """As `left`."""
    contrast_percent: int = 100
    """Of each value's distance from middle grey."""
    brightness: int = 0
    """Grey levels added."""
    mirrored: bool = False


VIEWS = (
    View(),
    View(mirrored=True),
    View(left=0, top=0, side=0.8),
    View(left=0.2, top=0.2, side=0.8, mirrored=True),
    View(left=0.2, top=0, side=0.8),
    View(left=0, top=0.2, side=0.8, mirrored=True),
    View(contrast_percent=130, brightness=16),
    View(contrast_percent=70, brightness=-16, mirrored=True),
)
"""What `view` knows, by index. The cache of features names views by index: never change one, only add."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Pixels, after EXIF orientation."""

    width: int
    height: int


def warm_up() -> None:
    """Has everything loaded that the first image would wait for."""
    made = io.BytesIO()
    Image.new("RGB", (64, 48)).save(made, "JPEG")
    read(made.getvalue(), 32)


def inspect(data: bytes) -> ImageSize:
    """The image's size, after decoding all of it: `decode` will not reject what this accepts.

    Raises `ImageRejected`.
    """
    image = _open(data)
    stored = image.size
    image.draft(image.mode, (1, 1))  # a JPEG's every byte is read all the same, but into 1/64 of the memory
    _load(image)
    _to_rgb(image)
    return _upright_size(image, stored)


def read(data: bytes, size: int) -> tuple[ImageSize, ImageHWC]:
    """What `inspect` and `decode` say, from decoding it once. Raises `ImageRejected`."""
    image = _open(data)
    stored = image.size
    image_HWC = _scaled(image, (2 * size, 2 * size), (size, size))
    return _upright_size(image, stored), image_HWC


def decode(data: bytes, size: int) -> ImageHWC:
    """The image as `size` by `size` RGB pixels: uint8 [size, size, 3], 0 to 255.

    A pure function of its arguments, safe to call from several threads. Raises `ImageRejected`, whose
    `details["reason"]` is a `QuarantineReason`.
    """
    return _scaled(_open(data), (2 * size, 2 * size), (size, size))


def decode_for_people(data: bytes, max_side: int) -> ImageHWC:
    """The image in its own proportions, reduced to at most `max_side` pixels a side, never enlarged: uint8 [H, W, 3].

    Otherwise as `decode`, which shows all of it as well: what is at some share of the height and width there is at the
    same share here. Raises `ImageRejected`.
    """
    image = _open(data)
    width, height = image.size
    scale = min(1.0, max_side / max(width, height))
    size = round(width * scale), round(height * scale)
    return _scaled(image, size, (max(1, size[0]), max(1, size[1])))


def view(image_HWC: ImageHWC, index: int) -> ImageHWC:
    """One of an image's fixed augmentations, `VIEWS[index]`; 0 is the image itself, 1 its mirror image.

    A pure function of its arguments. Raises `ValueError` for an unknown index.
    """
    if not 0 <= index < len(VIEWS):
        raise ValueError(f"there is no view {index}: use 0 to {len(VIEWS) - 1}")
    recipe = VIEWS[index]
    if recipe.side != 1:
        height, width = image_HWC.shape[:2]
        left, top = recipe.left * width, recipe.top * height
        box = (left, top, left + recipe.side * width, top + recipe.side * height)
        cut = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR, box=box)
        image_HWC = np.array(cut, dtype=np.uint8)
    if recipe.contrast_percent != 100 or recipe.brightness:
        levels = np.arange(256)
        levels = 128 + (levels - 128) * recipe.contrast_percent // 100 + recipe.brightness
        image_HWC = np.clip(levels, 0, 255).astype(np.uint8)[image_HWC]
    return np.ascontiguousarray(image_HWC[:, ::-1]) if recipe.mirrored else image_HWC


def _open(data: bytes) -> Image.Image:
    """The image with its header read and its pixels not. Allocates nothing that the header asks for."""
    if not data:
        raise _rejected(QuarantineReason.ZERO_BYTES, "the file is empty")
    if len(data) > MAX_BYTES:
        raise _rejected(QuarantineReason.TOO_LARGE, f"the file has {len(data)} bytes: at most {MAX_BYTES} are read")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise _rejected(QuarantineReason.TOO_MANY_PIXELS, f"the image is too large: {error}") from error
    except _DECODER_ERRORS as error:
        raise _corrupt(error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _rejected(
            QuarantineReason.TOO_MANY_PIXELS, f"the image has {width} x {height} pixels: at most {MAX_PIXELS} are read"
        )
    if width < 1 or height < 1:
        raise _rejected(QuarantineReason.CORRUPT, f"the image has {width} x {height} pixels")
    return image


def _scaled(image: Image.Image, least: tuple[int, int], size: tuple[int, int]) -> ImageHWC:
    """The image in RGB, upright, stretched to `size` before it is turned; a JPEG is decoded to `least` or larger."""
    image.draft(image.mode, least)
    _load(image)
    orientation = _orientation(image)
    scaled = Image.new("RGB", size)
    Resizer().resize_pil(_to_rgb(image), scaled, _BILINEAR)  # one for each: they are not for several threads
    if orientation in _TRANSPOSITIONS:  # after the resize: stretching commutes with it, and what it gives is smaller
        scaled = scaled.transpose(_TRANSPOSITIONS[orientation])
    return np.array(scaled, dtype=np.uint8)


def _load(image: Image.Image) -> None:
    """Decodes the pixels. A file that ends early is corrupt, however much of it could be shown."""
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise _rejected(QuarantineReason.TOO_MANY_PIXELS, f"the image is too large: {error}") from error
    except _DECODER_ERRORS as error:
        raise _corrupt(error) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none that can be read. After `_load`, in which a TIFF turns itself."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1  # the pixels are fine; broken metadata is no reason to lose the image
    return orientation if isinstance(orientation, int) and orientation in _TRANSPOSITIONS else 1


def _upright_size(image: Image.Image, stored: tuple[int, int]) -> ImageSize:
    """Of a loaded image whose header says `stored`, width and height."""
    width, height = stored
    return ImageSize(height, width) if _orientation(image) >= 5 else ImageSize(width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The loaded image in mode RGB, transparency laid on white."""
    try:
        if image.mode.startswith("I;16"):
            return _grey(np.asarray(image).astype(np.uint32) // 257)
        if image.mode in ("I", "F"):
            return _grey(_stretched(np.asarray(image)))
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            return Image.alpha_composite(white, layer).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")
    except _DECODER_ERRORS as error:
        message = f"images in Pillow mode {image.mode!r} cannot be read as RGB ({error}): save it as RGB or greyscale"
        raise _rejected(QuarantineReason.NOT_AN_IMAGE, message) from error


def _grey(values_HW: npt.NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(values_HW.astype(np.uint8)).convert("RGB")


def _stretched(values_HW: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Values mapped so that the least is 0 and the greatest 255; what is not finite becomes 0."""
    values = values_HW.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    low, high = values[finite].min(), values[finite].max()
    if low == high:
        return np.zeros_like(values)
    return np.where(finite, np.round((np.where(finite, values, low) - low) / (high - low) * 255), 0)


def _rejected(reason: QuarantineReason, message: str) -> ImageRejected:
    return ImageRejected(message, {"reason": reason.value})


def _corrupt(error: BaseException) -> ImageRejected:
    return _rejected(QuarantineReason.CORRUPT, f"the image is damaged: {error or type(error).__name__}")


_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


def _unidentified(data: bytes) -> ImageRejected:
    """Pillow also says "cannot identify" when a known format's header is cut short or mangled."""
    if data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return _rejected(QuarantineReason.CORRUPT, "the image is damaged: its header cannot be read")
    accepted = "JPEG, PNG, GIF, BMP, WebP or TIFF"
    return _rejected(QuarantineReason.NOT_AN_IMAGE, f"the file is not an image that can be read: use {accepted}")
