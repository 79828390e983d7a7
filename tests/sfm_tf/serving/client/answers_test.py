import numpy as np
import pytest

from sfm_tf.errors import SfmError
from sfm_tf.serving.client.answers import Answer, read_answers, read_explanations


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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
