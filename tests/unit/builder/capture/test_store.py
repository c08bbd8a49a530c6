"""Samples in a folder: written whole, found by age and by request, and read back as labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.captured_samples import DOCUMENT, IMAGE, sample
from segserve_builder.capture.labelling import corrected, data_set
from segserve_builder.capture.store import SampleStore
from segserve_builder.errors import GoldenError, SinkError
from segserve_builder.sources.access import LOCAL, Access


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    return SampleStore((tmp_path / "samples").as_uri(), LOCAL)


def requests(store: SampleStore) -> list[str]:
    return [row.request_id for row in store.rows("coins")]


def test_a_sample_is_read_as_it_was_written_however_often(store: SampleStore) -> None:
    for _ in range(2):
        store.write(sample("a", 1000.0))

    (row,) = store.rows("coins")
    assert (store.image(row), store.coco(row)) == (IMAGE, json.loads(DOCUMENT))
    assert list(store.rows("other")) == []


def test_old_samples_and_those_of_a_request_are_deleted_whole(store: SampleStore, tmp_path: Path) -> None:
    for request_id, at_s in (("old", 1000.0), ("kept", 2000.0), ("asked", 3000.0)):
        store.write(sample(request_id, at_s))

    assert store.delete("coins", before_s=1500.0) == 3
    assert store.delete("coins", request_id="asked") == 3
    assert requests(store) == ["kept"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_a_request_is_found_by_its_id_whatever_that_is(store: SampleStore) -> None:
    for number, request_id in enumerate(("tenant/7+a=", "Jane <jane@example.com>", "x" * 300, "\udce4")):
        store.write(sample(request_id, 1000.0 + number))

        row = store.row("coins", request_id)
        assert row is not None
        assert row == store.row("coins", row.key)
        assert row.captured_at_s == 1000.0 + number
        assert store.delete("coins", request_id=request_id) == 3
        assert store.row("coins", request_id) is None


def test_only_the_newest_rows_and_those_since_a_time_are_read(store: SampleStore) -> None:
    for number in range(6):
        store.write(sample(f"id-{number}", 1000.0 + number))

    assert [row.request_id for row in store.rows("coins", newest=2)] == ["id-4", "id-5"]
    assert [row.request_id for row in store.rows("coins", since_s=1003.5)] == ["id-4", "id-5"]
    assert [row.request_id for row in store.rows("coins", since_s=1004.5, newest=2)] == ["id-5"]


def test_what_a_killed_write_left_in_a_folder_is_deleted_by_its_age(store: SampleStore, tmp_path: Path) -> None:
    written = sample("a", 1000.0)
    store.write(written)
    (image,) = tmp_path.rglob("images/*")
    image.with_name(f"{image.name}#1").write_bytes(IMAGE)

    assert store.delete("coins", before_s=500.0) == 0
    assert store.delete("coins", before_s=2000.0) == 4
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_crash_left_without_a_row_is_no_sample_and_is_deleted_by_its_age(
    store: SampleStore, tmp_path: Path
) -> None:
    store.write(sample("a", 1000.0))
    for row in tmp_path.rglob("manifest/*"):
        row.unlink()

    assert requests(store) == []
    assert store.delete("coins", before_s=2000.0) == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_object_that_was_changed_or_named_by_a_stranger_is_refused(store: SampleStore, tmp_path: Path) -> None:
    written = sample("a", 1000.0)
    store.write(written)
    (tmp_path / "samples/coins" / written.row.image).write_bytes(b"another")
    (tmp_path / "secret").write_bytes(b"secret")

    with pytest.raises(SinkError, match="not what was captured"):
        store.image(written.row)
    with pytest.raises(SinkError, match="not the name of a sample"):
        store.image(written.row.model_copy(update={"image": "images/../../../secret"}))


def test_rows_of_a_newer_release_are_left_out(store: SampleStore, tmp_path: Path) -> None:
    store.write(sample("a", 1000.0))
    (tmp_path / "samples/coins/manifest/1000000000000-0123456789abcdef.json").write_text('{"key": 1}')

    assert requests(store) == ["a"]


@pytest.mark.parametrize("uri", ["https://example.com/x", "oci://registry/x", "file://host/x"])
def test_a_place_that_cannot_be_written_to_is_refused(uri: str) -> None:
    with pytest.raises(SinkError):
        SampleStore(uri, LOCAL)


def test_a_folder_outside_of_those_allowed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not below a folder that is allowed"):
        SampleStore(tmp_path.as_uri(), Access(folders=()))


def corrections(**entry: Any) -> bytes:
    image = {"id": 5, "file_name": "images/x.jpg", "height": 20, "width": 20}
    square = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
    annotation = {"id": 1, "image_id": 5, "category_id": 3, "segmentation": square, "bbox": [2, 2, 6, 6], **entry}
    categories = [{"id": 3, "name": "coin"}]
    return json.dumps({"images": [image], "categories": categories, "annotations": [annotation]}).encode()


def test_corrections_become_labels_by_the_names_of_classes() -> None:
    (item,) = corrected(corrections(), {"coin": 1}, joins=False)

    assert (item.file_name, item.labels.size, item.labels.classes) == ("x.jpg", (20, 20), (1,))
    assert item.labels.masks
    uncompressed = {"size": [20, 20], "counts": [40, 10, 350]}
    assert corrected(corrections(segmentation=uncompressed), {"coin": 1}, joins=True)[0].labels.masks
    assert corrected(corrections(segmentation=[]), {"coin": 1}, joins=False)[0].labels.boxes == ((2, 2, 8, 8),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{}", "not a COCO data set"),
        (b"no JSON", "not a COCO data set"),
        (corrections(segmentation=[[1.0, 2.0, 3.0]]), "not a COCO data set"),
        (corrections(segmentation=[[10**400, 1, 2, 2, 3, 3]]), "not a COCO data set"),
        (corrections(segmentation="2,2,8,2"), "must be polygons, or size and counts"),
        (corrections(segmentation={"counts": [40, 10, 350]}), "must be polygons, or size and counts"),
        (corrections(segmentation={"size": [10, 40], "counts": [40, 10, 350]}), "are not of an image of 20 x 20"),
        (corrections(segmentation={"size": [20, 20], "counts": [40, 10, 351]}), "cover 401 pixels"),
        (corrections(segmentation={"size": [20, 20], "counts": [40, -10, 370]}), "non-negative integers"),
        (corrections(segmentation={"size": [20, 20], "counts": "4"}), "cover 4 pixels"),
        (corrections(category_id=9), "not a COCO data set"),
    ],
)
def test_what_is_no_data_set_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(GoldenError, match=told):
        corrected(content, {"coin": 1}, joins=False)


def test_an_image_that_is_listed_twice_is_named() -> None:
    document = json.loads(corrections())
    document["images"].append(document["images"][0] | {"id": 6, "file_name": "other/x.jpg"})

    with pytest.raises(GoldenError, match=r"lists? x\.jpg more than once"):
        corrected(json.dumps(document).encode(), {"coin": 1}, joins=False)


def test_a_class_that_the_model_does_not_have_is_named() -> None:
    with pytest.raises(GoldenError, match="'coin'; the model has road"):
        corrected(corrections(), {"road": 1}, joins=False)


def test_samples_are_one_data_set_with_numbers_of_its_own() -> None:
    document = json.loads(corrections())
    whole = data_set([(sample(name, 1.0).row, document) for name in ("a", "b")] + [(sample("c", 1.0).row, None)])

    assert [each["id"] for each in whole["images"]] == [1, 2, 3]
    assert [(each["id"], each["image_id"]) for each in whole["annotations"]] == [(1, 1), (2, 2)]
