"""Models from files: a Keras file, or a user's own classifier in either format."""

import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from sfm_tf.artifacts.fingerprints import content_digest
from sfm_tf.errors import SfmError

_SIGNATURE = "serving_default"
_LOGITS = "logits"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
"""What Keras and HDF5 raise on files that are missing, cut off or not theirs."""


def load_classifier(
    path: pathlib.Path, input_shape: tuple[int, ...], class_count: int
) -> keras.Model:
    """Reads a classifier that maps float32 images in [0, 1] to logits.

    Args:
        path: A `.keras` file, read without running code from it, or the folder of a SavedModel with
            a signature `serving_default` of one image tensor to one output, or to one of several
            that is called `logits`.
        input_shape: Shape of one image, `(height, width, channels)`.
        class_count: Number of classes.

    Raises:
        SfmError: If there is no such model, or it maps other shapes.
    """
    if not path.exists():
        raise SfmError(f"No model {path}; expected a .keras file or the folder of a SavedModel.")
    if path.is_dir():
        # Named, because a name made by Keras tells how many models came before.
        layer: keras.layers.Layer = SignatureLayer(path, name="signature")
    elif path.suffix == ".keras":
        layer = load_keras_file(path, "expected a model of Keras 3 that safe mode allows")
    else:
        raise SfmError(f"Unknown kind of model {path}; expected a .keras file or a SavedModel.")
    model = _functional(path, layer, input_shape)
    found = model.input_shape[1:], model.output_shape[1:]
    if found != (tuple(input_shape), (class_count,)):
        raise SfmError(
            f"Model {path} maps {found[0]} to {found[1]}; expected {tuple(input_shape)} to "
            f"({class_count},) by the ingested images."
        )
    return model


def load_keras_file(path: pathlib.Path, remedy: str) -> keras.Model:
    """Reads a model in safe mode, and not compiled.

    Args:
        path: The file.
        remedy: What was expected, or what to do, as the message ends.

    Raises:
        SfmError: If the file is missing, damaged, or holds what safe mode refuses.
    """
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except _DAMAGE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SfmError(f"Cannot read {path} ({reason}); {remedy}.") from error


def _functional(
    path: pathlib.Path, layer: keras.layers.Layer, input_shape: tuple[int, ...]
) -> keras.Model:
    """Returns a model of known shapes, whatever kind of model it is made of."""
    images = keras.Input(input_shape, name="images")
    try:
        return keras.Model(images, layer(images, training=False), name="imported")
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SfmError(
            f"Model {path} does not take images of {tuple(input_shape)} ({reason})."
        ) from error


class SignatureLayer(keras.layers.Layer):
    """The `serving_default` signature of a SavedModel as a layer.

    Args:
        folder: The SavedModel. Loading one runs the program in it: only those you trust.
        **options: Further arguments of `keras.layers.Layer`.

    Raises:
        SfmError: If it is no SavedModel, or its signature is not of one image tensor to logits.
    """

    def __init__(self, folder: pathlib.Path, **options: Any) -> None:
        """Loads the SavedModel."""
        super().__init__(**options, trainable=False)
        self._content = content_digest(folder)
        self._loaded = _load_saved_model(folder)
        self._answer = _single_answer(folder, self._loaded)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the logits of images; a saved model has no training mode."""
        del training
        return self._answer(images)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration with a digest of the model's files, which identifies it."""
        return {**super().get_config(), "content": self._content}


def _load_saved_model(folder: pathlib.Path) -> Any:
    try:
        return tf.saved_model.load(str(folder))
    except (OSError, tf.errors.OpError) as error:
        raise SfmError(f"{folder} is no SavedModel; expected saved_model.pb in it.") from error


def _single_answer(folder: pathlib.Path, loaded: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    signature = loaded.signatures.get(_SIGNATURE)
    inputs = {} if signature is None else signature.structured_input_signature[1]
    outputs = {} if signature is None else signature.structured_outputs
    name = _LOGITS if _LOGITS in outputs else next(iter(outputs), None)
    if len(inputs) != 1 or name is None or (len(outputs) > 1 and name != _LOGITS):
        raise SfmError(
            f"{folder} has no signature {_SIGNATURE!r} of one input to one output, or to "
            f"{_LOGITS!r} among several; received {sorted(inputs)} to {sorted(outputs)}."
        )
    (argument,) = inputs
    return lambda images: signature(**{argument: images})[name]
