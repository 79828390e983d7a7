"""Tests of fitting a PixelCNN to real digits: that it learns, resumes and stops."""

import keras
import numpy as np
import pytest
import sklearn.datasets

from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import bits_per_dimension, build_pixel_cnn
from sfm_tf.training.checkpoints import Checkpoints
from sfm_tf.training.pixel_cnn_fitting import fit_pixel_cnn


def _digits(count):
    images = sklearn.datasets.load_digits().images[:count, :, :, np.newaxis] / 16
    return images.astype(np.float32)


def _fit(model=None, epochs=3, learning_rate=0.01, progress=lambda *_: None, checkpoints=None):
    model = model or build_pixel_cnn((8, 8, 1), width=8, depth=1, mixtures=3, seed=0)
    digits = _digits(420)
    history = fit_pixel_cnn(
        model,
        digits[:330],
        digits[330:],
        epochs=epochs,
        batch_size=32,
        learning_rate=learning_rate,
        seed=5,
        progress=progress,
        checkpoints=checkpoints,
    )
    return model, history


@pytest.fixture(scope="module")
def finished():
    """One training: its model, its history and its progress reports."""
    reports = []
    return *_fit(progress=lambda *report: reports.append(report)), reports


def _bits(epoch, split):
    return epoch[split]["bits_per_dimension"]


def test_bits_per_dimension_fall_on_images_it_was_not_trained_on(finished):
    untrained = build_pixel_cnn((8, 8, 1), width=8, depth=1, mixtures=3, seed=0)
    digits = np.rint(_digits(420)[330:] * 255) / np.float32(255)
    before = np.mean(bits_per_dimension(digits, untrained(digits)))
    model, history, _ = finished
    after = np.mean(bits_per_dimension(digits, model(digits)))
    assert _bits(history[-1], "validation") == pytest.approx(after, rel=1e-4)
    assert after < before - 0.5
    validation = [_bits(epoch, "validation") for epoch in history]
    assert validation == sorted(validation, reverse=True)
    assert _bits(history[-1], "training") < _bits(history[0], "training")
    assert {epoch["stage"] for epoch in history} == {"pixel_cnn"}


def test_progress_counts_all_steps(finished):
    # 330 images in batches of 32 are 10 steps, in each of 3 epochs.
    assert [report[1:] for report in finished[2]] == [(done, 30) for done in range(1, 31)]
    assert finished[2][0][0].startswith("PixelCNN at ")


class _Interruption(Exception):  # noqa: N818
    pass


def test_interrupted_training_ends_where_an_uninterrupted_one_of_its_seed_does(tmp_path, finished):
    def interrupt(phrase, done, total):
        del phrase, total
        if done == 25:
            raise _Interruption

    checkpoints = Checkpoints(tmp_path, {"epochs": 3})
    with pytest.raises(_Interruption):
        _fit(progress=interrupt, checkpoints=checkpoints)
    steps = []
    resumed, history = _fit(
        progress=lambda phrase, done, total: steps.append(done), checkpoints=checkpoints
    )
    assert steps == list(range(21, 31))
    assert len(history) == 3
    for pair in zip(resumed.get_weights(), finished[0].get_weights(), strict=True):
        # TensorFlow's threads may add in another order; everything else is the same.
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-5)


def test_trained_model_loads_in_safe_mode_without_its_loss(tmp_path, finished):
    finished[0].save(tmp_path / "pixel_cnn.keras")
    loaded = keras.saving.load_model(tmp_path / "pixel_cnn.keras", safe_mode=True)
    digits = _digits(3)
    np.testing.assert_array_equal(loaded(digits), finished[0](digits))
    assert not loaded.compiled


def test_loss_that_is_no_number_stops_naming_its_step():
    with pytest.raises(SfmError, match=r"became nan in step \d+ of epoch 1; lower its learning"):
        _fit(epochs=1, learning_rate=1e30)
