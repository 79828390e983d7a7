"""A model with the same weights that computes in 16 bits."""

from typing import Any

import keras

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel

_POLICIES = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def in_precision(model: keras.Model, precision: str) -> keras.Model:
    """Returns a copy of `model` whose layers compute in 16 bits.

    Weights stay in float32, as do the layers that make the model's outputs: rounded logits would
    lose the small differences that an attack climbs. What a `DefendedModel` does between its parts
    is in float32 always.

    Args:
        model: Functional model or `DefendedModel` that computes in float32.
        precision: `bfloat16` or `float16`.

    Raises:
        SfmError: If the model cannot be rebuilt from its configuration.
    """
    if isinstance(model, DefendedModel):
        masker = None if model.masker is None else in_precision(model.masker, precision)
        return DefendedModel(in_precision(model.classifier, precision), masker, model.preprocessor)
    last = {operation.name for operation in _output_layers(model)}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model):
            raise TypeError(f"it holds the model {layer.name}; expected plain layers")
        config = layer.get_config()
        if layer.name not in last and not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = _POLICIES[precision]
        return type(layer).from_config(config)

    try:
        twin = keras.models.clone_model(model, clone_function=copy)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SfmError(
            f"Model {model.name} cannot be copied to compute in {precision} ({reason}); use "
            "float32."
        ) from error
    twin.set_weights(model.get_weights())
    return twin


def _output_layers(model: keras.Model) -> list[Any]:
    return [output._keras_history.operation for output in model.outputs]
