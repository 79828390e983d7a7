"""The files that tell TensorFlow Serving what to serve, how to batch and what to report.

    <serving_dir>/models.config      --model_config_file: the models, each in its latest version
    <serving_dir>/batching.config    --batching_parameters_file: how requests become batches
    <serving_dir>/monitoring.config  --monitoring_config_file: metrics for Prometheus

They are protocol buffers in text format: `ModelServerConfig`, `BatchingParameters` and
`MonitoringConfig` of TensorFlow Serving. `deployment/compose.yaml` mounts the folder as `/models`.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from sfm_tf.artifacts.atomic_files import write_text
from sfm_tf.errors import SfmError
from sfm_tf.serving.versions import find_models, model_folder

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
