"""What a tuning and ablations of the same records add to a report."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfm_tf.artifacts.run_directory import Artifact, RunDirectory
from sfm_tf.report.report_inputs import Gallery
from sfm_tf.report.shown_images import defence_images
from sfm_tf.training.loading import load_defended_model
from sfm_tf.tuning.ablations import read_ablations
from sfm_tf.tuning.best import sparsity_curve

TUNE, ABLATE = "tune", "ablate"


def find_studies(run_directory: RunDirectory, records: Artifact) -> dict[str, Artifact]:
    """Returns the latest artifacts of the stages tune and ablate that were made from `records`.

    Args:
        run_directory: Where they are; a stage that has not run adds nothing.
        records: Artifact of the ingest stage.

    Raises:
        SfmError: If a latest artifact was deleted.
    """
    latest = {
        stage: run_directory.latest(stage)
        for stage in (TUNE, ABLATE)
        if run_directory.has_finished(stage)
    }
    fingerprint = records.manifest.fingerprint
    return {
        stage: artifact
        for stage, artifact in latest.items()
        if artifact.manifest.inputs["ingest"] == fingerprint
    }


def study_fields(inputs: Mapping[str, Artifact], images: np.ndarray) -> dict[str, Any]:
    """Returns the fields `tuning`, `ablations` and `ablation_scores` of the report's inputs.

    Args:
        inputs: Artifacts by stage, what `find_studies` returned among them.
        images: The images that the report shows, float32 in [0, 1], channels last.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    fields: dict[str, Any] = {}
    if TUNE in inputs:
        fields["tuning"] = sparsity_curve(inputs[TUNE].folder)
    if ABLATE in inputs:
        folder = inputs[ABLATE].folder
        scores = read_ablations(folder)
        fields["ablation_scores"] = scores
        fields["ablations"] = {
            entry["words"]: _gallery(folder / entry["name"], images)
            for entry in scores
            if not entry["failure"]
        }
    return fields


def _gallery(folder: pathlib.Path, images: np.ndarray) -> Gallery:
    return defence_images(load_defended_model(folder), images)
