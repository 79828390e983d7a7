import dataclasses
import os

import cv2
import numpy as np
import pytest

from sfm_tf.config import DataConfig
from sfm_tf.datasets.catalogue import OPENERS, open_source
from sfm_tf.errors import SfmError


def test_has_every_dataset_that_can_be_configured():
    (field,) = (field for field in dataclasses.fields(DataConfig) if field.name == "dataset")
    assert set(OPENERS) == set(field.metadata["choices"])


def test_keeps_the_size_of_images():
    source = open_source(DataConfig(dataset="digits"))
    assert (source.height, source.width) == (8, 8)


def test_resizes_images():
    source = open_source(DataConfig(dataset="digits", image_size=4))
    assert (source.height, source.width, source.channels) == (4, 4, 1)
    full = next(open_source(DataConfig(dataset="digits")).splits["train"]())
    small = next(source.splits["train"]())
    assert (small.key, small.label) == (full.key, full.label)
    means = full.image.reshape(4, 2, 4, 2, 1).mean(axis=(1, 3))
    np.testing.assert_allclose(small.image, means, rtol=0, atol=0.5 + 1e-6)


def test_resizing_brings_mixed_sizes_together(tmp_path):
    for label, shape in {"cat": (9, 12, 3), "dog": (20, 10, 3)}.items():
        (tmp_path / label).mkdir()
        assert cv2.imwrite(os.fspath(tmp_path / label / "a.png"), np.full(shape, 50, np.uint8))
    config = DataConfig(dataset="image_folder", source=os.fspath(tmp_path), image_size=5)
    images = [record.image for record in open_source(config).splits["train"]()]
    np.testing.assert_array_equal(images, np.full((2, 5, 5, 3), 50))


@pytest.mark.parametrize("dataset", ["tiny_imagenet", "image_folder"])
def test_missing_data_is_one_line(tmp_path, dataset):
    config = DataConfig(dataset=dataset, data_dir=os.fspath(tmp_path), source=f"{tmp_path}/absent")
    with pytest.raises(SfmError, match=f"{tmp_path}/absent") as info:
        open_source(config)
    assert "\n" not in str(info.value)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
