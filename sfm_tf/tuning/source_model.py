"""The source model of the black box, trained once for all trainings that are compared."""

import contextlib
import fcntl
import pathlib
import shutil
from collections.abc import Iterator

import keras

from sfm_tf.models.imported_model import load_classifier
from sfm_tf.training import model_files
from sfm_tf.training.plan import source_plan
from sfm_tf.training.workplace import Workplace

_LOCK = ".lock"


@contextlib.contextmanager
def waiting_turn(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process after the other do what belongs into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def source_model(workplace: Workplace) -> keras.Model:
    """Returns the source model in the workplace's folder, trained now or earlier.

    Args:
        workplace: Where it is trained; an interrupted training is gone on with.

    Returns:
        Model from float32 images in [0, 1] to float32 logits.

    Raises:
        SfmError: If the model was left by another program, or its loss became no number.
    """
    blueprint = workplace.blueprint
    path = workplace.folder / model_files.SOURCE_FILE
    if not path.exists():
        trained, _ = workplace.train(
            "source", blueprint.source, source_plan(workplace.config), blueprint.seeds.source_order
        )
        model_files.save_model(path, trained.classifier)
        shutil.rmtree(workplace.folder / model_files.CHECKPOINT_FOLDER, ignore_errors=True)
    schema = blueprint.schema
    return load_classifier(path, schema.image_shape, len(schema.class_names))
