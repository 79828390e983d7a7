"""The trained models, read back from the folder that training wrote."""

import dataclasses
import json
import pathlib

import keras

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.keras_files import load_keras_file
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.training import model_files
from sfm_tf.training.model_files import CLASSIFIER_FILE, DEFENCE_FILE, MASKER_FILE, SOURCE_FILE

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
            (model_files.ADVERSARIAL_CLASSIFIER_FILE, (defence.class_count,)),
            (model_files.ADVERSARIAL_SFM_CLASSIFIER_FILE, (defence.class_count,)),
            (model_files.ADVERSARIAL_SFM_MASKER_FILE, (height, width, 1)),
        )
    )
    return {
        model_files.ADVERSARIAL_TRAINING: DefendedModel(bare),
        model_files.SFM_ADVERSARIAL_TRAINING: DefendedModel(
            classifier, masker, defence.preprocessor
        ),
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
