import http
import shutil

import grpc
import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.errors import SfmError
from sfm_tf.serving.prediction_service import (
    Code,
    ModelRepository,
    RequestError,
    RequestLimits,
    ServedModel,
    Signature,
    check_declaration,
    check_names,
    load_version,
    make_prediction,
    run_merged,
    version_folders,
)
from tests.sfm_tf.serving.toy_model import write_version

HTTP_NAMES = {
    "INVALID_ARGUMENT": "BAD_REQUEST",
    "NOT_FOUND": "NOT_FOUND",
    "FAILED_PRECONDITION": "BAD_REQUEST",
    "UNIMPLEMENTED": "NOT_IMPLEMENTED",
    "INTERNAL": "INTERNAL_SERVER_ERROR",
    "UNAVAILABLE": "SERVICE_UNAVAILABLE",
}


def test_numbers_are_those_of_grpc_and_of_http():
    for name, http_name in HTTP_NAMES.items():
        assert Code[name].grpc == grpc.StatusCode[name].value[0]
        assert Code[name].http == http.HTTPStatus[http_name]
    assert Code.TOO_LARGE.grpc == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert Code.TOO_LARGE.http == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert Code.UNSUPPORTED_MEDIA_TYPE.http == http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    assert {*HTTP_NAMES, "TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"} == set(Code.__members__)


def test_a_refusal_has_a_code_and_one_line():
    error = RequestError(Code.NOT_FOUND, "no such model")
    assert (error.code, str(error)) == (Code.NOT_FOUND, "no such model")
    assert str(RequestError(Code.NOT_FOUND, "ab" * 5000)) == "ab" * 250


def answering_version(model):
    """The version that a loaded model adds to its answers."""
    found = model.signatures["serving_default"].run(images=tf.zeros([1, 4, 4, 1]))
    return found["logits"].numpy()[0, 0]


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
    model = load_version("toy", 7, tmp_path / "7")
    signature = model.signatures["serving_default"]
    assert signature.inputs["images"].shape.as_list() == [None, 4, 4, 1]
    assert signature.outputs["logits"].dtype == tf.float32
    assert signature.is_batched
    assert model.signature("") is signature
    with pytest.raises(RequestError, match='Serving signature key "nope" not found'):
        model.signature("nope")
    assert not model.signatures["total"].is_batched
    assert model.signature_defs["total"].inputs["values"].dtype == 1  # DT_FLOAT
    assert answering_version(model) == 7.0


def test_the_newest_version_is_served_as_versions_come_and_go(tmp_path):
    write_version(tmp_path, 1)
    repository = ModelRepository({"toy": tmp_path})
    assert repository.missing() == ["toy"]
    repository.refresh()
    first = repository.find("toy")
    assert (first.version, answering_version(first)) == (1, 1.0)

    repository.refresh()
    assert repository.find("toy") is first

    write_version(tmp_path, 2)
    repository.refresh()
    assert answering_version(repository.find("toy", 2)) == 2.0
    assert answering_version(first) == 1.0  # As a request that still holds it needs.

    shutil.rmtree(tmp_path / "2")
    repository.refresh()
    assert repository.find("toy").version == 1

    shutil.rmtree(tmp_path / "1")
    repository.refresh()
    assert repository.find("toy").version == 1
    assert repository.missing() == []


def test_a_version_that_does_not_load_leaves_the_one_before(tmp_path):
    write_version(tmp_path, 1)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"half a model")
    repository = ModelRepository({"toy": tmp_path})
    repository.refresh()
    assert repository.find("toy").version == 1
    states = [(status.version, status.state) for status in repository.statuses("toy")]
    assert states == [(2, "END"), (1, "AVAILABLE")]
    assert "Cannot serve" in repository.statuses("toy", 2)[0].error_message
    assert len(repository.failures()) == 1

    shutil.rmtree(tmp_path / "2")
    write_version(tmp_path, 2)
    repository.refresh()
    assert repository.find("toy").version == 2
    assert repository.failures() == []


def test_a_version_whose_variables_are_damaged_is_not_loaded(tmp_path):
    write_version(tmp_path, 1)
    data = next((tmp_path / "1" / "variables").glob("*.data*"))
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(SfmError, match="Cannot serve .*; export it again"):
        load_version("toy", 1, tmp_path / "1")


@pytest.mark.parametrize(
    ("name", "version", "wanted"),
    [("other", None, r"Latest\(other\)"), ("toy", 9, r"Specific\(toy, 9\)")],
)
def test_what_is_not_served_is_not_found(tmp_path, name, version, wanted):
    write_version(tmp_path, 1)
    repository = ModelRepository({"toy": tmp_path})
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


IMAGES = tf.TensorSpec([None, 2, 1], tf.float32, name="images")
LIMITS = RequestLimits(body_bytes=1000, batch_size=8)


def double(images):
    tf.debugging.assert_less(images, 0.9, "too bright")
    return {"doubled": images * 2.0}


SIGNATURE = Signature("serving_default", {"images": IMAGES}, {"doubled": IMAGES}, double)
OTHER = Signature("other", {"images": IMAGES}, {"doubled": IMAGES}, double)
MODEL = ServedModel("doubling", 1, {"serving_default": SIGNATURE}, {}, None)


def images(*values):
    return np.float32(values).reshape(-1, 1, 1).repeat(2, axis=1)


def prediction(*values, signature=SIGNATURE):
    return make_prediction(MODEL, signature, {"images": images(*values)}, LIMITS)


def recorder(sizes):
    def run_batch(signature, inputs):
        sizes.append((signature.name, len(inputs["images"])))
        return {"doubled": inputs["images"] * 2}

    return run_batch


