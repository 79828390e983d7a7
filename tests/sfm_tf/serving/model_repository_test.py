import shutil

import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.serving.model_repository import ModelRepository, load_version, version_folders
from sfm_tf.serving.request_errors import Code, RequestError


class Adding(tf.Module):
    """Adds a number of its own to each value."""

    def __init__(self, number):
        super().__init__()
        self.number = tf.Variable(float(number))

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="images")])
    def add(self, images):
        return {"sums": images + self.number}

    @tf.function(input_signature=[tf.TensorSpec([3], tf.float32, name="values")])
    def total(self, values):
        return {"total": tf.reduce_sum(values)}


def write_version(folder, number, saved_as=None):
    """Leaves a version that adds its own number."""
    module = Adding(number)
    signatures = {"serving_default": module.add, "total": module.total}
    tf.saved_model.save(module, str(folder / (saved_as or str(number))), signatures=signatures)


def answer(model):
    images = tf.constant([[0.0, 10.0]])
    return model.signatures["serving_default"].run(images=images)["sums"].numpy().tolist()


def test_versions_are_folders_with_a_number_and_a_model(tmp_path):
    for name in ("2", "10", "3", "1.tmp", ".4", "latest"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "11").mkdir()
    (tmp_path / "12").touch()
    assert list(version_folders(tmp_path)) == [10, 3, 2]
    assert version_folders(tmp_path / "absent") == {}


def test_a_loaded_version_knows_its_signatures(tmp_path):
    write_version(tmp_path, 7)
    model = load_version("adding", 7, tmp_path / "7")
    signature = model.signatures["serving_default"]
    assert signature.inputs["images"].shape.as_list() == [None, 2]
    assert signature.outputs["sums"].dtype == tf.float32
    assert signature.is_batched
    assert not model.signatures["total"].is_batched
    assert model.signature_defs["total"].inputs["values"].dtype == 1  # DT_FLOAT
    assert answer(model) == [[7.0, 17.0]]


def test_the_newest_version_is_served_as_versions_come_and_go(tmp_path):
    write_version(tmp_path, 1)
    repository = ModelRepository({"adding": tmp_path})
    assert repository.missing() == ["adding"]
    repository.refresh()
    first = repository.find("adding")
    assert (first.version, answer(first)) == (1, [[1.0, 11.0]])

    repository.refresh()
    assert repository.find("adding") is first

    write_version(tmp_path, 2)
    repository.refresh()
    assert answer(repository.find("adding", 2)) == [[2.0, 12.0]]
    assert answer(first) == [[1.0, 11.0]]  # As a request that still holds it needs.

    shutil.rmtree(tmp_path / "2")
    repository.refresh()
    assert repository.find("adding").version == 1

    shutil.rmtree(tmp_path / "1")
    repository.refresh()
    assert repository.find("adding").version == 1
    assert repository.missing() == []


def test_a_version_that_does_not_load_leaves_the_one_before(tmp_path):
    write_version(tmp_path, 1)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"half a model")
    repository = ModelRepository({"adding": tmp_path})
    repository.refresh()
    assert repository.find("adding").version == 1
    states = [(status.version, status.state) for status in repository.statuses("adding")]
    assert states == [(2, "END"), (1, "AVAILABLE")]
    assert "Cannot serve" in repository.statuses("adding", 2)[0].error
    assert len(repository.failures()) == 1

    shutil.rmtree(tmp_path / "2")
    write_version(tmp_path, 2)
    repository.refresh()
    assert repository.find("adding").version == 2
    assert repository.failures() == []


def test_a_version_whose_variables_are_damaged_is_not_loaded(tmp_path):
    write_version(tmp_path, 1)
    data = next((tmp_path / "1" / "variables").glob("*.data*"))
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(SfmError, match="Cannot serve .*; export it again"):
        load_version("adding", 1, tmp_path / "1")


@pytest.mark.parametrize(
    ("name", "version", "wanted"),
    [("other", None, r"Latest\(other\)"), ("adding", 9, r"Specific\(adding, 9\)")],
)
def test_what_is_not_served_is_not_found(tmp_path, name, version, wanted):
    write_version(tmp_path, 1)
    repository = ModelRepository({"adding": tmp_path})
    repository.refresh()
    with pytest.raises(RequestError, match=f"Servable not found for request: {wanted}") as caught:
        repository.find(name, version)
    assert caught.value.code is Code.NOT_FOUND
    which = "any versions" if version is None else "version 9"
    with pytest.raises(RequestError, match=f"Could not find {which} of model {name}"):
        repository.statuses(name, version)


def test_zeros_of_every_type_are_tried(tmp_path):
    class Counting(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.string, name="texts"),
                tf.TensorSpec([None], tf.int64, name="numbers"),
            ]
        )
        def count(self, texts, numbers):
            # A division by zero, as an example of zeros makes it.
            return {"lengths": tf.cast(tf.strings.length(texts), tf.int64) // (numbers + 1)}

    module = Counting()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.count})
    model = load_version("counting", 1, tmp_path / "1")
    inputs = {"texts": tf.constant([b"four"]), "numbers": tf.constant(np.int64([1]))}
    lengths = model.signatures["serving_default"].run(**inputs)["lengths"]
    assert lengths.numpy().tolist() == [2]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
