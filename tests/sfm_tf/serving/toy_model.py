"""A small model that is quickly written and loaded, and its answers as NumPy computes them."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from sfm_tf.serving.prediction_service import (
    ModelRepository,
    RequestError,
    RequestLimits,
    run_merged,
)

IMAGES = np.linspace(0, 1, 2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 1)
LIMITS = RequestLimits(body_bytes=20_000, batch_size=4)


class _Toy(tf.Module):
    """Gives each image's mean, largest and smallest value, plus the version's number."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = tf.Variable(float(version))

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 1], tf.float32, name="images")])
    def classify(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        reductions = (tf.reduce_mean, tf.reduce_max, tf.reduce_min)
        found = tf.stack([reduce(images, (1, 2, 3)) for reduce in reductions], axis=1)
        return {"logits": found + self.version, "class_id": tf.argmax(found, -1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def classify_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        lengths = tf.cast(tf.strings.length(image_bytes), tf.int64)
        return {"status": lengths, "copy_bytes": image_bytes}

    @tf.function(input_signature=[tf.TensorSpec([3], tf.float32, name="values")])
    def total(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": tf.reduce_sum(values)}


def write_version(folder: pathlib.Path, version: int) -> None:
    """Leaves a version in the model's folder, all at once."""
    toy = _Toy(version)
    signatures = {
        "serving_default": toy.classify,
        "predict_bytes": toy.classify_bytes,
        "total": toy.total,
    }
    incoming = folder / f".incoming-{version}"
    tf.saved_model.save(toy, str(incoming), signatures=signatures)
    incoming.rename(folder / str(version))


def logits(version: int, images: np.ndarray = IMAGES) -> np.ndarray:
    """Returns what a version gives for images; class 1 has the largest of each."""
    axes = (1, 2, 3)
    return np.stack([images.mean(axes), images.max(axes), images.min(axes)], 1) + version


def api_of_version_3(kind: Callable[..., Any], folder: pathlib.Path) -> Any:
    """Returns a `GrpcApi` or a `RestApi` to version 3 of the model `toy`, which answers at once."""
    write_version(folder, 3)
    repository = ModelRepository({"toy": folder})
    repository.refresh()

    async def predict(prediction):
        (result,) = run_merged([prediction], LIMITS.batch_size)
        if isinstance(result, RequestError):
            raise result
        return result

    return kind(repository, predict, LIMITS)
