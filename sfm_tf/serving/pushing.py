"""From a model that evaluation blessed to one that a server finds; what TFX names the Pusher."""

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfm_tf.artifacts.atomic_files import write_text
from sfm_tf.audit.blessing import Blessing
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.serving.settings import ExportConfig
from sfm_tf.serving.verification import Verification, verify_saved_model
from sfm_tf.serving.versions import (
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    find_models,
    keep_newest,
    model_folder,
    publish,
)
from sfm_tf.serving.warm_up import write_warm_up_requests

MODELS_FILE = "models.config"
BATCHING_FILE = "batching.config"
MONITORING_FILE = "monitoring.config"

METRICS_PATH = "/monitoring/prometheus/metrics"
"""TensorFlow Serving's own default, on the REST port."""

MOUNT_POINT = "/models"
"""Where the server's container sees the folder of served models."""

_HEADER = "# Written with each export; changes are lost.\n"


@dataclasses.dataclass(frozen=True)
class Batching:
    """How a server merges requests into batches.

    A batch is padded to the next allowed size, so few distinct sizes are ever computed, all of
    which warm-up requests can prepare. Powers of two waste less than half of a batch.

    Attributes:
        allowed_batch_sizes: Sizes in images, growing; the last is the largest batch and the
            largest request that a server accepts.
        timeout_microseconds: How long the first request of a batch waits for others.
        threads: Batches computed at a time; no more than the server has cores.
        max_enqueued_batches: Batches that may wait; a server turns away requests beyond that.
    """

    allowed_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    timeout_microseconds: int = 2000
    threads: int = 2
    max_enqueued_batches: int = 100

    def __post_init__(self) -> None:
        """Raises `SfmError` for values that a server refuses when it starts."""
        sizes = self.allowed_batch_sizes
        if not sizes or sizes[0] < 1 or sorted(set(sizes)) != list(sizes):
            raise SfmError(
                f"Invalid allowed_batch_sizes {list(sizes)}; expected growing positive numbers."
            )
        for name in ("timeout_microseconds", "threads", "max_enqueued_batches"):
            least = 0 if name == "timeout_microseconds" else 1
            if getattr(self, name) < least:
                raise SfmError(f"Invalid {name} {getattr(self, name)}; expected at least {least}.")


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
    configs = []
    for name in model_names:
        folder = model_folder(base_path, name)
        configs.append(
            f'  config {{\n    name: "{name}"\n    base_path: {_quoted(folder)}\n'
            '    model_platform: "tensorflow"\n'
            "    model_version_policy { latest { num_versions: 1 } }\n  }\n"
        )
    return f"{_HEADER}model_config_list {{\n{''.join(configs)}}}\n"


def batching_config(batching: Batching) -> str:
    """Returns the text that makes a server merge requests."""
    sizes = "".join(f"allowed_batch_sizes: {size}\n" for size in batching.allowed_batch_sizes)
    return (
        f"{_HEADER}max_batch_size {{ value: {batching.allowed_batch_sizes[-1]} }}\n"
        f"batch_timeout_micros {{ value: {batching.timeout_microseconds} }}\n"
        f"num_batch_threads {{ value: {batching.threads} }}\n"
        f"max_enqueued_batches {{ value: {batching.max_enqueued_batches} }}\n"
        f"{sizes}"
    )


def monitoring_config(path: str = METRICS_PATH) -> str:
    """Returns the text that makes a server report metrics to Prometheus on its REST port.

    Raises:
        SfmError: If the path does not start with a slash.
    """
    if not path.startswith("/"):
        raise SfmError(
            f"Invalid path of the metrics {path!r}; expected one such as {METRICS_PATH}."
        )
    return f"{_HEADER}prometheus_config {{\n  enable: true\n  path: {_quoted(path)}\n}}\n"


def write_server_configs(serving_dir: pathlib.Path, batching: Batching | None = None) -> list[str]:
    """Writes the three files for all models in a local folder of served models.

    Args:
        serving_dir: The folder; each of its sub-folders with a version is a model.
        batching: How to batch; None for the defaults.

    Returns:
        The names of the models, sorted.

    Raises:
        SfmError: If there is no model.
    """
    names = find_models(serving_dir)
    write_text(serving_dir / MODELS_FILE, models_config(names))
    write_text(serving_dir / BATCHING_FILE, batching_config(batching or Batching()))
    write_text(serving_dir / MONITORING_FILE, monitoring_config())
    return names


def _quoted(text: str) -> str:
    """Returns a string literal of the text format of protocol buffers."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


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
            f"The model is NOT_BLESSED: {' '.join(blessing.reasons)} Train a better model, or "
            "export this one anyway with --allow_not_blessed."
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
