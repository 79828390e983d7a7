"""From a model that evaluation blessed to one that a server finds; what TFX names the Pusher."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from sfm_tf.config import ExportConfig
from sfm_tf.errors import SfmError
from sfm_tf.evaluation.blessing import Blessing
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.serving.verification import Verification, verify_saved_model
from sfm_tf.serving.versions import push


@dataclasses.dataclass(frozen=True)
class PushedModel:
    """A model that a server can load.

    Attributes:
        folder: Its version's folder, `<serving_dir>/<model_name>/<version>`.
        version: Its version.
        verification: How its answers compared with those of the evaluated model.
    """

    folder: pathlib.Path
    version: int
    verification: Verification


def push_blessed(
    defended: DefendedModel,
    class_names: Sequence[str],
    images: np.ndarray,
    blessing: Blessing,
    config: ExportConfig,
    folder: pathlib.Path,
) -> PushedModel:
    """Exports a model, proves the export in a fresh process, and only then pushes it.

    Args:
        defended: The model that was evaluated.
        class_names: Names of the classes in the order of the logits.
        images: The evaluated images, float32 in [0, 1], shape `(count, height, width, channels)`.
        blessing: The evaluation's verdict.
        config: Where to push; `serving_dir` must not be empty.
        folder: Existing folder in which the export is staged, as `saved_model`.

    Returns:
        The new version.

    Raises:
        SfmError: If the model is not blessed and `config` does not allow that, the export fails
            its verification, or it cannot be pushed.
    """
    if not (blessing.blessed or config.allow_not_blessed):
        raise SfmError(
            f"The model is NOT_BLESSED: {' '.join(blessing.reasons)} Train a better one, or give "
            "--allow_not_blessed to export it all the same."
        )
    staged = folder / "saved_model"
    export_saved_model(defended, class_names, staged)
    verification = verify_saved_model(staged, defended, images)
    pushed = push(staged, pathlib.Path(config.serving_dir), config.model_name)
    return PushedModel(pushed, int(pushed.name), verification)
