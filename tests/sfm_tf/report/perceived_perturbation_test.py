import keras
import numpy as np
import pytest

from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.report.perceived_perturbation import perceive, perceived_gallery
from sfm_tf.report.report_inputs import PerceivedPerturbation, Perturbation

IMAGES = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
ADVERSARIAL = np.clip(IMAGES + 0.125, 0.0, 1.0).astype(np.float32)
PERTURBATION = Perturbation("white_box", "pgd", 8.0, IMAGES, ADVERSARIAL)


def _defended() -> DefendedModel:
    """Its mask is the mean of the channels, its T a bit depth of 2."""
    inputs = keras.Input((4, 4, 3))
    mask = keras.layers.Conv2D(1, 1, kernel_initializer=keras.initializers.Constant(1 / 3))
    masker = keras.Model(inputs, mask(inputs))
    classifier = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
    return DefendedModel(classifier, masker, parse_preprocessor("bit_depth_2"))


def _squeeze(images):
    return np.rint(images * 3) / 3


def test_differences_are_those_of_the_formulas():
    found = perceive(_defended(), PERTURBATION)
    np.testing.assert_allclose(found.undefended, ADVERSARIAL - IMAGES, atol=1e-6)
    expected = _squeeze(ADVERSARIAL) - _squeeze(IMAGES)
    np.testing.assert_allclose(found.preprocessed, expected, atol=1e-6)
    masked = [images * images.mean(axis=-1, keepdims=True) for images in (IMAGES, ADVERSARIAL)]
    expected = _squeeze(masked[1]) - _squeeze(masked[0])
    np.testing.assert_allclose(found.defended, expected, atol=1e-6)
    assert found.attacked is PERTURBATION
    assert not found.is_random


def test_the_figure_states_its_scale_and_the_mean_sizes():
    change = np.full((2, 4, 4, 3), 0.125, np.float32)
    perceived = PerceivedPerturbation(PERTURBATION, change, 2 * change, 0 * change)
    figure = perceived_gallery("perceived", "PGD, white box", perceived)
    assert "PGD, white box, ε = 8/255 in L∞" in figure.caption
    # 0.125 * 4 takes the largest change to white.
    assert "multiplied by 4.0 around mid-grey" in figure.caption
    assert figure.alternative_text.endswith(
        "no defence 31.88/255, pre-processing 63.75/255, masker and pre-processing 0.00/255."
    )


def test_no_perturbation_and_a_defence_that_draws_are_drawn_too():
    nothing = np.zeros((2, 4, 4, 3), np.float32)
    perceived = PerceivedPerturbation(PERTURBATION, nothing, nothing, nothing, is_random=True)
    figure = perceived_gallery("perceived", "PGD", perceived, "2")
    assert "in L2" in figure.caption
    assert figure.caption.endswith("T draws, so part of its differences is chance.")


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
