"""Projected gradient descent."""

import math
from typing import ClassVar

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.attack_options import COUNT, FLAG, POSITIVE
from sfm_tf.attacks.gradient_attack import GradientAttack, Schedule


class ProjectedGradientDescent(GradientAttack):
    """Many small steps, each projected on the ball: PGD.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018, section
    2.1. Without `random_start` and `keep_best`, the same images as ART's
    `ProjectedGradientDescent` of the same settings.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball, in the units of the pixels.
        step_size: Norm of one step, in the units of the pixels.
        iterations: Number of steps.
        targeted: Whether labels are classes to reach rather than to leave.
        random_start: Whether to start at a random point of the ball.
        keep_best: Whether to return, per image, the iterate of the highest loss among those that
            fool the model, or among all where none does, in place of the last iterate.
        batch_size: Images attacked at a time.
        loss: `cross_entropy` as ART computes it, or `stable_cross_entropy`, the same loss without
            the rounding that misleads an attack where the model is confident.
        seed: Seed of the random start.
    """

    options: ClassVar = {
        **GradientAttack.options,
        "step_size": POSITIVE,
        "iterations": COUNT,
        "keep_best": FLAG,
    }
    attack_params: ClassVar[list[str]] = list(options)

    step_size: float
    iterations: int
    keep_best: bool

    def __init__(
        self,
        estimator: TensorFlowV2Classifier,
        *,
        norm: float | str = math.inf,
        epsilon: float,
        step_size: float,
        iterations: int,
        targeted: bool = False,
        random_start: bool = False,
        keep_best: bool = False,
        loss: str = "cross_entropy",
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        """Sets the options."""
        super().__init__(
            estimator,
            norm=norm,
            epsilon=epsilon,
            step_size=step_size,
            iterations=iterations,
            targeted=targeted,
            random_start=random_start,
            keep_best=keep_best,
            loss=loss,
            batch_size=batch_size,
            seed=seed,
        )

    def _schedule(self) -> Schedule:
        return Schedule(self.step_size, self.iterations, self.keep_best)