@pytest.mark.parametrize("names", [[], ["image"], ["images", "more"]])
def test_the_inputs_are_those_of_the_signature(names):
    check_names(SIGNATURE, ["images"])
    with pytest.raises(RequestError, match="; expected images") as caught:
        check_names(SIGNATURE, names)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("dtype", "shape", "code", "message"),
    [
        (tf.float64, [1, 2, 1], Code.INVALID_ARGUMENT, "type float64; expected float32"),
        (tf.float32, [1, 2], Code.INVALID_ARGUMENT, r"shape \[1,2\]; expected \[\?,2,1\]"),
        (tf.float32, [1, 3, 1], Code.INVALID_ARGUMENT, r"shape \[1,3,1\]"),
        (tf.float32, [], Code.INVALID_ARGUMENT, r"shape \[\]"),
        (tf.float32, [-1, 2, 1], Code.INVALID_ARGUMENT, r"shape \[-1,2,1\]"),
        (tf.float32, [9, 2, 1], Code.INVALID_ARGUMENT, "Task size 9 is larger than .* 8"),
    ],
)
def test_a_declared_tensor_fits_or_is_refused(dtype, shape, code, message):
    check_declaration("images", IMAGES, tf.float32, [8, 2, 1], LIMITS)
    with pytest.raises(RequestError, match=message) as caught:
        check_declaration("images", IMAGES, dtype, shape, LIMITS)
    assert caught.value.code is code


def test_a_tensor_of_unknown_sizes_is_bounded_too():
    spec = tf.TensorSpec(None, tf.float32)
    check_declaration("values", spec, tf.float32, [250], LIMITS)
    with pytest.raises(RequestError, match="more than 1000 bytes") as caught:
        check_declaration("values", spec, tf.float32, [10**9, 10**9], LIMITS)
    assert caught.value.code is Code.TOO_LARGE
    with pytest.raises(RequestError, match=r"shape \[-1\]; expected \[\?\.\.\.\]"):
        check_declaration("values", spec, tf.float32, [-1], LIMITS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "NaN or infinite"),
        (-np.inf, "NaN or infinite"),
        (-0.001, r"from -0.001 to 0.5; expected values in \[0, 1\]"),
        (255.0, r"from 0.5 to 255; .* divide 8-bit pixels by 255"),
    ],
)
def test_images_are_finite_and_between_0_and_1(value, message):
    assert prediction(0.0, 1.0).size == 2
    with pytest.raises(RequestError, match=message):
        prediction(0.5, value)


def test_other_inputs_may_hold_any_finite_value():
    signature = Signature("s", {"values": IMAGES}, {"values": IMAGES}, double)
    made = make_prediction(MODEL, signature, {"values": images(-7.0)}, LIMITS)
    assert made.size == 1
    with pytest.raises(RequestError, match="NaN"):
        make_prediction(MODEL, signature, {"values": images(np.nan)}, LIMITS)


def test_tensors_of_a_request_have_as_many_examples_each():
    signature = Signature("s", {"a": IMAGES, "b": IMAGES}, {"c": IMAGES}, double)
    with pytest.raises(RequestError, match="equal 0th-dimension size"):
        make_prediction(MODEL, signature, {"a": images(0.1), "b": images(0.1, 0.2)}, LIMITS)


def test_an_empty_batch_is_answered():
    (outputs,) = run_merged([prediction()], 8)
    assert outputs["doubled"].shape == (0, 2, 1)


def test_requests_are_merged_and_each_gets_its_own_answer():
    requests = [prediction(0.1), prediction(0.2, 0.3), prediction(), prediction(0.4)]
    sizes = []
    answers = run_merged(requests, 8, recorder(sizes))
    assert sizes == [("serving_default", 4)]
    expected = [images(0.2), images(0.4, 0.6), images(), images(0.8)]
    for got, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(got["doubled"], wanted, rtol=1e-6)


def test_a_batch_holds_one_signature_and_is_bounded():
    requests = [
        prediction(0.1, 0.2, 0.3),
        prediction(0.4, signature=OTHER),
        prediction(0.5, 0.6),
        prediction(0.7, signature=OTHER),
        prediction(0.8),
    ]
    sizes = []
    answers = run_merged(requests, 4, recorder(sizes))
    assert sorted(sizes) == [("other", 2), ("serving_default", 3), ("serving_default", 3)]
    first = [answer["doubled"][0, 0, 0] for answer in answers]
    np.testing.assert_allclose(first, [0.2, 0.8, 1.0, 1.4, 1.6], rtol=1e-6)


def test_requests_without_batch_dimension_run_alone():
    spec = tf.TensorSpec([2], tf.float32)
    signature = Signature("total", {"images": spec}, {"doubled": spec}, double)
    inputs = {"images": np.float32([0.1, 0.2])}
    requests = [make_prediction(MODEL, signature, inputs, LIMITS) for _ in range(3)]
    sizes = []
    run_merged(requests, 8, recorder(sizes))
    assert sizes == [("total", 2)] * 3


def test_a_request_that_fails_does_not_fail_its_neighbours():
    good, bad, last = run_merged([prediction(0.1), prediction(0.95), prediction(0.2)], 8)
    np.testing.assert_allclose(good["doubled"], images(0.2), rtol=1e-6)
    np.testing.assert_allclose(last["doubled"], images(0.4), rtol=1e-6)
    assert isinstance(bad, RequestError)
    assert bad.code is Code.INVALID_ARGUMENT
    assert "too bright" in str(bad)
