"""The datasets by name."""

from collections.abc import Callable, Mapping

from sfm_tf.config import DataConfig
from sfm_tf.datasets.digits import open_digits
from sfm_tf.datasets.image_folder import open_image_folder
from sfm_tf.datasets.resizing import resize_source
from sfm_tf.datasets.source import ImageSource
from sfm_tf.datasets.tfds_source import open_tfds
from sfm_tf.datasets.tiny_imagenet import open_tiny_imagenet

OPENERS: Mapping[str, Callable[[DataConfig], ImageSource]] = {
    "digits": open_digits,
    "cifar10": open_tfds,
    "svhn_cropped": open_tfds,
    "tiny_imagenet": open_tiny_imagenet,
    "image_folder": open_image_folder,
}


def open_source(config: DataConfig) -> ImageSource:
    """Opens the dataset that `config` names, its images resized if `image_size` is set.

    Raises:
        SfmError: If the dataset is missing or damaged; says what to put where.
    """
    source = OPENERS[config.dataset](config)
    return resize_source(source, config.image_size) if config.image_size else source
