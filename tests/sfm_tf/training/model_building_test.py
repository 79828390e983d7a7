"""Tests of the choice of arithmetic and of building models under it."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.models.settings import ModelConfig
from sfm_tf.records.schema import Schema
from sfm_tf.training.model_building import (
    ChannelStatistics,
    ModelFactory,
    Seeds,
    classifier_optimizer,
    dtype_policy,
    masker_optimizer,
    read_channel_statistics,
    resolve_precision,
    with_resolved_precision,
)
from sfm_tf.training.settings import TrainingConfig

_CONFIG = ModelConfig(
    classifier_width=4, masker_width=4, masker_depth=2, preprocessor="median_3", surrogate="smooth"
)
_SCHEMA = Schema(8, 12, 3, ("cat", "dog", "eel"), {"train": 4, "validation": 1, "test": 1})
_STATISTICS = ChannelStatistics((0.1, 0.2, 0.3), (0.04, 0.09, 0.16))


def _factory(seed=0):
    return ModelFactory(_CONFIG, _SCHEMA, _STATISTICS, Seeds.spawn(seed))


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
    model = _factory().defended()
    assert model.classifier.input_shape == (None, 8, 12, 3)
    assert model.classifier.output_shape == (None, 3)
    assert model.masker.output_shape == (None, 8, 12, 1)
    assert (model.preprocessor.spec, model.preprocessor.surrogate) == ("median_3", "smooth")
    normalised = model.classifier.get_layer("normalization")(np.full((1, 1, 1, 3), 0.5))
    np.testing.assert_allclose(np.ravel(normalised), [0.4 / 0.2, 0.3 / 0.3, 0.2 / 0.4], rtol=1e-5)


def test_source_is_the_same_classifier_with_other_weights_and_nothing_before_it():
    defended, source = _factory().defended(), _factory().source()
    assert source.masker is None
    assert source.preprocessor.spec == "none"
    own, other = source.classifier.get_weights(), defended.classifier.get_weights()
    assert [weight.shape for weight in own] == [weight.shape for weight in other]
    assert not np.array_equal(own[0], other[0])


def test_building_again_gives_the_same_weights_also_with_nothing_before_the_classifier():
    defended, again, bare = _factory().defended(), _factory().defended(), _factory().bare()
    assert (bare.masker, bare.preprocessor.spec) == (None, "none")
    for other in (bare.classifier, again.classifier):
        for pair in zip(other.get_weights(), defended.classifier.get_weights(), strict=True):
            np.testing.assert_array_equal(*pair)
    for pair in zip(again.masker.get_weights(), defended.masker.get_weights(), strict=True):
        np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (5, 0.2 / 2),
        (10, 0.2),
        (105, 0.2 * 0.5),
        (200, 0.0),
        (60, 0.2 * (1 + math.cos(math.pi * 50 / 190)) / 2),
    ],
)
def test_classifier_warms_up_and_decays_like_a_cosine(step, expected):
    optimizer = classifier_optimizer(TrainingConfig(classifier_learning_rate=0.2), 200)
    optimizer.build([keras.Variable(np.zeros(1))])
    optimizer.iterations.assign(step)
    assert float(optimizer.learning_rate) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_shortest_trainings_have_a_schedule(steps):
    optimizer = classifier_optimizer(TrainingConfig(), steps)
    variable = keras.Variable(np.zeros(1))
    for _ in range(steps + 1):
        optimizer.apply([np.ones(1, np.float32)], [variable])
    assert np.isfinite(variable.numpy()).all()


def test_classifier_has_nesterov_momentum():
    optimizer = classifier_optimizer(TrainingConfig(), 100)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)


def test_masker_clips_the_norm_of_all_gradients_together():
    # Adam's first moment after one step is a tenth of the gradient it was given.
    optimizer = masker_optimizer(TrainingConfig(masker_learning_rate=0.01))
    variables = [keras.Variable(np.zeros(1)), keras.Variable(np.zeros(1))]
    optimizer.apply([np.array([30.0]), np.array([40.0])], variables)
    moments = [v.numpy()[0] for v in optimizer.variables if v.path.endswith("momentum")]
    np.testing.assert_allclose(moments, [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose([v.numpy()[0] for v in variables], [-0.01, -0.01], rtol=1e-4)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([], "float32"),
        ([(9, 0)], "mixed_bfloat16"),
        ([(8, 0)], "mixed_bfloat16"),
        ([(7, 5)], "float32"),
        ([(8, 6), (7, 0)], "float32"),
        ([None], "float32"),
    ],
)
def test_auto_is_bfloat16_where_every_gpu_has_it(monkeypatch, capabilities, expected):
    def details(gpu):
        return {} if capabilities[gpu] is None else {"compute_capability": capabilities[gpu]}

    gpus = list(range(len(capabilities)))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details)
    assert resolve_precision("auto") == expected


def test_settings_say_what_auto_stands_for_and_else_stay():
    auto = TrainingConfig(batch_size=7)
    resolved = with_resolved_precision(auto)
    assert resolved.mixed_precision == resolve_precision("auto")
    assert dataclasses.replace(resolved, mixed_precision="auto") == auto
    chosen = TrainingConfig(mixed_precision="mixed_float16")
    assert with_resolved_precision(chosen) == chosen


def test_layers_made_inside_have_the_policy_and_later_ones_do_not_even_after_an_exception():
    made = []

    def fail():
        with dtype_policy("float64"), dtype_policy("mixed_bfloat16"):
            made.append(keras.layers.Dense(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    made.append(keras.layers.Dense(1))
    assert [layer.compute_dtype for layer in made] == ["bfloat16", "float32"]
