"""Settings of the stages `ingest` and `validate`."""

import dataclasses
from collections.abc import Mapping

from sfm_tf.settings import Settings, setting

DATASETS: Mapping[str, str] = {
    "digits": "sfm_tf.datasets.digits",
    "cifar10": "sfm_tf.datasets.tfds_source",
    "svhn_cropped": "sfm_tf.datasets.tfds_source",
    "tiny_imagenet": "sfm_tf.datasets.tiny_imagenet",
    "image_folder": "sfm_tf.datasets.image_folder",
}
"""The module of each dataset: its function `open_source(config)` returns an `ImageSource`.

A module is imported only to ingest its dataset, so that programs start without it.
"""

ANOMALY_KINDS = (
    "empty_class",
    "wrong_shape",
    "label_out_of_range",
    "unreadable_image",
    "truncated_shard",
    "value_range",
    "leakage",
    "label_conflict",
    "count_mismatch",
)
"""What can be wrong with ingested images; see `records.anomalies`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """What `pipelines.ingest` reads and how it splits it."""

    dataset: str = setting(
        "digits",
        "Dataset to ingest.",
        choices=tuple(DATASETS),
    )
    data_dir: str = setting(
        "",
        "Folder of TensorFlow Datasets; empty for the default of that library.",
        is_place=True,
    )
    source: str = setting(
        "",
        "Folder with the raw images, or zip file of it (tiny_imagenet, image_folder).",
        is_place=True,
    )
    image_size: int = setting(
        0,
        "Height and width in pixels to which images are resized; 0 keeps their size.",
        minimum=0,
        maximum=1024,
    )
    validation_fraction: float = setting(
        0.1, "Share of the training images set aside for validation.", minimum=0.01, maximum=0.5
    )
    test_fraction: float = setting(
        0.2,
        "Share of the images set aside for testing if the dataset has no test split.",
        minimum=0.01,
        maximum=0.5,
    )
    max_train_examples: int = setting(
        0,
        "Images taken from the training split, those for validation included; 0 for all.",
        minimum=0,
    )
    max_test_examples: int = setting(0, "Images taken from the test split; 0 for all.", minimum=0)
    shards: int = setting(4, "TFRecord files per split.", minimum=1, maximum=256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig(Settings):
    """What `pipelines.validate` lets pass."""

    allowed_anomalies: tuple[str, ...] = setting(
        ("label_conflict",),
        "Kinds of anomalies that are listed but do not stop the run.",
        choices=ANOMALY_KINDS,
    )
