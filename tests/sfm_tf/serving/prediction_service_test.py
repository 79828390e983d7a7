import numpy as np
import pytest
import tensorflow as tf

from sfm_tf.serving.model_repository import ServedModel, Signature
from sfm_tf.serving.prediction_service import (
    Limits,
    check_declaration,
    check_names,
    make_prediction,
    run_merged,
)
from sfm_tf.serving.request_errors import Code, RequestError

IMAGES = tf.TensorSpec([None, 2, 1], tf.float32, name="images")
LIMITS = Limits(body_bytes=1000, batch_size=8)


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
    with pytest.raises(RequestError, match="input size does not match signature") as caught:
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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
