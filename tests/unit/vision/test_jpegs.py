"""What libjpeg-turbo reads, how far it reduces it, and what it leaves to Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from ray_cluster.vision import jpegs


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    rows_HW = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(rows_HW).convert(mode).save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_it_gives_what_pillow_gives(mode: str) -> None:
    data = jpeg(120, 90, mode)
    pixels_HWC = jpegs.decode(data, 448)
    assert pixels_HWC is not None
    assert (pixels_HWC.shape, pixels_HWC.dtype) == ((90, 120, 3), np.uint8)
    by_pillow_HWC = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(pixels_HWC - by_pillow_HWC).max() <= 2


@pytest.mark.parametrize(("least_side", "shape"), [(301, (600, 800, 3)), (300, (300, 400, 3)), (1, (75, 100, 3))])
def test_large_ones_are_reduced_by_two_at_least(least_side: int, shape: tuple[int, int, int]) -> None:
    pixels_HWC = jpegs.decode(jpeg(800, 600), least_side)
    assert pixels_HWC is not None
    assert min(pixels_HWC.shape[:2]) >= least_side
    assert pixels_HWC.shape == shape


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 cut", jpeg(80, 60)[:-300]])
def test_the_rest_is_left_to_pillow(data: bytes) -> None:
    assert jpegs.decode(data, 100) is None
