"""Tests of the logs, read back with TensorBoard's own reader."""

import keras
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.training.training_logs import TrainingLogs

_IMAGES = np.linspace(0.0, 1.0, 2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
_EPOCH = {"training": {"mask_loss": 2.5}, "validation": {"defended_accuracy": 0.75}}


def _defended(has_masker=True):
    inputs = keras.Input((8, 8, 1))
    classifier = keras.Model(inputs, keras.layers.Flatten()(inputs))
    mask = keras.layers.Conv2D(1, 1, activation="sigmoid")
    return DefendedModel(classifier, keras.Model(inputs, mask(inputs)) if has_masker else None)


def _read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def test_figures_and_masks_are_there_under_their_epoch(tmp_path):
    with TrainingLogs(tmp_path) as logs:
        logs.write_epoch(3, _EPOCH)
        logs.write_masks(3, _defended(), _IMAGES)
    log = _read(tmp_path)
    names = {"training/mask_loss", "validation/defended_accuracy"}
    names |= {"masks/image", "masks/mask", "masks/masked"}
    assert set(log.Tags()["tensors"]) == names
    (event,) = log.Tensors("training/mask_loss")
    assert (event.step, tf.make_ndarray(event.tensor_proto)) == (3, 2.5)
    # Width, height and a PNG for each image.
    (event,) = log.Tensors("masks/mask")
    assert len(event.tensor_proto.string_val) == 2 + len(_IMAGES)


def test_model_without_a_masker_and_no_images_show_nothing(tmp_path):
    with TrainingLogs(tmp_path) as logs:
        logs.write_masks(1, _defended(has_masker=False), _IMAGES)
        logs.write_masks(1, _defended(), _IMAGES[:0])
    assert _read(tmp_path).Tags()["tensors"] == []


def test_process_that_writes_no_logs_makes_no_folder(tmp_path):
    with TrainingLogs(None, profile_steps=3) as logs:
        logs.write_epoch(1, _EPOCH)
        logs.write_masks(1, _defended(), _IMAGES)
        logs.profile_step(2)
    assert list(tmp_path.iterdir()) == []


def test_steps_of_the_second_epoch_are_profiled(tmp_path):
    with TrainingLogs(tmp_path, profile_steps=2) as logs:
        for _ in range(3):
            logs.profile_step(1)
        assert not list(tmp_path.rglob("*.xplane.pb"))
        for _ in range(3):
            logs.profile_step(2)
        assert list(tmp_path.rglob("*.xplane.pb"))
