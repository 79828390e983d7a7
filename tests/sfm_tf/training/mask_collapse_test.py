"""Tests of the collapse warning as rows of figures."""

import pytest

from sfm_tf.training.mask_collapse import describe_collapse


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (0.001, 0.001, "zeros (mean 0.001, spread 0.001): raise semantic_weight"),
        (0.999, 0.002, "ones (mean 0.999, spread 0.002): raise sparsity_weight"),
    ],
)
def test_even_mask_at_an_end_names_the_weight_to_change(mean, spread, expected):
    assert expected in describe_collapse({"mask_mean": mean, "mask_spread": spread})


@pytest.mark.parametrize(
    ("mean", "spread"), [(0.5, 0.0), (0.01, 0.05), (0.99, 0.05), (0.02, 0.001), (0.98, 0.001)]
)
def test_other_masks_give_no_warning(mean, spread):
    assert describe_collapse({"mask_mean": mean, "mask_spread": spread}) == ""


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
