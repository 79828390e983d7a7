"""From a model that evaluation blessed to one that a server finds; what TFX names the Pusher."""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import write_text
from sfm_tf.config import ExportConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.blessing import Blessing
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.serving.server_configs import Batching, write_server_configs
from sfm_tf.serving.verification import Verification, verify_saved_model
from sfm_tf.serving.versions import (
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    keep_newest,
    model_folder,
    publish,
)
from sfm_tf.serving.warm_up import write_warm_up_requests


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model with what evaluation found of it.

    Attributes:
        defended: The model, masker and pre-processing included.
        class_names: Names of the classes in the order of the logits.
        images: The evaluated images, float32 in [0, 1], shape `(count, height, width, channels)`.
        labels: Their classes, shape `(count,)`.
        blessing: The verdict.
        manifest: The evaluation's manifest, as JSON values.
        model_card: What a user of the model has to know of it, in Markdown.
    """

    defended: DefendedModel
    class_names: Sequence[str]
    images: np.ndarray
    labels: np.ndarray
    blessing: Blessing
    manifest: Mapping[str, Any]
    model_card: str


@dataclasses.dataclass(frozen=True)
class PushedModel:
    """A model that a server can load.

    Attributes:
        folder: Path or address of its version's folder, `<serving_dir>/<model_name>/<version>`.
        version: Its version.
        warm_up_requests: How many warm-up requests travel with it; 0 where the optional package
            tensorflow-serving-api, which makes them, is not installed.
        verification: How its answers compared with those of the evaluated model.
    """

    folder: str
    version: int
    warm_up_requests: int
    verification: Verification


def push_blessed(
    evaluated: EvaluatedModel, config: ExportConfig, folder: pathlib.Path
) -> PushedModel:
    """Exports a model, proves the export in a fresh process, and only then pushes it.

    The model card, the manifest with the verdict, and warm-up requests travel with the version in
    `assets.extra`. A local folder of served models also gets the files that configure a server.

    Args:
        evaluated: The model.
        config: Where to push, in what arithmetic, and how many versions to keep; `serving_dir` must
            not be empty. In bfloat16 answers differ from those that were evaluated, which is told
            but not refused.
        folder: Existing folder in which the export is staged, as `saved_model`.

    Returns:
        The new version.

    Raises:
        SfmError: If the model is not blessed and `config` does not allow that, the export fails
            its verification, or it cannot be pushed.
    """
    blessing = evaluated.blessing
    if not (blessing.blessed or config.allow_not_blessed):
        raise SfmError(
            f"The model is NOT_BLESSED: {' '.join(blessing.reasons)} Train a better one, or give "
            "--allow_not_blessed to export it all the same."
        )
    staged = folder / "saved_model"
    export_saved_model(evaluated.defended, evaluated.class_names, staged, config.precision)
    _write_papers(evaluated, staged)
    requests = _write_warm_up(staged, config.model_name)
    verification = verify_saved_model(
        staged,
        evaluated.defended,
        evaluated.images,
        evaluated.labels,
        same_arithmetic=config.precision == "float32",
    )
    versions = model_folder(config.serving_dir, config.model_name)
    version = publish(staged, versions)
    if config.keep_versions:
        keep_newest(versions, config.keep_versions)
    if "://" not in config.serving_dir:
        write_server_configs(pathlib.Path(config.serving_dir))
    return PushedModel(f"{versions}/{version}", version, requests, verification)


def _write_papers(evaluated: EvaluatedModel, staged: pathlib.Path) -> None:
    verdict = dataclasses.asdict(evaluated.blessing)
    manifest = json.dumps({**evaluated.manifest, **verdict}, indent=2, sort_keys=True)
    write_text(staged / MANIFEST_FILE, manifest + "\n")
    write_text(staged / MODEL_CARD_FILE, evaluated.model_card)


def _write_warm_up(staged: pathlib.Path, model_name: str) -> int:
    if importlib.util.find_spec("tensorflow_serving") is None:
        return 0
    return write_warm_up_requests(staged, model_name, Batching().allowed_batch_sizes)
