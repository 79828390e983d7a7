"""From a model that evaluation blessed to one that a server finds; what TFX names the Pusher."""

import dataclasses
import json
import pathlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from sfm_tf.artifacts.atomic_files import read_json, write_text
from sfm_tf.artifacts.manifest import FILE_NAME
from sfm_tf.artifacts.run_directory import Artifact
from sfm_tf.audit.audited_evaluation import compared_settings, evaluation_settings
from sfm_tf.audit.blessing import Blessing
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.subjects import ModelFolders, load_subjects, with_kept_model
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.draws import KEY_BYTES, KeyedDraws
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.report.inputs import ReportInputs
from sfm_tf.report.model_card import build_model_card
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.serving.settings import ExportConfig
from sfm_tf.serving.verification import Verification, verify_saved_model
from sfm_tf.serving.versions import (
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    find_models,
    is_remote,
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


def load_evaluated(
    records: Artifact,
    evaluation: Artifact,
    folders: ModelFolders,
    card: ReportInputs,
    command: str,
) -> EvaluatedModel:
    """Loads the model that an evaluation was about, with what it found.

    Args:
        records: Artifact of the ingest stage.
        evaluation: Artifact of the evaluate stage, made from them.
        folders: Where the models are that were evaluated.
        card: What the model card shows.
        command: Command line that makes the model and its figures again.

    Raises:
        SfmError: If a file of an artifact is missing or damaged.
    """
    schema = read_schema(records.folder)
    settings = with_kept_model(evaluation_settings(evaluation), evaluation.folder)
    images, labels = load_split(records.folder, "test", schema, settings.num_examples)
    subject = card.metrics.subject
    only_subject = dataclasses.replace(settings, defences=(subject,), source_model="")
    subjects = load_subjects(only_subject, compared_settings(evaluation), folders, schema)
    defended = subjects.models[subject]
    draws = settings.draws if defended.preprocessor.is_random else None
    return EvaluatedModel(
        defended=defended,
        class_names=schema.class_names,
        images=images,
        labels=labels,
        blessing=card.blessing,
        manifest=read_json(evaluation.folder / FILE_NAME),
        model_card=build_model_card(card, schema.image_shape, command, draws),
    )


@dataclasses.dataclass(frozen=True)
class PushedModel:
    """A model that a server can load.

    Attributes:
        folder: Path or address of its version's folder, `<serving_dir>/<model_name>/<version>`.
        version: Its version.
        warm_up_requests: How many warm-up requests travel with it.
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
        evaluated: The model. What it draws at random follows from a secret key in the SavedModel,
            or is drawn afresh at each request, as `--draws` of its evaluation said.
        config: Where to push, in what arithmetic, and how many versions to keep; `serving_dir` must
            not be empty. In bfloat16 answers differ from those that were evaluated, which is told
            but not refused.
        folder: Existing folder in which the export is staged, as `saved_model`.

    Returns:
        The new version.

    Raises:
        SfmError: If the model is not blessed and `config` does not allow that, a key is given that
            nothing follows from, the export fails its verification, or it cannot be pushed.
    """
    blessing = evaluated.blessing
    if not (blessing.blessed or config.allow_not_blessed):
        raise SfmError(
            f"The model is NOT_BLESSED: {' '.join(blessing.reasons)} Train a better one, or give "
            "--allow_not_blessed to export it all the same."
        )
    preprocessor = evaluated.defended.preprocessor
    follows = preprocessor.is_random and isinstance(preprocessor.draws, KeyedDraws)
    if config.draw_key_file and not follows:
        raise SfmError(
            f"Cannot use --draw_key_file={config.draw_key_file}: this model draws "
            f"{'afresh' if preprocessor.is_random else 'nothing'}. Leave the flag out."
        )
    served = evaluated.defended.for_service(draw_key(config.draw_key_file))
    staged = folder / "saved_model"
    export_saved_model(served, evaluated.class_names, staged, config.precision)
    manifest = {**evaluated.manifest, **dataclasses.asdict(blessing)}
    write_text(staged / MANIFEST_FILE, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    write_text(staged / MODEL_CARD_FILE, evaluated.model_card)
    requests = write_warm_up_requests(staged, config.model_name, ALLOWED_BATCH_SIZES)
    verification = verify_saved_model(
        staged,
        served,
        evaluated.images,
        evaluated.labels,
        same_arithmetic=config.precision == "float32",
    )
    versions = model_folder(config.serving_dir, config.model_name)
    version = publish(staged, versions)
    if config.keep_versions:
        keep_newest(versions, config.keep_versions)
    if not is_remote(config.serving_dir):
        write_server_configs(pathlib.Path(config.serving_dir))
    return PushedModel(f"{versions}/{version}", version, requests, verification)


def draw_key(path: str) -> bytes:
    """Returns the secret key of a random defence's draws, 16 bytes.

    Args:
        path: File with 32 hexadecimal digits; empty for a new random key.

    Raises:
        SfmError: If the file holds anything else, of which the message shows nothing.
    """
    if not path:
        return secrets.token_bytes(KEY_BYTES)
    expected = f"expected a file with a key of {2 * KEY_BYTES} hexadecimal digits"
    try:
        with open(path, "rb") as file:
            text = file.read(_LONGEST_KEY_FILE).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SfmError(f"Cannot read --draw_key_file={path}: {reason}; {expected}.") from None
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * KEY_BYTES}}}", text):
        raise SfmError(
            f"Invalid --draw_key_file={path} of {len(text)} characters; {expected}, such as "
            f"`openssl rand -hex {KEY_BYTES}` prints."
        )
    return bytes.fromhex(text)


