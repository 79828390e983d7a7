"""Models from files: a Keras file, or a user's own classifier in either format."""

import json
import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError

from sfm_tf.artifacts.fingerprints import content_digest
from sfm_tf.errors import SfmError, in_one_line

_SIGNATURE = "serving_default"
_LOGITS = "logits"
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
)
"""What Keras and HDF5 raise on files that are missing, cut off or not theirs."""

_LEGACY = (".h5", ".hdf5")
MODEL_SUFFIXES = (".keras", *_LEGACY)
"""How the names of Keras' own files end; a SavedModel is a folder."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
_EXPORT = "where it was trained, write a SavedModel with `model.export('folder')`"
_SAVE_AGAIN = "Save it again"


def load_classifier(
    path: pathlib.Path, input_shape: tuple[int, ...], class_count: int
) -> keras.Model:
    """Reads a classifier that maps float32 images in [0, 1] to logits.

    Args:
        path: A `.keras` or `.h5` file, read without running code from it, or the folder of a
            SavedModel with a signature `serving_default`. It takes one image tensor and gives one
            output, or several of which one is called `logits`.
        input_shape: Shape of one image, `(height, width, channels)`.
        class_count: Number of classes.

    Raises:
        SfmError: If there is no such model, it maps other shapes or types, or its file lacks some
            of its weights.
    """
    check_exists(path)
    if path.is_dir():
        # Named, because a name made by Keras tells how many models came before.
        layer: keras.layers.Layer = SignatureLayer(path, name="signature")
    elif path.suffix in MODEL_SUFFIXES:
        layer = load_keras_file(path, f"{_EXPORT} and give that")
    else:
        raise SfmError(
            f"Unknown kind of model {path}; expected a .keras or .h5 file or a SavedModel, the "
            "folder that `model.export('folder')` writes in Keras."
        )
    _check_inputs(path, _declared_inputs(layer), input_shape)
    model = _functional(path, layer, input_shape)
    found = model.input_shape[1:], tuple(model.output_shape[1:])
    if found != (tuple(input_shape), (class_count,)):
        raise SfmError(
            f"Model {path} maps {found[0]} to {found[1]}; expected {tuple(input_shape)} to "
            f"({class_count},) by the ingested images."
        )
    return model


def check_exists(path: pathlib.Path) -> None:
    """Raises `SfmError` if there is no model at `path`."""
    if not path.exists():
        raise SfmError(
            f"No model {path}; expected a .keras or .h5 file, or the folder of a SavedModel."
        )


def load_keras_file(path: pathlib.Path, remedy: str) -> keras.Model:
    """Reads a model in safe mode, and not compiled.

    Args:
        path: The file.
        remedy: What was expected, or what to do, as the message ends.

    Raises:
        SfmError: If the file is missing, damaged, or holds what safe mode refuses.
    """
    try:
        with warnings.catch_warnings():
            # Of weights that the file lacks Keras only warns, and makes them at random.
            warnings.filterwarnings("error", "Skipping nested container")
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except UserWarning as error:
        raise SfmError(
            f"Cannot read {path} (it lacks weights of some layers); {remedy}."
        ) from error
    except _DAMAGE as error:
        reason = _known_reason(path) or in_one_line(error)
        raise SfmError(f"Cannot read {path} ({reason}); {remedy}.") from error


def _known_reason(path: pathlib.Path) -> str:
    """Returns why Keras cannot read a file, where that can be told better than Keras does."""
    if not path.is_file():
        return ""
    if _begins_with(path, _HDF5):
        if path.suffix not in _LEGACY:
            return "it is HDF5, Keras' older format, whose names end in .h5"
        return "it holds weights alone, or code that is not Keras' own"
    if not zipfile.is_zipfile(path):
        return "it is damaged, or no file of Keras"
    code = ", ".join(dict.fromkeys(_code_in(path)))
    return f"it holds code that is not Keras' own: {code}" if code else ""


def _begins_with(path: pathlib.Path, start: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def _code_in(path: pathlib.Path) -> Iterator[str]:
    """Yields the names of the classes and functions in a file that Keras itself does not have."""
    try:
        with zipfile.ZipFile(path) as archive:
            waiting = [json.loads(archive.read("config.json"))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        if not isinstance(value, dict):
            continue
        kind, module = value.get("class_name"), value.get("module", "keras")
        if kind == "Lambda":
            yield "a Lambda layer"
        elif kind == "function":
            yield f"the function {value.get('config')}"
        elif kind and str(module).partition(".")[0] not in ("keras", "builtins"):
            yield f"the class {kind}"
        waiting += reversed(value.values())


def _declared_inputs(layer: keras.layers.Layer) -> Mapping[str, Any]:
    """Returns what a model declares to take, by name; nothing where it only shows in a call."""
    if isinstance(layer, SignatureLayer):
        return layer.declared
    try:
        return {each.name: each for each in layer.inputs or ()}
    except (AttributeError, ValueError):
        return {}


def _check_inputs(
    path: pathlib.Path, inputs: Mapping[str, Any], image_shape: tuple[int, ...]
) -> None:
    """Raises `SfmError` if the inputs that a model declares are not one batch of float32 images."""
    if not inputs:
        return
    listed = _listed(inputs)
    if len(inputs) > 1:
        raise SfmError(
            f"Model {path} takes {len(inputs)} inputs, {listed}; expected one, a batch of images. "
            f"{_SAVE_AGAIN} with the others fixed."
        )
    (given,) = inputs.values()
    kind = tf.as_dtype(given.dtype)
    if kind == tf.string:
        raise SfmError(
            f"Model {path} takes encoded files, {listed}; expected float32 images in [0, 1]. "
            f"{_SAVE_AGAIN} without the decoding before its first layer."
        )
    if kind != tf.float32:
        raise SfmError(
            f"Model {path} takes {listed}; expected float32 images in [0, 1]. {_SAVE_AGAIN} with a "
            "float32 input, scaled inside, by keras.layers.Rescaling(255) for instance."
        )
    if not any(_fits(given.shape, shape) for shape in _accepted_shapes(image_shape)):
        raise SfmError(
            f"Model {path} takes {listed}; expected batches of {tuple(image_shape)} by the "
            "ingested images, height, width and channels."
        )


def _accepted_shapes(image_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of an image: Keras itself leaves out a last dimension of 1."""
    return (image_shape, image_shape[:-1]) if image_shape[-1] == 1 else (image_shape,)


