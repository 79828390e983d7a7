"""Fits a PixelCNN to images by maximum likelihood (Salimans et al. 2017), deterministically."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sfm_tf.artifacts.progress import Progress
from sfm_tf.errors import SfmError
from sfm_tf.models.pixel_cnn import bits_per_dimension
from sfm_tf.training.batches import evaluation_batches, training_batches, training_steps
from sfm_tf.training.checkpoints import Checkpoints, History, Position

_FINAL_RATE = 0.1
"""Share of the learning rate that is left at the end, after its exponential decay."""


def fit_pixel_cnn(
    model: keras.Model,
    images: np.ndarray,
    validation_images: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Trains with Adam, its learning rate falling exponentially to a tenth.

    The model stays uncompiled, so that its file needs no loss function. The order of the images
    depends on the seed and the epoch alone.

    Args:
        model: Made by `build_pixel_cnn`; trained in place.
        images: float32 in [0, 1], `(count, height, width, channels)`, rounded to 8 bits here.
        validation_images: The same, to measure on after each epoch.
        epochs: CompiledSteps over the images.
        batch_size: Images per step.
        learning_rate: Of the first step.
        seed: Of the order of the images.
        progress: Is told of each step.
        checkpoints: Where the state is saved after each epoch and resumed from; None for neither.

    Returns:
        For each epoch its `stage`, and bits per dimension of `training` and of `validation`.

    Raises:
        SfmError: If the loss is no number, or the checkpoints are of another training.
    """
    total = epochs * training_steps(len(images), batch_size)
    trainer = _compile(model, learning_rate, total)
    images, validation_images = _round(images), _round(validation_images)
    validation = evaluation_batches(validation_images, validation_images, batch_size)
    state = [*trainer.weights, *trainer.optimizer.variables]
    history = checkpoints.restore(state).history if checkpoints else []
    for epoch in range(len(history), epochs):
        batches = training_batches(
            images, images, batch_size=batch_size, augmentation="none", seed=seed, epoch=epoch
        )
        reporter = _StepReporter(progress, epoch, total // epochs, total)
        fitted = trainer.fit(batches, callbacks=[reporter], verbose=0, shuffle=False)
        measured = trainer.evaluate(validation, return_dict=True, verbose=0)
        history.append(_describe(fitted.history["loss"][0], measured["loss"]))
        if checkpoints:
            checkpoints.save(state, Position(history))
    return history


class _StepReporter(keras.callbacks.Callback):
    """Reports each step, and stops at the first loss that is no number."""

    def __init__(self, progress: Progress, epoch: int, steps: int, total: int) -> None:
        super().__init__()
        self._progress = progress
        self._epoch = epoch
        self._steps = steps
        self._total = total

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise SfmError(
                f"The loss of the PixelCNN became {loss} in step {batch + 1} of epoch "
                f"{self._epoch + 1}; lower its learning rate."
            )
        done = self._epoch * self._steps + batch + 1
        self._progress(f"PixelCNN at {loss:.3f} bits per dimension", done, self._total)


def _compile(model: keras.Model, learning_rate: float, steps: int) -> keras.Model:
    """Wraps the layers of the model in one that can be trained."""
    schedule = keras.optimizers.schedules.ExponentialDecay(learning_rate, steps, _FINAL_RATE)
    trainer = keras.Model(model.inputs, model.outputs)
    trainer.compile(keras.optimizers.Adam(schedule), loss=bits_per_dimension)
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


def _round(images: np.ndarray) -> tf.Tensor:
    """Rounds to 8 bits, so that the network sees what its likelihood is measured on."""
    with tf.device("/CPU:0"):
        return tf.round(tf.convert_to_tensor(images, tf.float32) * 255.0) / 255.0


def _describe(training: float, validation: float) -> dict[str, Any]:
    return {
        "stage": "pixel_cnn",
        "training": {"bits_per_dimension": float(training)},
        "validation": {"bits_per_dimension": float(validation)},
    }
