"""The models that an evaluation is about: those that were trained, or the user's own."""

import dataclasses
import pathlib
from collections.abc import Mapping

import keras

from sfm_tf.artifacts.fingerprints import content_digest
from sfm_tf.config import EvaluationConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.results import DEFENDED, OWN_MODEL, UNDEFENDED
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.imported_model import load_classifier
from sfm_tf.records.schema import Schema
from sfm_tf.training.loading import load_defended_model, load_source_model


@dataclasses.dataclass(frozen=True)
class Subjects:
    """What is evaluated.

    Attributes:
        models: The models that are scored, by the names of their defences.
        source: The model that black-box attacks start from; None where there is none.
    """

    models: Mapping[str, DefendedModel]
    source: keras.Model | None


def load_subjects(
    config: EvaluationConfig, trained: pathlib.Path | None, schema: Schema
) -> Subjects:
    """Reads the models of an evaluation.

    Args:
        config: Names the user's models, if any.
        trained: Folder of the trained models; None where only the user's are evaluated.
        schema: Of the images they are evaluated on.

    Raises:
        SfmError: If a model cannot be read or does not fit the images, or there is none.
    """
    source = None if trained is None else load_source_model(trained)
    if config.source_model:
        source = _load(config.source_model, schema)
    if config.model:
        return Subjects({OWN_MODEL: DefendedModel(_load(config.model, schema))}, source)
    if trained is None:
        raise SfmError("No model to evaluate; train one or give --model.")
    defended = load_defended_model(trained)
    return Subjects({UNDEFENDED: DefendedModel(defended.classifier), DEFENDED: defended}, source)


def imported_digest(config: EvaluationConfig) -> str:
    """Returns a digest of the user's model files; empty where none is named.

    Raises:
        SfmError: If one is not there.
    """
    paths = [pathlib.Path(name) for name in (config.model, config.source_model) if name]
    for path in paths:
        if not path.exists():
            raise SfmError(
                f"No model {path}; expected a .keras file or the folder of a SavedModel."
            )
    return "-".join(content_digest(path) for path in paths)


def _load(name: str, schema: Schema) -> keras.Model:
    return load_classifier(pathlib.Path(name), schema.image_shape, len(schema.class_names))
