"""From a dataset to records: the work of the ingest stage."""

import contextlib
import hashlib
import importlib
import itertools
import pathlib
from collections.abc import Iterator

from sfm_tf.artifacts import atomic_files
from sfm_tf.artifacts.fingerprints import code_version
from sfm_tf.artifacts.progress import Progress
from sfm_tf.datasets.image_source import ImageSource
from sfm_tf.datasets.resizing import resize_source
from sfm_tf.datasets.settings import DATASETS, DataConfig
from sfm_tf.errors import SfmError
from sfm_tf.records.example import ImageRecord, pixel_digest
from sfm_tf.records.schema import Schema, write_schema
from sfm_tf.records.statistics import STATISTICS_FILE, compute_statistics
from sfm_tf.records.tfrecords import SplitWriter

SPLITS = ("train", "validation", "test")
_PROGRESS_STEP = 500


def ingest(config: DataConfig, seed: int, folder: pathlib.Path, progress: Progress) -> Schema:
    """Writes a dataset as shards of train, validation and test, with schema and statistics.

    Validation is taken from the training images, and so is test where the dataset has no test
    split; which images, depends on their pixels and `seed` alone. Exact copies of an image are
    never divided between splits that are carved from the same images. Limits take the first
    images in the order of the source, whatever the seed.

    Args:
        config: Which dataset, and how to split it.
        seed: Seed of the split.
        folder: Folder to write into, made if it does not exist.
        progress: Called now and then, and at the end, with the images of a split that are written.

    Returns:
        The schema written.

    Raises:
        SfmError: If the dataset is missing or damaged, its images differ in shape, or a split
            would be empty. No shard is written then.
    """
    source = open_source(config)
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

    Of the files that `config.source` names, names, sizes and times of change count, not contents,
    so that it costs no reading. Datasets of TensorFlow Datasets have versions and checksums of
    their own.

    Args:
        config: Its `source` is an archive or a folder; empty for datasets that need none. One that
            is missing is reported when it is ingested, not here.

    Returns:
        SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256(code_version(DATASETS[config.dataset]).encode())
    root = pathlib.Path(config.source).expanduser()
    files = [root, *sorted(root.rglob("*"))] if config.source else []
    for path in filter(pathlib.Path.is_file, files):
        status, name = path.stat(), path.relative_to(root).as_posix()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _write_shards(
    source: ImageSource, config: DataConfig, seed: int, folder: pathlib.Path, progress: Progress
) -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(SplitWriter(folder, split, config.shards))
            for split in SPLITS
        }
        for split, record in _assigned_records(source, config, seed):
            _check_record(record, source)
            writers[split].write(record)
            if writers[split].count % _PROGRESS_STEP == 0:
                progress(f"{split} images", writers[split].count, None)
        sizes = {split: writer.count for split, writer in writers.items()}
        _check_sizes(sizes, config)
    for split, size in sizes.items():
        progress(f"{split} images", size, None)
    return sizes


def _assigned_records(
    source: ImageSource, config: DataConfig, seed: int
) -> Iterator[tuple[str, ImageRecord]]:
    """Yields every image wanted, once, with the name of its split."""
    carve_test = "test" not in source.splits
    wanted = {
        # The validation images count as training images: they are taken from them.
        "train": config.max_train_examples or float("inf"),
        "test": config.max_test_examples or float("inf"),
    }
    if not carve_test:
        limit = config.max_test_examples or None
        yield from (("test", record) for record in itertools.islice(source.splits["test"](), limit))
        wanted["test"] = 0
    for record in source.splits["train"]():
        if not any(wanted.values()):
            return
        split = _assigned_split(record, config, seed, carve_test)
        pool = "test" if split == "test" else "train"
        if wanted[pool]:
            wanted[pool] -= 1
            yield split, record


def _assigned_split(record: ImageRecord, config: DataConfig, seed: int, carve_test: bool) -> str:
    # By pixels rather than by key: copies of one image always fall into the same split. The two
    # choices need different keys, or the validation share would lie within the test share.
    digest = pixel_digest(record.image)
    if carve_test and is_held_out(f"test {digest}", seed, config.test_fraction):
        return "test"
    if is_held_out(f"validation {digest}", seed, config.validation_fraction):
        return "validation"
    return "train"


def is_held_out(key: str, seed: int, fraction: float) -> bool:
    """Tells whether the image named `key` is among those that are held out.

    The SHA-256 of seed and key, read as a number in [0, 1), is compared with `fraction`: the same
    image is held out at every run, and what is held out at a smaller fraction is held out at a
    larger one.

    Args:
        key: Name of the image. Two independent choices about one image need two keys.
        seed: Seed of the choice.
        fraction: Expected share of the images held out, in [0, 1].

    Returns:
        True for about `fraction` of all keys.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _check_record(record: ImageRecord, source: ImageSource) -> None:
    expected = (source.height, source.width, source.channels)
    if record.image.shape != expected:
        raise SfmError(
            f"Image {record.key!r} has shape {record.image.shape}; expected {expected} like the "
            "others. Give --image_size to resize all images."
        )
    if not 0 <= record.label < len(source.class_names):
        raise SfmError(
            f"Image {record.key!r} has label {record.label}; "
            f"expected 0 to {len(source.class_names) - 1}."
        )


def _check_sizes(sizes: dict[str, int], config: DataConfig) -> None:
    for split, size in sizes.items():
        if not size:
            raise SfmError(
                f"No image of dataset {config.dataset!r} falls into split {split!r} (sizes "
                f"{sizes}); use more images, or a larger --validation_fraction or --test_fraction."
            )
