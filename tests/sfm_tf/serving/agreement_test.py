"""Answers are worked out in NumPy for a model of one linear layer."""

import keras
import numpy as np
import pytest
import scipy.special

from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.serving.agreement import Agreement, compare_answers

IMAGES = np.random.default_rng(0).random((7, 2, 2, 1)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
MASK = np.float32(0.75)


@pytest.fixture(scope="module")
def defended():
    dense = keras.layers.Dense(3, use_bias=False)
    classifier = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), dense])
    dense.set_weights([KERNEL])
    masker = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Conv2D(1, 1)])
    masker.set_weights([np.zeros((1, 1, 1, 1)), np.float32([MASK])])
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_1"))


def served() -> dict[str, dict[str, np.ndarray]]:
    """The right answers under each signature, as a SavedModel gives them."""
    masked = MASK * IMAGES
    quantised = (masked >= 0.5).astype(np.float32)
    logits = quantised.reshape(7, 4) @ KERNEL
    class_id = {"class_id": np.argmax(logits, axis=-1)}
    scores = {"logits": logits, "probabilities": scipy.special.softmax(logits, axis=-1)}
    masks = np.full((7, 2, 2, 1), MASK)
    arrays = {"mask": masks, "masked_image": masked, "defended_image": quantised}
    files = {
        "mask_png_bytes": np.full((7, 2, 2, 1), 191, np.uint8),  # 191.25
        "masked_png_bytes": np.rint(255 * masked).astype(np.uint8),
        "defended_png_bytes": (255 * quantised).astype(np.uint8),
    }
    return {
        "serving_default": {**scores, **class_id},
        "predict_bytes": {**scores, **class_id, "status": np.zeros(7, np.int64)},
        "explain": {**arrays, **files, **class_id},
    }


@pytest.mark.parametrize("signature", ["serving_default", "predict_bytes", "explain"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_right_answers_agree(defended, signature, batch_size):
    answers = served()[signature]
    found = compare_answers(signature, answers, defended, IMAGES, batch_size)
    assert found.disagreeing_labels == 0
    assert found.excesses() == {}
    assert set(found.max_differences) == set(answers) - {"class_id"}


@pytest.mark.parametrize(
    ("signature", "output", "change", "expected"),
    [
        ("serving_default", "logits", 0.01, 0.01),
        ("serving_default", "probabilities", np.nan, np.nan),
        ("predict_bytes", "status", 1, 1.0),
        ("explain", "mask", -0.2, 0.2),
        ("explain", "defended_image", 1 / 255, 1 / 255),
        ("explain", "masked_png_bytes", 1, 1 / 255),
        ("explain", "mask_png_bytes", 2, 1.75 / 255),
    ],
)
def test_a_single_wrong_value_is_found(defended, signature, output, change, expected):
    answers = served()[signature]
    change = np.asarray(change, answers[output].dtype)
    answers[output] = answers[output].copy()
    answers[output][-1] += change
    found = compare_answers(signature, answers, defended, IMAGES, 3)
    assert list(found.excesses()) == [output]
    # Rounding to a level may have taken up to half of one from a difference, or added it.
    tolerance = 0.51 / 255 if output == "masked_png_bytes" else 1e-5
    assert found.max_differences[output] == pytest.approx(expected, abs=tolerance, nan_ok=True)


def test_wrong_labels_are_counted_over_all_batches(defended):
    answers = served()["serving_default"]
    answers["class_id"][[0, 4, 6]] += 1
    found = compare_answers("serving_default", answers, defended, IMAGES, 3)
    assert found.disagreeing_labels == 3
    assert found.excesses() == {}


def test_a_wrong_shape_is_a_difference(defended):
    answers = served()["serving_default"]
    answers["logits"] = answers["logits"][:, :1]
    found = compare_answers("serving_default", answers, defended, IMAGES, 3)
    assert found.excesses() == {"logits": np.inf}


@pytest.mark.parametrize("missing", ["status", "class_id"])
def test_outputs_are_those_of_the_signature(defended, missing):
    answers = served()["predict_bytes"]
    del answers[missing]
    answers["other"] = answers["logits"]
    with pytest.raises(SfmError, match=r"predict_bytes .* gives .*other.*; expected .*status"):
        compare_answers("predict_bytes", answers, defended, IMAGES, 3)


def test_the_worse_of_two_comparisons_keeps_what_is_not_a_number():
    first = Agreement(1, {"logits": 0.5, "probabilities": np.nan})
    second = Agreement(2, {"logits": 0.25, "probabilities": 0.0})
    for worse in (first.worse(second), second.worse(first)):
        assert worse.disagreeing_labels == 2
        assert worse.max_differences["logits"] == 0.5
        assert np.isnan(worse.max_differences["probabilities"])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
