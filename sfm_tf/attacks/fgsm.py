"""The fast gradient sign method (FGSM)."""

import dataclasses
from typing import ClassVar

from sfm_tf.attacks.pgd import GradientAttack


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class FastGradientMethod(GradientAttack):
    """One step of full size along the gradient's sign, or in L2 the gradient: FGSM.

    Goodfellow et al., "Explaining and harnessing adversarial examples", 2015, section 4. The same
    images as ART's `FastGradientMethod` of the same settings.

    Args:
        estimator: TensorFlow classifier of ART that returns logits.
        norm: Order of the norm that bounds the perturbation: `math.inf`, "inf" or 2.
        epsilon: Radius of the ball and size of the step, in the units of the pixels.
        targeted: Whether labels are classes to reach rather than to leave.
        batch_size: Images attacked at a time.
        seed: Seed of the random start.
        random_start: Whether to start at a random point of the ball.
        loss: `cross_entropy` as ART computes it, or `stable_cross_entropy`, the same loss without
            the rounding that misleads an attack where the model is confident.
    """

    # What a ClassVar declares is no option.
    step_size: ClassVar[property] = property(lambda self: self.epsilon)
    iterations: ClassVar[int] = 1
    keep_best: ClassVar[bool] = False
    restarts: ClassVar[int] = 1
    stop_when_fooled: ClassVar[bool] = False
    gradient_samples: ClassVar[int] = 1
