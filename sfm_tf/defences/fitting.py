"""Fits the defences that learn from training images, and reads back what was fitted."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import keras

from sfm_tf.artifacts.fingerprints import code_version
from sfm_tf.artifacts.progress import Progress
from sfm_tf.defences import pixel_defend, quilting, sensitivity
from sfm_tf.defences.quilting import PatchDatabase, collect_patches
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.models.imported_model import load_keras_file
from sfm_tf.models.pixel_cnn import build_pixel_cnn
from sfm_tf.preprocessors.operation import Operation
from sfm_tf.records.schema import read_schema
from sfm_tf.records.tfrecords import load_split
from sfm_tf.training.model_files import save_model
from sfm_tf.training.pixel_cnn_fitting import fit_pixel_cnn

PATCHES_FILE = "patches.npz"
PIXEL_CNN_FILE = "pixel_cnn.keras"

_PATCH_SIZE = 5
_PATCH_IMAGES = 20_000
"""Guo et al. draw their patches from this many images."""


def fit_operation(
    name: str,
    records: pathlib.Path,
    config: ComparedConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
) -> None:
    """Fits one operation to the training images and writes what it learnt.

    Args:
        name: One of `catalogue.FITTED`.
        records: Folder that `datasets.ingestion` wrote.
        config: Sizes and epochs.
        seed: Seed of every random choice.
        folder: Existing folder to write into.
        progress: Told of each step.

    Raises:
        SfmError: If the records are damaged.
    """
    _FITS[name].fit(records, config, seed, folder, progress)


def settings_of(name: str, config: ComparedConfig) -> ComparedConfig:
    """Returns the settings on which a fit depends; the others have their defaults."""
    relevant = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name.startswith(_FITS[name].settings_prefix)
    }
    return dataclasses.replace(ComparedConfig(), **relevant)


def fitted_operations(
    folders: Mapping[str, pathlib.Path], classifier: keras.Model
) -> dict[str, Operation]:
    """Returns the operations that depend on a fit or on the defended classifier.

    Args:
        folders: Where `fit_operation` wrote, by the operation's name; those not there are left out.
        classifier: The classifier that is defended; its gradient tells sensitive points.

    Raises:
        SfmError: If a file is missing or damaged.
    """
    found = {name: _FITS[name].read(folder) for name, folder in folders.items()}
    found["sensitivity"] = sensitivity.sensitivity_operation(classifier)
    return {name: _with_code(name, operation) for name, operation in found.items()}


def _with_code(name: str, operation: Operation) -> Operation:
    """Adds a digest of the code to the operation: other code makes another defence."""
    code = code_version(f"sfm_tf.defences.{name}")[:16]
    return dataclasses.replace(operation, content=f"{operation.content}{code}")


def _fit_quilting(
    records: pathlib.Path,
    config: ComparedConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
) -> None:
    progress("patches", 0, config.quilting_patches)
    images, _ = load_split(records, "train", read_schema(records), _PATCH_IMAGES)
    database = collect_patches(images, config.quilting_patches, _PATCH_SIZE, seed)
    database.save(folder / PATCHES_FILE)
    progress("patches", config.quilting_patches, config.quilting_patches)


def _read_quilting(folder: pathlib.Path) -> Operation:
    return quilting.quilting_operation(PatchDatabase.load(folder / PATCHES_FILE))


def _fit_pixel_defend(
    records: pathlib.Path,
    config: ComparedConfig,
    seed: int,
    folder: pathlib.Path,
    progress: Progress,
) -> None:
    schema = read_schema(records)
    images, _ = load_split(records, "train", schema)
    validation_images, _ = load_split(records, "validation", schema)
    model = build_pixel_cnn(
        schema.image_shape,
        config.pixel_cnn_width,
        config.pixel_cnn_depth,
        config.pixel_cnn_mixtures,
        seed,
    )
    fit_pixel_cnn(
        model,
        images,
        validation_images,
        epochs=config.pixel_cnn_epochs,
        batch_size=config.pixel_cnn_batch_size,
        learning_rate=config.pixel_cnn_learning_rate,
        seed=seed,
        progress=progress,
    )
    save_model(folder / PIXEL_CNN_FILE, model)


def _read_pixel_defend(folder: pathlib.Path) -> Operation:
    model = load_keras_file(folder / PIXEL_CNN_FILE, "fit the defences again")
    return pixel_defend.pixel_defend_operation(model)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """How an operation is fitted and read back, and how the names of its settings begin."""

    fit: Callable[[pathlib.Path, ComparedConfig, int, pathlib.Path, Progress], None]
    read: Callable[[pathlib.Path], Operation]
    settings_prefix: str


_FITS: Mapping[str, _Fit] = {
    "quilting": _Fit(_fit_quilting, _read_quilting, "quilting_"),
    "pixel_defend": _Fit(_fit_pixel_defend, _read_pixel_defend, "pixel_cnn_"),
}
"""By the names of `catalogue.FITTED`."""
