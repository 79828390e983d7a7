"""Recognises a mask that learnt to be the same everywhere, and says which weight is to blame."""

from collections.abc import Mapping

_DARK = 0.02
_BRIGHT = 0.98
_EVEN = 0.01


def describe_collapse(metrics: Mapping[str, float]) -> str:
    """Returns a warning if the mask is all but zeros or ones everywhere, else an empty string.

    Without a reconstruction term strong enough the mask of zeros is the nearest minimum (Yu et al.
    2022, section 4.3), without a sparsity term strong enough the mask of ones is (section 5.2).

    Args:
        metrics: With `mask_mean` and `mask_spread`, the standard deviation.
    """
    mean, spread = metrics["mask_mean"], metrics["mask_spread"]
    if spread >= _EVEN or _DARK <= mean <= _BRIGHT:
        return ""
    figures = f"mean {mean:.3f}, spread {spread:.3f}"
    if mean < _DARK:
        return (
            f"The mask collapsed to zeros ({figures}): raise semantic_weight or lower "
            "sparsity_weight."
        )
    return (
        f"The mask collapsed to ones ({figures}): raise sparsity_weight or lower "
        "reconstruction_weight."
    )
