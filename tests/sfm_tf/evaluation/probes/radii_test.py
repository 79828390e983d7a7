import math

import pytest

from sfm_tf.evaluation.probes.radii import equal_volume_radius, huge_radius, ladder_radii


def test_the_ladder_ends_where_every_image_can_become_grey():
    assert ladder_radii(8.0, "inf", 3072) == [2.0, 4.0, 8.0, 16.0, 127.5]
    assert ladder_radii(100.0, "inf", 3072) == [25.0, 50.0, 100.0, 127.5]


def test_the_grey_image_is_as_far_in_l2_as_the_root_of_its_values():
    # From the corner 0 of the cube [0, 1]^d to its centre.
    assert huge_radius("2", 64) == pytest.approx(255.0 * math.sqrt(64 * 0.5**2))


@pytest.mark.parametrize(
    ("dimensions", "ratio"),
    # Square and disc, cube and ball: (2 r)^2 = pi R^2 and (2 r)^3 = 4/3 pi R^3.
    [(1, 1.0), (2, 2.0 / math.sqrt(math.pi)), (3, (6.0 / math.pi) ** (1.0 / 3.0))],
)
def test_balls_of_both_norms_have_the_same_volume(dimensions, ratio):
    assert equal_volume_radius(8.0, "inf", dimensions) == pytest.approx(8.0 * ratio)
    assert equal_volume_radius(8.0 * ratio, "2", dimensions) == pytest.approx(8.0)


def test_eight_of_255_on_cifar10_compare_with_a_known_radius():
    assert equal_volume_radius(8.0, "inf", 3072) / 255.0 == pytest.approx(0.84, abs=0.01)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
