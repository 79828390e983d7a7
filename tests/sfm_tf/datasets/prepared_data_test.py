import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sfm_tf.datasets.prepared_data import prepare, read_records
from sfm_tf.errors import SfmError

_IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)


class Numbered(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images without ids."""

    VERSION = tfds.core.Version("1.0.0")
    error = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 5, 3)),
            "label": tfds.features.ClassLabel(num_classes=20),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, image in enumerate(_IMAGES):
            yield index, {"image": image, "label": index}
        if self.error:
            raise self.error


class Named(Numbered, skip_registration=True):
    """Images with ids."""

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(4, 5, 3)),
            "label": tfds.features.ClassLabel(num_classes=20),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for index, image in enumerate(_IMAGES):
            yield index, {"id": f"é{index}", "image": image, "label": index}


def test_reads_what_was_prepared(tmp_path):
    builder = Named(data_dir=tmp_path)
    prepare(builder)
    records = list(read_records(builder, "train"))
    assert sorted(record.label for record in records) == list(range(20))
    for record in records:
        assert record.key == f"é{record.label}"
        np.testing.assert_array_equal(record.image, _IMAGES[record.label])


def test_keys_without_ids_are_positions(tmp_path):
    builder = Numbered(data_dir=tmp_path)
    prepare(builder)
    first, again = (list(read_records(builder, "train")) for _ in range(2))
    assert [record.key for record in first] == [f"train_{index:06d}" for index in range(20)]
    assert [record.label for record in first] == [record.label for record in again]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), SfmError, "Cannot prepare dataset 'numbered'"),
        (SfmError("Image cat.png is odd."), SfmError, "^Image cat.png is odd.$"),
        (KeyError("defect"), KeyError, "defect"),
    ],
)
def test_failure_leaves_nothing_prepared(tmp_path, monkeypatch, error, raised, message):
    monkeypatch.setattr(Numbered, "error", error)
    builder = Numbered(data_dir=tmp_path)
    with pytest.raises(raised, match=message):
        prepare(builder)
    assert not builder.is_prepared()
    assert [path for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()] == []


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
