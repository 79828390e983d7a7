"""Tests of the ratios against figures worked out by hand."""

import math

import numpy as np
import pytest

from sfm_tf.training.weight_ratios import measure_ratios
from sfm_tf.training_config import TrainingConfig

# Norms 2 and 1 of two images of 16 values.
_IMAGES = np.stack([np.full((4, 4, 1), 0.5), np.full((4, 4, 1), 0.25)]).astype(np.float32)


def _ratios(**weights):
    return measure_ratios(TrainingConfig(**weights), _IMAGES)


def test_ratios_of_norms_per_image():
    ratios = _ratios(sparsity_weight=0.3, semantic_weight=6.0, reconstruction_weight=2.0)
    assert ratios.values == 16
    assert ratios.image_norm == pytest.approx(1.5)
    assert ratios.sparsity_ratio == pytest.approx(0.3 * 4 / 2)
    assert ratios.semantic_ratio == pytest.approx(6.0 / (2 * 1.5))


def test_ratios_of_norms_over_the_batch_count_the_images_of_one():
    ratios = _ratios(loss_reduction="batch", batch_size=128)
    assert ratios.values == 32  # There are only two images to a batch.
    assert ratios.image_norm == pytest.approx(1.5 * math.sqrt(2))


def test_without_reconstruction_there_are_none():
    ratios = _ratios(reconstruction_weight=0.0)
    assert (ratios.sparsity_ratio, ratios.semantic_ratio) == (None, None)
    assert ratios.warning() == ""


@pytest.mark.parametrize(("weight", "share"), [(0.5, 0.25), (0.1, 1.0), (0.0, 0.0)])
def test_ramp_begins_at_half_the_critical_weight_or_where_it_stays(weight, share):
    assert _ratios(sparsity_weight=weight).first_share == pytest.approx(share)


def test_weight_below_the_critical_one_is_warned_of():
    assert _ratios(sparsity_weight=0.2).warning().startswith("sparsity_weight 0.2 is 0.80 of the")
    assert _ratios(sparsity_weight=0.26).warning() == ""


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
