"""Models of few layers for tests of training: a residual network takes many seconds to trace."""

import contextlib
from collections.abc import Iterator

import keras
import pytest

from sfm_tf.training import model_building


def small_classifier(name, input_shape, class_count, width, mean, variance, seed) -> keras.Model:
    """Stands in for `build_classifier`: one convolution."""
    inputs = keras.Input(input_shape)
    start = keras.initializers.HeNormal(seed=seed)
    features = keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=start)(inputs)
    dense = keras.layers.Dense(class_count, kernel_initializer=start, dtype="float32")
    return keras.Model(inputs, dense(keras.layers.Flatten()(features)))


def small_masker(input_shape, width, depth, seed, mask_bias) -> keras.Model:
    """Stands in for `build_masker`: one convolution."""
    inputs = keras.Input(input_shape)
    start = keras.initializers.GlorotUniform(seed=seed)
    features = keras.layers.Conv2D(1, 3, padding="same", kernel_initializer=start)(inputs)
    return keras.Model(inputs, keras.layers.Activation("sigmoid", dtype="float32")(features))


@contextlib.contextmanager
def small_models() -> Iterator[None]:
    """Trains these models in place of those of the settings.

    Not together with the fixture `models`, whose artifact all tests share.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_building, "build_classifier", small_classifier)
        patch.setattr(model_building, "build_masker", small_masker)
        yield
