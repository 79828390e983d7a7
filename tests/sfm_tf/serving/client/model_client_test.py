import json
import os
import random
import time

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client import model_client
from sfm_tf.serving.client.model_client import (
    Answer,
    ModelClient,
    ModelMetadata,
    RetryPolicy,
    ServerError,
    SignatureDescription,
    TensorDescription,
    UnsendableFileError,
    VersionStatus,
    batches,
    check_batch_size,
    checked_content,
    checked_images,
    one_line,
    read_answers,
    read_explanations,
    read_image_file,
    read_metadata,
    read_status,
    with_retries,
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\t c ", "a b c"),
        ("red \x1b[31m \x07\u202e", "red [31m"),
        ("x" * 501, "x" * 500 + "..."),
        ("", ""),
    ],
)
def test_any_text_becomes_one_printable_line(text, line):
    assert one_line(text) == line


def test_is_an_error_that_users_are_meant_to_read():
    error = ServerError("The server answered 404 Not Found: gone.", code="404")
    assert isinstance(error, SfmError)
    assert (str(error), error.code) == ("The server answered 404 Not Found: gone.", "404")
    assert not error.retryable


class _Clock:
    """Time that passes only in pauses, and by `step` at each attempt."""

    def __init__(self, monkeypatch, step=0.0):
        self.now, self.step, self.pauses = 100.0, step, []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def _failing(clock, times, **error):
    """An attempt that fails `times` times and then returns the seconds it was given."""
    calls = []

    def attempt(seconds):
        calls.append(seconds)
        clock.now += clock.step
        if len(calls) <= times:
            raise ServerError("busy", code="503", **error)
        return calls

    return attempt


def test_pauses_double_up_to_the_longest_and_lose_at_most_half(monkeypatch):
    policy = RetryPolicy(attempts=6, first_wait_seconds=1.0, longest_wait_seconds=5.0)
    for draw, expected in ((0.0, [1, 2, 4, 5, 5]), (0.5, [0.75, 1.5, 3, 3.75, 3.75])):
        clock = _Clock(monkeypatch)
        monkeypatch.setattr(random, "random", lambda draw=draw: draw)
        with_retries(_failing(clock, 5, retryable=True), policy)
        assert clock.pauses == expected


def test_pauses_differ_between_clients(monkeypatch):
    pauses = []
    for _ in range(20):
        clock = _Clock(monkeypatch)
        with_retries(_failing(clock, 1, retryable=True), RetryPolicy())
        pauses += clock.pauses
    assert len(set(pauses)) > 10
    assert min(pauses) >= 0.1
    assert max(pauses) <= 0.2


def test_each_attempt_is_given_the_seconds_that_are_left(monkeypatch):
    clock = _Clock(monkeypatch, step=2.0)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    policy = RetryPolicy(first_wait_seconds=1.0, deadline_seconds=10.0)
    assert with_retries(_failing(clock, 2, retryable=True), policy) == [10.0, 7.0, 3.0]


def test_an_error_that_is_not_retryable_is_raised_as_it_is(monkeypatch):
    clock = _Clock(monkeypatch)
    with pytest.raises(ServerError, match="^busy$"):
        with_retries(_failing(clock, 1, retryable=False), RetryPolicy())
    assert clock.pauses == []


def test_gives_up_after_the_last_attempt_without_a_pause(monkeypatch):
    clock = _Clock(monkeypatch)
    with pytest.raises(ServerError, match=r"^busy \(Gave up .* 3 of 3 attempts\.\)$") as caught:
        with_retries(_failing(clock, 3, retryable=True), RetryPolicy(attempts=3))
    assert len(clock.pauses) == 2
    assert (caught.value.code, caught.value.retryable) == ("503", False)


def test_gives_up_rather_than_pause_beyond_the_deadline(monkeypatch):
    clock = _Clock(monkeypatch, step=4.0)
    monkeypatch.setattr(random, "random", lambda: 0.0)
    policy = RetryPolicy(attempts=9, first_wait_seconds=1.0, deadline_seconds=10.0)
    with pytest.raises(ServerError, match=r"after 9\.0 of 10 seconds and 2 of 9 attempts"):
        with_retries(_failing(clock, 9, retryable=True), policy)
    assert clock.pauses == [1.0]


def test_a_server_that_asks_for_a_longer_pause_gets_it(monkeypatch):
    clock = _Clock(monkeypatch)
    with_retries(_failing(clock, 1, retryable=True, wait_seconds=7.0), RetryPolicy())
    assert clock.pauses == [7.0]


