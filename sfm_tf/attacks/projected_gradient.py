"""Projected gradient descent."""

from sfm_tf.attacks.iterated_attack import IteratedGradientAttack


class ProjectedGradientDescent(IteratedGradientAttack):
    """Many small steps, each projected on the ball: PGD.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, section
    2.1. Its options are those of `IteratedGradientAttack`; by default, without `random_start` and
    `keep_best`, it makes the same images as ART's `ProjectedGradientDescent` of the same settings.
    """