_LONGEST_KEY_FILE = 4096

MODELS_FILE = "models.config"
BATCHING_FILE = "batching.config"
MONITORING_FILE = "monitoring.config"

MOUNT_POINT = "/models"
"""Where the server's container sees the folder of served models."""

ALLOWED_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Sizes, in images, that a server pads its batches to; the last is the largest request it accepts.

So few distinct sizes are ever computed that warm-up requests can prepare all of them. Powers of two
waste less than half of a batch.
"""

_HEADER = "# Written with each export; changes are lost.\n"

# The first request of a batch waits 2 ms for others; a server turns away requests beyond 100
# batches that wait.
_BATCHING = f"""max_batch_size {{ value: {ALLOWED_BATCH_SIZES[-1]} }}
batch_timeout_micros {{ value: 2000 }}
num_batch_threads {{ value: 2 }}
max_enqueued_batches {{ value: 100 }}
allowed_batch_sizes: {list(ALLOWED_BATCH_SIZES)}
"""

# TensorFlow Serving's own default, on the REST port.
_MONITORING = """prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""


def write_server_configs(serving_dir: pathlib.Path) -> list[str]:
    """Writes the files that make TensorFlow Serving load, batch and report on all models.

    Args:
        serving_dir: A local folder of served models; each of its sub-folders with a version is one.

    Returns:
        The names of the models, sorted.

    Raises:
        SfmError: If there is no model.
    """
    names = find_models(serving_dir)
    write_text(serving_dir / MODELS_FILE, models_config(names))
    write_text(serving_dir / BATCHING_FILE, _HEADER + _BATCHING)
    write_text(serving_dir / MONITORING_FILE, _HEADER + _MONITORING)
    return names


def models_config(model_names: Sequence[str], base_path: str = MOUNT_POINT) -> str:
    """Returns the text that makes a server load the latest version of each model.

    Args:
        model_names: The models.
        base_path: The folder of their folders, as the server sees it; `gs://...` works as well.

    Raises:
        SfmError: If there is no model, or a name is not usable as that of a folder.
    """
    if not model_names:
        raise SfmError("No models to serve; export one first.")
    message = model_server_config_pb2.ModelServerConfig()
    for name in model_names:
        config = message.model_config_list.config.add(
            name=name, base_path=model_folder(base_path, name), model_platform="tensorflow"
        )
        config.model_version_policy.latest.num_versions = 1
    return _HEADER + text_format.MessageToString(message)
