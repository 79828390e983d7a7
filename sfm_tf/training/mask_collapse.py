"""Recognises a mask that learnt nothing but to be even, and says which weight is to blame."""

from collections.abc import Mapping

_DARK = 0.02
_BRIGHT = 0.98
_EVEN = 0.01
_FORGOTTEN = 0.6
"""Answers that have nothing in common but that none is sure are less than 1 apart: on CIFAR-10 they
were 0.76 and more, and never above 0.34 where the mask kept the class."""


def describe_collapse(metrics: Mapping[str, float], semantic_loss: str = "cosine") -> str:
    """Returns a warning if the mask is all but zeros or ones, or hides the class, else nothing.

    Without a reconstruction term strong enough the mask of zeros is the nearest minimum (Yu et al.
    2022, section 4.3), without a sparsity term strong enough the mask of ones is (section 5.2).

    Args:
        metrics: With `mask_mean`; `mask_spread`, the standard deviation; and `semantic`.
        semantic_loss: What that last one is; only the cosine distance has a largest value.
    """
    mean, spread = metrics["mask_mean"], metrics["mask_spread"]
    figures = f"mean {mean:.3f}, spread {spread:.3f}"
    if spread >= _EVEN or _DARK <= mean <= _BRIGHT:
        if semantic_loss != "cosine" or metrics["semantic"] < _FORGOTTEN:
            return ""
        return (
            f"The mask hides what the classifier looks at (semantic loss {metrics['semantic']:.2f} "
            f"of 1, {figures}): raise semantic_weight or lower sparsity_weight."
        )
    if mean < _DARK:
        return (
            f"The mask collapsed to zeros ({figures}): raise semantic_weight or lower "
            "sparsity_weight."
        )
    return (
        f"The mask collapsed to ones ({figures}): raise sparsity_weight or lower "
        "reconstruction_weight."
    )
