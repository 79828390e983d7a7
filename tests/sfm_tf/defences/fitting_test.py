import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.defences.fitting import (
    PATCHES_FILE,
    PIXEL_CNN_FILE,
    fit_operation,
    fitted_operations,
    settings_of,
)
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.models.resnet import build_classifier
from sfm_tf.preprocessors.chain import parse_preprocessor

CONFIG = ComparedConfig(
    quilting_patches=200, pixel_cnn_width=4, pixel_cnn_depth=1, pixel_cnn_epochs=1
)
IMAGES = tf.constant(np.random.default_rng(0).random((3, 8, 8, 1), dtype=np.float32))


@pytest.fixture(name="folders", scope="module")
def _folders(records, tmp_path_factory):
    folders = {}
    for name in ("quilting", "pixel_defend"):
        folders[name] = tmp_path_factory.mktemp(name)
        fit_operation(name, records.folder, CONFIG, 0, folders[name], lambda *report: None)
    return folders


def _classifier():
    return build_classifier("resnet20", (8, 8, 1), 10, width=4)


@pytest.mark.parametrize("spec", ["quilting_1", "pixel_defend_16", "sensitivity_10"])
def test_a_fitted_operation_is_one_of_a_chain(folders, spec):
    fitted = fitted_operations(folders, _classifier())
    defended = parse_preprocessor(f"{spec}+bit_depth_4", fitted=fitted)(IMAGES).numpy()
    assert defended.shape == IMAGES.shape
    np.testing.assert_allclose(defended * 15, np.round(defended * 15), atol=1e-4)


def test_the_same_seed_fits_the_same_and_another_one_something_else(records, tmp_path):
    contents = []
    for place, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(place)
        folder.mkdir()
        fit_operation("quilting", records.folder, CONFIG, seed, folder, lambda *report: None)
        contents.append(fitted_operations({"quilting": folder}, _classifier())["quilting"].content)
    assert contents[0] == contents[1] != contents[2]


def test_only_the_settings_of_a_fit_count_for_it():
    config = dataclasses.replace(CONFIG, jpeg="jpeg_10", quilting="quilting_5")
    assert settings_of("pixel_defend", config) == settings_of("pixel_defend", CONFIG)
    assert settings_of("quilting", config) == settings_of("quilting", CONFIG)
    more = dataclasses.replace(CONFIG, quilting_patches=300)
    assert settings_of("quilting", more) != settings_of("quilting", CONFIG)


@pytest.mark.parametrize(
    ("name", "file"), [("quilting", PATCHES_FILE), ("pixel_defend", PIXEL_CNN_FILE)]
)
def test_a_damaged_file_is_named(tmp_path, name, file):
    with pytest.raises(SfmError, match=file):
        fitted_operations({name: tmp_path}, _classifier())
    (tmp_path / file).write_bytes(b"damaged")
    with pytest.raises(SfmError, match=file):
        fitted_operations({name: tmp_path}, _classifier())