@pytest.mark.parametrize(
    "settings", [{"attempts": 0}, {"deadline_seconds": 0.0}, {"deadline_seconds": float("nan")}]
)
def test_refuses_senseless_settings(settings):
    with pytest.raises(SfmError, match="expected at least 1 attempt and more than 0 seconds"):
        RetryPolicy(**settings)


def _outputs(**changes):
    outputs = {
        "probabilities": [[0.25, 0.75], [0.5, 0.5]],
        "logits": [[-1.0, 0.1], [0, 0]],
        "class_id": [1, -1],
        "status": [0, 1],
    }
    return {name: value for name, value in {**outputs, **changes}.items() if value is not None}


def _explanation(**changes):
    outputs = {
        "class_id": [1],
        "mask": [[[[0.5], [1.0]]]],
        "masked_image": [[[[0.1], [0.2]]]],
        "defended_image": [[[[0.0], [1.0]]]],
        "mask_png_bytes": [b"\x89PNG m"],
        "masked_png_bytes": [b"\x89PNG x"],
        "defended_png_bytes": [b"\x89PNG d"],
    }
    return {name: value for name, value in {**outputs, **changes}.items() if value is not None}


def test_reads_one_answer_per_image():
    first, second = read_answers(_outputs(), 2)
    assert first == Answer(1, (0.25, 0.75), (-1.0, float(np.float32(0.1))), 0)
    assert first.status_words == "classified"
    assert (second.class_id, second.probabilities) == (-1, (0.5, 0.5))
    assert second.status_words == "cannot be decoded as PNG or JPEG"


def test_arrays_are_read_as_lists_are():
    arrays = {name: np.array(value) for name, value in _outputs().items()}
    assert read_answers(arrays, 2) == read_answers(_outputs(), 2)


def test_without_a_status_every_image_is_classified():
    answers = read_answers(_outputs(status=None, class_id=[1, 0]), 2)
    assert [answer.status for answer in answers] == [0, 0]


def test_a_status_of_a_newer_server_is_told_by_its_number():
    assert read_answers(_outputs(status=[0, 9]), 2)[1].status_words == "not classified, status 9"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"logits": None}, "no logits, only class_id, probabilities, status"),
        ({"class_id": [1]}, "1 of class_id for 2 images"),
        ({"class_id": np.array(1)}, "0 of class_id for 2 images"),
        ({"class_id": [1.0, -1.0]}, "class_id that is not numbers of its kind"),
        ({"class_id": [2, -1]}, "class_id that is none of the classes"),
        ({"class_id": [-1, -1]}, "does not fit its status"),
        ({"class_id": [1, 0]}, "does not fit its status"),
        ({"class_id": [[1], [0]]}, "class_id of rank 2 instead of 1"),
        ({"class_id": [10**30, 1]}, "class_id that is not numbers of its kind"),
        ({"probabilities": [[0.25, 0.75], [0.5]]}, "probabilities whose rows differ in length"),
        ({"probabilities": [0.25, 0.75]}, "probabilities of rank 1 instead of 2"),
        ({"probabilities": [["0.25", "0.75"], ["0.5", "0.5"]]}, "not numbers"),
        ({"probabilities": [[None, 0.75], [0.5, 0.5]]}, "not numbers"),
        ({"probabilities": [[float("nan"), 0.75], [0.5, 0.5]]}, "probabilities that is not finite"),
        ({"logits": [[float("inf"), 0.0], [0, 0]]}, "logits that is not finite"),
        ({"probabilities": [[-0.25, 1.0], [0.5, 0.5]]}, r"probability outside \[0, 1\]"),
        ({"probabilities": [[0.0, 1.1], [0.5, 0.5]]}, r"probability outside \[0, 1\]"),
        ({"logits": [[0.0], [0.0]]}, "1 logits and 2 probabilities"),
        ({"status": [[0], [1]]}, "status of rank 2"),
    ],
)
def test_a_malformed_answer_is_named(changes, found):
    with pytest.raises(SfmError, match=f"The server's answer has .*{found}"):
        read_answers(_outputs(**changes), 2)


