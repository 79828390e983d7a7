"""How long the training of each defence took, from what the stages wrote down."""

from collections.abc import Iterable, Mapping
from typing import Any

from sfm_tf.artifacts.atomic_files import read_json
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.artifacts.stage_names import ADVERSARIAL_STAGE, fit_stage
from sfm_tf.defences.catalogue import FITTED
from sfm_tf.training.model_files import TIMING_FILE


def training_seconds(inputs: Mapping[str, Artifact], defences: Iterable[str]) -> dict[str, float]:
    """Returns the seconds of training for each defence, the classifier's included.

    Args:
        inputs: Artifacts that an evaluation was made from, by stage.
        defences: Names of the defences that were evaluated.

    Returns:
        Seconds by defence; a defence that learns nothing costs what the classifier costs, which
        an alternation by steps never trains alone: then it is what as many passes over the images
        took for the source model, of the same architecture. Empty where nothing was trained here.
    """
    if "train" not in inputs:
        return {}
    timing = _timing(inputs["train"])
    classifier = _classifier_seconds(timing, inputs["train"].manifest.config)
    trained = {
        "sfm": sum(timing[part] for part in timing if part != "source_seconds"),
        **_adversarial_seconds(inputs),
    }
    fits = {
        name: classifier + inputs[fit_stage(name)].manifest.wall_seconds
        for name in FITTED
        if fit_stage(name) in inputs
    }
    return {name: {**fits, **trained}.get(name, classifier) for name in defences}


def _classifier_seconds(timing: Mapping[str, float], config: Mapping[str, Any]) -> float:
    if "both_seconds" not in timing:
        return timing["classifier_seconds"]
    training = config["training"]
    passes = training["pretraining_epochs"] + training["epochs"]
    return timing["source_seconds"] * passes / training["source_epochs"]


def _adversarial_seconds(inputs: Mapping[str, Artifact]) -> dict[str, float]:
    if ADVERSARIAL_STAGE not in inputs:
        return {}
    timing = _timing(inputs[ADVERSARIAL_STAGE])
    return {name: sum(parts.values()) for name, parts in timing.items()}


def _timing(models: Artifact) -> dict:
    return read_json(models.folder / TIMING_FILE)
