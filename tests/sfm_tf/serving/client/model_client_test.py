import json
import os

import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client import model_client
from sfm_tf.serving.client.model_client import (
    Answer,
    ModelClient,
    UnsendableFileError,
    VersionStatus,
    batches,
    checked_images,
    one_line,
    read_answers,
    read_explanations,
    read_image_file,
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
        ({"class_id": [1]}, r"class_id of shape \(1,\) for 2 images"),
        ({"class_id": np.array(1)}, r"class_id of shape \(\) for 2 images"),
        ({"class_id": [1.0, -1.0]}, "class_id of type float64"),
        ({"class_id": [2, -1]}, "class_id that is not one of the classes"),
        ({"class_id": [-1, -1]}, "does not fit its status"),
        ({"class_id": [1, 0]}, "does not fit its status"),
        ({"class_id": [[1], [0]]}, "class_id of shape"),
        ({"class_id": [10**30, 1]}, "class_id of type object"),
        ({"probabilities": [[0.25, 0.75], [0.5]]}, "probabilities whose rows differ in length"),
        ({"probabilities": [0.25, 0.75]}, r"probabilities of shape \(2,\)"),
        ({"probabilities": [["0.25", "0.75"], ["0.5", "0.5"]]}, "of type <U"),
        ({"probabilities": [[None, 0.75], [0.5, 0.5]]}, "of type object"),
        ({"probabilities": [[float("nan"), 0.75], [0.5, 0.5]]}, "probabilities that is not finite"),
        ({"logits": [[float("inf"), 0.0], [0, 0]]}, "logits that is not finite"),
        ({"probabilities": [[-0.25, 1.0], [0.5, 0.5]]}, r"probability outside \[0, 1\]"),
        ({"probabilities": [[0.0, 1.1], [0.5, 0.5]]}, r"probability outside \[0, 1\]"),
        ({"logits": [[0.0], [0.0]]}, "1 logits and 2 probabilities"),
        ({"status": [[0], [1]]}, "status of shape"),
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
        ({"mask": [[[0.5, 1.0]]]}, "mask of shape"),
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
        _Recorder().classify_bytes([b"12345"])


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


# As TensorFlow Serving's documentation shows them, shortened.
_STATUS = """{ "model_version_status": [
  {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
]}"""
_METADATA = """{
"model_spec": {"name": "counter", "signature_name": "", "version": "123"},
"metadata": {"signature_def": {"signature_def": {"reset_counter": {"inputs": {}, "outputs": {}}}}}
}"""


class _Recorder(ModelClient):
    """A client whose server classifies an image by the size of its first value or its length."""

    def __init__(self, batch_size=2, model_name="m", status=None, metadata=None, **settings):
        super().__init__("nowhere", model_name, batch_size=batch_size, **settings)
        self.__dict__.update(requests=[], answers=(status, metadata))

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
        return self.answers[0]

    def _get_metadata(self):
        return self.answers[1]


@pytest.mark.parametrize(
    ("method", "request_to"),
    [
        (_Recorder.classify, ("serving_default", "images")),
        (_Recorder.explain, ("explain", "images")),
    ],
)
def test_images_go_in_bounded_batches_and_answers_keep_their_order(method, request_to):
    client = _Recorder()
    images = np.array([0.0, 1.0, 1.0, 0.0, 1.0]).reshape(5, 1, 1, 1)
    assert [answer.class_id for answer in method(client, images)] == [0, 1, 1, 0, 1]
    assert client.requests == [(*request_to, size) for size in (2, 2, 1)]


def test_large_images_go_in_smaller_batches():
    client = _Recorder(batch_size=32)
    # 3 x 224 x 224 values in at most 24 bytes each: nine images are 32.5 million bytes.
    client.classify(np.zeros((10, 224, 224, 3), np.float32))
    assert [size for *_, size in client.requests] == [9, 1]


def test_files_are_sent_as_their_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"x")
    client = _Recorder()
    answers = client.classify_files([tmp_path / "a.png", str(tmp_path / "b.png")])
    assert [answer.class_id for answer in answers] == [0, 1]
    assert client.requests == [("predict_bytes", "image_bytes", 2)]


def test_neither_bad_images_nor_none_are_sent():
    client = _Recorder()
    for ask in (client.classify, client.explain):
        assert ask(np.zeros((0, 2, 2, 3), np.float32)) == []
        with pytest.raises(SfmError, match="Invalid images"):
            ask(np.full((1, 1, 1, 1), 7.0))
    assert client.classify_bytes([]) == []
    assert client.requests == []


def test_describes_the_model():
    client = _Recorder(status=json.loads(_STATUS), metadata=json.loads(_METADATA))
    assert client.status() == (VersionStatus(123, "AVAILABLE", ""),)
    assert client.metadata() == {"reset_counter": {"inputs": {}, "outputs": {}}}


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"model_version_status": 3},
        {"model_version_status": [{"version": "x"}]},
        {"metadata": {}},
        {"metadata": {"signature_def": {"signature_def": [1]}}},
    ],
)
def test_a_malformed_description_is_named(message):
    client = _Recorder(status=message, metadata=message)
    with pytest.raises(SfmError, match="The server's answer has no status of the model"):
        client.status()
    with pytest.raises(SfmError, match="The server's answer has no metadata of the model"):
        client.metadata()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "Invalid batch_size 0; expected 1 to 1024"),
        ({"batch_size": 1025}, "Invalid batch_size 1025"),
        ({"model_name": ""}, "Empty model_name"),
        ({"version": -1}, "Invalid version -1"),
        ({"attempts": 0}, "expected at least 1 attempt and more than 0 seconds"),
        ({"deadline_seconds": 0.0}, "more than 0 seconds"),
        ({"deadline_seconds": float("nan")}, "more than 0 seconds"),
    ],
)
def test_refuses_senseless_settings(settings, message):
    with pytest.raises(SfmError, match=message):
        _Recorder(**settings)
