"""The fast gradient method."""

import math

from art.estimators.classification.tensorflow import TensorFlowV2Classifier

from sfm_tf.attacks.gradient_attack import GradientAttack, Schedule


class FastGradientMethod(GradientAttack):
    """One step of full size along the gradient's sign: FGSM.

    Goodfellow et al., "Explaining and harnessing adversarial examples", 2015, section 4. The same
    images as ART's `FastGradientMethod` of the same settings.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball and size of the step, in the units of the pixels.
        targeted: Whether labels are classes to reach rather than to leave.
        random_start: Whether to start at a random point of the ball.
        batch_size: Images attacked at a time.
        loss: `cross_entropy` as ART computes it, or `stable_cross_entropy`, the same loss without
            the rounding that misleads an attack where the model is confident.
        seed: Seed of the random start.
    """

    def __init__(
        self,
        estimator: TensorFlowV2Classifier,
        *,
        norm: float | str = math.inf,
        epsilon: float,
        targeted: bool = False,
        random_start: bool = False,
        loss: str = "cross_entropy",
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        """Sets the options."""
        super().__init__(
            estimator,
            norm=norm,
            epsilon=epsilon,
            targeted=targeted,
            random_start=random_start,
            loss=loss,
            batch_size=batch_size,
            seed=seed,
        )

    def _schedule(self) -> Schedule:
        return Schedule(step_size=self.epsilon, iterations=1, keep_best=False)
