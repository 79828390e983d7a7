"""The models that an evaluation is about: those that were trained, or the user's own."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from sfm_tf.artifacts.fingerprints import content_digest
from sfm_tf.defences.catalogue import ADVERSARIALLY_TRAINED, TRAINED, expand
from sfm_tf.defences.chains import defence_chain
from sfm_tf.defences.fitting import fitted_operations
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.results import DEFENDED, OWN_MODEL, UNDEFENDED
from sfm_tf.evaluation.settings import EvaluationConfig
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.models.imported_model import check_exists, load_classifier
from sfm_tf.preprocessors.chain import Preprocessor, parse_preprocessor
from sfm_tf.preprocessors.draws import Draws, KeyedDraws, RepeatableFreshDraws
from sfm_tf.records.schema import Schema
from sfm_tf.training.model_files import (
    load_adversarial_models,
    load_defended_model,
    load_source_model,
)

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
        parts += [preprocessor.content, _draws_name(preprocessor)]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


def _draws_name(preprocessor: Preprocessor) -> str:
    return preprocessor.draws.name if preprocessor.is_random else "SERVED"


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


@dataclasses.dataclass(frozen=True)
class ModelFolders:
    """Where the models of an evaluation are.

    Attributes:
        trained: Folder of the trained models; None where only the user's are evaluated.
        adversarial: Folder of those trained on adversarial images; None where there are none.
        fits: Folders of what was fitted for compared defences, by operation.
    """

    trained: pathlib.Path | None
    adversarial: pathlib.Path | None = None
    fits: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)


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
    config: EvaluationConfig, compared: ComparedConfig, folders: ModelFolders, schema: Schema
) -> Subjects:
    """Reads the models of an evaluation.

    The defences that are not trained for all stand before the same classifier: that of the trained
    models, or the user's.

    Args:
        config: Names the defences, and the user's models, if any.
        compared: What the compared defences are made of.
        folders: Where the models are.
        schema: Of the images they are evaluated on.

    Raises:
        SfmError: If a model cannot be read or does not fit the images, a defence is unknown or was
            not fitted, or there is nothing to evaluate.
    """
    subjects = _load_subjects(config, compared, folders, schema)
    draws = _DRAWS[config.draws]
    models = {name: model.with_draws(draws) for name, model in subjects.models.items()}
    return Subjects(models, subjects.source)


_DRAWS: Mapping[str, Draws] = {"keyed": KeyedDraws(), "fresh": RepeatableFreshDraws()}


def _load_subjects(
    config: EvaluationConfig, compared: ComparedConfig, folders: ModelFolders, schema: Schema
) -> Subjects:
    names = expand(config.defences)
    source = None if folders.trained is None else load_source_model(folders.trained)
    if config.source_model:
        source = _load(config.source_model, schema)
    if config.model:
        own = _load(config.model, schema)
        chained = (name for name in names if name not in (OWN_MODEL, UNDEFENDED, *TRAINED))
        models = {OWN_MODEL: DefendedModel(own)}
        return Subjects({**models, **_behind_chains(own, chained, compared, folders)}, source)
    if folders.trained is None:
        raise SfmError("No model to evaluate; train one or give --model.")
    defended = load_defended_model(folders.trained)
    chained = (name for name in names if name not in TRAINED)
    surrogate = defended.preprocessor.surrogate
    models = _behind_chains(defended.classifier, chained, compared, folders, surrogate)
    models[DEFENDED] = defended
    if folders.adversarial is not None:
        models |= load_adversarial_models(folders.adversarial)
    return Subjects({name: models[name] for name in names if name in models}, source)


def _behind_chains(
    classifier: keras.Model,
    names: Iterator[str],
    compared: ComparedConfig,
    folders: ModelFolders,
    surrogate: str = "identity",
) -> dict[str, DefendedModel]:
    fitted = fitted_operations(folders.fits, classifier)
    chains = {name: defence_chain(name, compared) for name in names}
    return {
        name: DefendedModel(classifier, None, parse_preprocessor(chain, surrogate, fitted))
        for name, chain in chains.items()
    }


def without_the_untrained(names: tuple[str, ...], has_adversarial: bool) -> tuple[str, ...]:
    """Returns the names of defences without those whose models nobody has trained."""
    if has_adversarial:
        return names
    return tuple(name for name in names if name not in ADVERSARIALLY_TRAINED)


def imported_digest(config: EvaluationConfig) -> str:
    """Returns a digest of the user's model files; empty where none is named.

    Raises:
        SfmError: If one is not there.
    """
    paths = [pathlib.Path(name) for name in (config.model, config.source_model) if name]
    for path in paths:
        check_exists(path)
    return "-".join(content_digest(path) for path in paths)


MODEL_FOLDER = "own_model"
"""Folder of an evaluation's artifact with a copy of the user's model, under its own name."""


@contextlib.contextmanager
def own_model_kept(config: EvaluationConfig, folder: pathlib.Path, digest: str) -> Iterator[None]:
    """Copies the user's model into the artifact of its evaluation, so that it can be exported.

    Args:
        config: Names the model; without one nothing is done.
        folder: Folder of the artifact. A copy that is there already is kept; that of an evaluation
            that is refused is not.
        digest: What `imported_digest` returned before the model was loaded.

    Raises:
        SfmError: If the model is another one by now.
    """
    kept = folder / MODEL_FOLDER
    if config.model and not kept.exists():
        unfinished, original = kept.with_suffix(".copying"), pathlib.Path(config.model)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        copy = unfinished / original.name
        if original.is_dir():
            # Hidden files are no part of a SavedModel, and count as unfinished in an artifact.
            shutil.copytree(original, copy, ignore=shutil.ignore_patterns(".*"))
        else:
            shutil.copyfile(original, copy)
        unfinished.rename(kept)
    try:
        if imported_digest(config) != digest:
            raise SfmError("A model changed while it was read; run again when it is written.")
        yield
    except SfmError:
        shutil.rmtree(kept, ignore_errors=True)
        raise


def with_kept_model(config: EvaluationConfig, folder: pathlib.Path) -> EvaluationConfig:
    """Returns the settings of an evaluation, which name the copy of the user's model.

    Args:
        config: What the evaluation ran with.
        folder: Folder of its artifact.

    Raises:
        SfmError: If the user's model was evaluated, but there is no copy.
    """
    if not config.model:
        return config
    copies = list((folder / MODEL_FOLDER).glob("*"))
    if len(copies) != 1:
        raise SfmError(
            f"{folder} has no copy of the evaluated model {config.model} in {MODEL_FOLDER}; run "
            "stage evaluate again with --force."
        )
    return dataclasses.replace(config, model=str(copies[0]))


def _load(name: str, schema: Schema) -> keras.Model:
    return load_classifier(pathlib.Path(name), schema.image_shape, len(schema.class_names))
