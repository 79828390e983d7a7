"""From a dataset to records: the work of the ingest stage."""

import contextlib
import hashlib
import importlib
import itertools
import pathlib
from collections.abc import Callable, Iterator

from sfm_tf.artifacts import atomic_files
from sfm_tf.artifacts.fingerprints import code_version
from sfm_tf.artifacts.progress import Progress
from sfm_tf.datasets.archives import raw_versions
from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.resizing import resize_source
from sfm_tf.datasets.settings import DATASETS, DataConfig
from sfm_tf.datasets.splitting import hashed_split, stratified_split
from sfm_tf.errors import SfmError, enumerated
from sfm_tf.records.example import ImageRecord, pixel_digest
from sfm_tf.records.schema import Schema, write_schema
from sfm_tf.records.statistics import STATISTICS_FILE, compute_statistics
from sfm_tf.records.tfrecords import SplitWriter

SPLITS = ("train", "validation", "test")
_PROGRESS_STEP = 500


def ingest(config: DataConfig, seed: int, folder: pathlib.Path, progress: Progress) -> Schema:
    """Writes a dataset as shards of train, validation and test, with schema and statistics.

    Validation and test are taken from the training images where the dataset has no such split;
    which images, depends on pixels, classes and `seed` alone. Exact copies of an image are never
    divided between splits that are carved from the same images. Limits take the first images in
    the order of the source, whatever the seed.

    Args:
        config: Which dataset, and how to split it.
        seed: Seed of the split.
        folder: Folder to write into, made if it does not exist.
        progress: Called now and then, and at the end, with the images of a split that are written.

    Returns:
        The schema written.

    Raises:
        SfmError: If the dataset is missing or damaged, its images differ in shape, or a split
            would be empty; lists all that is wrong. No shard is written then.
    """
    source = open_source(config)
    if source.passed_over:
        progress("files of file managers passed over", source.passed_over, None)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = _write_shards(source, config, seed, folder, progress)
    schema = Schema(source.height, source.width, source.channels, source.class_names, sizes)
    atomic_files.write_json(folder / STATISTICS_FILE, compute_statistics(folder, schema))
    write_schema(schema, folder)
    return schema


def open_source(config: DataConfig) -> ImageSource:
    """Opens the dataset that `config` names, its images resized if `image_size` is set.

    Raises:
        SfmError: If the dataset is missing or damaged; says what to put where.
    """
    source = importlib.import_module(DATASETS[config.dataset]).open_source(config)
    return resize_source(source, config.image_size) if config.image_size else source


def source_version(config: DataConfig) -> str:
    """Returns a text that changes with the code that opens a dataset, and with its raw files.

    Of the raw files, names, sizes and times of change count, not contents, so that it costs no
    reading. Datasets of TensorFlow Datasets have versions and checksums of their own.

    Args:
        config: Which dataset, and where. Files that are missing are reported when it is ingested,
            not here.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        SfmError: If a symbolic link leads back to a folder that it is in.
    """
    digest = hashlib.sha256(code_version(DATASETS[config.dataset]).encode())
    for name, version in raw_versions(config).items():
        digest.update(f"{name} {version}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _write_shards(
    source: ImageSource, config: DataConfig, seed: int, folder: pathlib.Path, progress: Progress
) -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(SplitWriter(folder, split, config.shards))
            for split in SPLITS
        }
        for split, record in _assigned_records(source, config, seed, progress):
            writers[split].write(record)
            if writers[split].count % _PROGRESS_STEP == 0:
                progress(f"{split} images", writers[split].count, None)
        _check_problems(source)
        sizes = {split: writer.count for split, writer in writers.items()}
        _check_sizes(sizes, config, source)
    for split, size in sizes.items():
        progress(f"{split} images", size, None)
    return sizes


def _assigned_records(
    source: ImageSource, config: DataConfig, seed: int, progress: Progress
) -> Iterator[tuple[str, ImageRecord]]:
    """Yields every image wanted, once, with the name of its split."""
    split_of = _chosen_splits(source, config, seed, progress)
    for split, limit in (("test", config.max_test_examples or None), ("validation", None)):
        if split in source.splits:
            for record in itertools.islice(_sound_records(source, split), limit):
                yield split, record
    wanted = {
        # The validation images count as training images: they are taken from them.
        "train": config.max_train_examples or float("inf"),
        "test": 0 if "test" in source.splits else config.max_test_examples or float("inf"),
    }
    for record in _sound_records(source, "train"):
        if not any(wanted.values()):
            return
        split = split_of(record)
        pool = "test" if split == "test" else "train"
        if wanted[pool]:
            wanted[pool] -= 1
            yield split, record


def _chosen_splits(
    source: ImageSource, config: DataConfig, seed: int, progress: Progress
) -> Callable[[ImageRecord], str]:
    """Returns what names the split of a training image.

    It goes by pixels rather than by key: copies of one image always fall into the same split.
    """
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    fractions = {split: share for split, share in fractions.items() if split not in source.splits}
    if not source.is_stratified:
        return lambda record: hashed_split(pixel_digest(record.image), fractions, seed)
    images = _survey(source, progress)
    splits = stratified_split(images, fractions, seed, config.max_train_examples)

    def split_of(record: ImageRecord) -> str:
        try:
            return splits[pixel_digest(record.image)]
        except KeyError as error:
            raise SfmError(f"Image {record.key} changed meanwhile; run again.") from error

    return split_of


def _survey(source: ImageSource, progress: Progress) -> list[tuple[str, int]]:
    """Reads every image; returns pixel digest and label of those for training.

    Raises:
        SfmError: If anything is wrong with the dataset; names it all.
    """
    images = []
    count = 0
    for split in source.splits:
        for record in _sound_records(source, split):
            if split == "train":
                images.append((pixel_digest(record.image), record.label))
            count += 1
            if count % _PROGRESS_STEP == 0:
                progress("images checked", count, None)
    _check_problems(source)
    return images


def _sound_records(source: ImageSource, split: str) -> Iterator[ImageRecord]:
    """Yields the images that fit the dataset; lists the others among its problems."""
    expected = (source.height, source.width, source.channels)
    for record in source.splits[split]():
        if record.image.shape != expected:
            source.problems.append(
                f"Image {record.key!r} has shape {record.image.shape}; expected {expected} like "
                "the others. Give --image_size to resize all images."
            )
        elif not 0 <= record.label < len(source.class_names):
            source.problems.append(
                f"Image {record.key!r} has label {record.label}; "
                f"expected 0 to {len(source.class_names) - 1}."
            )
        else:
            yield record


def _check_problems(source: ImageSource) -> None:
    if source.problems:
        raise SfmError(enumerated(source.problems))


def _check_sizes(sizes: dict[str, int], config: DataConfig, source: ImageSource) -> None:
    advice = "use more images, or a larger --validation_fraction or --test_fraction"
    if source.is_stratified:
        advice = "use more images: a class needs a different one for each split"
    for split, size in sizes.items():
        if not size:
            raise SfmError(
                f"No image of dataset {config.dataset!r} falls into split {split!r} (sizes "
                f"{sizes}); {advice}."
            )
