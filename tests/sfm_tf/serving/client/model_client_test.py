import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.model_client import ModelClient
from sfm_tf.serving.client.retries import RetryPolicy


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
def test_refuses_senseless_settings(settings, message):
    with pytest.raises(SfmError, match=message):
        _Recorder(**settings)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
