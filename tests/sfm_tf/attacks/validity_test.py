import math
import re

import numpy as np
import pytest

from sfm_tf.attacks.validity import faults, perturbation_sizes

IMAGES = np.full((2, 2, 2, 1), 0.5, np.float32)


def _moved(*changes):
    adversarial_images = IMAGES.copy()
    for index, change in enumerate(changes):
        adversarial_images[1].flat[index] += change
    return adversarial_images


def test_sizes_are_norms_per_image():
    adversarial_images = _moved(0.25, -0.5)
    expected = [0.0, 0.5]
    np.testing.assert_array_equal(
        perturbation_sizes(IMAGES, adversarial_images, math.inf), expected
    )
    expected = [0.0, math.sqrt(0.3125)]
    np.testing.assert_allclose(perturbation_sizes(IMAGES, adversarial_images, 2.0), expected)


@pytest.mark.parametrize(("norm", "epsilon"), [(math.inf, 0.1), (2.0, 0.2)])
def test_a_perturbation_on_the_sphere_is_valid(norm, epsilon):
    assert faults(IMAGES, _moved(0.1, -0.1, 0.1, 0.1), epsilon, norm) == []


def test_without_a_radius_any_perturbation_inside_the_range_is_valid():
    assert faults(IMAGES, _moved(0.5, -0.5, 0.5, -0.5), math.inf, 2.0) == []
    assert len(faults(IMAGES, _moved(0.51), math.inf, 2.0)) == 1


@pytest.mark.parametrize(
    ("adversarial_images", "epsilon", "phrase"),
    [
        (_moved(0.125), 0.1, "norm 0.125 instead of at most 0.1"),
        (_moved(0.6), 1.0, r"to 1.1.* instead of within \[0, 1\]"),
        (_moved(math.nan), 1.0, "NaN"),
        (IMAGES[:1], 1.0, "shape"),
    ],
    ids=["too_far", "out_of_range", "nan", "shape"],
)
def test_each_fault_is_named(adversarial_images, epsilon, phrase):
    found = faults(IMAGES, adversarial_images, epsilon, math.inf)
    assert len(found) == 1
    assert re.search(phrase, found[0])


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
