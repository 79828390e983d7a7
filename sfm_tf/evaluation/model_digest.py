"""Digests of models: equal where two models compute the same."""

import hashlib
import json
from typing import Any

import keras
import numpy as np

from sfm_tf.models.defended_model import DefendedModel

# What Keras writes beside the architecture: addresses in memory and settings of training.
_NOT_ARCHITECTURE = frozenset({"shared_object_id", "compile_config", "build_config"})


def model_digest(model: keras.Model) -> str:
    """Returns a SHA-256, in hexadecimal, of a model's architecture and weights.

    A `DefendedModel` goes by its parts, so that two of them over the same parts are equal, and one
    with neither masker nor pre-processing equals its classifier.

    Args:
        model: A built model that Keras can serialise.
    """
    if not isinstance(model, DefendedModel):
        return _digest(model)
    preprocessor = model.preprocessor
    if model.masker is None and preprocessor.spec == "none":
        return _digest(model.classifier)
    # Without pre-processing the surrogate has nothing to stand in for.
    surrogate = "" if preprocessor.spec == "none" else preprocessor.surrogate
    masker = "" if model.masker is None else _digest(model.masker)
    parts = [_digest(model.classifier), masker, preprocessor.spec, surrogate]
    # Only where there are any, for adversarial images outlive versions of this code.
    if preprocessor.content or preprocessor.is_random:
        parts += [preprocessor.content, preprocessor.draws.name]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


def _digest(model: keras.Model) -> str:
    architecture = _architecture(keras.saving.serialize_keras_object(model))
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode("utf-8"))
    for weight in model.weights:
        values = np.ascontiguousarray(weight.numpy())
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _architecture(config: Any) -> Any:
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE}
        return {key: _architecture(value) for key, value in kept.items()}
    if isinstance(config, list | tuple):
        return [_architecture(value) for value in config]
    return config
