import os

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client import image_batches
from sfm_tf.serving.client.image_batches import (
    UnsendableFileError,
    batches,
    check_batch_size,
    checked_content,
    checked_images,
    read_image_file,
)


def test_floats_of_any_width_become_float32():
    images = checked_images(np.full((1, 2, 2, 3), 0.1))
    assert images.dtype == np.float32
    assert images[0, 0, 0, 0] == np.float32(0.1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 2, 2, 3), np.uint8), r"dtype uint8 and shape \(1, 2, 2, 3\)"),
        (np.zeros((2, 2, 3), np.float32), r"shape \(2, 2, 3\)"),
        (np.full((1, 2, 2, 3), 255.0), "divide 8-bit values by 255"),
        (np.full((1, 2, 2, 3), -0.1), "outside"),
        (np.full((1, 2, 2, 3), np.nan), "outside"),
    ],
)
def test_refuses_images_that_the_model_was_not_made_for(images, message):
    with pytest.raises(SfmError, match=message):
        checked_images(images)


def test_reads_a_file_of_the_largest_size_and_none_above(tmp_path, monkeypatch):
    monkeypatch.setattr(image_batches, "LARGEST_FILE", 4)
    path = tmp_path / "a.png"
    path.write_bytes(b"1234")
    assert read_image_file(path) == b"1234"
    path.write_bytes(b"12345")
    with pytest.raises(UnsendableFileError, match="Cannot send .*a.png': over 4 bytes") as caught:
        read_image_file(path)
    assert caught.value.reason == "over 4 bytes"
    with pytest.raises(SfmError, match="Cannot send 5 bytes; expected at most 4"):
        checked_content(b"12345")


def test_what_is_no_file_is_named_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("pipe.png", "no regular file"),
        ("folder.png", "Is a directory"),
        ("gone.png", "No such file or directory"),
    ):
        with pytest.raises(UnsendableFileError, match=reason):
            read_image_file(tmp_path / name)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1, 1, 1, 1, 1], [[1, 1], [1, 1], [1]]),
        ([6, 4, 1], [[6, 4], [1]]),
        ([6, 5, 5], [[6], [5, 5]]),
        ([11, 1], [[11], [1]]),
        ([0, 0, 0], [[0, 0], [0]]),
    ],
)
def test_a_request_is_bounded_in_images_and_bytes(monkeypatch, sizes, expected):
    monkeypatch.setattr(image_batches, "LARGEST_REQUEST", 10)
    assert list(batches(sizes, 2, lambda size: size)) == expected


def test_items_are_taken_only_as_they_are_needed():
    taken = []
    items = (taken.append(number) or number for number in range(100))
    next(batches(items, 3, lambda item: 1))
    assert len(taken) == 4


@pytest.mark.parametrize("batch_size", [0, -1, 1025])
def test_refuses_batch_sizes_out_of_range(batch_size):
    with pytest.raises(SfmError, match="expected 1 to 1024"):
        check_batch_size(batch_size)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
