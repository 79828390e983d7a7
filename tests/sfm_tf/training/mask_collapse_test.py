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
    metrics = {"mask_mean": mean, "mask_spread": spread, "semantic": 0.1}
    assert expected in describe_collapse(metrics)


@pytest.mark.parametrize(
    ("mean", "spread"), [(0.5, 0.0), (0.01, 0.05), (0.99, 0.05), (0.02, 0.001), (0.98, 0.001)]
)
def test_other_masks_give_no_warning(mean, spread):
    metrics = {"mask_mean": mean, "mask_spread": spread, "semantic": 0.1}
    assert describe_collapse(metrics) == ""


def test_mask_that_hides_the_class_is_one_too_where_the_cosine_distance_says_so():
    metrics = {"mask_mean": 0.4, "mask_spread": 0.2, "semantic": 0.95}
    assert describe_collapse(metrics).startswith(
        "The mask hides what the classifier looks at (semantic loss 0.95 of 1, mean 0.400"
    )
    # A mask near zeros, of the paper's weights with the norms over a batch, at 11 % accuracy.
    metrics = {"mask_mean": 0.021, "mask_spread": 0.057, "semantic": 0.758}
    assert "(semantic loss 0.76 of 1, mean 0.021" in describe_collapse(metrics)
    # A cross-entropy of as much is an ordinary one.
    assert describe_collapse(metrics, "cross_entropy") == ""


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
