"""Tests of the building of models from settings, statistics and seeds."""

import json

import numpy as np
import pytest

from sfm_tf.config import ModelConfig
from sfm_tf.errors import SfmError
from sfm_tf.records.schema import Schema
from sfm_tf.training.blueprint import Blueprint, ChannelStatistics, Seeds, read_channel_statistics

_CONFIG = ModelConfig(
    classifier_width=4, masker_width=4, masker_depth=2, preprocessor="median_3", surrogate="smooth"
)
_SCHEMA = Schema(8, 12, 3, ("cat", "dog", "eel"), {"train": 4, "validation": 1, "test": 1})
_STATISTICS = ChannelStatistics((0.1, 0.2, 0.3), (0.04, 0.09, 0.16))


def _blueprint(seed=0):
    return Blueprint(_CONFIG, _SCHEMA, _STATISTICS, Seeds.spawn(seed))


def test_seeds_differ_fit_31_bits_and_repeat():
    seeds = Seeds.spawn(2**31 - 1)
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert Seeds.spawn(2**31 - 1) == seeds
    assert not set(Seeds.spawn(1)) & set(Seeds.spawn(2))


def test_seeds_that_were_added_later_leave_the_earlier_ones_as_they_were():
    assert Seeds.spawn(7)[:5] == (1041839916, 1969781632, 2092892605, 71099000, 866300847)


def test_variance_is_the_square_of_the_standard_deviation_of_train(tmp_path):
    statistics = {"train": {"mean": [0.25, 0.5], "std": [0.1, 0.2]}, "test": {"mean": [0, 0]}}
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    found = read_channel_statistics(tmp_path)
    assert found.mean == (0.25, 0.5)
    assert found.variance == pytest.approx((0.01, 0.04))


@pytest.mark.parametrize("text", [None, "{", "{}", '{"train": {"mean": [0.5], "std": null}}'])
def test_unreadable_statistics_name_the_file(tmp_path, text):
    if text is not None:
        (tmp_path / "statistics.json").write_text(text)
    with pytest.raises(SfmError, match=r"Cannot read .*statistics.json .* run the ingest again"):
        read_channel_statistics(tmp_path)


def test_defended_model_follows_the_settings():
    model = _blueprint().defended()
    assert model.classifier.input_shape == (None, 8, 12, 3)
    assert model.classifier.output_shape == (None, 3)
    assert model.masker.output_shape == (None, 8, 12, 1)
    assert (model.preprocessor.spec, model.preprocessor.surrogate) == ("median_3", "smooth")
    normalised = model.classifier.get_layer("normalization")(np.full((1, 1, 1, 3), 0.5))
    np.testing.assert_allclose(np.ravel(normalised), [0.4 / 0.2, 0.3 / 0.3, 0.2 / 0.4], rtol=1e-5)


def test_source_is_the_same_classifier_with_other_weights_and_nothing_before_it():
    defended, source = _blueprint().defended(), _blueprint().source()
    assert source.masker is None
    assert source.preprocessor.spec == "none"
    own, other = source.classifier.get_weights(), defended.classifier.get_weights()
    assert [weight.shape for weight in own] == [weight.shape for weight in other]
    assert not np.array_equal(own[0], other[0])


def test_bare_classifier_is_that_of_the_defended_model_with_nothing_before_it():
    defended, bare = _blueprint().defended(), _blueprint().bare()
    assert bare.masker is None
    assert bare.preprocessor.spec == "none"
    for pair in zip(bare.classifier.get_weights(), defended.classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(*pair)


def test_building_again_gives_the_same_weights():
    for pair in zip(
        _blueprint().defended().get_weights(), _blueprint().defended().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(*pair)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
