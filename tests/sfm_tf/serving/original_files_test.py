import io

import numpy as np
import pytest
from PIL import Image

from sfm_tf.serving.original_files import ingest_files, make_files


def levels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_eight_files_are_of_both_formats_and_larger_and_smaller_than_the_model(channels):
    files = [Image.open(io.BytesIO(file)) for file in make_files(levels(8, 10, 12, channels))]
    assert {file.format for file in files} == {"PNG", "JPEG"}
    assert len({file.size for file in files}) >= 6
    for side, own in enumerate((12, 10)):
        assert min(file.size[side] for file in files) < own < max(file.size[side] for file in files)
    assert any(file.format == "JPEG" and file.width > 12 and file.height > 10 for file in files)
    assert any(file.format == "PNG" and file.width < 12 and file.height < 10 for file in files)
    if channels == 1:
        assert {file.mode for file in files} <= {"L", "I;16"}


@pytest.mark.parametrize("shape", [(8, 10, 12, 3), (9, 1, 1, 1), (7, 1, 2, 3)], ids=str)
def test_ingest_makes_images_of_the_model_of_all_of_them(shape):
    images = levels(*shape)
    found = ingest_files(make_files(images), shape[1:])
    assert found.dtype == np.float32
    assert found.shape == shape
    np.testing.assert_array_equal(np.rint(found * 255) / np.float32(255), found)
    # The fifth file is a PNG of the model's own size.
    np.testing.assert_array_equal(found[4], images[4] / np.float32(255))
