"""The files that training leaves: their names, and the writing of the models among them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from sfm_tf.artifacts import atomic_files
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.imported_model import load_keras_file
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor

CLASSIFIER_FILE = "classifier.keras"
MASKER_FILE = "masker.keras"
SOURCE_FILE = "source.keras"
ADVERSARIAL_CLASSIFIER_FILE = "adversarial_classifier.keras"
ADVERSARIAL_SFM_CLASSIFIER_FILE = "adversarial_sfm_classifier.keras"
ADVERSARIAL_SFM_MASKER_FILE = "adversarial_sfm_masker.keras"
DEFENCE_FILE = "defence.json"
HISTORY_FILE = "history.json"
TIMING_FILE = "timing.json"
LOSS_WEIGHTS_FILE = "loss_weights.json"
CHECKPOINT_FOLDER = "checkpoint"
LOG_FOLDER = "logs"

ADVERSARIAL_TRAINING = "adversarial_training"
SFM_ADVERSARIAL_TRAINING = "sfm_adversarial_training"
"""Names of the two models that are trained on adversarial images."""


def save_models(
    folder: pathlib.Path,
    defended: DefendedModel,
    source: keras.Model,
    class_names: Sequence[str],
) -> None:
    """Writes the parts of a defended model, the source model and what joins them.

    Args:
        folder: Folder to write into.
        defended: With a masker.
        source: The independent model, from images to logits.
        class_names: Name of class `i` at position `i`.
    """
    save_model(folder / CLASSIFIER_FILE, defended.classifier)
    save_model(folder / MASKER_FILE, defended.masker)
    save_model(folder / SOURCE_FILE, source)
    atomic_files.write_json(folder / DEFENCE_FILE, _describe(defended, class_names))


def save_adversarial_models(
    folder: pathlib.Path,
    bare: keras.Model,
    defended: DefendedModel,
    class_names: Sequence[str],
    training: Mapping[str, Any],
) -> None:
    """Writes the models that were trained on adversarial images, and how that was.

    Args:
        folder: Folder to write into.
        bare: The classifier that was trained alone, from images to logits.
        defended: The one that was trained with a masker.
        class_names: Name of class `i` at position `i`.
        training: Method, radius and what else there is to say, as JSON values.
    """
    save_model(folder / ADVERSARIAL_CLASSIFIER_FILE, bare)
    save_model(folder / ADVERSARIAL_SFM_CLASSIFIER_FILE, defended.classifier)
    save_model(folder / ADVERSARIAL_SFM_MASKER_FILE, defended.masker)
    defence = {**_describe(defended, class_names), "adversarial_training": dict(training)}
    atomic_files.write_json(folder / DEFENCE_FILE, defence)


def _describe(defended: DefendedModel, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "preprocessor": defended.preprocessor.spec,
        "surrogate": defended.preprocessor.surrogate,
        "class_names": list(class_names),
        "input_shape": list(defended.classifier.input_shape[1:]),
    }


def save_model(path: pathlib.Path, model: keras.Model) -> None:
    """Saves `model` under a temporary name that is synced and then renamed."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # Keras insists on the ending.
    try:
        model.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_REMEDY = "expected what training wrote, train again"


@dataclasses.dataclass(frozen=True)
class _Defence:
    preprocessor: Preprocessor
    input_shape: tuple[int, int, int]
    class_count: int


def load_defended_model(folder: pathlib.Path) -> DefendedModel:
    """Reads classifier, masker and pre-processing.

    Args:
        folder: Where `training.train_defence` wrote them.

    Raises:
        SfmError: If a file is missing, damaged, or does not fit the others.
    """
    defence = _read_defence(folder / DEFENCE_FILE)
    height, width, _ = defence.input_shape
    classifier = _read_model(folder / CLASSIFIER_FILE, defence, (defence.class_count,))
    masker = _read_model(folder / MASKER_FILE, defence, (height, width, 1))
    return DefendedModel(classifier, masker, defence.preprocessor)


def load_source_model(folder: pathlib.Path) -> keras.Model:
    """Reads the independent model that black-box attacks start from.

    Args:
        folder: Where `training.train_defence` wrote it.

    Returns:
        Model from float32 images in [0, 1] to float32 logits.

    Raises:
        SfmError: If the file is missing, damaged, or does not fit the defended model.
    """
    defence = _read_defence(folder / DEFENCE_FILE)
    return _read_model(folder / SOURCE_FILE, defence, (defence.class_count,))


def load_adversarial_models(folder: pathlib.Path) -> dict[str, DefendedModel]:
    """Reads the models that were trained on adversarial images.

    Args:
        folder: Where `adversarial_training.train_on_adversarial_images` wrote them.

    Returns:
        `adversarial_training`, a classifier with nothing in front of it, and
        `sfm_adversarial_training`, one behind its masker and the experiment's pre-processing.

    Raises:
        SfmError: If a file is missing, damaged, or does not fit the others.
    """
    defence = _read_defence(folder / DEFENCE_FILE)
    height, width, _ = defence.input_shape
    bare, classifier, masker = (
        _read_model(folder / name, defence, shape)
        for name, shape in (
            (ADVERSARIAL_CLASSIFIER_FILE, (defence.class_count,)),
            (ADVERSARIAL_SFM_CLASSIFIER_FILE, (defence.class_count,)),
            (ADVERSARIAL_SFM_MASKER_FILE, (height, width, 1)),
        )
    )
    return {
        ADVERSARIAL_TRAINING: DefendedModel(bare),
        SFM_ADVERSARIAL_TRAINING: DefendedModel(classifier, masker, defence.preprocessor),
    }


def _read_defence(path: pathlib.Path) -> _Defence:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return _Defence(
            parse_preprocessor(value["preprocessor"], value["surrogate"]),
            tuple(value["input_shape"]),
            len(value["class_names"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SfmError(f"Cannot read {path} ({error}); {_REMEDY}.") from error


def _read_model(
    path: pathlib.Path, defence: _Defence, output_shape: tuple[int, ...]
) -> keras.Model:
    model = load_keras_file(path, _REMEDY)
    found = model.input_shape[1:], model.output_shape[1:]
    if found != (defence.input_shape, output_shape):
        raise SfmError(
            f"Model {path} maps {found[0]} to {found[1]}; expected {defence.input_shape} to "
            f"{output_shape} by {DEFENCE_FILE} beside it, train again."
        )
    return model