def _fits(shape: Any, image_shape: tuple[int, ...]) -> bool:
    declared = tf.TensorShape(shape)
    return declared.rank is None or declared[1:].is_compatible_with(image_shape)


def _listed(tensors: Mapping[str, Any]) -> str:
    # By name: TensorFlow gives those of a SavedModel in another order in each process.
    return ", ".join(_described(name, tensors[name]) for name in sorted(tensors))


def _described(name: str, tensor: Any) -> str:
    shape = tf.TensorShape(tensor.shape)
    sizes = "any shape" if shape.rank is None else str(tuple(shape)).replace("None", "any")
    return f"{name!r} {tf.as_dtype(tensor.dtype).name} {sizes}"


def _functional(
    path: pathlib.Path, layer: keras.layers.Layer, input_shape: tuple[int, ...]
) -> keras.Model:
    """Returns a model of known shapes, whatever kind of model it is made of."""
    images = keras.Input(input_shape, name="images")
    stored = len(layer.weights)
    try:
        outputs = layer(images, training=False)
        if len(layer.weights) != stored:
            raise SfmError(
                f"The file {path} lacks weights, because the model was saved before it was built: "
                f"they would be random. {_SAVE_AGAIN} after its training or a first call."
            )
        model = keras.Model(images, _logits(path, layer, outputs), name="imported")
        model(tf.zeros((2, *input_shape)))  # Some models only fail on values.
    except SfmError:
        raise
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise SfmError(
            f"Model {path} does not take two images of {tuple(input_shape)} at a time "
            f"({in_one_line(error)}); {_EXPORT} that takes any number of them."
        ) from error
    return model


def _logits(path: pathlib.Path, layer: keras.layers.Layer, outputs: Any) -> Any:
    """Returns the one output, or the one called `logits`; raises `SfmError` where there is none."""
    if not isinstance(outputs, Mapping):
        listed = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        names = getattr(layer, "output_names", None) or map(str, range(len(listed)))
        outputs = dict(zip(names, listed, strict=False))
    name = _LOGITS if _LOGITS in outputs else next(iter(outputs), "")
    if not outputs or (len(outputs) > 1 and name != _LOGITS):
        found = _listed(outputs)
        raise SfmError(
            f"Model {path} gives {len(outputs)} outputs, {found}; expected one, or one that is "
            f"called {_LOGITS!r}. {_SAVE_AGAIN} with its logits alone."
        )
    if tf.as_dtype(outputs[name].dtype) != tf.float32:
        raise SfmError(
            f"Model {path} gives {_described(name, outputs[name])}; expected float32 logits. "
            f"{_SAVE_AGAIN} with them, computed in float32."
        )
    return outputs[name]


class SignatureLayer(keras.layers.Layer):
    """The `serving_default` signature of a SavedModel as a layer.

    Args:
        folder: The SavedModel. Loading one runs the program in it: only those you trust.
        **options: Further arguments of `keras.layers.Layer`.

    Raises:
        SfmError: If it is no SavedModel, or its signature does not take images.
    """

    def __init__(self, folder: pathlib.Path, **options: Any) -> None:
        """Loads the SavedModel."""
        super().__init__(**options, trainable=False)
        self._content = content_digest(folder)
        self._loaded = _load_saved_model(folder)
        signatures = getattr(self._loaded, "signatures", {})
        if _SIGNATURE not in signatures:
            found = ", ".join(map(repr, sorted(signatures))) or "none"
            raise SfmError(
                f"SavedModel {folder} has no signature {_SIGNATURE!r}; found {found}. Write it "
                "with `model.export('folder')` in Keras, or name its signature so."
            )
        self._signature = signatures[_SIGNATURE]
        self.declared = dict(self._signature.structured_input_signature[1])

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the outputs for images by name; a saved model has no training mode."""
        del training
        (argument,) = self.declared
        return self._signature(**{argument: images})

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration with a digest of the model's files, which identifies it."""
        return {**super().get_config(), "content": self._content}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SignatureLayer":
        """Raises `TypeError`: the configuration does not hold the files."""
        raise TypeError("a SavedModel computes as it was saved, a .keras file can be copied")


def _load_saved_model(folder: pathlib.Path) -> Any:
    if not (folder / "saved_model.pb").is_file():
        inside = sorted(found.parent.name for found in folder.glob("*/saved_model.pb"))
        versions = f"; it holds {', '.join(inside)}, give one of them" if inside else ""
        raise SfmError(f"{folder} is no SavedModel; expected saved_model.pb in it{versions}.")
    try:
        return tf.saved_model.load(str(folder))
    except (*_DAMAGE, tf.errors.OpError, DecodeError) as error:
        raise SfmError(
            f"Cannot read SavedModel {folder} ({in_one_line(error)}); write it again."
        ) from error
