"""The arithmetic of the layers: which dtype policy, and models built under one."""

import contextlib
import dataclasses
from collections.abc import Iterator

import keras
import tensorflow as tf

from sfm_tf.training_config import TrainingConfig

_BFLOAT16_CAPABILITY = (8, 0)
"""CUDA compute capability of Ampere, the first GPUs that multiply bfloat16 natively."""


def resolve_precision(name: str) -> str:
    """Returns the name of a Keras dtype policy.

    Args:
        name: A policy's name, or `auto`: `mixed_bfloat16` where every GPU has native bfloat16,
            else, and without a GPU, `float32`.
    """
    if name != "auto":
        return name
    gpus = tf.config.list_physical_devices("GPU")
    capabilities = [
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in gpus
    ]
    native = bool(gpus) and all(found >= _BFLOAT16_CAPABILITY for found in capabilities)
    return "mixed_bfloat16" if native else "float32"


def with_resolved_precision(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings with what `auto` stands for here: it decides on the weights, too."""
    return dataclasses.replace(config, mixed_precision=resolve_precision(config.mixed_precision))


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Builds the layers made inside under the policy, and restores the previous one after."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