def test_reads_explanations():
    (explanation,) = read_explanations(_explanation(), 1)
    assert explanation.class_id == 1
    assert explanation.mask.dtype == np.float32
    assert explanation.mask.shape == (1, 2, 1)
    np.testing.assert_array_equal(explanation.masked_image.ravel(), np.float32([0.1, 0.2]))
    assert explanation.defended_png == b"\x89PNG d"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"mask": None}, "no mask, only"),
        ({"mask": [[[0.5, 1.0]]]}, "mask of rank 3 instead of 4"),
        ({"masked_image": [[[[float("nan")]]]]}, "masked_image that is not finite"),
        ({"mask_png_bytes": ["\ufffdPNG"]}, "mask_png_bytes that is not bytes"),
    ],
)
def test_a_malformed_explanation_is_named(changes, found):
    with pytest.raises(SfmError, match=found):
        read_explanations(_explanation(**changes), 1)


def test_floats_of_any_width_become_float32():
    images = checked_images(np.full((1, 2, 2, 3), 0.1))
    assert images.dtype == np.float32
    assert images[0, 0, 0, 0] == np.float32(0.1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 2, 2, 3), np.uint8), r"dtype uint8 and shape \(1, 2, 2, 3\)"),
        (np.zeros((2, 2, 3), np.float32), r"shape \(2, 2, 3\)"),
        (np.full((1, 2, 2, 3), 255.0), "divide 8-bit values by 255"),
        (np.full((1, 2, 2, 3), -0.1), "outside"),
        (np.full((1, 2, 2, 3), np.nan), "outside"),
    ],
)
def test_refuses_images_that_the_model_was_not_made_for(images, message):
    with pytest.raises(SfmError, match=message):
        checked_images(images)


def test_reads_a_file_of_the_largest_size_and_none_above(tmp_path, monkeypatch):
    monkeypatch.setattr(model_client, "LARGEST_FILE", 4)
    path = tmp_path / "a.png"
    path.write_bytes(b"1234")
    assert read_image_file(path) == b"1234"
    path.write_bytes(b"12345")
    with pytest.raises(UnsendableFileError, match="Cannot send .*a.png': over 4 bytes") as caught:
        read_image_file(path)
    assert caught.value.reason == "over 4 bytes"
    with pytest.raises(SfmError, match="Cannot send 5 bytes; expected at most 4"):
        checked_content(b"12345")


def test_what_is_no_file_is_named_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("pipe.png", "no regular file"),
        ("folder.png", "Is a directory"),
        ("gone.png", "No such file or directory"),
    ):
        with pytest.raises(UnsendableFileError, match=reason):
            read_image_file(tmp_path / name)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1, 1, 1, 1, 1], [[1, 1], [1, 1], [1]]),
        ([6, 4, 1], [[6, 4], [1]]),
        ([6, 5, 5], [[6], [5, 5]]),
        ([11, 1], [[11], [1]]),
        ([0, 0, 0], [[0, 0], [0]]),
    ],
)
def test_a_request_is_bounded_in_images_and_bytes(monkeypatch, sizes, expected):
    monkeypatch.setattr(model_client, "LARGEST_REQUEST", 10)
    assert list(batches(sizes, 2, lambda size: size)) == expected


def test_items_are_taken_only_as_they_are_needed():
    taken = []
    items = (taken.append(number) or number for number in range(100))
    next(batches(items, 3, lambda item: 1))
    assert len(taken) == 4


@pytest.mark.parametrize("batch_size", [0, -1, 1025])
def test_refuses_batch_sizes_out_of_range(batch_size):
    with pytest.raises(SfmError, match="expected 1 to 1024"):
        check_batch_size(batch_size)


# As TensorFlow Serving's documentation shows them, shortened.
_STATUS = """{ "model_version_status": [
  {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
]}"""
_METADATA = """{
"model_spec": {"name": "counter", "signature_name": "", "version": "123"},
"metadata": {"signature_def": {"signature_def": {
  "incr_counter_by": {
    "inputs": {"delta": {
      "dtype": "DT_FLOAT",
      "tensor_shape": {"dim": [], "unknown_rank": true},
      "name": "delta:0"}},
    "outputs": {"output": {
      "dtype": "DT_INT64",
      "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
                       "unknown_rank": false},
      "name": "add:0"}},
    "method_name": "tensorflow/serving/predict"},
  "reset_counter": {"inputs": {}, "outputs": {}, "method_name": ""}
}}}}"""


def test_reads_the_status_of_versions():
    assert read_status(json.loads(_STATUS)) == (VersionStatus(123, "AVAILABLE", ""),)


def test_reads_the_signatures():
    assert read_metadata(json.loads(_METADATA)) == ModelMetadata(
        "counter",
        123,
        {
            "incr_counter_by": SignatureDescription(
                {"delta": TensorDescription("DT_FLOAT", None)},
                {"output": TensorDescription("DT_INT64", (-1, 3))},
            ),
            "reset_counter": SignatureDescription({}, {}),
        },
    )


