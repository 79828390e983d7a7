import json
import time

import pytest
from PIL import Image

from pipelines.ingest import ingest
from sfm_tf import experiments
from sfm_tf.artifacts.run_directory import RunDirectory
from sfm_tf.errors import SfmError
from sfm_tf.records.schema import read_schema


def _digits(**values):
    return experiments.override(experiments.preset("digits"), values)


def test_writes_every_digit_once(tmp_path):
    artifact = ingest(RunDirectory(tmp_path), _digits(shards=2), False)
    schema = json.loads((artifact.folder / "schema.json").read_text())
    assert sum(schema["split_sizes"].values()) == 1797
    assert (schema["height"], schema["width"], schema["channels"]) == (8, 8, 1)
    statistics = json.loads((artifact.folder / "statistics.json").read_text())
    assert {split: values["count"] for split, values in statistics.items()} == schema["split_sizes"]
    assert len(list(artifact.folder.glob("train-*-of-00002.tfrecord"))) == 2


def test_is_found_finished_until_a_setting_changes(tmp_path):
    run_directory = RunDirectory(tmp_path)
    first = ingest(run_directory, _digits(max_train_examples=300), False)
    assert ingest(run_directory, _digits(max_train_examples=300), False) == first
    assert ingest(run_directory, _digits(max_train_examples=300, seed=1), False) != first


def test_images_that_were_added_behind_a_link_are_ingested(tmp_path):
    for index, name in enumerate(
        f"{label}/{each}" for label in ("cat", "dog") for each in range(4)
    ):
        path = tmp_path / "elsewhere" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    (tmp_path / "photos").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).symlink_to(tmp_path / "elsewhere" / label)
    experiment = experiments.override(
        experiments.preset("image_folder"), {"source": str(tmp_path / "photos"), "image_size": 8}
    )
    run_directory = RunDirectory(tmp_path / "run")
    first = ingest(run_directory, experiment, False)
    assert ingest(run_directory, experiment, False) == first
    Image.new("RGB", (8, 8), (0, 9, 0)).save(tmp_path / "elsewhere" / "dog" / "added.png")
    second = ingest(run_directory, experiment, False)
    sizes = [sum(read_schema(artifact.folder).split_sizes.values()) for artifact in (first, second)]
    assert sizes == [8, 9]


def test_a_missing_dataset_is_one_quick_line(tmp_path):
    experiment = experiments.override(
        experiments.preset("tiny_imagenet"), {"source": str(tmp_path / "absent.zip")}
    )
    start = time.monotonic()
    with pytest.raises(SfmError, match=r"absent\.zip"):
        ingest(RunDirectory(tmp_path / "run"), experiment, False)
    assert time.monotonic() - start < 30.0
    assert not list(tmp_path.iterdir())  # Not even the directory, which is free for others.
