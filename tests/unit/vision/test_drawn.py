"""The demo's images."""

import hashlib
import io
from pathlib import Path

from PIL import Image

from ray_cluster.vision import images
from ray_cluster.vision.drawn import OBJECTS, draw_dataset


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


def test_the_layout_is_a_folder_per_split_and_class(tmp_path: Path) -> None:
    draw_dataset(tmp_path, train_per_class=3, test_per_class=2)
    assert {path.name for path in (tmp_path / "train").iterdir()} == set(OBJECTS)
    assert {path.name for path in (tmp_path / "test").iterdir()} == set(OBJECTS)
    assert len(contents(tmp_path)) == len(OBJECTS) * 5


def test_every_image_is_usable_and_no_two_are_alike(tmp_path: Path) -> None:
    draw_dataset(tmp_path, train_per_class=4, test_per_class=2)
    for path in tmp_path.rglob("*.jpg"):
        size = images.inspect(path.read_bytes())
        assert 96 <= size.width == size.height <= 160
        assert Image.open(io.BytesIO(path.read_bytes())).mode == "RGB"
    hashes = list(contents(tmp_path).values())
    assert len(set(hashes)) == len(hashes)


def test_the_seed_fixes_every_byte(tmp_path: Path) -> None:
    for folder, seed in [("a", 0), ("b", 0), ("c", 1)]:
        draw_dataset(tmp_path / folder, train_per_class=2, test_per_class=1, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not set(contents(tmp_path / "a").values()) & set(contents(tmp_path / "c").values())


def test_a_larger_set_contains_the_smaller_one(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "small", train_per_class=1, test_per_class=1)
    draw_dataset(tmp_path / "large", train_per_class=2, test_per_class=1)
    assert contents(tmp_path / "small").items() <= contents(tmp_path / "large").items()