@pytest.mark.parametrize(
    "message",
    [None, [], {}, {"model_version_status": 3}, {"model_version_status": [{"version": "x"}]}],
)
def test_a_malformed_status_is_told(message):
    with pytest.raises(SfmError, match="status of the model cannot be read"):
        read_status(message)


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {"model_spec": {"name": "m", "version": "1"}, "metadata": {}},
        {**json.loads(_METADATA), "model_spec": {"name": "m", "version": None}},
        {**json.loads(_METADATA), "metadata": {"signature_def": {"signature_def": [1]}}},
    ],
)
def test_malformed_metadata_is_told(message):
    with pytest.raises(SfmError, match="metadata of the model cannot be read"):
        read_metadata(message)


class _Recorder(ModelClient):
    """A client whose server classifies an image by the size of its first value or its length."""

    def __init__(self, batch_size=2, model_name="m", version=None):
        super().__init__("nowhere", model_name, version, batch_size, RetryPolicy())
        self.requests = []

    def _predict(self, signature_name, input_name, values):
        self.requests.append((signature_name, input_name, len(values)))
        numbers = [len(value) if isinstance(value, bytes) else value.ravel()[0] for value in values]
        class_ids = [int(number > 0.5) for number in numbers]
        outputs = {"class_id": class_ids, "status": [0] * len(values)}
        outputs["logits"] = outputs["probabilities"] = [[0.5, 0.5]] * len(values)
        for name in ("mask", "masked_image", "defended_image"):
            outputs[name] = np.zeros((len(values), 1, 1, 1))
        for name in ("mask_png_bytes", "masked_png_bytes", "defended_png_bytes"):
            outputs[name] = [b"png"] * len(values)
        return outputs

    def _get_status(self):
        return {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}

    def _get_metadata(self):
        return {
            "model_spec": {"name": "m", "version": "1"},
            "metadata": {"signature_def": {"signature_def": {}}},
        }


def test_images_go_in_bounded_batches_and_answers_keep_their_order():
    client = _Recorder()
    images = np.array([0.0, 1.0, 1.0, 0.0, 1.0]).reshape(5, 1, 1, 1)
    assert [answer.class_id for answer in client.classify(images)] == [0, 1, 1, 0, 1]
    assert client.requests == [("serving_default", "images", size) for size in (2, 2, 1)]


def test_large_images_go_in_smaller_batches():
    client = _Recorder(batch_size=32)
    # 3 x 224 x 224 values in at most 24 bytes each: nine images are 32.5 million bytes.
    client.classify(np.zeros((10, 224, 224, 3), np.float32))
    assert [size for *_, size in client.requests] == [9, 1]


def test_explanations_go_in_bounded_batches_too():
    client = _Recorder()
    images = np.array([0.0, 1.0, 1.0]).reshape(3, 1, 1, 1)
    assert [each.class_id for each in client.explain(images)] == [0, 1, 1]
    assert client.requests == [("explain", "images", 2), ("explain", "images", 1)]


def test_files_are_sent_as_their_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"x")
    client = _Recorder()
    answers = client.classify_files([tmp_path / "a.png", str(tmp_path / "b.png")])
    assert [answer.class_id for answer in answers] == [0, 1]
    assert client.requests == [("predict_bytes", "image_bytes", 2)]


def test_nothing_is_asked_about_no_images():
    client = _Recorder()
    assert client.classify(np.zeros((0, 2, 2, 3), np.float32)) == []
    assert client.explain(np.zeros((0, 2, 2, 3), np.float32)) == []
    assert client.classify_bytes([]) == []
    assert client.requests == []


def test_bad_images_are_not_sent():
    client = _Recorder()
    for ask in (client.classify, client.explain):
        with pytest.raises(SfmError, match="Invalid images"):
            ask(np.full((1, 1, 1, 1), 7.0))
    assert client.requests == []


def test_describes_the_model():
    client = _Recorder()
    assert client.status()[0].state == "AVAILABLE"
    assert client.metadata().version == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "Invalid batch_size 0"),
        ({"model_name": ""}, "Empty model_name"),
        ({"version": -1}, "Invalid version -1"),
    ],
)
def test_model_client_refuses_senseless_settings(settings, message):
    with pytest.raises(SfmError, match=message):
        _Recorder(**settings)
