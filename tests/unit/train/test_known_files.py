"""What is known of a dataset's files: each is read once, and nothing is taken for known that has changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from ray_cluster.train.inspection import Inspected, RejectedFile, UsableImage
from ray_cluster.train.known_files import INSPECTION_VERSION, KnownFiles, find_all, save
from ray_cluster.train.listing import ListedFile
from services.contracts import names
from services.contracts.datasets import QuarantineReason, Split
from services.contracts.ids import DatasetId
from services.runtime.objects import ObjectStore, open_store

DATASET = DatasetId("ds_test")
IMAGE = UsableImage(ListedFile("cat/a.jpg", 10, "e1", "cat", Split.TRAIN), "a" * 64, 40, 30)
BROKEN = RejectedFile(ListedFile("cat/b.jpg", 3, "e2", "cat", Split.TRAIN), QuarantineReason.CORRUPT, "damaged")
UNREAD = RejectedFile(ListedFile("cat/c.jpg", 9, "e3", "cat", Split.TRAIN), QuarantineReason.UNREADABLE, "away")


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


def known(store: ObjectStore, *files: ListedFile) -> tuple[list[Inspected], list[ListedFile]]:
    return find_all(KnownFiles.load(store, DATASET), files)


def test_what_was_found_is_found_again_and_what_could_not_be_read_is_not(store: ObjectStore) -> None:
    save(store, DATASET, [IMAGE, UNREAD])
    save(store, DATASET, [BROKEN])
    assert known(store, IMAGE.file, BROKEN.file, UNREAD.file) == ([IMAGE, BROKEN], [UNREAD.file])
    assert len(KnownFiles.load(store, DatasetId("ds_other"))) == 0


@pytest.mark.parametrize("change", [{"etag": "e9"}, {"size_bytes": 11}, {"path": "cat/z.jpg"}], ids=str)
def test_a_file_that_has_changed_is_read_again(store: ObjectStore, change: dict[str, object]) -> None:
    save(store, DATASET, [IMAGE])
    changed = replace(IMAGE.file, **change)
    assert known(store, changed) == ([], [changed])


def test_label_and_split_are_the_listings(store: ObjectStore) -> None:
    save(store, DATASET, [IMAGE])
    moved = replace(IMAGE.file, label="dog", split=Split.TEST)
    assert known(store, moved) == ([replace(IMAGE, file=moved)], [])


def test_to_keep_the_same_twice_leaves_one_record(store: ObjectStore) -> None:
    save(store, DATASET, [IMAGE, BROKEN])
    save(store, DATASET, [BROKEN, IMAGE])
    save(store, DATASET, [UNREAD])
    assert len(list(store.list(names.dataset_inspections(DATASET, INSPECTION_VERSION)))) == 1


def test_a_damaged_record_counts_as_absent(store: ObjectStore) -> None:
    save(store, DATASET, [IMAGE])
    save(store, DATASET, [BROKEN])
    info, _ = store.list(names.dataset_inspections(DATASET, INSPECTION_VERSION))
    store.put(info.key, store.get(info.key)[:-5])
    found, unknown = known(store, IMAGE.file, BROKEN.file)
    assert (len(found), len(unknown)) == (1, 1)
